//! [`serve`] and its options.

use std::any::Any;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::hyper::body::{Body, Incoming};
use ::hyper::server::conn::{http1, http2};
use ::hyper::service::Service;
use ::hyper::{Request, Response};
use futures_io::{AsyncRead, AsyncWrite};

use super::connection::{self, BoxError, Options};
use super::deadline::{IDLE_IN_DRAIN, LINGER, Limits};
use super::executor::StreamExecutor;
use super::timer::Timer;
use crate::net::{
    self, Failure, HandlerOutput, Listener, Report, ServeError, ServeStats, ShutdownSignal, TcpStream, UnixStream,
};
use crate::time::{Duration, timeout};

/// The default of [`Serve::handshake_timeout`].
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The default of [`Serve::header_read_timeout`].
const HEADER_READ: Duration = Duration::from_secs(30);

/// The default of [`Serve::keep_alive_timeout`]: longer than the 60 s of usual load balancers, which then close first.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// The default of [`Serve::body_timeout`].
const BODY: Duration = Duration::from_secs(30);

/// Serves HTTP/1 and HTTP/2 on the connections of `listener`.
///
/// `service` is a hyper service: [`service_fn`](::hyper::service::service_fn) makes one of a function. A tower service,
/// such as axum's `Router`, becomes one by `hyper_util::service::TowerToHyperService`. Each connection gets a clone.
///
/// The protocol of each connection is found by its first bytes. HTTP/2 needs no TLS for that (prior knowledge); with
/// TLS, offer `h2` and `http/1.1` by ALPN. Upgrades on HTTP/1 and CONNECT on both protocols work, and need nothing
/// here.
///
/// Await the returned [`Serve`] to run the server. Before that, its methods set the limits and what stops it. The
/// server accepts, drains and reports as [`net::serve`](crate::net::serve()) does.
///
/// # Examples
/// ```
/// use std::convert::Infallible;
///
/// use hyper::service::service_fn;
/// use hyper::{Request, Response, body::Incoming};
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
/// use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream};
///
/// async fn hello(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
///     Ok(Response::new(format!("hello from {}\n", request.uri().path())))
/// }
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let shutdown = ShutdownSignal::new();
/// let server = kittiwake::spawn(kittiwake::hyper::serve(listener, service_fn(hello)).with_shutdown(&shutdown));
///
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"GET /here HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
/// let mut response = String::new();
/// client.read_to_string(&mut response).await?;
/// assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("hello from /here\n"));
///
/// shutdown.trigger();
/// assert_eq!(server.await.unwrap()?.served, 1);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[track_caller]
pub fn serve<L, S>(listener: L, service: S) -> Serve<L, impl Fn(L::Addr) -> S + Send + 'static>
where
    L: Listener,
    S: Clone + Send + 'static,
{
    serve_with(listener, move |_peer| service.clone())
}

/// Serves HTTP/1 and HTTP/2 with a service for each connection, which `make_service` makes of the client's address.
///
/// Apart from that it is like [`serve`].
///
/// # Examples
/// ```
/// use std::convert::Infallible;
/// use std::net::SocketAddr;
///
/// use hyper::service::service_fn;
/// use hyper::{Request, Response, body::Incoming};
/// use kittiwake::net::TcpListener;
///
/// # async fn example() -> std::io::Result<()> {
/// let listener = TcpListener::bind("127.0.0.1:8080").await?;
/// kittiwake::hyper::serve_with(listener, |peer: SocketAddr| {
///     service_fn(move |_request: Request<Incoming>| async move {
///         Ok::<_, Infallible>(Response::new(format!("you are {peer}\n")))
///     })
/// })
/// .await?;
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn serve_with<L, M, S>(listener: L, make_service: M) -> Serve<L, M>
where
    L: Listener,
    M: Fn(L::Addr) -> S,
{
    // hyper would wait for a first byte without a limit of its own. `Deadline` has all limits.
    let mut http1 = http1::Builder::new();
    http1.half_close(true).header_read_timeout(None).timer(Timer);
    let mut http2 = http2::Builder::new(StreamExecutor::new());
    http2.timer(Timer);
    let limits = Limits {
        header_read: HEADER_READ,
        keep_alive: KEEP_ALIVE,
        body: BODY,
        idle_in_drain: IDLE_IN_DRAIN,
        linger_in_drain: LINGER,
    };
    Serve {
        server: net::serve(listener, unserved::<L> as Unserved<L>),
        make_service,
        handshake: no_handshake::<L::Stream>,
        shutdown: ShutdownSignal::new(),
        nodelay: true,
        options: Options {
            http1,
            http2,
            http1_only: false,
            limits,
            handshake: HANDSHAKE,
            handshake_in_drain: IDLE_IN_DRAIN,
        },
    }
}

