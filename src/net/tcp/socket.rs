//! [`TcpSocket`], and the functions that make a listener or a stream from addresses.
//!
//! # The steps of a connect
//! 1. connect(2) begins the connection. Only then is the socket registered: the reactor would report a socket that is
//!    not connecting yet as closed.
//! 2. The task waits until the reactor reports the socket writable.
//! 3. `SO_ERROR` and getpeername(2) say how the connect ended. A report may be spurious, and then the task waits again.
//! 4. A stream that is connected to itself is an error. See below.
//!
//! # Connections to oneself
//! The kernel gives a connecting socket a local port. If it gives the very port that the socket connects to, and no
//! socket listens there, TCP's simultaneous open connects the socket to itself. A client that tries again and again
//! until its server runs meets this sooner or later, and then holds the port that the server wants to bind. So such a
//! stream counts as refused. The kernel chooses another port for another attempt, so [`TcpStream::connect`] tries again
//! first.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use socket2::{Domain, Socket, Type};

use super::listener::TcpListener;
use super::options::impl_options;
use super::stream::TcpStream;
use crate::net::addr::{ToSocketAddrs, try_each};
use crate::net::addr_error::{AddrError, Operation};
use crate::net::{connect, sys};
use crate::reactor::Direction;
use crate::time::Duration;

/// How often [`TcpStream::connect`] tries again after a socket has connected to itself. Go has the same limit.
const SELF_CONNECT_RETRIES: usize = 2;

/// A TCP socket that neither listens nor is connected yet.
///
/// It sets options that must be set before it listens or connects, such as the address that a client connects from, and
/// options that have to hold from the first packet on. [`listen`](TcpSocket::listen) makes a [`TcpListener`] of it, and
/// [`connect`](TcpSocket::connect) a [`TcpStream`]. [`TcpListener::bind`] and [`TcpStream::connect`] fit most programs.
///
/// An option that the system lacks is an error of the kind `Unsupported`.
///
/// # Other options
/// The feature `sockopt` adds methods for `TCP_DEFER_ACCEPT` and `TCP_FASTOPEN`. They are set by the crate `nix`, which
/// alone has safe bindings for them. Any other option a program sets on the descriptor ([`AsFd`]), or on a socket of
/// its own that it converts from [`socket2::Socket`].
///
/// # Examples
/// A server with a short queue, and a client that chooses its address:
/// ```
/// use kittiwake::net::TcpSocket;
///
/// # kittiwake::block_on(async {
/// let socket = TcpSocket::new_v4()?;
/// socket.set_reuse_address(true)?;
/// socket.bind("127.0.0.1:0".parse().unwrap())?;
/// let listener = socket.listen(16)?;
///
/// let socket = TcpSocket::new_v4()?;
/// socket.set_nodelay(true)?;
/// socket.bind("127.0.0.1:0".parse().unwrap())?;
/// let client = socket.local_addr()?;
/// let stream = socket.connect(listener.local_addr()?).await?;
/// assert_eq!(stream.local_addr()?, client);
/// assert!(stream.nodelay()?);
/// assert_eq!(listener.accept().await?.1, client);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct TcpSocket {
    socket: Socket,
    /// Made here, and so non-blocking. A socket of the caller's may block.
    is_nonblocking: bool,
}

impl TcpSocket {
    /// Makes a socket for IPv4.
    ///
    /// The socket is non-blocking and close-on-exec.
    ///
    /// # Errors
    /// See socket(2).
    pub fn new_v4() -> io::Result<Self> {
        Self::new(Domain::IPV4)
    }

    /// Makes a socket for IPv6.
    ///
    /// As [`new_v4`](TcpSocket::new_v4). [`set_only_v6`](TcpSocket::set_only_v6) says whether it also talks to IPv4.
    ///
    /// # Errors
    /// See socket(2).
    pub fn new_v6() -> io::Result<Self> {
        Self::new(Domain::IPV6)
    }

    fn new(domain: Domain) -> io::Result<Self> {
        Ok(Self { socket: sys::tcp_socket(domain)?, is_nonblocking: true })
    }

