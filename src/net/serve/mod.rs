//! Serve: the accept loop that every server needs.
//!
//! A [`Serve`] is what is to be done, a [`Serving`] does it. It is in one of three states:
//!
//! * **Accepting** ([`Serving::poll_accepting`]). Each connection is entered in the table of those that are [`live`], its
//!   handler called and spawned. It waits for a connection, when there are too many until one ends, and when
//!   the process lacks something as long as [`shortage`] says.
//! * **Emptying the queue** ([`Serving::empty_queue`]), once it is told to end or accepting has failed for good. Those in
//!   the kernel's queue believe to be connected: closing the listening socket would reset them. Then it is closed.
//! * **Draining** ([`Serving::poll_drained`]) until no connection is left or the time is over.
//!
//! # System calls
//! For each connection accept(2) and close(2), as in a loop by hand, and on Linux one poll(2), which spares an accept(2) in
//! vain; nothing else, if there is one worker. Of several, the one that accepts rings the one that the connection is placed
//! on, if that sleeps: a write(2) there, and an epoll_wait(2) more or two here. A server has one descriptor
//! more than its socket: the reserve, a duplicate of it, which is closed for a moment to turn clients away.
//!
//! # Placement
//! A connection stays with the worker on which its handler first waits for it. So a handler begins on the worker with the
//! fewest connections of this server ([`Live::least_loaded`]), whoever has accepted.
//!
//! # Fairness
//! An attempt to accept spends budget as in any task, so of a long queue at most 128 connections are accepted before
//! handlers run. Where the budget is not looked at (emptying the queue, turning away) it is [`BATCH`].

mod live;
mod output;
mod report;
mod shortage;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

pub use output::HandlerOutput;
pub use report::{Open, Report, ServeError};

use super::ShutdownSignal;
use super::listener::Listener;
use crate::sync::contain_all;
use crate::task::{self, AbortHandle};
use crate::time::{Duration, Sleep, sleep};
use live::{Guard, Handler, Live, OnError};
use shortage::{Shortage, Step};

/// Connections accepted or turned away before others run, where the budget does not see to it.
const BATCH: usize = 64;

/// Attempts to accept in one poll of the server. The budget of a task is smaller and ends the poll first, unless the listener
/// spends none.
const ATTEMPTS: usize = 256;

/// How many of the kernel's queue a server accepts at most when it ends: as many as there are in one, by the default of
/// Linux. More are not of the queue, but come while it is emptied.
const QUEUE: usize = 4096;

/// A little less than the 30 s after which Kubernetes and others kill a process they have asked to end, so that the report
/// can still be read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// Accepts connections and runs `handler` for each, as a task of its own.
///
/// The handler is called with the stream and its peer's address. Its future gives `()`, or a `Result` whose error goes to
/// [`on_error`](Serve::on_error). A panic in it ends its connection alone.
///
/// What it returns is awaited; until then one may set a limit on the connections, and say what ends the server.
/// See [`Serve`]. For handlers that are not `Send` there is [`serve_local`].
///
/// # Examples
/// A server that ends at Ctrl-C when its connections have ended, and at a second one at once:
/// ```no_run
/// use kittiwake::io;
/// use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
/// use kittiwake::signal::unix::{SignalKind, signal};
///
/// async fn handle(stream: TcpStream, shutdown: ShutdownSignal) -> io::Result<()> {
/// #   let _ = (stream, shutdown);
///     // ...
///     Ok(())
/// }
///
/// fn main() -> io::Result<()> {
///     kittiwake::block_on(async {
///         let (mut first, mut second) = (signal(SignalKind::interrupt())?, signal(SignalKind::interrupt())?);
///         let listener = TcpListener::bind("127.0.0.1:7000").await?;
///         let shutdown = ShutdownSignal::new();
///         let report = serve(listener, |stream, _peer| handle(stream, shutdown.clone()))
///             .with_shutdown(&shutdown)
///             .with_graceful_shutdown(async move { drop(first.recv().await) })
///             .with_immediate_shutdown(async move { drop((second.recv().await, second.recv().await)) })
///             .on_error(|error| eprintln!("{error}"))
///             .await?;
///         println!("{report}");
///         Ok(())
///     })
/// }
/// ```
pub fn serve<L, H, F>(listener: L, handler: H) -> Serve<L, H, F>
where
    L: Listener,
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future + Send + 'static,
    F::Output: HandlerOutput,
{
    Serve::new(listener, handler, Placement { worker: next_worker, spawn: spawn_on })
}