/// A handler that is replaced when the server starts.
type Unserved<L> = fn(<L as Listener>::Stream, <L as Listener>::Addr) -> Ready<()>;

fn unserved<L: Listener>(_stream: L::Stream, _peer: L::Addr) -> Ready<()> {
    ready(())
}

/// The handshake of connections that have none.
type NoHandshake<T> = fn(T) -> Ready<io::Result<T>>;

fn no_handshake<T>(stream: T) -> Ready<io::Result<T>> {
    ready(Ok(stream))
}

/// An HTTP server that does not run yet: set its options, then await it.
///
/// [`serve`] and [`serve_with`] make it. To run it as a task, [spawn](crate::spawn) it.
///
/// # Limits
/// Each wait for a client has a limit, except that for the body of an HTTP/2 request. A handler may take as long as it
/// likes, and so may a response body that has nothing to send.
///
/// | the client | limit | default |
/// | --- | --- | --- |
/// | does not complete the handshake | [`handshake_timeout`](Serve::handshake_timeout) | 10 s |
/// | sends nothing, or not the whole head of a request | [`header_read_timeout`](Serve::header_read_timeout) | 30 s |
/// | has its response and sends no further request | [`keep_alive_timeout`](Serve::keep_alive_timeout) | 75 s |
/// | owes the rest of a request's body, and sends none of it (HTTP/1) | [`body_timeout`](Serve::body_timeout) | 30 s |
/// | does not read a response | [`body_timeout`](Serve::body_timeout) | 30 s |
///
/// hyper does not tell what it has read behind a request. A client of HTTP/1 may send the first part of its next head
/// in one piece with a request. It counts as one that sends no further request then, until more of that head comes.
///
/// hyper reads one piece of a request's body ahead. So a client of HTTP/1 that stalls there is cut off even if the
/// handler has not begun to read. With `Expect: 100-continue` the client owes a body only once the handler reads it. A
/// handler must read the body before its response ends: after that the limits are those of the next request, and hyper
/// does not report the end of the body.
///
/// When the server ends a connection whose client may still be sending, it closes its own side first. It then discards
/// what comes, for two seconds at most, until the client closes too. A reset could take the response from a client that
/// has not read it yet. This is so on HTTP/1 after a request with a body or in the middle of a head, and on HTTP/2
/// unless the client has made an error. On HTTP/2 the two seconds begin anew with each byte that comes, within the time
/// of a body.
///
/// A client that closes its side of an HTTP/1 connection before it has its response mostly counts as gone, and the
/// handler is dropped. If the handler is reading the body, it gets an error instead. The server does not see the end
/// while bytes come before it that hyper has not read.
///
/// On HTTP/2 a connection is idle while it has no request, no response that the client still has to read, and no
/// tunnel. A tunnel of CONNECT counts until the server closes or drops its side, and the client has taken what the
/// server wrote before: hyper keeps those bytes, without a limit. A response that the client does not read ends the
/// connection with all its requests. A body that the client of an HTTP/2 request does not complete has no limit here,
/// because hyper does not tell whether the handler reads it: put a [`timeout`](crate::time::timeout()) around the read
/// in the handler. The limit of a head applies before the first request only.
///
/// # How it ends
/// As a [`net::Serve`](crate::net::Serve#how-it-ends) does, with the connections of HTTP as follows:
/// * An HTTP/1 connection closes after the next response, whose header `connection: close` tells the client. An idle
///   connection, and one from the kernel's queue, waits for a request for up to a second, or for half of the
///   [drain timeout](Serve::drain_timeout) if that is less. A response that has begun when the server stops has no such
///   header, and the connection waits for one more request. Requests that the client has sent ahead (pipelining) behind
///   the last one are not answered. A client that has sent a part of a head has the time of a head to complete it.
/// * A [handshake](Serve::handshake) that has not ended has a second more, or a quarter of the drain timeout if that is
///   less.
/// * An HTTP/2 client gets GOAWAY. Its connection closes after the requests that have reached the kernel.
///
/// Ask for the stream of an upgrade (`hyper::upgrade::on`) only if your response begins the upgrade. The server closes the
/// stream of a refused upgrade, and a task that awaits that stream mostly panics.
///
/// An upgraded connection counts until its stream is dropped. At the end of the drain the server does not wait for it
/// any longer, and lists it as open; its task goes on. To end such tasks in time, give them a clone of the
/// [signal](Serve::with_shutdown).
///
/// # Errors
/// Those of [`net::Serve`]. The errors of connections go to [`on_error`](Serve::on_error), and so does an error of the
/// service on HTTP/1. On HTTP/2 an error of the service, or the panic of its future, ends its stream only, and is not
/// reported here. A panic in the call that makes the future ends the connection.
///
/// # Panics
/// When a client connects while the server is polled outside a runtime.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<L: Listener, M, H = NoHandshake<<L as Listener>::Stream>> {
    server: net::Serve<L, Unserved<L>, Ready<()>>,
    make_service: M,
    handshake: H,
    shutdown: ShutdownSignal,
    nodelay: bool,
    options: Options,
}