    /// Binds the socket to an address of this machine.
    ///
    /// Port 0 lets the system choose a port.
    ///
    /// # Errors
    /// Returns an [`AddrError`] inside the [`io::Error`], of the kinds `AddrInUse`, `AddrNotAvailable`,
    /// `PermissionDenied` and others (see bind(2)).
    pub fn bind(&self, addr: SocketAddr) -> io::Result<()> {
        self.socket.bind(&addr.into()).map_err(|error| AddrError::at(Operation::Bind, addr, error))
    }

    /// The address that the socket is bound to. Its port is 0 if the socket is not bound.
    ///
    /// # Errors
    /// See getsockname(2). `InvalidInput` if the socket was converted and is no IP socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the socket's address has no port: it is no TCP socket")
        })
    }

    /// Listens for connections.
    ///
    /// The kernel keeps at most about `backlog` connections that the listener has not accepted yet. It cuts a larger
    /// number down to what the system allows. Bind the socket first: otherwise the system chooses a port.
    ///
    /// # Errors
    /// Returns an [`AddrError`] inside the [`io::Error`]. `AddrInUse` if another socket listens on the port (see
    /// listen(2)).
    pub fn listen(self, backlog: u32) -> io::Result<TcpListener> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        match self.socket.listen(backlog) {
            Ok(()) => TcpListener::from_listening(self.socket.into()),
            Err(error) => match self.local_addr() {
                Ok(addr) => Err(AddrError::at(Operation::Listen, addr, error)),
                Err(_) => Err(error),
            },
        }
    }

    /// Connects to `addr`.
    ///
    /// # Cancel safety
    /// Safe. Dropping the future closes the socket.
    ///
    /// # Errors
    /// Returns an [`AddrError`] inside the [`io::Error`], of the kinds `ConnectionRefused`, `TimedOut`,
    /// `HostUnreachable` and others (see connect(2)). `ConnectionRefused` also if the socket has connected to itself:
    /// no socket listens on `addr`, and this socket is bound to it. Fails outside a runtime, because connecting has to
    /// wait.
    ///
    /// # Examples
    /// See [`TcpSocket`].
    pub async fn connect(self, addr: SocketAddr) -> io::Result<TcpStream> {
        let connected = match self.connect_unless_self(addr).await {
            Ok(stream) => stream.ok_or_else(connected_to_itself),
            Err(error) => Err(error),
        };
        connected.map_err(|error| AddrError::at(Operation::Connect, addr, error))
    }

    /// Connects. Returns `None` if the socket has connected to itself.
    async fn connect_unless_self(self, addr: SocketAddr) -> io::Result<Option<TcpStream>> {
        if !self.is_nonblocking {
            check_type(&self.socket)?;
            self.socket.set_nonblocking(true)?;
        }
        let connected = self.socket.connect(&addr.into());
        match &connected {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(_) => return connected.map(|()| None),
            Ok(()) => {}
        }
        let stream = TcpStream::from_fd(self.socket.into());
        if connected.is_ok() {
            // A fast open, which sends nothing before the first write. Until then the socket has no peer, and the
            // system reports no event that tells of one.
            return Ok(Some(stream));
        }
        // Until the first event the socket has neither an error nor a peer, and the check could not tell.
        stream.writable().await?;
        let peer = stream.stream.registration().operate(Direction::Write, |_, _| peer_of_connected(&stream)).await?;
        if stream.local_addr()? == peer {
            // A reset leaves the port free for a server at once. An orderly close would keep it for a minute.
            stream.set_zero_linger()?;
            return Ok(None);
        }
        Ok(Some(stream))
    }

    /// Whether the address may be bound although earlier connections of it still fade out (`SO_REUSEADDR`).
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn reuse_address(&self) -> io::Result<bool> {
        self.socket.reuse_address()
    }

    /// Sets whether the address may be bound although earlier connections of it still fade out. A server that is
    /// started again needs it. [`TcpListener::bind`] sets it.
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_reuse_address(&self, reuse: bool) -> io::Result<()> {
        self.socket.set_reuse_address(reuse)
    }

    /// Whether several sockets may listen on the same port (`SO_REUSEPORT`).
    ///
    /// # Errors
    /// `Unsupported` if the system lacks the option. See getsockopt(2).
    pub fn reuse_port(&self) -> io::Result<bool> {
        sys::options::reuse_port(self)
    }

    /// Sets whether several sockets may listen on the same port. All of them must set it before they bind.
    ///
    /// # Errors
    /// `Unsupported` if the system lacks the option. See setsockopt(2).
    ///
    /// # Platform notes
    /// Linux spreads the connections over the sockets. On macOS and most BSDs the last socket gets them all.
    pub fn set_reuse_port(&self, reuse: bool) -> io::Result<()> {
        sys::options::set_reuse_port(self, reuse)
    }

    /// Whether the socket talks to IPv6 only (`IPV6_V6ONLY`).
    ///
    /// # Errors
    /// See getsockopt(2). Fails for a socket of IPv4.
    pub fn only_v6(&self) -> io::Result<bool> {
        self.socket.only_v6()
    }

    /// Sets whether the socket talks to IPv6 only. Otherwise it also talks to IPv4, and shows an IPv4 peer as
    /// `::ffff:a.b.c.d`. Set it before the bind.
    ///
    /// # Errors
    /// See setsockopt(2). Fails for a socket of IPv4.
    ///
    /// # Platform notes
    /// The system decides on the default: `net.ipv6.bindv6only` on Linux. OpenBSD allows only `true`.
    pub fn set_only_v6(&self, only: bool) -> io::Result<()> {
        self.socket.set_only_v6(only)
    }

    /// The network device that the socket is bound to (`SO_BINDTODEVICE`).
    ///
    /// # Errors
    /// `Unsupported` elsewhere than on Linux and Android. See getsockopt(2).
    pub fn device(&self) -> io::Result<Option<Vec<u8>>> {
        sys::options::device(self)
    }

    /// Binds the socket to a network device, such as `b"eth0"`. Only packets of this device reach it. `None` removes
    /// the device.
    ///
    /// # Errors
    /// `InvalidInput` if the name is empty, has more than 15 bytes, or contains a zero byte: Linux would take no name,
    /// or a shorter one. `Unsupported` elsewhere than on Linux and Android. See setsockopt(2). Linux wants `CAP_NET_RAW`
    /// for a socket that has a device already.
    pub fn bind_device(&self, name: Option<&[u8]>) -> io::Result<()> {
        // `IFNAMSIZ`, without the zero byte at the end.
        if name.is_some_and(|name| !(1..=15).contains(&name.len()) || name.contains(&0)) {
            let message = "the name of a network device has 1 to 15 bytes, and none of them is zero";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        sys::options::bind_device(self, name)
    }

    /// Whether small writes are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn nodelay(&self) -> io::Result<bool> {
        self.socket.tcp_nodelay()
    }

    /// Sets whether small writes are sent at once, as [`TcpStream::set_nodelay`] does.
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.socket.set_tcp_nodelay(nodelay)
    }
}

