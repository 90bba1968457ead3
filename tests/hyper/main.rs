//! `kittiwake::hyper`: HTTP servers over real sockets. Which requests are answered, which clients are cut off, and how
//! a server ends.
#![cfg(feature = "hyper")]

#[path = "../support/mod.rs"]
mod support;

mod frames;
mod hostile;
mod http2;
mod limits;
mod server;

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::{Request, Version};
use kittiwake::hyper::{Executor, Serve, serve};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{ShutdownSignal, TcpStream};
use kittiwake::time::{Instant, advance, pause, resume, sleep, sleep_until, timeout};
use server::{Server, Started, TestService, assert_limited, cut_off, get, last_response, post, read_all, response};
use support::{ErrorLog, busy, listener, pattern, run, settle, until};

/// A limit that the clients of these tests exceed.
const LIMIT: Duration = Duration::from_millis(200);

// ---- requests ----

/// Requests on one connection are answered in order, whether they come alone or in one segment.
#[test]
fn keep_alive_answers_in_order() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        for path in ["/path/1", "/path/2"] {
            client.write_all(get(path).as_bytes()).await.unwrap();
            assert_eq!(response(&mut client).await.1, path.as_bytes());
        }
        client.write_all((get("/path/3") + &get("/path/4")).as_bytes()).await.unwrap();
        assert_eq!(response(&mut client).await.1, b"/path/3");
        assert_eq!(response(&mut client).await.1, b"/path/4");
        assert_eq!((server.stats.open(), server.stats.accepted()), (1, 1));
        drop(client);
        assert_eq!(server.end().await.served, 1);
    });
}

/// A client that begins with the preface of HTTP/2 is served by HTTP/2, however the preface is split.
#[test]
fn preface_selects_http2() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut sender = server.http2().await;
        let body = pattern(200_000);
        let request = Request::post("http://host/echo").body(Full::new(Bytes::from(body.clone()))).unwrap();
        let response = sender.send_request(request).await.expect("HTTP/2 answers");
        assert_eq!(response.version(), Version::HTTP_2);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);

        let mut split = server.connect().await;
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
            split.write_all(&[*byte]).await.unwrap();
            kittiwake::task::yield_now().await;
        }
        split.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let mut settings = [0; 9];
        split.read_exact(&mut settings).await.expect("the server sends its settings");
        assert_eq!(settings[3], 4, "the first frame of an HTTP/2 server is SETTINGS");
    });
}

/// With `http1_only`, a client that begins with the preface of HTTP/2 gets no answer. Its connection closes, and is an
/// error.
#[test]
fn http1_only_refuses_http2() {
    run(|| async {
        let server = Server::start(Serve::http1_only).await;
        let mut client = server.connect().await;
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        assert_eq!(read_all(&mut client).await, "");
        until(|| server.errors.has("HTTP2 preface")).await;
        assert_eq!(server.end().await.failed, 1);
    });
}

/// A server that answers early and closes takes in the rest of the request for a while. So the client's writes do not
/// fail before it has looked for the answer.
#[test]
fn early_answer_fails_no_write() {
    early_answer("");
}

/// The same for a client that offers an upgrade which the service does not know. hyper does not close such a
/// connection.
#[test]
fn early_answer_without_upgrade_fails_no_write() {
    early_answer("connection: upgrade\r\nupgrade: h2c\r\n");
}

fn early_answer(headers: &'static str) {
    const CHUNKS: usize = 64;
    run(move || async move {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        let chunk = pattern(1 << 20);
        let length = chunk.len() * CHUNKS;
        let head = format!("POST /ignore HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n");
        // The server does so for 2 s. A busy machine may take longer for so many bytes.
        while_clock_stands(async {
            client.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..CHUNKS {
                client.write_all(&chunk).await.expect("the server takes in what it does not need");
            }
        })
        .await;
        let (head, body) = response(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 200"), "the head was: {head}");
        assert_eq!(body, b"early");
        assert_eq!(read_all(&mut client).await, "", "the server closes its side");
        drop(client);
        until(|| server.stats.open() == 0).await;
        server.errors.expect_none();
    });
}

/// A client may still send its body when the server refuses the head. The connection takes that body in, too.
#[test]
fn late_body_of_refused_head_fails_no_write() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        client.write_all(b"POST /path HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n").await.unwrap();
        let answer = read_all(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "the answer was: {answer}");
        send_late_body(client, &server).await;
    });
}

