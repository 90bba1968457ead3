//! The example `axum`, with curl and tungstenite as clients. `tests/browser.py` tries its page.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use async_tungstenite::tungstenite::client::IntoClientRequest;
use async_tungstenite::tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use async_tungstenite::tungstenite::{Message, client};

use super::program::{Program, run, succeeds, within};
use super::web_socket::{self, Client, closed, cut_off};

const JSON: &str = "content-type: application/json";

#[track_caller]
fn start(seconds: &str) -> Program {
    Program::start("axum", env!("CARGO_BIN_EXE_axum"), &["127.0.0.1:0", seconds])
}

/// A WebSocket client of the chat.
#[track_caller]
fn connect(server: &Program) -> Client {
    web_socket::connect(server, "/socket")
}

fn json(text: &str) -> String {
    format!(r#"{{"name":"test","text":"{text}"}}"#)
}

#[track_caller]
fn say(client: &mut Client, text: &str) {
    client.send(Message::text(json(text))).expect("send");
}

/// Fails unless the next message, apart from pings, has this text.
#[track_caller]
fn expect(client: &mut Client, text: &str) {
    web_socket::expect(client, &Message::text(json(text)));
}

/// Runs curl. Returns the status and the body of the response.
#[track_caller]
fn curl(server: &Program, path: &str, args: &[&str]) -> (String, String) {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "-m", "30", "-w", "\n%{http_code}"])
        .args(args)
        .arg(format!("http://{}{path}", server.address));
    let output = run(&mut command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} fails: {errors}");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let (body, status) = printed.rsplit_once('\n').expect("a line for the status");
    (status.to_owned(), body.to_owned())
}

fn has_curl() -> bool {
    let has = succeeds(Command::new("curl").arg("--version"));
    if !has {
        eprintln!("skipped: curl is missing");
    }
    has
}

