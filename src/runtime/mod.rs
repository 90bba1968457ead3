//! Runtimes: a worker, and what it runs.
//!
//! [`block_on`] is all that most programs need: it makes a runtime on
//! the calling thread, runs a future to its end, and takes everything down again. A
//! [`Runtime`] is for those who want to keep one between calls, or to configure it with
//! a [`Builder`]; a [`Handle`] is for spawning from other threads.
//!
//! A runtime has one worker today: the thread that is inside `block_on`. Spawned tasks
//! run inside such a call, and wait between calls.
//!
//! The loop itself is in `worker.rs`, and is the place to begin reading.

mod enter;
mod worker;

use std::fmt;
use std::io;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::blocking::Pool;
use crate::executor::{self, Home, JoinHandle};
use crate::reactor::Registry;
use worker::Worker;

/// Runs a future to its end on this thread, with the tasks it spawns.
///
/// Makes a [`Runtime`] for this one call. The future need not be `Send` or
/// `'static`: it may borrow from its caller. Tasks that still run when it ends are
/// dropped before this returns.
///
/// # Panics
/// Inside another runtime: a thread that waits here cannot run the tasks it already has, so
/// `.await` the future instead, or spawn it. Also if the system has no descriptors
/// left for a reactor; [`Builder::build`] returns that as an error. A panic of the future goes
/// on to the caller.
///
/// # Examples
/// ```
/// let name = String::from("kittiwake");
/// let length = kittiwake::block_on(async { name.len() });
/// assert_eq!(length, 9);
/// ```
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    enter::check("block_on");
    match Runtime::new() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => panic!("kittiwake::block_on: no reactor can be made: {error}"),
    }
}

/// A worker with its reactor and its tasks.
///
/// Dropping it drops all its tasks, then fails what still waits on its sockets. It does not wait for the closures
/// of [`spawn_blocking`](crate::spawn_blocking) that run: [`shutdown_timeout`](Runtime::shutdown_timeout) does. It is
/// `Send` and `Sync`. A task that holds an `Arc` of its own runtime keeps both for ever; give it a [`Handle`].
///
/// # Examples
/// ```
/// let runtime = kittiwake::runtime::Runtime::new()?;
/// let task = runtime.block_on(async { kittiwake::spawn(async { 1 }) });
/// // The task goes on in the next call.
/// assert_eq!(runtime.block_on(task).unwrap(), 1);
/// # std::io::Result::Ok(())
/// ```
pub struct Runtime {
    /// Locked by the thread that is in `block_on`, for as long.
    worker: Mutex<Worker>,
    handle: Handle,
}

impl Runtime {
    /// Makes a runtime with the default settings.
    ///
    /// # Errors
    /// What the system says when it has no descriptors left for the reactor: three are needed.
    pub fn new() -> io::Result<Self> {
        Builder::new().build()
    }

