//! Runtimes: workers, and what they run.
//!
//! [`block_on`] is all that many programs need. It makes a current-thread runtime, runs a future to its end, and takes
//! everything down again. A [`Runtime`] is for programs that want several workers, keep a runtime between calls, or
//! configure it with a [`Builder`]. A [`Handle`] is for spawning from other threads.
//!
//! # Two kinds of runtime
//! | | current-thread | multi-thread |
//! | --- | --- | --- |
//! | made by | [`block_on`], [`Builder::new_current_thread`] | [`Runtime::new`], [`Builder::new_multi_thread`] |
//! | workers | the thread that is in `block_on` | threads of its own: one for each core, or [`worker_threads`](Builder::worker_threads) |
//! | tasks run | while a thread is in `block_on` | always |
//! | `block_on` at the same time | one thread | any number of threads |
//! | descriptors | three, once a socket has to wait; on Linux one more for the timers | the same for each worker, three of them from the start, and on Linux one more to look after others |
//! | clock | can be [paused](crate::time::pause) | the system's |
//!
//! The meaning of a program does not depend on how many cores the machine has.
//!
//! # Several workers
//! A task runs on the worker that woke it, mostly where its socket is. It moves when that worker has more to do than
//! another. A worker that is stuck in one poll of a task, because the task computes or blocks, holds back its local
//! tasks and nothing else. Another worker runs what is queued behind that task, turns the stuck worker's reactor and
//! fires its timers: an idle one within milliseconds. If all others are busy, one of them does so after some of its
//! polls, 16 at most if they take longer than a millisecond. A connection that [`serve`](crate::net::serve()) has
//! started there, and that was not polled yet, is taken over after about 50 ms. While all workers are stuck, no worker
//! is left to do so. Then a `block_on` call beside them waits for its sockets and timers too.
//!
//! # Metrics
//! [`Handle::metrics`] reports at any time what each worker has done. With [`Builder::measure_polls`] it also reports
//! how long the polls of tasks take, and how late timers fire. [`Metrics::prometheus`] is the text for a Prometheus
//! server.
//!
//! # Tracing
//! With the feature `tracing`, a subscriber of the [`tracing`](https://docs.rs/tracing) crate gets
//! * a span for each task, of the target `tokio::task`, with the fields that `console-subscriber` reads. So
//!   `tokio-console` shows the tasks of [`spawn`](crate::spawn), [`spawn_local`](crate::spawn_local) and
//!   [`spawn_blocking`](crate::spawn_blocking), their polls, and their wakes. Events of a task's own code are in its
//!   span;
//! * events of the target `kittiwake::serve` for the accept errors of a [server](crate::net::serve()) and for its end,
//!   and of `kittiwake::runtime` for the end of a runtime. Also of `kittiwake::task` for the slow polls that
//!   [`Builder::on_slow_poll`] reports.
//!
//! A task gets a span only if the subscriber is there when it is spawned and wants spans of the level `TRACE`. The
//! future of a `block_on` call has no span. The clones and drops of wakers are not seen: `tokio-console` shows one
//! waker for each task, and its warning of lost wakers never comes.
//!
//! The subscriber may spawn and wake tasks. While it is called it gets no spans and no events of that thread. A panic
//! of it is contained.
//!
//! The loop itself is in `worker.rs`, and is the place to begin reading.

mod batch;
mod builder;
mod enter;
mod handle;
#[cfg(all(test, kittiwake_loom))]
mod models;
mod prometheus;
mod slow_poll;
mod spin;
mod threads;
mod worker;

use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use crate::blocking::BlockingMetrics;
use crate::dump::TaskDump;
use crate::executor::{self, Executor, OnPoll, WorkerRef, Workers, is_large};
pub use crate::histogram::Histogram;
use crate::reactor::Reactor;
use crate::trace;
pub use builder::Builder;
use builder::{Kind, count_cores};
pub use enter::EnterGuard;
pub use handle::{Handle, Metrics, TryCurrentError, WorkerMetrics};
use handle::{Part, Services};
use slow_poll::PollWatch;
pub use slow_poll::SlowPoll;
use threads::Threads;
use worker::Worker;