/// A client may begin to send its body after the early answer, as one whose head and body are two writes. The
/// connection takes that body in, too.
#[test]
fn late_body_of_answered_request_fails_no_write() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        client.write_all(b"POST /ignore HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n").await.unwrap();
        assert_eq!(response(&mut client).await.1, b"early");
        assert_eq!(read_all(&mut client).await, "", "the server closes its side");
        send_late_body(client, &server).await;
        server.errors.expect_none();
    });
}

/// Sends a body for a second to a server that has closed its side. It must take that in, until the client closes, too.
async fn send_late_body(mut client: TcpStream, server: &Server) {
    while_clock_stands(async {
        for _ in 0..10 {
            client.write_all(&pattern(10_000)).await.expect("the server takes in what it does not need");
            advance(Duration::from_millis(100)).await;
            // A reset would reach this side before its next write.
            settle().await;
        }
    })
    .await;
    drop(client);
    until(|| server.stats.open() == 0).await;
}

/// A panic in a service ends its connection alone.
#[test]
fn panic_in_service_ends_one_connection() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let (mut victim, mut other) = (server.connect().await, server.connect().await);
        victim.write_all(get("/panic").as_bytes()).await.unwrap();
        assert_eq!(read_all(&mut victim).await, "");
        other.write_all(get("/path").as_bytes()).await.unwrap();
        assert_eq!(response(&mut other).await.1, b"/path");
        drop(other);
        let report = server.end().await;
        assert_eq!((report.panicked, report.served), (1, 1));
    });
}

// ---- the end of a server ----

/// A request that is in the kernel when the server stops is answered, on a connection that was idle and on one that was
/// not accepted yet. The order of events does not matter: here no worker has seen any of them.
#[test]
fn requests_in_the_kernel_are_answered() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut kept = server.connect().await;
        kept.write_all(get("/path/1").as_bytes()).await.unwrap();
        response(&mut kept).await;

        let std = std::net::TcpStream::connect(server.address).expect("the kernel accepts");
        let mut queued = TcpStream::from_std(std).unwrap();
        // Loopback delivers in the system call, and this task does not let the server run in between.
        let wrote = futures_lite::future::poll_once(kept.write_all(get("/path/2").as_bytes())).await;
        assert!(wrote.is_some_and(|wrote| wrote.is_ok()), "a small write must not wait");
        let wrote = futures_lite::future::poll_once(queued.write_all(get("/path/3").as_bytes())).await;
        assert!(wrote.is_some_and(|wrote| wrote.is_ok()), "a small write must not wait");
        server.shutdown.trigger();

        last_response(&mut kept, "/path/2").await;
        assert_eq!(response(&mut queued).await.1, b"/path/3");
        assert_eq!(server.end().await.served, 2);
    });
}

/// A queued client that has sent nothing when the server stops may still send its first request.
#[test]
fn queued_client_has_time_for_a_request() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let std = std::net::TcpStream::connect(server.address).expect("the kernel accepts");
        let mut queued = TcpStream::from_std(std).unwrap();
        while_clock_stands(async {
            server.shutdown.trigger();
            settle().await;
            queued.write_all(get("/path").as_bytes()).await.unwrap();
        })
        .await;
        assert_eq!(response(&mut queued).await.1, b"/path");
        assert_eq!(server.end().await.served, 1);
    });
}

