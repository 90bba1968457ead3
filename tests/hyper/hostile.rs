//! Laws about hostile clients: each costs its own connection at most, others are served meanwhile, nothing panics, and
//! the server ends.
// Some tests need Linux.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unused_imports))]

use std::fs;
use std::time::Duration;

use kittiwake::io::AsyncWriteExt;
use kittiwake::net::TcpStream;
use kittiwake::time::{Instant, pause, resume, sleep};

use crate::LIMIT;
use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameClient, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame, head,
};
use crate::server::{Server, Started, get, read_all, response};
use crate::support::{in_child_with_descriptors, in_own_process, is_child, pattern, run, until, will_reset};

// ---- HTTP/1 ----

/// A malformed head is refused, and no handler sees it. That holds for all forms that two servers might read differently.
#[test]
fn malformed_head_is_refused() {
    let in_header = |line: &str| format!("POST /echo HTTP/1.1\r\nhost: x\r\n{line}\r\n\r\n0\r\n\r\n").into_bytes();
    let requests: Vec<(&str, Vec<u8>)> = vec![
        ("400", in_header("content-length: 5\r\ncontent-length: 0")),
        ("400", in_header("content-length: 5, 5")),
        ("400", in_header("content-length: +5")),
        ("400", in_header("content-length: -1")),
        ("400", in_header("content-length: 0x5")),
        ("400", in_header("content-length: 5 5")),
        ("400", in_header("content-length: 99999999999999999999")),
        ("400", in_header("content-length : 5")),
        ("400", in_header("transfer-encoding:\r\n chunked")),
        ("400", in_header("transfer-encoding: xchunked")),
        ("400", in_header("transfer-encoding: identity")),
        ("400", in_header("transfer-encoding: chunked, identity")),
        ("400", in_header("transfer-encoding: chunked\r\ntransfer-encoding: identity")),
        ("400", in_header("transfer-encoding : chunked")),
        ("400", in_header("\ttransfer-encoding: chunked")),
        ("400", in_header("a: b\rtransfer-encoding: chunked")),
        ("400", in_header("a: b\0c")),
        ("400", in_header("a\0: b")),
        ("400", in_header("a b: c")),
        ("400", in_header(": a")),
        ("400", b"POST /echo HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        ("400", b"GET /pa\0th HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("400", b"GET /path HTTP/1.1\rhost: x\r\r".to_vec()),
        ("400", b"GET  /path HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("400", b"GET /path HTTP/1.2\r\nhost: x\r\n\r\n".to_vec()),
        ("400", b"GET /path HTTP/3.0\r\nhost: x\r\n\r\n".to_vec()),
        ("400", b"GET /path\r\n\r\n".to_vec()),
        ("400", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec()),
        // A client that speaks TLS.
        ("400", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a hello of TLS".to_vec()),
        ("400", pattern(10_000)),
        ("414", [b"GET /".to_vec(), vec![b'a'; 70_000], b" HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()].concat()),
        ("431", [b"GET /".to_vec(), vec![b'a'; 1 << 20]].concat()),
        ("431", [b"GET / HTTP/1.1\r\nhost: x\r\na: ".to_vec(), vec![b'a'; 1 << 20]].concat()),
        ("431", [b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(101), b"\r\n".to_vec()].concat()),
        ("431", [b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(200_000)].concat()),
        ("431", b"\r\n".repeat(1 << 20)),
    ];
    run(|| async move {
        let server = Server::start(|serve| serve).await;
        let count = requests.len();
        for (status, request) in requests {
            let answer = exchange(&server, request.clone()).await;
            let start = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{start:?}\nwas answered by\n{answer:?}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{start:?}\nwas answered by\n{answer:?}");
        }
        assert_eq!(server.service.called(), 0, "no handler may see a malformed request");
        until(|| server.errors.len() == count).await;
        expect_service(server).await;
    });
}

/// Bytes that follow a request with two lengths, or a malformed body, are not taken as a request.
#[test]
fn smuggled_request_is_not_served() {
    let chunked = |body: &str| format!("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    let requests = vec![
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n".to_owned(),
        chunked("fffffffffffffffff\r\nbody\r\n0\r\n\r\n"),
        chunked("ffffffffffffffff\r\nbody\r\n0\r\n\r\n"),
        chunked("-4\r\nbody\r\n0\r\n\r\n"),
        chunked("0x4\r\nbody\r\n0\r\n\r\n"),
        chunked("4\nbody\n0\n\n"),
        chunked("4\r\nbodyXX0\r\n\r\n"),
        chunked("4 4\r\nbody\r\n0\r\n\r\n"),
        chunked("4\r\nbody\r\n0\r\ntransfer-encoding chunked\r\n\r\n"),
        chunked(&format!("4;{}\r\nbody\r\n0\r\n\r\n", "a".repeat(1 << 20))),
        chunked(&("1;an extension of a chunk\r\nb\r\n".repeat(10_000) + "0\r\n\r\n")),
        chunked(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(100_000))),
    ];
    run(|| async move {
        for request in requests {
            let server = Server::start(|serve| serve).await;
            let smuggled = get("/smuggled");
            let answer = exchange(&server, format!("{request}{smuggled}").into_bytes()).await;
            let start = &request[..request.len().min(200)];
            assert!(!answer.contains("smuggled"), "{start:?}\nwas answered by\n{answer}");
            assert_eq!(server.service.called(), 1, "{start:?}\nwas answered by\n{answer}");
            expect_service(server).await;
        }
    });
}

/// Endless heads need bounded memory, also on many connections.
#[cfg(target_os = "linux")]
#[test]
fn header_flood_needs_bounded_memory() {
    const CLIENTS: usize = 30;
    in_own_process("hostile::header_flood_needs_bounded_memory", || {
        run(|| async {
            let server = Server::start(|serve| serve).await;
            let before = peak_memory();
            let floods: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let address = server.address;
                    kittiwake::spawn(async move {
                        let mut stream = TcpStream::connect(address).await.expect("the server accepts");
                        stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("the server reads");
                        let line = b"a: a header that the server must not keep for ever\r\n".repeat(100);
                        // 16 MiB, if the server reads as much.
                        for _ in 0..3_200 {
                            if stream.write_all(&line).await.is_err() {
                                break;
                            }
                        }
                    })
                })
                .collect();
            for flood in floods {
                flood.await.unwrap();
            }
            let used = peak_memory() - before;
            assert!(used < CLIENTS << 20, "{CLIENTS} heads took {used} bytes");
            expect_service(server).await;
        });
    });
}

/// A crowd of slow clients is cut off, and others are served at once meanwhile.
#[test]
fn slow_crowd_is_cut_off() {
    const CROWD: usize = 500;
    if !is_child() {
        // Both ends of the crowd's connections, and some more.
        return in_child_with_descriptors("hostile::slow_crowd_is_cut_off", 2 * CROWD as u32 + 100);
    }
    run(|| async {
        let limit = Duration::from_secs(2);
        let server = Server::start(|serve| serve.header_read_timeout(limit)).await;
        // On a busy machine a request may take long by itself. This clock moves only when all that is left to do is to
        // wait for a limit or for the crowd.
        pause();
        let mut crowd = Vec::new();
        for number in 0..CROWD {
            let mut client = server.connect().await;
            will_reset(&client);
            crowd.push(kittiwake::spawn(async move {
                let request = format!("GET /slow/{number} HTTP/1.1\r\na-header-that-never-ends: ");
                for byte in request.bytes().chain(std::iter::repeat(b'a')) {
                    if client.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    sleep(limit / 20).await;
                }
            }));
        }
        let mut slowest = Duration::ZERO;
        while server.stats.open() > 0 {
            let started = Instant::now();
            let mut client = server.connect().await;
            will_reset(&client);
            client.write_all(get("/path").as_bytes()).await.unwrap();
            assert_eq!(response(&mut client).await.1, b"/path");
            slowest = slowest.max(started.elapsed());
            drop(client);
            sleep(limit / 50).await;
        }
        assert!(slowest < limit / 2, "a request took {slowest:?} beside the crowd");
        for client in crowd {
            client.await.unwrap();
        }
        resume();
        assert_eq!(server.errors.len(), CROWD, "each slow client is an error");
        expect_service(server).await;
    });
}

// ---- HTTP/2 ----

/// Streams that are opened and reset at once do not hold up others. If the client overdoes it, its connection ends.
#[test]
fn rapid_reset_harms_no_other() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = FrameClient::connect(&server, &[]).await;
        let mut attack = Vec::new();
        for stream in (1..40_000).step_by(2) {
            attack.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(b"\x82", "/wait")));
            attack.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        }
        let address = server.address;
        let other = kittiwake::spawn(async move {
            for _ in 0..50 {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(get("/path").as_bytes()).await.unwrap();
                assert_eq!(response(&mut client).await.1, b"/path");
            }
        });
        // The server may close in the middle of the attack.
        let _ = client.stream.write_all(&attack).await;
        client.receive_kind(GOAWAY).await;
        other.await.unwrap();
        until(|| server.service.waiting() == 0).await;
        drop(client);
        expect_service(server).await;
    });
}