/// Runs a future to its end on this thread, with the tasks it spawns.
///
/// Makes a current-thread [`Runtime`] for this one call. The future need not be `Send` or `'static`: it may borrow from
/// its caller. Tasks that still run when it ends are dropped before this returns.
///
/// # Panics
/// Inside another runtime: a thread that waits here cannot run the tasks it already has, so `.await` the future
/// instead, or spawn it. A panic of the future goes on to the caller.
///
/// # Examples
/// ```
/// let name = String::from("kittiwake");
/// let length = kittiwake::block_on(async { name.len() });
/// assert_eq!(length, 9);
/// ```
#[track_caller]
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    enter::check("block_on");
    match Builder::new_current_thread().build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => panic!("kittiwake::block_on: no runtime can be made: {error}"),
    }
}

/// Workers, each with its reactor, and their tasks.
///
/// Dropping it drops all its tasks, and wakes the tasks of other runtimes that wait for its sockets. It waits for the
/// poll of a task that is under way on a worker, but not for the closures of [`spawn_blocking`](crate::spawn_blocking)
/// that run. [`shutdown_timeout`](Runtime::shutdown_timeout) waits for both, and not for ever.
/// [`shutdown_background`](Runtime::shutdown_background) waits for neither.
///
/// A `Runtime` is `Send` and `Sync`. A task that holds an `Arc` of its own runtime keeps both for ever; give it a
/// [`Handle`]. If a task on one of its workers drops the runtime, the drop cancels all tasks and does not wait for the
/// workers. Two runtimes that are dropped by each other's tasks at the same time wait for each other.
///
/// # Examples
/// ```
/// let runtime = kittiwake::runtime::Runtime::new()?;
/// let task = runtime.block_on(async { kittiwake::spawn(async { 1 }) });
/// // The task goes on between the calls.
/// assert_eq!(runtime.block_on(task).unwrap(), 1);
/// # std::io::Result::Ok(())
/// ```
pub struct Runtime {
    /// `None` once it was shut down.
    scheduler: Option<Scheduler>,
    handle: Handle,
}

/// The threads that run a runtime's tasks.
enum Scheduler {
    /// The worker is locked by the thread that is in `block_on`, as long as it is.
    CurrentThread(Box<Mutex<Worker>>),
    MultiThread(Threads),
}

impl Runtime {
    /// Makes a multi-thread runtime with the default settings: it has a worker for each core, also where that is one.
    ///
    /// # Errors
    /// The system's error when it has no descriptors left for the reactors, three for each worker, or starts no
    /// threads.
    pub fn new() -> io::Result<Self> {
        Builder::new_multi_thread().build()
    }

