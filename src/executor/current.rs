//! Current: the worker of this thread, and where a woken task goes.
//!
//! # A thread's queues
//! A thread has three queues without a lock, in its [`Context`].
//! * `queue` has what only this worker may run: what is woken on this thread, and what is drained from the remote
//!   queue. The executor keeps the entries that it has taken in a vector of its own. When that is empty, the worker
//!   swaps it with `queue`. So taking an entry mostly touches neither the thread-local nor its borrow flag. In a
//!   runtime with one worker this is all.
//! * `yielded` has local tasks that were woken while they ran, and so give way, if the runtime has several workers.
//!   They run after all that is ready in both `queue` and the stealable queue. Shared tasks that were woken while they
//!   ran wait in the stealable queue, apart from the others. Each of both kinds has a number, so that all of them run
//!   in the order in which they gave way. A runtime with one worker has no need of this: the back of `queue` is behind
//!   all that is ready.
//! * `deferred` has tasks that other workers may steal, and that the reactor and the timers have woken between two
//!   batches. The worker moves them to its stealable queue when the batch begins. A task that is woken inside a batch
//!   goes there at once, because the task that woke it may go on for long.
//!
//! [`schedule`] is the whole of what waking a task does, [`schedule_local`] for a local one.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::mem::{self, ManuallyDrop};
use std::sync::Arc;

use async_task::ScheduleInfo;

use super::registry::SHARED;
use super::shared::{Entry, Runnable, WorkerRef, Workers};
use crate::{budget, stamp, trace};

/// A thread's state of the worker that runs on it.
struct Context {
    /// The id of the queue that only this worker takes from, or 0. A number, because waking has only to compare it.
    local_queue: Cell<usize>,
    /// The id of the queue that this worker shares with others. That of its local queue if it is alone, and 0
    /// without a worker.
    shared_queue: Cell<usize>,
    /// The worker, one of several, runs tasks. Otherwise it waits, or handles what it has waited for.
    in_batch: Cell<bool>,
    /// Entries that only this worker may run and that it has not taken yet: those woken on this thread, and those
    /// drained from the remote queue.
    queue: RefCell<Vec<Entry>>,
    /// Local tasks that were woken while they ran, with their numbers, if the runtime has several workers.
    yielded: RefCell<VecDeque<(u64, Runnable)>>,
    /// How many tasks have given way on this thread, in runtimes with several workers. The next one gets this count as
    /// its number.
    gave_way: Cell<u64>,
    /// Tasks that were woken on this thread between two batches and can be stolen.
    deferred: RefCell<Vec<Runnable>>,
    worker: RefCell<Option<Current>>,
    /// While no worker runs on this thread: the workers that run what is spawned here, if a handle was entered.
    entered_workers: RefCell<Option<Arc<Workers>>>,
}

thread_local! {
    /// Without a destructor, so that it can be used at any time in a thread's life: another thread-local's destructor
    /// may drop a runtime or wake a task. It is empty by then, because [`Entered`] restores what was there.
    static CONTEXT: ManuallyDrop<Context> = const {
        ManuallyDrop::new(Context {
            local_queue: Cell::new(0),
            shared_queue: Cell::new(0),
            in_batch: Cell::new(false),
            queue: RefCell::new(Vec::new()),
            yielded: RefCell::new(VecDeque::new()),
            gave_way: Cell::new(0),
            deferred: RefCell::new(Vec::new()),
            worker: RefCell::new(None),
            entered_workers: RefCell::new(None),
        })
    };
}

/// The worker of a thread.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) worker: WorkerRef,
    /// The workers that run what is spawned here, if they are not those of `worker`: this is the thread of a `block_on`
    /// call beside them, or their runtime's handle was entered.
    pub(super) spawn_workers: Option<Arc<Workers>>,
}

impl Current {
    pub(super) fn get() -> Option<Self> {
        CONTEXT.with(|context| context.worker.borrow().clone())
    }

    /// Calls `make` with the worker to which new tasks of this thread belong. The thread-local may be borrowed
    /// meanwhile, so `make` must run no foreign code but a subscriber of `tracing`. `None` outside a runtime.
    // A served echo costs 1.5 % more without this.
    #[inline]
    pub(super) fn make<R>(make: impl FnOnce(&WorkerRef) -> R) -> Option<R> {
        if trace::IS_ON {
            return Self::spawning_worker().map(|worker| make(&worker));
        }
        Self::with_spawning_worker(make)
    }