/// A head in endless pieces ends its connection, and is not kept.
#[test]
fn continuation_flood_ends_its_connection() {
    run(|| async {
        let server = Server::start(|serve| serve).await;
        let mut client = FrameClient::connect(&server, &[]).await;
        client.send(HEADERS, END_STREAM, 1, &head(b"\x82", "/path")).await;
        // A header of its own in each piece: a literal with a new name.
        let mut piece = b"\x00\x01a\x7f\x80\x7e".to_vec();
        piece.resize(6 + 127 + 126, b'a');
        let mut sent = 0;
        while client.stream.write_all(&frame(CONTINUATION, 0, 1, &piece)).await.is_ok() {
            sent += 1;
            assert!(sent < 100_000, "the server still reads after {sent} pieces");
        }
        assert_eq!(server.service.called(), 0);
        expect_service(server).await;
    });
}

/// A client that floods with pings or settings and does not read is cut off. The server does not queue the answers.
#[test]
fn flood_of_pings_is_cut_off() {
    run(|| async {
        for flood in [frame(PING, 0, 0, b"are you?"), frame(SETTINGS, 0, 0, &[])] {
            let limits = |serve: Started| serve.body_timeout(LIMIT).header_read_timeout(Duration::MAX);
            let server = Server::start(limits).await;
            let mut client = FrameClient::connect(&server, &[]).await;
            let flood = flood.repeat(1_000);
            while client.stream.write_all(&flood).await.is_ok() {}
            until(|| server.errors.has("does not read")).await;
            expect_service(server).await;
        }
    });
}

