//! Handles: to spawn on a runtime, and to look at it, from any thread.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::builder::{Builder, Kind};
use super::slow_poll::PollWatch;
use super::spin::SpinPolicy;
use crate::blocking::{BlockingMetrics, Pool, Work};
use crate::current::{Current, Entered};
use crate::dump::collect::Source;
use crate::dump::{self, TaskDump};
use crate::executor::{JoinHandle, WorkerRef, Workers};
use crate::histogram::Histogram;
use crate::metrics::{Counters, Measures};
use crate::reactor::{Reactor, Registry};
use crate::system_clock::monotonic;
use crate::time::{Clock, Timers};

/// Spawns tasks on a runtime, from any thread.
///
/// Cloning it is cheap. It does not keep the runtime alive.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

/// A [`Handle`] that does not keep itself.
pub(super) struct WeakHandle {
    inner: Weak<Inner>,
}

impl WeakHandle {
    pub(super) fn upgrade(&self) -> Option<Handle> {
        self.inner.upgrade().map(|inner| Handle { inner })
    }
}

struct Inner {
    workers: Arc<Workers>,
    /// Once the runtime has ended, it starts no closure. Those that run go on.
    pool: Arc<Pool>,
    /// One for each worker.
    parts: Vec<Part>,
    /// How many `block_on` calls beside the workers have begun.
    calls: AtomicUsize,
    /// `None` if polls are not timed.
    watch: Option<Arc<PollWatch>>,
    settings: Builder,
}

/// The timers and the counters of a worker.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) timers: Arc<Timers>,
    pub(super) counters: Arc<Counters>,
}

impl Services {
    /// For the worker that owns `reactor`. `clock` is the worker's, which need not be that of this thread.
    pub(super) fn new(reactor: &Reactor, clock: Clock, measure_polls: bool) -> Self {
        let timers = Timers::new(reactor.unparker(), clock.now(), Weak::new());
        Self { timers, counters: Arc::new(Counters::new(measure_polls)) }
    }
}

/// A handle's references to a worker. They keep no descriptor open.
pub(super) struct Part {
    worker: WorkerRef,
    pub(super) registry: Weak<Registry>,
    pub(super) timers: Weak<Timers>,
    pub(super) counters: Arc<Counters>,
}

impl Part {
    pub(super) fn new(worker: WorkerRef, reactor: &Reactor, services: &Services) -> Self {
        let Services { timers, counters } = services;
        let (registry, timers) = (Arc::downgrade(reactor.registry()), Arc::downgrade(timers));
        Self { worker, registry, timers, counters: counters.clone() }
    }

    fn metrics(&self) -> WorkerMetrics {
        let counters = &self.counters;
        let measures = counters.measures();
        let poll_times = measures.map(|Measures { poll_times, .. }| poll_times.snapshot());
        WorkerMetrics {
            tasks_alive: self.worker.tasks_alive(),
            timers_armed: self.timers.upgrade().map_or(0, |timers| timers.pending()),
            sources_registered: self.registry.upgrade().map_or(0, |registry| registry.sources()),
            polls: counters.polls.get(),
            remote_wakes: self.worker.remote_wakes(),
            turns: counters.turns.get(),
            events: counters.events.get(),
            parked: Duration::from_nanos(counters.parked.get(monotonic)),
            budget_yields: counters.budget_yields.get(),
            accepts: counters.accepts.get(),
            busy: poll_times.as_ref().map(Histogram::sum),
            poll_times,
            lateness: measures.map(|Measures { lateness, .. }| lateness.snapshot()),
        }
    }
}

impl Handle {
    /// For the runtime of these parts, which was made with these settings.
    pub(super) fn new(
        workers: Arc<Workers>,
        parts: Vec<Part>,
        watch: Option<Arc<PollWatch>>,
        settings: Builder,
    ) -> Self {
        let pool = Pool::new(settings.max_blocking_threads, settings.hooks.clone());
        Self { inner: Arc::new(Inner { workers, pool, parts, calls: AtomicUsize::new(0), watch, settings }) }
    }

    /// A reference for the pool, which the handle keeps.
    pub(super) fn downgrade(&self) -> WeakHandle {
        WeakHandle { inner: Arc::downgrade(&self.inner) }
    }

    pub(super) fn workers(&self) -> &Arc<Workers> {
        &self.inner.workers
    }

    pub(super) fn spin(&self) -> SpinPolicy {
        SpinPolicy::new(self.inner.settings.spin)
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.inner.pool
    }

    /// `None` if polls are not timed.
    pub(super) fn poll_watch(&self) -> Option<&PollWatch> {
        self.inner.watch.as_deref()
    }

    pub(super) fn part(&self, index: usize) -> &Part {
        &self.inner.parts[index]
    }

    /// The registries of the workers that have not ended.
    pub(super) fn registries(&self) -> impl Iterator<Item = Arc<Registry>> {
        self.inner.parts.iter().filter_map(|part| part.registry.upgrade())
    }

