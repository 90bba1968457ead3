//! Texts, paths and names of any bytes as addresses.
//!
//! A literal address is the one that std parses. Every other text is a name, which needs a look-up, or is `InvalidInput`.
//! No name is looked up here: outside a runtime there is no thread for that. The error of a bind has each address that was
//! tried. An address of a Unix socket arrives as it was given.

use std::ffi::OsStr;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use kittiwake::net::{AddrError, TcpListener, ToSocketAddrs, UdpSocket, UnixDatagram, UnixStream, lookup_host};

use crate::script::Script;

/// The parts of texts.
const PARTS: [&str; 32] = [
    "127.0.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "1.2.3",
    "::1",
    "::",
    "fe80::1",
    "::ffff:1.2.3.4",
    "[",
    "]",
    ":",
    "%",
    "%lo",
    "%1",
    "/",
    " ",
    "\0",
    "\n",
    ".",
    "-",
    "+",
    "0",
    "1",
    "80",
    "65535",
    "65536",
    "localhost",
    "example.org",
    "x",
    "\u{e9}",
    "::ffff",
    "]:",
];

#[derive(Debug)]
enum Op<'a> {
    /// A text of an address and a port.
    Text(String),
    /// A host, and its port.
    Host(String, u16),
    /// Binds a UDP socket, or else a listener, to the first possible of these, with port 0.
    Bind(bool, Vec<IpAddr>),
    /// Connects to a path in a folder that does not exist.
    Path(&'a [u8]),
    /// Binds a socket to an abstract name.
    Name(&'a [u8]),
}

impl<'a> Op<'a> {
    fn next(script: &mut Script<'a>) -> Self {
        match script.below(10) {
            0..=3 => Self::Text(text(script)),
            4..=6 => Self::Host(text(script), script.byte().into()),
            7 => Self::Bind(script.byte() & 1 == 0, (0..script.below(4)).map(|_| ip(script)).collect()),
            8 => {
                let length = script.below(128);
                Self::Path(script.bytes(length))
            }
            _ => {
                let length = script.below(112);
                Self::Name(script.bytes(length))
            }
        }
    }
}

fn text(script: &mut Script<'_>) -> String {
    let mut text = String::new();
    for _ in 0..script.below(8) {
        match script.byte() {
            part @ ..128 => text.push_str(PARTS[usize::from(part % 32)]),
            byte => text.push(char::from(byte & 0x7F)),
        }
    }
    text
}

fn ip(script: &mut Script<'_>) -> IpAddr {
    let last = script.byte();
    match script.below(6) {
        0 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)),
        // No machine has an address of a network for documentation.
        1 | 2 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)),
        3 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, last.into())),
        4 => IpAddr::V6(Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, last.into())),
        _ => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Runs a script: any number of operations.
///
/// # Panics
/// Panics if an address comes out as another one, or an error does not say what failed.
pub(crate) fn run(script: &[u8]) {
    let mut script = Script::new(script);
    for _ in 0..20 {
        if script.is_empty() {
            return;
        }
        match Op::next(&mut script) {
            Op::Text(text) => {
                check(&text, &resolved(text.as_str()), literal(&text));
                check(&text, &resolved(text.clone()), literal(&text));
            }
            Op::Host(host, port) => {
                let literal = host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
                check(&host, &resolved((host.as_str(), port)), literal);
                check(&host, &resolved((host.clone(), port)), literal);
            }
            Op::Bind(is_udp, ips) => bind(is_udp, &ips),
            Op::Path(path) => connect(path),
            Op::Name(name) => bind_name(name),
        }
    }
}

/// The address that a text is without a look-up, as std sees it.
fn literal(text: &str) -> Option<SocketAddr> {
    let is_literal = text.parse::<SocketAddr>().is_ok()
        || text
            .rsplit_once(':')
            .is_some_and(|(host, port)| host.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_ok());
    // For another text std asks the system's resolver.
    if !is_literal {
        return None;
    }
    let mut addresses = text.to_socket_addrs().expect("a literal address");
    let address = addresses.next();
    assert!(address.is_some() && addresses.next().is_none(), "std has not one address for {text:?}");
    address
}

