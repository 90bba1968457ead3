//! The running server: a state machine of three phases.
//!
//! ```text
//!  Accepting --(1)--> Emptying --(2)--> Draining --(3)--> Ended
//! ```
//! 1. [`Serving::stop_accepting`]: the server was asked to stop, or accepting has failed for good.
//! 2. [`Serving::poll_emptied`]: the kernel's queue is empty, or no more of it may be accepted. The listener is closed.
//! 3. [`Serving::poll_drained`]: no connection is open, or the drain timeout is over. [`Serving::finish`] makes the
//!    report.
//!
//! The immediate shutdown leads from each phase to the end.

use std::fmt;
use std::io;
use std::mem;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::acceptor::{Acceptor, BATCH};
use super::connections::{Connections, OnError};
use super::output::HandlerOutput;
use super::report::{Failure, Report, ServeError};
use super::service::{Placement, Service};
use super::stats::Counts;
use crate::net::listener::Listener;
use crate::net::shutdown::ShutdownSignal;
use crate::time::{Duration, Sleep, sleep};
use crate::trace;

/// Attempts to accept in one poll of the server. The budget of a task is smaller and ends the poll first, unless the
/// listener spends none.
const ATTEMPTS: usize = 256;

/// The longest queue of a listener that Linux allows by default.
const QUEUE: usize = 4096;

pub(super) type Signal = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// The options of a server. The methods of [`Serve`](super::Serve) document each.
pub(super) struct Options {
    pub(super) max_connections: usize,
    pub(super) drain_timeout: Duration,
    pub(super) graceful: Option<Signal>,
    pub(super) immediate: Option<Signal>,
    pub(super) shutdown: Option<ShutdownSignal>,
    /// Where the server was made.
    pub(super) location: &'static Location<'static>,
}

/// The future of [`Serve`](super::Serve): a running server.
///
/// # Panics
/// When it is polled after it has returned its report.
#[must_use = "futures do nothing unless awaited"]
pub struct Serving<L: Listener, H, F> {
    phase: Phase<L>,
    service: Service<L, H, F>,
    options: Options,
}

enum Phase<L: Listener> {
    /// Connections are accepted and served.
    Accepting { acceptor: Acceptor<L> },
    /// The server stops. Clients in the kernel's queue believe that they are connected, and closing the listener would
    /// reset them: they are still accepted, as many as the [`longest_queue`] has.
    Emptying {
        acceptor: Acceptor<L>,
        /// A client that was accepted and waits until fewer than `max_connections` are open. To accept is the only way
        /// to learn that the queue is not empty.
        next: Option<(L::Stream, L::Addr)>,
        drain: Drain,
    },
    /// The listener is closed, and handlers are still running.
    Draining { drain: Drain },
    /// The report has been returned.
    Ended,
}

struct Drain {
    /// The drain timeout, which began when the server left `Accepting`.
    timeout: Sleep,
    /// The error that has stopped the server, if one has: that of an accept or of a signal.
    error: Option<io::Error>,
    /// Accepting has failed for good.
    accepting_failed: bool,
}

// No field is pinned: the signals are boxed, and handlers' futures are in their tasks.
impl<L: Listener, H, F> Unpin for Serving<L, H, F> {}

impl<L: Listener, H, F> Serving<L, H, F> {
    pub(super) fn new(
        listener: L,
        handler: H,
        placement: Placement<F, L::Addr>,
        prepare: Option<fn(&L::Stream)>,
        on_error: Option<OnError<L::Addr>>,
        counts: Arc<Counts>,
        options: Options,
    ) -> Self {
        let phase = Phase::Accepting { acceptor: Acceptor::new(listener) };
        let connections = Arc::new(Connections::new(on_error, counts));
        let location = options.location;
        let service = Service { handler, placement, prepare, connections, location, has_names: false };
        Self { phase, service, options }
    }

    fn connections(&self) -> &Connections<L::Addr> {
        &self.service.connections
    }

    fn trigger_shutdown(&self) {
        if let Some(shutdown) = &self.options.shutdown {
            shutdown.trigger();
        }
    }
}

impl<L: Listener, H, F> Future for Serving<L, H, F>
where
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future<Output: HandlerOutput>,
{
    type Output = Result<Report<L::Addr>, ServeError<L::Addr>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        assert!(!matches!(this.phase, Phase::Ended), "`Serving` was polled after it had returned its report");
        if let Poll::Ready(signalled) = poll_signal(&mut this.options.immediate, cx) {
            return Poll::Ready(this.finish(signalled.err()));
        }
        if matches!(this.phase, Phase::Accepting { .. }) {
            match this.poll_asked_to_stop(cx) {
                Poll::Ready(asked) => this.stop_accepting(asked.err(), false),
                Poll::Pending => {
                    let error = ready!(this.poll_accepting(cx));
                    this.stop_accepting(Some(error), true);
                }
            }
        }
        ready!(this.poll_emptied(cx));
        ready!(this.poll_drained(cx));
        Poll::Ready(this.finish(None))
    }
}