    /// The worker to which new tasks of this thread belong. `None` outside a runtime.
    pub(super) fn spawning_worker() -> Option<WorkerRef> {
        Self::with_spawning_worker(WorkerRef::clone)
    }

    /// Calls `with` with that worker, while the thread-local is borrowed.
    // Part of `make`.
    #[inline]
    fn with_spawning_worker<R>(with: impl FnOnce(&WorkerRef) -> R) -> Option<R> {
        CONTEXT.with(|context| {
            let current = context.worker.borrow();
            let elsewhere;
            let worker = match current.as_ref() {
                Some(Current { worker, spawn_workers: None }) => worker,
                _ => {
                    elsewhere = spawn_elsewhere(context)?;
                    &elsewhere
                }
            };
            // Called in one place, so that it is inlined, however large it is.
            Some(with(worker))
        })
    }

    /// As [`make`](Current::make), for a task that stays on this thread.
    // A yield of 1,000 tasks costs 9.4 % more without this and the others of this file.
    #[inline]
    pub(super) fn make_local<R>(make: impl FnOnce(&WorkerRef) -> R) -> Option<R> {
        if trace::IS_ON {
            return Self::get().map(|current| make(&current.worker));
        }
        CONTEXT.with(|context| {
            let current = context.worker.borrow();
            // Not as an argument of the call: outside a runtime `make`, and the future in it, would be dropped under
            // the borrow.
            let worker = &current.as_ref()?.worker;
            Some(make(worker))
        })
    }

    /// The workers that run what is spawned on this thread. `None` outside a runtime.
    pub(super) fn spawn_workers() -> Option<Arc<Workers>> {
        CONTEXT.with(|context| spawn_workers(context))
    }
}

/// As [`Current::spawning_worker`], on a thread whose new tasks do not belong to a worker of its own.
// A spawn costs 0.8 % more without this.
#[cold]
fn spawn_elsewhere(context: &Context) -> Option<WorkerRef> {
    let workers = spawn_workers(context)?;
    let index = workers.least_loaded();
    Some(WorkerRef::new(workers, index))
}

fn spawn_workers(context: &Context) -> Option<Arc<Workers>> {
    match &*context.worker.borrow() {
        Some(Current { worker, spawn_workers }) => Some(spawn_workers.as_ref().unwrap_or(&worker.workers).clone()),
        None => context.entered_workers.borrow().clone(),
    }
}

/// Whether a worker runs on this thread, which may be that of a `block_on` call.
pub(crate) fn is_entered() -> bool {
    CONTEXT.with(|context| context.local_queue.get() != 0)
}

/// Whether the worker of this thread is the only one of its runtime.
#[cfg(feature = "hyper")]
pub(crate) fn is_alone() -> bool {
    CONTEXT.with(|context| context.local_queue.get() != 0 && context.local_queue == context.shared_queue)
}

/// Queues a task where it will be run.
///
/// This function captures nothing. async-task would store a capturing closure in every task, and take one more
/// reference for each call.
// A yield of 1,000 tasks costs 9.4 % more without this and the others of this file.
#[inline]
pub(super) fn schedule(runnable: Runnable, info: ScheduleInfo) {
    runnable.metadata().note_queued();
    queue(runnable, info.woken_while_running);
}

/// As [`schedule`], for a task that has not run.
#[inline]
pub(super) fn schedule_new(runnable: Runnable) {
    runnable.metadata().note_queued();
    queue(runnable, false);
}

/// Queues a task whose record says already that it is queued. `woken_while_running`: it has just run.
#[inline]
fn queue(runnable: Runnable, woken_while_running: bool) {
    CONTEXT.with(|context| {
        if runnable.metadata().record.queue() == context.local_queue.get() {
            push_to(&context.queue, Entry::Task(runnable));
        } else {
            schedule_shared_or_remote(context, runnable, woken_while_running);
        }
    });
}

