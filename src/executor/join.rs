//! Handles on tasks: waiting for their end, or bringing it about.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_task::Task;
use parking_lot::Mutex;

use super::Workers;
use super::list::Place;
use super::task::{Id, Metadata, Outcome};

/// Waits for a task to end, and gives its output.
///
/// Returned by [`spawn`](crate::spawn), [`spawn_local`](crate::spawn_local) and
/// [`spawn_blocking`](crate::spawn_blocking). Dropping it detaches the task, which goes on;
/// [`abort`](JoinHandle::abort) ends it. The task's future has been dropped by the time the handle gives its output.
///
/// It can be awaited in any task, on any thread and in any executor.
///
/// # Cancel safety
/// Safe. It is polled by reference, so it can be used in a `select!` again and
/// again until it is ready.
///
/// # Panics
/// When polled again after it was ready. A waker that panics while it awaits a handle, which the wakers of no executor
/// in use do, ends the process.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let task = kittiwake::spawn(async { 6 * 7 });
///     assert_eq!(task.await.unwrap(), 42);
/// });
/// ```
pub struct JoinHandle<T> {
    /// `None` once it gave its output.
    task: Option<Task<Outcome<T>, Metadata>>,
    place: Place,
    /// Where it was spawned.
    location: &'static Location<'static>,
}

impl<T> JoinHandle<T> {
    pub(super) fn new(task: Task<Outcome<T>, Metadata>, place: Place, location: &'static Location<'static>) -> Self {
        Self { task: Some(task), place, location }
    }

    /// Ends the task: its future is dropped, by a worker, the next time it
    /// would have been polled.
    ///
    /// The handle then gives a [`JoinError`] that says [`is_cancelled`](JoinError::is_cancelled); if the task
    /// ended first, its output. May be called from any thread, at any time, and
    /// more than once. A closure of [`spawn_blocking`](crate::spawn_blocking) that runs goes on: only one that
    /// still waits for a thread is dropped, when its turn comes.
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
        if let Some(task) = &self.task {
            task.metadata().workers.tasks.abort_one(self.place);
        }
    }

    /// Returns a handle that can end the task and outlives this one.
    pub fn abort_handle(&self) -> AbortHandle {
        let task = self.task.as_ref().map(Task::metadata);
        AbortHandle { place: self.place, workers: task.map(|task| task.workers.clone()) }
    }

    /// Whether the task has ended, so that awaiting it does not wait.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(Task::is_finished)
    }

    /// The task's id.
    pub fn id(&self) -> Id {
        Id(self.place.id)
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.task.as_mut().expect("a JoinHandle was polled after it was ready");
        // It has one: a task is never dropped unrun, for which async-task has a panic here.
        let outcome = std::task::ready!(Pin::new(task).poll(cx));
        // Not dropped: that would cancel it first, which has come too late.
        if let Some(task) = self.task.take() {
            task.detach();
        }
        Poll::Ready(outcome.take().map_err(|cause| JoinError { id: self.id(), cause }))
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
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
        let polls = self.task.as_ref().map(|task| task.metadata().polls());
        f.debug_struct("JoinHandle")
            .field("id", &self.place.id)
            .field("spawned_at", &format_args!("{}", self.location))
            .field("polls", &polls)
            .finish()
    }
}

/// Ends a task, without the right to wait for it.
///
/// Made by [`JoinHandle::abort_handle`] and by [`JoinSet`](super::JoinSet)'s `spawn`.
#[derive(Clone)]
pub struct AbortHandle {
    place: Place,
    /// Whose task it is, unless it was known to be over.
    workers: Option<Arc<Workers>>,
}

impl AbortHandle {
    /// Ends the task, as [`JoinHandle::abort`] does.
    pub fn abort(&self) {
        if let Some(workers) = &self.workers {
            workers.tasks.abort_one(self.place);
        }
    }

    /// Whether the task's future is gone: it ended, panicked or was aborted.
    pub fn is_finished(&self) -> bool {
        !self.workers.as_ref().is_some_and(|workers| workers.tasks.contains(self.place))
    }

    /// The task's id.
    pub fn id(&self) -> Id {
        Id(self.place.id)
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AbortHandle").field(&self.id()).finish()
    }
}

/// Why a task has no output: it was aborted, or it panicked.
///
/// A task is also cancelled when its runtime ends, or had ended when it was spawned; and a closure of
/// [`spawn_blocking`](crate::spawn_blocking) when there is no thread to run it, and the system starts none.
pub struct JoinError {
    id: Id,
    cause: Cause,
}

pub(super) enum Cause {
    Cancelled,
    /// A closure that no thread could be started for.
    NoThread(io::Error),
    /// Behind a mutex, because a panic's payload need not be `Sync`, and an error should be. In a box, because every
    /// task's output is as large as this at least, and is moved several times.
    Panicked(Box<Mutex<Box<dyn Any + Send>>>),
}

impl Cause {
    /// Of a task that was told to end: for an error number, or none.
    #[cold]
    pub(super) fn told(end: i32) -> Self {
        if end > 0 { Self::NoThread(io::Error::from_raw_os_error(end)) } else { Self::Cancelled }
    }

    pub(super) fn panic(payload: Box<dyn Any + Send>) -> Self {
        Self::Panicked(Box::new(Mutex::new(payload)))
    }
}

impl JoinError {
    /// Whether the task was aborted, ended with its runtime, or is a closure that no thread could be started for.
    pub fn is_cancelled(&self) -> bool {
        !self.is_panic()
    }

    /// Whether the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, Cause::Panicked(_))
    }

    /// The panic's payload, for [`resume_unwind`](std::panic::resume_unwind).
    ///
    /// # Panics
    /// If the task did not panic.
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let task = kittiwake::spawn(async { panic!("no more tea") });
    ///     let panic = task.await.unwrap_err().into_panic();
    ///     assert_eq!(panic.downcast_ref::<&str>(), Some(&"no more tea"));
    /// });
    /// ```
    pub fn into_panic(self) -> Box<dyn Any + Send> {
        self.try_into_panic().expect("JoinError::into_panic: the task was cancelled, it did not panic")
    }

    /// The panic's payload, or the error itself if the task did not panic.
    ///
    /// # Errors
    /// The error itself, if the task was cancelled.
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send>, Self> {
        match self.cause {
            Cause::Panicked(payload) => Ok(payload.into_inner()),
            Cause::Cancelled | Cause::NoThread(_) => Err(self),
        }
    }

    /// The task's id.
    pub fn id(&self) -> Id {
        self.id
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Cancelled => write!(f, "task {} was cancelled", self.id),
            Cause::NoThread(error) => {
                write!(f, "task {} was cancelled, because no thread can be started for it: {error}", self.id)
            }
            Cause::Panicked(payload) => {
                // Copied out of the lock: a formatter is foreign code.
                let message = message(&**payload.lock());
                match message {
                    Some(message) => write!(f, "task {} panicked: {message}", self.id),
                    None => write!(f, "task {} panicked", self.id),
                }
            }
        }
    }
}

/// What `panic!` was given, if that was a text.
fn message(payload: &(dyn Any + Send)) -> Option<String> {
    match payload.downcast_ref::<&str>() {
        Some(message) => Some((*message).to_owned()),
        None => payload.downcast_ref::<String>().cloned(),
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinError({self})")
    }
}

impl std::error::Error for JoinError {}
