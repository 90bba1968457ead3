//! Spawning tasks.

use std::panic::Location;
use std::sync::{Arc, Weak};

use super::current::Current;
use super::join::JoinHandle;
use super::shared::{TaskNames, WorkerRef, Workers};
use super::task::{self, is_large};

/// Runs a future as a task of the current runtime, beside its caller.
///
/// The task starts when the caller next waits, or on another worker before that. It goes on whether or not the returned
/// handle is kept. It ends with its future, when it is [aborted](JoinHandle::abort), or when its runtime ends. A panic
/// in it ends it alone, and the handle says so.
///
/// # Panics
/// Outside a runtime. On a thread that is neither inside [`block_on`](crate::block_on) nor inside
/// [`Handle::enter`](crate::runtime::Handle::enter), use [`Handle::spawn`](crate::runtime::Handle::spawn).
///
/// # Examples
/// ```
/// let sum = kittiwake::block_on(async {
///     let tasks: Vec<_> = (1..=4).map(|i| kittiwake::spawn(async move { i * i })).collect();
///     let mut sum = 0;
///     for task in tasks {
///         sum += task.await?;
///     }
///     Ok::<_, kittiwake::task::JoinError>(sum)
/// });
/// assert_eq!(sum.unwrap(), 30);
/// ```
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: IntoFuture<IntoFuture: Send + 'static>,
    F::Output: Send + 'static,
{
    spawn_named("spawn", future.into_future())
}

/// Runs a future as a task that stays on this thread, so that it need not be `Send`.
///
/// The task belongs to the [`block_on`](crate::block_on) call that it is spawned in. It is dropped on this thread,
/// before that call returns. Spawned in a task on a worker's thread, it belongs to that worker until the runtime ends.
/// In all else it is like [`spawn`]'s.
///
/// # Panics
/// On a thread that is neither inside [`block_on`](crate::block_on) nor a worker's.
///
/// # Examples
/// ```
/// use std::{cell::Cell, rc::Rc};
///
/// kittiwake::block_on(async {
///     let count = Rc::new(Cell::new(0));
///     let task = kittiwake::spawn_local({
///         let count = count.clone();
///         async move { count.set(count.get() + 1) }
///     });
///     task.await.unwrap();
///     assert_eq!(count.get(), 1);
/// });
/// ```
#[track_caller]
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: IntoFuture<IntoFuture: 'static>,
    F::Output: 'static,
{
    spawn_local_named("spawn_local", future.into_future())
}

/// As [`spawn`]. `function` is the public function that was called, for the panic's message.
#[track_caller]
pub(super) fn spawn_named<F>(function: &str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let location = Location::caller();
    let new = if is_large::<F>() {
        let future = Box::pin(future);
        Current::make(|worker| task::shared(worker, future, location))
    } else {
        Current::make(|worker| task::shared(worker, future, location))
    };
    // Not `unwrap_or_else`: the panic points to the caller.
    match new {
        Some(new) => new.start_shared(),
        None => outside(function),
    }
}

/// As [`spawn_local`]. `function` is the public function that was called, for the panic's message.
#[track_caller]
pub(super) fn spawn_local_named<F>(function: &str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    match try_spawn_local(Location::caller(), future) {
        Some(task) => task,
        None => outside(function),
    }
}

/// As [`spawn_local`], for a task that counts as spawned at `location`.
pub(crate) fn spawn_local_at<F>(location: &'static Location<'static>, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    match try_spawn_local(location, future) {
        Some(task) => task,
        None => outside("spawn_local"),
    }
}

/// Returns `None` outside a runtime.
fn try_spawn_local<F>(location: &'static Location<'static>, future: F) -> Option<JoinHandle<F::Output>>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let new = if is_large::<F>() {
        let future = Box::pin(future);
        Current::make_local(|worker| task::local(worker, future, location))
    } else {
        Current::make_local(|worker| task::local(worker, future, location))
    };
    new.map(task::NewTask::start)
}

/// As [`spawn`], for a task that counts as spawned at `location` and begins on the worker of this number. `None` if the
/// runtime has ended: the future is dropped.
pub(crate) fn spawn_on<F>(
    location: &'static Location<'static>,
    worker: usize,
    future: F,
) -> Option<JoinHandle<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Some(workers) = Current::spawn_workers() else { outside("spawn") };
    let worker = WorkerRef::new(workers, worker);
    worker.make(future, location).start_on(&worker)
}

#[track_caller]
fn outside(function: &str) -> ! {
    panic!(
        "kittiwake::{function} was called outside a runtime: call it inside \
         kittiwake::block_on or Runtime::block_on, or use Handle::spawn from elsewhere"
    );
}

/// When tasks are shown that were spawned on this thread, `names` is asked for names, as long as it lives.
pub(crate) fn add_names(names: Weak<dyn TaskNames>) {
    if let Some(workers) = Current::spawn_workers() {
        workers.add_names(names);
    }
}

/// How many workers run what is spawned on this thread; 0 outside a runtime.
pub(crate) fn workers_here() -> usize {
    Current::spawn_workers().map_or(0, |workers| workers.len())
}

/// Gives memory back that a spike of blocking tasks has left in the runtime of this thread.
pub(crate) fn shrink_blocking() {
    if let Some(workers) = Current::spawn_workers() {
        workers.shrink_blocking();
    }
}

/// The worker that a task spawned on this thread belongs to. `None` outside a runtime.
pub(crate) fn spawning_worker() -> Option<WorkerRef> {
    Current::spawning_worker()
}

impl WorkerRef {
    /// The worker that a task of `workers` is spawned on: the one of this thread, if it is one of them, or else the
    /// least loaded.
    pub(crate) fn to_spawn_on(workers: &Arc<Workers>) -> Self {
        let here = Current::get().map(|current| current.worker).filter(|worker| Arc::ptr_eq(&worker.workers, workers));
        here.unwrap_or_else(|| Self::new(workers.clone(), workers.least_loaded()))
    }

    /// Runs a future as a task of this worker's runtime, from any thread.
    pub(crate) fn spawn<F>(&self, future: F, location: &'static Location<'static>) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.make(future, location).start_shared()
    }

    fn make<F>(&self, future: F, location: &'static Location<'static>) -> task::NewTask<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        if is_large::<F>() {
            task::shared(self, Box::pin(future), location)
        } else {
            task::shared(self, future, location)
        }
    }
}
