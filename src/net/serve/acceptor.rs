//! The acceptor: a listener, the descriptor in reserve, and the backoff after failures.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use super::accept_backoff::{self, AcceptBackoff, Failure};
use super::connections::Connections;
use super::report::ServeError;
use crate::net::listener::Listener;

/// Connections that are accepted while the queue is emptied, or turned away, before the worker runs other tasks. The
/// listener need not spend the task's budget.
pub(super) const BATCH: usize = 64;

/// A listener that accepts until that fails for good.
pub(super) struct Acceptor<L> {
    listener: L,
    /// A descriptor to close when no other is left. `None` if the listener has none, or if it could not be opened.
    reserve: Option<OwnedFd>,
    backoff: AcceptBackoff,
    /// The reserve is being used to turn away the clients in the queue.
    turning_away: bool,
}

/// A connection; `None` if the attempt has failed and another one may succeed; or a fatal error.
type Attempt<L> = io::Result<Option<(<L as Listener>::Stream, <L as Listener>::Addr)>>;

impl<L: Listener> Acceptor<L> {
    pub(super) fn new(listener: L) -> Self {
        let reserve = listener.reserve();
        Self { listener, reserve, backoff: AcceptBackoff::default(), turning_away: false }
    }

    /// Returns the listener. The reserve is closed.
    pub(super) fn into_listener(self) -> L {
        self.listener
    }

    /// Makes one attempt to accept a connection, once the backoff allows it.
    pub(super) fn poll_attempt(
        &mut self,
        cx: &mut Context<'_>,
        connections: &Connections<L::Addr>,
    ) -> Poll<Attempt<L>> {
        if self.turning_away {
            ready!(self.poll_turn_away(cx, connections));
        }
        ready!(self.backoff.poll_over(cx, connections));
        Poll::Ready(match ready!(self.listener.poll_accept(cx)) {
            Ok(connection) => {
                self.succeeded();
                Ok(Some(connection))
            }
            // The listener is still ready, so the next attempt needs no event.
            Err(error) => self.failed(error, connections).map(|()| None),
        })
    }

    fn succeeded(&mut self) {
        if self.backoff.succeeded() && self.reserve.is_none() {
            self.reserve = self.listener.reserve();
        }
    }

    /// Passes over an error of one connection. Reports any other one, and starts a wait. Returns the error if it is
    /// fatal.
    fn failed(&mut self, error: io::Error, connections: &Connections<L::Addr>) -> io::Result<()> {
        if accept_backoff::is_of_one_connection(&error) {
            return Ok(());
        }
        if !accept_backoff::may_pass(&error) {
            connections.report_error(&ServeError::Accept(&error));
            return Err(error);
        }
        let failure = self.backoff.failed(&error, connections.len());
        self.turning_away = failure == Failure::TurnAway && self.reserve.is_some();
        if failure != Failure::SameWait {
            connections.report_error(&ServeError::Accept(&error));
        }
        Ok(())
    }

    /// Accepts with the descriptor of the reserve and closes the connection, for each client in the queue.
    ///
    /// `Ready` if accepting fails, for example because another thread was quicker to take the descriptor. `Pending` if
    /// the queue is empty, or if the task's budget is used up.
    fn poll_turn_away(&mut self, cx: &mut Context<'_>, connections: &Connections<L::Addr>) -> Poll<()> {
        self.reserve = None;
        for _ in 0..BATCH {
            let accepted = self.listener.poll_accept(cx);
            if !matches!(accepted, Poll::Ready(Ok(_))) {
                self.turning_away = false;
                self.reserve = self.listener.reserve();
                if accepted.is_pending() {
                    self.backoff.queue_emptied();
                }
                return accepted.map(drop);
            }
            connections.refuse();
        }
        self.reserve = self.listener.reserve();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
