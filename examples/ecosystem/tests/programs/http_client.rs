//! The example `http_client`, with the examples `https` and `axum` as servers, and servers that answer wrongly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

use super::https::Server;
use super::program::{Folder, Program, run, within};

/// Runs the client. Returns its status, and what it writes to stdout and stderr.
#[track_caller]
fn client(args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(Command::new(env!("CARGO_BIN_EXE_http_client")).args(args));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A server for one connection. It sends `answer` once it has a whole head, and then waits for the client's end if it
/// `waits`.
fn server(answer: &'static str, waits: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        let mut stream = BufReader::new(stream);
        for line in stream.by_ref().lines() {
            if line?.is_empty() {
                break;
            }
        }
        stream.get_ref().write_all(answer.as_bytes())?;
        // A second connection is refused, because nothing listens any more.
        drop(listener);
        if waits { stream.read_to_end(&mut Vec::new()).map(drop) } else { Ok(()) }
    });
    address
}

/// Several requests use one connection. The bodies go to stdout, and the heads to stderr.
#[test]
fn requests_share_a_connection() {
    within(|| {
        let mut https = Server::start("client-pool", "60");
        let url = https.url("/");
        let (status, bodies, heads) = client(&["--cacert", &https.certificate(), &url, &url, &url]);
        assert_eq!((status, bodies.as_str()), (Some(0), "hello over HTTP/2.0\n".repeat(3).as_str()), "{heads}");
        assert_eq!(heads.matches("HTTP/2.0 200 OK\n").count(), 3, "{heads}");
        assert!(heads.contains("content-type: text/plain; charset=utf-8\n"), "{heads}");
        https.program.terminate();
        let (report, errors) = https.program.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
        let mut axum = Program::start("axum", env!("CARGO_BIN_EXE_axum"), &["127.0.0.1:0"]);
        let url = format!("http://{}/messages", axum.address);
        let (status, bodies, heads) = client(&[&url, &url]);
        assert_eq!((status, bodies.as_str()), (Some(0), "[][]"), "{heads}");
        axum.terminate();
        let (report, _) = axum.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}");
    });
}

/// A body is written as it comes, and not at its end.
#[test]
fn body_is_written_as_it_comes() {
    within(|| {
        let mut axum = Program::start("axum", env!("CARGO_BIN_EXE_axum"), &["127.0.0.1:0", "1"]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_http_client"));
        command.arg(format!("http://{}/events", axum.address)).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut client = command.spawn().expect("the client starts");
        let stdout = BufReader::new(client.stdout.take().expect("stdout is piped"));
        let mut lines = stdout.lines().map_while(Result::ok);
        for _ in 0..2 {
            assert_eq!(lines.next().as_deref(), Some(": nothing new"));
            assert_eq!(lines.next().as_deref(), Some(""));
        }
        axum.terminate();
        lines.for_each(drop);
        assert!(client.wait().expect("the client ends").success(), "the end of a stream is no failure");
        axum.ended();
    });
}

/// A failure has its status and its reason. The other addresses are asked all the same.
#[test]
fn failures_say_why() {
    within(|| {
        let https = Server::start("client-fails", "60");
        let moved = server("HTTP/1.1 302 Found\r\nlocation: /else\r\ncontent-length: 0\r\n\r\n", true);
        let (closed, cut) = (server("", false), server("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", false));
        let cases = [
            // No server listens on the port of tcpmux.
            ("http://127.0.0.1:1/".to_owned(), "", "127.0.0.1:1: "),
            (format!("http://{moved}/"), "", "302 Found: ask /else instead"),
            (https.url("/nothing"), "there is no /nothing\n", "404 Not Found"),
            (format!("http://{closed}/"), "", "connection closed before message completed"),
            (format!("http://{cut}/"), "half", "end of file before message length reached"),
        ];
        for (url, body, reason) in cases {
            let good = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\ngood\n", true);
            let (status, bodies, errors) =
                client(&["--cacert", &https.certificate(), &url, &format!("http://{good}/")]);
            let named = errors.lines().find(|line| line.starts_with(&format!("http_client: {url}: ")));
            assert!(named.is_some_and(|line| line.contains(reason)), "{url} must fail by {reason:?}: {errors}");
            assert_eq!((status, bodies), (Some(1), format!("{body}good\n")), "{errors}");
        }
    });
}

/// A server that does not answer, or that pauses in its answer, is given up when the time is over.
#[test]
fn silent_servers_are_given_up() {
    within(|| {
        let cases = [
            ("0.5", "", "", "the server does not answer within 500ms"),
            // The head must come within the time too.
            ("3", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "half", "no more came for 3s"),
        ];
        for (seconds, answer, body, reason) in cases {
            let url = format!("http://{}/", server(answer, true));
            let (status, bodies, errors) = client(&["--timeout", seconds, &url]);
            assert!(errors.contains(reason), "{errors}");
            assert_eq!((status, bodies.as_str()), (Some(1), body), "{errors}");
        }
    });
}

/// A server with a certificate that the client does not trust gets no request.
#[test]
fn unknown_certificate_is_refused() {
    within(|| {
        let (mut server, other) = (Server::start("client-server", "60"), Server::start("client-other", "60"));
        for args in [&["--cacert", &other.certificate(), &server.url("/")][..], &[&server.url("/")]] {
            let (status, body, errors) = client(args);
            assert!(status == Some(1) && body.is_empty(), "{status:?} {body}");
            assert!(errors.contains("invalid peer certificate"), "{errors}");
        }
        server.program.terminate();
        let (report, _) = server.program.ended();
        assert!(report.starts_with("2 accepted: 0 served"), "{report}");
    });
}

/// Arguments that are wrong end the client before its first request, with its usage or the reason.
#[test]
fn wrong_arguments_are_explained() {
    within(|| {
        let folder = Folder::new("client-arguments");
        let empty = folder.file("empty.pem");
        std::fs::write(&empty, "").expect("write");
        let cases: [(&[&str], &str); 6] = [
            (&[], "usage: http_client"),
            (&["127.0.0.1:80"], "\"127.0.0.1:80\" is no http:// or https:// address"),
            (&["http://127.0.0.1/", "ftp://127.0.0.1/"], "\"ftp://127.0.0.1/\" is no"),
            (&["--timeout", "soon", "http://127.0.0.1/"], "\"soon\" seconds?"),
            (&["--cacert", "/nothing.pem", "http://127.0.0.1/"], "/nothing.pem: "),
            (&["--cacert", &empty, "http://127.0.0.1/"], "no certificate"),
        ];
        for (args, expected) in cases {
            let (status, _, errors) = client(args);
            assert!(status == Some(2) && errors.contains(expected), "{args:?}: {status:?} {errors}");
        }
    });
}
