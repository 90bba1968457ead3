//! Connecting, reading and writing.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::net::addr::{ToSocketAddrs, try_each};
use crate::net::deadline::Limit;
use crate::net::stream::{Stream, impl_io};
use crate::reactor::Direction;
use crate::time::{Duration, timeout};

/// A TCP connection.
///
/// Reads and writes through [`AsyncRead`](crate::io::AsyncRead) and [`AsyncWrite`](crate::io::AsyncWrite), which are
/// implemented for `TcpStream` and for `&TcpStream`, so that one task can read while another writes.
/// [`split`](TcpStream::split) and [`into_split`](TcpStream::into_split) give each a half of its own.
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
/// | [`close`](futures_lite::AsyncWriteExt::close) | shuts the write half down: the peer reads to an end; we can go on reading |
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
    pub(super) stream: Stream<std::net::TcpStream>,
}

impl TcpStream {
    /// Connects to the first of `addrs` that accepts.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the socket.
    ///
    /// # Errors
    /// Of the last address tried: `ConnectionRefused`, `TimedOut`, `HostUnreachable` and others (see connect(2)). For a
    /// name also what [`lookup_host`](crate::net::lookup_host) says; `InvalidInput` for what is neither name nor
    /// address. Outside a runtime it fails, because connecting has to wait.
    ///
    /// # Examples
    /// See [`TcpStream`].
    pub async fn connect<A: ToSocketAddrs>(addrs: A) -> io::Result<Self> {
        try_each(addrs, Self::connect_to).await
    }

