//! [`TcpListener`]. Its `bind` is in [`socket`](super::socket).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::task::{Context, Poll};

use socket2::{Domain, Type};

use super::stream::TcpStream;
use crate::net::incoming::{Incoming, IncomingWithPeer, IntoIncoming, IntoIncomingWithPeer};
use crate::net::listen::{Accepts, ListenSocket, Listening};
use crate::net::listener::Listener;
use crate::net::methods::{impl_fd, impl_listener, impl_readiness};
use crate::net::sys;
use crate::reactor::{Direction, Interest, Ready, Registration, WaiterSlot};

/// A TCP socket that accepts connections.
///
/// Several tasks may accept from one listener at the same time, through a shared reference or an `Arc`.
///
/// # Examples
/// ```
/// use kittiwake::net::{TcpListener, TcpStream};
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
/// let (_stream, peer) = listener.accept().await?;
/// assert_eq!(client.await.unwrap()?.local_addr()?, peer);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct TcpListener {
    listening: Listening<mio::net::TcpListener>,
}

/// mio's listener, because its `accept` makes the new socket non-blocking and close-on-exec in one system call where
/// there is one. With std's listener, non-blocking takes another system call.
impl ListenSocket for mio::net::TcpListener {
    type Stream = TcpStream;
    type Addr = SocketAddr;

    fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = mio::net::TcpListener::accept(self)?;
        Ok((TcpStream::from_fd(stream.into()), peer))
    }
}