/// A client that does not know of the end may send one more request on an idle connection. Its answer tells the client
/// that the connection closes.
#[test]
fn idle_connection_gets_a_last_answer() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        client.write_all(get("/path/1").as_bytes()).await.unwrap();
        response(&mut client).await;
        while_clock_stands(async {
            server.shutdown.trigger();
            settle().await;
            client.write_all(get("/path/2").as_bytes()).await.unwrap();
        })
        .await;
        last_response(&mut client, "/path/2").await;
        assert_eq!(server.end().await.served, 1);
    });
}

/// A client that has sent a part of its request's head when the server stops may send the rest.
#[test]
fn half_a_head_is_completed() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        client.write_all(get("/path/1").as_bytes()).await.unwrap();
        response(&mut client).await;
        let request = get("/path/2");
        let (half, rest) = request.as_bytes().split_at(9);
        client.write_all(half).await.unwrap();
        settle().await;
        server.shutdown.trigger();
        settle().await;
        client.write_all(rest).await.unwrap();
        last_response(&mut client, "/path/2").await;
        assert_eq!(server.end().await.served, 1);
    });
}

/// A response that begins before the server stops cannot tell that the connection closes. So its client may send one
/// more request.
#[test]
fn begun_response_leaves_one_request() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        client.write_all(get("/drip").as_bytes()).await.unwrap();
        client.peek(&mut [0]).await.expect("the response begins");
        server.shutdown.trigger();
        assert_eq!(response(&mut client).await.1, b"drip drip drip ");
        client.write_all(get("/path").as_bytes()).await.unwrap();
        last_response(&mut client, "/path").await;
        assert_eq!(server.end().await.served, 1);
    });
}

/// Idle connections do not outlast half of the drain timeout. Otherwise the report would list them as open.
#[test]
fn idle_connections_close_within_the_drain() {
    run(|| async {
        let server = Server::start(|serve| serve.drain_timeout(LIMIT)).await;
        let (mut idle, _silent) = (server.connect().await, server.connect().await);
        idle.write_all(get("/path").as_bytes()).await.unwrap();
        response(&mut idle).await;
        // By the system's clock both halves may be over when a busy machine runs this thread again.
        pause();
        let report = server.end().await;
        assert_eq!((report.served, report.open.len()), (2, 0));
    });
}

/// An idle connection does not hold up the end for more than a second, and neither does a silent one.
#[test]
fn idle_connections_close_at_the_end() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let (mut idle, mut silent) = (server.connect().await, server.connect().await);
        let mut http2 = server.http2().await;
        http2.send_request(Request::get("http://host/path").body(Full::default()).unwrap()).await.unwrap();
        idle.write_all(get("/path").as_bytes()).await.unwrap();
        response(&mut idle).await;
        // By the system's clock a busy machine adds to the second.
        pause();
        let start = Instant::now();
        server.shutdown.trigger();
        assert_eq!(read_all(&mut idle).await, "");
        assert_eq!(read_all(&mut silent).await, "");
        let report = server.end().await;
        assert!(start.elapsed() < Duration::from_secs(10), "the end took {:?}", start.elapsed());
        assert_eq!((report.served, report.failed, report.open.len()), (3, 0, 0));
    });
}

/// A request that runs when the server stops is answered, on HTTP/1 and on HTTP/2.
#[test]
fn running_requests_are_answered() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut http1 = server.connect().await;
        http1.write_all(get("/slow").as_bytes()).await.unwrap();
        let mut sender = server.http2().await;
        let http2 = sender.send_request(Request::get("http://host/slow").body(Full::default()).unwrap());
        let http2 = kittiwake::spawn(http2);
        until(|| server.service.called() == 2).await;
        server.shutdown.trigger();
        assert_eq!(response(&mut http1).await.1, b"slow");
        let http2 = http2.await.unwrap().expect("the stream is answered");
        assert_eq!(http2.into_body().collect().await.unwrap().to_bytes(), "slow");
        assert_eq!(server.end().await.served, 2);
    });
}