/// The addresses of `addrs`. Outside a runtime this never waits.
fn resolved(addrs: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
    let future = pin!(async { lookup_host(addrs).await.map(Vec::from_iter) });
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(resolved) => resolved,
        Poll::Pending => panic!("a look-up waits outside a runtime"),
    }
}

fn check(text: &str, ours: &io::Result<Vec<SocketAddr>>, theirs: Option<SocketAddr>) {
    match (ours, theirs) {
        (Ok(ours), Some(theirs)) => assert_eq!(ours, &[theirs], "{text:?} is another address"),
        (Err(error), None) => {
            let message = error.to_string();
            let is_name = error.kind() == ErrorKind::Other && message.contains("is a name");
            assert!(is_name || error.kind() == ErrorKind::InvalidInput, "{text:?} failed by {error:?}");
            let cannot_be_name = text.is_empty() || text.contains(['[', ']', '/', ' ', '\0']);
            assert!(!is_name || !cannot_be_name, "{text:?} would be looked up");
            // The error shows the host, or the whole text.
            let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
            assert!(
                [text, host].iter().any(|part| message.contains(&format!("{part:?}"))),
                "{text:?} is not in {message}"
            );
        }
        (ours, theirs) => panic!("{text:?} gives {ours:?}, and std has {theirs:?}"),
    }
}

fn bind(is_udp: bool, ips: &[IpAddr]) {
    let addresses: Vec<SocketAddr> = ips.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
    let bound = kittiwake::block_on(async {
        if is_udp {
            UdpSocket::bind(&addresses[..]).await?.local_addr()
        } else {
            TcpListener::bind(&addresses[..]).await?.local_addr()
        }
    });
    match bound {
        Ok(bound) => {
            assert!(ips.contains(&bound.ip()) && bound.port() != 0, "{bound} was bound, and not one of {ips:?}");
        }
        Err(error) if ips.is_empty() => assert_eq!(error.kind(), ErrorKind::InvalidInput),
        Err(error) => {
            let inner = AddrError::of(&error).expect("the error of a bind has its addresses");
            let tried: Vec<SocketAddr> = inner.attempts().map(|(address, _)| address).collect();
            assert_eq!(tried, addresses, "the error must have each address, in order");
            assert_eq!((Some(inner.addr()), inner.kind()), (addresses.last().copied(), error.kind()));
            assert!(inner.raw_os_error().is_some(), "{error:?} has no code");
            let message = error.to_string();
            assert!(
                addresses.iter().all(|address| message.contains(&address.to_string())),
                "{message} lacks an address"
            );
        }
    }
}

fn connect(path: &[u8]) {
    let path = [b"/nonexistent-kittiwake/", path].concat();
    let path = Path::new(OsStr::from_bytes(&path));
    let stream = kittiwake::block_on(UnixStream::connect(path)).map(drop);
    let datagram = UnixDatagram::unbound().expect("a socket").connect(path);
    let is_valid = std::os::unix::net::SocketAddr::from_pathname(path).is_ok();
    for failed in [stream, datagram] {
        let error = failed.expect_err("no socket is there");
        let expected = if is_valid { ErrorKind::NotFound } else { ErrorKind::InvalidInput };
        assert_eq!(error.kind(), expected, "{path:?} failed by {error}");
    }
}

/// The peer of a datagram has the name that it was bound to.
#[cfg(all(target_os = "linux", not(kittiwake_portable)))]
fn bind_name(name: &[u8]) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    // Two processes may run the same script.
    let prefix = format!("kittiwake-{}-", std::process::id());
    let name = [prefix.as_bytes(), name].concat();
    let Ok(address) = SocketAddr::from_abstract_name(&name) else { return };
    kittiwake::block_on(async {
        let socket = UnixDatagram::bind_addr(&address).expect("a name that no other socket has");
        assert_eq!(socket.local_addr().expect("an address").as_abstract_name(), Some(&name[..]));
        let error = UnixDatagram::bind_addr(&address).expect_err("the name is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}");
        socket.send_to_addr(b"hello", &address).await.expect("its own queue is empty");
        let (length, peer) = socket.recv_from(&mut [0; 16]).await.expect("a datagram");
        assert_eq!((length, peer.as_abstract_name()), (5, Some(&name[..])));
    });
}

#[cfg(not(all(target_os = "linux", not(kittiwake_portable))))]
fn bind_name(_: &[u8]) {}
