//! One connection: from the first byte to the end.
//!
//! 1. The first bytes tell HTTP/2 from HTTP/1 ([`Preface`]).
//! 2. hyper serves the requests, and [`Deadline`] limits how long the client may keep the connection waiting.
//! 3. When the server stops, the connection ends gracefully ([`Driver`]).
//! 4. After an upgrade the connection stays in the server's table until its stream is dropped.
//!
//! # An upgrade that the service refuses
//! Clients offer upgrades that most services do not know, such as `upgrade: h2c`. When such a connection ends, perhaps
//! some requests later, hyper does not close the stream, but gives it to the one who waits for the upgrade. So the
//! connection takes it from there, and closes it as others ([`Refused`]).
//!
//! # The graceful end
//! On HTTP/2 a GOAWAY frame tells the client which requests are served. HTTP/1 has only the header `connection: close`
//! of a response. A client that has not seen it may have sent its next request, and a connection that closes then
//! leaves the request without a response. So hyper's `graceful_shutdown`, which closes an idle connection, is called
//! late:
//! 1. [`Driver`] learns that the server stops, and polls hyper once with [`ask_kernel`].
//! 2. The first request whose future is polled after that becomes the last one ([`Activity::becomes_last_request`]).
//!    That poll returns `Pending` and does not reach the user's future.
//! 3. [`Driver`] calls `graceful_shutdown` and polls hyper again. The response then has the header, and the connection
//!    closes after it. hyper polls the future once in each of its polls, so the call comes in between.
//! 4. A connection without a request waits for one, for a second at most ([`Deadline`]).

use std::error::Error;
use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use ::hyper::body::{Body, Incoming};
use ::hyper::rt::Write;
use ::hyper::server::conn::{http1, http2};
use ::hyper::service::Service;
use ::hyper::upgrade::Upgraded;
use ::hyper::{Request, Response};
use futures_io::{AsyncRead, AsyncWrite};
use futures_lite::future::poll_fn;

use super::activity::{Activity, Protocol, Waits};
use super::deadline::{Deadline, Limits};
use super::executor::StreamExecutor;
use super::io::poll_read_scratch;
use super::service::Counted;
use super::transport::Transport;
use crate::budget::ask_kernel;
use crate::net::ShutdownSignal;
use crate::sync::contain;
use crate::time::Duration;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// The first bytes of an HTTP/2 connection, by RFC 9113, section 3.4. No request of HTTP/1 begins like this.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes of the first read, at most.
const FIRST_READ: usize = 8 * 1024;

/// The options of all connections of a server.
pub(super) struct Options {
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<StreamExecutor>,
    pub(super) http1_only: bool,
    pub(super) limits: Limits,
    pub(super) handshake: Duration,
    /// How long a handshake may still take once the server stops.
    pub(super) handshake_in_drain: Duration,
}

/// Serves one connection until it ends.
pub(super) async fn serve<T, S, B>(
    mut stream: T,
    writev: bool,
    service: S,
    options: &Options,
    mut shutdown: ShutdownSignal,
) -> Result<(), BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let mut deadline = Deadline::new(options.limits);
    let mut preface = Preface { ahead: Vec::new(), http1_only: options.http1_only };
    let read = poll_fn(|cx| preface.poll(cx, &mut stream, &mut deadline, &mut shutdown));
    let Some(protocol) = read.await? else { return Ok(()) };
    let activity = Arc::new(Activity::new(protocol));
    let transport = Transport::new(stream, preface.ahead, activity.clone(), writev);
    let service = Counted { service, activity: activity.clone() };
    let mut driver = Driver { activity: &activity, deadline, shutdown, draining: false, waker: None };
    match protocol {
        Protocol::Http1 => {
            let connection = options.http1.serve_connection(transport, service).with_upgrades();
            driver.run(pin!(connection)).await?;
            if let Some(mut on_upgrade) = activity.take_refused_upgrade() {
                // hyper has given the stream away before its connection ended. Otherwise it has closed the stream. If a
                // task of the user's has taken it first, this poll panics.
                let taken = poll_fn(|cx| Poll::Ready(contain(|| Pin::new(&mut on_upgrade).poll(cx)))).await;
                if let Ok(Poll::Ready(Ok(stream))) = taken {
                    driver.run(pin!(Refused(stream))).await?;
                }
            }
        }
        Protocol::Http2 => driver.run(pin!(options.http2.serve_connection(transport, service))).await?,
    }
    poll_fn(|cx| activity.poll_closed(cx)).await;
    Ok(())
}

