//! The example `proxy`, run as a program from outside.

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use programs::{Program, run};
use support::{PATIENCE, own_address, pattern, read_all, reset, within};

const EXAMPLES: [&str; 1] = ["proxy"];

/// Each example has at most 80 lines, because it is read as a whole.
#[test]
fn each_example_is_short() {
    for name in EXAMPLES {
        let path = format!("{}/examples/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 80, "{path} has {lines} lines");
    }
}

/// Help is printed on stdout and is no error.
#[test]
fn help_goes_to_stdout() {
    within(|| {
        for name in EXAMPLES {
            for option in ["-h", "--help"] {
                let help = run(name, &[option]);
                assert_eq!(help.status.code(), Some(0), "{name} {option}");
                assert!(help.stdout.starts_with(format!("usage: {name}").as_bytes()), "{name} {option}");
                assert!(help.stderr.is_empty(), "{name} {option}");
            }
        }
    });
}

/// A mistake in the arguments prints one line that names it, and exits with status 2.
#[test]
fn mistake_prints_one_line() {
    within(|| {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp_taken = tcp.local_addr().unwrap().to_string();
        let mistakes: &[(&str, &[&str], &str)] = &[
            ("proxy", &["--port"], "unknown option --port"),
            ("proxy", &["127.0.0.1:0", "-p"], "unknown option -p"),
            ("proxy", &["127.0.0.1:0"], "two addresses"),
            ("proxy", &["--idle"], "unknown option --idle"),
            ("proxy", &["--idle", "0"], "\"0\" seconds"),
            ("proxy", &["--idle", "-1"], "\"-1\" seconds"),
            ("proxy", &["--idle", "long"], "\"long\" seconds"),
            ("proxy", &["--idle", "NaN"], "\"NaN\" seconds"),
            ("proxy", &["127.0.0.1:0", "nonsense"], "nonsense"),
            ("proxy", &["127.0.0.1:0", "nobody.invalid:7000"], "nobody.invalid"),
            ("proxy", &[&tcp_taken, "127.0.0.1:9"], &tcp_taken),
        ];
        for (name, args, names) in mistakes {
            let mistake = run(name, args);
            let message = String::from_utf8(mistake.stderr).unwrap();
            assert_eq!(mistake.status.code(), Some(2), "{name} {args:?} printed: {message}");
            assert_eq!(message.lines().count(), 1, "{name} {args:?} must print one line: {message}");
            assert!(message.starts_with(&format!("{name}: ")), "{name} {args:?} printed: {message}");
            assert!(message.contains(names), "{name} {args:?} must name {names:?}: {message}");
            assert!(mistake.stdout.is_empty(), "{name} {args:?} must print nothing on stdout");
        }
    });
}

// ---- proxy ----

/// A client that closes its side first still gets all of the backend's bytes, and the backend reads to an end.
#[test]
fn proxy_passes_clients_end() {
    within(|| {
        let mut proxied = Proxied::start("60");
        let (client, backend) = proxied.pair();
        let (request, reply) = (pattern(1_000_000), pattern(2_000_003));
        send_and_end(&client, &backend, &request);
        send_and_end(&backend, &client, &reply);
        proxied.assert_served(1);
    });
}

/// A backend that closes its side first still gets all of the client's bytes, and the client reads to an end.
#[test]
fn proxy_passes_backends_end() {
    within(|| {
        let mut proxied = Proxied::start("60");
        let (client, backend) = proxied.pair();
        send_and_end(&backend, &client, b"a greeting");
        send_and_end(&client, &backend, &pattern(1_000_000));
        proxied.assert_served(1);
    });
}

/// A reset of either side is a reset for the other: a cut must not look like the end of the data.
#[test]
fn proxy_passes_resets() {
    within(|| {
        let mut proxied = Proxied::start("60");
        let (client, mut backend) = proxied.pair();
        reset(client);
        assert_eq!(backend.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (mut client, backend) = proxied.pair();
        reset(backend);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (report, errors) = proxied.proxy.end_by("TERM");
        assert!(report.starts_with("2 accepted: 0 served, 2 failed"), "{report}");
        assert!(errors.contains("reading from the first stream failed after 1 bytes forth"), "{errors}");
        assert!(errors.contains("reading from the second stream failed after 1 bytes forth"), "{errors}");
    });
}

/// The proxy resets a connection on which both sides are silent.
#[test]
fn proxy_cuts_silent_connections() {
    within(|| {
        let mut proxied = Proxied::start("0.1");
        let (mut client, mut backend) = proxied.pair();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(backend.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (_, errors) = proxied.proxy.end_by("INT");
        assert!(errors.contains("no byte has moved for 100ms"), "{errors}");
    });
}

/// The proxy resets a connection whose reader has stalled, although its writer would go on.
#[test]
fn proxy_cuts_stalled_connections() {
    within(|| {
        let mut proxied = Proxied::start("0.1");
        let (mut client, _backend) = proxied.pair();
        let error = loop {
            if let Err(error) = client.write_all(&[0; 100_000]) {
                break error;
            }
        };
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
        proxied.proxy.signal("TERM");
        assert!(proxied.proxy.ended().0.starts_with("1 accepted: 0 served, 1 failed"));
    });
}

/// A client whose backend is down is reset, the error names the backend, and the next client is served once it is up.
#[test]
fn proxy_survives_a_missing_backend() {
    within(|| {
        // Another test does not get this port.
        let down = TcpListener::bind(own_address()).unwrap().local_addr().unwrap();
        let mut proxy = Program::start("proxy", &["127.0.0.1:0", &down.to_string()]);
        let mut client = proxy.connect();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

        let up = TcpListener::bind(down).unwrap();
        let client = proxy.connect();
        let (backend, _) = up.accept().unwrap();
        send_and_end(&client, &backend, b"hello");
        send_and_end(&backend, &client, b"hello yourself");
        let (report, errors) = proxy.end_by("TERM");
        assert!(report.starts_with("2 accepted: 1 served, 1 failed"), "{report}");
        assert!(errors.contains(&format!("cannot connect to {down}: Connection refused")), "{errors}");
    });
}

/// The first signal closes the port and lets open connections go on. The second one resets them.
#[test]
fn second_signal_resets_proxied_connections() {
    within(|| {
        let mut proxied = Proxied::start("60");
        let (mut client, mut backend) = proxied.pair();
        proxied.proxy.signal("INT");
        while TcpStream::connect(proxied.proxy.address()).is_ok() {}
        client.write_all(b"y").unwrap();
        backend.read_exact(&mut [0]).unwrap();
        let signalled = Instant::now();
        proxied.proxy.signal("TERM");
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(backend.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(signalled.elapsed() < Duration::from_secs(15), "the second signal must not wait for the drain timeout");
        let (report, _) = proxied.proxy.ended();
        assert!(report.contains(&format!("\n{} was open for ", client.local_addr().unwrap())), "{report}");
    });
}

/// The proxy serves many clients at once, each its own bytes.
#[test]
fn proxy_serves_many_clients() {
    within(|| {
        let echo = Program::start("echo", &["127.0.0.1:0"]);
        let mut proxy = Program::start("proxy", &["127.0.0.1:0", &echo.listens_on]);
        let mut clients: Vec<_> = (0..100).map(|_| proxy.connect()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.write_all(&vec![number as u8; 10_000]).unwrap();
        }
        // All are still connected when the last one is answered.
        for (number, client) in clients.iter_mut().enumerate().rev() {
            let mut reply = vec![0; 10_000];
            client.read_exact(&mut reply).unwrap();
            assert!(reply.iter().all(|byte| *byte == number as u8), "client {number} got another's bytes");
        }
        drop(clients);
        let (report, errors) = proxy.end_by("TERM");
        assert!(report.starts_with("100 accepted: 100 served"), "{report}{errors}");
    });
}

// ---- helpers ----

/// The proxy, and the listener that is its backend.
struct Proxied {
    proxy: Program,
    backend: TcpListener,
}

impl Proxied {
    #[track_caller]
    fn start(idle: &str) -> Self {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = backend.local_addr().unwrap().to_string();
        Self { proxy: Program::start("proxy", &["--idle", idle, &own_address(), &address]), backend }
    }

    /// A client and its connection at the backend, after one byte has passed in each direction.
    #[track_caller]
    fn pair(&self) -> (TcpStream, TcpStream) {
        let mut client = self.proxy.connect();
        let (mut backend, _) = self.backend.accept().unwrap();
        backend.set_read_timeout(Some(PATIENCE)).unwrap();
        backend.set_write_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"x").unwrap();
        backend.read_exact(&mut [0]).unwrap();
        backend.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        (client, backend)
    }

    #[track_caller]
    fn assert_served(&mut self, count: usize) {
        let (report, errors) = self.proxy.end_by("TERM");
        assert!(report.starts_with(&format!("{count} accepted: {count} served")), "{report}{errors}");
        assert_eq!(errors, "");
    }
}

/// Sends `bytes` and the end from one stream, and fails unless the other reads just that.
#[track_caller]
fn send_and_end(mut from: &TcpStream, to: &TcpStream, bytes: &[u8]) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            from.write_all(bytes).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
        });
        assert!(read_all(to.try_clone().unwrap()) == bytes, "the bytes must arrive unchanged");
    });
}
