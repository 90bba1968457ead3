//! The builder: a server's options, and their documentation.

use std::fmt;
use std::io;
use std::panic::Location;
use std::sync::Arc;

use super::connections::OnError;
use super::output::HandlerOutput;
use super::output::sealed::Sealed as _;
use super::report::{Failure, Report, ServeError};
use super::server::{Options, Serving, Signal};
use super::service::Placement;
use super::stats::{Counts, ServeStats};
use crate::net::listener::Listener;
use crate::net::shutdown::ShutdownSignal;
use crate::net::tcp::TcpStream;
use crate::time::Duration;

/// The drain timeout, unless it is set. Kubernetes and others kill a process 30 s after they have asked it to stop:
/// this leaves some time to write the report.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// A server that does not run yet: set its options, then await it.
///
/// [`serve`](super::serve()) and [`serve_local`](super::serve_local) make it. To run it as a task,
/// [spawn](crate::spawn) it.
///
/// # How it ends
/// A server stops when its [signal](Serve::with_shutdown) is triggered, when the future of
/// [`with_graceful_shutdown`](Serve::with_graceful_shutdown) is ready, or when accepting fails for good. Then
/// 1. it accepts the connections in the kernel's queue and closes the listener. It accepts as many as that queue can
///    hold: 4,096, or more if `net.core.somaxconn` of Linux says so. If accepting has failed for good, it accepts 64.
///    At [`max_connections`](Serve::max_connections) it waits for connections to end, and clients that come meanwhile
///    join the queue. If descriptors run out, it tries again as [below](Serve#when-accepting-fails). At the end of the
///    drain timeout it resets or turns away the clients that are left. Clients that it turns away are among the ones
///    that it has accepted;
/// 2. it waits for its handlers to end, for the [drain timeout](Serve::drain_timeout) at most;
/// 3. it aborts the handlers that are still running, and lists their connections as [`open`](crate::net::Report::open).
///    A handler is dropped by its own worker, shortly after the report is returned. A handler that blocks its thread
///    runs on until it returns.
///
/// [`with_immediate_shutdown`](Serve::with_immediate_shutdown) leads to step 3 at any time.
///
/// # When accepting fails
/// Connections that the client has given up are passed over, and so are those that the network or a firewall has
/// failed, up to 64 in a row.
///
/// When descriptors or memory run out, or the network fails, the server reports the error and tries again: after 10 ms,
/// then 20 ms, and so on up to 1 s, and each time one of its connections ends. When this has gone on for more than a
/// second, there are no descriptors and nothing was accepted during the last wait, it turns away the clients in the
/// queue: it closes their connections and counts them as [`refused`](crate::net::Report::refused). For this it keeps
/// one descriptor in [reserve](Listener::reserve).
///
/// Any other error is fatal: the server stops as above and ends with the error. [`Listener`] has the table of errors.
///
/// # Cancel safety
/// Dropping the server closes the listener, resets the connections in the kernel's queue, and aborts all handlers. It
/// triggers the server's [signal](Serve::with_shutdown).
///
/// # Errors
/// The fatal error of the listener, with the report. The end of the runtime, while the server is accepting, is one too.
///
/// # Panics
/// When a client connects while the server is polled outside a runtime.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<L: Listener, H, F> {
    listener: L,
    handler: H,
    placement: Placement<F, L::Addr>,
    prepare: Option<fn(&L::Stream)>,
    on_error: Option<OnError<L::Addr>>,
    counts: Arc<Counts>,
    options: Options,
}

impl<L: Listener, H, F> Serve<L, H, F> {
    #[track_caller]
    pub(super) fn new(listener: L, handler: H, placement: Placement<F, L::Addr>) -> Self {
        let (max_connections, drain_timeout) = (usize::MAX, DRAIN_TIMEOUT);
        let location = Location::caller();
        let options =
            Options { max_connections, drain_timeout, graceful: None, immediate: None, shutdown: None, location };
        Self { listener, handler, placement, prepare: None, on_error: None, counts: Arc::default(), options }
    }

    /// The same server with another handler, which runs on all workers.
    #[cfg(feature = "hyper")]
    pub(crate) fn with_handler<H2, F2>(self, handler: H2) -> Serve<L, H2, F2>
    where
        H2: Fn(L::Stream, L::Addr) -> F2,
        F2: Future<Output: HandlerOutput> + Send + 'static,
    {
        let Self { listener, handler: _, placement: _, prepare, on_error, counts, options } = self;
        Serve { listener, handler, placement: Placement::all_workers(), prepare, on_error, counts, options }
    }

