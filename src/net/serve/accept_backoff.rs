//! The accept backoff: how long a server waits after accepting has failed, and when it turns clients away.
//!
//! 1. The first failure starts a wait of [`SHORTEST`]. Each failure after a wait starts one of twice the length, up to
//!    [`LONGEST`] ([`AcceptBackoff::failed`]).
//! 2. A connection that ends interrupts the wait, because it may have freed a descriptor
//!    ([`AcceptBackoff::poll_over`]). If the next attempt fails too, the same wait goes on, and nothing more is
//!    reported. So the connections that end make neither more waits nor more reports.
//! 3. The backoff is over when no attempt has failed for [`LONGEST`] after a wait.
//! 4. After waits of 10, 20, 40 and so on up to 640 ms, together more than a second, the next wait is one of
//!    [`LONGEST`]. If nothing was accepted during the last wait, and descriptors are what is missing, the server turns
//!    the clients in the queue away. So each of them learns of it now and not from a timeout of its own
//!    ([`Consequence::TurnAway`]).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::connections::Connections;
use crate::time::{Instant, Sleep, sleep_until};

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// Errors of single connections that are passed over before a connection is accepted. More of them are no longer those
/// of single connections: EPERM may leave the connection in the queue, and a fault of the network may last.
const PASSED_OVER: u32 = 64;

/// The backoff of one server.
#[derive(Default)]
pub(super) struct AcceptBackoff {
    /// The last wait, which may be over.
    wait: Option<Wait>,
    /// Errors of single connections since a connection was accepted.
    passed_over: u32,
}

struct Wait {
    /// The end of the wait.
    sleep: Sleep,
    length: Duration,
    /// The next attempt is made when the wait is over, or when fewer connections than this are open. `None`: there is
    /// no wait, and the next attempt is made at once.
    retry_below: Option<usize>,
    /// A connection was accepted since the wait began.
    has_accepted: bool,
}

/// The consequence of a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// The wait that has begun continues. It was reported before.
    SameWait,
    /// A new wait begins.
    NewWait,
    /// A new wait begins, and the clients in the queue have waited long enough.
    TurnAway,
}

impl AcceptBackoff {
    /// Whether the next attempt may succeed at once after this error.
    pub(super) fn passes_over(&mut self, error: &io::Error) -> bool {
        if !concerns_one_connection(error) {
            return may_retry_at_once(error);
        }
        self.passed_over = self.passed_over.saturating_add(1);
        self.passed_over <= PASSED_OVER
    }

    /// Accepting has failed. Before the attempt `open` connections were open.
    pub(super) fn failed(&mut self, error: &io::Error, open: usize) -> Consequence {
        let now = Instant::now();
        let last = self.wait.as_mut().filter(|last| now < last.sleep.deadline() + LONGEST);
        let (length, has_accepted) = match last {
            Some(last) if now < last.sleep.deadline() => {
                last.retry_below = Some(open);
                return Consequence::SameWait;
            }
            Some(last) => (LONGEST.min(2 * last.length), last.has_accepted),
            None => (SHORTEST, true),
        };
        self.wait =
            Some(Wait { sleep: sleep_until(now + length), length, retry_below: Some(open), has_accepted: false });
        let is_long = length == LONGEST && !has_accepted;
        if is_long && lacks_descriptors(error) { Consequence::TurnAway } else { Consequence::NewWait }
    }

    /// The length of the last wait.
    pub(super) fn last_wait(&self) -> Option<Duration> {
        self.wait.as_ref().map(|wait| wait.length)
    }

    /// A connection was accepted. Returns whether accepting had failed before, at any time.
    pub(super) fn succeeded(&mut self) -> bool {
        self.passed_over = 0;
        let Some(wait) = &mut self.wait else { return false };
        (wait.retry_below, wait.has_accepted) = (None, true);
        true
    }

    /// The next attempt does not wait: the queue was found empty, or the server stops.
    pub(super) fn retry_at_once(&mut self) {
        if let Some(wait) = &mut self.wait {
            wait.retry_below = None;
        }
    }

    /// Waits until the next attempt.
    pub(super) fn poll_over<A: Clone>(&mut self, cx: &mut Context<'_>, connections: &Connections<A>) -> Poll<()> {
        let Some(Wait { sleep, retry_below, .. }) = &mut self.wait else { return Poll::Ready(()) };
        let Some(below) = *retry_below else { return Poll::Ready(()) };
        if connections.poll_below(cx, below).is_pending() && Pin::new(sleep).poll(cx).is_pending() {
            return Poll::Pending;
        }
        *retry_below = None;
        Poll::Ready(())
    }
}

/// Whether a connection was given up before it was accepted, or the call was interrupted. The next call may succeed at
/// once.
pub(super) fn may_retry_at_once(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) || is_one_of(error, &[libc::EPROTO])
}

/// Whether the network or a firewall has failed one connection: the errors that accept(2) lists under "Error handling"
/// and "ERRORS". It advises to try again at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    const NETWORK: &[i32] = &[
        libc::EPERM,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::ENOPROTOOPT,
        libc::EOPNOTSUPP,
        libc::ETIMEDOUT,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        libc::ENONET,
    ];
    is_one_of(error, NETWORK)
}

/// Whether accepting may succeed after a wait: when something is closed or freed, or the network works again. Again and
/// again, EOPNOTSUPP says that the listener is no stream socket.
pub(super) fn may_retry_later(error: &io::Error) -> bool {
    let is_of_network = concerns_one_connection(error) && !is_one_of(error, &[libc::EOPNOTSUPP]);
    lacks_descriptors(error) || is_one_of(error, &[libc::ENOBUFS, libc::ENOMEM]) || is_of_network
}

/// Whether the process or the system has no descriptor left, so that closing one helps.
pub(super) fn lacks_descriptors(error: &io::Error) -> bool {
    is_one_of(error, &[libc::EMFILE, libc::ENFILE])
}

fn is_one_of(error: &io::Error, codes: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}
