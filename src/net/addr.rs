//! Names and addresses: [`ToSocketAddrs`] and [`lookup_host`].
//!
//! 1. [`sealed::ToSocketAddrs::to_target`] parses the argument of a bind or connect. It yields addresses or a name. It
//!    never waits.
//! 2. [`look_up`] resolves a name. It calls std, which calls the system's resolver with its files and settings. The
//!    resolver blocks, so the call runs on one of the runtime's threads for [blocking work](crate::spawn_blocking).
//!    Look-ups and closures have a limit each, so neither kind holds up the other.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs as _};
use std::pin::pin;
use std::task::{Context, Poll};

use super::addr_error::AddrError;
use crate::blocking::{self, Work};
use crate::budget;
use crate::task::{JoinHandle, consume_budget};
use sealed::Target;

/// A type that [`bind`](super::TcpListener::bind), [`connect`](super::TcpStream::connect) and [`lookup_host`] convert
/// into socket addresses.
///
/// The types are those of [`std::net::ToSocketAddrs`], and `Vec<SocketAddr>`:
/// * socket addresses, and slices and vectors of them;
/// * pairs of an IP address and a port;
/// * strings such as `"127.0.0.1:80"`, `"[::1]:80"` and `"localhost:80"`;
/// * pairs of a host and a port, such as `("localhost", 80)`.
///
/// A name is looked up when the future is polled, on the runtime's threads for [blocking work](crate::spawn_blocking).
/// Every other argument is parsed without waiting.
///
/// This trait is sealed: other crates cannot implement it.
// The trait is implemented type by type. If one implementation covered all types of the sealed trait, the compiler would
// name the sealed trait in its errors, and not this one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a socket address or the name of a host",
    label = "this is no address with a port",
    note = "write \"127.0.0.1:7000\", \"localhost:7000\", (\"localhost\", 7000) or a `SocketAddr`; port 0 lets the system choose",
    note = "a generic function needs the bound `kittiwake::net::ToSocketAddrs`"
)]
pub trait ToSocketAddrs: sealed::ToSocketAddrs {}

/// Looks up the addresses of a host and port, in the order in which a client should try them.
///
/// [`bind`](super::TcpListener::bind) and [`connect`](super::TcpStream::connect) call this by themselves. The system
/// decides how long a look-up takes (see resolv.conf(5)). A [`timeout`](crate::time::timeout) limits that time.
///
/// # Cancel safety
/// Safe. If the future is dropped, a look-up that has not started never starts. A look-up that has started runs to its
/// end on its thread, and its result is dropped.
///
/// # Errors
/// Returns the error of the system's resolver, together with the name. Returns `InvalidInput` if `host` is neither an
/// address nor a name. Returns an error for every name outside a runtime, because there is no thread to look it up on.
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

/// Converts `addrs` into addresses, in the order in which a client should try them.
pub(super) async fn resolve(addrs: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
    resolve_until(addrs, |_, _| Poll::Pending).await
}

/// Converts `addrs` into addresses, as [`resolve`] does, until `poll_stop` returns an error. It is polled while the
/// look-up of a name waits, and gets the name.
pub(super) async fn resolve_until(
    addrs: impl ToSocketAddrs,
    mut poll_stop: impl FnMut(&mut Context<'_>, &str) -> Poll<io::Error>,
) -> io::Result<Vec<SocketAddr>> {
    match addrs.to_target()? {
        Target::Addresses(addresses) => {
            // Nothing is waited for here, and a task may loop on it.
            poll_fn(budget::poll_spend_complete).await;
            Ok(addresses)
        }
        Target::Address(address) => {
            poll_fn(budget::poll_spend_complete).await;
            Ok(vec![address])
        }
        Target::Name(name, port) => {
            let mut lookup = pin!(look_up(name.clone(), port));
            poll_fn(|cx| match lookup.as_mut().poll(cx) {
                Poll::Pending => poll_stop(cx, &name).map(Err),
                ready => ready,
            })
            .await
        }
    }
}

/// Converts `addr` into its first address, for a caller that then waits for a socket. An address costs no allocation.
pub(super) async fn resolve_first(addr: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    if let Target::Address(address) = addr.to_target()? {
        return Ok(address);
    }
    resolve(addr).await?.into_iter().next().ok_or_else(no_address)
}

/// Calls `attempt` with one address after the other until it succeeds. Returns the errors of all attempts
/// ([`AddrError::join`]), or that of the last one if it names no address.
pub(super) async fn try_each<T, F>(addrs: impl ToSocketAddrs, mut attempt: impl FnMut(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut failed = None;
    for addr in resolve(addrs).await? {
        match attempt(addr).await {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = Some(AddrError::join(failed, error)),
        }
        // The attempt may not have waited, and the list may be long.
        consume_budget().await;
    }
    Err(failed.unwrap_or_else(no_address))
}

/// The error for an empty list of addresses.
pub(super) fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no address was given")
}

/// Looks up the addresses of `name` on a thread for blocking work.
async fn look_up(name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    let lookup = blocking::try_spawn(Work::LookUp, {
        let name = name.clone();
        move || (name.as_str(), port).to_socket_addrs().map(Vec::from_iter)
    });
    let Some(lookup) = lookup else {
        return Err(io::Error::other(format!(
            "{name:?} is a name, and there is no kittiwake runtime on this thread to look it up on; \
             do so inside kittiwake::block_on, or use an IP address"
        )));
    };
    lookup.set_name(format!("look-up of {name}").into());
    match (&mut AbortOnDrop(lookup).0).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(addresses) if addresses.is_empty() => {
            Err(io::Error::new(io::ErrorKind::NotFound, format!("{name:?} has no address")))
        }
        Ok(addresses) => Ok(addresses),
        Err(error) => Err(io::Error::new(error.kind(), format!("{name:?} cannot be looked up: {error}"))),
    }
}