impl<L: Listener, M, H> Serve<L, M, H> {
    /// Turns each accepted stream into another one, before the first request: for example by a TLS handshake.
    ///
    /// The handshake runs in the connection's own task, and
    /// [`handshake_timeout`](Serve::handshake_timeout) limits it. Its error ends the connection and goes to
    /// [`on_error`](Serve::on_error).
    ///
    /// # Examples
    /// ```no_run
    /// # use std::io;
    /// # use kittiwake::net::{TcpListener, TcpStream};
    /// # struct Acceptor;
    /// # impl Acceptor { async fn accept(&self, stream: TcpStream) -> io::Result<TcpStream> { Ok(stream) } }
    /// # async fn example(acceptor: std::sync::Arc<Acceptor>) -> io::Result<()> {
    /// # let service = hyper::service::service_fn(|_: hyper::Request<hyper::body::Incoming>| async {
    /// #     Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new()))
    /// # });
    /// let listener = TcpListener::bind("127.0.0.1:8443").await?;
    /// // A `TlsAcceptor` of futures-rustls is one that fits here.
    /// kittiwake::hyper::serve(listener, service)
    ///     .handshake(move |stream| {
    ///         let acceptor = acceptor.clone();
    ///         async move { acceptor.accept(stream).await }
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn handshake<H2, F, T, E>(self, handshake: H2) -> Serve<L, M, H2>
    where
        H2: Fn(L::Stream) -> F,
        F: Future<Output = Result<T, E>>,
    {
        let Self { server, make_service, handshake: _, shutdown, nodelay, options } = self;
        Serve { server, make_service, handshake, shutdown, nodelay, options }
    }

    /// Limits how long a [handshake](Serve::handshake) takes. The default is 10 seconds; [`Duration::MAX`] is no limit.
    pub fn handshake_timeout(mut self, duration: Duration) -> Self {
        self.options.handshake = duration;
        self
    }