impl TcpListener {
    /// Takes a listener of std's, and makes it non-blocking.
    ///
    /// # Errors
    /// If it cannot be made non-blocking. `InvalidInput` if the socket does not listen (`SO_ACCEPTCONN`,
    /// socket(7)).
    ///
    /// # Platform notes
    /// macOS does not tell whether a socket listens. There the first [`accept`](TcpListener::accept) fails instead.
    ///
    /// No duplicate of the listener may be made blocking while it is used: see [`accept`](TcpListener::accept).
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        sys::check_listens(&listener)?;
        Self::from_listening(listener)
    }

    /// Takes a socket that listens.
    pub(super) fn from_listening(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listening: Listening::new(mio::net::TcpListener::from_std(listener)) })
    }

    /// The listeners that the parent of this process has opened for it: socket activation, as systemd does it.
    ///
    /// With the feature `listenfd`.
    ///
    /// They are the descriptors from 3 on; `LISTEN_FDS` says how many, and `LISTEN_PID` for which process (for any, if
    /// it is not set). A server so started has its port before it runs, even a privileged port that it could not bind
    /// itself. No connection is refused while it is started again. The listeners become non-blocking and close-on-exec.
    /// There are none if the variables are not set, or not for this process; and none from the second call on, for they
    /// have an owner then.
    ///
    /// Call it at the beginning of `main`, before there are other threads: it takes the variables out of the
    /// environment, so that child processes do not mistake them for their own, and no other thread may read the
    /// environment meanwhile.
    ///
    /// # Errors
    /// `InvalidInput` if one of the descriptors is not a TCP socket that listens, or if `LISTEN_FDS` is not a number:
    /// all that were passed on are lost then, and the process should end with the error.
    ///
    /// # Platform notes
    /// macOS does not tell whether a TCP socket listens. There the first [`accept`](TcpListener::accept) fails instead.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::TcpListener;
    ///
    /// fn main() -> std::io::Result<()> {
    ///     let inherited = TcpListener::inherited()?.pop();
    ///     kittiwake::block_on(async {
    ///         let listener = match inherited {
    ///             Some(listener) => listener,
    ///             None => TcpListener::bind("127.0.0.1:0").await?,
    ///         };
    ///         println!("listening on {}", listener.local_addr()?);
    ///         Ok(())
    ///     })
    /// }
    /// ```
    #[cfg(feature = "listenfd")]
    pub fn inherited() -> io::Result<Vec<Self>> {
        use crate::net::inherited;
        let listeners = inherited::listeners()?.into_iter();
        listeners.map(|listener| Self::from_std(listener).map_err(inherited::wrong)).collect()
    }

    /// Gives the listener back as one of std's, out of the reactor and blocking again.
    ///
    /// # Errors
    /// If it cannot be made blocking.
    pub fn into_std(self) -> io::Result<std::net::TcpListener> {
        let listener = std::net::TcpListener::from(OwnedFd::from(self.into_socket()));
        listener.set_nonblocking(false)?;
        Ok(listener)
    }

    /// Waits for the next connection and accepts it.
    ///
    /// The new stream is non-blocking and close-on-exec.
    ///
    /// # Cancel safety
    /// Safe. The system call and its result happen in one poll, so a dropped future has taken no connection. Nor can it
    /// swallow a wake-up: an event wakes all tasks that accept.
    ///
    /// # Errors
    /// A connection that was given up before it was accepted (`ECONNABORTED`, `EPROTO`), and `EINTR`, are passed over.
    /// All else is reported, and the listener stays usable. When the process or the system is out of descriptors
    /// (`EMFILE`, `ENFILE`) or memory (`ENOBUFS`, `ENOMEM`), the connection stays in the queue, and the next call fails
    /// at once in the same way: close something, or wait for something to end, before calling again.
    ///
    /// # Platform notes
    /// On macOS the new descriptor becomes close-on-exec by a second system call. Elsewhere accept(2) is called only if
    /// an event or poll(2) has said that there is a connection.
    ///
    /// Reads and writes of a stream never block, whatever the setting of its descriptor. accept(2) has no flag for that.
    /// Non-blocking is a setting of the socket, which all duplicates of its descriptor share, also those in other
    /// processes. If other code makes a duplicate of the listener blocking, accept(2) may block the worker. Elsewhere
    /// than on macOS it then does so only if another thread or process takes the announced connection first.
    ///
    /// # Examples
    /// See [`TcpListener`].
    pub fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Unpin {
        self.listening.accept()
    }

    /// Accepts the next connection, or stores the waker if there is none.
    ///
    /// Only the waker of the last call is sure to be woken. Tasks that accept from one listener at the same time should
    /// use [`accept`](TcpListener::accept).
    ///
    /// # Errors
    /// As for [`accept`](TcpListener::accept).
    ///
    /// # Examples
    /// See [`Listener`].
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.listening.poll_accept(cx)
    }

    /// Accepts a connection that is in the kernel's queue, and never waits.
    ///
    /// It asks the kernel, whether or not an event has reported a connection.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is empty, and `ConnectionAborted` after 64 connections in succession that were given up:
    /// there may be more. All else as for [`accept`](TcpListener::accept).
    ///
    /// # Examples
    /// ```
    /// use std::io::ErrorKind;
    /// use kittiwake::net::TcpListener;
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// assert_eq!(listener.try_accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    ///
    /// // On loopback a connection is in the queue as soon as connect(2) has returned.
    /// let client = std::net::TcpStream::connect(listener.local_addr()?)?;
    /// assert_eq!(listener.try_accept()?.1, client.local_addr()?);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn try_accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listening.try_accept()
    }

    /// The connections as a [`Stream`](crate::stream::Stream) that never ends.
    ///
    /// Each item is what [`accept`](TcpListener::accept) returns, without the peer's address.
    ///
    /// # Cancel safety
    /// Safe: a connection is taken only in the poll that returns it.
    ///
    /// # Errors
    /// Each item may be one, as for [`accept`](TcpListener::accept). After it the stream can be polled again.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::{TcpListener, TcpStream};
    /// use kittiwake::stream::StreamExt;
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let _client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
    /// let stream = listener.incoming().next().await.unwrap()?;
    /// assert_eq!(stream.local_addr()?, listener.local_addr()?);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn incoming(&self) -> Incoming<'_, Self> {
        Incoming::new(self)
    }

    /// The connections as a [`Stream`](crate::stream::Stream) that never ends and owns the listener.
    ///
    /// Apart from that it is like [`incoming`](TcpListener::incoming).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::stream::StreamExt;
    /// use kittiwake::net::{TcpListener, TcpStream};
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let _client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
    /// let mut streams = listener.into_incoming();
    /// let accepting = kittiwake::spawn(async move { streams.next().await.unwrap() });
    /// assert!(accepting.await.unwrap()?.nodelay().is_ok());
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn into_incoming(self) -> IntoIncoming<Self> {
        IntoIncoming::new(self)
    }

    /// The connections and the addresses of their peers, as a [`Stream`](crate::stream::Stream) that never ends.
    ///
    /// Apart from the addresses it is like [`incoming`](TcpListener::incoming).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::{TcpListener, TcpStream};
    /// use kittiwake::stream::StreamExt;
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
    /// let (_stream, peer) = listener.incoming_with_peer().next().await.unwrap()?;
    /// assert_eq!(peer, client.await.unwrap()?.local_addr()?);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn incoming_with_peer(&self) -> IncomingWithPeer<'_, Self> {
        IncomingWithPeer::new(self)
    }

    /// The connections and the addresses of their peers, as a [`Stream`](crate::stream::Stream) that never ends and owns
    /// the listener.
    ///
    /// Apart from that it is like [`incoming`](TcpListener::incoming).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::{TcpListener, TcpStream};
    /// use kittiwake::stream::StreamExt;
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
    /// let mut connections = listener.into_incoming_with_peer();
    /// let accepting = kittiwake::spawn(async move { connections.next().await.unwrap() });
    /// let (_stream, peer) = accepting.await.unwrap()?;
    /// assert_eq!(peer, client.await.unwrap()?.local_addr()?);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
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

    /// How many hops a connection's packets of IPv4 may take (`IP_TTL`).
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn ttl(&self) -> io::Result<u32> {
        self.socket().ttl()
    }

    /// Sets how many hops the packets of IPv4 connections accepted from now on may take. The hops of IPv6 connections
    /// stay as they are.
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        // As for a stream.
        self.socket().set_ttl(ttl.min(i32::MAX as u32))
    }
}

impl_listener!(TcpListener, std::net::TcpListener, mio::net::TcpListener, TcpStream, SocketAddr, |listener| listener
    .local_addr()
    .ok()
    .map(Domain::for_address));
impl_readiness!(read TcpListener);
impl_fd!(TcpListener);
