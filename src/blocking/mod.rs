//! Blocking work: [`spawn_blocking`] runs closures that block, on threads of their own.
//!
//! 1. [`spawn_blocking`] wraps a closure in a task whose single poll calls the closure. So it has a handle and an id,
//!    and its panic is contained, as with any other task.
//! 2. A thread of the runtime's [pool] runs this task. A worker never runs it.
//! 3. Each runtime has one pool. The pool has no thread before the first closure.
//!
//! [`JoinSet::spawn_blocking`] is here too, because the executor knows no pool. Look-ups of names are such closures
//! too. [`Work`] tells them from those of the user, and each kind has a limit of its own.

mod pool;

use std::panic::Location;
use std::sync::Arc;

pub use pool::BlockingMetrics;
pub(crate) use pool::{Pool, Work};

use crate::current::{Current, Entered};
use crate::executor::{self, AbortHandle, JoinHandle, JoinSet, WorkerRef};

/// Runs `closure` on a thread where it may block.
///
/// Use it for work that waits without a future: files, name look-ups, locks that are held for long, and the blocking
/// client of a database. Use it also for computations that take more than some tens of microseconds.
///
/// The runtime starts a thread if none is idle. At most
/// [`max_blocking_threads`](crate::runtime::Builder::max_blocking_threads) closures run at a time. At that limit,
/// further closures wait in the order of the calls. A thread that has been idle for 10 seconds ends. A new closure gets
/// the thread that was idle last, so that the others end after a burst.
///
/// The closure runs on no worker, but inside the runtime as with [`Handle::enter`](crate::runtime::Handle::enter):
/// [`spawn`](crate::spawn), this function and [`Handle::current`](crate::runtime::Handle::current) work in it. A future
/// can be awaited there by [`Handle::block_on`](crate::runtime::Handle::block_on).
///
/// A closure that waits for the end of another closure may wait for ever: all threads may be waiting in the same way.
///
/// # Cancellation
/// A closure that runs cannot be stopped. [`abort`](JoinHandle::abort) affects only a closure that still waits for a
/// thread: the closure is dropped when its turn comes.
///
/// When the runtime ends, it drops the closures that still wait, and their handles report that they were cancelled. A
/// closure that runs goes on, and its handle still returns its output. Only
/// [`Runtime::shutdown_timeout`](crate::runtime::Runtime::shutdown_timeout) waits for such closures. The end of the
/// process stops them at any point.
///
/// # Errors
/// The handle returns a [`JoinError`](crate::task::JoinError) if the closure panics, and if it was cancelled. It also
/// returns one if the system cannot start a thread and the pool has none. If the pool has a thread, the closure waits
/// for it instead, and the start is tried again with the next closure and when a closure ends.
///
/// # Panics
/// Panics outside a runtime. [`Handle::spawn_blocking`](crate::runtime::Handle::spawn_blocking) works there.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let manifest = kittiwake::spawn_blocking(|| std::fs::read_to_string("Cargo.toml"));
///     assert!(manifest.await.unwrap()?.contains("kittiwake"));
///     std::io::Result::Ok(())
/// }).unwrap();
/// ```
#[track_caller]
pub fn spawn_blocking<C, T>(closure: C) -> JoinHandle<T>
where
    C: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    spawn_named("spawn_blocking", closure)
}

impl<T: Send + 'static> JoinSet<T> {
    /// Runs a closure on a thread of the pool, as [`spawn_blocking`](crate::spawn_blocking()) does, and adds its task
    /// to the set.
    ///
    /// A closure that has begun cannot be aborted. A set that is dropped does not wait for it, and the closure runs to
    /// its end.
    ///
    /// # Panics
    /// Outside a runtime, like [`spawn_blocking`](crate::spawn_blocking()).
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let mut set = kittiwake::task::JoinSet::new();
    ///     set.spawn_blocking(|| 1);
    ///     set.spawn(async { 2 });
    ///     assert_eq!(set.join_all().await.into_iter().sum::<i32>(), 3);
    /// });
    /// ```
    #[track_caller]
    pub fn spawn_blocking<C>(&mut self, closure: C) -> AbortHandle
    where
        C: FnOnce() -> T + Send + 'static,
    {
        self.insert(spawn_named("JoinSet::spawn_blocking", closure))
    }
}

/// As [`spawn_blocking`]. `function` is the public function that was called, for the panic's message.
#[track_caller]
fn spawn_named<C, T>(function: &str, closure: C) -> JoinHandle<T>
where
    C: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // `unwrap_or_else` would report this file as the place of the panic, and not the caller's.
    let Some(handle) = try_spawn(Work::Closure, closure) else {
        panic!(
            "kittiwake::{function} was called outside a runtime: call it inside kittiwake::block_on or \
             Runtime::block_on, or use Handle::spawn_blocking from elsewhere"
        );
    };
    handle
}

/// Runs `closure` as [`spawn_blocking`] does. Returns `None` outside a runtime.
#[track_caller]
pub(crate) fn try_spawn<C, T>(work: Work, closure: C) -> Option<JoinHandle<T>>
where
    C: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Some(Pool::current()?.spawn(&executor::spawning_worker()?, work, closure, Location::caller()))
}

impl Pool {
    /// The pool of the runtime that this thread has entered.
    pub(crate) fn current() -> Option<Arc<Self>> {
        Current::get(&CURRENT)
    }

    /// Runs `closure` on one of these threads. Its task is in the registry of `worker`'s runtime.
    pub(crate) fn spawn<C, T>(
        self: &Arc<Self>,
        worker: &WorkerRef,
        work: Work,
        closure: C,
        location: &'static Location<'static>,
    ) -> JoinHandle<T>
    where
        C: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let pool = self.clone();
        let submit = move |task| pool.submit(work, task);
        if executor::is_large::<C>() {
            executor::spawn_blocking_on(worker, Box::new(closure), location, submit)
        } else {
            executor::spawn_blocking_on(worker, closure, location, submit)
        }
    }
}

thread_local! {
    /// The pool of the runtime that this thread has entered.
    static CURRENT: Current<Arc<Pool>> = const { Current::none() };
}

/// Makes `pool` the pool of this thread, until the guard is dropped.
pub(crate) fn enter(pool: Arc<Pool>) -> Entered<Arc<Pool>> {
    Current::enter(&CURRENT, pool)
}
