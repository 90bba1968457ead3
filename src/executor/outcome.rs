//! Outcome: the end of a task, and the error if it has no output.

use std::any::Any;
use std::fmt;
use std::io;
use std::mem;

use parking_lot::Mutex;

use super::record::CancelReason;
use super::registry::Id;
use crate::sync::contain_all;

/// The error of a task that has no output, because it was cancelled or panicked.
///
/// A task is also cancelled when its runtime ends, or had ended when the task was spawned. A closure of
/// [`spawn_blocking`](crate::spawn_blocking) is cancelled when the system starts no thread to run it.
pub struct JoinError {
    id: Id,
    cause: Cause,
}

/// Why a task has no output.
pub(super) enum Cause {
    Cancelled,
    /// No thread could be started for a blocking closure.
    NoThread(io::Error),
    /// The payload is behind a mutex, because it need not be `Sync` and an error should be. It is in a box, because
    /// every task's outcome is at least as large as this, and is moved several times.
    Panicked(Box<Mutex<Box<dyn Any + Send>>>),
}

impl Cause {
    // An echo costs 2.2 % more without this.
    #[cold]
    pub(super) fn cancelled(reason: CancelReason) -> Self {
        reason.errno().map_or(Self::Cancelled, |errno| Self::NoThread(io::Error::from_raw_os_error(errno)))
    }

    pub(super) fn panic(payload: Box<dyn Any + Send>) -> Self {
        Self::Panicked(Box::new(Mutex::new(payload)))
    }
}

/// The output of a task, or the cause of its absence. Unless it is taken, it is dropped, and a panic of that drop is
/// contained.
pub(super) struct Outcome<T>(Option<Result<T, Cause>>);

impl<T> Outcome<T> {
    pub(super) fn output(output: T) -> Self {
        Self(Some(Ok(output)))
    }

    pub(super) fn none(cause: Cause) -> Self {
        Self(Some(Err(cause)))
    }

    pub(super) fn take(mut self) -> Result<T, Cause> {
        let result = self.0.take();
        // Nothing is left in it to drop.
        mem::forget(self);
        result.expect("an outcome is taken once")
    }
}

impl<T> Outcome<Box<T>> {
    pub(super) fn unbox(self) -> Outcome<T> {
        Outcome(Some(self.take().map(|output| *output)))
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        if let Some(unwanted) = self.0.take() {
            contain_all(|| drop(unwanted));
        }
    }
}

impl JoinError {
    pub(super) fn new(id: Id, cause: Cause) -> Self {
        Self { id, cause }
    }

    /// Whether the task was cancelled: by an abort, by the end of its runtime, or because no thread could be started
    /// for its closure.
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

    /// The id of the task.
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
                // Copied out of the lock, because a formatter is foreign code.
                let message = panic_message(&**payload.lock());
                match message {
                    Some(message) => write!(f, "task {} panicked: {message}", self.id),
                    None => write!(f, "task {} panicked", self.id),
                }
            }
        }
    }
}

/// The text that `panic!` was given, if it was one.
fn panic_message(payload: &(dyn Any + Send)) -> Option<String> {
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

/// For handlers that return an [`io::Error`]: `task.await?`. The kind is that of the system's error if no thread could
/// be started for a closure, and else `Other`. The inner error is the [`JoinError`].
impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> Self {
        let kind = match &error.cause {
            Cause::NoThread(system) => system.kind(),
            Cause::Cancelled | Cause::Panicked(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl std::error::Error for JoinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::NoThread(error) => Some(error),
            Cause::Cancelled | Cause::Panicked(_) => None,
        }
    }
}