    /// Runs a future to its end on this thread. A current-thread runtime also runs its tasks here meanwhile.
    ///
    /// Tasks made by [`spawn`](crate::spawn) outlive the call. They go on in the next one, or meanwhile if the runtime
    /// is multi-thread. In a current-thread runtime each of them that waits for a socket or a timer is polled once at
    /// the beginning of the next call: a call for each request beside thousands of idle connections is dear. Those made
    /// by [`spawn_local`](crate::spawn_local) on this thread are dropped before it returns.
    ///
    /// In a multi-thread runtime any number of threads may be in such calls. Each runs its own future and its local
    /// tasks only, and takes no descriptor: its sockets and timers wait with one of the workers.
    ///
    /// # Panics
    /// Inside a runtime, this one or another. If the runtime is a current-thread one and another thread is in its
    /// `block_on`. A panic of the future goes on to the caller.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Runtime::new()?;
    /// assert_eq!(runtime.block_on(async { 7 }), 7);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn block_on<F: IntoFuture>(&self, future: F) -> F::Output {
        enter::check("Runtime::block_on");
        if is_large::<F::IntoFuture>() || is_large::<F::Output>() {
            *self.block_on_small(executor::boxed(future))
        } else {
            self.block_on_unboxed(future)
        }
    }

    /// Apart from its caller, because in an unoptimised build the result of `into_future` would be in that frame.
    #[track_caller]
    fn block_on_unboxed<F: IntoFuture>(&self, future: F) -> F::Output {
        self.block_on_small(future.into_future())
    }

    #[track_caller]
    fn block_on_small<F: Future>(&self, future: F) -> F::Output {
        match &self.scheduler {
            Some(Scheduler::CurrentThread(worker)) => {
                let Some(mut worker) = worker.try_lock() else {
                    panic!(
                        "Runtime::block_on: another thread is in this runtime's block_on, and it is a current-thread \
                         runtime; use Handle::spawn from this thread, or a multi-thread runtime"
                    );
                };
                worker.block_on(future)
            }
            Some(Scheduler::MultiThread(_)) => worker::block_on_beside(&self.handle, future),
            None => unreachable!("a runtime that was shut down is gone"),
        }
    }

    /// A handle for spawning tasks from other threads.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Looks at the runtime, as [`Handle::tasks`] does.
    pub fn tasks(&self) -> TaskDump {
        self.handle.tasks()
    }

    /// Ends the runtime as its drop does, but waits no longer than `timeout`.
    ///
    /// In this time it waits for the workers, for the closures of [`spawn_blocking`](crate::spawn_blocking) and the
    /// look-ups of names that run, and for the ends of their threads, with the destructors of the thread-locals.
    ///
    /// Inside a blocking closure of this runtime it waits for the workers only. The error then counts this closure.
    ///
    /// The tasks of a current-thread runtime are dropped on this thread, and so are closures that have not begun there.
    /// Their destructors come first, and no timeout can interrupt them.
    ///
    /// # Errors
    /// If a thread of the runtime has not ended in time. The error says how many workers, tasks, closures and look-ups
    /// are left. They go on, each on its thread: a worker until all tasks are gone.
    ///
    /// # Panics
    /// Inside a runtime, this one or another: it would hold up its worker. The runtime is dropped then.
    ///
    /// # Platform notes
    /// Where the system does not run the destructors of thread-locals in the reverse order of their first use, a thread
    /// that still runs some may not be reported. Linux, macOS and the BSDs run them in this order.
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
    /// assert_eq!((error.workers_running(), error.closures_running()), (0, 1));
    /// # drop(end);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Result<(), ShutdownTimeout> {
        enter::check("Runtime::shutdown_timeout");
        // `None` is too far away for the clock to show it.
        let left = self.shut_down(Instant::now().checked_add(timeout));
        if left.threads() == 0 { Ok(()) } else { Err(left) }
    }

    /// Ends the runtime as its drop does, but waits for nothing. So it may be called inside a runtime.
    ///
    /// All tasks are cancelled, and each worker drops its own when the poll that is under way has ended. Closures of
    /// [`spawn_blocking`](crate::spawn_blocking) that run go on. Those that have not begun never begin.
    ///
    /// The tasks of a current-thread runtime are dropped on this thread, before this returns. Closures that have not
    /// begun there are dropped too.
    ///
    /// # Examples
    /// ```
    /// let (kept, dropped) = std::sync::mpsc::channel::<()>();
    /// kittiwake::block_on(async {
    ///     let runtime = kittiwake::runtime::Runtime::new()?;
    ///     runtime.handle().spawn(async move {
    ///         let _kept = kept;
    ///         std::future::pending::<()>().await;
    ///     });
    ///     runtime.shutdown_background();
    ///     std::io::Result::Ok(())
    /// })?;
    /// assert!(dropped.recv().is_err(), "a worker drops the task");
    /// # std::io::Result::Ok(())
    /// ```
    pub fn shutdown_background(mut self) {
        self.shut_down(Some(Instant::now()));
    }

    /// Ends the runtime, and waits until `deadline` at most. Returns what is left.
    fn shut_down(&mut self, deadline: Option<Instant>) -> ShutdownTimeout {
        // The workers close it, but one of them may be stuck.
        self.handle.pool().release_threads();
        let (workers_running, workers_ending) = self.shut_down_workers(deadline);
        let (closures_running, pool_ending) = self.handle.pool().wait_for_threads(deadline);
        let left = ShutdownTimeout {
            workers_running,
            tasks_alive: self.handle.metrics().tasks_alive(),
            threads_ending: workers_ending + pool_ending,
            closures_running,
        };
        if left.threads() > 0 {
            let ShutdownTimeout { workers_running, tasks_alive, threads_ending, closures_running } = left;
            trace::shutdown_timed_out(workers_running, tasks_alive, threads_ending, closures_running);
        }
        left
    }

    /// Ends the tasks, if that was not done before. Returns the same as [`Scheduler::shut_down`].
    fn shut_down_workers(&mut self, deadline: Option<Instant>) -> (usize, usize) {
        let Some(scheduler) = self.scheduler.take() else { return (0, 0) };
        trace::runtime_cancels(|| self.handle.metrics().tasks_alive());
        scheduler.shut_down(deadline)
    }
}

