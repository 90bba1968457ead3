//! [`UnixDatagram`]. Receiving and sending to a connected peer are in [`methods`](crate::net::methods).

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{self, SocketAddr};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::task::{Context, Poll};

use super::addr::{bind_failed, failed, from_path};
use super::backoff::retry;
use crate::net::datagram::{Datagram, DatagramSocket};
use crate::net::methods::{impl_datagram, impl_fd, impl_readiness, impl_std};
use crate::net::sys;
use crate::reactor::{Direction, Interest, Ready, Registration, WaiterSlot};

/// A Unix socket for datagrams.
///
/// Datagrams are not lost between Unix sockets, and arrive in order. A sender waits while the receiver's queue is full.
/// Dropping the socket does not remove the file at its path.
///
/// # Platform notes
/// On Linux a sender's path may fill the kernel's structure, with 108 bytes. std's
/// [`SocketAddr`] cannot be made from such a path, so this sender counts as unnamed.
///
/// # Examples
/// ```
/// use kittiwake::net::UnixDatagram;
///
/// # kittiwake::block_on(async {
/// let path = std::env::temp_dir().join(format!("kittiwake-{}.datagrams", std::process::id()));
/// let server = UnixDatagram::bind(&path)?;
/// let client = UnixDatagram::unbound()?;
/// client.send_to(b"hello", &path).await?;
///
/// let mut buf = [0; 64];
/// let (length, peer) = server.recv_from(&mut buf).await?;
/// assert_eq!(&buf[..length], b"hello");
/// assert!(peer.is_unnamed());
/// std::fs::remove_file(path)
/// # }).unwrap();
/// ```
pub struct UnixDatagram {
    datagram: Datagram<net::UnixDatagram>,
}

impl DatagramSocket for net::UnixDatagram {
    type Addr = SocketAddr;

    fn addr(any: Option<sys::SocketAddrAny>) -> io::Result<SocketAddr> {
        sys::from_unix_addr(any)
    }

    fn send_to(&self, buf: &[u8], target: &SocketAddr) -> io::Result<usize> {
        sys::send_to(self, buf, &sys::to_unix_addr(target)?)
    }
}

impl UnixDatagram {
    /// Makes a socket and a file for it at `path`.
    ///
    /// # Errors
    /// As for [`UnixListener::bind`](crate::net::UnixListener::bind).
    ///
    /// # Examples
    /// See [`UnixDatagram`].
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_addr(&from_path(path.as_ref())?)
    }

    /// Makes a socket with an address. On Linux it may be an abstract name, which needs no file.
    ///
    /// # Errors
    /// As for [`UnixListener::bind`](crate::net::UnixListener::bind).
    pub fn bind_addr(addr: &SocketAddr) -> io::Result<Self> {
        Self::from_std(net::UnixDatagram::bind_addr(addr).map_err(|error| bind_failed(addr, error))?)
    }

    /// Makes a socket without an address. Its receivers cannot answer it.
    ///
    /// # Errors
    /// See socket(2).
    pub fn unbound() -> io::Result<Self> {
        Self::from_std(net::UnixDatagram::unbound()?)
    }

    /// Makes two sockets that are connected to each other and have no address.
    ///
    /// # Errors
    /// See socketpair(2).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::UnixDatagram;
    ///
    /// # kittiwake::block_on(async {
    /// let (one, other) = UnixDatagram::pair()?;
    /// one.send(b"hello").await?;
    /// let mut buf = [0; 64];
    /// assert_eq!(other.recv(&mut buf).await?, 5);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = net::UnixDatagram::pair()?;
        Ok((Self::from_std(one)?, Self::from_std(other)?))
    }

    /// Sets the peer that [`send`](UnixDatagram::send) sends to and [`recv`](UnixDatagram::recv) receives from.
    ///
    /// # Errors
    /// The error names the path, as that of [`UnixStream::connect`](crate::net::UnixStream::connect).
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.connect_addr(&from_path(path.as_ref())?)
    }

    /// As [`connect`](UnixDatagram::connect), by an address.
    ///
    /// # Errors
    /// As for [`connect`](UnixDatagram::connect).
    pub fn connect_addr(&self, addr: &SocketAddr) -> io::Result<()> {
        self.socket().connect_addr(addr).map_err(|error| failed("connect to", addr, error))
    }

    /// Sends a datagram to the socket at `path`. Returns its length.
    ///
    /// While the receiver's queue is full, it tries again after pauses that grow to 50 ms, because the system reports no
    /// event. A [connected](UnixDatagram::connect) socket needs no pauses.
    ///
    /// # Cancel safety
    /// Safe: a datagram is sent whole, in the poll that returns `Ready`.
    ///
    /// # Errors
    /// `ConnectionRefused` if no socket is bound to the path any more. `EMSGSIZE` if the datagram is larger than the send
    /// buffer. Outside a runtime, a full queue is the error `WouldBlock`. See send(2).
    ///
    /// # Platform notes
    /// On macOS and the BSDs a full queue is the error `ENOBUFS`, also of [`send`](UnixDatagram::send).
    ///
    /// # Examples
    /// See [`UnixDatagram`].
    pub async fn send_to(&self, buf: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        self.send_to_addr(buf, &from_path(path.as_ref())?).await
    }

    /// Sends a datagram to the socket with that address.
    ///
    /// Apart from that it is like [`send_to`](UnixDatagram::send_to).
    ///
    /// # Cancel safety
    /// Safe: a datagram is sent whole, in the poll that returns `Ready`.
    ///
    /// # Errors
    /// As for [`send_to`](UnixDatagram::send_to).
    pub async fn send_to_addr(&self, buf: &[u8], addr: &SocketAddr) -> io::Result<usize> {
        retry(|| self.datagram.try_send_to_queue(buf, addr)).await
    }

    /// Sends a datagram to the socket at `path`, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if a queue or a buffer is full; else as for [`send_to`](UnixDatagram::send_to). If it is the queue of the
    /// receiver, `writable` does not wait for that: it knows of this socket's own buffer alone.
    pub fn try_send_to(&self, buf: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        self.try_send_to_addr(buf, &from_path(path.as_ref())?)
    }

    /// Sends a datagram to the socket with that address, without waiting.
    ///
    /// # Errors
    /// As for [`try_send_to`](UnixDatagram::try_send_to).
    pub fn try_send_to_addr(&self, buf: &[u8], addr: &SocketAddr) -> io::Result<usize> {
        self.datagram.try_send_to_queue(buf, addr)
    }

    /// Shuts down receiving, sending, or both.
    ///
    /// Datagrams that had arrived before can still be received. After them each receive and each peek returns 0 bytes
    /// and an unnamed address, also one that waits. Each send fails with `BrokenPipe` after a shutdown of sending, also one
    /// that waits for room.
    ///
    /// # Errors
    /// See shutdown(2).
    ///
    /// # Platform notes
    /// Linux does not tell a non-blocking system call that receiving was shut down: it fails with `WouldBlock`. So a call
    /// of your own in [`try_io`](UnixDatagram::try_io) does, and if other code shuts the socket down, for instance
    /// through a duplicate of its descriptor, no receive ends.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        sys::shutdown(self, how)?;
        if how != Shutdown::Write {
            self.registration().note_ended(Direction::Read);
        }
        if how != Shutdown::Read {
            self.registration().note_ended(Direction::Write);
        }
        Ok(())
    }
}

impl_datagram!(UnixDatagram, net::UnixDatagram, SocketAddr);
impl_readiness!(UnixDatagram);
impl_std!(UnixDatagram, net::UnixDatagram);
impl_fd!(UnixDatagram);