    /// The worker with which the sockets and timers of a new `block_on` call wait: the calls take the workers in turn.
    /// `None` for a current-thread runtime, whose worker is not always there.
    pub(super) fn part_for_call(&self) -> Option<&Part> {
        if matches!(self.inner.settings.kind, Kind::CurrentThread) {
            return None;
        }
        let call = self.inner.calls.fetch_add(1, Ordering::Relaxed);
        Some(self.part(call % self.inner.parts.len()))
    }
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
        Current::get(&CURRENT).ok_or(TryCurrentError(()))
    }

    /// Runs a future as a task of this runtime.
    ///
    /// Like [`spawn`](crate::spawn), from any thread. On the thread of one of the runtime's workers the task is queued
    /// there, from elsewhere on the worker with the fewest tasks. If the runtime has ended, the future is dropped at
    /// once, and the handle says that the task was cancelled.
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
        F: IntoFuture<IntoFuture: Send + 'static>,
        F::Output: Send + 'static,
    {
        self.spawning_worker().spawn(future.into_future(), Location::caller())
    }

    /// Runs a closure that blocks on a thread of this runtime's pool.
    ///
    /// Like [`spawn_blocking`](crate::spawn_blocking), from any thread, also while no thread is in `block_on`. If the
    /// runtime has ended, the closure is dropped at once, and the handle says that it was cancelled.
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
        self.inner.pool.spawn(&self.spawning_worker(), Work::Closure, closure, Location::caller())
    }

    fn spawning_worker(&self) -> WorkerRef {
        WorkerRef::to_spawn_on(&self.inner.workers)
    }

    /// The figures of the runtime's workers: what they hold at this moment, and what they have done so far. It also
    /// counts the threads for blocking work, and their closures.
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let _task = kittiwake::spawn(std::future::pending::<()>());
    ///     assert_eq!(kittiwake::runtime::Handle::current().metrics().tasks_alive(), 1);
    /// });
    /// ```
    pub fn metrics(&self) -> Metrics {
        let workers = self.inner.parts.iter().map(Part::metrics).collect();
        Metrics { workers, blocking: self.inner.pool.metrics() }
    }
}

impl Handle {
    /// Looks at the runtime: what its tasks and workers do at this moment, and what the tasks wait for.
    ///
    /// It works from any thread, also while workers are stuck in a task. It stops no worker: each table is read some
    /// entries at a time. Among the tasks are closures of [`spawn_blocking`](crate::spawn_blocking), and neither the
    /// futures of `block_on` calls nor the local tasks of a [`block_on`](super::Runtime::block_on) call beside the
    /// workers.
    ///
    /// The ages are as exact as the workers' last reading of the clock: while a worker handles one event after the
    /// other, without a timer, it does not read the clock.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::inspect::{TaskState, WaitsFor};
    /// use std::time::Duration;
    ///
    /// kittiwake::block_on(async {
    ///     let task = kittiwake::spawn(kittiwake::time::sleep(Duration::from_secs(60)));
    ///     kittiwake::task::yield_now().await;
    ///     let dump = kittiwake::runtime::Handle::current().tasks();
    ///     let info = &dump.tasks()[0];
    ///     assert_eq!(info.id, task.id());
    ///     assert!(matches!(info.state, TaskState::Waiting { .. }));
    ///     assert!(matches!(info.waits_for[..], [WaitsFor::Timer { .. }]));
    ///     assert!(dump.to_string().contains("waits for a timer"));
    /// });
    /// ```
    pub fn tasks(&self) -> TaskDump {
        let source = |part: &Part| Source { registry: part.registry.upgrade(), timers: part.timers.upgrade() };
        let sources: Vec<_> = self.inner.parts.iter().map(source).collect();
        dump::collect::collect(&self.inner.workers, &sources)
    }
}

thread_local! {
    /// The handle of the runtime that this thread has entered.
    static CURRENT: Current<Handle> = const { Current::none() };
}

/// Makes `handle` the one of this thread, until the guard is dropped.
pub(super) fn enter(handle: Handle) -> Entered<Handle> {
    Current::enter(&CURRENT, handle)
}

impl UnwindSafe for Handle {}
impl RefUnwindSafe for Handle {}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// The figures of a runtime, as [`Handle::metrics`] found them.
///
/// A batch of tasks is counted once it is over.
#[derive(Clone, Debug)]
pub struct Metrics {
    workers: Vec<WorkerMetrics>,
    blocking: BlockingMetrics,
}

impl Metrics {
    /// The figures of each worker.
    pub fn workers(&self) -> &[WorkerMetrics] {
        &self.workers
    }

    /// The tasks of all workers that have not ended: their future has not been dropped. Neither blocking closures nor
    /// the local tasks of a [`block_on`](super::Runtime::block_on) call beside the workers are among them.
    pub fn tasks_alive(&self) -> usize {
        self.workers.iter().map(|worker| worker.tasks_alive).sum()
    }

    /// The sockets that the workers' reactors watch: those that have waited since they were made.
    pub fn sources_registered(&self) -> usize {
        self.workers.iter().map(|worker| worker.sources_registered).sum()
    }

