//! The server of these tests, its service, and a client of HTTP/1.

use std::error::Error;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode};
use kittiwake::hyper::{Executor, Io, Serve, serve_with};
use kittiwake::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use kittiwake::net::{Report, ServeError, ServeStats, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::task::JoinHandle;
use kittiwake::time::{Duration, Instant, sleep, timeout};

use crate::LIMIT;
use crate::support::{ErrorLog, listener, pattern, run, until};

/// The length of the body of `/large`.
pub(crate) const LARGE: usize = 1 << 20;

/// The chunks at the beginning of `/burst`. hyper writes after 16.
pub(crate) const BURST: usize = 40;

pub(crate) type Started = Serve<TcpListener, Box<dyn Fn(SocketAddr) -> TestService + Send>>;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: ShutdownSignal,
    pub(crate) errors: ErrorLog,
    pub(crate) service: TestService,
    pub(crate) stats: ServeStats,
    server: JoinHandle<Result<Report, ServeError>>,
}

impl Server {
    pub(crate) async fn start(set: impl FnOnce(Started) -> Started) -> Self {
        let (listener, address) = listener().await;
        let (shutdown, errors, service) = (ShutdownSignal::new(), ErrorLog::default(), TestService::default());
        let clone = service.clone();
        let server = serve_with(listener, Box::new(move |_| clone.clone()) as Box<dyn Fn(_) -> _ + Send>);
        // A limit that a test does not set must not stand in for one that it sets.
        let server = server.header_read_timeout(Duration::MAX).body_timeout(Duration::MAX);
        let server = set(server).with_shutdown(&shutdown).on_error(errors.listen());
        let stats = server.stats();
        Self { address, shutdown, errors, service, stats, server: kittiwake::spawn(server) }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the server accepts")
    }

    pub(crate) async fn http2_parts(&self) -> (SendRequest, impl Future<Output = hyper::Result<()>> + Send + 'static) {
        let stream = Io::new(self.connect().await);
        hyper::client::conn::http2::handshake(Executor, stream).await.expect("the handshake of HTTP/2")
    }

    pub(crate) async fn http2(&self) -> SendRequest {
        let (sender, connection) = self.http2_parts().await;
        kittiwake::spawn(connection);
        sender
    }

    pub(crate) async fn ended(&mut self) -> Report {
        (&mut self.server).await.expect("the server does not panic").expect("the server ends without an error")
    }

    pub(crate) async fn end(mut self) -> Report {
        self.shutdown.trigger();
        self.ended().await
    }
}

pub(crate) type SendRequest = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// A service with one path for each behaviour. The default is to answer with the path.
#[derive(Clone, Default)]
pub(crate) struct TestService {
    called: Arc<AtomicUsize>,
    /// The handlers of `/wait` that have not been dropped.
    waiting: Arc<AtomicUsize>,
    /// The futures that have not been dropped, also those that were never polled.
    handling: Arc<AtomicUsize>,
    /// The bytes that `/tunnel` has read after it closed its own side.
    tunnelled: Arc<AtomicUsize>,
}

impl TestService {
    pub(crate) fn called(&self) -> usize {
        self.called.load(SeqCst)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    pub(crate) fn handling(&self) -> usize {
        self.handling.load(SeqCst)
    }

    pub(crate) fn tunnelled(&self) -> usize {
        self.tunnelled.load(SeqCst)
    }

    async fn answer(self, mut request: Request<Incoming>) -> io::Result<Response<TestBody>> {
        let path = request.uri().path().to_owned();
        let body = match path.as_str() {
            "/slow" => {
                sleep(LIMIT * 3).await;
                full("slow")
            }
            "/echo" => match request.into_body().collect().await {
                Ok(body) => full(body.to_bytes()),
                Err(error) => full(error.to_string()),
            },
            "/slow-echo" => {
                let body = request.into_body().collect().await.expect("the client sends the body").to_bytes();
                sleep(LIMIT * 3).await;
                full(body)
            }
            "/ignore" => full("early"),
            "/give-up" => {
                let mut body = request.into_body();
                let half = body.frame().await.expect("a frame").expect("half a body").into_data().unwrap();
                assert!(timeout(LIMIT / 4, body.frame()).await.is_err(), "the client sends no more");
                drop(body);
                sleep(LIMIT * 3).await;
                full(half)
            }
            "/endless" => chunks(|_| async { Some(Bytes::from(pattern(64 * 1024))) }),
            "/drip" => chunks(|at| async move {
                sleep(LIMIT * 2).await;
                (at < 3).then(|| Bytes::from("drip "))
            }),
            "/wait" => {
                let _waiting = Waiting::new(self.waiting);
                pending().await
            }
            "/drop-body" => {
                drop(request);
                sleep(LIMIT * 3).await;
                full("slow")
            }
            "/large" => full(pattern(LARGE)),
            // The request's body is read all the time. After a while come more chunks than hyper queues, and no end.
            "/burst" => {
                let reader = kittiwake::spawn(request.into_body().collect());
                let reader = Arc::new(reader);
                chunks(move |at| {
                    let reader = reader.clone();
                    async move {
                        let _reader = reader;
                        if at == 0 {
                            sleep(LIMIT / 2).await;
                        }
                        if at < BURST { Some(Bytes::from_static(b"burst")) } else { pending().await }
                    }
                })
            }
            "/error" => return Err(io::Error::other("the service failed")),
            "/upgrade" => return Ok(self.upgrade(&mut request)),
            "/tunnel" => return Ok(self.tunnel(&mut request)),
            // The upgrade begins, and no one has asked for its stream.
            "/switch" => return Ok(switching()),
            _ if request.uri().host() == Some("ignored") => full(""),
            _ if request.method() == Method::CONNECT => return Ok(self.connect(&mut request)),
            "/panic" => std::panic::resume_unwind(Box::new("the service panicked")),
            _ => full(path),
        };
        Ok(Response::new(body))
    }

    fn upgrade(self, request: &mut Request<Incoming>) -> Response<TestBody> {
        kittiwake::spawn(echo(hyper::upgrade::on(request)));
        switching()
    }

    /// Opens a tunnel that echoes.
    fn connect(self, request: &mut Request<Incoming>) -> Response<TestBody> {
        kittiwake::spawn(echo(hyper::upgrade::on(request)));
        Response::new(full(""))
    }

    /// Upgrades to a stream that closes its own side at the first byte, and then counts what comes.
    fn tunnel(self, request: &mut Request<Incoming>) -> Response<TestBody> {
        let upgraded = hyper::upgrade::on(request);
        kittiwake::spawn(async move {
            let mut stream = Io::new(upgraded.await.expect("the upgrade"));
            let mut buf = [0; 64];
            stream.read_exact(&mut buf[..1]).await.expect("a first byte");
            stream.close().await.expect("the client is there");
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                self.tunnelled.fetch_add(n, SeqCst);
            }
        });
        switching()
    }
}

