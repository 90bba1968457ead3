//! UDP sockets. Receiving and sending to a connected peer are in [`methods`](super::methods).

use std::fmt;
use std::io;
use std::net::{self, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::task::{Context, Poll};

use socket2::SockRef;

use super::addr::{ToSocketAddrs, resolve_first, try_each};
use super::addr_error::{AddrError, Operation};
use super::datagram::{Datagram, DatagramSocket};
use super::methods::{impl_datagram, impl_fd, impl_hops, impl_readiness, impl_sock_options, impl_std};
use super::sys;
use crate::reactor::{Direction, Interest, Ready, Registration, WaiterSlot};

/// A UDP socket.
///
/// Several tasks may receive on one socket at the same time, and send. A datagram goes to one of them.
///
/// To exchange datagrams with one peer, [`connect`](UdpSocket::connect) the socket, and use [`send`](UdpSocket::send) and
/// [`recv`](UdpSocket::recv): the kernel then drops datagrams from other addresses, and reports if the peer's port is
/// closed. To talk to many, use [`send_to`](UdpSocket::send_to) and [`recv_from`](UdpSocket::recv_from).
///
/// Control messages, such as the local address of a datagram or segments of several at once, are received by a system
/// call of the caller's own, in [`try_io`](UdpSocket::try_io) or [`async_io`](UdpSocket::async_io).
///
/// # Examples
/// ```
/// use kittiwake::net::UdpSocket;
///
/// # kittiwake::block_on(async {
/// let server = UdpSocket::bind("127.0.0.1:0").await?;
/// let client = UdpSocket::bind("127.0.0.1:0").await?;
/// client.send_to(b"ping", server.local_addr()?).await?;
///
/// let mut buf = [0; 1500];
/// let (length, peer) = server.recv_from(&mut buf).await?;
/// assert_eq!((&buf[..length], peer), (&b"ping"[..], client.local_addr()?));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
///
/// Some options must be set before the socket is bound, such as [`only_v6`](UdpSocket::only_v6) and `SO_REUSEPORT`. The
/// crate socket2 sets them, and [`from_std`](UdpSocket::from_std) takes the socket afterwards:
/// ```
/// use std::net::{Ipv6Addr, SocketAddr};
/// use kittiwake::net::UdpSocket;
/// use socket2::{Domain, Socket, Type};
///
/// # kittiwake::block_on(async {
/// let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
/// socket.set_only_v6(true)?;
/// socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into())?;
/// let socket = UdpSocket::from_std(socket.into())?;
/// assert!(socket.only_v6()?);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct UdpSocket {
    datagram: Datagram<net::UdpSocket>,
}

impl DatagramSocket for net::UdpSocket {
    type Addr = SocketAddr;

    fn addr(any: Option<sys::SocketAddrAny>) -> io::Result<SocketAddr> {
        let any = any.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        Ok(sys::swap_flow_info(SocketAddr::try_from(any)?))
    }

    fn send_to(&self, buf: &[u8], target: &SocketAddr) -> io::Result<usize> {
        sys::send_to(self, buf, &sys::swap_flow_info(*target))
    }
}

impl UdpSocket {
    /// Makes a socket that is bound to the first of `addrs` that can be bound.
    ///
    /// Port 0 lets the system choose; [`local_addr`](UdpSocket::local_addr) tells what it chose. A client that sends to
    /// other machines binds to `"0.0.0.0:0"` or `"[::]:0"`.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the socket.
    ///
    /// # Errors
    /// As for [`TcpListener::bind`](crate::net::TcpListener::bind).
    ///
    /// # Examples
    /// See [`UdpSocket`].
    pub async fn bind<A: ToSocketAddrs>(addrs: A) -> io::Result<Self> {
        let bind = |addr| {
            let bound = net::UdpSocket::bind(addr).and_then(Self::from_std);
            std::future::ready(bound.map_err(|error| AddrError::at(Operation::Bind, addr, error)))
        };
        try_each(addrs, bind).await
    }