// ---- limits ----

/// A client that sends nothing is cut off, and that is an error.
#[test]
fn silent_client_is_cut_off() {
    cut_off(b"", |serve| serve.header_read_timeout(LIMIT), "a whole request head");
}

/// A client that sends half a head is cut off, also if it sends a byte from time to time.
#[test]
fn half_a_head_is_cut_off() {
    cut_off(b"GET / HTTP/1.1\r\nho", |serve| serve.header_read_timeout(LIMIT), "a whole request head");
    run(|| async {
        let server = Server::start(|serve| serve.header_read_timeout(LIMIT)).await;
        let client = server.connect().await;
        let (mut reader, mut writer) = client.into_split();
        let dribble = kittiwake::spawn(async move {
            while writer.write_all(b"a").await.is_ok() {
                sleep(LIMIT / 4).await;
            }
        });
        // A byte that comes just as the server closes makes the end of the connection a reset.
        match reader.read(&mut [0]).await {
            Ok(n) => assert_eq!(n, 0, "the server answers"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        dribble.await.unwrap();
        until(|| server.errors.has("a whole request head")).await;
    });
}

/// The head of a further request has the same limit, and not that of an idle connection.
#[test]
fn half_a_second_head_is_cut_off() {
    run(|| async {
        // Bytes that come after a body are a head, whether the handler has read that body or not.
        for first in
            [get("/path"), post("/echo", "body"), post("/ignore", "body"), post("/ignore", &"x".repeat(12_000))]
        {
            let server = Server::start(|serve| serve.header_read_timeout(LIMIT)).await;
            let mut client = server.connect().await;
            client.write_all(first.as_bytes()).await.unwrap();
            response(&mut client).await;
            // hyper waits for the next head.
            settle().await;
            client.write_all(b"GET / HT").await.unwrap();
            assert_eq!(read_all(&mut client).await, "");
            until(|| server.errors.has("a whole request head")).await;
        }
    });
}

/// A client that has sent half a head when the server stops is served, also behind a request with a body.
#[test]
fn half_a_head_is_served_in_the_drain() {
    run(|| async {
        for first in [get("/path"), post("/echo", "body"), post("/ignore", "body")] {
            let server = Server::start(|serve| serve).await;
            let mut client = server.connect().await;
            client.write_all(first.as_bytes()).await.unwrap();
            response(&mut client).await;
            settle().await;
            let next = get("/next");
            client.write_all(&next.as_bytes()[..8]).await.unwrap();
            settle().await;
            pause();
            server.shutdown.trigger();
            // Longer than an idle connection may stay.
            sleep(Duration::from_secs(2)).await;
            resume();
            client.write_all(&next.as_bytes()[8..]).await.unwrap();
            last_response(&mut client, "/next").await;
            assert_eq!(server.end().await.served, 1);
        }
    });
}

/// A client that sends half a body is cut off while the handler reads it.
#[test]
fn half_a_body_is_cut_off() {
    let request = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf";
    cut_off(request, |serve| serve.body_timeout(LIMIT), "the rest of a request's body");
}

/// A client that does not read its response is cut off, on HTTP/1.
#[test]
fn client_that_reads_nothing_is_cut_off() {
    cut_off(get("/endless").as_bytes(), |serve| serve.body_timeout(LIMIT), "does not read");
}

/// The same on HTTP/2, whose flow control stops a stream while the connection stays writable.
#[test]
fn http2_client_that_reads_nothing_is_cut_off() {
    run(|| async {
        let server = Server::start(|serve| serve.body_timeout(LIMIT)).await;
        let mut sender = server.http2().await;
        let request = Request::get("http://host/endless").body(Full::default()).unwrap();
        let _response = sender.send_request(request).await.expect("the head comes");
        until(|| server.errors.has("does not read")).await;
    });
}

/// An idle connection closes after the keep-alive timeout, on HTTP/1 and on HTTP/2. That is no error.
#[test]
fn idle_connection_closes_without_error() {
    run(|| async {
        // Long enough for a client that waits for a core in the middle of it.
        let keep_alive = LIMIT * 4;
        let server = Server::start(|serve| serve.keep_alive_timeout(keep_alive)).await;
        let mut http1 = server.connect().await;
        for _ in 0..3 {
            http1.write_all(get("/path").as_bytes()).await.unwrap();
            response(&mut http1).await;
            sleep(keep_alive / 2).await;
        }
        let started = Instant::now();
        assert_eq!(read_all(&mut http1).await, "");
        assert!(started.elapsed() < LIMIT * 150, "the connection closed after {:?}", started.elapsed());

        let (mut sender, connection) = server.http2_parts().await;
        let connection = kittiwake::spawn(connection);
        sender.send_request(Request::get("http://host/path").body(Full::default()).unwrap()).await.unwrap();
        connection.await.unwrap().expect("the server closes gracefully");
        let report = server.end().await;
        assert_eq!((report.served, report.failed), (2, 0));
    });
}

/// A request is answered also if it reaches the kernel just before the keep-alive timeout, and no worker has seen it.
#[test]
#[cfg_attr(kittiwake_rng_seed, ignore = "it needs the usual order of tasks")]
fn request_in_the_kernel_keeps_alive() {
    run(|| async {
        let keep_alive = LIMIT * 5;
        let server = Server::start(|serve| serve.keep_alive_timeout(keep_alive)).await;
        let mut client = server.connect().await;
        let started = Instant::now();
        client.write_all(get("/path/1").as_bytes()).await.unwrap();
        response(&mut client).await;
        let client = kittiwake::spawn(async move {
            sleep_until(started + keep_alive).await;
            client.write_all(get("/path/2").as_bytes()).await.unwrap();
            response(&mut client).await.1
        });
        settle().await;
        // The thread is blocked until both timers have expired. The client's deadline is the earlier one. So the worker
        // runs the client and then the connection, without a look at the kernel in between.
        std::thread::sleep(keep_alive + LIMIT);
        assert_eq!(client.await.unwrap(), b"/path/2");
    });
}

/// No limit cuts off a handler that takes long, with or without a body in its request, nor a response that pauses.
#[test]
fn slow_handler_is_not_cut_off() {
    run(|| async {
        let limits = |serve: Started| serve.header_read_timeout(LIMIT).keep_alive_timeout(LIMIT).body_timeout(LIMIT);
        let server = Server::start(limits).await;
        let requests = [
            (get("/slow"), "slow"),
            (post("/slow", "a body that the handler does not read"), "slow"),
            (post("/slow-echo", "a body"), "a body"),
            (get("/drip"), "drip drip drip "),
        ];
        for (request, expected) in requests {
            let mut client = server.connect().await;
            client.write_all(request.as_bytes()).await.unwrap();
            let (head, body) = response(&mut client).await;
            assert_eq!(String::from_utf8_lossy(&body), expected, "{request}\nwas answered by\n{head}");
        }
        let mut sender = server.http2().await;
        for (path, expected) in [("slow", "slow"), ("slow-echo", "a body"), ("drip", "drip drip drip ")] {
            let request = Request::post(format!("http://host/{path}")).body(Full::from("a body")).unwrap();
            let response = sender.send_request(request).await.unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expected, "{path}");
        }
        server.errors.expect_none();
    });
}

/// A handler may begin to read a body, and give up. From then on it may take as long as it likes.
#[test]
fn handler_that_stops_reading_is_not_cut_off() {
    run(|| async {
        let server = Server::start(|serve| serve.body_timeout(LIMIT)).await;
        let mut client = server.connect().await;
        client.write_all(b"POST /give-up HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        assert_eq!(response(&mut client).await.1, b"half");
        server.errors.expect_none();
    });
}

/// An HTTP/2 connection is idle again once its client has reset its request. Then the keep-alive timeout applies.
#[test]
fn reset_request_leaves_connection_idle() {
    run(|| async {
        let server = Server::start(|serve| serve.keep_alive_timeout(LIMIT)).await;
        let (mut sender, connection) = server.http2_parts().await;
        let connection = kittiwake::spawn(connection);
        let request = sender.send_request(Request::get("http://host/wait").body(Full::default()).unwrap());
        let request = kittiwake::spawn(request);
        until(|| server.service.waiting() == 1).await;
        request.abort();
        until(|| server.service.waiting() == 0).await;
        connection.await.unwrap().expect("the server closes gracefully");
    });
}

/// A client that leaves while its handler runs ends the handler.
#[test]
fn handler_ends_with_its_client() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        for request in [get("/wait"), post("/wait", "a body")] {
            let mut client = server.connect().await;
            client.write_all(request.as_bytes()).await.unwrap();
            until(|| server.service.waiting() == 1).await;
            drop(client);
            until(|| server.service.waiting() == 0).await;
        }
    });
}

