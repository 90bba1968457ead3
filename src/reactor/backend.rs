//! The reactor's contract with its backend: which events it asks for, and what they prove.

use std::io;
use std::os::fd::RawFd;

use mio::{Interest, Registry, Token};

use super::slots::Slots;

/// Whether the backend reports each change of a socket without being armed again. mio's poll(2) does not: it disarms a
/// direction that it has reported, and an operation that waits arms the socket again. An error that stays, such as an
/// entry in the socket's error queue, is reported again as soon as the socket is armed. A platform that is not listed
/// is treated like poll(2).
pub(super) const EDGE_TRIGGERED: bool = cfg!(all(
    not(mio_unsupported_force_poll_poll),
    any(
        target_os = "android",
        target_os = "dragonfly",
        target_os = "freebsd",
        target_os = "illumos",
        target_os = "ios",
        target_os = "linux",
        target_os = "macos",
        target_os = "netbsd",
        target_os = "openbsd",
    )
));

/// The descriptor of a poll, which is readable while the poll has events. It is a duplicate that mio's registry owns,
/// and stays open as long as that. `None` on poll(2), which has no descriptor, and on systems where a poll in another
/// one was not tried.
#[cfg(all(
    not(mio_unsupported_force_poll_poll),
    any(target_os = "android", target_os = "freebsd", target_os = "linux", target_os = "macos")
))]
pub(super) fn descriptor(registry: &Registry) -> Option<RawFd> {
    Some(std::os::fd::AsRawFd::as_raw_fd(registry))
}
#[cfg(not(all(
    not(mio_unsupported_force_poll_poll),
    any(target_os = "android", target_os = "freebsd", target_os = "linux", target_os = "macos")
)))]
pub(super) fn descriptor(_: &Registry) -> Option<RawFd> {
    None
}

/// Whether a poll could not be added to the set of another one because too many polls are in one another. epoll
/// returns `ELOOP` for a circle and for more than four levels, and `EINVAL` for too many ways between two polls. It
/// allows both again once one of the polls has left. kqueue of macOS compares levels, which only rise: once A has
/// watched B, kqueue refuses for ever that B watches A, and by another error.
pub(super) fn refuses_nesting(error: &io::Error) -> bool {
    cfg!(any(target_os = "android", target_os = "linux"))
        && matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EINVAL))
}

/// Whether a short transfer on a TCP stream proves that the kernel's buffer is empty after a read, or full after a
/// write. It does where the backend reports the next change as a new edge, and reports urgent data too ([`INTEREST`]):
/// a read that stops at the urgent mark is short although more bytes may follow.
pub(super) const SHORT_MEANS_DRAINED: bool =
    EDGE_TRIGGERED && cfg!(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)));

/// Every socket is registered for both directions, and on Linux for urgent data too. Most connections need both
/// directions, and each change of the interest would be a system call.
#[cfg(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)))]
pub(super) const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable))))]
pub(super) const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Events taken from the kernel in one call. More are delivered by the next call.
pub(super) const EVENT_CAPACITY: usize = 1024;

/// The token of the unparker.
pub(super) const UNPARK: Token = Token(Slots::<()>::RESERVED[0]);

/// The token of the timerfd for the last millisecond of a wait.
pub(super) const TIMER_FD: Token = Token(Slots::<()>::RESERVED[1]);

/// The token of the unpark timer.
pub(super) const UNPARK_TIMER: Token = Token(Slots::<()>::RESERVED[3]);

/// The token of other workers' reactors.
pub(super) const WATCHED: Token = Token(Slots::<()>::RESERVED[2]);
