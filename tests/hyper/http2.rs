//! Laws of HTTP/2: clients whose flow control holds responses back, tunnels, and the end of a connection.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper::body::Bytes;
use kittiwake::hyper::{Executor, Io};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::time::{Instant, pause, resume, sleep, timeout};

use crate::LIMIT;
use crate::frames::{
    DATA, END_HEADERS, END_STREAM, FrameClient, HEADERS, INITIAL_WINDOW_SIZE, PING, SETTINGS, WINDOW_UPDATE, frame,
    head,
};
use crate::server::{LARGE, Server, Started};
use crate::support::{run, settle, until};

/// A response that its client reads slowly is not cut off: not after the time of an idle connection, and not when the
/// server stops. hyper hands it to its queue as a whole, long before the client has it.
#[test]
fn slow_download_is_not_cut_off() {
    run(|| async {
        for stops in [false, true] {
            let server = Server::start(|serve| serve.keep_alive_timeout(LIMIT)).await;
            let stream = Io::new(server.connect().await);
            let mut builder = hyper::client::conn::http2::Builder::new(Executor);
            builder.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
            let (mut sender, connection) = builder.handshake(stream).await.expect("the handshake of HTTP/2");
            kittiwake::spawn(connection);
            let request = Request::get("http://host/large").body(Empty::<Bytes>::new()).unwrap();
            let mut body = sender.send_request(request).await.expect("an answer").into_body();
            if stops {
                server.shutdown.trigger();
            }
            let mut received = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame.unwrap_or_else(|error| panic!("cut off after {received} bytes: {error}"));
                received += frame.into_data().map_or(0, |data| data.len());
                sleep(LIMIT / 6).await;
            }
            assert_eq!(received, LARGE);
            server.errors.expect_none();
        }
    });
}

/// A client whose window is too small for a response is cut off, whether the response comes late or at once, and
/// whether or not the client sends pings meanwhile.
#[test]
fn closed_window_is_cut_off() {
    run(|| async {
        for (path, window) in [("/drip", 0), ("/path", 0), ("/large", 0), ("/large", 1)] {
            let limits = |serve: Started| serve.keep_alive_timeout(Duration::MAX).body_timeout(LIMIT);
            let server = Server::start(limits).await;
            let mut client = FrameClient::connect(&server, &[(INITIAL_WINDOW_SIZE, window)]).await;
            client.get(1, path).await;
            until(|| server.errors.has("does not read")).await;
            client.receive_all().await;
            let mut client = FrameClient::connect(&server, &[(INITIAL_WINDOW_SIZE, window)]).await;
            client.get(1, path).await;
            client.receive_kind(HEADERS).await;
            while client.stream.write_all(&frame(PING, 0, 0, b"are you?")).await.is_ok() {
                sleep(LIMIT / 5).await;
            }
        }
    });
}

