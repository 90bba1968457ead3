//! The example `websocket`, with tungstenite and Python's websockets as clients.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use async_tungstenite::tungstenite::Message;
use async_tungstenite::tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};

use super::program::{Program, run, succeeds, within};
use super::web_socket::{self, Client, closed, cut_off, expect};

#[track_caller]
fn start(seconds: &str) -> Program {
    Program::start("websocket", env!("CARGO_BIN_EXE_websocket"), &["127.0.0.1:0", seconds])
}

#[track_caller]
fn connect(server: &Program) -> Client {
    web_socket::connect(server, "/")
}

/// A message goes to all clients, a ping is answered with its own bytes, and a close with a close.
#[test]
fn message_goes_to_all() {
    within(|| {
        let mut server = start("60");
        let (mut first, mut second) = (connect(&server), connect(&server));
        // Its own message shows that the second client has joined.
        for message in [Message::text("hello"), Message::binary(vec![7; 60_000])] {
            second.send(message.clone()).expect("send");
            expect(&mut second, &message);
            first.send(message.clone()).expect("send");
            expect(&mut second, &message);
        }
        first.send(Message::Ping("are you there".into())).expect("send");
        let answered = std::iter::from_fn(|| first.read().ok()).find(Message::is_pong);
        assert_eq!(answered, Some(Message::Pong("are you there".into())));
        first.close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })).expect("close");
        assert_eq!(closed(&mut first).map(|frame| frame.code), Some(CloseCode::Normal));
        server.terminate();
        assert_eq!(closed(&mut second).map(|frame| frame.code), Some(CloseCode::Away));
        let (report, errors) = server.ended();
        assert!(report.starts_with("2 accepted: 2 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A client that leaves while others talk leaves in good order: the server sends it no message after its close.
#[test]
fn close_amid_messages_is_orderly() {
    within(|| {
        let mut server = start("60");
        let (mut talks, stop) = (connect(&server), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let talks = thread::spawn(move || {
            while !stopped.load(SeqCst) {
                talks.send(Message::text("hello")).expect("send");
                expect(&mut talks, &Message::text("hello"));
            }
            talks.close(None).expect("close");
            closed(&mut talks);
        });
        for _ in 0..100 {
            let mut leaves = connect(&server);
            leaves.close(None).expect("close");
            closed(&mut leaves);
        }
        stop.store(true, SeqCst);
        talks.join().expect("no panic");
        server.terminate();
        let (report, errors) = server.ended();
        assert!(errors.is_empty() && report.starts_with("101 accepted: 101 served"), "{report}{errors:?}");
    });
}

/// Python's websockets, an independent implementation, agrees on the handshake, messages, pings and the close.
#[test]
fn python_client_agrees() {
    const SCRIPT: &str = "
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1]) as client:
        for message in ['hello', 'x' * 65536, b'bytes']:
            await client.send(message)
            assert await client.recv() == message
        await (await client.ping())
    assert client.close_code == 1000, client.close_code
asyncio.run(asyncio.wait_for(main(), 30))
";
    within(|| {
        // Debian's own Python has Debian's packages.
        let python = ["/usr/bin/python3", "python3"].into_iter();
        let Some(python) =
            python.into_iter().find(|python| succeeds(Command::new(python).args(["-c", "import websockets"])))
        else {
            return eprintln!("skipped: python3-websockets is missing");
        };
        let mut server = start("60");
        let output = run(Command::new(python).args(["-c", SCRIPT, &format!("ws://{}/", server.address)]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.terminate();
        let (report, errors) = server.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A client that never reads is cut off when its time to read a message is over. The others get every message.
#[test]
fn client_that_never_reads_is_cut_off() {
    within(|| {
        let server = start("2");
        let (never_reads, mut talks) = (connect(&server), connect(&server));
        flood(&mut talks);
        // A client that waits here without reading would answer no ping.
        talks.close(None).expect("close");
        closed(&mut talks);
        let error = server.error();
        assert!(error.contains("it reads too slowly"), "{error}");
        cut_off(never_reads.get_ref()).unwrap();
        let mut late = connect(&server);
        late.send(Message::text("hello")).expect("send");
        expect(&mut late, &Message::text("hello"));
    });
}

/// A client that reads, but more slowly than the others talk, is cut off once its queue is full.
#[test]
fn slow_client_is_cut_off() {
    within(|| {
        let server = start("600");
        let (mut slow, mut talks) = (connect(&server), connect(&server));
        let slow = thread::spawn(move || {
            while slow.read().is_ok() {
                thread::park_timeout(Duration::from_millis(100));
            }
        });
        flood(&mut talks);
        let error = server.error();
        assert!(error.contains("it reads too slowly"), "{error}");
        slow.join().expect("no panic");
    });
}

/// Sends 30 MB to all clients, and reads them. The queue and the kernel hold less than half of that for a client.
#[track_caller]
fn flood(talks: &mut Client) {
    let message = Message::binary(vec![1; 60_000]);
    for _ in 0..500 {
        talks.send(message.clone()).expect("send");
        expect(talks, &message);
    }
}

/// A message that is too long closes its connection, with the reason. It reaches no other client.
#[test]
fn long_message_is_refused() {
    within(|| {
        let server = start("60");
        let (mut sender, mut other) = (connect(&server), connect(&server));
        // The server does not read all of this, which must not turn the end into a reset.
        sender.send(Message::binary(vec![0; 900_000])).expect("send");
        assert_eq!(closed(&mut sender).map(|frame| frame.code), Some(CloseCode::Size));
        drop(sender);
        let error = server.error();
        assert!(error.contains("too long"), "{error}");
        other.send(Message::text("hello")).expect("send");
        expect(&mut other, &Message::text("hello"));
    });
}

/// Clients that send no handshake, or that answer no ping, are cut off. A client that answers pings may be silent.
#[test]
fn pings_find_dead_clients() {
    within(|| {
        let server = start("2");
        let no_handshake = server.connect();
        let mut alive = connect(&server);
        let dead = connect(&server);
        // The pings are a third of the time apart, so this takes longer than a client may be silent.
        for _ in 0..5 {
            assert!(alive.read().expect("a ping").is_ping());
        }
        cut_off(&no_handshake).unwrap();
        cut_off(dead.get_ref()).unwrap();
        alive.send(Message::text("still here")).expect("send");
        expect(&mut alive, &Message::text("still here"));
    });
}

/// A client that sends its handshake byte by byte is cut off when the time for a handshake is over.
#[test]
fn slow_handshake_is_cut_off() {
    within(|| {
        let server = start("1");
        let mut client = server.connect();
        client.write_all(b"GET / HTTP/1.1\r\nX: ").expect("write");
        let sent_all = [b'x'; 200].chunks(1).all(|byte| {
            thread::park_timeout(Duration::from_millis(30));
            client.write_all(byte).is_ok()
        });
        assert!(!sent_all, "the client could send a header for six seconds");
        let error = server.error();
        assert!(error.contains("handshake takes too long"), "{error}");
    });
}