impl_options!(TcpSocket);

#[cfg(feature = "sockopt")]
impl TcpSocket {
    /// Whether [`connect`](TcpSocket::connect) leaves the first packet to the first write (`TCP_FASTOPEN_CONNECT`).
    ///
    /// With the feature `sockopt`.
    ///
    /// # Errors
    /// `Unsupported` elsewhere than on Linux and Android. See getsockopt(2).
    pub fn fastopen_connect(&self) -> io::Result<bool> {
        sys::options::fastopen_connect(self)
    }

    /// Sets whether [`connect`](TcpSocket::connect) leaves the first packet to the first write.
    ///
    /// With the feature `sockopt`. If an earlier connection has left a cookie of that server, the connect returns at
    /// once, and the first write sends its bytes with the first packet. That saves a round trip, and errors of the
    /// connect are reported by that write or by the next read. Without a cookie the connect asks for one, and takes as
    /// long as any other. The first bytes may reach the server twice: see RFC 7413.
    ///
    /// # Errors
    /// `Unsupported` elsewhere than on Linux and Android. See tcp(7).
    pub fn set_fastopen_connect(&self, on: bool) -> io::Result<()> {
        sys::options::set_fastopen_connect(self, on)
    }
}

/// Gives a type that is `AsFd` the options of listening that need the feature `sockopt`.
#[cfg(feature = "sockopt")]
macro_rules! impl_listen_options {
    ($type:ident) => {
        impl $type {
            /// How long a connection without bytes stays out of the queue (`TCP_DEFER_ACCEPT`). `None`, the default, if
            /// it does not.
            ///
            /// With the feature `sockopt`.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See getsockopt(2).
            pub fn defer_accept(&self) -> io::Result<Option<Duration>> {
                let seconds = sys::options::defer_accept_seconds(self)?;
                Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
            }

            /// Sets how long a connection without bytes stays out of the queue. So a handler that starts has something
            /// to read, and clients that only connect cost the server nothing.
            ///
            /// With the feature `sockopt`. The system counts whole seconds, rounded up, and chooses a time that is at
            /// least as long. A connection that sends nothing for longer is accepted without bytes, or dropped.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See tcp(7).
            pub fn set_defer_accept(&self, time: Option<Duration>) -> io::Result<()> {
                let whole = |time: Duration| time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
                let seconds = time.map_or(0, whole).try_into().unwrap_or(i32::MAX as u32);
                sys::options::set_defer_accept_seconds(self, seconds)
            }

            /// How many connections whose first packet had bytes the kernel keeps before they are complete
            /// (`TCP_FASTOPEN`). 0, the default, turns fast open off.
            ///
            /// With the feature `sockopt`.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See getsockopt(2).
            pub fn fastopen(&self) -> io::Result<u32> {
                sys::options::fastopen(self)
            }

            /// Sets how many connections whose first packet had bytes the kernel keeps before they are complete.
            ///
            /// With the feature `sockopt`. The bytes of a first packet may come twice: see RFC 7413.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See tcp(7).
            ///
            /// # Platform notes
            /// Linux has fast open for servers only if bit 2 of `net.ipv4.tcp_fastopen` is set.
            pub fn set_fastopen(&self, queue: u32) -> io::Result<()> {
                sys::options::set_fastopen(self, queue)
            }
        }
    };
}

