//! The examples, run as programs from outside.

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use programs::{example, run};
use support::{PATIENCE, closed_address, within};

/// The echo example fits on a page, because it is the first code that a newcomer reads.
#[test]
fn echo_example_fits_on_a_page() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/echo.rs");
    let lines = std::fs::read_to_string(path).unwrap().lines().count();
    assert!(lines <= 60, "examples/echo.rs has {lines} lines, but a page has 60");
}

/// The echo example prints its address on one line. A caller that starts it on port 0 learns the port only from
/// there.
#[test]
fn echo_prints_its_address() {
    within(|| {
        let mut echo = Echo::start("127.0.0.1:0");
        drop(echo.connect());
        let message = echo.stop();
        assert_eq!(message.lines, 1, "the example must print exactly one line");
        assert_eq!(message.errors, "", "the example must print nothing on stderr");
    });
}

/// The echo example listens on IPv6 too.
#[test]
fn echo_listens_on_ipv6() {
    within(|| {
        let echo = Echo::start("[::1]:0");
        assert!(echo.address.is_ipv6());
        exchange(&mut echo.connect(), b"six");
    });
}

/// The echo example serves many clients at once, in pieces that are larger and smaller than its buffer.
#[test]
fn echo_serves_many_clients() {
    within(|| {
        let echo = Echo::start("127.0.0.1:0");
        let mut clients: Vec<_> = (0..20).map(|_| echo.connect()).collect();
        for round in 0..5 {
            for (number, client) in clients.iter_mut().enumerate() {
                client.write_all(format!("client {number} round {round}\n").as_bytes()).unwrap();
            }
            for (number, client) in clients.iter_mut().enumerate().rev() {
                let expected = format!("client {number} round {round}\n");
                let mut reply = vec![0; expected.len()];
                client.read_exact(&mut reply).unwrap();
                assert_eq!(String::from_utf8_lossy(&reply), expected);
            }
        }
        let large: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        for client in &mut clients {
            exchange(client, &large);
        }
    });
}

/// A client that closes its side gets all of its bytes and then the end.
#[test]
fn echo_answers_end_with_end() {
    within(|| {
        let echo = Echo::start("127.0.0.1:0");
        let mut client = echo.connect();
        client.write_all(b"last words").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(support::read_all(client), b"last words");
    });
}

/// The echo example survives a client that resets its connection.
#[test]
fn echo_survives_a_reset() {
    within(|| {
        let echo = Echo::start("127.0.0.1:0");
        let mut beside = echo.connect();
        for _ in 0..5 {
            let mut client = echo.connect();
            client.write_all(&[0; 100_000]).unwrap();
            support::reset(client);
        }
        exchange(&mut beside, b"still here");
        exchange(&mut echo.connect(), b"and new ones too");
    });
}

/// The echo example serves more clients than it has descriptors, some of them once there is room.
#[test]
fn echo_survives_descriptor_exhaustion() {
    within(|| {
        let mut few = Command::new("sh");
        few.args(["-c", "ulimit -n 16; exec \"$0\" 127.0.0.1:0"]).arg(example("echo"));
        let mut echo = Echo::start_by(few);
        let clients: Vec<_> = (0..40).map(|_| echo.connect()).collect();
        for mut client in clients {
            exchange(&mut client, b"my turn");
        }
        exchange(&mut echo.connect(), b"and a late one");
        assert_eq!(echo.stop().errors, "", "the example must not fill a log");
    });
}

/// A signal ends the echo example although a client is silent. That client reads to an end.
#[test]
fn signal_ends_silent_clients() {
    within(|| {
        let mut echo = Echo::start("127.0.0.1:0");
        let mut client = echo.connect();
        exchange(&mut client, b"x");
        echo.signal("TERM");
        let (report, errors) = echo.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}");
        assert_eq!((client.read(&mut [0; 8]).unwrap(), errors.as_str()), (0, ""), "the client must read the end");
    });
}

/// An echo with several workers answers every request before a signal ends it.
#[test]
fn signalled_echo_answers_every_request() {
    for workers in ["1", "2", "4"] {
        within(move || {
            let mut command = Command::new(example("echo"));
            command.args(["--workers", workers, &support::own_address()]);
            let mut echo = Echo::start_by(command);
            let answered = under_load(&echo, || echo.signal("TERM"));
            let (report, errors) = echo.ended();
            assert_all_served(&report, answered);
            assert_eq!(errors, "");
        });
    }
}