    /// Sets the peer that [`send`](UdpSocket::send) sends to and [`recv`](UdpSocket::recv) receives from.
    ///
    /// It takes the first of `addrs` that the system has a route to. Nothing is sent. A second call changes the peer.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// An [`AddrError`] inside the [`io::Error`]. For a name also what [`lookup_host`](crate::net::lookup_host) says. See
    /// connect(2).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::UdpSocket;
    ///
    /// # kittiwake::block_on(async {
    /// let (one, other) = (UdpSocket::bind("127.0.0.1:0").await?, UdpSocket::bind("127.0.0.1:0").await?);
    /// one.connect(other.local_addr()?).await?;
    /// other.connect(one.local_addr()?).await?;
    /// one.send(b"hello").await?;
    /// let mut buf = [0; 16];
    /// assert_eq!(other.recv(&mut buf).await?, 5);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn connect<A: ToSocketAddrs>(&self, addrs: A) -> io::Result<()> {
        // connect(2) does not wait on a UDP socket.
        let connect = |addr| {
            let connected = self.socket().connect(addr);
            std::future::ready(connected.map_err(|error| AddrError::at(Operation::Connect, addr, error)))
        };
        try_each(addrs, connect).await
    }

    /// Sends a datagram to the first of `target`'s addresses. Returns its length.
    ///
    /// # Cancel safety
    /// Safe: a datagram is sent whole, in the poll that returns `Ready`.
    ///
    /// # Errors
    /// `InvalidInput` if `target` has no address. `EMSGSIZE` if the datagram is larger than 65,507 bytes (IPv4) or the
    /// send buffer; nothing is sent then. See send(2).
    ///
    /// # Examples
    /// See [`UdpSocket`].
    pub async fn send_to<A: ToSocketAddrs>(&self, buf: &[u8], target: A) -> io::Result<usize> {
        self.datagram.send_to(buf, &resolve_first(target).await?).await
    }

    /// Polls whether a datagram could be sent, and sends it to `target`.
    ///
    /// The results are those of [`send_to`](UdpSocket::send_to). If the result is `Pending`, the waker of the last poll
    /// is woken.
    ///
    /// # Errors
    /// As for [`send_to`](UdpSocket::send_to).
    pub fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], target: SocketAddr) -> Poll<io::Result<usize>> {
        self.datagram.poll_send_to(cx, buf, &target)
    }

    /// Sends a datagram to `target`, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if the send buffer is full; else as for [`send_to`](UdpSocket::send_to).
    pub fn try_send_to(&self, buf: &[u8], target: SocketAddr) -> io::Result<usize> {
        self.datagram.try_send_to(buf, &target)
    }

    /// Joins the IPv4 group `multiaddr` on the interface that has the address `interface`. `0.0.0.0` lets the system
    /// choose one.
    ///
    /// # Errors
    /// See ip(7), `IP_ADD_MEMBERSHIP`.
    ///
    /// # Examples
    /// ```
    /// use std::net::Ipv4Addr;
    /// use kittiwake::net::UdpSocket;
    ///
    /// # kittiwake::block_on(async {
    /// let socket = UdpSocket::bind("0.0.0.0:0").await?;
    /// let group = Ipv4Addr::new(239, 1, 2, 3);
    /// socket.join_multicast_v4(group, Ipv4Addr::LOCALHOST)?;
    /// socket.leave_multicast_v4(group, Ipv4Addr::LOCALHOST)?;
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn join_multicast_v4(&self, multiaddr: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.socket().join_multicast_v4(&multiaddr, &interface)
    }

    /// Leaves a group that [`join_multicast_v4`](UdpSocket::join_multicast_v4) has joined.
    ///
    /// # Errors
    /// See ip(7), `IP_DROP_MEMBERSHIP`.
    pub fn leave_multicast_v4(&self, multiaddr: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.socket().leave_multicast_v4(&multiaddr, &interface)
    }

    /// Joins the IPv6 group `multiaddr` on the interface that has the index `interface`. 0 lets the system choose one.
    ///
    /// # Errors
    /// See ipv6(7), `IPV6_ADD_MEMBERSHIP`.
    pub fn join_multicast_v6(&self, multiaddr: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.socket().join_multicast_v6(multiaddr, interface)
    }

    /// Leaves a group that [`join_multicast_v6`](UdpSocket::join_multicast_v6) has joined.
    ///
    /// # Errors
    /// See ipv6(7), `IPV6_DROP_MEMBERSHIP`.
    pub fn leave_multicast_v6(&self, multiaddr: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.socket().leave_multicast_v6(multiaddr, interface)
    }

    /// The address of the interface that IPv4 multicasts are sent from (`IP_MULTICAST_IF`).
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn multicast_if_v4(&self) -> io::Result<Ipv4Addr> {
        SockRef::from(self).multicast_if_v4()
    }

    /// Sets [`multicast_if_v4`](Self::multicast_if_v4).
    ///
    /// # Errors
    /// See setsockopt(2).
    pub fn set_multicast_if_v4(&self, interface: Ipv4Addr) -> io::Result<()> {
        SockRef::from(self).set_multicast_if_v4(&interface)
    }

    /// The type of service in the packets of IPv4 datagrams (`IP_TOS`): DSCP in the upper 6 bits, ECN in the lower 2.
    ///
    /// # Errors
    /// `Unsupported` if the system lacks the option. See getsockopt(2).
    pub fn tos_v4(&self) -> io::Result<u32> {
        sys::options::tos_v4(self)
    }

    /// Sets the type of service in the packets of IPv4 datagrams.
    ///
    /// # Errors
    /// `Unsupported` if the system lacks the option. See setsockopt(2).
    pub fn set_tos_v4(&self, tos: u32) -> io::Result<()> {
        sys::options::set_tos_v4(self, tos)
    }

    /// The traffic class in the packets of IPv6 datagrams (`IPV6_TCLASS`): DSCP in the upper 6 bits, ECN in the lower 2.
    ///
    /// # Errors
    /// `Unsupported` if the system lacks the option. See getsockopt(2). Fails for a socket of IPv4.
    pub fn tclass_v6(&self) -> io::Result<u32> {
        sys::options::tclass_v6(self)
    }

    /// Sets the traffic class in the packets of IPv6 datagrams, at most 255.
    ///
    /// # Errors
    /// `InvalidInput` for a larger class. `Unsupported` if the system lacks the option. See setsockopt(2). Fails for a
    /// socket of IPv4.
    pub fn set_tclass_v6(&self, class: u32) -> io::Result<()> {
        sys::options::set_tclass_v6(self, class)
    }

    /// The size of the kernel's buffer for datagrams that were not received yet (`SO_RCVBUF`), in bytes.
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn recv_buffer_size(&self) -> io::Result<usize> {
        SockRef::from(self).recv_buffer_size()
    }

    /// Sets the size of the kernel's buffer for datagrams that were not received yet.
    ///
    /// # Errors
    /// See setsockopt(2).
    ///
    /// # Platform notes
    /// Linux doubles the size for its own needs, and cuts it down to what `net.core.rmem_max` allows.
    pub fn set_recv_buffer_size(&self, size: usize) -> io::Result<()> {
        SockRef::from(self).set_recv_buffer_size(sys::options::buffer_size(size))
    }

    /// The size of the kernel's buffer for datagrams that were not sent yet (`SO_SNDBUF`), in bytes.
    ///
    /// # Errors
    /// See getsockopt(2).
    pub fn send_buffer_size(&self) -> io::Result<usize> {
        SockRef::from(self).send_buffer_size()
    }

    /// Sets the size of the kernel's buffer for datagrams that were not sent yet.
    ///
    /// # Errors
    /// See setsockopt(2).
    ///
    /// # Platform notes
    /// Linux doubles the size for its own needs, and cuts it down to what `net.core.wmem_max` allows.
    pub fn set_send_buffer_size(&self, size: usize) -> io::Result<()> {
        SockRef::from(self).set_send_buffer_size(sys::options::buffer_size(size))
    }
}

