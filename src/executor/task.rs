//! Task: a future, wrapped so that it cannot hurt its worker.
//!
//! The cell that holds a task and counts its references is `async-task`'s. It ends
//! the process when dropping a future or an output panics, and when a
//! cancelled task is asked for its output. So what it holds is not the
//! user's future but a [`TaskFuture`], which
//! * polls and drops the user's future under [`contain`], and yields its panic as a value;
//! * looks, before each poll, whether the task was told to end, and then drops
//!   the future instead;
//! * keeps the output in an [`Outcome`], whose drop is contained too.
//!
//! Hence every task ends by being run on its own worker, in all cases by one
//! path: the wrapper returns `Ready`, async-task drops the wrapper, and the wrapper
//! leaves the [list](super::list).
//!
//! Two kinds of panic still end the process: of a waker that awaits a `JoinHandle`, when async-task clones,
//! wakes or drops it; and of a drop while another panic unwinds.

use std::fmt;
use std::num::NonZeroU64;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_task::{Builder, Task};
use pin_project_lite::pin_project;

use super::join::{JoinError, JoinHandle};
use super::{Entry, Home, schedule};
use crate::sync::{contain, contain_all};

/// What async-task keeps beside the future.
pub(crate) type Metadata = Arc<Header>;
pub(crate) type Runnable = async_task::Runnable<Metadata>;

/// A task's id: no other task of its worker has had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(NonZeroU64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a task while anything refers to it.
pub(crate) struct Header {
    /// The worker to which the task is posted when another thread wakes it.
    pub(super) home: Arc<Home>,
    id: NonZeroU64,
    /// Where the home's list has it; `None` if the list refused it.
    key: Option<usize>,
    local: bool,
    /// The task was told to end: its future is dropped instead of polled.
    aborted: AtomicBool,
    /// How often it was run. Written by whoever runs it, hence never by two.
    polls: AtomicU64,
    /// Where it was spawned.
    location: &'static Location<'static>,
}

impl Header {
    pub(super) fn id(&self) -> u64 {
        self.id.get()
    }

    pub(super) fn public_id(&self) -> Id {
        Id(self.id)
    }

    pub(super) fn is_local(&self) -> bool {
        self.local
    }

    /// Tells the task to end, without waking it.
    pub(super) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    /// Tells the task to end.
    pub(super) fn abort_and_wake(&self) {
        // Before the wake: async-task's state orders it before the run that follows.
        self.abort();
        if let Some(key) = self.key {
            self.home.tasks.wake(key, self.id());
        }
    }

    /// Whether the task still has its future.
    pub(super) fn is_alive(&self) -> bool {
        self.key.is_some_and(|key| self.home.tasks.contains(key, self.id()))
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id)
            .field("spawned_at", &format_args!("{}", self.location))
            .field("polls", &self.polls.load(Ordering::Relaxed))
            .finish()
    }
}

/// Makes a task of `future` and has its home run it.
pub(crate) fn spawn<F>(home: &Arc<Home>, future: F, location: &'static Location<'static>) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn make<F>(home: &Arc<Home>, future: F, location: &'static Location<'static>) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        build(home, false, location, |task| task.spawn(|header| TaskFuture::new(future, header), schedule))
    }
    if size_of::<F>() > LARGE { make(home, Box::pin(future), location) } else { make(home, future, location) }
}

/// Makes a task of `future` that stays on this thread, which is its home's.
pub(crate) fn spawn_local<F>(home: &Arc<Home>, future: F, location: &'static Location<'static>) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn make<F>(home: &Arc<Home>, future: F, location: &'static Location<'static>) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        build(home, true, location, |task| task.spawn_local(|header| TaskFuture::new(future, header), schedule))
    }
    if size_of::<F>() > LARGE { make(home, Box::pin(future), location) } else { make(home, future, location) }
}

/// Futures above this size, in bytes, are boxed before they are passed on: each
/// function they pass through copies them to its own frame.
pub(crate) const LARGE: usize = 16 * 1024;

/// Enters a new task into its home's list and schedules it.
fn build<T>(
    home: &Arc<Home>,
    local: bool,
    location: &'static Location<'static>,
    spawn: impl FnOnce(Builder<Metadata>) -> (Runnable, Task<Outcome<T>, Metadata>),
) -> JoinHandle<T> {
    let (runnable, task) = home.tasks.admit(local, |admission| {
        let header = Arc::new(Header {
            home: home.clone(),
            id: NonZeroU64::new(admission.id).expect("ids count from 1"),
            key: admission.key,
            local,
            aborted: AtomicBool::new(admission.key.is_none()),
            polls: AtomicU64::new(0),
            location,
        });
        let (runnable, task) = spawn(Builder::new().metadata(header.clone()));
        (header, runnable.waker(), (runnable, task))
    });
    if runnable.metadata().key.is_some() {
        runnable.schedule();
    } else {
        // Refused: it ends here and now, without being polled.
        runnable.run();
    }
    JoinHandle::new(task)
}

pin_project! {
    /// The wrapper. Its future is there until it ended, panicked or was aborted.
    struct TaskFuture<F: Future> {
        #[pin]
        future: Option<F>,
        header: Arc<Header>,
    }

    impl<F: Future> PinnedDrop for TaskFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Mostly it is gone already. It is still there when async-task drops a
            // task unrun, and then nobody is left to be told of a panic.
            if this.future.is_some() {
                contain_all(|| this.future.set(None));
            }
            if let Some(key) = this.header.key {
                this.header.home.tasks.remove(key);
            }
        }
    }
}

impl<F: Future> TaskFuture<F> {
    fn new(future: F, header: &Arc<Header>) -> Self {
        Self { future: Some(future), header: header.clone() }
    }
}

impl<F: Future> Future for TaskFuture<F> {
    type Output = Outcome<F::Output>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let header = this.header;
        header.polls.store(header.polls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let polled = contain(|| match this.future.as_mut().as_pin_mut() {
            Some(future) if !header.aborted.load(Ordering::Acquire) => future.poll(cx).map(Some),
            _ => Poll::Ready(None),
        });
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Some(output))) => Outcome(Some(Ok(output))),
            Ok(Poll::Ready(None)) => Outcome(Some(Err(JoinError::cancelled(header.public_id())))),
            Err(panic) => Outcome(Some(Err(JoinError::panicked(header.public_id(), panic)))),
        };
        // The future goes before its handle hears of the end. If that panics, it is what became of the task.
        match contain(|| this.future.set(None)) {
            Ok(()) => Poll::Ready(outcome),
            Err(panic) => Poll::Ready(Outcome(Some(Err(JoinError::panicked(header.public_id(), panic))))),
        }
    }
}

/// What became of a task. Whoever wants it takes it out; if nobody does, it is
/// dropped without letting a panic out.
pub(super) struct Outcome<T>(Option<Result<T, JoinError>>);

impl<T> Outcome<T> {
    pub(super) fn take(mut self) -> Option<Result<T, JoinError>> {
        self.0.take()
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

/// Whether running or dropping this entry is bound to the thread that made it.
pub(crate) fn is_local(entry: &Entry) -> bool {
    matches!(entry, Entry::Task(runnable) if runnable.metadata().local)
}
