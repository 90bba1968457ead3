//! Names and addresses.
//!
//! What a socket is to be bound or connected to is read at once ([`sealed::ToSocketAddrs::read`]). Only what is a name after
//! that is looked up ([`look_up`]): by std, and so by the system's resolver with its files and settings, which blocks; hence
//! on the runtime's threads for [blocking work](crate::spawn_blocking).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs as _};

use crate::blocking::try_spawn_blocking;
use crate::task::JoinHandle;
use sealed::Target;

/// What can be turned into the addresses of [`bind`](super::TcpListener::bind),
/// [`connect`](super::TcpStream::connect) and [`lookup_host`].
///
/// The same types as std's trait of this name: socket addresses, pairs of an IP address and a port, strings such as
/// `"127.0.0.1:80"`, `"[::1]:80"` and `"localhost:80"`, and pairs such as `("localhost", 80)`. Names are looked up when the
/// future is polled, on the runtime's threads for [blocking work](crate::spawn_blocking); all else is just read. It cannot be
/// implemented outside this crate.
pub trait ToSocketAddrs: sealed::ToSocketAddrs {}

impl<T: sealed::ToSocketAddrs + ?Sized> ToSocketAddrs for T {}

/// The addresses of a host and port, in the order in which they are to be tried.
///
/// [`bind`](super::TcpListener::bind) and [`connect`](super::TcpStream::connect) do this by themselves. How long it takes is
/// the system's affair (see resolv.conf(5)): bound it by a [`timeout`](crate::time::timeout).
///
/// # Cancel safety
/// Safe. A look-up that has begun goes on, on its thread, and its result is dropped; one that has not is not begun.
///
/// # Errors
/// What the system's resolver says, with the name; `InvalidInput` for what is neither address nor name. Outside a runtime a
/// name is an error: there is no thread to look it up on.
///
/// # Examples
/// ```
/// # kittiwake::block_on(async {
/// let mut addresses = kittiwake::net::lookup_host("localhost:7000").await?;
/// assert!(addresses.all(|address| address.ip().is_loopback() && address.port() == 7000));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub async fn lookup_host<A: ToSocketAddrs>(host: A) -> io::Result<impl Iterator<Item = SocketAddr> + use<A>> {
    Ok(resolve(host).await?.into_iter())
}

/// Turns `addrs` into addresses, in the order in which they are to be tried.
pub(super) async fn resolve(addrs: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
    match addrs.read()? {
        Target::Addresses(addresses) => Ok(addresses),
        Target::Name(name, port) => look_up(name, port).await,
    }
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

/// Asks the system for the addresses of `name`.
async fn look_up(name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    let job = try_spawn_blocking({
        let name = name.clone();
        move || (name.as_str(), port).to_socket_addrs().map(Vec::from_iter)
    });
    let Some(job) = job else {
        return Err(io::Error::other(format!(
            "{name:?} is a name, and there is no kittiwake runtime on this thread to look it up on; \
             do so inside kittiwake::block_on, or use an IP address"
        )));
    };
    match (&mut LookUp(job).0).await {
        Ok(Ok(addresses)) if addresses.is_empty() => {
            Err(io::Error::new(io::ErrorKind::NotFound, format!("{name:?} has no address")))
        }
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(io::Error::new(error.kind(), format!("{name:?} cannot be looked up: {error}"))),
        Err(error) => Err(io::Error::other(format!("{name:?} cannot be looked up: {error}"))),
    }
}

/// A look-up, which is not begun any more once nobody waits for it.
struct LookUp(JoinHandle<io::Result<Vec<SocketAddr>>>);

impl Drop for LookUp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self::Addresses(vec![addr])
    }
}

mod sealed {
    use super::{SocketAddr, io};

    /// What a user named.
    #[derive(Debug)]
    pub enum Target {
        Addresses(Vec<SocketAddr>),
        Name(String, u16),
    }

    pub trait ToSocketAddrs {
        fn read(&self) -> io::Result<Target>;
    }
}

/// Implements the trait by an expression for a target, or for an error.
macro_rules! read {
    ($($type:ty, $this:ident => $target:expr;)*) => {$(
        impl sealed::ToSocketAddrs for $type {
            fn read(&self) -> io::Result<Target> {
                let $this = self;
                $target
            }
        }
    )*};
}

read! {
    SocketAddr, this => Ok(Target::from(*this));
    SocketAddrV4, this => Ok(Target::from(SocketAddr::V4(*this)));
    SocketAddrV6, this => Ok(Target::from(SocketAddr::V6(*this)));
    (IpAddr, u16), this => Ok(Target::from(SocketAddr::from(*this)));
    (Ipv4Addr, u16), this => Ok(Target::from(SocketAddr::from(*this)));
    (Ipv6Addr, u16), this => Ok(Target::from(SocketAddr::from(*this)));
    [SocketAddr], this => Ok(Target::Addresses(this.to_vec()));
    Vec<SocketAddr>, this => Ok(Target::Addresses(this.clone()));
    str, this => parse(this);
    String, this => parse(this);
    (&str, u16), this => parse_host(this.0, this.1);
    (String, u16), this => parse_host(&this.0, this.1);
}

impl<T: sealed::ToSocketAddrs + ?Sized> sealed::ToSocketAddrs for &T {
    fn read(&self) -> io::Result<Target> {
        T::read(self)
    }
}

/// Reads `address:port` or `name:port`.
fn parse(text: &str) -> io::Result<Target> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr.into());
    }
    let port = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match port {
        Some((host, port)) => parse_host(host, port),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{text:?} is not an address with a port, such as 127.0.0.1:7000, [::1]:7000 or localhost:7000"),
        )),
    }
}

/// Reads an IP address, or what could be a name.
fn parse_host(host: &str, port: u16) -> io::Result<Target> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port).into());
    }
    // The resolver would take some of these for names, and ask the network. An address with a zone, such as fe80::1%eth0, has
    // colons; it is the resolver that knows the zones.
    let is_name =
        !host.is_empty() && !host.contains(['[', ']', '/', ' ', '\0']) && (!host.contains(':') || host.contains('%'));
    if is_name {
        return Ok(Target::Name(host.to_owned(), port));
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is neither an IP address nor a name")))
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
    fn a_name_outside_a_runtime_says_what_to_do() {
        for error in [resolved("localhost:80").unwrap_err(), resolved(("example.org", 80)).unwrap_err()] {
            assert!(error.to_string().contains("inside kittiwake::block_on, or use an IP address"), "{error}");
        }
    }

    #[test]
    fn nonsense_says_what_an_address_looks_like() {
        for nonsense in [
            "",
            "127.0.0.1",
            "127.0.0.1:99999",
            "[::1]",
            "[::1:80",
            "a b:80",
            ":80",
            "1.2.3.4:",
            "::1",
            "a/b:1",
            "a\0b:1",
        ] {
            let error = resolved(nonsense).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{nonsense:?} gave {error}");
        }
    }
}