/// The first signal lets the serve example answer every accepted request under load, end silent connections, and exit
/// with status 0.
#[test]
fn first_signal_drains_serve() {
    for signal in ["TERM", "INT"] {
        within(move || {
            let mut echo = Echo::start_serve();
            let mut idle: Vec<_> = (0..20).map(|_| echo.connect()).collect();
            idle.iter_mut().for_each(|client| exchange(client, b"hello"));
            // This client stays silent from the start.
            let late = echo.connect();
            let answered = under_load(&echo, || echo.signal(signal));
            idle.into_iter().for_each(|client| assert_eq!(support::read_all(client), b""));
            assert_eq!(support::read_all(late), b"");
            let (report, errors) = echo.ended();
            assert_all_served(&report, answered + 21);
            assert_eq!(errors, "");
        });
    }
}

/// The second signal ends the serve example at once.
#[test]
fn second_signal_ends_serve() {
    for signals in [["TERM", "TERM"], ["INT", "INT"], ["INT", "TERM"]] {
        within(move || {
            let mut echo = Echo::start_serve();
            // This client sends for ever and reads none of its answers, so the example cannot end in order.
            let endless = echo.connect();
            let peer = endless.local_addr().unwrap();
            let flood = std::thread::spawn(move || while (&endless).write_all(&[0; 65_536]).is_ok() {});
            exchange(&mut echo.connect(), b"the endless one is in too");
            echo.signal(signals[0]);
            while TcpStream::connect(echo.address).is_ok() {}
            assert!(echo.child.try_wait().unwrap().is_none(), "the example must wait for the endless client");
            let signalled = Instant::now();
            echo.signal(signals[1]);
            let (report, errors) = echo.ended();
            assert!(
                signalled.elapsed() < Duration::from_secs(15),
                "the second signal must not wait for the drain timeout"
            );
            assert!(report.contains(&format!("\n{peer} was open for ")), "{report}");
            assert_eq!(errors, "");
            flood.join().unwrap();
        });
    }
}

/// The ping example times each line that returns, as the README shows.
#[test]
fn ping_times_each_line() {
    within(|| {
        let echo = Echo::start("127.0.0.1:0");
        let ping = run("ping", &[&echo.address.to_string(), "3"]);
        let message = String::from_utf8(ping.stdout).unwrap();
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stderr));
        let lines: Vec<_> = message.lines().collect();
        assert_eq!(lines.len(), 4, "the example must print three lines and a summary: {message}");
        for (number, line) in (1..=3).zip(&lines) {
            assert!(line.starts_with(&format!("ping {number}: ")), "{line}");
        }
        assert!(lines[3].starts_with("3 round trips: least "), "{message}");
        assert_eq!(run("ping", &[&echo.address.to_string()]).stdout.iter().filter(|b| **b == b'\n').count(), 6);
        assert!(
            run("ping", &[&echo.address.to_string(), "0"]).stdout.is_empty(),
            "no line and no summary may be printed"
        );
    });
}

/// Help is printed on stdout and is no error.
#[test]
fn help_goes_to_stdout() {
    within(|| {
        for example in ["echo", "ping"] {
            for option in ["-h", "--help"] {
                let help = run(example, &[option]);
                assert_eq!(help.status.code(), Some(0), "{example} {option}");
                assert!(help.stdout.starts_with(format!("usage: {example}").as_bytes()), "{example} {option}");
                assert!(help.stderr.is_empty(), "{example} {option}");
            }
        }
    });
}

/// A mistake in the arguments prints one line that names it, and exits with status 2.
#[test]
fn mistake_prints_one_line() {
    within(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap().to_string();
        let closed = closed_address().to_string();
        let mistakes: &[(&str, &[&str], &str)] = &[
            ("echo", &["--port"], "unknown option --port"),
            ("echo", &["127.0.0.1:0", "--port"], "usage"),
            ("echo", &["-p", "127.0.0.1:0"], "unknown option -p"),
            ("echo", &["--workers"], "unknown option --workers"),
            ("echo", &["--workers", "many"], "\"many\" workers"),
            ("echo", &["--workers", "0"], "From 1 to 1024"),
            ("echo", &["--workers", "2", "-p"], "unknown option -p"),
            ("echo", &["nonsense"], "nonsense"),
            ("echo", &["127.0.0.1"], "127.0.0.1"),
            ("echo", &["127.0.0.1:99999"], "127.0.0.1:99999"),
            ("echo", &[""], "address"),
            ("echo", &["nobody.invalid:0"], "nobody.invalid"),
            ("echo", &[&taken], &taken),
            ("echo", &["192.0.2.1:0"], "192.0.2.1:0"),
            ("echo", &["127.0.0.1:0", "127.0.0.1:0"], "more than one address"),
            ("ping", &["--count"], "unknown option --count"),
            ("ping", &[&closed], &closed),
            ("ping", &["nobody.invalid:7000"], "nobody.invalid"),
            ("ping", &[&closed, "many"], "usage"),
            ("ping", &[&closed, "1", "2"], "usage"),
        ];
        for (example, args, names) in mistakes {
            let mistake = run(example, args);
            let message = String::from_utf8(mistake.stderr).unwrap();
            assert_eq!(mistake.status.code(), Some(2), "{example} {args:?} printed: {message}");
            assert_eq!(message.lines().count(), 1, "{example} {args:?} must print one line: {message}");
            assert!(message.starts_with(&format!("{example}: ")), "{example} {args:?} printed: {message}");
            assert!(message.contains(names), "{example} {args:?} must name {names:?}: {message}");
            assert!(mistake.stdout.is_empty(), "{example} {args:?} must print nothing on stdout");
        }
    });
}

