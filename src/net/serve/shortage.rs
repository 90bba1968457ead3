//! Shortage: how long a server waits when it cannot accept, and when it turns clients away.
//!
//! 1. The first failure begins a wait of [`SHORTEST`], and each that follows one of twice its length, up to [`LONGEST`].
//! 2. A connection that ends is tried for at once: it may have left a descriptor. If that fails too, the wait goes on as it
//!    was: so however many end, there is one wait, and one report, for each span of time.
//! 3. It is over when there was no failure for [`LONGEST`] after a wait.
//! 4. When nobody could be accepted for a whole wait, and the next would be of [`LONGEST`], clients have waited in the queue
//!    for more than a second. They are turned away, for as long as the queue holds some: they learn it now,
//!    and may go elsewhere, instead of by a timeout of their own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::live::Live;
use crate::time::{Instant, Sleep, sleep_until};

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// What a server that could not accept knows of it.
pub(super) struct Shortage {
    /// The end of the wait.
    sleep: Sleep,
    length: Duration,
    /// The number of connections is to fall below this, or the time to be over, before the next attempt; `None` if it is to be
    /// made at once.
    open: Option<usize>,
    /// A connection was accepted since the wait began.
    eased: bool,
}

/// What follows from a failure.
pub(super) enum Step {
    /// The wait goes on.
    GoOn,
    /// Another wait begins.
    Wait,
    /// Another wait begins, and those in the queue have waited long enough.
    TurnAway,
}

impl Shortage {
    /// Nothing could be accepted, while `open` connections were.
    pub(super) fn failed(shortage: &mut Option<Self>, open: usize) -> Step {
        let now = Instant::now();
        let last = shortage.as_mut().filter(|last| now < last.sleep.deadline() + LONGEST);
        let (length, eased) = match last {
            Some(last) if now < last.sleep.deadline() => {
                last.open = Some(open);
                return Step::GoOn;
            }
            Some(last) => (LONGEST.min(2 * last.length), last.eased),
            None => (SHORTEST, true),
        };
        *shortage = Some(Self { sleep: sleep_until(now + length), length, open: Some(open), eased: false });
        if length == LONGEST && !eased { Step::TurnAway } else { Step::Wait }
    }

    /// A connection was accepted.
    pub(super) fn succeeded(&mut self) {
        (self.open, self.eased) = (None, true);
    }

    /// The queue is empty: there is nothing to wait for but a client.
    pub(super) fn emptied(&mut self) {
        self.open = None;
    }

    /// Waits until accepting may be tried again.
    pub(super) fn poll_over<P: Clone>(&mut self, cx: &mut Context<'_>, live: &Live<P>) -> Poll<()> {
        let Some(open) = self.open else { return Poll::Ready(()) };
        if live.poll_below(cx, open).is_pending() && Pin::new(&mut self.sleep).poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.open = None;
        Poll::Ready(())
    }
}

/// Whether closing something else would help.
pub(super) fn is_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether a connection was given up before it was accepted, or the call was interrupted. The next call may succeed at once.
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Whether accepting may succeed after a wait.
///
/// The first group is a lack of resources, which ends when something is closed or freed. The second group are the errors of a
/// network or a firewall that accept(2) lists under "Error handling" and "ERRORS". Those concern one connection, and accept(2)
/// advises to try again. But a fault of that kind often lasts, and EPERM may leave the connection in the queue, so an immediate
/// attempt would fail in the same way and the server would spin.
pub(super) fn may_pass(error: &io::Error) -> bool {
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
    is_of_descriptors(error) || error.raw_os_error().is_some_and(is_listed)
}
