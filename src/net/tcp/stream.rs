//! [`TcpStream`]. Its methods of reading and writing are in [`methods`](crate::net::methods), connecting is in
//! [`socket`](super::socket).

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::net::deadline::Limit;
use crate::net::methods::{impl_fd, impl_readiness, impl_std, impl_stream};
use crate::net::stream::{Socket, Stream, StreamSocket, impl_io};
use crate::reactor::{Direction, Interest, Ready, Registration, WaiterSlot};
use crate::time::Duration;

/// A TCP connection.
///
/// Reads and writes through [`AsyncRead`](crate::io::AsyncRead) and [`AsyncWrite`](crate::io::AsyncWrite), which are
/// implemented for `TcpStream` and for `&TcpStream`, so that one task can read while another writes.
/// [`split`](TcpStream::split) and [`into_split`](TcpStream::into_split) give each a half of its own.
///
/// # In an `Arc`
/// `Arc<TcpStream>` does not implement the two traits: `Arc` and the traits are foreign, and then Rust allows no
/// implementation here. `&*stream` is a `&TcpStream`, which has both. It can be passed by value, and where a `&mut` reader
/// or writer is asked for, `&mut &*stream` is one:
/// ```
/// use std::sync::Arc;
///
/// use kittiwake::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
/// use kittiwake::net::{TcpListener, TcpStream};
///
/// async fn skip_byte(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
///     reader.read_exact(&mut [0]).await
/// }
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = Arc::new(TcpStream::connect(listener.local_addr()?).await?);
/// let writing = kittiwake::spawn({
///     let client = client.clone();
///     async move { (&*client).write_all(b">hello\n").await }
/// });
/// let (server, _) = listener.accept().await?;
/// kittiwake::io::copy((&server).take(7), &server).await?;
/// skip_byte(&mut &*client).await?;
/// let mut line = String::new();
/// BufReader::new(&*client).read_line(&mut line).await?;
/// assert_eq!(line, "hello\n");
/// writing.await.unwrap()
/// # }).unwrap();
/// ```
///
/// # Cancel safety
/// A read or a write moves bytes only in the poll that returns `Ready`: dropping its future before that loses nothing.
/// `write_all` and the like may have written a part.
///
/// # Errors
/// The kernel's, as they are. `WouldBlock` and `Interrupted` are never returned by anything that waits. A reset by the
/// peer is reported to the reader at least once: the kernel reports it only to whichever operation comes first, so when
/// a write or a peek has met it, the next read that would report a clean end fails with `ConnectionReset` instead. Writing to a
/// connection that is closed gives `BrokenPipe`, and never a SIGPIPE.
///
/// An empty buffer is read into, and written, at once: `Ok(0)`, which says nothing about the stream.
///
/// # Closing
/// | what | does |
/// | --- | --- |
/// | [`close`](crate::io::AsyncWriteExt::close) | shuts the write half down: the peer reads to an end; we can go on reading |
/// | [`shutdown`](TcpStream::shutdown) | the same for either half, or both |
/// | drop | closes the connection; what was written is still sent |
/// | drop with unread input | the kernel sends a **reset**, and the peer may lose our last bytes. [`drain`](TcpStream::drain) first |
///
/// # Platform notes
/// On Linux urgent (out-of-band) data is left out of the stream, unless `SO_OOBINLINE` is set.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
/// use kittiwake::net::{TcpListener, TcpStream};
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let server = kittiwake::spawn({
///     let address = listener.local_addr()?;
///     async move {
///         let mut stream = TcpStream::connect(address).await?;
///         stream.write_all(b"hello").await?;
///         stream.close().await
///     }
/// });
/// let (mut stream, _) = listener.accept().await?;
/// let mut text = String::new();
/// stream.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// server.await.unwrap()
/// # }).unwrap();
/// ```
pub struct TcpStream {
    pub(in crate::net) stream: Stream<std::net::TcpStream>,
}

impl StreamSocket for std::net::TcpStream {
    const SHORT_RULE: bool = true;
    const REPORTS_SHUTDOWN: bool = true;
}

impl TcpStream {
    /// Takes a non-blocking socket.
    pub(super) fn from_fd(socket: OwnedFd) -> Self {
        Self::from_nonblocking(socket.into())
    }

    /// The peer's address.
    ///
    /// # Errors
    /// `NotConnected` once the connection has ended; see getpeername(2).
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket().peer_addr()
    }

    /// The address of this end.
    ///
    /// # Errors
    /// See getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }

    /// Whether small writes are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn nodelay(&self) -> io::Result<bool> {
        self.socket().nodelay()
    }

    /// Sets whether small writes are sent at once, instead of being held back until earlier ones are acknowledged.
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.socket().set_nodelay(nodelay)
    }

    /// How many hops packets of IPv4 may take (`IP_TTL`).
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn ttl(&self) -> io::Result<u32> {
        self.socket().ttl()
    }

    /// Sets how many hops packets of IPv4 may take. The hops of an IPv6 connection stay as they are.
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        // The system takes a signed number. `u32::MAX` would become -1, which means the default.
        self.socket().set_ttl(ttl.min(i32::MAX as u32))
    }
}

impl_stream!(
    TcpStream,
    std::net::TcpStream,
    "{
#     let listener = kittiwake::net::TcpListener::bind(\"127.0.0.1:0\").await?;
#     let client = kittiwake::net::TcpStream::connect(listener.local_addr()?).await?;
#     (listener.accept().await?.0, client)
# }"
);
impl_readiness!(TcpStream);
impl_std!(TcpStream, std::net::TcpStream);
impl_fd!(TcpStream);
