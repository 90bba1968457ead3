//! Laws of the limits, and of the transport below HTTP/1. A limit ends each wait for a client that stalls. It never
//! cuts off a client that owes nothing.

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::future::poll_once;
use http_body_util::Full;
use hyper::Request;
use kittiwake::hyper::serve;
use kittiwake::io::{AsyncRead, AsyncWrite, AsyncWriteExt, duplex};
use kittiwake::net::{Listener, ShutdownSignal, TcpStream};
use kittiwake::task::consume_budget;
use kittiwake::time::{Instant, advance, pause, resume, sleep};

use crate::LIMIT;
use crate::frames::{PING, SETTINGS, frame};
use crate::server::{BURST, Server, TestService, assert_limited, get, post, read_all, response};
use crate::support::{ErrorLog, listener, one_worker, pattern, read_slowly, run, run_paused, settle, until, within};

/// A limit holds also if its timer fires in the very poll in which the connection begins another wait.
#[test]
#[cfg_attr(kittiwake_rng_seed, ignore = "it needs the usual order of tasks")]
fn limit_survives_request_at_its_end() {
    run_paused(|| async {
        let (mut client, end) = duplex(4096);
        let server = serve(Streams::of([end]), TestService::default()).header_read_timeout(LIMIT);
        let _server = kittiwake::spawn(server.keep_alive_timeout(LIMIT * 10));
        settle().await;
        let client = kittiwake::spawn(async move {
            sleep(LIMIT).await;
            client.write_all(get("/path").as_bytes()).await.unwrap();
            assert_eq!(response(&mut client).await.1, b"/path");
            let answered = Instant::now();
            assert_eq!(read_all(&mut client).await, "");
            answered.elapsed()
        });
        settle().await;
        // Both timers fire in one turn.
        advance(LIMIT).await;
        let open = client.await.unwrap();
        assert!(open < LIMIT * 11, "the connection stayed open for {open:?}");
    });
}

/// A request that is in the kernel when the time of an idle connection is over is answered.
#[test]
fn request_at_keep_alive_limit_is_answered() {
    run(|| async {
        let server = Server::start(|serve| serve.keep_alive_timeout(Duration::from_secs(60))).await;
        let mut client = server.connect().await;
        client.write_all(get("/path/1").as_bytes()).await.unwrap();
        response(&mut client).await;
        settle().await;
        pause();
        let wrote = poll_once(client.write_all(get("/path/2").as_bytes())).await;
        assert!(wrote.is_some_and(|wrote| wrote.is_ok()), "a small write must not wait");
        advance(Duration::from_secs(60)).await;
        assert_eq!(response(&mut client).await.1, b"/path/2");
        resume();
    });
}

/// A limit holds also in the next `block_on` call of a current-thread runtime. The end of the first call takes the wakers
/// of all timers, and the request that comes first in the next call does not touch the timer of its connection.
#[test]
fn limit_holds_in_next_call() {
    within(|| {
        let runtime = one_worker();
        let (mut client, end) = duplex(4096);
        runtime.block_on(async {
            kittiwake::spawn(serve(Streams::of([end]), TestService::default()).into_future());
            client.write_all(get("/path").as_bytes()).await.unwrap();
            assert_eq!(response(&mut client).await.1, b"/path");
        });
        futures_lite::future::block_on(client.write_all(get("/again").as_bytes())).unwrap();
        runtime.block_on(async {
            pause();
            assert_eq!(response(&mut client).await.1, b"/again");
            advance(Duration::from_secs(80)).await;
            assert_eq!(read_all(&mut client).await, "", "the connection has been idle for 80 s");
            resume();
        });
    });
}