impl_datagram!(UdpSocket, net::UdpSocket, SocketAddr);
impl_readiness!(UdpSocket);
impl_std!(UdpSocket, net::UdpSocket);
impl_fd!(UdpSocket);

impl_sock_options! { UdpSocket:
    /// Whether datagrams may be sent to a broadcast address (`SO_BROADCAST`).
    broadcast, set_broadcast: bool = broadcast, set_broadcast;

    /// Whether this host gets the IPv4 multicasts that the socket sends (`IP_MULTICAST_LOOP`).
    multicast_loop_v4, set_multicast_loop_v4: bool = multicast_loop_v4, set_multicast_loop_v4;

    /// Whether this host gets the IPv6 multicasts that the socket sends (`IPV6_MULTICAST_LOOP`).
    multicast_loop_v6, set_multicast_loop_v6: bool = multicast_loop_v6, set_multicast_loop_v6;

    /// The index of the interface that IPv6 multicasts are sent from (`IPV6_MULTICAST_IF`).
    multicast_if_v6, set_multicast_if_v6: u32 = multicast_if_v6, set_multicast_if_v6;

    /// Whether an IPv6 socket exchanges only IPv6 datagrams (`IPV6_V6ONLY`).
    ///
    /// Linux refuses to change it once the socket is bound. The examples of [`UdpSocket`] show how to set it before.
    only_v6, set_only_v6: bool = only_v6, set_only_v6;
}

impl_hops! { UdpSocket:
    /// How many hops the packets of IPv4 datagrams may take (`IP_TTL`).
    ttl, set_ttl = ttl_v4, set_ttl_v4;

    /// How many hops IPv4 multicasts may take (`IP_MULTICAST_TTL`).
    multicast_ttl_v4, set_multicast_ttl_v4 = multicast_ttl_v4, set_multicast_ttl_v4;

    /// How many hops the packets of IPv6 datagrams may take (`IPV6_UNICAST_HOPS`).
    unicast_hops_v6, set_unicast_hops_v6 = unicast_hops_v6, set_unicast_hops_v6;

    /// How many hops IPv6 multicasts may take (`IPV6_MULTICAST_HOPS`).
    multicast_hops_v6, set_multicast_hops_v6 = multicast_hops_v6, set_multicast_hops_v6;
}
