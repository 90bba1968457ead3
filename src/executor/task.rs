//! Task: a future, wrapped so that it cannot harm its worker.
//!
//! The cell that holds a task and counts its references is `async-task`'s. It ends the process when dropping a future
//! or an output panics. So it does not hold the user's future but a [`TaskFuture`], which
//! * polls and drops the user's future under [`contain`], and yields its panic as a value,
//! * asks before each poll whether the task was cancelled, and then drops the future instead,
//! * keeps the output in an [`Outcome`], whose drop is contained too.
//!
//! # How a task ends
//! 1. A worker polls the wrapper, and that returns `Ready`, because the future completed, panicked or was cancelled.
//! 2. A task that no worker will run any more is dropped unrun: its [`Runnable`] is dropped, and with it the wrapper.
//!
//! Either way async-task drops the wrapper, and the wrapper leaves the [registry](super::registry).
//!
//! A [blocking task](BlockingTask) is a task of one poll, whose future calls a closure. A thread that may block runs
//! it. It is in the registry too, so that it has an id and is cancelled with the others.
//!
//! Two kinds of panic still end the process: of a waker that awaits a `JoinHandle`, when async-task clones, wakes or
//! drops it, and of a drop while another panic unwinds.

use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use async_task::{Builder, Task, WithInfo};
use pin_project_lite::pin_project;

use super::current::{schedule, schedule_local, schedule_new};
use super::join::{AbortHandle, JoinHandle};
use super::outcome::{Cause, Outcome};
use super::record::CancelReason;
use super::registry::{BLOCKING, Inserted, Kind, LOCAL, New, SHARED};
use super::shared::{Metadata, Record, Runnable, WorkerRef};
use crate::stamp::{self, Stamp};
use crate::sync::{contain, contain_all, note_executors};
use crate::system_clock::monotonic;
use crate::trace::{EarlyId, TaskSpan};

/// Futures and outputs above this size, in bytes, are boxed before they are passed on: each function that they pass
/// through copies them to its own frame.
const LARGE: usize = 16 * 1024;

/// Whether a value should be boxed before it is passed on.
pub(crate) const fn is_large<T>() -> bool {
    size_of::<T>() > LARGE
}

/// Puts a future in a box, and its output in another one.
pub(crate) fn boxed<F: IntoFuture>(future: F) -> BoxOutput<F::IntoFuture> {
    BoxOutput { future: Box::pin(future.into_future()) }
}

/// The poll of a future up to this size, in bytes, may be inlined. A burst of small tasks costs 2.4 % more if it is
/// not.
const SMALL: usize = 64;

/// A new task in the registry of its runtime.
pub(crate) struct NewTask<T> {
    runnable: Runnable,
    task: Task<Outcome<T>, Metadata>,
    abort: AbortHandle,
    location: &'static Location<'static>,
    /// Its runtime has ended, or the `block_on` call of a local task.
    is_refused: bool,
}

impl<T> NewTask<T> {
    /// Queues the task on its worker. A blocking task is submitted to the pool of its runtime.
    pub(super) fn start(self) -> JoinHandle<T> {
        self.start_with(Runnable::schedule)
    }

    /// As [`start`](NewTask::start), for a task that was made by [`shared`].
    pub(super) fn start_shared(self) -> JoinHandle<T> {
        self.start_with(schedule_new)
    }

    /// Queues the task on `worker`, where it begins. Returns `None` if the runtime has ended.
    pub(super) fn start_on(self, worker: &WorkerRef) -> Option<JoinHandle<T>> {
        let is_refused = self.is_refused;
        let task = self.start_with(|runnable| {
            if worker.workers.is_several() {
                runnable.metadata().record.note_queued();
                worker.workers.queues.spawn_on(worker.index, runnable);
            } else {
                runnable.schedule();
            }
        });
        (!is_refused).then_some(task)
    }

    // Always inlined: the parts of the task stay in registers. Costs a spawn 20 instructions otherwise.
    #[inline(always)]
    fn start_with(self, start: impl FnOnce(Runnable)) -> JoinHandle<T> {
        let Self { runnable, task, abort, location, is_refused } = self;
        if is_refused {
            drop(runnable);
        } else {
            start(runnable);
        }
        JoinHandle::new(task.fallible(), abort, location)
    }
}

/// Makes a task of `future` that any worker of `worker`'s runtime may run.
pub(super) fn shared<F>(worker: &WorkerRef, future: F, location: &'static Location<'static>) -> NewTask<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    build(worker, Kind::Shared, location, |task, span| {
        task.spawn(|metadata| TaskFuture::new(future, Membership::<SHARED>::new(metadata, span)), WithInfo(schedule))
    })
}

