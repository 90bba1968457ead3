//! Runtimes: workers, and what they run.
//!
//! [`block_on`] is all that many programs need: it makes a runtime of one worker on
//! the calling thread, runs a future to its end, and takes everything down again. A
//! [`Runtime`] is for those who want several workers, to keep one between calls, or to configure it with
//! a [`Builder`]; a [`Handle`] is for spawning from other threads.
//!
//! # One worker, or several
//! The only worker of a runtime is the thread that is inside `block_on`. Its tasks
//! run inside such a call, and wait between calls.
//!
//! Each of several workers is a thread of its own, and tasks run on them whether or not somebody is in `block_on`. A task
//! runs on the worker that woke it, mostly where its socket is, and moves when that one has more to do than another. A worker
//! that is stuck in one poll of a task, because that computes or blocks, holds back what belongs to it: its local tasks, and
//! the sockets and timers that first waited there. What is queued behind that task is run by others within milliseconds; the
//! first poll of a connection that [`serve`](crate::net::serve()) has placed there, after some 50.
//!
//! # Metrics
//! What each worker has done, [`Handle::metrics`] tells at any time.
//!
//! The loop itself is in `worker.rs`, and is the place to begin reading.

mod enter;
mod handle;
mod park;
mod threads;
mod worker;

use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe, resume_unwind};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::blocking::Pool;
use crate::executor::{self, Executor, Home, Workers};
use crate::reactor::Reactor;
use crate::sync::contain;
use crate::time::Clock;
pub use handle::{Handle, Metrics, TryCurrentError, WorkerMetrics};
use park::Park;
use threads::Threads;
use worker::{Resources, Worker};

/// Runs a future to its end on this thread, with the tasks it spawns.
///
/// Makes a [`Runtime`] of one worker for this one call. The future need not be `Send` or
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
    match Builder::new().workers(1).build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => panic!("kittiwake::block_on: no reactor can be made: {error}"),
    }
}

/// Workers, each with its reactor, and their tasks.
///
/// Dropping it drops all its tasks, then fails what still waits on its sockets. It waits for the poll of a task that is
/// under way on a worker, but not for the closures
/// of [`spawn_blocking`](crate::spawn_blocking) that run: [`shutdown_timeout`](Runtime::shutdown_timeout) waits for both,
/// and not for ever. It is
/// `Send` and `Sync`. A task that holds an `Arc` of its own runtime keeps both for ever; give it a [`Handle`]. Dropped
/// by a task on one of its own workers, it tells them to end and waits for none. Two runtimes that are dropped by
/// each other's tasks at the same time wait for each other.
///
/// # Examples
/// ```
/// let runtime = kittiwake::runtime::Runtime::new()?;
/// let task = runtime.block_on(async { kittiwake::spawn(async { 1 }) });
/// // The task goes on between the calls, or in the next if there is one worker.
/// assert_eq!(runtime.block_on(task).unwrap(), 1);
/// # std::io::Result::Ok(())
/// ```
pub struct Runtime {
    /// `None` once it was told to end.
    runs: Option<Runs>,
    /// How long a guest polls before it blocks.
    spin: Option<Duration>,
    handle: Handle,
}

/// Who runs a runtime's tasks.
enum Runs {
    /// Its only worker: locked by the thread that is in `block_on`, for as long.
    One(Box<Mutex<Worker>>),
    Several(Threads),
}

impl Runtime {
    /// Makes a runtime with the default settings: it has a worker for each core.
    ///
    /// # Errors
    /// What the system says when it has no descriptors left for the reactors, three for each worker, or starts no threads.
    pub fn new() -> io::Result<Self> {
        Builder::new().build()
    }

