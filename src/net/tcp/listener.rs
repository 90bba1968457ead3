//! Listening and accepting.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_lite::Stream;
use socket2::{Domain, Protocol, Socket, Type};

use super::stream::TcpStream;
use crate::budget;
use crate::metrics;
use crate::net::addr::{ToSocketAddrs, try_each};
use crate::net::listener::Listener;
use crate::net::sys;
use crate::reactor::{Direction, Registration, Snapshot, Wait, WaiterSlot};

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
    /// The socket is mio's, because its `accept` makes the new socket non-blocking and close-on-exec in one system call
    /// where there is one. With std's listener, non-blocking takes another system call.
    registration: Registration<mio::net::TcpListener>,
    /// A hint, which only decides whether the listener asks poll(2) ([`sys::may_accept`]) before it calls accept(2). The
    /// last poll(2) found the queue empty. If the reactor has reported the socket since, there is a connection, and
    /// poll(2) can be left out.
    empty: AtomicBool,
}

impl TcpListener {
    /// Listens on the first of `addrs` that can be bound.
    ///
    /// Sets `SO_REUSEADDR`, so that a server can be started again at once, and asks for the largest backlog the kernel
    /// allows (on Linux `net.core.somaxconn`): with the usual 128, a burst of connections is lost. Port 0 lets the
    /// system choose; [`local_addr`](TcpListener::local_addr) tells what it chose.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the socket.
    ///
    /// # Errors
    /// Of the last address tried: `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` (see bind(2)). For a name also
    /// what [`lookup_host`](crate::net::lookup_host) says; `InvalidInput` for what is neither name nor address.
    ///
    /// # Examples
    /// See [`TcpListener`].
    pub async fn bind<A: ToSocketAddrs>(addrs: A) -> io::Result<Self> {
        try_each(addrs, |addr| std::future::ready(Self::bind_to(addr))).await
    }

    fn bind_to(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        // The kernel cuts it down to what it allows.
        socket.listen(i32::MAX)?;
        Self::from_listening(socket.into())
    }

    /// Takes a listener of std's, and makes it non-blocking.
    ///
    /// # Errors
    /// If it cannot be made non-blocking (fcntl(2)). `InvalidInput` if the socket does not listen (`SO_ACCEPTCONN`,
    /// socket(7)).
    ///
    /// # Platform notes
    /// Whether a socket listens is asked on Linux and Android; elsewhere the first [`accept`](TcpListener::accept) says
    /// so. No duplicate of the listener may be made blocking while it is used: see [`accept`](TcpListener::accept).
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        if !sys::may_listen(&listener)? {
            let why = format!("{listener:?} does not listen; call listen(2) first, or pass the socket that does");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Self::from_listening(listener)
    }

    fn from_listening(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let registration = Registration::new(mio::net::TcpListener::from_std(listener));
        Ok(Self { registration, empty: AtomicBool::new(false) })
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
    /// Whether a TCP socket listens is asked on Linux and Android; elsewhere the first [`accept`](TcpListener::accept)
    /// says so.
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
    /// If it cannot be made blocking (fcntl(2)).
    pub fn into_std(self) -> io::Result<std::net::TcpListener> {
        let listener = std::net::TcpListener::from(OwnedFd::from(self.registration.into_socket()));
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
    /// On macOS the new descriptor becomes close-on-exec by a second system call. On Linux accept(2) is called only if
    /// an event or poll(2) has said that there is a connection.
    ///
    /// Reads and writes of a stream never block, whatever the setting of its descriptor. accept(2) has no flag for that.
    /// Non-blocking is a setting of the socket, which all duplicates of its descriptor share, also those in other
    /// processes. If other code makes a duplicate of the listener blocking, accept(2) may block the worker. On Linux it
    /// then does so only if another thread or process takes the announced connection first.
    ///
    /// # Examples
    /// See [`TcpListener`].
    pub fn accept(&self) -> Accept<'_> {
        Accept { listener: self, wait: self.registration.waiter(Direction::Read) }
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
        self.registration.poll_operation(cx, Direction::Read, WaiterSlot::Seat, |_, seen| self.accept_seen(seen))
    }

    /// Accepts a connection that is in the kernel's queue, and never waits.
    ///
    /// It asks the kernel, whether or not an event has reported a connection.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is empty. All else as for [`accept`](TcpListener::accept).
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
        self.registration.try_operation(Direction::Read, |_, _| self.accept_one(false))
    }

    /// The connections as a [`Stream`] that never ends.
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
    /// use futures_lite::StreamExt;
    /// use kittiwake::net::{TcpListener, TcpStream};
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let _client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
    /// let stream = listener.incoming().next().await.unwrap()?;
    /// assert_eq!(stream.local_addr()?, listener.local_addr()?);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { accept: self.accept() }
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// See getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }

