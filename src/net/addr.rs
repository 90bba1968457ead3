//! Names and addresses.

use std::future::{Future, ready};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// What can be turned into the addresses of [`bind`](super::TcpListener::bind) and
/// [`connect`](super::TcpStream::connect).
///
/// The same types as std's trait of this name: socket addresses, pairs of an IP address and a port, and strings such as
/// `"127.0.0.1:80"` and `"[::1]:80"`. Names like `"localhost:80"` give an
/// [`Unsupported`](io::ErrorKind::Unsupported) error so far, because asking for them blocks, and nothing that blocks
/// runs on a worker. It cannot be implemented outside this crate.
pub trait ToSocketAddrs: sealed::ToSocketAddrs {}

impl<T: sealed::ToSocketAddrs + ?Sized> ToSocketAddrs for T {}

/// Turns `addrs` into addresses, in the order in which they are to be tried.
pub(super) async fn resolve(addrs: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
    addrs.resolve().await
}

/// Tries `attempt` with each address until one succeeds; the error is the last one's.
pub(super) async fn try_each<T, F>(addrs: impl ToSocketAddrs, mut attempt: impl FnMut(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut last = None;
    for addr in resolve(addrs).await? {
        match attempt(addr).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no address was given")))
}

mod sealed {
    use super::{Future, SocketAddr, io};

    pub trait ToSocketAddrs {
        fn resolve(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static;
    }
}

/// Implements the trait by an expression for a vector of addresses.
macro_rules! literal {
    ($($type:ty, $this:ident => $addrs:expr;)*) => {$(
        impl sealed::ToSocketAddrs for $type {
            fn resolve(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static {
                let $this = self;
                ready(Ok($addrs))
            }
        }
    )*};
}

literal! {
    SocketAddr, this => vec![*this];
    SocketAddrV4, this => vec![SocketAddr::V4(*this)];
    SocketAddrV6, this => vec![SocketAddr::V6(*this)];
    (IpAddr, u16), this => vec![SocketAddr::from(*this)];
    (Ipv4Addr, u16), this => vec![SocketAddr::from(*this)];
    (Ipv6Addr, u16), this => vec![SocketAddr::from(*this)];
    [SocketAddr], this => this.to_vec();
    Vec<SocketAddr>, this => this.clone();
}

impl<T: sealed::ToSocketAddrs + ?Sized> sealed::ToSocketAddrs for &T {
    fn resolve(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static {
        T::resolve(self)
    }
}

impl sealed::ToSocketAddrs for str {
    fn resolve(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static {
        ready(parse(self).map(|addr| vec![addr]))
    }
}

impl sealed::ToSocketAddrs for String {
    fn resolve(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static {
        ready(parse(self).map(|addr| vec![addr]))
    }
}

impl sealed::ToSocketAddrs for (&str, u16) {
    fn resolve(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static {
        ready(parse_host(self.0, self.1).map(|addr| vec![addr]))
    }
}

impl sealed::ToSocketAddrs for (String, u16) {
    fn resolve(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static {
        ready(parse_host(&self.0, self.1).map(|addr| vec![addr]))
    }
}

/// Reads `address:port`.
fn parse(text: &str) -> io::Result<SocketAddr> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let port = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match port {
        Some((host, port)) => parse_host(host, port),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{text:?} is not an address with a port, such as 127.0.0.1:7000 or [::1]:7000"),
        )),
    }
}

/// Reads an IP address; anything else that could be a name is not looked up yet.
fn parse_host(host: &str, port: u16) -> io::Result<SocketAddr> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let is_name = !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']);
    let (kind, why) = if is_name {
        (io::ErrorKind::Unsupported, "is a name, and names are not looked up yet; use an IP address")
    } else {
        (io::ErrorKind::InvalidInput, "is not an IP address")
    };
    Err(io::Error::new(kind, format!("{host:?} {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn resolved(addrs: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
        match pin!(resolve(addrs)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("a literal address must not wait"),
        }
    }

    #[test]
    fn literal_addresses_resolve() {
        let v4: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let v6: SocketAddr = "[::1]:80".parse().unwrap();
        for addr in [v4, v6] {
            assert_eq!(resolved(addr).unwrap(), [addr]);
            assert_eq!(resolved(addr.to_string()).unwrap(), [addr]);
            assert_eq!(resolved(addr.to_string().as_str()).unwrap(), [addr]);
            assert_eq!(resolved((addr.ip(), 80)).unwrap(), [addr]);
            assert_eq!(resolved((addr.ip().to_string(), 80)).unwrap(), [addr]);
            assert_eq!(resolved((addr.ip().to_string().as_str(), 80)).unwrap(), [addr]);
        }
        assert_eq!(resolved(&[v4, v6][..]).unwrap(), [v4, v6]);
        assert_eq!(resolved(vec![v6, v4]).unwrap(), [v6, v4]);
    }

    #[test]
    fn a_name_says_that_names_are_not_supported() {
        for error in [resolved("localhost:80").unwrap_err(), resolved(("example.org", 80)).unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("use an IP address"), "{error}");
        }
    }

    #[test]
    fn nonsense_says_what_an_address_looks_like() {
        for nonsense in ["", "127.0.0.1", "127.0.0.1:99999", "[::1]", "[::1:80", "a b:80", ":80", "1.2.3.4:"] {
            let error = resolved(nonsense).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{nonsense:?} gave {error}");
        }
    }
}