/// As [`schedule`], for a local task. If it was woken while it ran, and the runtime has several workers, it gives way.
#[inline]
pub(super) fn schedule_local(runnable: Runnable, info: ScheduleInfo) {
    CONTEXT.with(|context| {
        runnable.metadata().note_queued();
        if info.woken_while_running && context.shared_queue != context.local_queue {
            push_yielded(context, runnable);
        } else {
            queue(runnable, info.woken_while_running);
        }
    });
}

/// As [`schedule`], for a task that other workers may run too, or that belongs to another worker.
// Not inlined, so that `schedule` is small in a runtime with one worker.
// A yield of 1,000 tasks costs 9.4 % more without this and the others of this file.
#[inline(never)]
fn schedule_shared_or_remote(context: &Context, runnable: Runnable, woken_while_running: bool) {
    if runnable.metadata().record.queue() != context.shared_queue.get() {
        push_remote(runnable);
    } else if !context.in_batch.get() {
        push_to(&context.deferred, runnable);
    } else {
        push_in_batch(context, runnable, woken_while_running);
    }
}

/// Queues a task that other workers may run too, while this worker runs tasks.
// An echo on two workers costs 3 % more without this and that of `push_remote`: the usual case above would save
// registers.
#[inline(never)]
fn push_in_batch(context: &Context, runnable: Runnable, woken_while_running: bool) {
    let current = context.worker.borrow();
    let Some(Current { worker, .. }) = &*current else { unreachable!("a batch is a worker's") };
    let queues = &worker.workers.queues;
    if woken_while_running {
        let number = give_way(context, &runnable);
        queues.push_gave_way(worker.index, runnable, number);
    } else {
        queues.push(worker.index, runnable);
    }
}

/// A task that was woken while it ran gives way: it has yielded or used up its budget, by this crate's functions or in
/// a way of its own, or another thread has woken it. Returns its number.
fn give_way(context: &Context, runnable: &Runnable) -> u64 {
    if budget::has_refused() {
        runnable.metadata().record.note_gave_way();
    }
    let number = context.gave_way.get();
    context.gave_way.set(number + 1);
    number
}

/// Queues a local task that gives way.
// Not inlined, so that `schedule_local` is small in a runtime with one worker.
#[inline(never)]
fn push_yielded(context: &Context, runnable: Runnable) {
    let number = give_way(context, &runnable);
    context.yielded.borrow_mut().push_back((number, runnable));
}

/// Pushes a task to a worker that may run it, from a thread that may not.
// As for `push_in_batch`.
#[inline(never)]
fn push_remote(runnable: Runnable) {
    let record = &runnable.metadata().record;
    let (workers, table) = (record.workers().clone(), record.table());
    if workers.is_several() && table.kind() == SHARED {
        workers.queues.push_stealable(record.last_worker(), runnable);
    } else {
        workers.queues.remote(table.list()).queue.push(Entry::Task(runnable));
    }
}

/// Queues the future of the `block_on` call that `worker` is in.
pub(super) fn schedule_main(worker: &WorkerRef) {
    CONTEXT.with(|context| {
        if context.local_queue.get() == worker.local_queue {
            push_to(&context.queue, Entry::Main);
        } else {
            // If the call has ended, and its worker too, the entry is dropped.
            worker.remote().queue.push(Entry::Main);
        }
    });
}

/// Pushes to a queue of this thread.
// The rare cases are calls that take the entry, so that the usual path saves no registers for them.
// A yield of 1,000 tasks costs 9.4 % more without this and the others of this file.
#[inline]
fn push_to<T>(queue: &RefCell<Vec<T>>, entry: T) {
    match queue.try_borrow_mut() {
        Ok(mut queue) if queue.len() < queue.capacity() => queue.push(entry),
        Ok(queue) => push_and_grow(queue, entry),
        Err(_) => push_while_borrowed(entry),
    }
}

// A served echo costs 2.4 % more without this.
#[cold]
// An echo costs 2.4 % more without this.
#[inline(never)]
fn push_and_grow<T>(mut queue: RefMut<'_, Vec<T>>, entry: T) {
    queue.push(entry);
}

fn push_while_borrowed<T>(_: T) {
    unreachable!("nothing is woken while a queue is borrowed");
}

/// Runs `with` with the queue of what only this worker may run.
pub(super) fn with_queue<R>(with: impl FnOnce(&mut Vec<Entry>) -> R) -> R {
    CONTEXT.with(|context| with(&mut context.queue.borrow_mut()))
}

