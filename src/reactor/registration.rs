//! Registration: a socket's end of the reactor, and the loop that its operations run.
//!
//! ```text
//!  not ready ------------------------------+
//!      ^                                   v
//! load the word -> try the call -> WouldBlock -> clear -> store the waker, look again -> Pending
//!      ^                  |                        | an event came      | an event came, or the socket
//!      |                  |                        |                    | was unregistered: register it
//!      +------------------|------------------------+--------------------+
//!                         v
//!                       Ready
//! ```
//! The steps and the races that they close are in [`source`](super::source). The loop is
//! [`Registration::poll_operation`].
//!
//! # Shortcuts
//! * An unregistered socket tries first. Most operations succeed, and many sockets never register.
//! * Where a short transfer proves that the next call would meet `WouldBlock`, it counts as that
//!   ([`Registration::transferred`]). So the next operation waits at once, and if the socket is unregistered, it
//!   registers at once.
//!
//! # When an operation tries although the word says no
//! * The thread asks the kernel ([`budget::asks_kernel`]).
//! * Registering the socket fails. After a short transfer the operation has not tried yet, and no reactor would report
//!   the bytes that have come since ([`Source::assume_ready`]).

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::backend::{EDGE_TRIGGERED, SHORT_MEANS_DRAINED};
use super::interest::{Interest, Ready};
use super::readiness::{Direction, Snapshot};
use super::registry::{Registered, Registry, Source, no_runtime};
use super::source::Stored;
use super::waiters::WaiterSlot;
use crate::budget;
use crate::sync::{is_executors, wake_all};

/// A socket and its source.
pub(crate) struct Registration<S: AsFd> {
    // Declared, and so dropped, before the socket: the source leaves the reactor while the descriptor is still the
    // socket's.
    link: Link,
    socket: S,
}

/// Takes a source out of its reactor when it is dropped.
struct Link(Arc<Source>);

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(registered) = self.0.unregister_if(|_| true) {
            registered.leave();
        }
    }
}

/// The next step after a system call has failed.
enum Failed {
    /// The direction is not ready: the operation waits.
    Wait,
    /// An event has come, or a signal has interrupted the call: the operation tries again.
    Retry,
    /// The operation fails.
    With(io::Error),
}

impl<S: AsFd> Registration<S> {
    /// Takes a non-blocking socket. No reactor watches it yet.
    pub(crate) fn new(socket: S) -> Self {
        Self { link: Link(Arc::new(Source::new())), socket }
    }

    /// As [`new`](Registration::new), for a socket that accepts connections.
    pub(crate) fn of_listener(socket: S) -> Self {
        Self { link: Link(Arc::new(Source::of_listener())), socket }
    }

    pub(crate) fn socket(&self) -> &S {
        &self.socket
    }

    pub(crate) fn socket_mut(&mut self) -> &mut S {
        &mut self.socket
    }

    /// Takes the socket out of its reactor.
    pub(crate) fn into_socket(self) -> S {
        drop(self.link);
        self.socket
    }