    /// The threads for blocking work, and the closures and look-ups of names that they run.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Builder::new_current_thread().max_blocking_threads(1).build()?;
    /// let (end, ended) = std::sync::mpsc::channel::<()>();
    /// let first = runtime.handle().spawn_blocking(move || ended.recv().is_err());
    /// let second = runtime.handle().spawn_blocking(|| true);
    /// let blocking = runtime.handle().metrics().blocking().clone();
    /// assert_eq!(blocking.closures_running + blocking.closures_waiting, 2);
    /// assert_eq!(blocking.threads, 1);
    /// drop(end);
    /// assert!(runtime.block_on(first)? && runtime.block_on(second)?);
    /// # std::io::Result::Ok(())
    /// ```
    pub fn blocking(&self) -> &BlockingMetrics {
        &self.blocking
    }

    /// How long the polls of tasks took, on all workers. `None` without
    /// [`Builder::measure_polls`](super::Builder::measure_polls).
    ///
    /// A poll is counted when it has returned. A long poll holds up the other tasks of its worker, so the high quantiles
    /// tell how well the tasks share their workers. The polls of the future of a `block_on` call are not among them, nor
    /// are those of the local tasks of a call beside the workers.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::runtime::Builder;
    ///
    /// let runtime = Builder::new_current_thread().measure_polls(true).build()?;
    /// runtime.block_on(async { kittiwake::spawn(async {}).await })?;
    /// let polls = runtime.handle().metrics().poll_times().expect("the runtime measures");
    /// assert!(polls.quantile(0.5) <= polls.quantile(0.99));
    ///
    /// let runtime = Builder::new_current_thread().build()?;
    /// assert!(runtime.handle().metrics().poll_times().is_none());
    /// # std::io::Result::Ok(())
    /// ```
    pub fn poll_times(&self) -> Option<Histogram> {
        merged(self.workers.iter().map(|worker| worker.poll_times.as_ref()))
    }

    /// How late the workers fired timers. `None` without [`Builder::measure_polls`](super::Builder::measure_polls).
    ///
    /// Each time that a worker finds timers due, it counts for how long the earliest of them has been due, by the
    /// runtime's clock. Mostly the reason is that a task was being polled when the timer became due. Timers have a
    /// resolution of 65 µs, which is part of the lateness.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::runtime::Builder;
    /// use kittiwake::time::{Duration, sleep};
    ///
    /// let runtime = Builder::new_current_thread().measure_polls(true).build()?;
    /// runtime.block_on(async {
    ///     let timer = kittiwake::spawn(sleep(Duration::from_millis(50)));
    ///     kittiwake::task::yield_now().await;
    ///     // The timer cannot fire meanwhile.
    ///     std::thread::sleep(Duration::from_millis(100));
    ///     timer.await
    /// })?;
    /// let lateness = runtime.handle().metrics().lateness().expect("the runtime measures");
    /// assert!(lateness.max() > Duration::from_millis(10));
    /// # std::io::Result::Ok(())
    /// ```
    pub fn lateness(&self) -> Option<Histogram> {
        merged(self.workers.iter().map(|worker| worker.lateness.as_ref()))
    }
}

/// The sum of the workers' histograms. `None` if they have none.
fn merged<'a>(histograms: impl Iterator<Item = Option<&'a Histogram>>) -> Option<Histogram> {
    histograms.flatten().cloned().reduce(|mut sum, histogram| {
        sum.merge(&histogram);
        sum
    })
}

/// The figures of one worker. Counts begin with the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerMetrics {
    /// Tasks that were spawned on this worker and have not ended.
    pub tasks_alive: usize,
    /// Timers that are armed here and have not fired.
    pub timers_armed: usize,
    /// Sockets that its reactor watches.
    pub sources_registered: usize,
    /// How often it ran a task.
    pub polls: u64,
    /// How often another thread pushed something to it, such as a woken task, or a server started a connection here.
    pub remote_wakes: u64,
    /// How often it looked for events or blocked, with a reactor or without.
    pub turns: u64,
    /// Events that its turns have reported, unparks among them.
    pub events: u64,
    /// How long it has slept, up to this moment. Not counted while the clock is paused.
    pub parked: Duration,
    /// How often a task, or the future of a `block_on` call, had used up its budget of socket operations, and had to
    /// give way. This and the next count also have the share of the `block_on` calls beside the workers.
    pub budget_yields: u64,
    /// Connections that were accepted here.
    pub accepts: u64,
    /// How long the polls of its tasks took, all in all: the sum of `poll_times`. A poll that has not returned does not
    /// count. This and the next two are `None` without [`Builder::measure_polls`](super::Builder::measure_polls).
    pub busy: Option<Duration>,
    /// How long each poll of a task took; see [`Metrics::poll_times`].
    pub poll_times: Option<Histogram>,
    /// How late it was each time that it fired timers; see [`Metrics::lateness`]. Those of a stuck worker, which this one
    /// has fired, count here.
    pub lateness: Option<Histogram>,
}

/// The error of a thread that is not inside a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryCurrentError(());

impl fmt::Display for TryCurrentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this thread is not inside a kittiwake runtime; call this inside block_on or from a task")
    }
}

impl std::error::Error for TryCurrentError {}
