//! A client that sends any bytes to `hyper::serve`, as fast or as slow as it likes, and reads little or nothing.
//!
//! The connection must end within [`LIMIT`] of the client's last act, and must be counted once. The server then has no
//! task left. A pair in memory joins the client and the server, and the clock is paused: an hour takes no time.

use std::cell::Cell;
use std::io;
use std::panic::{self, PanicHookInfo};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::task::{Context, Poll, ready};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use kittiwake::hyper::{Io, serve};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use kittiwake::net::{Listener, ShutdownSignal};
use kittiwake::runtime::{Builder, Handle};
use kittiwake::task::yield_now;
use kittiwake::time::{Duration, Sleep, sleep, timeout};

use crate::script::Script;

/// Longer than all limits of a connection together.
const LIMIT: Duration = Duration::from_secs(3600);

/// How long a handler waits for the client.
const PATIENCE: Duration = Duration::from_secs(60);

/// The parts of requests of HTTP/1.
const PARTS: [&str; 40] = [
    "GET /text HTTP/1.1\r\n",
    "HEAD /text HTTP/1.1\r\n",
    "POST /read HTTP/1.1\r\n",
    "POST /echo HTTP/1.1\r\n",
    "POST /ignore HTTP/1.1\r\n",
    "POST /drop HTTP/1.1\r\n",
    "GET /slow HTTP/1.1\r\n",
    "GET /large HTTP/1.1\r\n",
    "GET /drip HTTP/1.1\r\n",
    "GET /fail HTTP/1.1\r\n",
    "GET /panic HTTP/1.1\r\n",
    "GET /upgrade HTTP/1.1\r\n",
    "CONNECT host:80 HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "POST http://host/read HTTP/1.0\r\n",
    "GET / HTTP/0.9\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "PRI * HT",
    "host: x\r\n",
    "content-length: 5\r\n",
    "content-length: 100000\r\n",
    "content-length: 99999999999999999999\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "expect: 100-continue\r\n",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "connection: upgrade\r\nupgrade: echo\r\n",
    "te: trailers\r\ntrailer: x\r\n",
    "x: \u{e9}\r\n",
    "\r\n",
    "\r",
    "\n",
    " folded\r\n",
    "5\r\nhello\r\n",
    "5;a=b\r\nhel",
    "0\r\n\r\n",
    "0\r\nx: y\r\n\r\n",
    "ffffffffffffffff\r\n",
    "hello",
];

/// The paths of requests of HTTP/2.
const PATHS: [&str; 10] =
    ["/text", "/read", "/echo", "/ignore", "/drop", "/slow", "/large", "/drip", "/fail", "/panic"];

/// The next step of the client.
#[derive(Debug)]
enum Op<'a> {
    /// Sends bytes.
    Send(Vec<u8>),
    /// Reads so many bytes at most, if there are some within a second.
    Read(usize),
    /// Reads all that the server sends within this time.
    ReadFor(Duration),
    Sleep(Duration),
    Yield,
    Close,
    /// Asks the server to stop.
    Stop,
    /// Sends any bytes.
    Raw(&'a [u8]),
}

