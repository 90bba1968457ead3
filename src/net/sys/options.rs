//! The options of sockets that not every system has.
//!
//! Each function exists on every system. A system without the option, or without a safe binding for it, gets an error
//! of the kind `Unsupported` that names the option.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

#[cfg(all(feature = "sockopt", any(target_os = "android", target_os = "linux"), not(kittiwake_portable)))]
use nix::sys::socket::{
    getsockopt, setsockopt,
    sockopt::{PeerCredentials, TcpFastOpenConnect},
};
use rustix::net::sockopt;
// Every option that is set through it is missing there.
#[cfg(not(any(target_os = "haiku", target_os = "illumos", target_os = "redox", target_os = "solaris")))]
use socket2::SockRef;

#[cfg(all(feature = "sockopt", any(target_os = "android", target_os = "linux"), not(kittiwake_portable)))]
use super::nix_options::{DeferAccept, FastOpen};

/// Defines functions that get or set an option on the systems of the `cfg`.
macro_rules! options {
    ($($option:literal if $on:meta {
        $(fn $name:ident($socket:ident $(, $value:ident: $type:ty)?) $(-> $result:ty)? $body:block)*
    })*) => {$($(
        #[doc = concat!("`", $option, "`")]
        pub(in crate::net) fn $name(socket: &impl AsFd $(, $value: $type)?) -> io::Result<options!(@ $($result)?)> {
            #[cfg($on)]
            {
                let $socket = socket;
                Ok($body)
            }
            #[cfg(not($on))]
            {
                let _ = socket;
                $(let _ = $value;)?
                Err(io::Error::new(io::ErrorKind::Unsupported, concat!($option, " is not supported on this system")))
            }
        }
    )*)*};
    (@) => { () };
    (@ $result:ty) => { $result };
}

options! {
    "SO_REUSEPORT" if not(any(target_os = "cygwin", target_os = "illumos", target_os = "solaris")) {
        fn reuse_port(socket) -> bool { sockopt::socket_reuseport(socket)? }
        fn set_reuse_port(socket, on: bool) { sockopt::set_socket_reuseport(socket, on)? }
    }
    "SO_BINDTODEVICE" if all(
        any(target_os = "android", target_os = "fuchsia", target_os = "linux"), not(kittiwake_portable)
    ) {
        fn device(socket) -> Option<Vec<u8>> { SockRef::from(socket).device()? }
        fn bind_device(socket, name: Option<&[u8]>) { SockRef::from(socket).bind_device(name)? }
    }
    "TCP_KEEPIDLE" if not(any(target_os = "haiku", target_os = "nto", target_os = "openbsd")) {
        fn keepalive_time(socket) -> Duration { sockopt::tcp_keepidle(socket)? }
        fn set_keepalive_time(socket, time: Duration) { sockopt::set_tcp_keepidle(socket, time)? }
    }
    "TCP_KEEPINTVL" if not(any(target_os = "haiku", target_os = "nto", target_os = "openbsd", target_os = "redox")) {
        fn keepalive_interval(socket) -> Duration { sockopt::tcp_keepintvl(socket)? }
        fn set_keepalive_interval(socket, interval: Duration) { sockopt::set_tcp_keepintvl(socket, interval)? }
    }
    "TCP_KEEPCNT" if not(any(target_os = "haiku", target_os = "nto", target_os = "openbsd", target_os = "redox")) {
        fn keepalive_retries(socket) -> u32 { sockopt::tcp_keepcnt(socket)? }
        fn set_keepalive_retries(socket, retries: u32) { sockopt::set_tcp_keepcnt(socket, retries)? }
    }
    "TCP_USER_TIMEOUT" if all(
        any(target_os = "android", target_os = "fuchsia", target_os = "linux"), not(kittiwake_portable)
    ) {
        fn user_timeout_millis(socket) -> u32 { sockopt::tcp_user_timeout(socket)? }
        fn set_user_timeout_millis(socket, millis: u32) { sockopt::set_tcp_user_timeout(socket, millis)? }
    }
    "TCP_QUICKACK" if all(
        any(target_os = "android", target_os = "fuchsia", target_os = "linux"), not(kittiwake_portable)
    ) {
        fn quickack(socket) -> bool { sockopt::tcp_quickack(socket)? }
        fn set_quickack(socket, on: bool) { sockopt::set_tcp_quickack(socket, on)? }
    }
    "TCP_NOTSENT_LOWAT" if all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable)) {
        fn notsent_lowat(socket) -> u32 { SockRef::from(socket).tcp_notsent_lowat()? }
        fn set_notsent_lowat(socket, bytes: u32) { SockRef::from(socket).set_tcp_notsent_lowat(bytes)? }
    }
    "TCP_CONGESTION" if any(
        target_os = "android", target_os = "freebsd", target_os = "fuchsia", target_os = "illumos", target_os = "linux"
    ) {
        fn congestion(socket) -> String { sockopt::tcp_congestion(socket)? }
        fn set_congestion(socket, algorithm: &str) { sockopt::set_tcp_congestion(socket, algorithm)? }
    }
    "IP_TOS" if not(any(
        target_os = "fuchsia", target_os = "haiku", target_os = "illumos", target_os = "redox", target_os = "solaris"
    )) {
        fn tos_v4(socket) -> u32 { SockRef::from(socket).tos_v4()? }
        fn set_tos_v4(socket, tos: u32) { SockRef::from(socket).set_tos_v4(tos)? }
    }
    "IPV6_TCLASS" if any(
        target_os = "android", target_os = "dragonfly", target_os = "freebsd", target_os = "fuchsia",
        target_os = "linux", target_os = "macos", target_os = "netbsd", target_os = "openbsd"
    ) {
        fn tclass_v6(socket) -> u32 { SockRef::from(socket).tclass_v6()? }
        fn set_tclass_v6(socket, class: u32) {
            // The system takes a signed number. `u32::MAX` would become -1, which means the default.
            SockRef::from(socket).set_tclass_v6(class.min(i32::MAX as u32))?;
        }
    }
}