// ---- handshakes and upgrades ----

/// A handshake that does not end, or fails, costs its own connection. Others are served meanwhile.
#[test]
fn handshake_is_bounded_in_time() {
    run(|| async {
        let errors = ErrorLog::default();
        let (listener, address) = listener().await;
        // The client says hello before its first request.
        let handshake = |mut stream: TcpStream| async move {
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).await?;
            if &hello == b"hello" { Ok(stream) } else { Err(io::Error::other("not a hello")) }
        };
        let server = serve(listener, TestService::default())
            .handshake(handshake)
            .handshake_timeout(LIMIT)
            .on_error(errors.listen());
        let _server = kittiwake::spawn(server);
        let start = Instant::now();
        let mut stuck = TcpStream::connect(address).await.unwrap();
        stuck.write_all(b"hel").await.unwrap();
        let mut wrong = TcpStream::connect(address).await.unwrap();
        wrong.write_all(b"HELLO").await.unwrap();
        let mut right = TcpStream::connect(address).await.unwrap();
        right.write_all(format!("hello{}", get("/path")).as_bytes()).await.unwrap();
        assert_eq!(response(&mut right).await.1, b"/path");
        until(|| errors.has("does not complete the handshake") && errors.has("not a hello")).await;
        assert_limited(start);
        assert_eq!(read_all(&mut stuck).await, "");
    });
}

