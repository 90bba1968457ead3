//! Registration: the loop that every operation of every socket runs.
//!
//! ```text
//!  not ready ------------------------------+
//!      ^                                   v
//! look at the word -> try the call -> WouldBlock -> clear -> [bind] -> store the waker -> look again -> Pending
//!      ^                  |                           | an event came         | an event came
//!      +------------------|---------------------------+-----------------------+
//!                         v
//!                       Ready
//! ```
//! The steps and the races they close are in [`source`](super::source). Two shortcuts are
//! taken here. An unbound socket is tried before anything is registered, unless it has just been, and a
//! short transfer on a stream ([`Registration::poll_transfer`]) counts as the `WouldBlock`
//! that the next call would meet. One detour: [`ask_kernel`] tries the call of a socket that is not ready.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use super::source::{Place, State, Stored};
use super::{Binding, Direction, EDGE_TRIGGERED, Registry, SHORT_MEANS_DRAINED, Source, ended, no_runtime};
use crate::budget;
use crate::sync::{is_ours, wake_all};

/// A socket, and its source.
pub(crate) struct Registration<S: AsFd> {
    // Declared, and so dropped, before the socket: it must leave the reactor
    // while its descriptor is still its own.
    link: Link,
    socket: S,
}

/// A socket that may keep account of its transfers. It is told only of those in directions that are
/// [observed](Registration::observe): the others cost nothing.
pub(crate) trait Observer {
    /// An operation is over, and has moved bytes or not.
    fn settled(&self, direction: Direction, moved: bool) {
        let _ = (direction, moved);
    }

    /// An operation has to wait; `Ready` if it is not to, and why. If there is something to do all the same, it is done.
    fn poll_waiting(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<io::Error> {
        let _ = (cx, direction);
        Poll::Pending
    }
}

/// A plain one keeps none.
impl Observer for UnixStream {}

/// Keeps a source in its reactor's table, and takes it out when dropped.
struct Link(Arc<Source>);

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(binding) = self.0.unbind() {
            binding.unbind();
        }
    }
}

impl<S: AsFd> Registration<S> {
    /// Takes a non-blocking socket. It is not registered anywhere yet.
    pub(crate) fn new(socket: S) -> Self {
        Self { link: Link(Arc::new(Source::new())), socket }
    }

    #[inline]
    pub(crate) fn socket(&self) -> &S {
        &self.socket
    }

    /// Takes the socket out of its reactor.
    pub(crate) fn into_socket(self) -> S {
        drop(self.link);
        self.socket
    }