    /// Stops accepting while `n` connections are open. Further clients wait in the kernel's queue. By default there is
    /// no limit.
    ///
    /// A connection is open until its handler's future is dropped. The limit holds for all workers together.
    ///
    /// Without a limit, a server accepts connections even if its handlers cannot keep up with them.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn max_connections(mut self, n: usize) -> Self {
        assert!(n > 0, "Serve::max_connections: n must be at least 1, or no connection would ever be accepted");
        self.options.max_connections = n;
        self
    }

    /// Sets whether small writes to accepted connections are sent at once (`TCP_NODELAY`). By default the system
    /// decides.
    ///
    /// Without it, a reply in two writes may take 40 ms longer: the system holds the second one back until the client
    /// acknowledges the first, and the client delays its acknowledgement.
    ///
    /// The option is set before the handler is called. A connection on which that fails has ended already, and its
    /// handler learns that from its first read.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncWriteExt;
    /// use kittiwake::net::{TcpListener, TcpStream, serve};
    ///
    /// # async fn example() -> std::io::Result<()> {
    /// let listener = TcpListener::bind("127.0.0.1:7000").await?;
    /// let greet = |mut stream: TcpStream, _peer| async move {
    ///     stream.write_all(b"hello, ").await?;
    ///     stream.write_all(b"world\n").await
    /// };
    /// serve(listener, greet).nodelay(true).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn nodelay(mut self, nodelay: bool) -> Self
    where
        L: Listener<Stream = TcpStream>,
    {
        self.prepare = Some(match nodelay {
            true => |stream| drop(stream.set_nodelay(true)),
            false => |stream| drop(stream.set_nodelay(false)),
        });
        self
    }

    /// Stops the server when `future` is ready: see [how it ends](Serve#how-it-ends).
    ///
    /// A future that returns an error stops the server too, and the server then ends with that error.
    /// [`ctrl_c`](crate::signal::ctrl_c) can be passed as it is.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::{TcpListener, serve};
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let (stop, stopped) = async_channel::bounded::<()>(1);
    /// let server = serve(listener, |_stream, _peer| async {}).with_graceful_shutdown(async move {
    ///     let _ = stopped.recv().await;
    /// });
    /// drop(stop);
    /// assert_eq!(server.await?.accepted, 0);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn with_graceful_shutdown<S>(mut self, future: S) -> Self
    where
        S: IntoFuture<Output: HandlerOutput, IntoFuture: Send + 'static>,
    {
        self.options.graceful = Some(signal("with_graceful_shutdown", future));
        self
    }

    /// Ends the server at once when `future` is ready, before or during the drain. Handlers that are still running are
    /// aborted.
    ///
    /// The future is polled from the start. To react to a second signal, wait for two signals: see the example of
    /// [`serve`](super::serve()).
    pub fn with_immediate_shutdown<S>(mut self, future: S) -> Self
    where
        S: IntoFuture<Output: HandlerOutput, IntoFuture: Send + 'static>,
    {
        self.options.immediate = Some(signal("with_immediate_shutdown", future));
        self
    }

    /// Stops the server when `signal` is triggered, and triggers `signal` when the server stops for another reason.
    ///
    /// A handler that has a clone of the signal learns in this way that the server stops. Servers that share a signal
    /// stop together, also when one of them is dropped while it runs.
    ///
    /// Connections from the kernel's queue are accepted after the signal was triggered. Their handlers must try to read
    /// a first request before they end: [Ending without loss](fn@super::serve#ending-without-loss) says how.
    ///
    /// # Examples
    /// See [`ShutdownSignal`].
    pub fn with_shutdown(mut self, signal: &ShutdownSignal) -> Self {
        self.options.shutdown = Some(signal.clone());
        self
    }

    /// Limits how long the server waits for its handlers when it stops: see [how it ends](Serve#how-it-ends). The
    /// default is 25 seconds.
    ///
    /// The time starts when the server stops accepting new clients. [`Duration::MAX`] is no limit.
    pub fn drain_timeout(mut self, duration: Duration) -> Self {
        self.options.drain_timeout = duration;
        self
    }

    /// Calls `report` for each error: see [`Failure`]. By default errors are not reported.
    ///
    /// Errors of handlers are reported by their tasks, on any worker's thread. A failure to accept is reported once for
    /// each wait that it causes, which is about once a second while it lasts. It is not reported while the server stops
    /// or turns clients away. A panic in `report` is contained.
    ///
    /// # Examples
    /// ```
    /// # async fn example() -> std::io::Result<()> {
    /// # let listener = kittiwake::net::TcpListener::bind("127.0.0.1:0").await?;
    /// let handler = |_stream, _peer| async { Err::<(), _>("we are closed") };
    /// kittiwake::net::serve(listener, handler).on_error(|failure| eprintln!("{failure}")).await?;
    /// # Ok(())
    /// # }
    /// ```
    /// [`Failure`] shows how to leave out clients that have gone away.
    pub fn on_error(mut self, report: impl Fn(&Failure<'_, L::Addr>) + Send + Sync + 'static) -> Self {
        self.on_error = Some(Box::new(report));
        self
    }

    /// The counts of this server. They are all 0 until it runs.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
    ///
    /// # kittiwake::block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?;
    /// let shutdown = ShutdownSignal::new();
    /// let server = serve(listener, |_stream, _peer| async {}).with_shutdown(&shutdown);
    /// let stats = server.stats();
    /// let server = kittiwake::spawn(server);
    /// let _client = TcpStream::connect(address).await?;
    /// while stats.served() == 0 {
    ///     kittiwake::task::yield_now().await;
    /// }
    /// assert_eq!((stats.accepted(), stats.open()), (1, 0));
    /// shutdown.trigger();
    /// assert_eq!(server.await??.served, stats.served());
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn stats(&self) -> ServeStats {
        ServeStats::new(&self.counts)
    }
}

/// The future of a user that stops the server. Its error is that of the server.
fn signal<S>(method: &'static str, future: S) -> Signal
where
    S: IntoFuture<Output: HandlerOutput, IntoFuture: Send + 'static>,
{
    let future = future.into_future();
    Box::pin(async move {
        future
            .await
            .into_result()
            .map_err(|error| io::Error::other(format!("the future of {method} has failed: {error}")))
    })
}

impl<L: Listener, H, F> IntoFuture for Serve<L, H, F>
where
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future<Output: HandlerOutput>,
{
    type Output = Result<Report<L::Addr>, ServeError<L::Addr>>;
    type IntoFuture = Serving<L, H, F>;

    fn into_future(self) -> Serving<L, H, F> {
        let Self { listener, handler, placement, prepare, on_error, counts, options } = self;
        Serving::new(listener, handler, placement, prepare, on_error, counts, options)
    }
}

impl<L: Listener, H, F> fmt::Debug for Serve<L, H, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}