/// An upgraded connection carries the user's bytes, and the server waits for its end.
#[test]
fn upgraded_connection_counts_until_dropped() {
    run(|| async {
        let mut server = Server::start(|serve| serve).await;
        let mut client = server.connect().await;
        client
            .write_all(b"GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly")
            .await
            .unwrap();
        assert!(response(&mut client).await.0.starts_with("HTTP/1.1 101"));
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"early");
        server.shutdown.trigger();
        assert!(timeout(LIMIT, server.ended()).await.is_err(), "the server must wait for the upgraded connection");
        client.write_all(b"later").await.unwrap();
        client.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"later");
        drop(client);
        assert_eq!(server.end().await.served, 1);
    });
}

/// A client that does not complete its handshake does not hold up the end of the server.
#[test]
fn silent_handshake_delays_no_drain() {
    run(|| async {
        let (listener, address) = listener().await;
        let (shutdown, errors) = (ShutdownSignal::new(), ErrorLog::default());
        let server = serve(listener, TestService::default())
            .handshake(|mut stream: TcpStream| async move {
                stream.read_exact(&mut [0; 5]).await?;
                io::Result::Ok(stream)
            })
            .drain_timeout(LIMIT)
            .with_shutdown(&shutdown)
            .on_error(errors.listen());
        let stats = server.stats();
        let server = kittiwake::spawn(server);
        let _silent = TcpStream::connect(address).await.unwrap();
        until(|| stats.open() == 1).await;
        pause();
        shutdown.trigger();
        let report = server.await.unwrap().expect("the server ends without an error");
        assert_eq!((report.failed, report.open.len()), (1, 0));
        assert!(errors.has("does not complete the handshake"));
    });
}