/// Accepts connections and runs `handler` for each, as a task that stays on this thread and need not be `Send`.
///
/// In all else it is like [`serve`]; the tasks are those of [`spawn_local`](crate::spawn_local).
///
/// # Examples
/// ```
/// use std::{cell::Cell, rc::Rc};
/// use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve_local};
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let _client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
/// let (count, shutdown) = (Rc::new(Cell::new(0)), ShutdownSignal::new());
/// let handler = |_stream, _peer| {
///     let (count, shutdown) = (count.clone(), shutdown.clone());
///     async move {
///         count.set(count.get() + 1);
///         shutdown.trigger();
///     }
/// };
/// let report = serve_local(listener, handler).with_shutdown(&shutdown).await?;
/// assert_eq!((count.get(), report.served), (1, 1));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub fn serve_local<L, H, F>(listener: L, handler: H) -> Serve<L, H, F>
where
    L: Listener,
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future + 'static,
    F::Output: HandlerOutput,
{
    Serve::new(listener, handler, Placement { worker: |_| 0, spawn: spawn_here })
}

/// Where handlers run.
struct Placement<F, P: Clone> {
    /// The worker for the next one.
    worker: fn(&Live<P>) -> usize,
    /// Spawns a handler there.
    spawn: fn(usize, Handler<F, P>) -> AbortHandle,
}

impl<F, P: Clone> Copy for Placement<F, P> {}
impl<F, P: Clone> Clone for Placement<F, P> {
    fn clone(&self) -> Self {
        *self
    }
}

/// The worker with the fewest of this server's connections. A connection stays with the worker that first waits for it, so
/// what is decided now holds for its life.
fn next_worker<P: Clone>(live: &Live<P>) -> usize {
    match task::workers_here() {
        0 | 1 => 0,
        workers => live.least_loaded(workers),
    }
}

fn spawn_on<F>(worker: usize, handler: F) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    task::spawn_placed(worker, handler).abort_handle()
}

fn spawn_here<F: Future<Output = ()> + 'static>(_: usize, handler: F) -> AbortHandle {
    task::spawn_local(handler).abort_handle()
}