    /// Limits how long a client takes to send the head of a request. The default is 30 seconds; [`Duration::MAX`] is no
    /// limit.
    ///
    /// For the first request the time starts after the handshake. For others it starts with the first byte that comes
    /// after the last response.
    pub fn header_read_timeout(mut self, duration: Duration) -> Self {
        self.options.limits.header_read = duration;
        self
    }

    /// Limits how long a connection stays open without a request. The default is 75 seconds; [`Duration::MAX`] is no
    /// limit.
    ///
    /// The server then closes the connection. That is no error.
    pub fn keep_alive_timeout(mut self, duration: Duration) -> Self {
        self.options.limits.keep_alive = duration;
        self
    }

    /// Limits how long the body of a request or a response stalls because of the client. The default is 30 seconds;
    /// [`Duration::MAX`] is no limit.
    ///
    /// The time starts anew with each byte that comes or goes. It does not run while a request has no body to come, nor
    /// while a response body waits for its own data.
    pub fn body_timeout(mut self, duration: Duration) -> Self {
        self.options.limits.body = duration;
        self
    }

    /// Serves HTTP/1 only. The connection of a client that begins with HTTP/2 is closed, and counts as failed.
    pub fn http1_only(mut self) -> Self {
        self.options.http1_only = true;
        self
    }

    /// Sets hyper's own options for HTTP/1, such as the number of headers.
    ///
    /// `half_close`, `header_read_timeout` and the timer are set by this server: leave them as they are.
    pub fn http1(mut self, set: impl FnOnce(&mut http1::Builder)) -> Self {
        set(&mut self.options.http1);
        self
    }

    /// Sets hyper's own options for HTTP/2, such as the number of concurrent streams.
    pub fn http2(mut self, set: impl FnOnce(&mut http2::Builder<StreamExecutor>)) -> Self {
        set(&mut self.options.http2);
        self
    }

    /// Sets whether small writes to accepted TCP connections are sent at once (`TCP_NODELAY`). By default they are.
    ///
    /// Without it, a chunk of a response may take 40 ms longer: see
    /// [`net::Serve::nodelay`](crate::net::Serve::nodelay).
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Stops accepting while `n` connections are open: see
    /// [`net::Serve::max_connections`](crate::net::Serve::max_connections). By default there is no limit.
    ///
    /// # Panics
    /// Panics if `n` is 0.
    pub fn max_connections(mut self, n: usize) -> Self {
        self.server = self.server.max_connections(n);
        self
    }

    /// Stops the server when `future` is ready: see [how it ends](Serve#how-it-ends).
    ///
    /// A future that returns an error stops the server too, and the server then ends with that error.
    pub fn with_graceful_shutdown<S>(mut self, future: S) -> Self
    where
        S: IntoFuture<Output: HandlerOutput, IntoFuture: Send + 'static>,
    {
        self.server = self.server.with_graceful_shutdown(future);
        self
    }

    /// Ends the server at once when `future` is ready, before or during the drain: see
    /// [`net::Serve::with_immediate_shutdown`](crate::net::Serve::with_immediate_shutdown).
    pub fn with_immediate_shutdown<S>(mut self, future: S) -> Self
    where
        S: IntoFuture<Output: HandlerOutput, IntoFuture: Send + 'static>,
    {
        self.server = self.server.with_immediate_shutdown(future);
        self
    }

    /// Stops the server when `signal` is triggered, and triggers `signal` when the server stops for another reason.
    ///
    /// A handler that has a clone of the signal learns in this way that the server stops.
    pub fn with_shutdown(mut self, signal: &ShutdownSignal) -> Self {
        self.shutdown = signal.clone();
        self
    }

