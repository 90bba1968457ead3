//! The acceptor: a listener, the descriptor in reserve, and the backoff after failures.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::accept_backoff::{self, AcceptBackoff, Consequence};
use super::connections::Connections;
use super::report::Failure;
use crate::net::listener::Listener;
use crate::trace;

/// Connections that are accepted while the queue is emptied, or turned away, before the worker runs other tasks. This
/// bounds the work of a poll although these attempts spend no budget.
pub(super) const BATCH: usize = 64;

/// A listener that accepts until that fails for good, or until it was stopped and its queue is empty.
pub(super) struct Acceptor<L> {
    /// A descriptor to close when no other is left. `None` if the listener has none, or if it could not be opened.
    /// Declared, and so closed, before the listener.
    reserve: Option<OwnedFd>,
    listener: L,
    backoff: AcceptBackoff,
    /// The reserve is being used to turn away the clients in the queue, until a descriptor is free or the queue is
    /// empty.
    turning_away: bool,
    /// `Some` once the server stops. No attempt waits for a client then, and failures are not reported. The number is
    /// how many clients may still be taken off the queue.
    left: Option<usize>,
}

/// A connection; `None` if the attempt has failed and another one may succeed; or a fatal error.
type Attempt<L> = io::Result<Option<(<L as Listener>::Stream, <L as Listener>::Addr)>>;

impl<L: Listener> Acceptor<L> {
    pub(super) fn new(listener: L) -> Self {
        let reserve = listener.reserve();
        Self { listener, reserve, backoff: AcceptBackoff::default(), turning_away: false, left: None }
    }

    /// From now on accepts only the connections in the queue, and at most `max` of them. The next attempt is made at
    /// once.
    pub(super) fn stop(&mut self, max: usize) {
        self.left = Some(max);
        self.turning_away = false;
        self.backoff.retry_at_once();
    }

    /// Whether the server stops, and has taken as many clients off the queue as it may.
    pub(super) fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// Counts a client that is no longer in the queue.
    fn count(&mut self) {
        self.left = self.left.map(|left| left.saturating_sub(1));
    }

    /// Makes one attempt to accept a connection, once the backoff allows it. An empty queue is an error if the server
    /// stops.
    pub(super) fn poll_attempt(
        &mut self,
        cx: &mut Context<'_>,
        connections: &Connections<L::Addr>,
    ) -> Poll<Attempt<L>> {
        if !self.turning_away {
            ready!(self.backoff.poll_over(cx, connections));
        }
        // Before the attempt: a connection that ends during it may have freed a descriptor.
        let open = connections.len();
        // Between two batches of clients that are turned away this is a look whether a descriptor is free. Without it,
        // clients that reconnect at once would be turned away for ever.
        let accepted = if self.turning_away || self.left.is_some() {
            self.listener.try_accept()
        } else {
            ready!(self.listener.poll_accept(cx))
        };
        Poll::Ready(match accepted {
            Ok(connection) => {
                self.succeeded();
                self.count();
                Ok(Some(connection))
            }
            Err(error) if self.turning_away && accept_backoff::lacks_descriptors(&error) => {
                ready!(self.poll_turn_away(cx, connections));
                Ok(None)
            }
            Err(error) if self.turning_away && error.kind() == io::ErrorKind::WouldBlock => {
                self.end_turning_away(&error);
                Ok(None)
            }
            // The listener is still ready, so the next attempt needs no event.
            Err(error) => self.failed(error, open, connections).map(|()| None),
        })
    }

    fn succeeded(&mut self) {
        self.turning_away = false;
        if self.backoff.succeeded() && self.reserve.is_none() {
            self.reserve = self.listener.reserve();
        }
    }

    /// Passes over an error after which the next attempt may succeed at once. Reports a fatal error and returns it. Any
    /// other one starts a wait, and is reported unless the last wait still runs. `open` connections were open before
    /// the attempt.
    fn failed(&mut self, error: io::Error, open: usize, connections: &Connections<L::Addr>) -> io::Result<()> {
        if self.backoff.passes_over(&error) {
            // Such an error takes a client off the queue, as a rule.
            self.count();
            return Ok(());
        }
        if !accept_backoff::may_retry_later(&error) {
            self.report(&error, None, connections);
            return Err(error);
        }
        let consequence = self.backoff.failed(&error, open);
        self.turning_away = consequence == Consequence::TurnAway && self.reserve.is_some();
        if consequence != Consequence::SameWait {
            self.report(&error, self.backoff.last_wait(), connections);
        }
        if self.turning_away {
            trace::clients_refused();
        }
        Ok(())
    }

    fn report(&self, error: &io::Error, retry_after: Option<Duration>, connections: &Connections<L::Addr>) {
        if self.left.is_none() {
            trace::accept_failed(error, retry_after);
            connections.report_error(&Failure::Accept(error));
        }
    }

    /// Accepts with the descriptor of the reserve and closes the connection, for each client in the queue.
    ///
    /// `Ready` in three cases: the queue is empty, a server that stops has come to [its limit](Self::is_done), or
    /// accepting fails, for example because another thread has taken the descriptor. `Pending` after [`BATCH`] clients:
    /// the worker runs other tasks first.
    pub(super) fn poll_turn_away(&mut self, cx: &mut Context<'_>, connections: &Connections<L::Addr>) -> Poll<()> {
        self.reserve = None;
        for _ in 0..BATCH {
            if self.is_done() {
                return Poll::Ready(());
            }
            match self.listener.try_accept() {
                Ok(_) => {
                    connections.refuse();
                    self.count();
                }
                // This takes a client off the queue, too.
                Err(error) if accept_backoff::may_retry_at_once(&error) => self.count(),
                Err(error) => {
                    self.reserve = self.listener.reserve();
                    self.end_turning_away(&error);
                    return Poll::Ready(());
                }
            }
        }
        self.reserve = self.listener.reserve();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Turning clients away has ended with `error`. If the queue is empty, the next client is accepted without a wait.
    fn end_turning_away(&mut self, error: &io::Error) {
        self.turning_away = false;
        if error.kind() == io::ErrorKind::WouldBlock {
            self.backoff.retry_at_once();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;
    use std::task::Waker;

    use super::super::connections::Guard;
    use super::*;

    /// A listener without descriptors. During the first attempt a connection ends.
    struct Full {
        open: RefCell<Option<Guard<u32>>>,
        attempts: Cell<u32>,
    }

    impl Listener for &Full {
        type Stream = ();
        type Addr = u32;

        fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<((), u32)>> {
            self.attempts.set(self.attempts.get() + 1);
            drop(self.open.take());
            Poll::Ready(Err(io::Error::from_raw_os_error(libc::EMFILE)))
        }
    }

    /// A connection that ends while an attempt fails may have freed a descriptor. The next attempt comes at once, and
    /// not after the wait.
    #[test]
    fn end_beside_failure_is_seen() {
        let connections = Arc::new(Connections::new(None, Arc::default()));
        let full = Full { open: RefCell::new(Some(connections.insert(7, 0))), attempts: Cell::new(0) };
        let (mut acceptor, mut cx) = (Acceptor::new(&full), Context::from_waker(Waker::noop()));
        for attempt in 1..=2 {
            assert!(acceptor.poll_attempt(&mut cx, &connections).is_ready(), "the server waits");
            assert_eq!(full.attempts.get(), attempt);
        }
    }
}