    /// Runs `operation` as soon as the word says that it need not wait, or if the thread asks the kernel. Passes it the
    /// word that was loaded before the call. If the operation has to wait, its waker is stored in `slot`. If the budget
    /// is used up, nothing is stored: the task is queued again.
    pub(crate) fn poll_operation<R>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut slot: WaiterSlot<'_>,
        mut operation: impl FnMut(&S, Snapshot) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let source = &*self.link.0;
        loop {
            let seen = source.load();
            if seen.should_try(direction) || budget::asks_kernel() {
                ready!(budget::poll_proceed(cx));
                match operation(&self.socket, seen) {
                    Ok(result) => {
                        budget::spend();
                        return Poll::Ready(Ok(result));
                    }
                    Err(error) => match self.after_error(direction, seen, error) {
                        Failed::Wait => {}
                        Failed::Retry => continue,
                        Failed::With(error) => return Poll::Ready(Err(error)),
                    },
                }
            }
            if EDGE_TRIGGERED && matches!(slot, WaiterSlot::Seat) {
                match source.wait_again(direction, cx.waker(), seen) {
                    Some(true) => return Poll::Pending,
                    Some(false) => continue,
                    None => {}
                }
            }
            match self.wait(cx.waker(), direction, &mut slot, seen) {
                Ok(true) => return Poll::Pending,
                Ok(false) => {}
                // The operation fails in three cases. It has tried. Or the socket is registered, and arming it failed.
                // Or another thread has registered the socket after this one failed to. The last error is needless, but
                // to exclude it costs an echo 6 instructions.
                Err(error) if seen.should_try(direction) || source.load().is_registered() => {
                    return Poll::Ready(Err(error));
                }
                // The socket cannot be registered, and the bit was clear in `seen`, because of a short transfer or
                // because a reactor watched the socket when `seen` was loaded. The operation has not tried, unless the
                // thread asks the kernel.
                Err(_) => source.assume_ready(direction),
            }
        }
    }

    /// Step 3 of the rule.
    fn after_error(&self, direction: Direction, seen: Snapshot, error: io::Error) -> Failed {
        if would_block(&error) {
            return if self.clear(direction, seen) { Failed::Wait } else { Failed::Retry };
        }
        budget::spend();
        if error.kind() == io::ErrorKind::Interrupted { Failed::Retry } else { Failed::With(error) }
    }

    /// Clears a direction, unless the socket was unregistered in `seen`: then the direction stays ready, so that each
    /// operation tries. Returns `false` only if an event has come since. So `true` means that the operation may wait.
    fn clear(&self, direction: Direction, seen: Snapshot) -> bool {
        !seen.is_registered() || self.link.0.clear(direction, seen)
    }

    /// Stores the waker, or registers the socket. Returns `true` if the task may sleep. `false` if an event has come or
    /// the socket was registered: the loop goes round once more.
    ///
    /// The loop calls it if [`Source::wait_again`] did nothing, or was not called. That is so if the seat is empty or
    /// has another task's waker, if the waker is foreign, if the operation waits in the list, and if the backend has no
    /// edges.
    fn wait(&self, waker: &Waker, direction: Direction, slot: &mut WaiterSlot<'_>, seen: Snapshot) -> io::Result<bool> {
        let arm = |registered: &Registered| registered.arm(self.fd());
        // To clone a waker is foreign code, so it comes before the lock.
        let stored = self.link.0.store(direction, slot, waker.clone(), is_executors(waker), seen, arm)?;
        match stored {
            Stored::Sleep => return Ok(true),
            Stored::Retry => {}
            // Registering clears the direction's bit, so the loop mostly makes no call in its next round and stores the
            // waker. If the socket is already ready, the kernel reports that at once, and the event wakes the task.
            Stored::Unregistered(waker) => {
                let registered = self.register();
                drop(waker);
                registered?;
            }
        }
        Ok(false)
    }

    // A served echo costs 1.0 % more without this.
    #[inline(never)]
    fn register(&self) -> io::Result<()> {
        let registry = Registry::current().ok_or_else(no_runtime)?;
        let fd = self.fd();
        let idle = self.link.0.unregister_if(|registered| registered.leave_if_idle_elsewhere(fd));
        if let Some(idle) = &idle {
            drop(idle.leave_table());
        }
        let registered = registry.register(&self.link.0, fd);
        if idle.is_some() && registered.is_err() {
            // No reactor watches for the other waiters any more. They try again, and register the socket or get the
            // error too. No seat of an unregistered socket may keep a waker: `wait_again` relies on that.
            let mut wakers = Vec::new();
            self.link.0.take_waiters(&mut wakers);
            wake_all(&mut wakers);
        }
        registered
    }

    fn fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }

    /// Notes that a transfer on a stream has moved `transferred` bytes of at most `capacity`. A short one may prove
    /// that the kernel's buffer is empty, or full after a write ([`SHORT_MEANS_DRAINED`]). The next operation then
    /// waits without a system call. For a socket whose short transfers prove nothing,
    /// the caller passes one number twice.
    pub(crate) fn transferred(&self, direction: Direction, seen: Snapshot, capacity: usize, transferred: usize) {
        budget::count_moved(transferred);
        let is_short = transferred < capacity && transferred > 0;
        if SHORT_MEANS_DRAINED && is_short && seen.allows_short_rule() {
            self.link.0.clear(direction, seen);
        }
    }

    /// Runs `operation` now, and does not wait. A call that a signal interrupts is made again.
    pub(crate) fn try_operation<R>(
        &self,
        direction: Direction,
        mut operation: impl FnMut(&S, Snapshot) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match self.try_io(direction.into(), &mut operation) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Makes a system call now, once. `WouldBlock` clears the directions of `interest`.
    pub(crate) fn try_io<R>(
        &self,
        interest: Interest,
        call: impl FnOnce(&S, Snapshot) -> io::Result<R>,
    ) -> io::Result<R> {
        let seen = self.load();
        let result = call(&self.socket, seen);
        if result.as_ref().is_err_and(would_block) {
            self.clear_ready(interest, seen)?;
        }
        result
    }

    /// Clears the directions of `interest`, except those that an event has reported since `seen`.
    ///
    /// `WouldBlock` does not say which of two directions is not ready. If one of them is ready, the kernel has reported
    /// it and does not do so again, so clearing it would let its waiters sleep for ever. So of two directions this
    /// clears only those that poll(2) does not find ready. A direction that this end has shut down is never
    /// cleared here, even if the caller's call met `WouldBlock`. Other operations find the ended flag in the word.
    pub(crate) fn clear_ready(&self, interest: Interest, seen: Snapshot) -> io::Result<()> {
        if !seen.is_registered() {
            return Ok(());
        }
        let mut cleared = false;
        for direction in interest.directions() {
            let is_ready =
                seen.has_ended(direction) || (interest.is_both() && is_ready_beside_errors(&self.socket, direction));
            cleared |= !is_ready && self.clear(direction, seen);
        }
        if cleared { self.link.0.arm(|registered| registered.rearm(self.fd())) } else { Ok(()) }
    }

    /// Makes a system call that the caller passes, again and again until its result is neither `WouldBlock` nor
    /// `Interrupted`. Waits for an event in a direction of `interest` in between. The outer error is that of the wait,
    /// the inner one the call's.
    pub(crate) async fn async_io<R>(
        &self,
        interest: Interest,
        mut call: impl FnMut(&S) -> io::Result<R>,
    ) -> io::Result<io::Result<R>> {
        let mut waits = self.waits();
        poll_fn(|cx| {
            loop {
                ready!(budget::poll_proceed(cx));
                // Before the call, so that `poll_event` notices an event which comes after the load.
                let seen = self.load();
                match call(&self.socket) {
                    // Not `poll_reported`, which does not wait while a direction is ready. Of two directions, the one
                    // that the call does not need may be ready all the time.
                    Err(error) if would_block(&error) => {
                        self.clear_ready(interest, seen)?;
                        ready!(waits.poll_event(cx, interest, seen))?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => budget::spend(),
                    result => {
                        budget::spend();
                        return Poll::Ready(Ok(result));
                    }
                }
            }
        })
        .await
    }

    /// As [`poll_operation`](Registration::poll_operation), as a future. It waits in the list.
    pub(crate) async fn operate<R>(
        &self,
        direction: Direction,
        mut operation: impl FnMut(&S, Snapshot) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut wait = self.waiter(direction);
        poll_fn(|cx| wait.poll_operation(cx, &mut operation)).await
    }

    /// The word now.
    pub(crate) fn load(&self) -> Snapshot {
        self.link.0.load()
    }

    /// Waits until the reactor reports a direction of `interest` ready. Also returns the word that says so.
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<(Ready, Snapshot)> {
        let mut waits = self.waits();
        poll_fn(|cx| waits.poll_ready(cx, interest)).await
    }

    /// Waits until the reactor reports a direction ready.
    pub(crate) async fn reported(&self, direction: Direction) -> io::Result<Snapshot> {
        let mut wait = self.waiter(direction);
        poll_fn(|cx| self.poll_reported(cx, direction, wait.slot())).await
    }

    /// Returns the word once the reactor has reported a direction ready. Unlike an operation, it cannot just try. So it
    /// registers an unregistered socket first, and the kernel reports what is already so.
    pub(crate) fn poll_reported(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut slot: WaiterSlot<'_>,
    ) -> Poll<io::Result<Snapshot>> {
        loop {
            let seen = self.load();
            if seen.is_reported(direction) {
                ready!(budget::poll_spend(cx));
                return Poll::Ready(Ok(seen));
            }
            ready!(self.poll_event(cx, direction, &mut slot, seen))?;
        }
    }

    /// Waits for an event that comes after `seen` was loaded, also if the direction is ready. If this registers the
    /// socket, it returns without an event.
    pub(crate) fn poll_event(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        slot: &mut WaiterSlot<'_>,
        seen: Snapshot,
    ) -> Poll<io::Result<()>> {
        let sleeps = self.wait(cx.waker(), direction, slot, seen)?;
        if sleeps { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Notes that this end has shut a direction down. For sockets where no event reports that, or where the system call
    /// does not say it in its result. Called after shutdown(2): the operations that this wakes make their system
    /// call again, and the word that they get says so ([`Snapshot::has_ended`]).
    pub(crate) fn note_ended(&self, direction: Direction) {
        self.link.0.note_ended(direction);
    }

    /// Polls for the result of `peek`, a call that leaves what it returns in the kernel.
    ///
    /// The peek may have to wait although a reader would get something: bytes before the offset of `SO_PEEK_OFF`
    /// (socket(7)), or bytes that arrived between the call and poll(2). The direction then stays ready, because the
    /// kernel would not report those bytes to a reader again.
    pub(crate) fn poll_peek<R>(
        &self,
        cx: &mut Context<'_>,
        mut slot: WaiterSlot<'_>,
        mut peek: impl FnMut(&S, Snapshot) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let mut peek = |socket: &S, seen| match peek(socket, seen) {
            // `Ok`, so that the direction is not cleared. The inner error says that the peek waits for the next event.
            Err(error) if would_block(&error) && is_ready_now(socket, Direction::Read) => Ok(Err(seen)),
            peeked => peeked.map(Ok),
        };
        loop {
            match ready!(self.poll_operation(cx, Direction::Read, slot.reborrow(), &mut peek))? {
                Ok(peeked) => return Poll::Ready(Ok(peeked)),
                // With mio's backend for poll(2) each turn reports the direction again, and the peek is made in vain.
                // Only Linux has SO_PEEK_OFF, and Linux needs that backend in tests alone.
                Err(seen) => ready!(self.poll_event(cx, Direction::Read, &mut slot, seen))?,
            }
        }
    }

    /// A waker that wakes the tasks that wait for this direction.
    pub(crate) fn waker(&self, direction: Direction) -> Waker {
        Waker::from(Arc::new(WaitersOf { source: self.link.0.clone(), direction }))
    }

    /// A place in the list, for one operation or several.
    pub(crate) fn waiter(&self, direction: Direction) -> Wait<'_, S> {
        Wait { registration: self, direction, key: None }
    }

    fn waits(&self) -> Waits<'_, S> {
        Waits { read: self.waiter(Direction::Read), write: self.waiter(Direction::Write) }
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether poll(2) finds a direction ready. Also true if poll(2) fails: a system call reports the error.
pub(crate) fn is_ready_now(socket: &impl AsFd, direction: Direction) -> bool {
    poll_now(socket, flag(direction)).map_or(true, |found| !found.is_empty())
}

/// As [`is_ready_now`], for a caller whose system call has met `WouldBlock`. An error that poll(2) finds does not
/// count, unless it comes with a hang-up: the call would have returned an error of the socket. So it is an entry in the
/// error queue, which poll(2) reports until the program takes it, and which makes neither reads nor writes ready.
fn is_ready_beside_errors(socket: &impl AsFd, direction: Direction) -> bool {
    poll_now(socket, flag(direction)).map_or(true, |found| !found.difference(PollFlags::ERR).is_empty())
}

fn flag(direction: Direction) -> PollFlags {
    match direction {
        Direction::Read => PollFlags::IN,
        Direction::Write => PollFlags::OUT,
    }
}

/// Which of these flags poll(2) finds now, and which of those that it always reports: an error and a hang-up.
pub(crate) fn poll_now(fd: &impl AsFd, flags: PollFlags) -> rustix::io::Result<PollFlags> {
    let mut entry = [PollFd::new(fd, flags)];
    poll(&mut entry, Some(&Timespec::default()))?;
    Ok(entry[0].revents())
}

/// The waiters of one direction, as one waker.
struct WaitersOf {
    source: Arc<Source>,
    direction: Direction,
}

impl Wake for WaitersOf {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.source.wake_waiters(self.direction);
    }
}

/// An operation that waits in the list of its direction, until it is dropped.
pub(crate) struct Wait<'a, S: AsFd> {
    registration: &'a Registration<S>,
    direction: Direction,
    /// Its key in the list, once it has waited.
    key: Option<u64>,
}

impl<S: AsFd> Wait<'_, S> {
    /// Runs `operation` once it need not wait. Passes it the word that was loaded before the call.
    pub(crate) fn poll_operation<R>(
        &mut self,
        cx: &mut Context<'_>,
        operation: impl FnMut(&S, Snapshot) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let slot = WaiterSlot::Listed(&mut self.key);
        let poll = self.registration.poll_operation(cx, self.direction, slot, operation);
        if poll.is_ready() {
            self.remove_waiter();
        }
        poll
    }

    /// The operation's place in the list. An event empties the list, and the next wait takes a new place. A waker that
    /// is left there is removed when [`poll_operation`](Wait::poll_operation) is ready, or by the drop.
    pub(crate) fn slot(&mut self) -> WaiterSlot<'_> {
        WaiterSlot::Listed(&mut self.key)
    }

    fn remove_waiter(&mut self) {
        if let Some(key) = self.key.take() {
            self.registration.link.0.remove_waiter(self.direction, key);
        }
    }
}