    /// Runs a future to its end on this thread, and the runtime's tasks beside it.
    ///
    /// Tasks made by [`spawn`](crate::spawn) outlive the call, and go on in the next, or meanwhile if there are several
    /// workers. Those made by [`spawn_local`](crate::spawn_local) are dropped before it returns.
    ///
    /// Beside several workers any number of threads may be in such calls. Each runs its own future and its local tasks
    /// only, with a reactor for that time.
    ///
    /// # Panics
    /// Inside a runtime, this one or another. If the runtime has one worker, while another thread is in its `block_on`; if
    /// it has several, when the system has no descriptors left for the call's reactor: three. A panic of the future goes on to
    /// the caller.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Runtime::new()?;
    /// assert_eq!(runtime.block_on(async { 7 }), 7);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        if size_of::<F>() > executor::LARGE {
            self.block_on_small(Box::pin(future))
        } else {
            self.block_on_small(future)
        }
    }

    #[track_caller]
    fn block_on_small<F: Future>(&self, future: F) -> F::Output {
        enter::check("Runtime::block_on");
        let Some(Runs::One(worker)) = &self.runs else { return self.block_on_beside(future) };
        let Some(mut worker) = worker.try_lock() else {
            panic!(
                "Runtime::block_on: another thread is in this runtime's block_on, and it has one worker; \
                 use Handle::spawn from this thread, or a runtime of several workers"
            );
        };
        worker.block_on(future)
    }

    /// Runs a future on this thread, as a guest beside the workers.
    #[track_caller]
    fn block_on_beside<F: Future>(&self, future: F) -> F::Output {
        let mut guest = match self.guest() {
            Ok(guest) => guest,
            Err(error) => panic!("Runtime::block_on: no reactor can be made for this call: {error}"),
        };
        // Its end is the same if the future panics: its sockets go to the workers.
        let result = contain(|| guest.block_on(future));
        if let Some(heir) = self.handle.least_busy_registry() {
            guest.leave_to(&heir);
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn guest(&self) -> io::Result<Worker> {
        let reactor = Reactor::new()?;
        let home = Home::new(Workers::new(vec![reactor.ring()]), 0);
        let resources = Resources::new(reactor, Clock::COMMON);
        self.handle.guest_came(resources.part(home.clone()));
        let executor = Executor::beside(home, self.handle.workers().clone());
        Ok(Worker::new(executor, resources, Clock::COMMON, Park::new(self.spin), self.handle.clone()))
    }

    /// A handle for spawning tasks from other threads.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the runtime as its drop does, but waits no longer than `timeout` for its workers; then waits for the closures of
    /// [`spawn_blocking`](crate::spawn_blocking) that run, until that time is over.
    ///
    /// What is bounded is the wait. If there is one worker, the destructors of its tasks run on this thread, first, and
    /// take the time they take; so do those of closures that have not begun.
    ///
    /// # Errors
    /// If workers or closures run even then. They go on, each on its thread: a worker until its tasks are gone.
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
    /// assert_eq!((error.workers_running(), error.still_running()), (0, 1));
    /// # drop(end);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Result<(), ShutdownTimeout> {
        enter::check("Runtime::shutdown_timeout");
        // `None` is too far away for the clock to show it.
        let deadline = Instant::now().checked_add(timeout);
        let workers_running = self.runs.take().map_or(0, |runs| runs.end(deadline));
        let pool = self.handle.pool();
        // The workers have closed it, unless one of them is stuck.
        pool.close();
        match (workers_running, pool.wait_until_gone(deadline)) {
            (0, 0) => Ok(()),
            (workers_running, still_running) => Err(ShutdownTimeout { workers_running, still_running }),
        }
    }
}

impl Runs {
    /// Ends the tasks. Returns how many workers have not come to that in time.
    fn end(self, deadline: Option<Instant>) -> usize {
        match self {
            Self::One(worker) => {
                worker.into_inner().shut_down();
                0
            }
            Self::Several(mut threads) => threads.end(deadline),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runs) = self.runs.take() {
            runs.end(None);
        }
    }
}

// A panic of a call's future leaves the worker in order: the call's end is the same.
impl UnwindSafe for Runtime {}
impl RefUnwindSafe for Runtime {}

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
    /// `None` is one for each core.
    workers: Option<usize>,
    thread_name: String,
    /// `None` is the adaptive rule.
    spin: Option<Duration>,
    start_paused: bool,
    max_blocking_threads: usize,
}

impl Builder {
    /// The default settings.
    pub fn new() -> Self {
        Self {
            workers: None,
            thread_name: "kittiwake".to_owned(),
            spin: None,
            start_paused: false,
            max_blocking_threads: 512,
        }
    }

    /// How many workers there are: by default one for each core ([`available_parallelism`]), or one if the clock is
    /// [paused](Builder::start_paused).
    ///
    /// The only one of a runtime is the thread that is inside `block_on`; several are threads of their own.
    ///
    /// # Panics
    /// If it is 0, or more than 4,096.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Builder::new().workers(2).build()?;
    /// assert_eq!(runtime.handle().metrics().workers().len(), 2);
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    #[track_caller]
    pub fn workers(mut self, workers: usize) -> Self {
        assert!(workers > 0, "Builder::workers: no task could ever run on 0 workers; use 1 or more");
        assert!(
            workers <= MOST_WORKERS,
            "Builder::workers: {workers} are more than {MOST_WORKERS}; use one for each core"
        );
        self.workers = Some(workers);
        self
    }