    /// Runs a future to its end on this thread, and the runtime's tasks beside it.
    ///
    /// Tasks made by [`spawn`](crate::spawn) outlive the call and go on in the next. Those made by
    /// [`spawn_local`](crate::spawn_local) are dropped before it returns.
    ///
    /// # Panics
    /// Inside a runtime, this one or another, and while another thread is in this runtime's `block_on`: a
    /// runtime has one worker. A panic of the future goes on to the caller.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Runtime::new()?;
    /// assert_eq!(runtime.block_on(async { 7 }), 7);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        enter::check("Runtime::block_on");
        let Some(mut worker) = self.worker.try_lock() else {
            panic!(
                "Runtime::block_on: another thread is in this runtime's block_on, and it has one worker; \
                 use Handle::spawn from this thread, or a runtime of its own"
            );
        };
        if size_of::<F>() > executor::LARGE { worker.block_on(Box::pin(future)) } else { worker.block_on(future) }
    }

    /// A handle for spawning tasks from other threads.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the runtime as its drop does, then waits for the closures of [`spawn_blocking`](crate::spawn_blocking) that
    /// run, until `timeout` is over.
    ///
    /// What is bounded is the wait: the destructors of the tasks, and of closures that have not begun, come first, and take
    /// the time they take.
    ///
    /// # Errors
    /// If closures run even then. They go on, each on its thread, as when the runtime is dropped.
    ///
    /// # Panics
    /// Inside a runtime, this one or another: it would hold up its worker. The runtime is dropped then.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let runtime = kittiwake::runtime::Runtime::new()?;
    /// let (end, ended) = std::sync::mpsc::channel::<()>();
    /// let (begin, begun) = std::sync::mpsc::channel::<()>();
    /// runtime.handle().spawn_blocking(move || {
    ///     begin.send(()).unwrap();
    ///     ended.recv()
    /// });
    /// begun.recv().unwrap();
    /// let error = runtime.shutdown_timeout(Duration::from_millis(10)).unwrap_err();
    /// assert_eq!(error.still_running(), 1);
    /// # drop(end);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn shutdown_timeout(self, timeout: Duration) -> Result<(), ShutdownTimeout> {
        enter::check("Runtime::shutdown_timeout");
        // `None` is too far away for the clock to show it.
        let deadline = Instant::now().checked_add(timeout);
        let pool = self.handle.pool.clone();
        drop(self);
        match pool.wait_until_gone(deadline) {
            0 => Ok(()),
            still_running => Err(ShutdownTimeout { still_running }),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.worker.get_mut().shut_down();
    }
}

// A panic of a call's future leaves the worker in order: the call's end is the same.
impl UnwindSafe for Runtime {}
impl RefUnwindSafe for Runtime {}
impl UnwindSafe for Handle {}
impl RefUnwindSafe for Handle {}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// Settings for a [`Runtime`].
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// let runtime = kittiwake::runtime::Builder::new().spin(Duration::from_micros(50)).build()?;
/// runtime.block_on(async {});
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    spin: Duration,
    start_paused: bool,
    max_blocking_threads: usize,
}

impl Builder {
    /// The default settings.
    pub fn new() -> Self {
        Self { spin: Duration::ZERO, start_paused: false, max_blocking_threads: 512 }
    }

    /// How long a worker that has nothing to do looks for events again and again before it blocks. Zero,
    /// the default, blocks at once.
    ///
    /// Going to sleep and being woken costs tens of microseconds on a virtual machine. A server with
    /// few, busy clients may answer sooner with 20 to 100 µs here, at the price of CPU time.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Whether the runtime's clock stands still from the start; see [`time`](crate::time). For tests.
    #[must_use]
    pub fn start_paused(mut self, start_paused: bool) -> Self {
        self.start_paused = start_paused;
        self
    }

    /// How many threads the runtime starts at most for [`spawn_blocking`](crate::spawn_blocking) and for names that
    /// are looked up. 512 by default; they are started when they are needed.
    ///
    /// # Panics
    /// If it is 0: nothing could ever run.
    #[must_use]
    #[track_caller]
    pub fn max_blocking_threads(mut self, max: usize) -> Self {
        assert!(max > 0, "Builder::max_blocking_threads: no closure could ever run on 0 threads; use 1 or more");
        self.max_blocking_threads = max;
        self
    }