/// If the service has not asked for the stream of an upgrade that begins, the connection closes. Otherwise a client of a
/// service that answers whatever the method is could keep connections for ever, by CONNECT.
#[test]
fn unclaimed_upgrade_closes_connection() {
    run(|| async {
        let switch = "GET /switch HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        for request in ["CONNECT ignored:1 HTTP/1.1\r\nhost: ignored\r\n\r\n", switch] {
            let server = Server::start(|serve| serve).await;
            let mut client = server.connect().await;
            client.write_all(request.as_bytes()).await.unwrap();
            let answer = read_all(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 "), "the answer to {request:?}: {answer:?}");
            until(|| server.stats.open() == 0).await;
            assert_eq!(server.end().await.served, 1);
        }
    });
}

// ---- the client of hyper-util ----

/// The client keeps a connection for the next request, and closes it when it has been idle. That of a connector does so
/// after 90 seconds.
#[cfg(feature = "hyper-util")]
#[test]
fn idle_pooled_connection_closes() {
    use hyper_util::client::legacy::Client;
    use kittiwake::hyper::{Connector, Timer};

    run(|| async {
        let mut server = Server::start(|serve| serve).await;
        let uri = |path| format!("http://{}{path}", server.address).parse().unwrap();
        let mut builder = Client::builder(Executor);
        let client = builder.pool_timer(Timer).pool_idle_timeout(LIMIT).build(Connector::new());
        // On a busy machine the connection could be idle for too long between the two.
        while_clock_stands(async {
            for path in ["/path/1", "/path/2"] {
                let response = client.get(uri(path)).await.expect("the server answers");
                let body: Bytes = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, path);
            }
        })
        .await;
        let _: &Client<Connector, Empty<Bytes>> = &client;
        // The client is alive, and the server ends once no connection is open.
        server.shutdown.trigger();
        assert_eq!(server.ended().await.accepted, 1, "the second request must use the same connection");
    });
    run(|| async {
        let (listener, address) = listener().await;
        let client = Connector::new().client();
        let answer = kittiwake::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            stream.read(&mut [0; 1]).await
        });
        let request = Request::get(format!("http://{address}/")).body(Empty::<Bytes>::new()).unwrap();
        client.request(request).await.expect("the server answers");
        let answered = Instant::now();
        pause();
        assert_eq!(answer.await.unwrap().expect("a connection that the client closes"), 0);
        let idle = answered.elapsed();
        assert!(idle >= Duration::from_secs(89), "the connection closed after {idle:?}");
    });
}

/// Errors of the connector name the address and say what to do.
#[cfg(feature = "hyper-util")]
#[test]
fn connector_errors_name_the_address() {
    run(|| async {
        let client = kittiwake::hyper::Connector::new().client::<Empty<Bytes>>();
        let address = support::closed_address();
        for (uri, expected) in
            [(format!("https://{address}/"), "http://".to_owned()), (format!("http://{address}/"), address.to_string())]
        {
            let error = client.get(uri.parse().unwrap()).await.expect_err("nothing listens");
            let source = std::error::Error::source(&error).expect("a source").to_string();
            assert!(source.contains(&expected), "{uri} failed with: {source}");
        }
    });
}

// ---- helpers ----

/// Awaits `future` while the clock stands: a task that is always ready keeps the paused clock from moving. Only
/// [`advance`] moves it.
async fn while_clock_stands<T>(future: impl Future<Output = T>) -> T {
    pause();
    let busy = kittiwake::spawn(busy());
    let value = future.await;
    busy.abort();
    resume();
    value
}