impl<L: Listener, H, F> Serving<L, H, F>
where
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future<Output: HandlerOutput>,
{
    fn poll_asked_to_stop(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_triggered = |signal: &mut ShutdownSignal| signal.poll_triggered(cx).is_ready();
        if self.options.shutdown.as_mut().is_some_and(is_triggered) {
            return Poll::Ready(Ok(()));
        }
        poll_signal(&mut self.options.graceful, cx)
    }

    /// Accepts and serves connections. Returns the error with which accepting has failed for good.
    fn poll_accepting(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Self { phase: Phase::Accepting { acceptor }, service, options } = self else { return Poll::Pending };
        for _ in 0..ATTEMPTS {
            if options.max_connections != usize::MAX {
                ready!(service.connections.poll_below(cx, options.max_connections));
            }
            match ready!(acceptor.poll_attempt(cx, &service.connections)) {
                Ok(Some((stream, peer))) => {
                    if let Err(error) = service.start(stream, peer) {
                        service.connections.report_error(&Failure::Accept(&error));
                        return Poll::Ready(error);
                    }
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(error),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn stop_accepting(&mut self, error: Option<io::Error>, accepting_failed: bool) {
        self.trigger_shutdown();
        let drain = Drain { timeout: sleep(self.options.drain_timeout), error, accepting_failed };
        if let Phase::Accepting { mut acceptor } = mem::replace(&mut self.phase, Phase::Ended) {
            acceptor.stop(longest_queue());
            self.phase = Phase::Emptying { acceptor, next: None, drain };
            trace::server_stops(|| self.connections().len());
        }
    }

    /// Accepts the connections in the kernel's queue, and closes the listener.
    fn poll_emptied(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_queue(cx));
        self.refuse_next();
        self.phase = match mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Emptying { acceptor, drain, .. } => {
                drop(acceptor);
                trace::server_drains(|| self.connections().len());
                Phase::Draining { drain }
            }
            phase => phase,
        };
        Poll::Ready(())
    }

    /// Refuses the client that was accepted and waits for another one to end, if there is one.
    fn refuse_next(&mut self) {
        let Phase::Emptying { next, .. } = &mut self.phase else { return };
        if next.take().is_some() {
            self.connections().refuse();
        }
    }

    /// Accepts and serves the connections in the kernel's queue until it is empty, or no more of it may be accepted. At
    /// `max_connections` it waits for connections to end, until the drain timeout.
    fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { phase: Phase::Emptying { acceptor, next, drain }, service, options } = self else {
            return Poll::Ready(());
        };
        for accepted in 0.. {
            if next.is_some() && service.connections.poll_below(cx, options.max_connections).is_pending() {
                // After a fatal error of an accept the clients in the queue are not worth a wait.
                return if drain.accepting_failed { Poll::Ready(()) } else { Pin::new(&mut drain.timeout).poll(cx) };
            }
            if let Some((stream, peer)) = next.take() {
                if service.start(stream, peer).is_err() {
                    return Poll::Ready(());
                }
            }
            if accepted == BATCH {
                break;
            }
            if acceptor.is_done() {
                return Poll::Ready(());
            }
            match acceptor.poll_attempt(cx, &service.connections) {
                Poll::Ready(Ok(accepted)) => *next = accepted,
                // The queue is empty, or the rest of it cannot be accepted.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                // The acceptor waits for a descriptor. At the end of the drain it turns away the clients that are left.
                Poll::Pending => {
                    ready!(Pin::new(&mut drain.timeout).poll(cx));
                    return acceptor.poll_turn_away(cx, &service.connections);
                }
            }
        }
        if drain.accepting_failed || Pin::new(&mut drain.timeout).poll(cx).is_ready() {
            // After a fatal error of an accept one batch is enough: the next attempt is likely to fail in the same way.
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits until no connection is open or the drain timeout is over.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { phase: Phase::Draining { drain }, service, .. } = self else { return Poll::Ready(()) };
        if service.connections.poll_below(cx, 1).is_ready() {
            return Poll::Ready(());
        }
        Pin::new(&mut drain.timeout).poll(cx)
    }

    /// Closes the listener, if that has not been done, aborts handlers that are still running, and returns the report.
    /// `error` is the reason for it, if an error is. An earlier error goes before it.
    fn finish(&mut self, error: Option<io::Error>) -> Result<Report<L::Addr>, ServeError<L::Addr>> {
        self.trigger_shutdown();
        self.refuse_next();
        let error = mem::replace(&mut self.phase, Phase::Ended).into_error().or(error);
        let report = self.connections().close();
        trace::server_ended(report.accepted, report.refused, report.open.len());
        match error {
            None => Ok(report),
            Some(error) => Err(ServeError { error, report }),
        }
    }
}

impl<L: Listener> Phase<L> {
    /// The fatal error that has stopped the server. The listener is closed.
    fn into_error(self) -> Option<io::Error> {
        match self {
            Self::Emptying { drain, .. } | Self::Draining { drain } => drain.error,
            Self::Accepting { .. } | Self::Ended => None,
        }
    }
}

/// The longest queue that a listener may have here, and at least [`QUEUE`]. A stopping server takes so many clients off it:
/// those beyond have come while the queue was being emptied.
fn longest_queue() -> usize {
    let allowed =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
    // Linux keeps one more than it is told.
    QUEUE.max(allowed.unwrap_or(0)).saturating_add(1)
}

fn poll_signal(signal: &mut Option<Signal>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    signal.as_mut().map_or(Poll::Pending, |signal| signal.as_mut().poll(cx))
}

impl<L: Listener, H, F> Drop for Serving<L, H, F> {
    fn drop(&mut self) {
        self.trigger_shutdown();
        // Aborts the handlers. The report has no reader.
        let _ = self.connections().close();
    }
}

impl<L: Listener, H, F> fmt::Debug for Serving<L, H, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (accepted, open) = (self.connections().accepted(), self.connections().len());
        f.debug_struct("Serving").field("accepted", &accepted).field("open", &open).finish()
    }
}