impl Handle {
    /// Enters the runtime: while the guard lives, this thread spawns there.
    ///
    /// [`spawn`](crate::spawn), [`JoinSet::spawn`](crate::task::JoinSet::spawn),
    /// [`spawn_blocking`](crate::spawn_blocking), [`lookup_host`](crate::net::lookup_host) and [`Handle::current`] then
    /// use this runtime. So code that calls them can run on any thread, such as one of another executor. The rules of
    /// [`Handle::spawn`] hold for what is spawned. In particular, tasks of a current-thread runtime wait for a thread
    /// in its `block_on`.
    ///
    /// The thread does not become a worker. The other services stay as they were before the guard:
    /// * A socket that has to wait, and a timer that is polled, on this thread go by the runtime that runs here, if one
    ///   does. Otherwise the socket returns an error and the timer panics. Poll them in a task that is spawned.
    /// * [`spawn_local`](crate::spawn_local) spawns on the worker or the `block_on` call of this thread, and panics if
    ///   there is none.
    /// * [`Instant::now`](crate::time::Instant::now) is that of this thread.
    ///
    /// A `block_on` call, which may be made while the guard lives, is inside its own runtime only. Several guards nest:
    /// the newest one counts. Do not keep a guard across an `await`, because other tasks of the thread would run inside
    /// the runtime too.
    ///
    /// A guard does not keep the runtime alive. When the runtime has ended, what is spawned is cancelled at once.
    ///
    /// # Panics
    /// Guards must be dropped in the reverse order of their making: see [`EnterGuard`].
    ///
    /// # Examples
    /// ```
    /// use kittiwake::runtime::Runtime;
    ///
    /// /// Code that spawns, and knows no runtime.
    /// fn start() -> kittiwake::task::JoinHandle<u32> {
    ///     kittiwake::spawn(async { 5 })
    /// }
    ///
    /// let runtime = Runtime::new()?;
    /// let task = {
    ///     let _guard = runtime.handle().enter();
    ///     start()
    /// };
    /// assert_eq!(runtime.block_on(task).unwrap(), 5);
    /// # std::io::Result::Ok(())
    /// ```
    pub fn enter(&self) -> EnterGuard<'_> {
        EnterGuard::new(self)
    }

    /// Runs a future to its end on this thread, beside the runtime's workers.
    ///
    /// Like [`Runtime::block_on`] of a multi-thread runtime. If the runtime has ended, or ends meanwhile, the future
    /// goes on, with a reactor and timers of its own. The tasks that it makes by [`spawn`](crate::spawn) are then
    /// cancelled at once.
    ///
    /// It does not run the tasks of a current-thread runtime: they wait for a thread in that runtime's own `block_on`.
    /// The future's sockets and timers do not need that runtime either, and go by the system's clock, even if the
    /// runtime's clock is paused.
    ///
    /// # Panics
    /// Inside a runtime, this one or another. A panic of the future goes on to the caller.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::time::{Duration, sleep};
    ///
    /// let runtime = kittiwake::runtime::Runtime::new()?;
    /// let handle = runtime.handle().clone();
    /// std::thread::spawn(move || handle.block_on(sleep(Duration::from_millis(5)))).join().unwrap();
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn block_on<F: IntoFuture>(&self, future: F) -> F::Output {
        enter::check("Handle::block_on");
        if is_large::<F::IntoFuture>() || is_large::<F::Output>() {
            *worker::block_on_beside(self, executor::boxed(future))
        } else {
            worker::block_on_beside(self, future.into_future())
        }
    }
}

impl Builder {
    /// Makes the runtime.
    ///
    /// # Errors
    /// For a multi-thread runtime, what the system says when it has no descriptors left for the reactors, three for
    /// each worker, or starts no threads. `InvalidInput` if such a runtime is to have a [paused](Builder::start_paused)
    /// clock. For a current-thread runtime none: it makes its reactor when a socket first has to wait, and that
    /// operation reports the error.
    // Inlined, so that a program which says how many workers it wants does not contain the code that counts cores: 30
    // KiB.
    #[inline]
    pub fn build(&self) -> io::Result<Runtime> {
        match self.kind {
            Kind::CurrentThread => self.build_current_thread(),
            Kind::MultiThread { workers: Some(count) } => self.build_multi_thread(count),
            Kind::MultiThread { workers: None } => self.build_multi_thread(count_cores()),
        }
    }

    fn build_current_thread(&self) -> io::Result<Runtime> {
        let (handle, mut workers) = self.make_workers(vec![Reactor::default()])?;
        let worker = workers.pop().expect("one worker for one reactor");
        Ok(Runtime { scheduler: Some(Scheduler::CurrentThread(Box::new(Mutex::new(worker)))), handle })
    }

