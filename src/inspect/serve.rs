//! [`serve`]: a server for the page alone.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::service::{service, service_for};
use crate::hyper;
use crate::net::{Report, ShutdownSignal, TcpListener};
use crate::runtime::Handle;
use crate::time::Duration;

/// A browser has six connections at most, so this is enough for ten of them.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may keep a connection without a request. The page asks every two seconds. Connections that are left
/// open must not keep others out for longer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Serves the page on the connections of `listener`.
///
/// It shows the runtime that it is polled in, or [another one](Serve::handle). `listener` must be bound to loopback,
/// unless [`allow_remote`](Serve::allow_remote) is set. Await the returned [`Serve`], or [spawn](crate::spawn()) it.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
/// use kittiwake::net::{TcpListener, TcpStream};
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let _server = kittiwake::spawn(kittiwake::inspect::serve(listener));
///
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"GET /api/timers HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
/// let mut response = String::new();
/// client.read_to_string(&mut response).await?;
/// assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.contains("\"total\":"));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub fn serve(listener: TcpListener) -> Serve {
    Serve { listener, handle: None, allow_remote: false, shutdown: ShutdownSignal::new() }
}

/// A server of the page that does not run yet: set its options, then await it.
///
/// [`serve`] makes it.
///
/// # Errors
/// If the listener is not bound to loopback, and [`allow_remote`](Serve::allow_remote) is not set. Otherwise those of
/// [`hyper::serve`](crate::hyper::serve()).
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve {
    listener: TcpListener,
    handle: Option<Handle>,
    allow_remote: bool,
    shutdown: ShutdownSignal,
}

impl Serve {
    /// Shows the runtime of `handle` instead of the one in which the server runs.
    ///
    /// A page in a runtime of its own answers also while all workers of the other one are stuck.
    ///
    /// # Examples
    /// ```no_run
    /// use kittiwake::net::TcpListener;
    /// use kittiwake::runtime::Runtime;
    ///
    /// let runtime = Runtime::new()?;
    /// let handle = runtime.handle().clone();
    /// std::thread::spawn(|| {
    ///     kittiwake::block_on(async {
    ///         let listener = TcpListener::bind("127.0.0.1:7001").await?;
    ///         kittiwake::inspect::serve(listener).handle(handle).await
    ///     })
    /// });
    /// # std::io::Result::Ok(())
    /// ```
    pub fn handle(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// Sets whether other machines may see the page. By default they may not.
    ///
    /// The page has the addresses of clients and the names of tasks, and does not ask who looks at it. With this, the
    /// listener may be bound to any address, and a request may have any `Host`.
    pub fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }

    /// Stops the server when `signal` is triggered: see
    /// [`hyper::Serve::with_shutdown`](crate::hyper::Serve::with_shutdown).
    pub fn with_shutdown(mut self, signal: &ShutdownSignal) -> Self {
        self.shutdown = signal.clone();
        self
    }

    async fn run(self) -> io::Result<Report> {
        let Self { listener, handle, allow_remote, shutdown } = self;
        let address = listener.local_addr()?;
        if !allow_remote && !address.ip().to_canonical().is_loopback() {
            return Err(not_loopback(address));
        }
        let service = handle.map_or_else(service, service_for).allow_remote(allow_remote);
        let server = hyper::serve(listener, service).max_connections(MAX_CONNECTIONS);
        let server = server.header_read_timeout(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
        Ok(server.with_shutdown(&shutdown).await?)
    }
}

fn not_loopback(address: SocketAddr) -> io::Error {
    let why = format!(
        "inspect: the listener is bound to {address}, where other machines could see this page. \
         Bind it to 127.0.0.1 or [::1], or call allow_remote(true)."
    );
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

impl IntoFuture for Serve {
    type Output = io::Result<Report>;
    type IntoFuture = Serving;

    fn into_future(self) -> Serving {
        Serving(Box::pin(self.run()))
    }
}

/// The future of [`Serve`]: a running server.
///
/// # Cancel safety
/// Dropping it ends the server at once.
#[must_use = "futures do nothing unless awaited"]
pub struct Serving(Pin<Box<dyn Future<Output = io::Result<Report>> + Send>>);

impl Future for Serving {
    type Output = io::Result<Report>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}