/// The bytes of a client before its protocol is known.
struct Preface {
    ahead: Vec<u8>,
    http1_only: bool,
}

impl Preface {
    /// Reads until the protocol is known. `None` if the client has closed the connection without sending a byte, or the
    /// server stops and the client sends none.
    fn poll<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut T,
        deadline: &mut Deadline,
        shutdown: &mut ShutdownSignal,
    ) -> Poll<io::Result<Option<Protocol>>> {
        if let Poll::Ready(read) = self.poll_read(cx, stream) {
            return Poll::Ready(read);
        }
        let draining = shutdown.poll_triggered(cx).is_ready();
        if draining {
            // The request may be in the kernel, and no event has reported it.
            if let Poll::Ready(read) = ask_kernel(|| self.poll_read(cx, stream)) {
                return Poll::Ready(read);
            }
        }
        let waits = ready!(deadline.poll_first_byte(cx, draining && self.ahead.is_empty()));
        // The same holds at the end of the time.
        if let Poll::Ready(read) = ask_kernel(|| self.poll_read(cx, stream)) {
            return Poll::Ready(read);
        }
        match waits {
            Waits::Request(_) => Poll::Ready(Ok(None)),
            waits => Poll::Ready(Err(too_long(waits))),
        }
    }

    fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut T,
    ) -> Poll<io::Result<Option<Protocol>>> {
        loop {
            let ahead = &mut self.ahead;
            let n = ready!(poll_read_scratch(stream, cx, FIRST_READ, |bytes| ahead.extend_from_slice(bytes)))?;
            if n == 0 && ahead.is_empty() {
                return Poll::Ready(Ok(None));
            }
            // A client that leaves in the middle of the preface gets its error from HTTP/1.
            if self.http1_only || n == 0 || !ahead.starts_with(&PREFACE[..ahead.len().min(PREFACE.len())]) {
                return Poll::Ready(Ok(Some(Protocol::Http1)));
            }
            if ahead.len() >= PREFACE.len() {
                return Poll::Ready(Ok(Some(Protocol::Http2)));
            }
        }
    }
}

/// hyper's connection of either protocol.
trait Connection: Future<Output = Result<(), Self::Error>> {
    type Error: Into<BoxError>;

    /// Ends the connection after the requests that it has read.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<T, S, B> Connection for http1::UpgradeableConnection<Transport<T>, Counted<S>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Error: Into<BoxError>> + 'static,
{
    type Error = ::hyper::Error;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        Self::graceful_shutdown(self);
    }
}

impl<T, S, B> Connection for http2::Connection<Transport<T>, Counted<S>, StreamExecutor>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Error = ::hyper::Error;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        Self::graceful_shutdown(self);
    }
}

/// The stream of a connection of HTTP/1 that has ended with an upgrade which the service has refused.
struct Refused(Upgraded);

impl Future for Refused {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Connection for Refused {
    type Error = io::Error;

    fn graceful_shutdown(self: Pin<&mut Self>) {}
}

/// Drives hyper's connection.
struct Driver<'a> {
    activity: &'a Activity,
    deadline: Deadline,
    shutdown: ShutdownSignal,
    /// The server stops.
    draining: bool,
    /// HTTP/2: the waker that the activity has.
    waker: Option<Arc<Waker>>,
}