    /// Limits how long the server waits for its connections when it stops: see [how it ends](Serve#how-it-ends). The
    /// default is 25 seconds; [`Duration::MAX`] is no limit.
    pub fn drain_timeout(mut self, duration: Duration) -> Self {
        // Idle connections must end before the drain does: else the report lists them as open. A client may have two of
        // these times, one after the other.
        self.options.handshake_in_drain = IDLE_IN_DRAIN.min(duration / 4);
        self.options.limits.idle_in_drain = IDLE_IN_DRAIN.min(duration / 2);
        self.options.limits.linger_in_drain = LINGER.min(duration / 4);
        self.server = self.server.drain_timeout(duration);
        self
    }

    /// Calls `report` for each error of a connection and of accepting: see
    /// [`net::Serve::on_error`](crate::net::Serve::on_error). By default errors are not reported.
    ///
    /// A client that exceeds a limit is an error, and so is one that breaks off in the middle of a request.
    pub fn on_error(mut self, report: impl Fn(&Failure<'_, L::Addr>) + Send + Sync + 'static) -> Self {
        self.server = self.server.on_error(report);
        self
    }

    /// The counts of connections of this server: see [`net::Serve::stats`](crate::net::Serve::stats).
    pub fn stats(&self) -> ServeStats {
        self.server.stats()
    }
}

impl<L, M, H, S, B, F, T, E> IntoFuture for Serve<L, M, H>
where
    L: Listener<Stream: Send + 'static> + Send + 'static,
    M: Fn(L::Addr) -> S + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    H: Fn(L::Stream) -> F + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Into<BoxError>,
{
    type Output = Result<Report<L::Addr>, ServeError<L::Addr>>;
    type IntoFuture = Serving<L::Addr>;

    fn into_future(self) -> Serving<L::Addr> {
        let Self { server, make_service, handshake, shutdown, nodelay, options } = self;
        let server = server.with_shutdown(&shutdown);
        let options = Arc::new(options);
        let handler = move |stream: L::Stream, peer| {
            if let (true, Some(tcp)) = (nodelay, (&stream as &dyn Any).downcast_ref::<TcpStream>()) {
                // A connection on which this fails has ended already, and hyper learns that from its first read.
                let _ = tcp.set_nodelay(true);
            }
            let (service, handshake) = (make_service(peer), handshake(stream));
            let (options, mut shutdown) = (options.clone(), shutdown.clone());
            async move {
                let stream = finish_handshake(handshake, &options, &mut shutdown).await?;
                let writev = writes_vectored(&stream);
                connection::serve(stream, writev, service, &options, shutdown).await
            }
        };
        Serving(Box::pin(server.with_handler(handler).into_future()))
    }
}

/// Waits for a handshake for as long as the options allow, and once the server stops only a little longer.
async fn finish_handshake<T, E: Into<BoxError>>(
    handshake: impl Future<Output = Result<T, E>>,
    options: &Options,
    shutdown: &mut ShutdownSignal,
) -> Result<T, BoxError> {
    let handshake = timeout(options.handshake, handshake);
    match shutdown.run_with_grace(options.handshake_in_drain, handshake).await {
        Some(Ok(stream)) => stream.map_err(Into::into),
        Some(Err(_)) | None => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not complete the handshake").into())
        }
    }
}

/// Whether a stream is one that sends several buffers by one system call.
fn writes_vectored(stream: &dyn Any) -> bool {
    stream.is::<TcpStream>() || stream.is::<UnixStream>()
}

impl<L: Listener, M, H> fmt::Debug for Serve<L, M, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

/// The future of [`Serve`]: a running server.
///
/// # Cancel safety
/// Dropping it ends the server at once, as dropping a [`net::Serving`] does.
#[must_use = "futures do nothing unless awaited"]
pub struct Serving<A: Clone>(Pin<Box<Server<A>>>);

type Server<A> = dyn Future<Output = Result<Report<A>, ServeError<A>>> + Send;

impl<A: Clone> Future for Serving<A> {
    type Output = Result<Report<A>, ServeError<A>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<A: Clone> fmt::Debug for Serving<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}
