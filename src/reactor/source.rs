//! Source: what the reactor knows of one socket.
//!
//! A source is made with its socket. The socket's operations and the reactor share it. It has two parts: the word
//! ([`Readiness`]), and behind a small mutex the [`Waiters`] and the registration with a reactor.
//!
//! # The rule
//! 1. An operation loads the word. If its direction is not ready, it goes to 4.
//! 2. It makes the system call.
//! 3. On `WouldBlock` it clears the direction ([`Source::clear`]). If an event has come since step 1 this fails, and
//!    the operation goes back to 1.
//! 4. It stores its waker under the mutex ([`Source::store`]), and there looks at the direction's tick once more. If an
//!    event has come since step 1, it goes back to 1. Otherwise it returns `Pending`. If no reactor watches the
//!    socket, it stores nothing, registers the socket, and goes back to 1.
//!
//! # The races
//! * A's read meets `WouldBlock`, B dispatches *readable*, A clears it. The kernel sends no second edge, so A's task
//!   would sleep for ever. Step 3 refuses that clear.
//! * A finds nothing ready, B dispatches *readable* and finds no waker, A stores its waker. B changes the word before
//!   it takes the mutex. So A sees the new tick, because A looks again while it holds the mutex (step 4).
//! * A stores its waker while the reactor ends. Either A is first, and the end wakes it, or A finds no registration.
//! * A stores its waker while a current-thread runtime stops turning its reactor. The runtime says so first
//!   ([`stop_turning`](super::registry::Registry::stop_turning)), and then wakes the waiters of each source under the
//!   source's mutex. Either A is first, and is woken, or A sees under the mutex that the reactor is not turned.
//!
//! # The life of a source
//! ```text
//!                  1 register                     2 event
//!  unregistered ---------------> registered <----------------+
//!       ^                          |     |                   |
//!       |  3 unregister, detach    |     +-------------------+
//!       +--------------------------+
//! ```
//! 1. [`Source::register`]: the first operation that waits asks its thread's reactor to watch the socket.
//! 2. [`Source::dispatch`] stores an event in the word and wakes the waiters.
//! 3. [`Source::unregister_if`]: the socket is dropped, handed out, or about to move to another reactor.
//!    [`Source::detach_if`]: the reactor ends, and all waiters are woken to try again elsewhere.
//!
//! The reactor knows nothing of an unregistered source. The source's word says that both directions are ready, except
//! after a short transfer and after one more race (see `readiness`). So the operations of such a socket make their
//! system call. An operation that has loaded the word of an unregistered source skips step 3. `readable` and `writable`
//! make no call that would say whether the socket is ready. They register it before they look.
//!
//! Pure: no mio, no I/O, no clock, no thread-local. `R`, the registration, is opaque here.

use std::task::Waker;

use parking_lot::Mutex;

use super::readiness::{Direction, Readiness, Report, Snapshot};
use super::waiters::{WaiterSlot, Waiters};
use crate::sync::wake_all;

/// The state that a socket's operations share with its reactor.
pub(crate) struct Source<R> {
    readiness: Readiness,
    inner: Mutex<Inner<R>>,
}

struct Inner<R> {
    /// The registration with the reactor that watches the socket. While the mutex is free, this is `None` exactly if
    /// the word says `UNREGISTERED`.
    registered: Option<R>,
    waiters: Waiters,
}

/// The result of [`Source::store`].
pub(crate) enum Stored {
    /// It is stored, and no event has come: the task may sleep.
    Sleep,
    /// It is stored, and an event has come: the operation tries again.
    Retry,
    /// The waker is not stored, for one of two reasons. No reactor watches the socket. Or no thread turns the reactor
    /// that watches it, and this thread would register it with another reactor. The caller registers the socket. The
    /// waker comes back, because dropping it is foreign code.
    Unregistered(Waker),
}

impl<R> Source<R> {
    /// A source that no reactor watches.
    pub(crate) fn new() -> Self {
        Self::with_readiness(Readiness::new())
    }

    /// As [`new`](Source::new), for a socket that accepts connections.
    pub(crate) fn of_listener() -> Self {
        Self::with_readiness(Readiness::of_listener())
    }

    fn with_readiness(readiness: Readiness) -> Self {
        let inner = Inner { registered: None, waiters: Waiters::default() };
        Self { readiness, inner: Mutex::new(inner) }
    }

    /// The word now.
    // An echo costs 1.4 % more without this.
    #[inline]
    pub(crate) fn load(&self) -> Snapshot {
        self.readiness.load()
    }

    /// Stores an event. Wakes the waiters of its directions whose wakers are the executor's and in a seat, and appends
    /// the wakers of the others to `wakers`, for the caller to wake.
    // Always inlined: for the usual event the report is a constant, and most of this falls away. Costs an echo 20
    // instructions otherwise.
    #[inline(always)]
    pub(crate) fn dispatch(&self, report: Report, wakers: &mut Vec<Waker>) {
        // Before the mutex is taken: see the second race.
        self.readiness.apply(report);
        let (reads, writes) = (report.concerns(Direction::Read), report.concerns(Direction::Write));
        self.inner.lock().waiters.wake(reads, writes, wakers);
    }

    /// Step 3 of the rule: `false` if an event has come since `seen`.
    pub(crate) fn clear(&self, direction: Direction, seen: Snapshot) -> bool {
        self.readiness.clear(direction, seen)
    }

