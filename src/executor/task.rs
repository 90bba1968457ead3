//! Task: a future, wrapped so that it cannot hurt its worker.
//!
//! The cell that holds a task and counts its references is `async-task`'s. It ends
//! the process when dropping a future or an output panics, and when a
//! cancelled task is asked for its output. So what it holds is not the
//! user's future but a [`TaskFuture`], which
//! * polls and drops the user's future under [`contain`], and yields its panic as a value;
//! * asks, before each poll, whether the task was told to end, and then drops the future instead;
//! * keeps the output in an [`Outcome`], whose drop is contained too.
//!
//! Hence every task ends by being run on a worker that may run it, in all cases by one
//! path: the wrapper returns `Ready`, async-task drops the wrapper, and the wrapper
//! leaves the [list](super::list).
//!
//! A [job] is a task too, of one poll: its future calls a closure. It is run by a thread that
//! may block, and stands in its home's list, so that it has an id there and is told to end with the others.
//!
//! Two kinds of panic still end the process: of a waker that awaits a `JoinHandle`, when async-task clones,
//! wakes or drops it; and of a drop while another panic unwinds.

use std::fmt;
use std::mem;
use std::num::NonZeroU64;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::task::{Context, Poll};

use async_task::{Builder, Task};
use pin_project_lite::pin_project;

use super::join::{Cause, JoinHandle};
use super::list::{Place, Slot};
use super::{Entry, Home, Kind, Workers, schedule};
use crate::sync::{contain, contain_all, note_ours};

/// What async-task keeps beside the future, in the same allocation.
pub(crate) struct Metadata {
    /// Those of whom one, or all, may run it.
    pub(super) workers: Arc<Workers>,
    /// What the thread of a worker that may run it is known by: [`Workers::gates`].
    pub(super) gate: usize,
    /// How often it was run, modulo 2^32. Written by whoever runs it, hence never by two.
    polls: AtomicU32,
    /// The worker that last ran it, or is to run it first: there it is posted when a thread wakes it that may not run it.
    worker: AtomicU16,
    pub(super) kind: Kind,
}

impl Metadata {
    pub(super) fn polls(&self) -> u32 {
        self.polls.load(Ordering::Relaxed)
    }

    pub(super) fn last_worker(&self) -> usize {
        self.worker.load(Ordering::Relaxed).into()
    }

    #[inline]
    pub(super) fn note_worker(&self, index: usize) {
        self.worker.store(index as u16, Ordering::Relaxed);
    }
}

pub(crate) type Runnable = async_task::Runnable<Metadata>;

/// A task's id: no other task of its runtime has had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub(super) NonZeroU64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Told to end for no reason of the system's.
pub(super) const ABORTED: i32 = -1;

/// Runs a task once, on this thread.
#[inline]
pub(crate) fn run(runnable: Runnable) {
    let metadata = runnable.metadata();
    metadata.polls.store(metadata.polls.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    runnable.run();
}

/// Runs a task whose future is to be dropped instead of polled, because of `end`, unless it was told to end before: that is why
/// it ends, then.
#[cold]
fn run_to_end(runnable: Runnable, end: i32) {
    let workers = runnable.metadata().workers.clone();
    workers.tasks.while_told(end, || runnable.run());
}

/// A new task that stands in its home's list, and what waits for it.
pub(crate) struct Made<T> {
    runnable: Runnable,
    place: Place,
    location: &'static Location<'static>,
    task: Task<Outcome<T>, Metadata>,
}

impl<T> Made<T> {
    /// Has its home run it, or whoever it was submitted to.
    pub(crate) fn start(self) -> JoinHandle<T> {
        self.start_by(Runnable::schedule)
    }

    /// Has a worker begin it.
    pub(super) fn start_on(self, home: &Home) -> JoinHandle<T> {
        self.start_by(|runnable| home.workers.place(home.index, runnable))
    }

    fn start_by(self, schedule: impl FnOnce(Runnable)) -> JoinHandle<T> {
        let Self { runnable, place, location, task } = self;
        if place.slot.key.is_some() {
            schedule(runnable);
        } else {
            // Refused: it ends here and now, without being polled.
            end(runnable);
        }
        JoinHandle::new(task, place, location)
    }
}

/// Makes a task of `future` that any of its home's workers may run.
pub(crate) fn shared<F>(home: &Home, future: F, location: &'static Location<'static>) -> Made<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn make<F>(home: &Home, future: F, location: &'static Location<'static>) -> Made<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        build(home, Kind::Shared, location, |task, place| {
            task.spawn(|metadata| TaskFuture::new(future, metadata, place), schedule)
        })
    }
    if size_of::<F>() > LARGE { make(home, Box::pin(future), location) } else { make(home, future, location) }
}

/// Makes a task of `future` that stays on this thread, which is its home's.
pub(crate) fn local<F>(home: &Home, future: F, location: &'static Location<'static>) -> Made<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn make<F>(home: &Home, future: F, location: &'static Location<'static>) -> Made<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        build(home, Kind::Local, location, |task, place| {
            task.spawn_local(|metadata| TaskFuture::new(future, metadata, place), schedule)
        })
    }
    if size_of::<F>() > LARGE { make(home, Box::pin(future), location) } else { make(home, future, location) }
}

