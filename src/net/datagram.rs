//! Datagram: what UDP sockets and Unix datagram sockets share.
//!
//! # The way of a datagram
//! ```text
//! UdpSocket::recv_from -> Datagram::recv_from -> Registration::operate -> Wait::poll_operation
//!   -> Registration::poll_operation -> sys::recv_from -> recvfrom(2)
//! ```
//! Operations that take `&self` wait in the registration's list, so several tasks may receive on one socket: an event
//! wakes them all, and each that finds nothing waits again. The short-read rule of streams does not hold for datagrams: a
//! direction counts as ready until a system call meets `WouldBlock`.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use super::sys;
use crate::budget;
use crate::reactor::{Direction, Registration, Snapshot, WaiterSlot, is_ready_now};

/// The type of a datagram socket.
pub(super) trait DatagramSocket: AsFd {
    /// The address of a peer.
    type Addr;

    /// Converts the system's address of a peer.
    fn addr(any: Option<sys::SocketAddrAny>) -> io::Result<Self::Addr>;

    /// sendto(2).
    fn send_to(&self, buf: &[u8], target: &Self::Addr) -> io::Result<usize>;
}

/// A datagram socket.
pub(super) struct Datagram<S: DatagramSocket> {
    registration: Registration<S>,
}

impl<S: DatagramSocket> Datagram<S> {
    /// Takes a non-blocking socket.
    pub(super) fn new(socket: S) -> Self {
        Self { registration: Registration::new(socket) }
    }

    pub(super) fn registration(&self) -> &Registration<S> {
        &self.registration
    }

    /// Takes the socket out of its reactor.
    pub(super) fn into_socket(self) -> S {
        self.registration.into_socket()
    }

    pub(super) async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.registration.operate(Direction::Read, |socket, seen| recv(socket, seen, buf)).await
    }

    pub(super) async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut wait = self.registration.waiter(Direction::Read);
        poll_fn(|cx| {
            self.registration.poll_peek(cx, wait.slot(), |socket, seen| or_ended(seen, sys::peek(socket, buf)))
        })
        .await
    }

    pub(super) async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, S::Addr)> {
        self.registration.operate(Direction::Read, |socket, seen| recv_from(socket, seen, buf)).await
    }

    pub(super) async fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, S::Addr)> {
        let mut wait = self.registration.waiter(Direction::Read);
        poll_fn(|cx| self.registration.poll_peek(cx, wait.slot(), |socket, seen| peek_from(socket, seen, buf))).await
    }

    pub(super) async fn send(&self, buf: &[u8]) -> io::Result<usize> {
        self.registration.operate(Direction::Write, |socket, _| moved(sys::send(socket, buf))).await
    }

    pub(super) async fn send_to(&self, buf: &[u8], target: &S::Addr) -> io::Result<usize> {
        self.registration.operate(Direction::Write, |socket, _| moved(socket.send_to(buf, target))).await
    }

    pub(super) fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.registration.try_operation(Direction::Read, |socket, seen| recv(socket, seen, buf))
    }

    pub(super) fn try_recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, S::Addr)> {
        self.registration.try_operation(Direction::Read, |socket, seen| recv_from(socket, seen, buf))
    }

    pub(super) fn try_send(&self, buf: &[u8]) -> io::Result<usize> {
        self.registration.try_operation(Direction::Write, |socket, _| moved(sys::send(socket, buf)))
    }

    pub(super) fn try_send_to(&self, buf: &[u8], target: &S::Addr) -> io::Result<usize> {
        self.registration.try_operation(Direction::Write, |socket, _| moved(socket.send_to(buf, target)))
    }

    /// As [`try_send_to`](Datagram::try_send_to), for a socket whose call may meet `WouldBlock` because the queue of the
    /// receiver is full. No event tells when that has room. So the socket stays writable then.
    pub(super) fn try_send_to_queue(&self, buf: &[u8], target: &S::Addr) -> io::Result<usize> {
        let socket = self.registration.socket();
        loop {
            match moved(socket.send_to(buf, target)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_ready_now(socket, Direction::Write) => {
                    return self.try_send_to(buf, target);
                }
                result => return result,
            }
        }
    }

    pub(super) fn poll_recv(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.registration.poll_operation(cx, Direction::Read, WaiterSlot::Seat, |socket, seen| recv(socket, seen, buf))
    }

    pub(super) fn poll_recv_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, S::Addr)>> {
        self.registration
            .poll_operation(cx, Direction::Read, WaiterSlot::Seat, |socket, seen| recv_from(socket, seen, buf))
    }

    pub(super) fn poll_peek_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, S::Addr)>> {
        self.registration.poll_peek(cx, WaiterSlot::Seat, |socket, seen| peek_from(socket, seen, buf))
    }

    pub(super) fn poll_send(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.registration
            .poll_operation(cx, Direction::Write, WaiterSlot::Seat, |socket, _| moved(sys::send(socket, buf)))
    }

    pub(super) fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], target: &S::Addr) -> Poll<io::Result<usize>> {
        self.registration
            .poll_operation(cx, Direction::Write, WaiterSlot::Seat, |socket, _| moved(socket.send_to(buf, target)))
    }
}

fn recv(socket: &impl AsFd, seen: Snapshot, buf: &mut [u8]) -> io::Result<usize> {
    moved(or_ended(seen, sys::recv(socket, buf)))
}

fn recv_from<S: DatagramSocket>(socket: &S, seen: Snapshot, buf: &mut [u8]) -> io::Result<(usize, S::Addr)> {
    let (received, addr) = or_ended(seen, sys::recv_from(socket, buf))?;
    budget::count_moved(received);
    Ok((received, S::addr(addr)?))
}

fn peek_from<S: DatagramSocket>(socket: &S, seen: Snapshot, buf: &mut [u8]) -> io::Result<(usize, S::Addr)> {
    let (peeked, addr) = or_ended(seen, sys::peek_from(socket, buf))?;
    Ok((peeked, S::addr(addr)?))
}

/// Zero bytes and no address in place of `WouldBlock`, if this end had shut receiving down when the word was `seen`. On
/// Linux only a receive that may block ends then, and with `MSG_DONTWAIT` it would wait for ever.
fn or_ended<R: Default>(seen: Snapshot, received: io::Result<R>) -> io::Result<R> {
    match received {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && seen.has_ended(Direction::Read) => Ok(R::default()),
        received => received,
    }
}

/// Counts what a datagram has moved, as work.
fn moved(transferred: io::Result<usize>) -> io::Result<usize> {
    transferred.inspect(|&bytes| budget::count_moved(bytes))
}