/// A server that is ready to run: await it.
///
/// Made by [`serve`] and [`serve_local`]. To run it in a task, spawn an `async` block that awaits it, or its
/// [`into_future`](IntoFuture::into_future).
///
/// # How it ends
/// It runs until it is told to end; without [`with_shutdown`](Serve::with_shutdown) and
/// [`with_graceful_shutdown`](Serve::with_graceful_shutdown), for ever. Then
/// 1. those who wait in the kernel's queue are accepted, as far as [`max_connections`](Serve::max_connections) allows
///    (and 4,096 at most), and the listening socket is closed;
/// 2. it waits for its handlers to end, for the [`drain_timeout`](Serve::drain_timeout) at most;
/// 3. those that have not are aborted, and in the report as [`open`](Report::open). They are told to end when it gives its
///    report; one that blocks its thread goes on until it returns.
///
/// # When it cannot accept
/// What a client has given up is passed over. When descriptors or memory are lacking, it tries again: when a connection
/// ends, and after 10 ms, 20 ms and so on up to 1 s. When it has accepted nobody for more than a second, for lack of
/// descriptors, those who wait are turned away: their connections are closed, and counted as [`refused`](Report::refused).
/// It keeps a descriptor in reserve for that. Any other error is fatal: it drains as if it were told to end, and ends with
/// the error.
///
/// # Cancel safety
/// Dropping it closes the listening socket and aborts its handlers, as dropping a [`JoinSet`](crate::task::JoinSet) does.
/// Connections in the kernel's queue are reset.
///
/// # Errors
/// A fatal error of accept(2), and that its runtime ended while it was accepting.
///
/// # Panics
/// When it is polled outside a runtime and a client comes.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<L: Listener, H, F> {
    listener: L,
    handler: H,
    placement: Placement<F, L::Addr>,
    max_connections: usize,
    drain_timeout: Duration,
    graceful: Option<Signal>,
    immediate: Option<Signal>,
    shutdown: Option<ShutdownSignal>,
    on_error: Option<OnError<L::Addr>>,
}

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<L: Listener, H, F> Serve<L, H, F> {
    fn new(listener: L, handler: H, placement: Placement<F, L::Addr>) -> Self {
        Self {
            listener,
            handler,
            placement,
            max_connections: usize::MAX,
            drain_timeout: DRAIN_TIMEOUT,
            graceful: None,
            immediate: None,
            shutdown: None,
            on_error: None,
        }
    }

    /// Accepts nobody while `n` connections are there: others wait in the kernel's queue. By default there is no limit.
    ///
    /// A connection is there until its handler has ended. Without a limit a server that runs beside several workers, in
    /// [`Runtime::block_on`](crate::runtime::Runtime::block_on), accepts as fast as it can, also when they are behind.
    ///
    /// # Panics
    /// If `n` is 0: that server would serve nobody.
    pub fn max_connections(mut self, n: usize) -> Self {
        assert!(n > 0, "Serve::max_connections: a server with 0 connections serves nobody");
        self.max_connections = n;
        self
    }

    /// Ends the server when `future` is ready: see [how it ends](Serve#how-it-ends).
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
    pub fn with_graceful_shutdown(mut self, future: impl Future<Output = ()> + Send + 'static) -> Self {
        self.graceful = Some(Box::pin(future));
        self
    }

    /// Ends the server at once when `future` is ready, without a drain or in the middle of one: handlers that have not ended
    /// are aborted.
    ///
    /// It is polled from the beginning. For a second signal, wait for two: [`serve`] has an example.
    pub fn with_immediate_shutdown(mut self, future: impl Future<Output = ()> + Send + 'static) -> Self {
        self.immediate = Some(Box::pin(future));
        self
    }

    /// Ties the server to `shutdown`: it ends when that begins, and begins it when it ends for another reason.
    ///
    /// Handlers that have a clone so learn of the end. Servers that are tied to the same one end together.
    ///
    /// Connections that were still in the kernel's queue are accepted when it has begun. A handler that looks at it only after
    /// its first request answers them all.
    ///
    /// # Examples
    /// See [`ShutdownSignal`].
    pub fn with_shutdown(mut self, shutdown: &ShutdownSignal) -> Self {
        self.shutdown = Some(shutdown.clone());
        self
    }

    /// Waits for so long at most for handlers to end: see [how it ends](Serve#how-it-ends). By default 25 seconds.
    ///
    /// It counts from when the server is told to end. [`Duration::MAX`] is without limit.
    pub fn drain_timeout(mut self, duration: Duration) -> Self {
        self.drain_timeout = duration;
        self
    }

    /// Calls `report` for what fails while the server goes on: see [`ServeError`]. By default nothing is said.
    ///
    /// It is called where the error comes up, for handlers in their tasks, on any worker's thread. A failure to accept is
    /// reported once for each wait that it causes, so about once in a second while it lasts. A panic in `report` goes no
    /// further.
    ///
    /// # Examples
    /// ```
    /// # async fn example() -> std::io::Result<()> {
    /// # let listener = kittiwake::net::TcpListener::bind("127.0.0.1:0").await?;
    /// let handler = |_stream, _peer| async { Err::<(), _>("we are closed") };
    /// kittiwake::net::serve(listener, handler).on_error(|error| eprintln!("{error}")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_error(mut self, report: impl Fn(&ServeError<'_, L::Addr>) + Send + Sync + 'static) -> Self {
        self.on_error = Some(Box::new(report));
        self
    }
}

