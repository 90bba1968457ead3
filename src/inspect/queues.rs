//! The queues of a socket, as Linux tells them by netlink (`sock_diag(7)`).
//!
//! A dump has addresses and no open descriptor, so there is nothing to call `ioctl(2)` on. Netlink finds one TCP socket by
//! its addresses, for two system calls. It may be another one: a UDP socket can have the address of a listener. So its
//! inode is compared with that of the descriptor, which `/proc/self/fd` tells. The file `/proc/net/tcp` has the same
//! numbers, but the kernel writes a line for each socket of the machine to it, which takes a tenth of a second with
//! 100,000 of them.
//!
//! # The messages
//! ```text
//! request:  nlmsghdr (16 bytes) | inet_diag_req_v2: family, protocol, .., id (48 bytes)
//! answer:   nlmsghdr (16 bytes) | inet_diag_msg: family, state, .., id (48 bytes), expires, rqueue, wqueue, uid, inode
//! id:       local port, peer port (big-endian) | local address, peer address (16 bytes each) | interface | cookie
//! ```
//! An answer of another type is an error: there is no such socket any more, or the kernel has no such module.

use serde::Serialize;

/// A socket of netlink. It closes with this.
pub(super) struct Queues {
    #[cfg(all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable)))]
    socket: std::os::fd::OwnedFd,
}

/// The state of a TCP socket, and the sizes of its queues.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) state: TcpState,
    /// Bytes that the peer has sent and the program has not read. At a listener, connections that it has not accepted.
    pub(super) receive: u32,
    /// Bytes that the peer has not acknowledged. At a listener, the limit of its queue.
    pub(super) send: u32,
}

/// The states of `tcp(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable))), expect(dead_code))]
pub(super) enum TcpState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Closed,
    CloseWait,
    LastAck,
    Listening,
    Closing,
}

#[cfg(all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable)))]
mod linux {
    use std::fs::read_link;
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::RawFd;

    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

    use super::{Queues, Sizes, TcpState};

    /// The type of a request and of its answer.
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    /// The length of `nlmsghdr`.
    const HEADER: usize = 16;
    /// The place of `idiag_rqueue` in an answer. `idiag_wqueue` follows.
    const RQUEUE: usize = HEADER + 56;
    const INODE: usize = HEADER + 68;

    impl Queues {
        /// `None` if the system does not allow it.
        pub(in crate::inspect) fn open() -> Option<Self> {
            let socket =
                socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
            Some(Self { socket: socket.ok()? })
        }

        /// The queues of the TCP socket with this descriptor and these addresses. A listener has no peer. `None` if there is
        /// no such socket.
        pub(in crate::inspect) fn of(&self, fd: RawFd, local: &str, peer: Option<&str>) -> Option<Sizes> {
            let local: SocketAddr = local.parse().ok()?;
            let peer = match peer {
                Some(peer) => Some(peer.parse().ok()?),
                None => None,
            };
            send(&self.socket, &request(local, peer), SendFlags::empty()).ok()?;
            let mut answer = [0; 512];
            // The kernel has answered before `send` returned, so `DONTWAIT` only prevents a wait without an answer.
            let (length, _) = recv(&self.socket, &mut answer, RecvFlags::DONTWAIT).ok()?;
            sizes(&answer[..length], fd)
        }
    }

    fn request(local: SocketAddr, peer: Option<SocketAddr>) -> Vec<u8> {
        let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let family = u8::try_from(family.as_raw()).expect("both families have small numbers");
        let protocol = u8::try_from(libc::IPPROTO_TCP).expect("TCP has a small number");
        let scope = if let SocketAddr::V6(local) = local { local.scope_id() } else { 0 };
        let mut body = vec![family, protocol, 0, 0];
        // All states.
        body.extend(u32::MAX.to_ne_bytes());
        body.extend(local.port().to_be_bytes());
        body.extend(peer.map_or(0, |peer| peer.port()).to_be_bytes());
        body.extend(octets(Some(local)));
        body.extend(octets(peer));
        body.extend(scope.to_ne_bytes());
        // Any cookie.
        body.extend([0xff; 8]);
        let length = u32::try_from(HEADER + body.len()).expect("a message is short");
        let header =
            [&length.to_ne_bytes()[..], &SOCK_DIAG_BY_FAMILY.to_ne_bytes(), &NLM_F_REQUEST.to_ne_bytes(), &[0; 8]];
        [header.concat(), body].concat()
    }

    /// The address, at the beginning of the 16 bytes that each has.
    fn octets(address: Option<SocketAddr>) -> [u8; 16] {
        let mut octets = [0; 16];
        match address.map(|address| address.ip()) {
            Some(IpAddr::V4(ip)) => octets[..4].copy_from_slice(&ip.octets()),
            Some(IpAddr::V6(ip)) => octets = ip.octets(),
            None => {}
        }
        octets
    }

    fn sizes(answer: &[u8], fd: RawFd) -> Option<Sizes> {
        let number = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
        if answer.get(4..6)? != SOCK_DIAG_BY_FAMILY.to_ne_bytes() {
            return None;
        }
        let state = state(answer[HEADER + 1])?;
        let own = read_link(format!("/proc/self/fd/{fd}")).ok()?;
        if own.to_str()? != format!("socket:[{}]", number(INODE)?) {
            return None;
        }
        Some(Sizes { state, receive: number(RQUEUE)?, send: number(RQUEUE + 4)? })
    }

    fn state(number: u8) -> Option<TcpState> {
        let states = [
            TcpState::Established,
            TcpState::SynSent,
            TcpState::SynReceived,
            TcpState::FinWait1,
            TcpState::FinWait2,
            TcpState::TimeWait,
            TcpState::Closed,
            TcpState::CloseWait,
            TcpState::LastAck,
            TcpState::Listening,
            TcpState::Closing,
        ];
        states.get(usize::from(number).checked_sub(1)?).copied()
    }
}

#[cfg(not(all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable))))]
impl Queues {
    /// Other systems have no such question.
    pub(super) fn open() -> Option<Self> {
        None
    }

    pub(super) fn of(&self, _fd: std::os::fd::RawFd, _local: &str, _peer: Option<&str>) -> Option<Sizes> {
        None
    }
}