impl<S: AsFd> Drop for Wait<'_, S> {
    fn drop(&mut self) {
        self.remove_waiter();
    }
}

/// A wait for one direction or both.
struct Waits<'a, S: AsFd> {
    read: Wait<'a, S>,
    write: Wait<'a, S>,
}

impl<S: AsFd> Waits<'_, S> {
    /// Returns once the reactor has reported a direction of `interest`, as [`Registration::poll_reported`].
    fn poll_ready(&mut self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<(Ready, Snapshot)>> {
        loop {
            let seen = self.read.registration.load();
            if let Some(ready) = Ready::reported(interest, seen) {
                ready!(budget::poll_spend(cx));
                return Poll::Ready(Ok((ready, seen)));
            }
            ready!(self.poll_event(cx, interest, seen))?;
        }
    }

    /// Waits for an event in a direction of `interest` that `seen` does not have, as [`Registration::poll_event`].
    fn poll_event(&mut self, cx: &mut Context<'_>, interest: Interest, seen: Snapshot) -> Poll<io::Result<()>> {
        for direction in interest.directions() {
            let wait = match direction {
                Direction::Read => &mut self.read,
                Direction::Write => &mut self.write,
            };
            let registration = wait.registration;
            if registration.poll_event(cx, direction, &mut wait.slot(), seen)?.is_ready() {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// An interrupted call says nothing of the socket. Reported, it would be an error of the connection.
    #[test]
    fn interrupted_call_is_made_again() {
        let (socket, _peer) = UnixStream::pair().expect("a pair of sockets");
        let registration = Registration::new(socket);
        let mut calls = 0;
        let mut operation = |_: &UnixStream, _| {
            calls += 1;
            if calls % 3 == 0 { Ok(7) } else { Err(io::Error::from(io::ErrorKind::Interrupted)) }
        };
        let mut cx = Context::from_waker(Waker::noop());
        let polled = registration.poll_operation(&mut cx, Direction::Read, WaiterSlot::Seat, &mut operation);
        assert!(matches!(polled, Poll::Ready(Ok(7))), "{polled:?}");
        let tried = registration.try_operation(Direction::Write, &mut operation);
        assert!(matches!(tried, Ok(7)), "{tried:?}");
        assert_eq!(calls, 6);
    }
}