impl<L: Listener, H, F> IntoFuture for Serve<L, H, F>
where
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future<Output: HandlerOutput>,
{
    type Output = io::Result<Report<L::Addr>>;
    type IntoFuture = Serving<L, H, F>;

    fn into_future(self) -> Serving<L, H, F> {
        let reserve = self.listener.reserve();
        Serving {
            listening: Some(Listening { listener: self.listener, reserve, shortage: None, turning_away: false }),
            handler: self.handler,
            placement: self.placement,
            live: Arc::new(Live::new(self.on_error)),
            max_connections: self.max_connections,
            drain_timeout: self.drain_timeout,
            graceful: self.graceful,
            immediate: self.immediate,
            shutdown: self.shutdown,
            drain: None,
            accepted: 0,
            refused: 0,
        }
    }
}

impl<L: Listener, H, F> fmt::Debug for Serve<L, H, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

/// The future of [`Serve`].
#[must_use = "futures do nothing unless awaited"]
pub struct Serving<L: Listener, H, F> {
    /// `None` once the listening socket is closed.
    listening: Option<Listening<L>>,
    handler: H,
    placement: Placement<F, L::Addr>,
    live: Arc<Live<L::Addr>>,
    max_connections: usize,
    drain_timeout: Duration,
    /// What ends it; `None` once that has been heard.
    graceful: Option<Signal>,
    immediate: Option<Signal>,
    shutdown: Option<ShutdownSignal>,
    /// `None` until it is to end.
    drain: Option<Drain>,
    accepted: u64,
    refused: u64,
}

struct Listening<L> {
    listener: L,
    /// A descriptor to close when no other is left. `None` if the listener has none, or if it could not be opened.
    reserve: Option<OwnedFd>,
    /// The last time that accepting failed.
    shortage: Option<Shortage>,
    /// Those in the queue have waited long enough.
    turning_away: bool,
}

struct Drain {
    timeout: Sleep,
    /// How many may still be accepted of the kernel's queue.
    queue: usize,
    /// What ended the server, if it was not told to end.
    error: Option<io::Error>,
}

// No field is ever pinned in place: the signals are boxed, and a handler's future is in its task.
impl<L: Listener, H, F> Unpin for Serving<L, H, F> {}

impl<L: Listener, H, F> Future for Serving<L, H, F>
where
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future<Output: HandlerOutput>,
{
    type Output = io::Result<Report<L::Addr>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if is_heard(&mut this.immediate, cx) {
            this.begin_drain(None);
            return Poll::Ready(this.end());
        }
        if this.drain.is_none() {
            let error = if this.is_told_to_end(cx) { None } else { Some(ready!(this.poll_accepting(cx))) };
            this.begin_drain(error);
        }
        ready!(this.empty_queue(cx));
        ready!(this.poll_drained(cx));
        Poll::Ready(this.end())
    }
}

