//! Listen: what listening sockets share.
//!
//! # The way of an accept
//! ```text
//! accept: Accept::poll -> Wait::poll_operation ---------+
//! poll_accept ------------------------------------------+-> Registration::poll_operation -> accept_one -> accept(2)
//! ```
//! [`Listening::accept_one`] asks poll(2) whether a connection waits, unless an event has just said so: see
//! [`sys::may_accept`].

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use super::sys;
use crate::budget;
use crate::io::Interest;
use crate::metrics;
use crate::reactor::{Direction, Registration, Snapshot, Wait, WaiterSlot};

/// Connections that one call of [`Listening::try_accept`] passes over. It has no budget, so a flood of clients that give up
/// at once would otherwise keep the caller, and with it the worker.
const GIVEN_UP: usize = 64;

/// The type of a listening socket.
pub trait ListenSocket: AsFd {
    /// A connection.
    type Stream;

    /// The address of a peer.
    type Addr;

    /// accept(2). The new socket is non-blocking and close-on-exec.
    fn accept(&self) -> io::Result<(Self::Stream, Self::Addr)>;
}

/// A listener of this crate. The trait is `pub` because the public type [`Incoming`](super::Incoming) names it. Other
/// crates cannot name it.
pub trait Accepts {
    type Socket: ListenSocket;

    fn listening(&self) -> &Listening<Self::Socket>;
}

/// A listening socket.
pub struct Listening<S: ListenSocket> {
    registration: Registration<S>,
    /// A hint, which only decides whether the listener asks poll(2) ([`sys::may_accept`]) before it calls accept(2). The
    /// last poll(2) found the queue empty. If the reactor has reported the socket since, there is a connection, and
    /// poll(2) can be left out.
    empty: AtomicBool,
}

impl<S: ListenSocket> Listening<S> {
    /// Takes a non-blocking socket that listens.
    pub(super) fn new(socket: S) -> Self {
        Self { registration: Registration::of_listener(socket), empty: AtomicBool::new(false) }
    }

    pub(super) fn registration(&self) -> &Registration<S> {
        &self.registration
    }

    /// Takes the socket out of its reactor.
    pub(super) fn into_socket(self) -> S {
        self.registration.into_socket()
    }

    pub(super) fn accept(&self) -> Accept<'_, S> {
        Accept { listening: self, wait: self.registration.waiter(Direction::Read) }
    }

    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(S::Stream, S::Addr)>> {
        self.registration.poll_operation(cx, Direction::Read, WaiterSlot::Seat, |_, seen| self.accept_seen(seen))
    }

    pub(super) fn try_accept(&self) -> io::Result<(S::Stream, S::Addr)> {
        for _ in 0..GIVEN_UP {
            match self.registration.try_io(Interest::READABLE, |_, _| self.accept_one(false)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
        Err(io::Error::from_raw_os_error(libc::ECONNABORTED))
    }

    fn accept_seen(&self, seen: Snapshot) -> io::Result<(S::Stream, S::Addr)> {
        self.accept_one(seen.is_reported(Direction::Read))
    }

    /// Accepts one connection. `reported` is true if the reactor has reported the socket readable. A connection that its peer has
    /// given up counts as an interruption, so that the caller tries again.
    fn accept_one(&self, reported: bool) -> io::Result<(S::Stream, S::Addr)> {
        // Relaxed: if two tasks race, one of them makes a poll(2) or an accept(2) in vain. Nothing else depends on the
        // hint.
        let is_new = self.empty.swap(false, Ordering::Relaxed) && reported;
        let socket = self.registration.socket();
        if !is_new && !sys::may_accept(socket) {
            self.empty.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let accepted = socket.accept().map_err(|error| match error.raw_os_error() {
            Some(libc::ECONNABORTED | libc::EPROTO) => io::ErrorKind::Interrupted.into(),
            // XNU accepts a connection that was reset in its queue, without an address. mio then has no address to return.
            None if cfg!(target_vendor = "apple") && error.kind() == io::ErrorKind::InvalidInput => {
                io::ErrorKind::Interrupted.into()
            }
            _ => error,
        })?;
        metrics::count_accept();
        budget::count_events(1);
        Ok(accepted)
    }
}

/// The future of an accept. It accepts anew each time it is polled.
pub(super) struct Accept<'a, S: ListenSocket> {
    listening: &'a Listening<S>,
    wait: Wait<'a, S>,
}

impl<S: ListenSocket> Future for Accept<'_, S> {
    type Output = io::Result<(S::Stream, S::Addr)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let listening = self.listening;
        self.wait.poll_operation(cx, |_, seen| listening.accept_seen(seen))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn listening() -> Listening<mio::net::TcpListener> {
        Listening::new(mio::net::TcpListener::bind(([127, 0, 0, 1], 0).into()).expect("a port"))
    }

    /// Only the first connection after an event is accepted without a poll(2) before it. Otherwise each connection that
    /// comes alone would cost two calls of poll(2), and a process without descriptors would get the error of an
    /// accept(2) without a connection.
    #[test]
    #[cfg(not(target_vendor = "apple"))]
    fn only_first_accept_skips_poll() {
        let listening = listening();
        let address = listening.registration.socket().local_addr().expect("its address");
        let is_empty = || listening.empty.load(Ordering::Relaxed);
        let none = |reported| {
            let error = listening.accept_one(reported).map(drop).expect_err("none");
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        };
        none(false);
        assert!(is_empty(), "an event comes before the next one");
        none(false);
        assert!(is_empty(), "no event has come: it was asked again");
        let client = std::net::TcpStream::connect(address).expect("the listener's queue");
        let (_, peer) = listening.accept_one(true).expect("on loopback it is there once it is connected");
        assert_eq!((peer, is_empty()), (client.local_addr().unwrap(), false), "there may be more");
        none(true);
        assert!(is_empty());
        none(true);
        assert!(!is_empty(), "accept(2) was called in vain: others take what events announce");
        none(true);
        assert!(is_empty(), "and so it was asked");
    }

    /// A socket whose clients have all given up.
    struct GivingUp(UnixStream, Cell<usize>);

    impl AsFd for GivingUp {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl ListenSocket for GivingUp {
        type Stream = ();
        type Addr = ();

        fn accept(&self) -> io::Result<((), ())> {
            self.1.set(self.1.get() + 1);
            Err(io::Error::from_raw_os_error(libc::ECONNABORTED))
        }
    }

    /// Clients that give up without end do not keep a caller that does not wait.
    #[test]
    fn clients_that_give_up_keep_no_caller() {
        let (readable, peer) = UnixStream::pair().expect("a pair of sockets");
        drop(peer);
        let listening = Listening::new(GivingUp(readable, Cell::new(0)));
        let error = listening.try_accept().expect_err("there is no connection");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(listening.registration.socket().1.get(), GIVEN_UP);
    }

    /// An accepted connection is work for the spin policy, however few bytes it brings.
    #[test]
    fn accepted_connection_is_work() {
        let listening = listening();
        let address = listening.registration.socket().local_addr().expect("its address");
        let _client = std::net::TcpStream::connect(address).expect("the listener's queue");
        budget::take_work();
        listening.accept_one(true).expect("on loopback it is there once it is connected");
        assert!(budget::take_work() > 0, "accepting a connection is no work");
    }
}
