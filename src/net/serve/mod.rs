//! Serve: the accept loop of a server.
//!
//! [`serve`] and [`serve_local`] return a [`Serve`], which collects options ([`builder`]). Awaiting it makes a
//! [`Serving`], the running server ([`server`]).
//!
//! # Phases
//! * **Accepting.** Each connection is inserted into the table ([`connections`]), its handler is called, and the
//!   handler's future is spawned ([`service`]). The server waits for a client; at `max_connections`, for a connection
//!   to end; and after a failure, as long as [`accept_backoff`] says. [`acceptor`] keeps a reserve descriptor to turn
//!   clients away with.
//! * **Emptying.** The server was asked to stop, or accepting has failed for good. It accepts the connections that are
//!   still in the kernel's queue, since closing the listener would reset them. At `max_connections` it waits for a
//!   connection to end. If no descriptor is left it waits for one, and turns the clients away in the end. Then it closes
//!   the listener.
//! * **Draining.** The server waits until no connection is open or the drain timeout is over.
//!
//! # System calls
//! A connection costs accept(2) and close(2), as in a hand-written loop. Elsewhere than on macOS it also costs one
//! poll(2), which asks for another client: a failing accept(2) would cost more on Linux. With one worker there are no other calls. With several
//! workers, the worker that accepts unparks the worker that runs the handler, if that one sleeps: a write(2) on one
//! side, one more epoll_wait(2) on the other.
//!
//! A server holds one descriptor more than its listener: the reserve.
//!
//! # Fairness
//! Each attempt to accept spends the task's budget. So from a long queue the server accepts at most 128 connections
//! before the worker runs other tasks. Where the budget does not apply, constants limit the number: `ATTEMPTS` for a
//! listener that spends no budget, `BATCH` for emptying the queue and for turning clients away.

mod builder;
mod server;

mod acceptor;
mod service;

mod accept_backoff;
mod connections;
mod output;
mod report;
mod stats;

pub use builder::Serve;
pub use output::HandlerOutput;
pub use report::{Failure, Open, Report, ServeError};
pub use server::Serving;
pub use stats::ServeStats;

use super::listener::Listener;
use service::Placement;