    /// Step 4 of the rule in the usual case: the seat keeps the waker of the task that waits. `Some(true)` if the task
    /// may sleep, `Some(false)` if an event has come since `seen`. `None`, and nothing is done, in all other cases.
    pub(crate) fn wait_again(&self, direction: Direction, waker: &Waker, seen: Snapshot) -> Option<bool> {
        let mut inner = self.inner.lock();
        // If the seat has a waker, a reactor watches the socket, or another thread is just moving the socket to one:
        // the end of the reactor, `stop_turning` and a failed move all empty the seats. So the registration need not be
        // looked at here.
        if !inner.waiters.wait_again(direction, waker) {
            return None;
        }
        // Under the mutex: see the second race.
        let sleeps = self.readiness.is_unchanged(direction, seen);
        drop(inner);
        Some(sleeps)
    }

    /// Step 4 of the rule in all other cases. `arm` gets the registration, under the mutex, and prepares it for a wait.
    /// If it returns `false`, this thread registers the socket with another reactor, and the source counts as
    /// unregistered.
    pub(crate) fn store<E>(
        &self,
        direction: Direction,
        slot: &mut WaiterSlot<'_>,
        waker: Waker,
        is_executors: bool,
        seen: Snapshot,
        arm: impl FnOnce(&R) -> Result<bool, E>,
    ) -> Result<Stored, E> {
        let mut inner = self.inner.lock();
        match inner.registered.as_ref().map(arm) {
            Some(Ok(true)) => {}
            None | Some(Ok(false)) => return Ok(Stored::Unregistered(waker)),
            Some(Err(error)) => {
                drop(inner);
                return Err(error);
            }
        }
        let mut released = inner.waiters.store(direction, slot, waker, is_executors);
        // Under the mutex: see the second race.
        let sleeps = self.readiness.is_unchanged(direction, seen);
        drop(inner);
        drop(released.drop);
        wake_all(&mut released.wake);
        Ok(if sleeps { Stored::Sleep } else { Stored::Retry })
    }

    /// Runs `arm` with the registration, if there is one.
    pub(crate) fn arm<E>(&self, arm: impl FnOnce(&R) -> Result<(), E>) -> Result<(), E> {
        self.inner.lock().registered.as_ref().map_or(Ok(()), arm)
    }

    /// Wakes a direction's waiters although no event has come. They look for themselves.
    pub(crate) fn wake_waiters(&self, direction: Direction) {
        let mut wakers = Vec::new();
        let reads = direction == Direction::Read;
        self.inner.lock().waiters.wake(reads, !reads, &mut wakers);
        wake_all(&mut wakers);
    }

    /// Notes that this end has shut a direction down, and wakes its waiters.
    pub(crate) fn note_ended(&self, direction: Direction) {
        // Before the waiters are woken: see the second race.
        self.readiness.report_ended(direction);
        self.wake_waiters(direction);
    }

    /// Removes the waker of an operation that waits no longer.
    pub(crate) fn remove_waiter(&self, direction: Direction, key: u64) {
        let removed = self.inner.lock().waiters.remove(direction, key);
        drop(removed);
    }

    /// Registers the source, under its mutex: `register` tells the kernel. `Ok(false)` if it already is registered,
    /// because another thread was first.
    pub(crate) fn register<E>(&self, register: impl FnOnce() -> Result<R, E>) -> Result<bool, E> {
        let mut inner = self.inner.lock();
        if inner.registered.is_some() {
            return Ok(false);
        }
        self.readiness.set_registered();
        match register() {
            Ok(registered) => {
                inner.registered = Some(registered);
                Ok(true)
            }
            Err(error) => {
                self.readiness.set_unregistered();
                Err(error)
            }
        }
    }

    /// Makes the next operation in `direction` try, unless the source is registered.
    pub(crate) fn assume_ready(&self, direction: Direction) {
        let inner = self.inner.lock();
        if inner.registered.is_none() {
            self.readiness.assume_ready(direction);
        }
    }

    /// Ends the registration and wakes no waiter. `leave` runs under the mutex. If it returns `false`, the registration
    /// stays. If another thread may register the socket as soon as the mutex is free, `leave` must take the socket out
    /// of the kernel's set.
    pub(crate) fn unregister_if(&self, leave: impl FnOnce(&R) -> bool) -> Option<R> {
        let mut inner = self.inner.lock();
        let registered = inner.registered.take_if(|registered| leave(registered))?;
        self.readiness.set_unregistered();
        Some(registered)
    }

    /// Ends the registration because its reactor ends, if `condition` holds for it: the source may have moved to
    /// another reactor meanwhile. All waiters are moved to `wakers`, and so are the wakers that a seat keeps.
    pub(crate) fn detach_if(&self, wakers: &mut Vec<Waker>, condition: impl FnOnce(&R) -> bool) -> Option<R> {
        let mut inner = self.inner.lock();
        let registered = inner.registered.take_if(|registered| condition(registered))?;
        self.readiness.set_unregistered();
        inner.waiters.take_all(wakers);
        Some(registered)
    }

    /// Moves all waiters, and the wakers that a seat keeps, to `wakers`.
    pub(crate) fn take_waiters(&self, wakers: &mut Vec<Waker>) {
        self.inner.lock().waiters.take_all(wakers);
    }

    /// Shows the wakers of the tasks that wait, under the mutex.
    pub(crate) fn visit_waiters(&self, visit: impl FnMut(Direction, &Waker)) {
        self.inner.lock().waiters.visit(visit);
    }

    /// How many tasks wait for a direction.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn count(&self, direction: Direction) -> usize {
        self.inner.lock().waiters.count(direction)
    }
}