/// A client that opens its window from time to time is not cut off.
#[test]
fn window_in_pieces_is_not_cut_off() {
    run(|| async {
        // Longer than a pause of a busy machine, and shorter than all steps together.
        let limit = LIMIT * 5;
        let server = Server::start(|serve| serve.body_timeout(limit).keep_alive_timeout(limit)).await;
        let mut client = FrameClient::connect(&server, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        client.get(1, "/path/0123456").await;
        client.receive_kind(HEADERS).await;
        for byte in b"/path/0123456" {
            sleep(limit / 10).await;
            client.send(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).await;
            assert_eq!(client.receive_kind(DATA).await.payload, [*byte]);
        }
        server.errors.expect_none();
    });
}

/// A tunnel of CONNECT counts as a request until its stream is dropped: no limit cuts it off, and the server waits for
/// it when it stops.
#[test]
fn connect_tunnel_is_not_cut_off() {
    run(|| async {
        let mut server = Server::start(|serve| serve.keep_alive_timeout(LIMIT).body_timeout(LIMIT)).await;
        let mut sender = server.http2().await;
        let request = Request::connect("host:80").body(Full::default()).unwrap();
        let response = sender.send_request(request).await.expect("an answer");
        let mut tunnel = Io::new(hyper::upgrade::on(response).await.expect("a tunnel"));
        let mut echoed = [0; 5];
        for stops in [false, true] {
            if stops {
                server.shutdown.trigger();
            }
            let ended = timeout(LIMIT * 2 + Duration::from_secs(1), server.ended()).await;
            assert!(ended.is_err(), "the server must wait for the tunnel");
            tunnel.write_all(b"bytes").await.expect("the tunnel is open");
            tunnel.flush().await.expect("the tunnel is open");
            tunnel.read_exact(&mut echoed).await.expect("the tunnel echoes");
            assert_eq!(&echoed, b"bytes");
        }
        drop(tunnel);
        server.ended().await;
    });
}

/// An idle connection after a tunnel is one as any other.
#[test]
fn connection_closes_after_its_tunnel() {
    run(|| async {
        let server = Server::start(|serve| serve.keep_alive_timeout(LIMIT)).await;
        let (mut sender, connection) = server.http2_parts().await;
        let connection = kittiwake::spawn(connection);
        let request = Request::connect("host:80").body(Full::default()).unwrap();
        let response = sender.send_request(request).await.expect("an answer");
        drop(hyper::upgrade::on(response).await.expect("a tunnel"));
        connection.await.unwrap().expect("the server closes gracefully");
    });
}

/// The answer to HEAD says how long the body is, and has none. Clients take a body for an error of the protocol.
#[test]
fn head_has_no_body() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut sender = server.http2().await;
        for path in ["/path", "/large"] {
            let response =
                sender.send_request(Request::head(format!("http://host{path}")).body(Full::default()).unwrap());
            let response = response.await.expect("an answer");
            let length = if path == "/large" { LARGE } else { path.len() };
            assert_eq!(response.headers()["content-length"], length.to_string());
            let body = response.into_body().collect().await.expect("an end").to_bytes();
            assert_eq!(body.len(), 0, "{path}");
        }
        drop(sender);
        assert_eq!(server.end().await.served, 1);
    });
}

/// A client sends pings and windows as long as it reads its responses. If the server has stopped and has handed all it
/// has to the kernel, it must not close the socket for good: the next ping would be answered by a reset, and the rest
/// is lost.
#[test]
fn reading_client_gets_all_when_server_stops() {
    const RESPONSES: usize = 10;
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = FrameClient::connect(&server, &[(INITIAL_WINDOW_SIZE, i32::MAX as u32)]).await;
        client.send(WINDOW_UPDATE, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes()).await;
        for request in 0..RESPONSES {
            client.get(2 * request as u32 + 1, "/large").await;
        }
        until(|| server.service.called() == RESPONSES).await;
        server.shutdown.trigger();
        read_with_windows(&mut client, RESPONSES * LARGE).await;
        drop(client);
        assert_eq!(server.end().await.served, 1);
    });
}

/// The same if the client is slow: it comes to the ping with which the server asks whether it knows of the end only
/// after the time of an idle connection.
#[test]
fn slow_client_gets_all_when_server_stops() {
    run(|| async {
        let server = Server::start(|serve| serve.drain_timeout(Duration::MAX)).await;
        let mut client = FrameClient::connect(&server, &[(INITIAL_WINDOW_SIZE, i32::MAX as u32)]).await;
        client.send(WINDOW_UPDATE, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes()).await;
        client.get(1, "/large").await;
        until(|| server.service.called() == 1).await;
        settle().await;
        pause();
        server.shutdown.trigger();
        sleep(Duration::from_secs(2)).await;
        resume();
        read_with_windows(&mut client, LARGE).await;
        assert_eq!(client.receive_all().await, Some(0), "the end is graceful");
        drop(client);
        assert_eq!(server.end().await.served, 1);
    });
}

/// Reads so many bytes of responses, and sends a window after each piece, as clients do.
async fn read_with_windows(client: &mut FrameClient, bytes: usize) {
    let mut received = 0;
    while received < bytes {
        let Some(next) = client.receive().await else {
            panic!("the connection ends after {received} bytes");
        };
        match next.kind {
            DATA => received += next.payload.len(),
            // The server has sent it to learn when the client knows of the end. An own one is acknowledged.
            PING => _ = client.stream.write_all(&frame(PING, 1, 0, &next.payload)).await,
            _ => continue,
        }
        // If this fails, the rest does not come either.
        let _ = client.stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())).await;
    }
}