/// A look-up that is aborted when its future is dropped. So a look-up that has not started never starts.
struct AbortOnDrop(JoinHandle<io::Result<Vec<SocketAddr>>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

mod sealed {
    use super::{SocketAddr, io};

    /// The parsed form of an argument.
    #[derive(Debug)]
    pub enum Target {
        Address(SocketAddr),
        Addresses(Vec<SocketAddr>),
        /// A name and a port. The name still needs a look-up.
        Name(String, u16),
    }

    /// The sealed half of the public trait.
    pub trait ToSocketAddrs {
        /// Parses the argument. Fails with `InvalidInput` if it is neither an address nor a name.
        fn to_target(&self) -> io::Result<Target>;
    }
}

/// Implements both traits for each type by an expression of type `io::Result<Target>`.
macro_rules! impl_to_target {
    ($($type:ty, $this:ident => $target:expr;)*) => {$(
        impl ToSocketAddrs for $type {}

        impl sealed::ToSocketAddrs for $type {
            fn to_target(&self) -> io::Result<Target> {
                let $this = self;
                $target
            }
        }
    )*};
}

impl_to_target! {
    SocketAddr, this => Ok(Target::Address(*this));
    SocketAddrV4, this => Ok(Target::Address(SocketAddr::V4(*this)));
    SocketAddrV6, this => Ok(Target::Address(SocketAddr::V6(*this)));
    (IpAddr, u16), this => Ok(Target::Address(SocketAddr::from(*this)));
    (Ipv4Addr, u16), this => Ok(Target::Address(SocketAddr::from(*this)));
    (Ipv6Addr, u16), this => Ok(Target::Address(SocketAddr::from(*this)));
    [SocketAddr], this => Ok(Target::Addresses(this.to_vec()));
    Vec<SocketAddr>, this => Ok(Target::Addresses(this.clone()));
    str, this => parse(this);
    String, this => parse(this);
    (&str, u16), this => parse_host(this.0, this.1);
    (String, u16), this => parse_host(&this.0, this.1);
}

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {}

impl<T: sealed::ToSocketAddrs + ?Sized> sealed::ToSocketAddrs for &T {
    fn to_target(&self) -> io::Result<Target> {
        T::to_target(self)
    }
}

/// Parses `address:port` or `name:port`.
fn parse(text: &str) -> io::Result<Target> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(Target::Address(addr));
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

/// Parses an IP address, or accepts `host` as a name if it can be one.
fn parse_host(host: &str, port: u16) -> io::Result<Target> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Target::Address(SocketAddr::new(ip, port)));
    }
    // The resolver would take some hosts with these characters for names and ask the network about them. A colon is
    // allowed in an address with a zone (RFC 4007), such as fe80::1%eth0: only the resolver knows the zones.
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
    use std::task::Waker;

    fn resolved(addrs: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
        match pin!(resolve(addrs)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("a literal address must not wait"),
        }
    }

    /// A literal address resolves in the first poll, whichever type it has.
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

    /// The error for a name outside a runtime says what the caller can do.
    #[test]
    fn name_outside_runtime_fails_helpfully() {
        for error in [resolved("localhost:80").unwrap_err(), resolved(("example.org", 80)).unwrap_err()] {
            assert!(error.to_string().contains("inside kittiwake::block_on, or use an IP address"), "{error}");
        }
    }

    /// An argument that is neither an address nor a name is `InvalidInput`, and never reaches the resolver.
    #[test]
    fn nonsense_is_invalid_input() {
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
