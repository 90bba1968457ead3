//! Handles: spawning on a runtime, and looking at it, from any thread.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::enter;
use crate::blocking::Pool;
use crate::executor::{Home, JoinHandle, Workers};
use crate::metrics::Counters;
use crate::reactor::{Reactor, Registry};
use crate::time::Timers;

/// Spawns tasks on a runtime, from any thread.
///
/// Cloning it is cheap. It does not keep the runtime alive.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    workers: Arc<Workers>,
    /// It has neither threads nor jobs once the runtime has ended.
    pool: Arc<Pool>,
    /// One for each worker.
    parts: Vec<Part>,
}

/// What a handle has of a worker: nothing that has a descriptor, which it would keep open.
pub(super) struct Part {
    registry: Weak<Registry>,
    timers: Weak<Timers>,
    counters: Arc<Counters>,
}

impl Part {
    pub(super) fn new(reactor: &Reactor, timers: &Arc<Timers>, counters: Arc<Counters>) -> Self {
        Self { registry: Arc::downgrade(reactor.registry()), timers: Arc::downgrade(timers), counters }
    }
}

impl Handle {
    pub(super) fn new(workers: Arc<Workers>, pool: Arc<Pool>, parts: Vec<Part>) -> Self {
        Self { inner: Arc::new(Inner { workers, pool, parts }) }
    }

    pub(super) fn workers(&self) -> &Arc<Workers> {
        &self.inner.workers
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.inner.pool
    }

    /// The registry of the worker with the fewest sockets, while there is one.
    pub(super) fn least_busy_registry(&self) -> Option<Arc<Registry>> {
        let registries = self.inner.parts.iter().filter_map(|part| part.registry.upgrade());
        registries.min_by_key(|registry| registry.sources())
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
        enter::current().ok_or(TryCurrentError(()))
    }

    /// Runs a future as a task of this runtime.
    ///
    /// Like [`spawn`](crate::spawn), from any thread: on one of several workers it begins there, from elsewhere on the one with the
    /// fewest tasks. If the runtime has ended, the future is dropped at
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
        self.home().spawn(future, Location::caller())
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
        self.inner.pool.spawn(&self.home(), closure, Location::caller())
    }

    fn home(&self) -> Home {
        Home::to_spawn_on(&self.inner.workers)
    }

    /// What the runtime's workers hold at this moment, and have done so far.
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let _task = kittiwake::spawn(std::future::pending::<()>());
    ///     assert_eq!(kittiwake::runtime::Handle::current().metrics().tasks_alive(), 1);
    /// });
    /// ```
    pub fn metrics(&self) -> Metrics {
        let Inner { workers, parts, .. } = &*self.inner;
        let of_worker = |(index, part): (usize, &Part)| {
            let counts = part.counters.read();
            WorkerMetrics {
                tasks_alive: workers.tasks_alive(index),
                timers_armed: part.timers.upgrade().map_or(0, |timers| timers.len()),
                sources_registered: part.registry.upgrade().map_or(0, |registry| registry.sources()),
                polls: counts.polls,
                remote_wakes: workers.posts(index),
                turns: counts.turns,
                events: counts.events,
                parked: counts.parked,
                budget_yields: counts.budget_yields,
                accepts: counts.accepts,
            }
        };
        Metrics { workers: parts.iter().enumerate().map(of_worker).collect() }
    }
}

impl UnwindSafe for Handle {}
impl RefUnwindSafe for Handle {}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// What a runtime's workers hold and have done, as [`Handle::metrics`] found it.
///
/// What is counted inside a worker's batch of tasks shows when that is over. A thread that is in
/// [`block_on`](super::Runtime::block_on) beside several workers is not counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    workers: Vec<WorkerMetrics>,
}

impl Metrics {
    /// The figures of each worker.
    pub fn workers(&self) -> &[WorkerMetrics] {
        &self.workers
    }

    /// Tasks that have not ended, of all workers: their future has not been dropped. Blocking closures are not among them.
    pub fn tasks_alive(&self) -> usize {
        self.workers.iter().map(|worker| worker.tasks_alive).sum()
    }

    /// Sockets that the reactors watch: those that have waited since they were made.
    pub fn sources_registered(&self) -> usize {
        self.workers.iter().map(|worker| worker.sources_registered).sum()
    }
}

/// What one worker holds, and has done since the runtime began.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerMetrics {
    /// Tasks that were spawned on this worker and have not ended.
    pub tasks_alive: usize,
    /// Timers that wait for their moment.
    pub timers_armed: usize,
    /// Sockets that its reactor watches.
    pub sources_registered: usize,
    /// How often it ran a task.
    pub polls: u64,
    /// How often a thread that is no worker of this runtime had something run here: by a wake, a spawn, or as a server that
    /// places its connections.
    pub remote_wakes: u64,
    /// How often it looked at the kernel.
    pub turns: u64,
    /// Events that the kernel reported.
    pub events: u64,
    /// How long it has slept.
    pub parked: Duration,
    /// How often a task had used up its budget of socket operations, and was made to give way.
    pub budget_yields: u64,
    /// Connections that were accepted here.
    pub accepts: u64,
}

/// The thread is not inside a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryCurrentError(());

impl fmt::Display for TryCurrentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this thread is not inside a kittiwake runtime; call this inside block_on or from a task")
    }
}

impl std::error::Error for TryCurrentError {}