/// Accepts connections and runs `handler` for each of them, as a task of its own.
///
/// The handler is called with the connection and its peer's address. Its future returns `()` or a `Result`, whose error
/// is passed to [`on_error`](Serve::on_error). A panic in a handler ends its connection only.
///
/// With several workers, a handler starts on the worker that has the fewest connections of this server. If the server
/// itself is awaited in a `block_on` call beside the workers, a worker hears of each client and wakes the calling
/// thread. [`spawn`](crate::spawn) the server instead to save that hop: `spawn(serve(listener, handler))`.
///
/// Await the returned [`Serve`] to run the server. Before that, its methods set a limit on connections and what stops
/// the server. For handlers that are not `Send` there is [`serve_local`].
///
/// # Handlers that use `?`
/// The compiler must learn the type of a handler's error. An `async fn` has it in its signature. An `async` block that
/// ends in `Ok(())` has it nowhere, and the compiler asks for type annotations (E0282). Name the type in that `Ok`:
/// ```
/// use std::error::Error;
///
/// use kittiwake::io::AsyncWriteExt;
/// use kittiwake::net::{TcpListener, TcpStream, serve};
///
/// async fn greet(mut stream: TcpStream) -> std::io::Result<()> {
///     stream.write_all(b"hello\n").await?;
///     Ok(())
/// }
///
/// # kittiwake::block_on(async {
/// # let mut listeners = Vec::new();
/// # for _ in 0..3 { listeners.push(TcpListener::bind("127.0.0.1:0").await?); }
/// # let mut listener = || listeners.pop().unwrap();
/// let server = serve(listener(), |stream, _peer| greet(stream));
/// # server.with_graceful_shutdown(async {}).await?;
/// let server = serve(listener(), |mut stream, _peer| async move {
///     stream.write_all(b"hello\n").await?;
///     std::io::Result::Ok(())
/// });
/// # server.with_graceful_shutdown(async {}).await?;
/// // If the errors are of several types:
/// let server = serve(listener(), |mut stream, peer| async move {
///     stream.write_all(format!("hello, {peer}\n").as_bytes()).await?;
///     let _answer: u32 = "42".parse()?;
///     Ok::<(), Box<dyn Error + Send + Sync>>(())
/// });
/// # server.with_graceful_shutdown(async {}).await?;
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
///
/// # Ending without loss
/// A request whose first byte has reached this machine when the server stops gets its whole answer, also if its
/// connection still waits in the kernel's queue. The server does its part: see [how it ends](Serve#how-it-ends). The
/// handler keeps four rules:
/// 1. **It looks at the signal between two requests only.** It waits for the first byte of a request in
///    [`run_with_grace`](crate::net::ShutdownSignal::run_with_grace), or in
///    [`run_until_triggered`](crate::net::ShutdownSignal::run_until_triggered) if a request that is just on its way may
///    be lost. It reads the rest of the request, and writes the answer, outside of both. After an answer that it has
///    given since the signal it grants no more grace: a client that always has one more request would otherwise keep its
///    connection until the drain timeout.
/// 2. **It reads first and looks at the signal after that.** Both methods do so. A handler that tests
///    [`is_triggered`](crate::net::ShutdownSignal::is_triggered) before it reads closes connections whose request is in
///    the kernel.
/// 3. **If it cannot know where a request ends, it goes by silence.** An echo or a relay puts each read into
///    `run_with_grace`. A client that has sent nothing for the grace has sent its request whole.
/// 4. **It ends with a drain.** The kernel resets a connection that is closed with unread input, and one that gets bytes
///    after its close. A reset destroys the answers that the client has not received yet. So the handler calls
///    [`drain`](crate::net::TcpStream::drain) inside a [`timeout`](crate::time::timeout) when it ends before its client
///    does.
///
/// The [drain timeout](Serve::drain_timeout) bounds all of it. It should be some times the grace. A client that sends
/// for ever without waiting for answers keeps its connection until then. A client that never sends keeps it for the
/// grace, and for the timeout of the drain if it does not close its side.
///
/// ```
/// use kittiwake::io::{self, AsyncBufReadExt, AsyncWriteExt, BufReader};
/// use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
/// use kittiwake::time::{Duration, timeout};
///
/// const GRACE: Duration = Duration::from_secs(1);
///
/// /// Answers each line with its length.
/// async fn lengths(stream: TcpStream, mut signal: ShutdownSignal) -> io::Result<()> {
///     let (mut reader, mut grace) = (BufReader::new(&stream), GRACE);
///     // The first byte: `fill_buf` takes nothing away.
///     while let Some(begun) = signal.run_with_grace(grace, reader.fill_buf()).await {
///         if begun?.is_empty() {
///             return Ok(());
///         }
///         let mut line = String::new();
///         reader.read_line(&mut line).await?;
///         (&stream).write_all(format!("{}\n", line.trim_end().len()).as_bytes()).await?;
///         if signal.is_triggered() {
///             grace = Duration::ZERO;
///         }
///     }
///     // The client has all its answers by then, or it does not read.
///     let _ = timeout(GRACE, stream.drain(1 << 20)).await;
///     Ok(())
/// }
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let mut client = TcpStream::connect(listener.local_addr()?).await?;
/// client.write_all(b"kitti").await?;
///
/// // The server stops before it has accepted the client, and the rest of the line comes later.
/// let signal = ShutdownSignal::new();
/// signal.trigger();
/// let handler = {
///     let signal = signal.clone();
///     move |stream, _peer| lengths(stream, signal.clone())
/// };
/// let server = kittiwake::spawn(serve(listener, handler).with_shutdown(&signal));
/// client.write_all(b"wake\n").await?;
/// let mut answer = String::new();
/// BufReader::new(&client).read_line(&mut answer).await?;
/// assert_eq!(answer, "9\n");
/// # drop(client);
/// assert_eq!(server.await??.served, 1);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
///
/// # Examples
/// A server that drains at the first Ctrl-C and ends at once at the second:
/// ```no_run
/// use kittiwake::io;
/// use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
/// use kittiwake::signal::ctrl_c;
///
/// async fn handle(stream: TcpStream, shutdown: ShutdownSignal) -> io::Result<()> {
/// #   let _ = (stream, shutdown);
///     // ...
///     Ok(())
/// }
///
/// fn main() -> io::Result<()> {
///     kittiwake::block_on(async {
///         let (first, mut both) = (ctrl_c(), ctrl_c());
///         let listener = TcpListener::bind("127.0.0.1:7000").await?;
///         let shutdown = ShutdownSignal::new();
///         let report = serve(listener, |stream, _peer| handle(stream, shutdown.clone()))
///             .with_shutdown(&shutdown)
///             .with_graceful_shutdown(first)
///             .with_immediate_shutdown(async move { (&mut both).await?; both.await })
///             .on_error(|error| eprintln!("{error}"))
///             .await?;
///         println!("{report}");
///         Ok(())
///     })
/// }
/// ```
#[track_caller]
pub fn serve<L, H, F>(listener: L, handler: H) -> Serve<L, H, F>
where
    L: Listener,
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future + Send + 'static,
    F::Output: HandlerOutput,
{
    Serve::new(listener, handler, Placement::all_workers())
}

/// Accepts connections and runs `handler` for each of them, as a task that stays on this thread and need not be `Send`.
///
/// Apart from that it is like [`serve`]. The tasks are those of [`spawn_local`](crate::spawn_local).
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
#[track_caller]
pub fn serve_local<L, H, F>(listener: L, handler: H) -> Serve<L, H, F>
where
    L: Listener,
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future + 'static,
    F::Output: HandlerOutput,
{
    Serve::new(listener, handler, Placement::this_thread())
}