/// A message that is posted as JSON is in the list, in order. One that is no message is refused, with a reason.
#[test]
fn posted_messages_are_listed() {
    within(|| {
        if !has_curl() {
            return;
        }
        let mut server = start("60");
        assert_eq!(curl(&server, "/messages", &[]), ("200".into(), "[]".into()));
        for text in ["one", "two"] {
            let posted = curl(&server, "/messages", &["-H", JSON, "-d", &json(text)]);
            assert_eq!(posted, ("201".into(), "".into()));
        }
        let long = json(&"x".repeat(5000));
        let refused: [(&str, &[&str]); 5] = [
            ("400", &["-H", JSON, "-d", "{"]),
            ("413", &["-H", JSON, "-d", &long]),
            ("415", &["-d", &json("a form")]),
            ("422", &["-H", JSON, "-d", "[]"]),
            ("422", &["-H", JSON, "-d", &json("")]),
        ];
        for (expected, args) in refused {
            let (status, reason) = curl(&server, "/messages", args);
            assert!(status == expected && !reason.is_empty(), "{args:?} must get {expected}: {status} {reason}");
        }
        let listed = format!("[{},{}]", json("one"), json("two"));
        assert_eq!(curl(&server, "/messages", &[]), ("200".into(), listed));
        let (status, page) = curl(&server, "/", &[]);
        assert!(status == "200" && page.starts_with("<!doctype html>"), "{status} {page}");
        assert_eq!(curl(&server, "/nothing", &[]).0, "404");
        server.terminate();
        let (report, errors) = server.ended();
        assert!(report.starts_with("11 accepted: 11 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// Each event comes when its message is said, and comments come in between. The end of the server ends the stream.
#[test]
fn events_arrive_one_by_one() {
    within(|| {
        if !has_curl() {
            return;
        }
        let mut server = start("1");
        let mut command = Command::new("curl");
        command.args(["-sSNi", "-m", "50"]).arg(format!("http://{}/events", server.address)).stdout(Stdio::piped());
        let mut listener = command.spawn().expect("curl starts");
        let stdout = BufReader::new(listener.stdout.take().expect("stdout is piped"));
        let mut lines = stdout.lines().map_while(Result::ok).map(|line| line.trim_end().to_owned());
        // The response comes once the server has put this client on its list.
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let is_events = head.iter().any(|line| line.eq_ignore_ascii_case("content-type: text/event-stream"));
        assert!(head[0] == "HTTP/1.1 200 OK" && is_events, "{head:#?}");
        let mut next = |kind: &str| lines.find(|line| line.starts_with(kind)).expect("the stream goes on");
        for text in ["one", "two\\nlines"] {
            curl(&server, "/messages", &["-H", JSON, "-d", &json(text)]);
            assert_eq!(next("data"), format!("data: {}", json(text)), "each message is one event");
            assert_eq!(next(":"), ": nothing new");
        }
        server.terminate();
        assert!(listener.wait().expect("curl ends").success(), "curl must see an orderly end");
        let (report, errors) = server.ended();
        assert!(report.starts_with("3 accepted: 3 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A message reaches every client once, and a new client gets those before it. The server's end closes each socket.
#[test]
fn chat_reaches_all_clients() {
    within(|| {
        let mut server = start("60");
        let (mut first, mut second) = (connect(&server), connect(&server));
        // Its own message shows that the second client has joined.
        say(&mut second, "hello");
        expect(&mut second, "hello");
        say(&mut first, "hi");
        expect(&mut second, "hi");
        // The first client has joined before or after the hello, and gets it in either case.
        expect(&mut first, "hello");
        expect(&mut first, "hi");
        let mut third = connect(&server);
        expect(&mut third, "hello");
        expect(&mut third, "hi");
        first.close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })).expect("close");
        assert_eq!(closed(&mut first).map(|frame| frame.code), Some(CloseCode::Normal));
        server.terminate();
        for mut client in [second, third] {
            assert_eq!(closed(&mut client).map(|frame| frame.code), Some(CloseCode::Away));
        }
        let (report, errors) = server.ended();
        assert!(report.starts_with("3 accepted: 3 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A client may close its socket while others talk. That is no error.
#[test]
fn close_amid_messages_is_orderly() {
    within(|| {
        let mut server = start("60");
        let mut talks = connect(&server);
        for _ in 0..30 {
            let mut leaves = connect(&server);
            say(&mut talks, "before");
            leaves.close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })).expect("close");
            say(&mut talks, "after");
            expect(&mut talks, "before");
            expect(&mut talks, "after");
            assert_eq!(closed(&mut leaves).map(|frame| frame.code), Some(CloseCode::Normal));
        }
        server.terminate();
        assert_eq!(closed(&mut talks).map(|frame| frame.code), Some(CloseCode::Away));
        let (report, errors) = server.ended();
        assert!(report.starts_with("31 accepted: 31 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A client that never reads is cut off, and the others get every message.
#[test]
fn unread_socket_is_cut_off() {
    within(|| {
        let server = start("2");
        let (never_reads, mut talks) = (connect(&server), connect(&server));
        let (text, done) = ("x".repeat(4000), AtomicBool::new(false));
        let (error, ended) = thread::scope(|scope| {
            // The queue, the send buffer and the client's receive buffer hold 200 of these messages or so. This client
            // goes on until the other one is cut off: it answers its pings while it reads.
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    say(&mut talks, &text);
                    expect(&mut talks, &text);
                }
            });
            let error = server.error();
            let ended = cut_off(never_reads.get_ref());
            done.store(true, Relaxed);
            (error, ended)
        });
        assert!(error.contains("it reads too slowly"), "{error}");
        ended.unwrap();
        say(&mut talks, "still here");
        expect(&mut talks, "still here");
    });
}

/// A client that answers no ping is cut off. One that answers may be silent.
#[test]
fn unanswered_pings_cut_off() {
    within(|| {
        let server = start("3");
        let (mut alive, dead) = (connect(&server), connect(&server));
        // The pings are a third of the time apart, so this takes longer than a client may be silent.
        for _ in 0..5 {
            assert!(alive.read().expect("a ping").is_ping());
        }
        let error = server.error();
        assert!(error.contains("it is silent"), "{error}");
        cut_off(dead.get_ref()).unwrap();
        say(&mut alive, "still here");
        expect(&mut alive, "still here");
    });
}

/// A request that is no handshake, or that comes from the page of another site, is refused. A text that is no message
/// closes its socket.
#[test]
fn wrong_clients_are_refused() {
    within(|| {
        let server = start("60");
        let address = server.address;
        let status = |origin: String| {
            let mut request = format!("ws://{address}/socket").into_client_request().expect("a request");
            request.headers_mut().insert("origin", origin.parse().expect("a header"));
            client(request, server.connect()).map(|_| 101).map_err(|error| error.to_string())
        };
        assert_eq!(status(format!("http://{address}")), Ok(101));
        for other in ["http://example.com", "null"] {
            let refused = status(other.to_owned()).expect_err("another site is refused");
            assert!(refused.contains("403"), "{refused}");
        }
        if has_curl() {
            let (status, reason) = curl(&server, "/socket", &[]);
            assert!(status == "400" && !reason.is_empty(), "{status} {reason}");
        }
        let mut wrong = connect(&server);
        wrong.send(Message::text("hello")).expect("send");
        assert_eq!(closed(&mut wrong).map(|frame| frame.code), Some(CloseCode::Policy));
    });
}