    /// Makes the runtime.
    ///
    /// # Errors
    /// What the system says when it has no descriptors left for the reactor: three are needed.
    pub fn build(&self) -> io::Result<Runtime> {
        let worker = Worker::new(self.spin, self.start_paused, Pool::new(self.max_blocking_threads))?;
        let handle = worker.handle();
        Ok(Runtime { worker: Mutex::new(worker), handle })
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

/// Spawns tasks on a runtime, from any thread.
///
/// Cloning it is cheap. It does not keep the runtime alive.
#[derive(Clone)]
pub struct Handle {
    home: Arc<Home>,
    /// Weak, because it has a descriptor: a handle must not keep that open.
    registry: Weak<Registry>,
    /// It has neither threads nor jobs once the runtime has ended.
    pool: Arc<Pool>,
}

impl Handle {
    /// The handle of the runtime that this thread is in.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn current() -> Self {
        // Not `unwrap_or_else`: the panic is to point to the caller.
        match Self::try_current() {
            Ok(handle) => handle,
            Err(error) => panic!("Handle::current: {error}"),
        }
    }

    /// The handle of the runtime that this thread is in.
    ///
    /// # Errors
    /// If the thread is not inside a runtime.
    pub fn try_current() -> Result<Self, TryCurrentError> {
        match (Home::current(), Registry::current(), Pool::current()) {
            (Some(home), Some(registry), Some(pool)) => Ok(Self { home, registry: Arc::downgrade(&registry), pool }),
            _ => Err(TryCurrentError(())),
        }
    }

    /// Runs a future as a task of this runtime.
    ///
    /// Like [`spawn`](crate::spawn), from any thread. If the runtime has ended, the future is dropped at
    /// once, and the handle says that it was cancelled.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Runtime::new()?;
    /// let handle = runtime.handle().clone();
    /// let task = std::thread::spawn(move || handle.spawn(async { 5 })).join().unwrap();
    /// assert_eq!(runtime.block_on(task).unwrap(), 5);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.home.spawn(future, Location::caller())
    }

    /// Runs a closure that blocks on a thread of this runtime's pool.
    ///
    /// Like [`spawn_blocking`](crate::spawn_blocking), from any thread, also while nobody is in `block_on`. If the runtime has
    /// ended, the closure is dropped at once, and the handle says that it was cancelled.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Runtime::new()?;
    /// let task = runtime.handle().spawn_blocking(|| 5);
    /// assert_eq!(runtime.block_on(task).unwrap(), 5);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn spawn_blocking<C, T>(&self, closure: C) -> JoinHandle<T>
    where
        C: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.pool.spawn(&self.home, closure, Location::caller())
    }
}

impl Handle {
    /// What the runtime holds at this moment.
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let _task = kittiwake::spawn(std::future::pending::<()>());
    ///     assert_eq!(kittiwake::runtime::Handle::current().metrics().tasks_alive(), 1);
    /// });
    /// ```
    pub fn metrics(&self) -> Metrics {
        Metrics {
            tasks_alive: self.home.tasks(),
            sources_registered: self.registry.upgrade().map_or(0, |registry| registry.sources()),
        }
    }
}

/// What a runtime holds, as [`Handle::metrics`] found it.
#[derive(Clone, Debug)]
pub struct Metrics {
    tasks_alive: usize,
    sources_registered: usize,
}

impl Metrics {
    /// Tasks that have not ended: their future has not been dropped. Blocking closures are not among them.
    pub fn tasks_alive(&self) -> usize {
        self.tasks_alive
    }

    /// Sockets that the reactor watches: those that have waited since they were made.
    pub fn sources_registered(&self) -> usize {
        self.sources_registered
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// [`Runtime::shutdown_timeout`] did not see the end of all blocking closures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownTimeout {
    still_running: usize,
}

impl ShutdownTimeout {
    /// How many closures ran when the time was over. They go on.
    pub fn still_running(&self) -> usize {
        self.still_running
    }
}

impl fmt::Display for ShutdownTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, s) = (self.still_running, if self.still_running == 1 { "" } else { "s" });
        write!(f, "the runtime has ended, but {count} blocking closure{s} went on when the time for that was over")
    }
}

impl std::error::Error for ShutdownTimeout {}

/// The thread is not inside a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryCurrentError(());

impl fmt::Display for TryCurrentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this thread is not inside a kittiwake runtime; call this inside block_on or from a task")
    }
}

impl std::error::Error for TryCurrentError {}