/// Makes a task that calls `closure`. It is passed to `submit`, on the thread that starts it, to be run somewhere once.
pub(crate) fn job<C, T>(
    home: &Home,
    closure: C,
    location: &'static Location<'static>,
    submit: impl Fn(Runnable) + Send + Sync + 'static,
) -> Made<T>
where
    C: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    build(home, Kind::Job, location, |task, place| {
        task.spawn(|metadata| TaskFuture::new(Job(Some(closure)), metadata, place), submit)
    })
}

/// Ends a job that nobody will run, for the error number `reason` if there is one: its closure is dropped here.
pub(crate) fn refuse(job: Runnable, reason: Option<i32>) {
    run_to_end(job, reason.unwrap_or(ABORTED));
}

/// Futures above this size, in bytes, are boxed before they are passed on: each
/// function they pass through copies them to its own frame.
pub(crate) const LARGE: usize = 16 * 1024;

/// Enters a new task into its home's list.
fn build<T>(
    home: &Home,
    kind: Kind,
    location: &'static Location<'static>,
    spawn: impl FnOnce(Builder<Metadata>, Place) -> (Runnable, Task<Outcome<T>, Metadata>),
) -> Made<T> {
    let Home { workers, index, own, shared } = home;
    let gate = if kind == Kind::Shared && *shared != 0 { *shared } else { *own };
    let (place, (runnable, task)) = workers.tasks.admit(*index, kind, |place| {
        let metadata = Metadata {
            workers: workers.clone(),
            gate,
            polls: AtomicU32::new(0),
            worker: AtomicU16::new(*index as u16),
            kind,
        };
        let (runnable, task) = spawn(Builder::new().metadata(metadata), place);
        (runnable.waker(), (runnable, task))
    });
    Made { runnable, place, location, task }
}

pin_project! {
    /// The wrapper. Its future is there until it ended, panicked or was aborted.
    struct TaskFuture<F: Future> {
        #[pin]
        future: Option<F>,
        membership: Membership,
    }

    impl<F: Future> PinnedDrop for TaskFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Mostly it is gone already. It is still there when async-task drops a
            // task unrun, and then nobody is left to be told of a panic.
            if this.future.is_some() {
                contain_all(|| this.future.set(None));
            }
        }
    }
}

/// A task's, in the list of its home. It is dropped after the future, and the task leaves the list.
struct Membership {
    workers: Arc<Workers>,
    slot: Slot,
}

impl Membership {
    /// Why the task is to end, which is being polled; 0 if it is not.
    #[inline]
    fn end(&self) -> i32 {
        let tasks = &self.workers.tasks;
        if tasks.has_told() { tasks.end(self.slot) } else { 0 }
    }
}

impl Drop for Membership {
    #[inline]
    fn drop(&mut self) {
        if self.workers.tasks.remove(self.slot) {
            self.workers.all_gone();
        }
    }
}

impl<F: Future> TaskFuture<F> {
    fn new(future: F, metadata: &Metadata, place: Place) -> Self {
        Self { future: Some(future), membership: Membership { workers: metadata.workers.clone(), slot: place.slot } }
    }
}

impl<F: Future> Future for TaskFuture<F> {
    type Output = Outcome<F::Output>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        note_ours(cx.waker());
        let mut this = self.project();
        // Asked here, and not before async-task notes that the task runs: whoever tells it to end in between would wake a task
        // that is still scheduled, which does nothing, and it would be polled and sleep.
        let end = this.membership.end();
        let polled = contain(|| match this.future.as_mut().as_pin_mut() {
            Some(future) if end == 0 => future.poll(cx).map(Some),
            _ => Poll::Ready(None),
        });
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Some(output))) => Outcome(Some(Ok(output))),
            Ok(Poll::Ready(None)) => Outcome(Some(Err(Cause::told(end)))),
            Err(panic) => Outcome(Some(Err(Cause::panic(panic)))),
        };
        // The future goes before its handle hears of the end. If that panics, it is what became of the task.
        match contain(|| this.future.set(None)) {
            Ok(()) => Poll::Ready(outcome),
            Err(panic) => Poll::Ready(Outcome(Some(Err(Cause::panic(panic))))),
        }
    }
}

/// The future of a job: it calls the closure, and is never polled again.
struct Job<C>(Option<C>);

// The closure is moved out to be called, and nothing points into it before.
impl<C> Unpin for Job<C> {}

impl<C: FnOnce() -> T, T> Future for Job<C> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        let closure = self.0.take().expect("a job is polled once");
        Poll::Ready(closure())
    }
}

/// What became of a task. Whoever wants it takes it out; if nobody does, it is
/// dropped without letting a panic out.
pub(super) struct Outcome<T>(Option<Result<T, Cause>>);

impl<T> Outcome<T> {
    pub(super) fn take(mut self) -> Result<T, Cause> {
        let result = self.0.take();
        // Nothing is left in it to drop.
        mem::forget(self);
        result.expect("an outcome is taken once")
    }
}

impl<T> Drop for Outcome<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(unwanted) = self.0.take() {
            contain_all(|| drop(unwanted));
        }
    }
}

/// Ends a task that no worker will run: its future is dropped here.
pub(super) fn end(runnable: Runnable) {
    run_to_end(runnable, ABORTED);
}

/// Whether running or dropping this entry is bound to the thread that made it.
pub(crate) fn is_local(entry: &Entry) -> bool {
    matches!(entry, Entry::Task(runnable) if runnable.metadata().kind == Kind::Local)
}