impl Driver<'_> {
    async fn run(&mut self, mut connection: Pin<&mut impl Connection>) -> Result<(), BoxError> {
        poll_fn(|cx| self.poll(cx, connection.as_mut())).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut connection: Pin<&mut impl Connection>) -> Poll<Result<(), BoxError>> {
        if self.activity.protocol() == Protocol::Http2 && !self.has_waker(cx) {
            let waker = Arc::new(cx.waker().clone());
            self.activity.register(waker.clone());
            self.waker = Some(waker);
        }
        // True once this poll has hyper try each read and write that waits, because the connection would end otherwise.
        // The kernel may have bytes, or room, that no event has reported.
        let mut asks = false;
        loop {
            if !self.draining && self.shutdown.poll_triggered(cx).is_ready() {
                (self.draining, asks) = (true, true);
                self.activity.drain();
            }
            let mut poll = || self.poll_connection(cx, connection.as_mut());
            if let Poll::Ready(result) = if asks { ask_kernel(poll) } else { poll() } {
                // hyper may have been told of an end in the middle of a frame. That is no error of the client.
                return Poll::Ready(if self.activity.gives_up() { Ok(()) } else { result });
            }
            if !self.activity.ends_gracefully() && self.must_end() {
                self.end_gracefully(connection.as_mut());
                continue;
            }
            let ends = self.draining || self.activity.ends_gracefully();
            match ready!(self.deadline.poll_expired(cx, self.activity, ends)) {
                Waits::End(_) => self.activity.stop_lingering(),
                _ if !asks => asks = true,
                Waits::Request(_) if !self.activity.ends_gracefully() => {
                    // hyper has read the whole body of the last request, or the handler still has that body. Otherwise
                    // it would have closed the connection.
                    self.activity.set_body_may_come(false);
                    self.end_gracefully(connection.as_mut());
                }
                // A client of HTTP/2 that does not acknowledge the end, and is perhaps still reading.
                Waits::Request(_) if self.may_give_up() => self.activity.give_up(),
                Waits::Request(_) => return Poll::Ready(Ok(())),
                waits => return Poll::Ready(Err(too_long(waits).into())),
            }
        }
    }

    /// Whether the activity wakes the task that polls.
    fn has_waker(&self, cx: &Context<'_>) -> bool {
        self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
    }

    fn may_give_up(&self) -> bool {
        self.activity.protocol() == Protocol::Http2 && !self.activity.gives_up()
    }

    /// Whether the client can learn now that the connection ends.
    fn must_end(&self) -> bool {
        match self.activity.protocol() {
            Protocol::Http1 => self.activity.has_last_request(),
            Protocol::Http2 => self.draining,
        }
    }

    fn end_gracefully(&mut self, connection: Pin<&mut impl Connection>) {
        connection.graceful_shutdown();
        self.activity.end_gracefully();
    }

    fn poll_connection(
        &self,
        cx: &mut Context<'_>,
        connection: Pin<&mut impl Connection>,
    ) -> Poll<Result<(), BoxError>> {
        self.activity.begin_poll();
        // The service may panic in its call. That panic must not be unwinding any more while the requests are dropped:
        // a second panic, in one of their destructors, would end the process.
        let polled = contain(|| connection.poll(cx)).unwrap_or_else(|panic| {
            StreamExecutor::drop_arrived();
            resume_unwind(panic)
        });
        if self.activity.protocol() == Protocol::Http2 {
            StreamExecutor::poll_arrived();
        }
        polled.map_err(Into::into)
    }
}

/// The error of a client that keeps its connection waiting.
fn too_long(waits: Waits) -> io::Error {
    let message = match waits {
        Waits::Body(_) => "the client does not send the rest of a request's body",
        Waits::Reader(_) | Waits::Window(_) => "the client does not read a response",
        _ => "the client does not send a whole request head",
    };
    io::Error::new(io::ErrorKind::TimedOut, message)
}
