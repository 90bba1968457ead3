//! The accept backoff: how long a server waits after accepting has failed, and when it turns clients away.
//!
//! 1. The first failure starts a wait of [`SHORTEST`]. Each failure after a wait starts one of twice the length, up to
//!    [`LONGEST`] ([`AcceptBackoff::failed`]).
//! 2. A connection that ends interrupts the wait, because it may have freed a descriptor
//!    ([`AcceptBackoff::poll_over`]). If that attempt fails, the same wait continues. So there is one wait and one
//!    report in each span of time, however many connections end in it.
//! 3. The backoff is over when no attempt has failed for [`LONGEST`] after a wait.
//! 4. After waits of 10, 20, 40 and so on up to 640 ms, together more than a second, the next wait is one of
//!    [`LONGEST`]. If nothing was accepted during the last wait, and descriptors are what is missing, the server turns
//!    the clients in the queue away. So each of them learns of it now and not from a timeout of its own
//!    ([`Failure::TurnAway`]).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::connections::Connections;
use crate::time::{Instant, Sleep, sleep_until};

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// The backoff of one server.
#[derive(Default)]
pub(super) struct AcceptBackoff {
    /// The last wait, which may be over.
    wait: Option<Wait>,
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
pub(super) enum Failure {
    /// The wait that has begun continues. It was reported before.
    SameWait,
    /// A new wait begins.
    NewWait,
    /// A new wait begins, and the clients in the queue have waited long enough.
    TurnAway,
}

impl AcceptBackoff {
    /// Accepting has failed while `open` connections were open.
    pub(super) fn failed(&mut self, error: &io::Error, open: usize) -> Failure {
        let now = Instant::now();
        let last = self.wait.as_mut().filter(|last| now < last.sleep.deadline() + LONGEST);
        let (length, has_accepted) = match last {
            Some(last) if now < last.sleep.deadline() => {
                last.retry_below = Some(open);
                return Failure::SameWait;
            }
            Some(last) => (LONGEST.min(2 * last.length), last.has_accepted),
            None => (SHORTEST, true),
        };
        self.wait =
            Some(Wait { sleep: sleep_until(now + length), length, retry_below: Some(open), has_accepted: false });
        let is_long = length == LONGEST && !has_accepted;
        if is_long && lacks_descriptors(error) { Failure::TurnAway } else { Failure::NewWait }
    }

    /// A connection was accepted. Returns whether accepting had failed before, at any time.
    pub(super) fn succeeded(&mut self) -> bool {
        let Some(wait) = &mut self.wait else { return false };
        (wait.retry_below, wait.has_accepted) = (None, true);
        true
    }

    /// The queue was found empty: the next attempt only has to wait for a client.
    pub(super) fn queue_emptied(&mut self) {
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
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Whether accepting may succeed after a wait.
///
/// The first group is a lack of resources, which ends when something is closed or freed. The second group are the
/// errors of a network or a firewall that accept(2) lists under "Error handling" and "ERRORS". accept(2) advises to try
/// again at once. But a fault of that kind often lasts, and EPERM may leave the
/// connection in the queue, so an immediate attempt would fail in the same way and the server would spin.
pub(super) fn may_retry_later(error: &io::Error) -> bool {
    const RESOURCES: &[i32] = &[libc::ENOBUFS, libc::ENOMEM];
    const NETWORK: &[i32] = &[
        libc::EPERM,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::ENOPROTOOPT,
        libc::ETIMEDOUT,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        libc::ENONET,
    ];
    let is_listed = |code| RESOURCES.contains(&code) || NETWORK.contains(&code);
    lacks_descriptors(error) || error.raw_os_error().is_some_and(is_listed)
}

/// Whether the process or the system has no descriptor left, so that closing one helps.
fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