    /// Connects as [`connect`](TcpStream::connect) does, within `duration` for all addresses together.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the socket.
    ///
    /// # Errors
    /// `TimedOut` if the time is over; else as for [`connect`](TcpStream::connect).
    ///
    /// # Panics
    /// If it began to wait in a runtime and is then polled outside one.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::{TcpListener, TcpStream};
    /// use kittiwake::time::Duration;
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?;
    /// let stream = TcpStream::connect_timeout(address, Duration::from_secs(5)).await?;
    /// assert_eq!(stream.peer_addr()?, address);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn connect_timeout<A: ToSocketAddrs>(addrs: A, duration: Duration) -> io::Result<Self> {
        timeout(duration, Self::connect(addrs)).await?
    }

    async fn connect_to(addr: SocketAddr) -> io::Result<Self> {
        // The call first, then the registration: a socket that is not connecting
        // yet would be reported as closed.
        let stream = Self::from_nonblocking(mio::net::TcpStream::connect(addr)?.into());
        // Until the first event the socket has neither an error nor a peer, and the check could not tell.
        stream.writable().await?;
        stream.stream.registration().operate(Direction::Write, |_, _| connected(stream.socket())).await?;
        Ok(stream)
    }

    /// Takes a stream of std's, and makes it non-blocking.
    ///
    /// # Errors
    /// If it cannot be made non-blocking (fcntl(2)).
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::from_nonblocking(stream.into()))
    }

    pub(super) fn from_nonblocking(socket: OwnedFd) -> Self {
        Self { stream: Stream::new(socket.into()) }
    }

    /// Gives the stream back as one of std's, out of the reactor and blocking again. Every duplicate of its
    /// descriptor becomes blocking too, because duplicates share that setting.
    ///
    /// # Errors
    /// If it cannot be made blocking (fcntl(2)).
    pub fn into_std(self) -> io::Result<std::net::TcpStream> {
        let stream = self.stream.into_socket();
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Reads without taking the bytes away: the next read gets them again.
    ///
    /// Waits until there is something, and returns `Ok(0)` at the end of the stream. If the socket has a peek offset
    /// (`SO_PEEK_OFF`, socket(7)), it waits for bytes beyond the offset.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    ///
    /// # Errors
    /// As for reading.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::{TcpListener, TcpStream};
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let client = TcpStream::connect(listener.local_addr()?).await?;
    /// let (server, _) = listener.accept().await?;
    /// client.try_write(b"hello")?;
    /// let mut buf = [0; 16];
    /// assert_eq!(server.peek(&mut buf).await?, 5);
    /// assert_eq!(server.try_read(&mut buf)?, 5);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(buf).await
    }

    /// Waits until there is something to read, an end or an error included.
    ///
    /// It may return when there is nothing: then [`try_read`](TcpStream::try_read) says `WouldBlock`, and the next call
    /// waits.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// If the socket cannot be registered: no runtime on this thread, or epoll_ctl(2) fails.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::TcpStream;
    ///
    /// async fn read(stream: &TcpStream, buf: &mut [u8]) -> std::io::Result<usize> {
    ///     loop {
    ///         stream.readable().await?;
    ///         match stream.try_read(buf) {
    ///             Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
    ///             result => return result,
    ///         }
    ///     }
    /// }
    /// # use kittiwake::net::TcpListener;
    /// # kittiwake::block_on(async {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
    /// # let (stream, _) = listener.accept().await?;
    /// # client.await.unwrap()?.try_write(b"hello")?;
    /// # assert_eq!(read(&stream, &mut [0; 16]).await?, 5);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn readable(&self) -> io::Result<()> {
        self.stream.registration().ready(Direction::Read).await
    }

    /// Waits until something can be written, or the connection has failed.
    ///
    /// It may return when nothing can: then [`try_write`](TcpStream::try_write) says `WouldBlock`, and the next call
    /// waits.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// As for [`readable`](TcpStream::readable).
    ///
    /// # Examples
    /// As for [`readable`](TcpStream::readable), with `try_write`.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.registration().ready(Direction::Write).await
    }

    /// Reads what is there, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; else as for reading.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.try_read(buf)
    }

    /// Writes what can be written, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if nothing can; else as for writing.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.stream.try_write(buf)
    }

    /// Shuts down the reading half, the writing half, or both.
    ///
    /// After `Write` the peer reads to an end, and writing gives `BrokenPipe`. After `Read`, reading returns what
    /// is there and then ends. To do it again, or after the connection has ended, is no error.
    ///
    /// # Errors
    /// See shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }

    /// Ends a conversation without a reset: shuts down the writing half, then reads and throws away at most `limit`
    /// bytes, until the peer closes its side.
    ///
    /// A connection that is dropped while it has unread input is reset by the kernel, and a peer that gets a reset may
    /// lose what it has not read yet: our last reply. So a server that stops reading early, after an error reply say,
    /// ends with this. Returns `true` if the peer has closed its side, and `false` once `limit` bytes were read. A peer
    /// that just keeps its side open makes this wait: bound it in time too, by a [`timeout`].
    ///
    /// # Cancel safety
    /// Safe: what was read was to be thrown away.
    ///
    /// # Errors
    /// As for reading and for [`shutdown`](TcpStream::shutdown).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
    /// use kittiwake::net::{TcpListener, TcpStream};
    ///
    /// # kittiwake::block_on(async {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let address = listener.local_addr()?;
    /// let client = kittiwake::spawn(async move {
    ///     let mut stream = TcpStream::connect(address).await?;
    ///     stream.write_all(&[0; 10_000]).await?;
    ///     let mut reply = String::new();
    ///     stream.read_to_string(&mut reply).await?;
    ///     std::io::Result::Ok(reply)
    /// });
    /// let (mut stream, _) = listener.accept().await?;
    /// stream.write_all(b"too long").await?;
    /// assert!(stream.drain(1_000_000).await?);
    /// drop(stream);
    /// assert_eq!(client.await.unwrap()?, "too long");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn drain(&self, limit: u64) -> io::Result<bool> {
        self.shutdown(Shutdown::Write)?;
        let mut buf = [0; 4096];
        let mut left = limit;
        while left > 0 {
            let want = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
            match poll_fn(|cx| self.stream.poll_read(cx, &mut buf[..want])).await? {
                0 => return Ok(true),
                read => left -= read as u64,
            }
        }
        Ok(false)
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

    /// How long a read may wait; `None`, the default, is for ever.
    pub fn read_timeout(&self) -> Option<Duration> {
        self.stream.limit(Direction::Read, Limit::Operation)
    }

    /// Sets how long a read may wait before it fails with `TimedOut`.
    ///
    /// The time begins when a poll of a read has to wait. It ends when a read is ready, fails or times out, and begins
    /// anew with the next poll that has to wait. It goes on if the future of the read is dropped. So a read that is
    /// begun anew in each round of a loop, beside other things, times out as a single one would. Bytes that are there,
    /// and the end of the stream, are always read, however late. After `TimedOut` the stream is as good as before, and
    /// nothing is lost.
    ///
    /// The limit bounds reads through `AsyncRead`, and `drain`. It does not bound `peek` and `readable`. It is for all
    /// tasks that read the stream. If one of them is waiting already, its time begins now. A busy stream does not arm a
    /// timer for each read, as a [`timeout`] around each would.
    ///
    /// # Errors
    /// `InvalidInput` for zero. In another executor, outside a runtime, the runtime in which the stream last waited under
    /// a timeout goes on to time it. A read that has to wait there fails if there is no such runtime, or it has ended.
    ///
    /// # Examples
    /// Each round of this loop drops a read that waits. The 10 ms run from the first of them, and a tick does not begin
    /// them anew.
    /// ```
    /// use futures_lite::future;
    /// use kittiwake::io::AsyncReadExt;
    /// use kittiwake::net::{TcpListener, TcpStream};
    /// use kittiwake::time::{Duration, interval};
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let _silent = TcpStream::connect(listener.local_addr()?).await?;
    /// let (mut stream, _) = listener.accept().await?;
    ///
    /// stream.set_read_timeout(Some(Duration::from_millis(10)))?;
    /// let mut tick = interval(Duration::from_millis(1));
    /// let mut buf = [0; 64];
    /// let error = loop {
    ///     // As `select!`: the first that is ready counts, and the other is dropped.
    ///     let read = async { Some(stream.read(&mut buf).await) };
    ///     let ticked = async { tick.tick().await; None };
    ///     match future::or(read, ticked).await {
    ///         None => {}
    ///         Some(Ok(_)) => panic!("the peer sends nothing"),
    ///         Some(Err(error)) => break error,
    ///     }
    /// };
    /// assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_limit(Limit::Operation, &[Direction::Read], timeout)
    }

    /// How long a write may wait; `None`, the default, is for ever.
    pub fn write_timeout(&self) -> Option<Duration> {
        self.stream.limit(Direction::Write, Limit::Operation)
    }

    /// Sets how long a write may wait before it fails with `TimedOut`.
    ///
    /// As [`set_read_timeout`](TcpStream::set_read_timeout), for what goes through `AsyncWrite`. Each `poll_write` that
    /// writes something is an operation of its own: a `write_all` may take this time for every part that the peer
    /// takes, and when it fails some may have been written.
    ///
    /// # Errors
    /// As for [`set_read_timeout`](TcpStream::set_read_timeout).
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_limit(Limit::Operation, &[Direction::Write], timeout)
    }

    /// How long the stream may be idle; `None`, the default, is for ever.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.stream.limit(Direction::Read, Limit::Idle)
    }

    /// Sets how long the stream may be idle before a read or a write that waits fails with `TimedOut`.
    ///
    /// As [`set_read_timeout`](TcpStream::set_read_timeout), for both directions. But each read *and* write that moves
    /// bytes pushes the time of the other back: a task that waits for requests is left in peace while another still
    /// sends a long reply. A read and a write that wait are timed separately. This timeout can be combined with the
    /// read timeout and the write timeout. The one that is over first applies.
    ///
    /// # Errors
    /// As for [`set_read_timeout`](TcpStream::set_read_timeout).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncReadExt;
    /// use kittiwake::net::{TcpListener, TcpStream};
    /// use kittiwake::time::Duration;
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let _silent = TcpStream::connect(listener.local_addr()?).await?;
    /// let (mut stream, _) = listener.accept().await?;
    /// stream.set_idle_timeout(Some(Duration::from_millis(5)))?;
    /// let error = stream.read(&mut [0; 64]).await.unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_limit(Limit::Idle, &[Direction::Read, Direction::Write], timeout)
    }

    /// How many hops packets may take.
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn ttl(&self) -> io::Result<u32> {
        self.socket().ttl()
    }

    /// Sets how many hops packets may take.
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.socket().set_ttl(ttl)
    }

    /// The error that is pending on the socket (`SO_ERROR`), which this takes away.
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket().take_error()
    }

    fn socket(&self) -> &std::net::TcpStream {
        self.stream.socket()
    }
}

/// How a connect in progress stands; `WouldBlock` if the report was spurious, and it is neither
/// connected nor has it failed.
fn connected(socket: &std::net::TcpStream) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::WouldBlock.into()),
        result => result.map(drop),
    }
}

impl_io!(read for TcpStream, stream);
impl_io!(write for TcpStream, stream);
impl_io!(read for &TcpStream, stream);
impl_io!(write for &TcpStream, stream);

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl AsRawFd for TcpStream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket().as_raw_fd()
    }
}

// A panic leaves no state of a stream half changed.
impl UnwindSafe for TcpStream {}
impl RefUnwindSafe for TcpStream {}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket().fmt(f)
    }
}