#[cfg(feature = "sockopt")]
options! {
    "TCP_DEFER_ACCEPT" if all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable)) {
        fn defer_accept_seconds(socket) -> u32 { getsockopt(socket, DeferAccept)? }
        fn set_defer_accept_seconds(socket, seconds: u32) { setsockopt(socket, DeferAccept, &seconds)? }
    }
    "TCP_FASTOPEN" if all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable)) {
        fn fastopen(socket) -> u32 { getsockopt(socket, FastOpen)? }
        fn set_fastopen(socket, queue: u32) { setsockopt(socket, FastOpen, &queue)? }
    }
    "TCP_FASTOPEN_CONNECT" if all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable)) {
        fn fastopen_connect(socket) -> bool { getsockopt(socket, TcpFastOpenConnect)? }
        fn set_fastopen_connect(socket, on: bool) { setsockopt(socket, TcpFastOpenConnect, &on)? }
    }
    "SO_PEERCRED" if all(any(target_os = "android", target_os = "linux"), not(kittiwake_portable)) {
        fn peer_cred(socket) -> (i32, u32, u32) {
            let peer = getsockopt(socket, PeerCredentials)?;
            (peer.pid(), peer.uid(), peer.gid())
        }
    }
}

/// The largest size that the kernel can be asked for, at most `size`. A larger one would become negative.
pub(in crate::net) fn buffer_size(size: usize) -> usize {
    size.min(i32::MAX as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    options! {
        "SO_ELSEWHERE" if any() {
            fn elsewhere(socket) -> bool { socket.exists() }
            fn set_elsewhere(socket, on: bool) { socket.set(on) }
        }
    }

    /// An option that the system lacks is `Unsupported`, and the error names the option.
    #[test]
    fn missing_option_is_unsupported() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        for error in [elsewhere(&socket).map(drop).unwrap_err(), set_elsewhere(&socket, true).unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert_eq!(error.to_string(), "SO_ELSEWHERE is not supported on this system");
        }
    }
}
