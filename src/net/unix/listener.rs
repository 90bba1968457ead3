//! Listening and accepting.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{self, SocketAddr};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::task::{Context, Poll};

use socket2::{Domain, SockRef, Type};

use super::addr::{bind_failed, from_path};
use super::stream::UnixStream;
use crate::net::incoming::{Incoming, IncomingWithPeer, IntoIncoming, IntoIncomingWithPeer};
use crate::net::listen::{Accepts, ListenSocket, Listening};
use crate::net::listener::Listener;
use crate::net::methods::{impl_fd, impl_listener, impl_readiness};
use crate::net::sys;
use crate::reactor::{Direction, Interest, Ready, Registration, WaiterSlot};

/// A Unix socket that accepts connections.
///
/// It is accepted from as from a [`TcpListener`](crate::net::TcpListener), and [`serve`](crate::net::serve()) takes it.
///
/// Dropping it does not remove the file at its path. While the file is there, the path cannot be bound again: a server
/// removes the file before it binds, or when it ends.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
/// use kittiwake::net::{UnixListener, UnixStream};
///
/// # kittiwake::block_on(async {
/// let path = std::env::temp_dir().join(format!("kittiwake-{}.socket", std::process::id()));
/// let listener = UnixListener::bind(&path)?;
/// let client = kittiwake::spawn({
///     let path = path.clone();
///     async move { UnixStream::connect(path).await?.write_all(b"hello").await }
/// });
/// let (mut stream, _) = listener.accept().await?;
/// let mut text = String::new();
/// stream.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// std::fs::remove_file(path)?;
/// client.await.unwrap()
/// # }).unwrap();
/// ```
pub struct UnixListener {
    listening: Listening<net::UnixListener>,
}

/// std's listener. mio's would save the system call that makes the new socket non-blocking. But mio loses the name of an
/// abstract peer, and panics if the peer's path fills the kernel's structure.
impl ListenSocket for net::UnixListener {
    type Stream = UnixStream;
    type Addr = SocketAddr;

    fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, peer) = net::UnixListener::accept(self)?;
        Ok((UnixStream::from_std(stream)?, peer))
    }
}

impl UnixListener {
    /// Makes a socket file at `path`, and listens on it.
    ///
    /// Asks for the largest backlog that the kernel allows.
    ///
    /// # Errors
    /// The error names the path, and its [`source`](std::error::Error::source) is the system's, with its code. `AddrInUse`: a file is there, and the error says whether it is the socket of another
    /// listener, the file that an ended one has left, or no socket. `InvalidInput`: the path is empty, too long, or
    /// contains a zero byte. `PermissionDenied`, `NotFound`: of the directory. See bind(2).
    ///
    /// # Examples
    /// See [`UnixListener`].
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_addr(&from_path(path.as_ref())?)
    }

    /// Listens on an address. On Linux it may be an abstract name, which needs no file.
    ///
    /// # Errors
    /// As for [`bind`](UnixListener::bind).
    ///
    /// # Examples
    /// ```
    /// # #[cfg(all(target_os = "linux", not(kittiwake_portable)))]
    /// # kittiwake::block_on(async {
    /// use kittiwake::net::{UnixListener, UnixStream};
    /// use std::os::linux::net::SocketAddrExt;
    /// use std::os::unix::net::SocketAddr;
    ///
    /// let name = format!("kittiwake-{}", std::process::id());
    /// let addr = SocketAddr::from_abstract_name(&name)?;
    /// let listener = UnixListener::bind_addr(&addr)?;
    /// let _client = UnixStream::connect_addr(&addr).await?;
    /// let (stream, _) = listener.accept().await?;
    /// assert_eq!(stream.local_addr()?.as_abstract_name(), Some(name.as_bytes()));
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn bind_addr(addr: &SocketAddr) -> io::Result<Self> {
        let listener = net::UnixListener::bind_addr(addr).map_err(|error| bind_failed(addr, error))?;
        // std asks for a short backlog on some systems. The kernel cuts this one down to what it allows.
        SockRef::from(&listener).listen(i32::MAX)?;
        Self::from_listening(listener)
    }

    /// Takes a listener of std's, and makes it non-blocking.
    ///
    /// # Errors
    /// If it cannot be made non-blocking. `InvalidInput` if the socket does not listen.
    ///
    /// # Platform notes
    /// macOS does not tell whether a socket listens. There the first [`accept`](UnixListener::accept) fails instead.
    pub fn from_std(listener: net::UnixListener) -> io::Result<Self> {
        sys::check_listens(&listener)?;
        Self::from_listening(listener)
    }

    fn from_listening(listener: net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listening: Listening::new(listener) })
    }

    /// Gives the listener back as one of std's, out of the reactor and blocking again.
    ///
    /// # Errors
    /// If it cannot be made blocking.
    pub fn into_std(self) -> io::Result<net::UnixListener> {
        let listener = self.into_socket();
        listener.set_nonblocking(false)?;
        Ok(listener)
    }

    /// Waits for the next connection and accepts it.
    ///
    /// # Cancel safety
    /// Safe: a connection is taken only in the poll that returns it.
    ///
    /// # Errors
    /// As for [`TcpListener::accept`](crate::net::TcpListener::accept).
    ///
    /// # Examples
    /// See [`UnixListener`].
    pub fn accept(&self) -> impl Future<Output = io::Result<(UnixStream, SocketAddr)>> + Unpin {
        self.listening.accept()
    }

    /// Accepts the next connection, or stores the waker if there is none.
    ///
    /// Only the waker of the last call is sure to be woken.
    ///
    /// # Errors
    /// As for [`accept`](UnixListener::accept).
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, SocketAddr)>> {
        self.listening.poll_accept(cx)
    }

    /// Accepts a connection that is in the kernel's queue, and never waits.
    ///
    /// # Errors
    /// As for [`TcpListener::try_accept`](crate::net::TcpListener::try_accept).
    pub fn try_accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        self.listening.try_accept()
    }

    /// The connections as a [`Stream`](crate::stream::Stream) that never ends.
    pub fn incoming(&self) -> Incoming<'_, Self> {
        Incoming::new(self)
    }

    /// The connections as a [`Stream`](crate::stream::Stream) that never ends and owns the listener.
    pub fn into_incoming(self) -> IntoIncoming<Self> {
        IntoIncoming::new(self)
    }

    /// The connections and the addresses of their peers, as a [`Stream`](crate::stream::Stream) that never ends.
    pub fn incoming_with_peer(&self) -> IncomingWithPeer<'_, Self> {
        IncomingWithPeer::new(self)
    }

    /// The connections and the addresses of their peers, as a [`Stream`](crate::stream::Stream) that never ends and owns
    /// the listener.
    pub fn into_incoming_with_peer(self) -> IntoIncomingWithPeer<Self> {
        IntoIncomingWithPeer::new(self)
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// See getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }
}

impl_listener!(UnixListener, net::UnixListener, net::UnixListener, UnixStream, SocketAddr, |_listener| Some(
    Domain::UNIX
));
impl_readiness!(read UnixListener);
impl_fd!(UnixListener);
