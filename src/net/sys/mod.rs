//! Sys: the system calls of sockets, and most of what differs between systems.
//!
//! Every transfer passes `MSG_DONTWAIT`. A socket of this crate is non-blocking, but that is a setting of the open
//! file, which all duplicates of the descriptor share. A duplicate that other code makes blocking must not block a
//! worker.

#[cfg(all(feature = "sockopt", any(target_os = "android", target_os = "linux"), not(kittiwake_portable)))]
mod nix_options;
pub(super) mod options;

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::{self, ffi::OsStrExt};

use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
pub(super) use rustix::net::SocketAddrAny;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::reactor::{Direction, is_ready_now, poll_now};

/// The most slices that one recvmsg(2) or sendmsg(2) takes (`IOV_MAX`). The next call takes the rest of a longer list.
pub(super) const MAX_SLICES: usize = 1024;

/// A write to a closed connection is an error, not a signal.
#[cfg(not(target_vendor = "apple"))]
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
/// Apple's systems have a socket option for that instead. mio and socket2 set it when they make a socket, and accepted
/// sockets inherit it.
#[cfg(target_vendor = "apple")]
const SEND: SendFlags = SendFlags::DONTWAIT;

/// recv(2).
pub(super) fn recv(socket: &impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let (_, received) = rustix::net::recv(socket, buf, RecvFlags::DONTWAIT)?;
    Ok(received)
}

/// recv(2) that leaves the bytes in the kernel.
pub(super) fn peek(socket: &impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let (_, received) = rustix::net::recv(socket, buf, RecvFlags::DONTWAIT.union(RecvFlags::PEEK))?;
    Ok(received)
}

/// recvmsg(2).
pub(super) fn recv_vectored(socket: &impl AsFd, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let mut ancillary = RecvAncillaryBuffer::default();
    Ok(rustix::net::recvmsg(socket, bufs, &mut ancillary, RecvFlags::DONTWAIT)?.bytes)
}

/// send(2).
pub(super) fn send(socket: &impl AsFd, buf: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, buf, SEND)?)
}

/// sendmsg(2).
pub(super) fn send_vectored(socket: &impl AsFd, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(rustix::net::sendmsg(socket, bufs, &mut SendAncillaryBuffer::default(), SEND)?)
}

/// recvfrom(2). The address is that of the sender.
pub(super) fn recv_from(socket: &impl AsFd, buf: &mut [u8]) -> io::Result<(usize, Option<SocketAddrAny>)> {
    let (_, received, addr) = rustix::net::recvfrom(socket, buf, RecvFlags::DONTWAIT)?;
    Ok((received, addr))
}

/// recvfrom(2) that leaves the datagram in the kernel.
pub(super) fn peek_from(socket: &impl AsFd, buf: &mut [u8]) -> io::Result<(usize, Option<SocketAddrAny>)> {
    let (_, peeked, addr) = rustix::net::recvfrom(socket, buf, RecvFlags::DONTWAIT.union(RecvFlags::PEEK))?;
    Ok((peeked, addr))
}

/// sendto(2).
pub(super) fn send_to(socket: &impl AsFd, buf: &[u8], target: &impl SocketAddrArg) -> io::Result<usize> {
    Ok(rustix::net::sendto(socket, buf, SEND, target)?)
}

/// An address with the bytes of its IPv6 flow information swapped, so that they are the same as with std: rustix swaps
/// them in both directions on a little-endian machine, and std and mio never.
pub(super) fn swap_flow_info(mut addr: SocketAddr) -> SocketAddr {
    if let SocketAddr::V6(addr) = &mut addr {
        addr.set_flowinfo(addr.flowinfo().to_be());
    }
    addr
}