#[cfg(feature = "sockopt")]
impl_listen_options!(TcpSocket);
#[cfg(feature = "sockopt")]
impl_listen_options!(TcpListener);

/// Fails if a converted socket is no stream socket. A datagram socket would connect, and lose what does not fit.
fn check_type(socket: &Socket) -> io::Result<()> {
    if socket.r#type()? == Type::STREAM {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket that was converted is no TCP socket"))
}

impl TcpListener {
    /// Listens on the first of `addrs` that can be bound.
    ///
    /// Sets `SO_REUSEADDR`, so that a server can be started again at once, and asks for the largest backlog that the
    /// kernel allows (on Linux `net.core.somaxconn`): with the usual 128, a burst of connections is lost. Port 0 lets
    /// the system choose a port, and [`local_addr`](TcpListener::local_addr) returns it. [`TcpSocket`] sets other
    /// options.
    ///
    /// # Cancel safety
    /// Safe. Dropping the future closes the socket.
    ///
    /// # Errors
    /// Returns an [`AddrError`] inside the [`io::Error`]. It names every address that was tried, and has the kind and
    /// the code of the last one: `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` (see bind(2)). For a name also
    /// returns the errors of [`lookup_host`](crate::net::lookup_host). `InvalidInput` if `addrs` is neither a name nor
    /// an address.
    ///
    /// # Examples
    /// See [`TcpListener`].
    pub async fn bind<A: ToSocketAddrs>(addrs: A) -> io::Result<Self> {
        try_each(addrs, |addr| std::future::ready(Self::bind_to(addr))).await
    }

    pub(super) fn bind_to(addr: SocketAddr) -> io::Result<Self> {
        let socket = reusable(addr).map_err(|error| AddrError::at(Operation::Bind, addr, error))?;
        socket.bind(addr)?;
        // The kernel cuts it down to what it allows.
        socket.listen(u32::MAX)
    }
}