/// The ping example reports the end of its server instead of waiting.
#[test]
fn ping_ends_with_its_server() {
    within(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut line = [0; 7];
            client.read_exact(&mut line).unwrap();
            client.write_all(&line).unwrap();
        });
        let ping = run("ping", &[&address, "5"]);
        server.join().unwrap();
        assert_eq!(ping.status.code(), Some(2));
        assert_eq!(String::from_utf8(ping.stderr).unwrap().lines().count(), 1);
    });
}

// ---- helpers ----

/// The running echo example. A drop ends it.
struct Echo {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
}

/// The output of an example that was ended.
struct Printed {
    lines: usize,
    errors: String,
}

impl Echo {
    #[track_caller]
    fn start(address: &str) -> Self {
        let mut command = Command::new(example("echo"));
        command.arg(address);
        Self::start_by(command)
    }

    /// Starts the example that ends gracefully.
    #[track_caller]
    fn start_serve() -> Self {
        let mut command = Command::new(example("serve"));
        command.arg(support::own_address());
        Self::start_by(command)
    }

    #[track_caller]
    fn start_by(mut command: Command) -> Self {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
        let mut child = piped.spawn().expect("the echo example");
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().split_once(": listening on ").and_then(|(_, address)| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("the first line must contain the address: {line:?}"));
        Self { child, stdout, address }
    }

    #[track_caller]
    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("connect to the echo");
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Waits until the example has ended with status 0, and returns its report and its stderr.
    #[track_caller]
    fn ended(&mut self) -> (String, String) {
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        let (mut report, mut errors) = (String::new(), String::new());
        self.stdout.read_to_string(&mut report).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let report = report
            .strip_prefix("serve: ")
            .or(report.strip_prefix("echo: "))
            .unwrap_or_else(|| panic!("the example must print its report, not {report:?}"));
        (report.to_owned(), errors)
    }

    fn stop(&mut self) -> Printed {
        self.end();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        Printed { lines: 1 + rest.lines().count(), errors }
    }

    fn end(&mut self) {
        // The example may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends `bytes` and reads them back at the same time. They may exceed the buffers in between.
#[track_caller]
fn exchange(client: &mut TcpStream, bytes: &[u8]) {
    let mut reply = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        let mut sender = client.try_clone().unwrap();
        scope.spawn(move || sender.write_all(bytes).unwrap());
        client.read_exact(&mut reply).expect("the bytes return");
    });
    assert!(reply == bytes, "the bytes must return unchanged");
}

/// Four clients make requests, each on a new connection, until the port is closed. Calls `end` after the first 500
/// requests, and returns the number of answers.
#[track_caller]
fn under_load(echo: &Echo, end: impl FnOnce()) -> usize {
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while is_answered(echo.address) {
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        while answered.load(SeqCst) < 500 {
            std::thread::yield_now();
        }
        end();
    });
    answered.into_inner()
}

#[track_caller]
fn assert_all_served(report: &str, answered: usize) {
    let mut numbers = report.split(|sign: char| !sign.is_ascii_digit()).filter_map(|word| word.parse().ok());
    let (accepted, served): (usize, usize) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(accepted, served, "every accepted connection must be served: {report}");
    assert!(report.contains(" 0 open"), "no connection may be cut off: {report}");
    assert_eq!(accepted, answered, "every accepted connection must be answered: {report}");
}

/// Makes one request on a new connection. Returns false if the port is closed.
#[track_caller]
fn is_answered(address: SocketAddr) -> bool {
    let request = [7; 64];
    let Ok(mut client) = TcpStream::connect(address) else { return false };
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // A client that connects between the last accept and the close of the socket is reset. It was not accepted.
    let Ok(()) = client.write_all(&request) else { return false };
    let mut reply = [0; 64];
    match client.read_exact(&mut reply) {
        Ok(()) => assert_eq!(reply, request),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    reply == request
}
