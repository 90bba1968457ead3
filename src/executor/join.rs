//! Handles of tasks: to wait for a task's end, or to abort it.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use async_task::FallibleTask;

use super::outcome::{Cause, JoinError, Outcome};
use super::record::CancelReason;
use super::registry::Id;
use super::shared::{Metadata, Record};
use crate::budget;

/// Waits for a task to end, and gives its output.
///
/// Returned by [`spawn`](crate::spawn), [`spawn_local`](crate::spawn_local) and
/// [`spawn_blocking`](crate::spawn_blocking). Dropping it detaches the task, which goes on.
/// [`abort`](JoinHandle::abort) ends the task. The task's future has been dropped by the time the handle gives its
/// output.
///
/// It can be awaited in any task, on any thread and in any executor.
///
/// # Cancel safety
/// Safe. It is polled by reference, so it can be used in a `select!` again and again until it is ready.
///
/// # Panics
/// When it is polled again after it was ready. A waker that panics while it awaits a handle ends the process. The
/// wakers of the common executors do not panic.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let task = kittiwake::spawn(async { 6 * 7 });
///     assert_eq!(task.await.unwrap(), 42);
/// });
/// ```
pub struct JoinHandle<T> {
    /// `None` while it is dropped. It stays here after the task has given its output, so that only `drop` detaches the
    /// task: with a second call of `detach` the compiler would not inline it.
    task: Option<FallibleTask<Outcome<T>, Metadata>>,
    /// It gave its output.
    was_ready: bool,
    abort: AbortHandle,
    spawned_at: &'static Location<'static>,
}

impl<T> JoinHandle<T> {
    pub(super) fn new(
        task: FallibleTask<Outcome<T>, Metadata>,
        abort: AbortHandle,
        spawned_at: &'static Location<'static>,
    ) -> Self {
        Self { task: Some(task), was_ready: false, abort, spawned_at }
    }

    /// Aborts the task: it is woken, and the worker that would poll it drops its future instead.
    ///
    /// The handle then gives a [`JoinError`] that says [`is_cancelled`](JoinError::is_cancelled). If the task ended
    /// first, the handle gives its output. May be called from any thread, at any time, and more than once. A closure of
    /// [`spawn_blocking`](crate::spawn_blocking) that is running runs to its end. One that waits for a thread is
    /// dropped when its turn comes.
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let task = kittiwake::spawn(std::future::pending::<()>());
    ///     task.abort();
    ///     assert!(task.await.unwrap_err().is_cancelled());
    /// });
    /// ```
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// Returns a handle that can abort the task and outlives this one.
    pub fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }

    /// Gives the task a name, which dumps of the tasks show.
    pub(crate) fn set_name(&self, name: Arc<str>) {
        let AbortHandle { id, record } = &self.abort;
        record.workers().tasks.set_name(record, *id, name);
    }

    /// Whether the task has ended, so that awaiting it does not wait, or waits only until a cancelled future's
    /// destructor has run.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(FallibleTask::is_finished)
    }

    /// The id of the task.
    pub fn id(&self) -> Id {
        self.abort.id()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(budget::poll_complete(cx, || self.is_finished()));
        let result = ready!(self.poll_join(cx));
        budget::spend();
        Poll::Ready(result)
    }
}

impl<T> JoinHandle<T> {
    /// Notes that the task of `waker` waits for this one, for dumps of the tasks.
    pub(super) fn note_joiner(&self, waker: &Waker) {
        self.abort.record.note_joiner(self.abort.id.get(), waker);
    }

    /// As `poll`, without spending the budget of the task that polls.
    #[inline]
    pub(super) fn poll_join(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, JoinError>> {
        let task = self.task.as_mut().filter(|_| !self.was_ready).expect("a JoinHandle was polled after it was ready");
        let Poll::Ready(outcome) = Pin::new(task).poll(cx) else {
            self.note_joiner(cx.waker());
            return Poll::Pending;
        };
        self.was_ready = true;
        // `None`: the task was dropped without being run.
        let result = outcome.map_or(Err(Cause::Cancelled), Outcome::take);
        Poll::Ready(result.map_err(|cause| JoinError::new(self.id(), cause)))
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            if !self.was_ready {
                self.abort.record.forget_joiner(self.abort.id.get());
            }
            task.detach();
        }
    }
}

// A handle shows nothing of a task that a panic could have left half-changed.
impl<T> UnwindSafe for JoinHandle<T> {}
impl<T> RefUnwindSafe for JoinHandle<T> {}
impl UnwindSafe for AbortHandle {}
impl RefUnwindSafe for AbortHandle {}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("id", &self.id())
            .field("spawned_at", &format_args!("{}", self.spawned_at))
            .field("is_finished", &self.is_finished())
            .finish()
    }
}

/// Aborts a task, without the right to wait for it.
///
/// Made by [`JoinHandle::abort_handle`] and by [`JoinSet`](super::JoinSet)'s `spawn`.
#[derive(Clone)]
pub struct AbortHandle {
    pub(super) id: Id,
    pub(super) record: Record,
}

impl AbortHandle {
    pub(super) fn new(id: Id, record: Record) -> Self {
        Self { id, record }
    }

    /// Aborts the task, as [`JoinHandle::abort`] does.
    pub fn abort(&self) {
        self.record.workers().tasks.cancel(&self.record, Some(self.id), CancelReason::ABORTED);
    }

    /// Whether the task's future is gone: it completed, panicked or was cancelled.
    pub fn is_finished(&self) -> bool {
        !self.record.workers().tasks.contains(&self.record, self.id)
    }

    /// The id of the task.
    pub fn id(&self) -> Id {
        self.id
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AbortHandle").field(&self.id()).finish()
    }
}