impl TcpStream {
    /// Connects to one of `addrs`.
    ///
    /// If `addrs` has several addresses, they race as RFC 8305 describes it. IPv4 and IPv6 alternate, beginning with
    /// the first address. While no attempt has succeeded, the next one starts 250 ms after the last one started, or at
    /// once when one fails. The first attempt that succeeds wins, and the sockets of all others are closed. So a host
    /// with one address that never answers is reached almost as fast as any other.
    ///
    /// # Cancel safety
    /// Safe. Dropping the future closes its sockets.
    ///
    /// # Errors
    /// Returns an [`AddrError`] inside the [`io::Error`]. It names every address that was tried, and has the kind and
    /// the code of the attempt that failed last: `ConnectionRefused`, `TimedOut`, `HostUnreachable` and others (see
    /// connect(2)). For a name also returns the errors of [`lookup_host`](crate::net::lookup_host). `InvalidInput` if
    /// `addrs` is neither a name nor an address. Fails outside a runtime, because connecting has to wait.
    ///
    /// A socket that has connected to itself is `ConnectionRefused`. That happens if no socket listens on a port of
    /// this machine from which clients connect. It is tried twice more before.
    ///
    /// # Examples
    /// The code of the kernel is in the [`AddrError`]:
    /// ```
    /// use kittiwake::net::{AddrError, TcpSocket, TcpStream};
    ///
    /// # kittiwake::block_on(async {
    /// // No other socket can bind this port, and this one does not listen.
    /// let socket = TcpSocket::new_v4()?;
    /// socket.bind("127.0.0.1:0".parse().unwrap())?;
    /// let address = socket.local_addr()?;
    ///
    /// let error = TcpStream::connect(address).await.unwrap_err();
    /// assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")));
    /// assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    /// assert!(AddrError::of(&error).unwrap().raw_os_error().is_some());
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn connect<A: ToSocketAddrs>(addrs: A) -> io::Result<Self> {
        connect::connect(addrs, Self::connect_to).await
    }

    /// Connects as [`connect`](TcpStream::connect) does, within `duration` for the look-up and all addresses together.
    ///
    /// # Cancel safety
    /// Safe. Dropping the future closes its sockets.
    ///
    /// # Errors
    /// `TimedOut` if the time is over. The error names every address, and says which of them were tried. `InvalidInput`
    /// if `duration` is zero. All else as for [`connect`](TcpStream::connect).
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
        connect::connect_timeout(addrs, duration, Self::connect_to).await
    }

    async fn connect_to(addr: SocketAddr) -> io::Result<Self> {
        let connected = async {
            for _ in 0..=SELF_CONNECT_RETRIES {
                let socket = TcpSocket::new(Domain::for_address(addr))?;
                if let Some(stream) = socket.connect_unless_self(addr).await? {
                    return Ok(stream);
                }
            }
            Err(connected_to_itself())
        };
        connected.await.map_err(|error| AddrError::at(Operation::Connect, addr, error))
    }
}

/// A socket for a listener on `addr`.
fn reusable(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new(Domain::for_address(addr))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// The peer of a socket that was connecting. `WouldBlock` if the report was spurious: the socket is not connected, and
/// has not failed.
fn peer_of_connected(stream: &TcpStream) -> io::Result<SocketAddr> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::WouldBlock.into()),
        result => result,
    }
}

fn connected_to_itself() -> io::Error {
    let why = "the socket has connected to itself, because no socket listens on this port";
    io::Error::new(io::ErrorKind::ConnectionRefused, why)
}

/// Takes a TCP socket that neither listens nor is connected. Its options stay as they are, close-on-exec too.
///
/// The socket becomes non-blocking when it listens or connects. So the conversion cannot fail.
impl From<Socket> for TcpSocket {
    fn from(socket: Socket) -> Self {
        Self { socket, is_nonblocking: false }
    }
}

impl From<TcpSocket> for OwnedFd {
    fn from(socket: TcpSocket) -> Self {
        socket.socket.into()
    }
}

impl AsFd for TcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for TcpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl fmt::Debug for TcpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("TcpSocket");
        if let Ok(addr) = self.local_addr() {
            debug.field("addr", &addr);
        }
        debug.field("fd", &self.as_raw_fd()).finish()
    }
}