/// Makes a task of `future` that stays on this thread, which is `worker`'s.
pub(super) fn local<F>(worker: &WorkerRef, future: F, location: &'static Location<'static>) -> NewTask<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    build(worker, Kind::Local, location, |task, span| {
        task.spawn_local(
            |metadata| TaskFuture::new(future, Membership::<LOCAL>::new(metadata, span)),
            WithInfo(schedule_local),
        )
    })
}

/// Makes a task that calls `closure`, and passes it to `submit`.
pub(crate) fn spawn_blocking_on<C, T>(
    worker: &WorkerRef,
    closure: C,
    location: &'static Location<'static>,
    submit: impl Fn(BlockingTask) + Send + Sync + 'static,
) -> JoinHandle<T>
where
    C: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let task = build(worker, Kind::Blocking, location, |task, span| {
        let submit = move |runnable: Runnable| {
            runnable.metadata().record.note_queued();
            submit(BlockingTask { runnable });
        };
        let future = Closure(Some(closure));
        task.spawn(|metadata| TaskFuture::new(future, Membership::<BLOCKING>::new(metadata, span)), submit)
    });
    task.start()
}

/// Inserts a new task in the registry of its runtime. Calls a subscriber of `tracing`, if there is one.
fn build<T>(
    worker: &WorkerRef,
    kind: Kind,
    location: &'static Location<'static>,
    spawn: impl FnOnce(Builder<Metadata>, TaskSpan) -> (Runnable, Task<Outcome<T>, Metadata>),
) -> NewTask<T> {
    let tasks = &worker.workers.tasks;
    // The subscriber must not be called under the lock of the registry, so the span, with the id, comes first.
    let id = EarlyId::new(|| tasks.draw_id());
    let span = id.get().map_or_else(TaskSpan::none, |id| TaskSpan::new(kind.name(), id.get(), location));
    let queue = if kind == Kind::Shared { worker.shared_queue } else { worker.local_queue };
    let new = New { kind, location, queue, now: Stamp::known(), id };
    let inserted = tasks.insert(&worker.workers, worker.index, new, |record| {
        let metadata = Metadata::new(record.clone(), span.id());
        let (runnable, task) = spawn(Builder::new().metadata(metadata), span);
        (runnable.waker(), (runnable, task))
    });
    let Inserted { id, record, is_refused, made: (runnable, task) } = inserted;
    NewTask { runnable, task, abort: AbortHandle::new(id, record), location, is_refused }
}

/// A closure that is to run on a thread that may block. Dropped, it ends unrun.
pub(crate) struct BlockingTask {
    runnable: Runnable,
}

impl BlockingTask {
    /// Calls the closure, on this thread. Its panic is contained.
    pub(crate) fn run(self) {
        self.runnable.run();
    }

    /// Drops the closure because no thread could be started for it. The handle says so.
    pub(crate) fn cancel_without_thread(self, errno: i32) {
        let record = &self.runnable.metadata().record;
        record.workers().tasks.cancel(record, None, CancelReason::no_thread(errno));
        self.run();
    }
}

pin_project! {
    /// The wrapper. It has its future until that completed, panicked or was cancelled.
    struct TaskFuture<F: Future, M> {
        #[pin]
        future: Option<F>,
        membership: M,
    }

    impl<F: Future, M> PinnedDrop for TaskFuture<F, M> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // The future is still there if the task is dropped unrun.
            if this.future.is_some() {
                contain_all(|| this.future.set(None));
            }
        }
    }
}

/// The place in the registry of a task of this kind. It is dropped after the future, and leaves the registry then.
struct Membership<const KIND: usize> {
    record: Record,
    span: TaskSpan,
}

impl<const KIND: usize> Drop for Membership<KIND> {
    fn drop(&mut self) {
        // First, because the runtime may end once the task has left.
        self.span.close();
        let workers = self.record.workers();
        if workers.tasks.remove::<KIND>(&self.record) {
            workers.unpark_all();
        }
    }
}

impl<const KIND: usize> Membership<KIND> {
    fn new(metadata: &Metadata, span: TaskSpan) -> Self {
        Self { record: metadata.record.clone(), span }
    }
}

impl<F: Future, M> TaskFuture<F, M> {
    fn new(future: F, membership: M) -> Self {
        Self { future: Some(future), membership }
    }
}

impl<F: Future, const KIND: usize> Future for TaskFuture<F, Membership<KIND>> {
    type Output = Outcome<F::Output>;