async fn echo(upgrade: hyper::upgrade::OnUpgrade) {
    let mut stream = Io::new(upgrade.await.expect("the upgrade"));
    let mut buf = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        stream.write_all(&buf[..n]).await.expect("the client reads");
        stream.flush().await.expect("the client reads");
    }
}

fn switching() -> Response<TestBody> {
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let empty = Empty::new().map_err(|never| match never {}).boxed();
    response.header("connection", "upgrade").header("upgrade", "echo").body(empty).unwrap()
}

impl Service<Request<Incoming>> for TestService {
    type Response = Response<TestBody>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.called.fetch_add(1, SeqCst);
        if request.uri().path() == "/panic-in-call" {
            std::panic::resume_unwind(Box::new("the service panicked in its call"));
        }
        let handling = Waiting::new(self.handling.clone());
        let answer = self.clone().answer(request);
        Box::pin(async move {
            let _handling = handling;
            answer.await
        })
    }
}

pub(crate) type TestBody = BoxBody<Bytes, Box<dyn Error + Send + Sync>>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> TestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body of the chunks that `next` makes, until it makes none.
pub(crate) fn chunks<F: Future<Output = Option<Bytes>> + Send + Sync + 'static>(
    next: impl Fn(usize) -> F + Send + Sync + 'static,
) -> TestBody {
    let frames = stream::unfold((0, next), |(at, next)| async move {
        let chunk = next(at).await?;
        Some((Ok(Frame::data(chunk)), (at + 1, next)))
    });
    StreamBody::new(frames).boxed()
}

/// Counts the handlers that wait, or that have not been dropped.
pub(crate) struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    pub(crate) fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Starts a server with a limit, sends `request`, and expects that the server ends the connection with an error that
/// contains `error`. Another client is served meanwhile.
pub(crate) fn cut_off(request: &[u8], set: fn(Started) -> Started, error: &'static str) {
    let request = request.to_vec();
    run(move || async move {
        let (server, start) = (Server::start(set).await, Instant::now());
        let mut client = server.connect().await;
        client.write_all(&request).await.unwrap();
        let mut other = server.connect().await;
        other.write_all(get("/path").as_bytes()).await.unwrap();
        assert_eq!(response(&mut other).await.1, b"/path");
        until(|| server.errors.has(error)).await;
        assert_limited(start);
        // The connection has ended, so this comes to an end too.
        let _ = client.read_to_end(&mut Vec::new()).await;
    });
}

/// Fails if a limit of [`LIMIT`] that has begun after `start` took as long as the shortest default one: 10 s.
#[track_caller]
pub(crate) fn assert_limited(start: Instant) {
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "the limit of {LIMIT:?} took {took:?}");
}

// ---- a client of HTTP/1 ----

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

pub(crate) fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Reads one response: its head, and the body that its headers announce.
pub(crate) async fn response(stream: &mut (impl AsyncRead + Unpin)) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let n = stream.read(&mut byte).await.expect("the server answers");
        let so_far = String::from_utf8_lossy(&head);
        assert_eq!(n, 1, "the server closed the connection in the head of a response, after: {so_far:?}");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("a head in ASCII");
    let header = |name| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = Vec::new();
    if let Some(length) = header("content-length:") {
        body.resize(length.parse().expect("a length"), 0);
        stream.read_exact(&mut body).await.expect("the whole body");
    } else if header("transfer-encoding:") == Some("chunked") {
        let mut rest = BufReader::new(stream);
        loop {
            let mut size = String::new();
            rest.read_line(&mut size).await.expect("the size of a chunk");
            let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).expect("a size") + 2];
            rest.read_exact(&mut chunk).await.expect("a chunk");
            match chunk.len() {
                2 => break,
                length => body.extend_from_slice(&chunk[..length - 2]),
            }
        }
    }
    (head, body)
}

/// Reads a response that must say that the connection closes, and the end of the connection.
pub(crate) async fn last_response(stream: &mut (impl AsyncRead + Unpin), body: &str) {
    let (head, got) = response(stream).await;
    assert_eq!(String::from_utf8_lossy(&got), body);
    assert!(head.contains("\r\nconnection: close\r\n"), "the client must learn that the connection closes: {head}");
    assert_eq!(read_all(stream).await, "", "the connection closes after its last answer");
}

pub(crate) async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("the server closes the connection");
    text
}