    /// Runs `operation` when it can go on, and tells it whether the reactor has reported so. As with a poll trait's, the last
    /// poll's waker is woken.
    pub(crate) fn poll_operation<R>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut operation: impl FnMut(&S, bool) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.poll_in(cx, direction, Place::Poll, |socket, seen| {
            let result = operation(socket, seen.is_reported(direction))?;
            if seen.is_orphaned() {
                self.forgive(direction);
            }
            Ok(result)
        })
    }

    #[inline]
    fn is_observed(&self, direction: Direction) -> bool {
        self.link.0.state().is_observed(direction)
    }

    /// Begins or ceases to tell of the operations in a direction. Whoever waits is to be [woken](Registration::waker) then.
    pub(crate) fn observe(&self, direction: Direction, observed: bool) {
        self.link.0.set_observed(direction, observed);
    }

    /// Waits until the reactor reports this direction ready.
    pub(crate) async fn ready(&self, direction: Direction) -> io::Result<()> {
        let mut wait = self.wait(direction);
        poll_fn(|cx| wait.poll_reported(cx)).await
    }

    /// Wakes whoever waits for this direction.
    pub(crate) fn waker(&self, direction: Direction) -> Waker {
        Waker::from(Arc::new(Waiting { source: self.link.0.clone(), direction }))
    }

    /// Waits in the list of the `&self` operations, for one operation or several.
    pub(crate) fn wait(&self, direction: Direction) -> Wait<'_, S> {
        Wait { registration: self, direction, key: None }
    }

    /// The operation did not have to go on waiting: the end of a reactor is none of its business, and nothing is lost.
    #[cold]
    fn forgive(&self, direction: Direction) {
        let _ = self.link.0.take_lost(direction, &mut Place::Poll);
    }

    /// The loop. `operation` is told the state it is run in.
    #[inline]
    fn poll_in<R>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut place: Place<'_>,
        mut operation: impl FnMut(&S, State) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let source = &*self.link.0;
        loop {
            let seen = source.state();
            if seen.should_try(direction) || ASKS_KERNEL.get() {
                ready!(budget::poll_proceed(cx));
                match operation(&self.socket, seen) {
                    Ok(result) => {
                        budget::spend();
                        return Poll::Ready(Ok(result));
                    }
                    Err(error) => match self.after_error(direction, seen, error) {
                        Failed::Wait => {}
                        Failed::Again => continue,
                        Failed::With(error) => return Poll::Ready(Err(error)),
                    },
                }
            }
            if EDGE_TRIGGERED && matches!(place, Place::Poll) {
                match source.store_again(direction, cx.waker(), seen) {
                    Some(true) => return Poll::Pending,
                    Some(false) => continue,
                    None => {}
                }
            }
            if self.wait_in_line(cx.waker(), direction, &mut place, seen)? {
                return Poll::Pending;
            }
        }
    }

    /// Step 3 of the rule. Not part of the loop, which mostly has no error to look at and to drop.
    #[inline(never)]
    fn after_error(&self, direction: Direction, seen: State, error: io::Error) -> Failed {
        if error.kind() == io::ErrorKind::WouldBlock {
            return if self.link.0.clear_known(direction, seen) { Failed::Wait } else { Failed::Again };
        }
        budget::spend();
        if error.kind() == io::ErrorKind::Interrupted { Failed::Again } else { Failed::With(error) }
    }

    /// Stores the waker; `true` if the task is to sleep, `false` if an event has come since `seen`. What
    /// [`store_again`](super::source::Source::store_again) leaves over comes here: the task waits for the first time, its waker
    /// is not ours, or others wait too.
    #[cold]
    fn wait_in_line(
        &self,
        waker: &Waker,
        direction: Direction,
        place: &mut Place<'_>,
        seen: State,
    ) -> io::Result<bool> {
        let is_ours = is_ours(waker);
        // Cloning a waker is foreign code too, so it comes before the lock.
        match self.link.0.store(direction, place, waker.clone(), is_ours, seen, Binding::rearm)? {
            Stored::Sleep => return Ok(true),
            Stored::Again => {}
            Stored::Lost => return Err(ended()),
            // A bound socket reports what is already so, and that event ends the wait if it need not be.
            Stored::Unbound(waker) => {
                let bound = self.bind();
                drop(waker);
                match bound {
                    // Nobody will tell whoever has not tried, because the last transfer was short: it tries.
                    Err(_) if !seen.should_try(direction) => self.link.0.doubt(direction),
                    bound => bound?,
                }
            }
        }
        Ok(false)
    }

    #[cold]
    fn bind(&self) -> io::Result<()> {
        let registry = Registry::current().ok_or_else(no_runtime)?;
        registry.bind(&self.link.0, self.socket.as_fd().as_raw_fd())
    }
}

/// What follows from an error of the system call.
enum Failed {
    /// The direction is not ready: wait.
    Wait,
    /// An event has come, or the call was interrupted: look again.
    Again,
    /// That is the result.
    With(io::Error),
}