    // A burst costs 4.0 % more without this, and an echo 5 %.
    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        note_executors(cx.waker());
        let this = self.project();
        let record = &this.membership.record;
        // `begin_poll` below asks whether the task is cancelled, after async-task has noted that the task runs. If it
        // were asked earlier, a thread that cancels the task in between would wake a task that is still scheduled,
        // which does nothing. The task would be polled, and sleep.
        let now = if KIND == BLOCKING { Stamp::known() } else { Stamp::last() };
        let _entered = this.membership.span.enter();
        if is_large::<F::Output>() {
            poll_noted(this.future, cx, record, now, Box::new).map(Outcome::unbox)
        } else {
            poll_noted(this.future, cx, record, now, |output| output)
        }
    }
}

/// Polls the future, and notes that in the task's record.
#[inline(always)]
fn poll_noted<F: Future, T>(
    future: Pin<&mut Option<F>>,
    cx: &mut Context<'_>,
    record: &Record,
    now: Stamp,
    output: impl FnOnce(F::Output) -> T,
) -> Poll<Outcome<T>> {
    if record.begin_poll(now) {
        // Passes the waker and not `cx`: a context that goes by reference to a function which is not inlined has to be
        // in memory.
        poll_with_attention(future, cx.waker(), record, output)
    } else {
        poll_contained(future, cx, None, record, output)
    }
}

/// Polls a future whose task is cancelled, is timed, or gave way.
// Not inlined, so that a poll without attention is small.
#[cold]
#[inline(never)]
fn poll_with_attention<F: Future, T>(
    future: Pin<&mut Option<F>>,
    waker: &Waker,
    record: &Record,
    output: impl FnOnce(F::Output) -> T,
) -> Poll<Outcome<T>> {
    let mut cx = Context::from_waker(waker);
    let attention = record.attention();
    if attention.gave_way() {
        record.forget_gave_way();
    }
    let start = attention.is_timed().then(monotonic);
    if let Some(start) = start {
        stamp::note(start);
        record.set_since(Stamp::last());
    }
    let poll = poll_contained(future, &mut cx, attention.cancelled(), record, output);
    if let Some(start) = start {
        let end = monotonic();
        stamp::note(end);
        record.workers().polled(record, end.saturating_sub(start));
    }
    poll
}

/// Polls the future, or drops it if the task is cancelled. Contains its panics.
#[inline(always)]
fn poll_contained<F: Future, T>(
    mut future: Pin<&mut Option<F>>,
    cx: &mut Context<'_>,
    cancelled: Option<CancelReason>,
    record: &Record,
    output: impl FnOnce(F::Output) -> T,
) -> Poll<Outcome<T>> {
    let polled = contain(|| match future.as_mut().as_pin_mut() {
        Some(future) if cancelled.is_none() => poll_inline_if_small(future, cx).map(|ready| Some(output(ready))),
        _ => Poll::Ready(None),
    });
    let outcome = match polled {
        Ok(Poll::Pending) => {
            record.end_poll();
            return Poll::Pending;
        }
        Ok(Poll::Ready(Some(output))) => Outcome::output(output),
        Ok(Poll::Ready(None)) => Outcome::none(Cause::cancelled(cancelled.unwrap_or(CancelReason::ABORTED))),
        Err(panic) => Outcome::none(Cause::panic(panic)),
    };
    // The future is dropped before its handle hears of the end. A panic of that drop becomes the outcome.
    match contain(|| future.set(None)) {
        Ok(()) => Poll::Ready(outcome),
        Err(panic) => Poll::Ready(Outcome::none(Cause::panic(panic))),
    }
}

/// Puts the output of a future in a box.
pub(crate) struct BoxOutput<F> {
    future: Pin<Box<F>>,
}

impl<F: Future> Future for BoxOutput<F> {
    type Output = Box<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.future.as_mut().poll(cx).map(Box::new)
    }
}

#[inline(always)]
fn poll_inline_if_small<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    if size_of::<F>() > SMALL { poll_large(future, cx) } else { future.poll(cx) }
}

/// Polls a large future. Its code must not be in both places where async-task polls a wrapper: the compiler inlines
/// less of code that is there twice.
// A served echo costs 5 % more without this.
#[inline(never)]
fn poll_large<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    future.poll(cx)
}

/// The future of a blocking task: it calls the closure, and is never polled again.
struct Closure<C>(Option<C>);

// The closure is moved out before it is called, and nothing points into it before.
impl<C> Unpin for Closure<C> {}

impl<C: FnOnce() -> T, T> Future for Closure<C> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        let closure = self.0.take().expect("a closure is called once");
        Poll::Ready(closure())
    }
}