impl<L: Listener, H, F> Serving<L, H, F>
where
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future<Output: HandlerOutput>,
{
    fn is_told_to_end(&mut self, cx: &mut Context<'_>) -> bool {
        let begun = self.shutdown.as_mut().is_some_and(|shutdown| Pin::new(shutdown).poll(cx).is_ready());
        begun || is_heard(&mut self.graceful, cx)
    }

    /// Accepts and serves, until that fails for good.
    fn poll_accepting(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        for _ in 0..ATTEMPTS {
            let Some(listening) = &mut self.listening else { return Poll::Pending };
            if listening.turning_away {
                ready!(listening.poll_turn_away(cx, &mut self.refused));
            }
            if self.max_connections != usize::MAX {
                ready!(self.live.poll_below(cx, self.max_connections));
            }
            if let Some(shortage) = &mut listening.shortage {
                ready!(shortage.poll_over(cx, &self.live));
            }
            // An error leaves the socket ready, so that this is tried again although no event comes.
            match ready!(listening.listener.poll_accept(cx)) {
                Ok((stream, peer)) => {
                    listening.succeeded();
                    self.start(stream, peer);
                }
                Err(error) if shortage::is_of_one_connection(&error) => {}
                Err(error) => {
                    let may_pass = shortage::may_pass(&error);
                    if !may_pass || listening.failed(&error, self.live.len()) {
                        self.live.tell(&ServeError::Accept(&error));
                    }
                    if !may_pass {
                        return Poll::Ready(error);
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Serves a connection.
    // Not inlined: the future passes through its frame, and may be large.
    #[inline(never)]
    fn start(&mut self, stream: L::Stream, peer: L::Addr) {
        self.accepted += 1;
        let worker = (self.placement.worker)(&self.live);
        let guard = self.live.enter(peer.clone(), worker);
        // If the handler panics here and now, the guard counts it.
        let mut future = None;
        contain_all(|| future = Some((self.handler)(stream, peer)));
        let Some(future) = future else { return };
        let key = Guard::key(&guard);
        let abort = (self.placement.spawn)(worker, Handler::new(future, guard));
        self.live.started(key, abort);
    }

    fn begin_drain(&mut self, error: Option<io::Error>) {
        if self.drain.is_some() {
            return;
        }
        if let Some(shutdown) = &self.shutdown {
            shutdown.trigger();
        }
        self.drain = Some(Drain { timeout: sleep(self.drain_timeout), queue: QUEUE, error });
    }

    /// Accepts those who wait in the kernel's queue, and closes the listening socket.
    fn empty_queue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(listening), Some(drain)) = (&mut self.listening, &mut self.drain) else { return Poll::Ready(()) };
        let mut queued = Vec::new();
        let room = BATCH.min(drain.queue).min(self.max_connections.saturating_sub(self.live.len()));
        let mut is_last = room < BATCH || drain.error.is_some();
        for _ in 0..room {
            match listening.listener.try_accept() {
                Ok(connection) => queued.push(connection),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Mostly there is nobody any more.
                Err(_) => {
                    is_last = true;
                    break;
                }
            }
        }
        drain.queue -= queued.len();
        queued.into_iter().for_each(|(stream, peer)| self.start(stream, peer));
        if is_last {
            self.listening = None;
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits for the handlers to end, or the time to be over.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.live.poll_below(cx, 1).is_ready() {
            return Poll::Ready(());
        }
        self.drain.as_mut().map_or(Poll::Ready(()), |drain| Pin::new(&mut drain.timeout).poll(cx))
    }

    fn end(&mut self) -> io::Result<Report<L::Addr>> {
        self.listening = None;
        let report = self.live.close(self.accepted, self.refused);
        match self.drain.as_mut().and_then(|drain| drain.error.take()) {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }
}

impl<L: Listener> Listening<L> {
    fn succeeded(&mut self) {
        if let Some(shortage) = &mut self.shortage {
            shortage.succeeded();
            if self.reserve.is_none() {
                self.reserve = self.listener.reserve();
            }
        }
    }

    /// Accepting has failed, while so many connections are `open`; whether that is to be reported.
    #[cold]
    fn failed(&mut self, error: &io::Error, open: usize) -> bool {
        let step = Shortage::failed(&mut self.shortage, open);
        self.turning_away =
            matches!(step, Step::TurnAway) && shortage::is_of_descriptors(error) && self.reserve.is_some();
        !matches!(step, Step::GoOn)
    }

    /// Accepts with the reserve's descriptor, and closes at once, whoever is in the queue. `Ready` if that is not possible:
    /// then somebody else was quicker to take the descriptor.
    fn poll_turn_away(&mut self, cx: &mut Context<'_>, refused: &mut u64) -> Poll<()> {
        self.reserve = None;
        for _ in 0..BATCH {
            let accepted = self.listener.poll_accept(cx);
            if !matches!(accepted, Poll::Ready(Ok(_))) {
                self.turning_away = false;
                self.reserve = self.listener.reserve();
                if let (Poll::Pending, Some(shortage)) = (&accepted, &mut self.shortage) {
                    shortage.emptied();
                }
                return accepted.map(drop);
            }
            *refused += 1;
        }
        self.reserve = self.listener.reserve();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

fn is_heard(signal: &mut Option<Signal>, cx: &mut Context<'_>) -> bool {
    let heard = signal.as_mut().is_some_and(|signal| signal.as_mut().poll(cx).is_ready());
    if heard {
        *signal = None;
    }
    heard
}

impl<L: Listener, H, F> Drop for Serving<L, H, F> {
    fn drop(&mut self) {
        // The handlers are no wiser than their server, and nobody reads the report.
        let _ = self.live.close(0, 0);
    }
}

impl<L: Listener, H, F> fmt::Debug for Serving<L, H, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("accepted", &self.accepted).field("open", &self.live.len()).finish()
    }
}