/// A client that has sent no request and does not acknowledge the end of its connection holds up the end for three
/// seconds only: one for the acknowledgement, and two in which it may still read.
#[test]
fn silent_client_does_not_delay_the_end() {
    run(|| async {
        let forever = Duration::MAX;
        let server = Server::start(|serve| serve.header_read_timeout(forever).drain_timeout(forever)).await;
        let mut silent = FrameClient::connect(&server, &[]).await;
        let mut idle = FrameClient::connect(&server, &[]).await;
        idle.get(1, "/path").await;
        idle.receive_kind(HEADERS).await;
        silent.receive_kind(SETTINGS).await;
        // By the system's clock a busy machine adds to the second.
        pause();
        let start = Instant::now();
        let report = server.end().await;
        assert!(start.elapsed() < Duration::from_secs(4), "the end took {:?}", start.elapsed());
        assert_eq!((report.served, report.failed), (2, 0));
    });
}

/// Such a client does not outlast a short drain, and neither does one that has sent a part of a frame. Both count as
/// served.
#[test]
fn silent_clients_close_within_the_drain() {
    run(|| async {
        let server = Server::start(|serve| serve.drain_timeout(LIMIT)).await;
        let mut silent = FrameClient::connect(&server, &[]).await;
        let mut half = FrameClient::connect(&server, &[]).await;
        for client in [&mut silent, &mut half] {
            client.get(1, "/path").await;
            client.receive_kind(HEADERS).await;
        }
        half.stream.write_all(&frame(PING, 0, 0, b"are you?")[..12]).await.unwrap();
        settle().await;
        pause();
        let errors = server.errors.clone();
        let report = server.end().await;
        assert_eq!((report.served, report.failed, report.open.len()), (2, 0, 0));
        errors.expect_none();
    });
}

/// An error of the service ends its stream alone.
#[test]
fn service_error_ends_one_stream() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut sender = server.http2().await;
        let get = |path: &str| Request::get(format!("http://host{path}")).body(Full::default()).unwrap();
        sender.send_request(get("/error")).await.expect_err("the stream is reset");
        let mut client = FrameClient::connect(&server, &[]).await;
        // A path by which the service panics.
        client.send(HEADERS, END_HEADERS, 1, &head(b"\x83", "/panic")).await;
        client.get(3, "/path").await;
        assert_eq!(client.receive_kind(HEADERS).await.stream, 3);
        let response = sender.send_request(get("/path")).await.expect("the next request is answered");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "/path");
        server.errors.expect_none();
    });
}

/// A panic in a service ends its stream. Others of the same connection are answered.
#[test]
fn panic_ends_one_stream() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut sender = server.http2().await;
        let mut get =
            |path| sender.send_request(Request::get(format!("http://host{path}")).body(Full::default()).unwrap());
        let (first, panicking, last) = (get("/path/1"), get("/panic"), get("/path/2"));
        panicking.await.expect_err("the stream of the panic is reset");
        for (response, path) in [(first, "/path/1"), (last, "/path/2")] {
            let response = response.await.expect("the other streams are answered");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), path);
        }
    });
}

/// A service that panics in its call ends the connection. The requests that have arrived with that one are dropped with
/// it: none of them is left to run beside another connection.
#[test]
fn panic_in_call_drops_other_requests() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = FrameClient::connect(&server, &[]).await;
        let get = |stream, path| frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(b"\x82", path));
        // One segment, so that one poll of the connection takes both.
        let both = [get(1, "/path"), get(3, "/panic-in-call")].concat();
        client.stream.write_all(&both).await.expect("the server reads");
        client.receive_all().await;
        assert_eq!(server.service.called(), 2);
        assert_eq!(server.service.handling(), 0, "the first request outlives its connection");
        assert_eq!(server.end().await.panicked, 1);
    });
}

/// A burst of requests is answered, with more than a poll of the connection's task may answer by itself.
#[test]
fn burst_of_requests_is_answered() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut sender = server.http2().await;
        let mut get =
            |n| sender.send_request(Request::get(format!("http://host/path/{n}")).body(Full::default()).unwrap());
        let responses: Vec<_> = (0..150).map(|n| (n, get(n))).collect();
        for (n, response) in responses {
            let response = response.await.unwrap_or_else(|error| panic!("request {n}: {error}"));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), format!("/path/{n}"));
        }
        assert_eq!(server.service.called(), 150);
    });
}