    fn build_multi_thread(&self, count: usize) -> io::Result<Runtime> {
        let mut reactors = Vec::with_capacity(count);
        for _ in 0..count {
            let reactor = Reactor::default();
            reactor.registry().open()?;
            reactors.push(reactor);
        }
        let (handle, workers) = self.make_workers(reactors)?;
        let threads = Threads::start(workers, handle.workers().clone(), &self.thread_name, self.hooks.clone())?;
        Ok(Runtime { scheduler: Some(Scheduler::MultiThread(threads)), handle })
    }

    /// A worker for each reactor.
    fn make_workers(&self, reactors: Vec<Reactor>) -> io::Result<(Handle, Vec<Worker>)> {
        let clock = self.clock()?;
        let services: Vec<_> =
            reactors.iter().map(|reactor| Services::new(reactor, clock, self.measure_polls)).collect();
        let watch = self.watch_polls(&services);
        let on_poll = watch.clone().map(|watch| -> OnPoll { Box::new(move |index, poll| watch.polled(index, poll)) });
        let workers = Workers::new(reactors.iter().map(Reactor::unparker).collect(), on_poll, self.seed());
        workers.set_unpark_timers(reactors.iter().map(Reactor::unpark_timer));
        let mut parts = Vec::with_capacity(reactors.len());
        for (index, (reactor, services)) in reactors.iter().zip(&services).enumerate() {
            parts.push(Part::new(WorkerRef::new(workers.clone(), index), reactor, services));
        }
        let handle = Handle::new(workers.clone(), parts, watch, self.clone());
        enter::enter_pool_threads(&handle);
        let mut made = Vec::with_capacity(reactors.len());
        for (index, (reactor, services)) in reactors.into_iter().zip(services).enumerate() {
            let executor = Executor::new(WorkerRef::new(workers.clone(), index));
            made.push(Worker::new(executor, reactor, services, clock, handle.clone()));
        }
        Ok((handle, made))
    }

    /// `None` if the settings ask for no times of polls.
    fn watch_polls(&self, services: &[Services]) -> Option<Arc<PollWatch>> {
        let on_slow = self.on_slow_poll.clone();
        let is_needed = self.measure_polls || on_slow.is_some();
        let counters = || services.iter().map(|services| services.counters.clone()).collect();
        is_needed.then(|| Arc::new(PollWatch::new(counters(), on_slow)))
    }
}

impl Scheduler {
    /// Ends the tasks. Returns how many workers have not finished in time, and how many of their threads have not ended
    /// besides.
    fn shut_down(self, deadline: Option<Instant>) -> (usize, usize) {
        match self {
            Self::CurrentThread(worker) => {
                worker.into_inner().shut_down();
                (0, 0)
            }
            Self::MultiThread(mut threads) => threads.shut_down(deadline),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.shut_down_workers(None);
    }
}

// After a panic of its future, a call ends as it does after a return.
impl UnwindSafe for Runtime {}
impl RefUnwindSafe for Runtime {}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// The error of [`Runtime::shutdown_timeout`]: threads of the runtime have not ended in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownTimeout {
    workers_running: usize,
    tasks_alive: usize,
    threads_ending: usize,
    closures_running: usize,
}

impl ShutdownTimeout {
    /// How many workers had not finished when the time was over. Each is in a task that goes on, or waits for one.
    pub fn workers_running(&self) -> usize {
        self.workers_running
    }

    /// How many tasks had not been dropped when the time was over. One of them has not returned from its poll, or a
    /// destructor blocks.
    pub fn tasks_alive(&self) -> usize {
        self.tasks_alive
    }

    /// How many threads had nothing left to run when the time was over, and had not ended. Mostly the destructor of a
    /// thread-local blocks.
    pub fn threads_ending(&self) -> usize {
        self.threads_ending
    }

    /// How many blocking tasks ran when the time was over: closures of [`spawn_blocking`](crate::spawn_blocking), and
    /// look-ups of names. They go on.
    pub fn closures_running(&self) -> usize {
        self.closures_running
    }

    fn threads(&self) -> usize {
        self.workers_running + self.threads_ending + self.closures_running
    }
}

impl fmt::Display for ShutdownTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = [
            (self.workers_running, "worker"),
            (self.tasks_alive, "task"),
            (self.threads_ending, "ending thread"),
            (self.closures_running, "blocking task"),
        ];
        let left: Vec<_> = left
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}{}", if *count == 1 { "" } else { "s" }))
            .collect();
        write!(f, "the runtime did not end in time: {} went on", left.join(", "))
    }
}

impl std::error::Error for ShutdownTimeout {}
