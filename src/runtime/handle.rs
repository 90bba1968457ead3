//! Handles: spawning on a runtime, and looking at it, from any thread.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

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
    /// One for each thread that is in `block_on` beside several workers.
    guests: Mutex<Vec<Part>>,
}

/// What a handle has of a worker, or of a guest: nothing that has a descriptor, which it would keep open.
pub(super) struct Part {
    home: Home,
    registry: Weak<Registry>,
    timers: Weak<Timers>,
    counters: Arc<Counters>,
}

impl Part {
    pub(super) fn new(home: Home, reactor: &Reactor, timers: &Arc<Timers>, counters: Arc<Counters>) -> Self {
        Self { home, registry: Arc::downgrade(reactor.registry()), timers: Arc::downgrade(timers), counters }
    }

    fn metrics(&self) -> WorkerMetrics {
        let counts = self.counters.read();
        WorkerMetrics {
            tasks_alive: self.home.tasks_alive(),
            timers_armed: self.timers.upgrade().map_or(0, |timers| timers.pending()),
            sources_registered: self.registry.upgrade().map_or(0, |registry| registry.sources()),
            polls: counts.polls,
            remote_wakes: self.home.posts(),
            turns: counts.turns,
            events: counts.events,
            parked: counts.parked,
            budget_yields: counts.budget_yields,
            accepts: counts.accepts,
        }
    }
}

impl Handle {
    pub(super) fn new(workers: Arc<Workers>, pool: Arc<Pool>, parts: Vec<Part>) -> Self {
        Self { inner: Arc::new(Inner { workers, pool, parts, guests: Mutex::default() }) }
    }

    /// Counts a guest among those that are there, until it [leaves](Handle::guest_left).
    pub(super) fn guest_came(&self, part: Part) {
        self.inner.guests.lock().push(part);
    }

    pub(super) fn guest_left(&self, counters: &Arc<Counters>) {
        let mut guests = self.inner.guests.lock();
        let left = guests.iter().position(|guest| Arc::ptr_eq(&guest.counters, counters));
        let left = left.map(|left| guests.swap_remove(left));
        drop(guests);
        drop(left);
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
    /// Like [`spawn`](crate::spawn), from any thread: on one of several workers it begins there, from elsewhere on the one
    /// with the fewest tasks. If the runtime has ended, the future is dropped at
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
        Metrics {
            workers: self.inner.parts.iter().map(Part::metrics).collect(),
            guests: self.inner.guests.lock().iter().map(Part::metrics).collect(),
        }
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
/// What is counted inside a worker's batch of tasks shows when that is over.
#[derive(Clone, Debug)]
pub struct Metrics {
    workers: Vec<WorkerMetrics>,
    guests: Vec<WorkerMetrics>,
}

impl Metrics {
    /// The figures of each worker.
    pub fn workers(&self) -> &[WorkerMetrics] {
        &self.workers
    }

    /// The figures of each thread that is in [`block_on`](super::Runtime::block_on) at this moment beside several workers,
    /// in no order, and since that call began. A server that runs there accepts there. What they sum up to, the two methods
    /// below leave out.
    pub fn guests(&self) -> &[WorkerMetrics] {
        &self.guests
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
    /// How often another thread had something run here: by a wake of what may not run where it was woken, a spawn from
    /// outside, or as a server that places its connections.
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