/// The limit for a request's body holds also while the response is being sent.
#[test]
fn stalled_body_is_cut_off_during_response() {
    run(|| async {
        let (server, start) = (Server::start(|serve| serve.body_timeout(LIMIT)).await, Instant::now());
        let mut client = server.connect().await;
        client.write_all(b"POST /burst HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        until(|| server.errors.has("the rest of a request's body")).await;
        assert_limited(start);
        let answer = read_all(&mut client).await;
        assert_eq!(answer.matches("burst").count(), BURST, "the answer so far: {answer}");
    });
}

/// A client that reads slowly is not cut off while it reads. Linux reports room in a full send buffer only once a third of
/// it is free, and that may take longer than the limit.
#[test]
fn slow_reader_is_not_cut_off() {
    run(|| async {
        let server = Server::start(|serve| serve.body_timeout(LIMIT)).await;
        pause();
        let mut client = server.connect().await;
        client.write_all(get("/endless").as_bytes()).await.unwrap();
        read_slowly(&mut client, LIMIT * 2 / 3).await;
        server.errors.expect_none();
        for _ in 0..3 {
            advance(LIMIT * 2 / 3).await;
            settle().await;
        }
        resume();
        until(|| server.errors.has("does not read")).await;
    });
}

/// A connection whose last request had a body is idle after that, and closes as any other one when the server stops.
#[test]
fn request_with_body_delays_no_drain() {
    delays_no_drain(post("/echo", "body"), b"body");
}

/// Has a request answered, and then stops the server.
fn delays_no_drain(request: String, answer: &'static [u8]) {
    run_paused(move || async move {
        let (mut client, end) = duplex(64 * 1024);
        let shutdown = ShutdownSignal::new();
        let server = serve(Streams::of([end]), TestService::default()).with_shutdown(&shutdown);
        let server = kittiwake::spawn(server);
        client.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(response(&mut client).await.1, answer);
        let stopped = Instant::now();
        shutdown.trigger();
        server.await.unwrap().expect("the server ends without an error");
        let drain = stopped.elapsed();
        assert!(drain < Duration::from_secs(2), "the drain took {drain:?}");
        drop(client);
    });
}

/// The rest of a body that the handler has not read comes after the response. It is no part of the next head: the
/// connection is idle once hyper has discarded it.
#[test]
fn unread_body_delays_no_drain() {
    // More than hyper has read when the handler answers, and no more than it discards at once.
    delays_no_drain(post("/ignore", &"x".repeat(12_000)), b"early");
}

/// A limit of zero for what a client of HTTP/2 owes is checked now and then, and does not keep the worker while a
/// handler runs.
#[test]
fn zero_limit_keeps_no_worker() {
    run(|| async {
        let server = Server::start(|serve| serve.body_timeout(Duration::ZERO)).await;
        let mut http2 = server.http2().await;
        let request = Request::get("http://host/slow").body(Full::default()).unwrap();
        let response = http2.send_request(request).await.expect("the handler is slow, and the client owes nothing");
        assert_eq!(response.status(), 200);
    });
}

/// A handler that has dropped a body, which the client never completes, is not cut off.
#[test]
fn dropped_body_has_no_limit() {
    run(|| async {
        let server = Server::start(|serve| serve.body_timeout(LIMIT).keep_alive_timeout(LIMIT)).await;
        let mut client = server.connect().await;
        client.write_all(b"POST /drop-body HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        assert_eq!(response(&mut client).await.1, b"slow");
        server.errors.expect_none();
    });
}

/// An upgraded stream whose own side is closed still reads all that the client sends.
#[test]
fn closed_upgrade_reads_to_the_end() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        let upgrade = "GET /tunnel HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        client.write_all(upgrade.as_bytes()).await.unwrap();
        assert!(response(&mut client).await.0.starts_with("HTTP/1.1 101"));
        client.write_all(&pattern(100_001)).await.unwrap();
        assert_eq!(read_all(&mut client).await, "", "the server closes its side");
        client.write_all(&pattern(100_000)).await.unwrap();
        drop(client);
        until(|| server.service.tunnelled() == 200_000).await;
    });
}

/// A client that sends faster than its connection reads does not hide that its time is over.
#[test]
fn flood_does_not_stop_a_limit() {
    run(|| async {
        let ping = frame(PING, 0, 0, b"are you?");
        let mut http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        http2.extend_from_slice(&frame(SETTINGS, 0, 0, &[]));
        let floods = [
            // After a wrong request, bytes that the server discards for a while.
            Flood { first: b"GET / HTTP/1.1\r\na b: c\r\n\r\n".to_vec(), then: b"flood".to_vec(), at: 0 },
            Flood { first: http2, then: ping, at: 0 },
        ];
        let errors = ErrorLog::default();
        let server = serve(Streams::of(floods), TestService::default());
        let server = server.header_read_timeout(LIMIT).on_error(errors.listen());
        let stats = server.stats();
        let _server = kittiwake::spawn(server);
        until(|| stats.accepted() == 2 && stats.open() == 0).await;
        assert!(errors.has("a whole request head"), "the errors: {errors:?}");
        assert!(errors.has("invalid HTTP header"), "the errors: {errors:?}");
    });
}