/// shutdown(2). To do it again, or after the connection has ended, is no error.
pub(super) fn shutdown(socket: &impl AsFd, how: Shutdown) -> io::Result<()> {
    match SockRef::from(socket).shutdown(how) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

/// A new TCP socket, non-blocking and close-on-exec.
pub(super) fn tcp_socket(domain: Domain) -> io::Result<Socket> {
    stream_socket(domain, Some(Protocol::TCP))
}

/// A new stream socket, non-blocking and close-on-exec.
#[cfg(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)))]
fn stream_socket(domain: Domain, protocol: Option<Protocol>) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking(), protocol)
}
/// Elsewhere non-blocking takes a system call of its own.
#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable))))]
fn stream_socket(domain: Domain, protocol: Option<Protocol>) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, protocol)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A new Unix stream socket that is connected to `target`. `WouldBlock` if the queue of the listener is full.
///
/// mio's function takes the zero byte at the beginning of an abstract name for the one that marks abstract names.
pub(super) fn connect_unix(target: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket = stream_socket(Domain::UNIX, None)?;
    match rustix::net::connect(&socket, target) {
        // An attempt that goes on. The first operation waits for its end.
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

/// Fails if the socket does not listen. It would never have a connection.
pub(super) fn check_listens(listener: &(impl AsFd + fmt::Debug)) -> io::Result<()> {
    if may_listen(listener)? {
        return Ok(());
    }
    let why = format!("{listener:?} does not listen; call listen(2) first, or pass the socket that does");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Whether the socket listens (`SO_ACCEPTCONN`, getsockopt(2)).
#[cfg(not(any(target_vendor = "apple", kittiwake_portable)))]
fn may_listen(listener: &impl AsFd) -> io::Result<bool> {
    Ok(rustix::net::sockopt::socket_acceptconn(listener)?)
}
/// Apple's systems do not answer. There accept(2) answers the question.
#[cfg(any(target_vendor = "apple", kittiwake_portable))]
fn may_listen(_: &impl AsFd) -> io::Result<bool> {
    Ok(true)
}

/// Opens a descriptor that a server may close, to accept with the one that this frees. It is a new socket, because
/// closing a duplicate frees no file and so does not help against `ENFILE`. A duplicate is the fallback in a sandbox
/// that allows no new socket.
pub(super) fn reserve(listener: &impl AsFd, domain: Domain, kind: Type) -> Option<OwnedFd> {
    match Socket::new(domain, kind, None) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => listener.as_fd().try_clone_to_owned().ok(),
        socket => socket.ok().map(OwnedFd::from),
    }
}

/// Whether the reading side of a stream has ended, even if bytes before the end are unread, or the connection has
/// failed. Fails if poll(2) does: a sandbox may refuse it, and that is no end of the stream. A signal may interrupt the
/// call although it does not wait.
pub(super) fn has_ended(socket: &impl AsFd) -> io::Result<bool> {
    Ok(retry_on_intr(|| poll_now(socket, ENDED))?.intersects(ENDED))
}
/// On Linux a failed stream has hung up. An error alone may be an entry in the error queue, such as the time at which
/// bytes have left (`SO_TIMESTAMPING`), and poll(2) reports that until the program takes it.
#[cfg(any(target_os = "android", target_os = "linux"))]
const ENDED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP);
#[cfg(any(target_os = "freebsd", target_os = "illumos"))]
const ENDED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
/// Apple's systems report a hang-up as soon as the reading side has ended. The other BSDs were not tried.
#[cfg(not(any(target_os = "android", target_os = "freebsd", target_os = "illumos", target_os = "linux")))]
const ENDED: PollFlags = PollFlags::HUP.union(PollFlags::ERR);

/// Whether a connection waits.
///
/// Linux and FreeBSD take a descriptor before they look for a connection to give it to. So an accept(2) that finds none
/// fails in a process that has no descriptor left. On Linux it also takes ten times as long as poll(2), and a server
/// that accepts until the queue is empty would make such a call after most connections. So the listener is polled
/// first, except for the connection that an event has announced. On Apple's systems the result is `true` without a
/// look: accept(2) looks for a connection first there, and says whether the socket listens.
pub(super) fn may_accept(listener: &impl AsFd) -> bool {
    cfg!(target_vendor = "apple") || is_ready_now(listener, Direction::Read)
}

/// A Unix socket's address as an error shows it: its path, or its abstract name after an `@`.
pub(super) fn display_unix(addr: &unix::net::SocketAddr) -> String {
    if let Some(path) = addr.as_pathname() {
        return format!("{path:?}");
    }
    match abstract_name(addr) {
        Some(name) => format!("\"@{}\"", name.escape_ascii()),
        None => "an unnamed address".to_owned(),
    }
}

/// A Unix socket's address as sendto(2) and connect(2) take it.
pub(super) fn to_unix_addr(addr: &unix::net::SocketAddr) -> io::Result<SocketAddrUnix> {
    match (addr.as_pathname(), abstract_name(addr)) {
        (Some(path), _) => Ok(SocketAddrUnix::new(path)?),
        #[cfg(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)))]
        (None, Some(name)) => Ok(SocketAddrUnix::new_abstract_name(name)?),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "an unnamed address leads to no socket")),
    }
}

/// The address of a Unix socket that has sent a datagram, as std has it. Unnamed if std or rustix cannot express it: an
/// error here would lose the datagram, which has left the queue.
pub(super) fn from_unix_addr(any: Option<SocketAddrAny>) -> io::Result<unix::net::SocketAddr> {
    // The system gives no address for a sender that has none. The path of a sender may fill the whole structure, and
    // Linux then reports a longer one with a zero byte at its end, on which rustix panics.
    let fits = |any: &SocketAddrAny| any.addr_len() as usize <= size_of::<libc::sockaddr_un>();
    let addr = any.filter(fits).and_then(|any| SocketAddrUnix::try_from(any).ok());
    addr.and_then(|addr| to_std_unix_addr(&addr).ok()).map_or_else(|| unix::net::SocketAddr::from_pathname(""), Ok)
}

fn to_std_unix_addr(addr: &SocketAddrUnix) -> io::Result<unix::net::SocketAddr> {
    #[cfg(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)))]
    if let Some(name) = addr.abstract_name() {
        return unix::net::SocketAddr::from_abstract_name(name);
    }
    unix::net::SocketAddr::from_pathname(addr.path_bytes().map_or_else(Default::default, OsStr::from_bytes))
}

#[cfg(all(target_os = "android", not(kittiwake_portable)))]
use std::os::android::net::SocketAddrExt;
#[cfg(all(target_os = "linux", not(kittiwake_portable)))]
use std::os::linux::net::SocketAddrExt;

#[cfg(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)))]
fn abstract_name(addr: &unix::net::SocketAddr) -> Option<&[u8]> {
    addr.as_abstract_name()
}
#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable))))]
fn abstract_name(_: &unix::net::SocketAddr) -> Option<&[u8]> {
    None
}
