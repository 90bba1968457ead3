//! [`UnixStream`]: connecting. Its methods of reading and writing are in [`methods`](crate::net::methods).

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{self, SocketAddr};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::addr::{failed, from_path};
use super::backoff::retry;
use crate::net::deadline::Limit;
use crate::net::methods::{impl_fd, impl_readiness, impl_std, impl_stream};
use crate::net::stream::{Socket, Stream, StreamSocket, impl_io};
use crate::net::sys;
use crate::reactor::{Direction, Interest, Ready, Registration, WaiterSlot};
use crate::time::{Duration, timeout};

/// A connection between two Unix sockets.
///
/// It is read and written as a [`TcpStream`](crate::net::TcpStream) is, with the same cancel safety, errors and timeouts.
/// [`split`](UnixStream::split) and [`into_split`](UnixStream::into_split) give two tasks a half each.
///
/// # Platform notes
/// Descriptors that a peer passes (`SCM_RIGHTS`) are not received, and the kernel closes them. A caller that wants them
/// calls recvmsg(2) in [`async_io`](UnixStream::async_io).
///
/// Linux does not report that a peer has shut down its reading half while the send buffer is full. A write that waits for
/// room then waits until the peer closes the stream, or a [write timeout](UnixStream::set_write_timeout) ends.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
/// use kittiwake::net::UnixStream;
///
/// # kittiwake::block_on(async {
/// let (mut ours, mut theirs) = UnixStream::pair()?;
/// theirs.write_all(b"hello").await?;
/// drop(theirs);
/// let mut text = String::new();
/// ours.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct UnixStream {
    pub(in crate::net) stream: Stream<net::UnixStream>,
}

impl StreamSocket for net::UnixStream {
    /// A read also stops where a peer has passed descriptors.
    const SHORT_RULE: bool = false;
    /// Linux reports nothing while the send buffer is full.
    const REPORTS_SHUTDOWN: bool = false;
}

impl UnixStream {
    /// Connects to the socket at `path`.
    ///
    /// If the listener's queue is full, it tries again after pauses that grow to 50 ms, because the system reports no
    /// event. To limit that time there is [`connect_timeout`](UnixStream::connect_timeout).
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the socket.
    ///
    /// # Errors
    /// The error names the path, and its [`source`](std::error::Error::source) is the system's, with its code. `NotFound`: there is no such file. `ConnectionRefused`: no socket listens there any
    /// more, or the file is no socket. `PermissionDenied`: the file or a directory must not be written or searched.
    /// `InvalidInput`: the path is empty, too long, or contains a zero byte. Outside a runtime, a full queue is the error
    /// `WouldBlock`.
    ///
    /// # Platform notes
    /// Only Linux tells a full queue from a listener that has gone. On macOS and the BSDs both are `ConnectionRefused`,
    /// at once.
    ///
    /// # Examples
    /// See [`UnixListener`](crate::net::UnixListener).
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::connect_addr(&from_path(path.as_ref())?).await
    }

    /// Connects to a path as [`connect`](UnixStream::connect) does, within `duration`.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the socket.
    ///
    /// # Errors
    /// `TimedOut` if the time is over, and `InvalidInput` if `duration` is zero; else as for
    /// [`connect`](UnixStream::connect).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::UnixStream;
    /// use kittiwake::time::Duration;
    ///
    /// # kittiwake::block_on(async {
    /// let connecting = UnixStream::connect_timeout("/no/such/socket", Duration::from_secs(5));
    /// assert_eq!(connecting.await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    /// # });
    /// ```
    pub async fn connect_timeout(path: impl AsRef<Path>, duration: Duration) -> io::Result<Self> {
        let addr = from_path(path.as_ref())?;
        if duration.is_zero() {
            let error = io::Error::new(ErrorKind::InvalidInput, "a timeout of zero lets no attempt succeed");
            return Err(failed("connect to", &addr, error));
        }
        match timeout(duration, Self::connect_addr(&addr)).await {
            Ok(connected) => connected,
            Err(elapsed) => Err(failed("connect to", &addr, elapsed.into())),
        }
    }

    /// Connects to a socket by its address. On Linux it may be an abstract name.
    ///
    /// Apart from that it is like [`connect`](UnixStream::connect).
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the socket.
    ///
    /// # Errors
    /// As for [`connect`](UnixStream::connect).
    ///
    /// # Examples
    /// See [`UnixListener::bind_addr`](crate::net::UnixListener::bind_addr).
    pub async fn connect_addr(addr: &SocketAddr) -> io::Result<Self> {
        let connected = match sys::to_unix_addr(addr) {
            Ok(target) => retry(|| sys::connect_unix(&target)).await,
            Err(error) => Err(error),
        };
        connected.map(Self::from_fd).map_err(|error| failed("connect to", addr, error))
    }

    /// Makes two streams that are connected to each other and have no address.
    ///
    /// # Errors
    /// See socketpair(2).
    ///
    /// # Examples
    /// See [`UnixStream`].
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = mio::net::UnixStream::pair()?;
        Ok((Self::from_fd(one.into()), Self::from_fd(other.into())))
    }

    /// Takes a non-blocking socket.
    pub(super) fn from_fd(socket: OwnedFd) -> Self {
        Self::from_nonblocking(socket.into())
    }

    /// The peer's address. It has none if it did not bind its socket.
    ///
    /// # Errors
    /// See getpeername(2).
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
}

#[cfg(feature = "sockopt")]
impl UnixStream {
    /// The user, the group and the process that the peer had when it connected, listened, or made the pair
    /// (`SO_PEERCRED`).
    ///
    /// With the feature `sockopt`, which brings the crate `nix`. The kernel has checked them, so a server may decide by
    /// the user what the peer is allowed.
    ///
    /// # Errors
    /// `Unsupported` elsewhere than on Linux and Android. See unix(7).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::UnixStream;
    ///
    /// # kittiwake::block_on(async {
    /// let (ours, _theirs) = UnixStream::pair()?;
    /// # #[cfg(all(target_os = "linux", not(kittiwake_portable)))]
    /// assert_eq!(ours.peer_cred()?.pid(), Some(std::process::id()));
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn peer_cred(&self) -> io::Result<UCred> {
        let (pid, uid, gid) = sys::options::peer_cred(self)?;
        // The number is 0 if this process cannot see the peer's, from another namespace of processes.
        Ok(UCred { pid: u32::try_from(pid).ok().filter(|&pid| pid > 0), uid, gid })
    }
}

/// The user, the group and the process of a peer: see [`UnixStream::peer_cred`].
#[cfg(feature = "sockopt")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UCred {
    pid: Option<u32>,
    uid: u32,
    gid: u32,
}

#[cfg(feature = "sockopt")]
impl UCred {
    /// The number of the peer's process. `None` if the peer is in a namespace of processes that this one cannot see.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The number of the peer's user.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The number of the peer's group.
    pub fn gid(&self) -> u32 {
        self.gid
    }
}

impl_stream!(UnixStream, net::UnixStream, "kittiwake::net::UnixStream::pair()?");
impl_readiness!(UnixStream);
impl_std!(UnixStream, net::UnixStream);
impl_fd!(UnixStream);