    /// The error that is pending on the socket (`SO_ERROR`), which this takes away.
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket().take_error()
    }

    /// How many hops a connection's packets may take.
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn ttl(&self) -> io::Result<u32> {
        self.socket().ttl()
    }

    /// Sets how many hops the packets of connections accepted from now on may take.
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.socket().set_ttl(ttl)
    }

    fn socket(&self) -> &mio::net::TcpListener {
        self.registration.socket()
    }

    fn accept_seen(&self, seen: Snapshot) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept_one(seen.is_reported(Direction::Read))
    }

    /// Accepts one connection. `reported`: the reactor has reported that there are some. A connection that its peer has
    /// given up counts as an interruption, so that the caller tries again.
    fn accept_one(&self, reported: bool) -> io::Result<(TcpStream, SocketAddr)> {
        // Relaxed: if two tasks race, one of them makes a poll(2) or an accept(2) in vain. Nothing else depends on the
        // hint.
        let is_new = self.empty.swap(false, Ordering::Relaxed) && reported;
        if !is_new && !sys::may_accept(self.socket()) {
            self.empty.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (stream, peer) = self.socket().accept().map_err(|error| match error.raw_os_error() {
            Some(libc::ECONNABORTED | libc::EPROTO) => io::ErrorKind::Interrupted.into(),
            _ => error,
        })?;
        metrics::count_accept();
        budget::count_events(1);
        Ok((TcpStream::from_nonblocking(stream.into()), peer))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        TcpListener::poll_accept(self, cx)
    }

    fn try_accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::try_accept(self)
    }

    /// A new socket. Closing a duplicate frees no file, so it would not help against `ENFILE`. It is the fallback in a
    /// sandbox that allows no new socket.
    fn reserve(&self) -> Option<OwnedFd> {
        match Socket::new(Domain::for_address(self.local_addr().ok()?), Type::STREAM, None) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.as_fd().try_clone_to_owned().ok(),
            socket => socket.ok().map(OwnedFd::from),
        }
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl AsRawFd for TcpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket().as_raw_fd()
    }
}

// A panic leaves no state of a listener half changed.
impl UnwindSafe for TcpListener {}
impl RefUnwindSafe for TcpListener {}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket().fmt(f)
    }
}

/// The future of [`TcpListener::accept`].
#[must_use = "futures do nothing unless awaited"]
pub struct Accept<'a> {
    listener: &'a TcpListener,
    wait: Wait<'a, mio::net::TcpListener>,
}

impl Future for Accept<'_> {
    type Output = io::Result<(TcpStream, SocketAddr)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let listener = self.listener;
        self.wait.poll_operation(cx, |_, seen| listener.accept_seen(seen))
    }
}

impl fmt::Debug for Accept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept").finish_non_exhaustive()
    }
}

/// The stream of [`TcpListener::incoming`].
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Incoming<'a> {
    accept: Accept<'a>,
}

impl Stream for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // `Accept` accepts anew each time it is polled.
        let accepted = std::task::ready!(Pin::new(&mut self.accept).poll(cx));
        Poll::Ready(Some(accepted.map(|(stream, _)| stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the first connection after an event is accepted without a poll(2) before it. Otherwise each connection that
    /// comes alone would cost two calls of poll(2), and a process without descriptors would get the error of an
    /// accept(2) without a connection.
    #[test]
    fn only_first_accept_skips_poll() {
        let listener = TcpListener::bind_to(([127, 0, 0, 1], 0).into()).expect("a port");
        let is_empty = || listener.empty.load(Ordering::Relaxed);
        let none =
            |reported| assert_eq!(listener.accept_one(reported).expect_err("none").kind(), io::ErrorKind::WouldBlock);
        none(false);
        assert!(is_empty(), "an event comes before the next one");
        none(false);
        assert!(is_empty(), "no event has come: it was asked again");
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).expect("the listener's queue");
        let (_, peer) = listener.accept_one(true).expect("on loopback it is there once it is connected");
        assert_eq!((peer, is_empty()), (client.local_addr().unwrap(), false), "there may be more");
        none(true);
        assert!(is_empty());
        none(true);
        assert!(!is_empty(), "accept(2) was called in vain: others take what events announce");
        none(true);
        assert!(is_empty(), "and so it was asked");
    }

    /// An accepted connection is work for the spin policy, however few bytes it brings.
    #[test]
    fn accepted_connection_is_work() {
        let listener = TcpListener::bind_to(([127, 0, 0, 1], 0).into()).expect("a port");
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).expect("the listener's queue");
        budget::take_work();
        listener.accept_one(true).expect("on loopback it is there once it is connected");
        assert!(budget::take_work() > 0, "accepting a connection is no work");
    }
}