impl<S: AsFd + Observer> Registration<S> {
    /// Runs `transfer` when it can go on; what it returns is a number of bytes.
    ///
    /// `full` is what it would return if it could: when it returns less, but not
    /// nothing, the kernel's buffer is drained and the next call waits
    /// without asking. `None` where that does not follow.
    #[inline]
    pub(crate) fn poll_transfer(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        full: Option<usize>,
        mut transfer: impl FnMut(&S) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let poll = self.poll_in(cx, direction, Place::Poll, |socket, seen| {
            let transferred = transfer(socket)?;
            self.after_transfer(direction, seen, full, transferred);
            Ok(transferred)
        });
        match poll {
            Poll::Ready(Ok(transferred)) => Poll::Ready(Ok(transferred)),
            Poll::Ready(Err(error)) => {
                if self.is_observed(direction) {
                    self.socket.settled(direction, false);
                }
                Poll::Ready(Err(error))
            }
            // Asked after the waker is stored: whoever begins to observe wakes those who wait.
            Poll::Pending if self.is_observed(direction) => {
                let refused = ready!(self.socket.poll_waiting(cx, direction));
                Poll::Ready(self.last_look(cx, direction, full, transfer, refused))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The operation is not to wait. But what there is goes before that, and the reactor may not have heard of it yet.
    #[cold]
    #[inline(never)]
    fn last_look(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        full: Option<usize>,
        transfer: impl FnMut(&S) -> io::Result<usize>,
        refused: io::Error,
    ) -> io::Result<usize> {
        self.link.0.forget_poll(direction, cx.waker());
        match self.try_transfer(direction, full, transfer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(refused),
            result => result,
        }
    }

    /// Runs `transfer` once, now.
    pub(crate) fn try_transfer(
        &self,
        direction: Direction,
        full: Option<usize>,
        mut transfer: impl FnMut(&S) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let seen = self.link.0.state();
            match transfer(&self.socket) {
                Ok(transferred) => {
                    self.after_transfer(direction, seen, full, transferred);
                    return Ok(transferred);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.link.0.clear_known(direction, seen) {
                        self.link.0.rearm(Binding::rearm)?;
                    }
                    return Err(error);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if seen.is_observed(direction) {
                        self.socket.settled(direction, false);
                    }
                    return Err(error);
                }
            }
        }
    }

    #[inline]
    fn after_transfer(&self, direction: Direction, seen: State, full: Option<usize>, transferred: usize) {
        budget::count_moved(transferred);
        if !seen.is_plain(direction) {
            if seen.is_observed(direction) {
                self.socket.settled(direction, transferred > 0);
            }
            if seen.is_orphaned() {
                self.forgive(direction);
            }
            if !seen.allows_short_rule() {
                return;
            }
        }
        if SHORT_MEANS_DRAINED && full.is_some_and(|full| transferred < full) && transferred > 0 {
            self.link.0.clear(direction, seen);
        }
    }
}

thread_local! {
    /// What is polled here tries its system call even if its reactor has reported nothing.
    static ASKS_KERNEL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `poll`, in which operations on sockets ask the kernel itself, whatever they know: for a last look, when there is no
/// time to wait until a reactor, perhaps another worker's, has been told. They have a poll's budget for it.
pub(crate) fn ask_kernel<T>(poll: impl FnOnce() -> T) -> T {
    /// Also if `poll` panics.
    struct Restore(bool, budget::Saved);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASKS_KERNEL.set(self.0);
            budget::restore(self.1);
        }
    }
    let _restore = Restore(ASKS_KERNEL.replace(true), budget::suspend());
    budget::refill();
    poll()
}

/// Those who wait for one direction, as one waker.
struct Waiting {
    source: Arc<Source>,
    direction: Direction,
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut wakers = Vec::new();
        self.source.rouse(self.direction, &mut wakers);
        wake_all(&mut wakers);
    }
}

/// A future that waits in the list of its direction, until it is dropped.
pub(crate) struct Wait<'a, S: AsFd> {
    registration: &'a Registration<S>,
    direction: Direction,
    /// Its key in the list, once it has waited.
    key: Option<u64>,
}

impl<S: AsFd> Wait<'_, S> {
    /// Runs `operation` when it can go on, and tells it whether the reactor has reported so.
    pub(crate) fn poll_operation<R>(
        &mut self,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(&S, bool) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let (direction, place) = (self.direction, Place::Listed(&mut self.key));
        let operation = |socket: &S, seen: State| operation(socket, seen.is_reported(direction));
        let poll = self.registration.poll_in(cx, direction, place, operation);
        if poll.is_ready() {
            self.leave();
        }
        poll
    }

    /// Returns once the reactor has reported the direction ready. Unlike an
    /// operation, it cannot just try: an unbound socket is bound first, which
    /// reports what is already so.
    fn poll_reported(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (source, direction) = (&self.registration.link.0, self.direction);
        loop {
            let seen = source.state();
            let mut place = Place::Listed(&mut self.key);
            if seen.is_orphaned() && source.take_lost(direction, &mut place) {
                return Poll::Ready(Err(ended()));
            }
            if seen.is_reported(direction) {
                ready!(budget::poll_proceed(cx));
                budget::spend();
                return Poll::Ready(Ok(()));
            }
            if self.registration.wait_in_line(cx.waker(), direction, &mut place, seen)? {
                return Poll::Pending;
            }
        }
    }
}

impl<S: AsFd> Wait<'_, S> {
    /// It waits no longer: its waker is not to be woken, and the end of a reactor is none of its business.
    fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            self.registration.link.0.forget(self.direction, key);
        }
    }
}

impl<S: AsFd> Drop for Wait<'_, S> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interrupted call says nothing of the socket: reported, it would be an error of the connection.
    #[test]
    fn an_interrupted_transfer_is_done_again() {
        let (socket, _peer) = UnixStream::pair().expect("a pair of sockets");
        let registration = Registration::new(socket);
        let mut calls = 0;
        let mut transfer = |_: &UnixStream| {
            calls += 1;
            if calls % 3 == 0 { Ok(7) } else { Err(io::Error::from(io::ErrorKind::Interrupted)) }
        };
        let mut cx = Context::from_waker(Waker::noop());
        let polled = registration.poll_transfer(&mut cx, Direction::Read, None, &mut transfer);
        assert!(matches!(polled, Poll::Ready(Ok(7))), "{polled:?}");
        let tried = registration.try_transfer(Direction::Write, None, &mut transfer);
        assert!(matches!(tried, Ok(7)), "{tried:?}");
        assert_eq!(calls, 6);
    }
}