/// A stream that keeps bytes until it is flushed, as TLS does, is served, limited, and watched for the client's end.
#[test]
fn stream_with_a_buffer_is_served() {
    run(|| async {
        let errors = ErrorLog::default();
        let service = TestService::default();
        let (listener, address) = listener().await;
        let server = serve(listener, service.clone())
            .handshake(|stream| async { io::Result::Ok(Buffered { stream, buffer: Vec::new() }) })
            .body_timeout(LIMIT)
            .on_error(errors.listen());
        let _server = kittiwake::spawn(server);

        let mut client = TcpStream::connect(address).await.unwrap();
        for path in ["/path", "/slow", "/large"] {
            client.write_all(get(path).as_bytes()).await.unwrap();
            assert!(response(&mut client).await.0.starts_with("HTTP/1.1 200"));
        }
        client.write_all(post("/echo", "a body").as_bytes()).await.unwrap();
        assert_eq!(response(&mut client).await.1, b"a body");
        errors.expect_none();

        client.write_all(get("/wait").as_bytes()).await.unwrap();
        until(|| service.waiting() == 1).await;
        drop(client);
        until(|| service.waiting() == 0).await;

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(get("/endless").as_bytes()).await.unwrap();
        until(|| errors.has("does not read")).await;
    });
}

/// With `max_connections`, a client waits in the kernel's queue until an idle connection has closed.
#[test]
fn idle_connection_makes_room() {
    run(|| async {
        let keep_alive = Duration::from_secs(60);
        let server = Server::start(|serve| serve.max_connections(1).keep_alive_timeout(keep_alive)).await;
        let mut first = server.connect().await;
        first.write_all(get("/path/1").as_bytes()).await.unwrap();
        response(&mut first).await;
        let mut second = server.connect().await;
        second.write_all(get("/path/2").as_bytes()).await.unwrap();
        settle().await;
        assert_eq!(server.stats.accepted(), 1, "the second client must wait");
        pause();
        advance(keep_alive).await;
        resume();
        assert_eq!(response(&mut second).await.1, b"/path/2");
        assert_eq!((server.stats.accepted(), server.stats.open()), (2, 1));
        assert_eq!(read_all(&mut first).await, "");
        server.errors.expect_none();
    });
}

/// A client that waits for `100 Continue` gets it if the handler reads, and else the answer at once.
#[test]
fn expect_gets_100_only_for_a_reader() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let request =
            |path| format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n");
        let mut client = server.connect().await;
        client.write_all(request("/echo").as_bytes()).await.unwrap();
        assert_eq!(response(&mut client).await.0, "HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"body").await.unwrap();
        assert_eq!(response(&mut client).await.1, b"body");

        client.write_all(request("/ignore").as_bytes()).await.unwrap();
        let (head, body) = response(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 200"), "the head was: {head}");
        assert_eq!(body, b"early");
        assert_eq!(read_all(&mut client).await, "", "the server cannot know whether the body comes, and closes");
        server.errors.expect_none();
    });
}

/// An error of the service ends its connection and is reported.
#[test]
fn service_error_is_reported() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        client.write_all(get("/error").as_bytes()).await.unwrap();
        assert_eq!(read_all(&mut client).await, "");
        until(|| server.errors.has("Service")).await;
    });
}

/// A listener of streams that were there before.
struct Streams<T>(Mutex<VecDeque<T>>);

impl<T> Streams<T> {
    fn of(streams: impl Into<VecDeque<T>>) -> Self {
        Self(Mutex::new(streams.into()))
    }
}

impl<T> Listener for Streams<T> {
    type Stream = T;
    type Addr = ();

    fn poll_accept(&self, _cx: &mut Context<'_>) -> Poll<io::Result<(T, ())>> {
        match self.0.lock().unwrap().pop_front() {
            Some(stream) => Poll::Ready(Ok((stream, ()))),
            None => Poll::Pending,
        }
    }
}

/// A client that sends `first` and then `then` again and again. Reads always succeed while the task has budget.
struct Flood {
    first: Vec<u8>,
    then: Vec<u8>,
    at: usize,
}

impl AsyncRead for Flood {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(pin!(consume_budget()).poll(cx));
        for byte in buf.iter_mut() {
            let at = self.at;
            *byte = match at.checked_sub(self.first.len()) {
                None => self.first[at],
                Some(after) => self.then[after % self.then.len()],
            };
            self.at += 1;
        }
        Poll::Ready(Ok(buf.len()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A stream that sends when it is flushed, or when its buffer is full.
struct Buffered {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl AsyncRead for Buffered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.buffer.len() > 64 * 1024 {
            ready!(self.as_mut().poll_flush(cx))?;
        }
        self.buffer.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.buffer.is_empty() {
            let n = ready!(Pin::new(&mut this.stream).poll_write(cx, &this.buffer))?;
            this.buffer.drain(..n);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