impl<'a> Op<'a> {
    fn next(script: &mut Script<'a>) -> Self {
        match script.below(16) {
            0..=4 => Self::Send(script.one_of(&PARTS).into()),
            5 => {
                let length = script.below(64);
                Self::Raw(script.bytes(length))
            }
            6 | 7 => Self::Send(request(script)),
            8 => Self::Send([PARTS[16].as_bytes(), &frame(4, 0, 0, &settings(script))].concat()),
            9 => Self::Send(frame_of(script)),
            10 => Self::Send(frame(0, script.byte(), script.below(8), &vec![b'x'; script.below(256) * 20])),
            11 => Self::Read(script.below(256)),
            12 => Self::ReadFor(Duration::from_secs(script.below(90) as u64)),
            13 => Self::Sleep(Duration::from_millis(500 * script.below(250) as u64)),
            14 => Self::Yield,
            _ => match script.below(8) {
                0 => Self::Close,
                1 => Self::Stop,
                _ => Self::Send(vec![b'y'; script.below(256) * 20]),
            },
        }
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: usize, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend((stream as u32).to_be_bytes());
    frame.extend(payload);
    frame
}

/// A request of HTTP/2.
fn request(script: &mut Script<'_>) -> Vec<u8> {
    let (flags, stream) = (script.byte() & 0b10_0101, script.below(8));
    let path = script.one_of(&PATHS);
    let method: &[u8] = match script.below(8) {
        0..=2 => b"\x82",
        3..=5 => b"\x83",
        // CONNECT has neither a scheme nor a path.
        6 => return frame(1, flags & !32, stream, b"\x02\x07CONNECT\x01\x04host"),
        _ => b"",
    };
    let priority: &[u8] = if flags & 32 == 0 { b"" } else { b"\0\0\0\0\0" };
    let block = [priority, method, b"\x86\x04", &[path.len() as u8], path.as_bytes(), b"\x01\x01x"].concat();
    frame(1, flags, stream, &block)
}

/// The payload of SETTINGS.
fn settings(script: &mut Script<'_>) -> Vec<u8> {
    let one = |script: &mut Script<'_>| {
        let (name, value) = (script.below(8) as u8, script.one_of(&[0_u32, 1, 10, 4096, 65_535, 16_384, u32::MAX]));
        [&[0, name][..], &value.to_be_bytes()].concat()
    };
    (0..script.below(4)).flat_map(|_| one(script)).collect()
}

/// Any frame of HTTP/2.
fn frame_of(script: &mut Script<'_>) -> Vec<u8> {
    let (flags, stream) = (script.byte(), script.below(8));
    match script.below(12) {
        0 => frame(3, 0, stream, &[0, 0, 0, 8]),
        1 => frame(4, flags & 1, 0, &settings(script)),
        2 => frame(6, flags & 1, 0, b"are you?"),
        3 => frame(7, 0, 0, &[0; 8]),
        4..=6 => frame(8, 0, stream, &[0, 0, script.byte(), script.byte()]),
        7 => frame(8, 0, 0, &[0x7F, 0xFF, 0xFF, 0xFF]),
        kind => frame(if kind == 8 { 9 } else { script.byte() }, flags, stream, script.bytes(24)),
    }
}

/// Runs a script: a byte for the capacity of the pair, one for the server, one for how the client ends, and the
/// operations.
///
/// # Panics
/// Panics if the connection breaks a law.
pub(crate) fn run(script: &[u8]) {
    tolerate_h2();
    H2_PANICS.set(0);
    let runtime = Builder::new_current_thread().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let mut script = Script::new(script);
        let (client, server) = duplex(script.one_of(&[60, 500, 16 * 1024, 1 << 20]));
        let handlers = Arc::new(AtomicUsize::new(0));
        let panics = handlers.clone();
        let service = service_fn(move |request| answer(request, panics.clone()));
        let stop = ShutdownSignal::new();
        // Each limit is another number of seconds.
        let mut server = serve(One(Mutex::new(Some(server))), service)
            .with_shutdown(&stop)
            .header_read_timeout(Duration::from_secs(31))
            .keep_alive_timeout(Duration::from_secs(71))
            .body_timeout(Duration::from_secs(37))
            .drain_timeout(LIMIT / 2)
            .on_error(|failure| drop(failure.to_string()));
        if script.byte() & 1 == 1 {
            server = server.http1_only();
        }
        let stats = server.stats();
        let server = kittiwake::spawn(server);
        let end = script.byte();
        let client = Client { stream: client, stop: stop.clone(), received: Vec::new(), first: Vec::new() };
        let client = client.act(script, end).await;
        let is_over = timeout(LIMIT, async {
            let mut pause = Duration::from_millis(100);
            // A server that was asked to stop before its first poll may accept nothing.
            while stats.open() > 0 || stats.accepted() == 0 && !stop.is_triggered() {
                sleep(pause).await;
                pause *= 2;
            }
        });
        assert!(is_over.await.is_ok(), "the connection stays open for ever");
        drop(client);
        stop.trigger();
        let report = timeout(LIMIT, server).await.expect("the server does not stop").expect("the server panicked");
        let report = report.expect("the server failed");
        let ended = report.served + report.failed + report.panicked;
        assert_eq!((report.accepted, report.open.len()), (ended, 0), "a connection is missing in the report");
        let panics = handlers.load(Ordering::Relaxed) + H2_PANICS.get();
        assert!(report.panicked as usize <= panics, "a connection panicked whose handler did not");
        sleep(LIMIT).await;
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "tasks outlive their connection");
    });
}

