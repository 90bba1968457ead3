//! [`Connector`]: the client of hyper-util on this runtime.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::hyper::Uri;
use ::hyper::body::Body;
use ::hyper::http::uri::Scheme;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower_service::Service;

use super::executor::Executor;
use super::io::Io;
use super::timer::Timer;
use crate::net::TcpStream;
use crate::time::{Duration, timeout};

/// The default of [`Connector::connect_timeout`].
const CONNECT: Duration = Duration::from_secs(10);

/// Connects the clients of hyper-util by TCP.
///
/// A name with several addresses is connected as [`TcpStream::connect`] does, so a dead address costs little. Clones are
/// cheap.
///
/// # Examples
/// ```no_run
/// use http_body_util::{BodyExt, Empty};
/// use hyper::body::Bytes;
/// use kittiwake::hyper::Connector;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Connector::new().client::<Empty<Bytes>>();
/// let response = client.get("http://127.0.0.1:8080/".parse()?).await?;
/// let body = response.into_body().collect().await?.to_bytes();
/// println!("{}", String::from_utf8_lossy(&body));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Connector {
    connect_timeout: Duration,
    enforce_http: bool,
}

impl Connector {
    /// Makes a connector for `http` addresses.
    pub fn new() -> Self {
        Self { connect_timeout: CONNECT, enforce_http: true }
    }

    /// Limits how long it takes to look up a name and to connect. The default is 10 seconds; [`Duration::MAX`] is no
    /// limit.
    pub fn connect_timeout(mut self, duration: Duration) -> Self {
        self.connect_timeout = duration;
        self
    }

    /// Sets whether an address that is not `http` is an error. By default it is. A connector that adds TLS to this one
    /// sets it to `false`.
    pub fn enforce_http(mut self, enforce: bool) -> Self {
        self.enforce_http = enforce;
        self
    }

    /// Makes a client that runs on this runtime.
    ///
    /// The client keeps connections for the next request, and closes them once they have been idle for 90 seconds.
    /// Use hyper-util's builder with [`Executor`] and [`Timer`] to set something else. Its `pool_timer` closes idle
    /// connections; without it, they stay open.
    pub fn client<B>(self) -> Client<Self, B>
    where
        B: Body<Data: Send> + Send,
    {
        Client::builder(Executor).timer(Timer).pool_timer(Timer).build(self)
    }
}

impl Default for Connector {
    fn default() -> Self {
        Self::new()
    }
}

impl Service<Uri> for Connector {
    type Response = Io<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Io<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.connect(uri))
    }
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<Io<TcpStream>> {
        let invalid = |problem| io::Error::new(io::ErrorKind::InvalidInput, format!("{uri}: {problem}"));
        if self.enforce_http && uri.scheme() != Some(&Scheme::HTTP) {
            return Err(invalid("this connector has no TLS, so the address must begin with http://"));
        }
        let host = uri.host().ok_or_else(|| invalid("the address has no host"))?;
        // An address of IPv6 stands in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
        let Ok(connected) = timeout(self.connect_timeout, TcpStream::connect((host, port))).await else {
            let message = format!("{host}:{port}: no connection within {:?}", self.connect_timeout);
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        };
        let stream = connected?;
        stream.set_nodelay(true)?;
        Ok(Io::new(stream).writev(true))
    }
}

impl Connection for TcpStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// So a connector of your own may return `Io` of its own stream.
impl<T: Connection> Connection for Io<T> {
    fn connected(&self) -> Connected {
        self.get_ref().connected()
    }
}