    /// What the threads of several workers are called, with a number behind it: `kittiwake-0` by default. The system may cut it
    /// short.
    ///
    /// # Panics
    /// If there is a NUL in it.
    #[must_use]
    #[track_caller]
    pub fn thread_name(mut self, name: impl Into<String>) -> Self {
        self.thread_name = name.into();
        assert!(!self.thread_name.contains('\0'), "Builder::thread_name: a thread's name cannot have a NUL in it");
        self
    }

    /// How long a worker that has nothing to do polls, which is to look for events again and again, before it blocks.
    ///
    /// By default it finds out by itself: it compares the two ways now and then, and polls, for 50 µs at most, where that
    /// takes a quarter off the time between one batch of work and the next, without taking more than an eighth more CPU
    /// time. So it does with few and busy clients on a core of its own, where going to sleep and being woken, which can take
    /// tens of microseconds on a virtual machine, is more than the work. A fixed time is for those who know their load
    /// better, or mean to pay for latency with CPU time. [`Duration::ZERO`] forbids polling.
    ///
    /// # Platform notes
    /// What it costs is known where threads can be asked for their CPU time: on Linux. Elsewhere the default is to block at
    /// once.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = Some(spin);
        self
    }

    /// Whether the runtime's clock stands still from the start; see [`time`](crate::time). For tests, and for one worker.
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
    /// What the system says when it has no descriptors left for the reactors, three for each worker, or starts no threads.
    /// `InvalidInput` if there are to be several workers with a [paused](Builder::start_paused) clock.
    // Inlined, for a program that says how many workers it wants to be without the code that counts cores.
    #[inline]
    pub fn build(&self) -> io::Result<Runtime> {
        self.build_of(self.count_workers()?)
    }

    fn build_of(&self, count: usize) -> io::Result<Runtime> {
        let clock = self.clock(count);
        let mut resources = Vec::with_capacity(count);
        for _ in 0..count {
            resources.push(Resources::new(Reactor::new()?, clock));
        }
        let workers = Workers::new(resources.iter().map(Resources::ring).collect());
        let home = |index| Home::new(workers.clone(), index);
        let parts = resources.iter().enumerate().map(|(index, resources)| resources.part(home(index))).collect();
        let handle = Handle::new(workers.clone(), Pool::new(self.max_blocking_threads), parts);
        let mut runners = Vec::with_capacity(count);
        for (index, resources) in resources.into_iter().enumerate() {
            let executor = Executor::new(home(index));
            runners.push(Worker::new(executor, resources, clock, Park::new(self.spin), handle.clone()));
        }
        let runs = match runners.pop() {
            Some(worker) if runners.is_empty() => Runs::One(Box::new(Mutex::new(worker))),
            last => {
                runners.extend(last);
                Runs::Several(Threads::start(runners, workers, &self.thread_name)?)
            }
        };
        Ok(Runtime { runs: Some(runs), spin: self.spin, handle })
    }

    #[inline]
    fn count_workers(&self) -> io::Result<usize> {
        match self.workers {
            Some(2..) if self.start_paused => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a clock that is paused from the start needs a runtime of one worker; call Builder::workers(1)",
            )),
            Some(workers) => Ok(workers),
            None if self.start_paused => Ok(1),
            None => Ok(count_cores()),
        }
    }

    fn clock(&self, workers: usize) -> Clock {
        match workers {
            1 if self.start_paused => Clock::paused(),
            1 => Clock::SYSTEM,
            _ => Clock::COMMON,
        }
    }
}

/// Each is a thread with a reactor, and looks at all others now and then.
const MOST_WORKERS: usize = 4096;

#[cold]
fn count_cores() -> usize {
    // Where the system does not say, one is right for most.
    available_parallelism().map_or(1, |cores| cores.get().min(MOST_WORKERS))
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

/// [`Runtime::shutdown_timeout`] did not see the end of all workers and blocking closures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownTimeout {
    workers_running: usize,
    still_running: usize,
}

impl ShutdownTimeout {
    /// How many workers had not come to an end when the time was over: each is in a task that goes on, or waits for one.
    pub fn workers_running(&self) -> usize {
        self.workers_running
    }

    /// How many closures ran when the time was over. They go on.
    pub fn still_running(&self) -> usize {
        self.still_running
    }
}

impl fmt::Display for ShutdownTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let closures = count(self.still_running, "blocking closure");
        let went_on = match (self.workers_running, self.still_running) {
            (0, _) => closures,
            (workers, 0) => count(workers, "worker"),
            (workers, _) => format!("{} and {closures}", count(workers, "worker")),
        };
        write!(f, "the runtime was told to end, but {went_on} went on when the time for that was over")
    }
}

impl std::error::Error for ShutdownTimeout {}