thread_local! {
    /// How often h2 has panicked on this thread, as [`tolerate_h2`] says.
    static H2_PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Lets one panic of h2 0.4.20 pass, which builds without debug assertions do not have. When a connection is dropped, h2
/// asserts that it counts no stream any more. It does count one that is to be reset, while the reset waits for the
/// client to take the data before it.
fn tolerate_h2() {
    static ONCE: Once = Once::new();
    let is_known = |info: &PanicHookInfo<'_>| {
        let message = info.payload().downcast_ref::<&str>();
        info.location().is_some_and(|at| at.file().ends_with("h2-0.4.20/src/proto/streams/counts.rs"))
            && message == Some(&"assertion failed: !self.has_streams()")
    };
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(
            move |info| {
                if is_known(info) { H2_PANICS.set(H2_PANICS.get() + 1) } else { hook(info) }
            },
        ));
    });
}

/// The client's end, and what it has seen.
struct Client {
    stream: DuplexStream,
    stop: ShutdownSignal,
    received: Vec<u8>,
    /// The first bytes that it sent.
    first: Vec<u8>,
}

impl Client {
    /// Runs the operations, and then does one of four things: it closes the connection, leaves, reads to the end, or
    /// keeps silent. Returns what keeps the connection open.
    async fn act(mut self, mut script: Script<'_>, end: u8) -> Option<Self> {
        for _ in 0..60 {
            if script.is_empty() {
                break;
            }
            let step = timeout(LIMIT, self.step(Op::next(&mut script)));
            if step.await.expect("the server leaves a client waiting for ever").is_err() {
                break;
            }
        }
        match end % 4 {
            0 => return None,
            1 => self.stream.close().await.expect("close"),
            2 => timeout(LIMIT, self.read_to_end()).await.expect("the response has no end"),
            _ => {}
        }
        self.check();
        Some(self)
    }

    /// Fails if the server has closed the connection.
    async fn step(&mut self, op: Op<'_>) -> io::Result<()> {
        match op {
            Op::Send(bytes) => self.send(&bytes).await?,
            Op::Raw(bytes) => self.send(bytes).await?,
            Op::Read(count) => self.read(count).await,
            Op::ReadFor(duration) => drop(timeout(duration, self.read_to_end()).await),
            Op::Sleep(duration) => sleep(duration).await,
            Op::Yield => yield_now().await,
            Op::Close => self.stream.close().await?,
            Op::Stop => {
                self.stop.trigger();
            }
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let missing = PARTS[16].len() - self.first.len();
        self.first.extend(&bytes[..bytes.len().min(missing)]);
        self.stream.write_all(bytes).await
    }

    async fn read(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        if let Ok(Ok(read)) = timeout(Duration::from_secs(1), self.stream.read(&mut bytes)).await {
            self.received.extend(&bytes[..read]);
        }
    }

    async fn read_to_end(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = self.stream.read(&mut bytes).await {
            self.received.extend(&bytes[..read]);
        }
    }

    /// Whatever the client sent, the answer is one of HTTP.
    fn check(&self) {
        let begins = |with: &[u8]| self.received.iter().zip(with).all(|(ours, theirs)| ours == theirs);
        let is_settings = self.received.get(3).is_none_or(|kind| *kind == 4);
        let is_http2 = self.first == PARTS[16].as_bytes() && is_settings;
        assert!(is_http2 || begins(b"HTTP/1."), "the server answers {:?}", self.received.escape_ascii().to_string());
    }
}

/// A listener with one connection.
struct One(Mutex<Option<DuplexStream>>);

impl Listener for One {
    type Stream = DuplexStream;
    type Addr = ();

    fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        self.0.lock().expect("no panic").take().map_or(Poll::Pending, |stream| Poll::Ready(Ok((stream, ()))))
    }
}

type Reply = UnsyncBoxBody<Bytes, hyper::Error>;

fn full(body: impl Into<Bytes>) -> Reply {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The service: one path for each behaviour. Counts its panics before they happen.
async fn answer(mut request: Request<Incoming>, panics: Arc<AtomicUsize>) -> io::Result<Response<Reply>> {
    let path = request.uri().path().to_owned();
    let reply = match path.as_str() {
        "/read" => match timeout(PATIENCE, request.into_body().collect()).await {
            Ok(Ok(body)) => full(body.to_bytes()),
            Ok(Err(error)) => return Err(io::Error::other(error)),
            Err(elapsed) => return Err(elapsed.into()),
        },
        "/echo" => Limited { body: request.into_body(), limit: Box::pin(sleep(PATIENCE)) }.boxed_unsync(),
        "/drop" => {
            drop(request);
            sleep(PATIENCE).await;
            full("dropped")
        }
        "/slow" => {
            sleep(PATIENCE).await;
            full("slow")
        }
        "/large" => full(vec![b'z'; 70_000]),
        "/drip" => Drip { left: 5, pause: Box::pin(sleep(PATIENCE)) }.boxed_unsync(),
        "/fail" => return Err(io::Error::other("the handler fails")),
        "/panic" => {
            panics.fetch_add(1, Ordering::Relaxed);
            // Not by `panic!`, whose hook ends a fuzz target.
            std::panic::resume_unwind(Box::new("the handler panics"));
        }
        "/upgrade" => {
            kittiwake::spawn(tunnel(hyper::upgrade::on(&mut request), true));
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            return Ok(response.header("connection", "upgrade").header("upgrade", "echo").body(full("")).unwrap());
        }
        _ if request.method() == Method::CONNECT => {
            // On HTTP/2, bytes that the tunnel has written outlive it, without a limit, until the client takes them.
            let echoes = request.version() != Version::HTTP_2;
            kittiwake::spawn(tunnel(hyper::upgrade::on(&mut request), echoes));
            full("")
        }
        _ => full("text"),
    };
    Ok(Response::new(reply))
}

/// Reads for a while, mostly echoes, and closes.
async fn tunnel(upgrade: hyper::upgrade::OnUpgrade, echoes: bool) {
    let echo = async {
        let mut stream = Io::new(upgrade.await.map_err(io::Error::other)?);
        let mut bytes = [0; 64];
        loop {
            let read = stream.read(&mut bytes).await?;
            if read == 0 {
                return stream.close().await;
            }
            if echoes {
                stream.write_all(&bytes[..read]).await?;
                stream.flush().await?;
            }
        }
    };
    let _ = timeout(PATIENCE, echo).await;
}

/// A response that has the request's body, and ends after a while in any case.
struct Limited {
    body: Incoming,
    limit: Pin<Box<Sleep>>,
}

impl Body for Limited {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() && self.limit.as_mut().poll(cx).is_ready() { Poll::Ready(None) } else { frame }
    }
}

/// A response whose parts come with pauses.
struct Drip {
    left: u32,
    pause: Pin<Box<Sleep>>,
}

impl Body for Drip {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        ready!(self.pause.as_mut().poll(cx));
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        self.pause.set(sleep(PATIENCE));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"drip")))))
    }
}