/// A frame that breaks the protocol ends its connection.
#[test]
fn wrong_frame_ends_its_connection() {
    let headers = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(b"\x82", "/path"));
    let frames = vec![
        ("a stream of the server", headers(2)),
        ("stream 0", headers(0)),
        ("a stream lower than the last", [headers(5), headers(3)].concat()),
        ("data of an idle stream", frame(DATA, END_STREAM, 1, b"data")),
        ("a frame of 1 MiB", frame(HEADERS, 0, 1, &vec![0; 1 << 20])),
        ("a table index of HPACK that is not there", frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff\xff\xff\x7f")),
        ("a setting of 5 bytes", frame(SETTINGS, 0, 0, b"12345")),
        ("a window over 2^31", frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff").repeat(2)),
        ("a window of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a ping of 4 bytes", frame(PING, 0, 0, b"ping")),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, b"")),
        ("a ping between the pieces of a head", [frame(HEADERS, 0, 1, b"\x82"), frame(PING, 0, 0, &[0; 8])].concat()),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        ("garbage", pattern(10_000)),
    ];
    run(|| async move {
        let server = Server::start(|serve| serve).await;
        for (what, frames) in frames {
            let mut client = FrameClient::connect(&server, &[]).await;
            // The server may close before it has read all.
            let _ = client.stream.write_all(&frames).await;
            let reason = client.receive_all().await;
            assert!(reason.is_none_or(|reason| reason != 0), "{what}: the server found no error");
        }
        expect_service(server).await;
    });
}

/// More streams than allowed are refused one by one, and the connection goes on.
#[test]
fn streams_over_the_limit_are_refused() {
    run(|| async {
        let server = Server::start(|serve| {
            serve.http2(|http2| {
                http2.max_concurrent_streams(10);
            })
        })
        .await;
        let mut client = FrameClient::connect(&server, &[]).await;
        for stream in (1..=21).step_by(2) {
            client.get(stream, "/wait").await;
        }
        assert_eq!(client.receive_kind(RST_STREAM).await.stream, 21);
        until(|| server.service.waiting() == 10).await;
        client.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]).await;
        client.get(23, "/path").await;
        assert_eq!(client.receive_kind(HEADERS).await.stream, 23);
        drop(client);
        until(|| server.service.waiting() == 0).await;
        expect_service(server).await;
    });
}

// ---- helpers ----

/// Sends `request` and returns all that the server answers.
async fn exchange(server: &Server, request: Vec<u8>) -> String {
    let (mut reader, mut writer) = server.connect().await.into_split();
    let sender = kittiwake::spawn(async move {
        // The server may close in the middle of a long request.
        let _ = writer.write_all(&request).await;
        let _ = writer.close().await;
    });
    let answer = read_all(&mut reader).await;
    drop(reader);
    sender.await.unwrap();
    answer
}

/// Expects that the server serves another client, and ends, and that nothing has panicked.
async fn expect_service(server: Server) {
    let mut client = server.connect().await;
    client.write_all(get("/path").as_bytes()).await.unwrap();
    assert_eq!(response(&mut client).await.1, b"/path");
    drop(client);
    let report = server.end().await;
    assert_eq!((report.panicked, report.open.len()), (0, 0), "the report: {report}");
}

/// The most memory that this process has had.
fn peak_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}