/// Runs `with` with the local tasks that give way, which have numbers.
pub(super) fn with_yielded<R>(with: impl FnOnce(&mut VecDeque<(u64, Runnable)>) -> R) -> R {
    CONTEXT.with(|context| with(&mut context.yielded.borrow_mut()))
}

/// The number of the task that gives way next. All that have given way on this thread have lower ones.
pub(super) fn next_to_give_way() -> u64 {
    CONTEXT.with(|context| context.gave_way.get())
}

/// Runs `with` with the queue of tasks to be published.
pub(super) fn with_deferred<R>(with: impl FnOnce(&mut Vec<Runnable>) -> R) -> R {
    CONTEXT.with(|context| with(&mut context.deferred.borrow_mut()))
}

/// Notes whether the worker runs tasks.
pub(super) fn set_in_batch(in_batch: bool) {
    CONTEXT.with(|context| context.in_batch.set(in_batch));
}

/// While this lives, `spawn` and the wakers of its tasks find the worker on this thread.
pub(crate) struct Entered {
    /// The worker that was on this thread before, and its queues.
    previous: Option<Current>,
    queue: Vec<Entry>,
    yielded: VecDeque<(u64, Runnable)>,
    deferred: Vec<Runnable>,
    in_batch: bool,
    budget: budget::Saved,
    _stamps: stamp::Entered,
}

/// Puts a worker on this thread.
pub(super) fn enter(current: Current) -> Entered {
    let stamps = stamp::enter(current.worker.index);
    let previous = replace(Some(current));
    CONTEXT.with(|context| Entered {
        previous,
        queue: context.queue.take(),
        yielded: context.yielded.take(),
        deferred: context.deferred.take(),
        in_batch: context.in_batch.replace(false),
        budget: budget::suspend(),
        _stamps: stamps,
    })
}

/// Puts a worker on this thread, or none, and returns the one that was there.
fn replace(current: Option<Current>) -> Option<Current> {
    let ids = current.as_ref().map_or((0, 0), |current| (current.worker.local_queue, current.worker.shared_queue));
    CONTEXT.with(|context| {
        context.local_queue.set(ids.0);
        context.shared_queue.set(ids.1);
        context.worker.replace(current)
    })
}

impl Drop for Entered {
    fn drop(&mut self) {
        let entered = replace(self.previous.take());
        CONTEXT.with(|context| {
            let queue = context.queue.replace(mem::take(&mut self.queue));
            let yielded = context.yielded.replace(mem::take(&mut self.yielded));
            let deferred = context.deferred.replace(mem::take(&mut self.deferred));
            let are_empty = queue.is_empty() && yielded.is_empty() && deferred.is_empty();
            debug_assert!(are_empty, "Executor::leave takes what is left");
            context.in_batch.set(self.in_batch);
        });
        drop(entered);
        budget::restore(self.budget);
    }
}

/// While this lives, what is spawned on this thread runs on the workers that [`enter_workers`] was given. A worker that
/// runs on the thread, and its local tasks, are not changed.
pub(crate) struct EnteredWorkers {
    previous: Option<Arc<Workers>>,
}

/// Has `workers` run what is spawned on this thread until the guard is dropped. In a `block_on` call that begins
/// meanwhile, the workers of that call's runtime do so instead.
pub(crate) fn enter_workers(workers: &Arc<Workers>) -> EnteredWorkers {
    let is_here = Current::get().is_some_and(|current| Arc::ptr_eq(&current.worker.workers, workers));
    // A worker's own thread stays the place of what is spawned there.
    EnteredWorkers { previous: replace_spawn_workers((!is_here).then(|| workers.clone())) }
}

fn replace_spawn_workers(workers: Option<Arc<Workers>>) -> Option<Arc<Workers>> {
    CONTEXT.with(|context| match &mut *context.worker.borrow_mut() {
        Some(current) => mem::replace(&mut current.spawn_workers, workers),
        None => context.entered_workers.replace(workers),
    })
}

impl Drop for EnteredWorkers {
    fn drop(&mut self) {
        // The last reference to the workers may drop tasks, so it is dropped outside the borrow.
        let entered = replace_spawn_workers(self.previous.take());
        drop(entered);
    }
}
