//! The examples `proxy`, `chat`, `kv`, `udp_echo`, `unix_echo`, `mini_redis` and `one_per_core`, run as programs from
//! outside.

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use programs::{Program, run};
use socket2::{Domain, Socket, Type};
use support::{PATIENCE, closed_address, own_address, pattern, read_all, reset, within};

const EXAMPLES: [&str; 7] = ["proxy", "chat", "kv", "udp_echo", "unix_echo", "mini_redis", "one_per_core"];

/// Each example has at most 90 lines, because it is read as a whole. `mini_redis` has a protocol of its own to speak.
#[test]
fn each_example_is_short() {
    for name in EXAMPLES {
        let path = format!("{}/examples/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        let limit = if name == "mini_redis" { 280 } else { 90 };
        assert!(lines <= limit, "{path} has {lines} lines");
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
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp_taken = tcp.local_addr().unwrap().to_string();
        let udp_taken = udp.local_addr().unwrap().to_string();
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
            ("chat", &["--port"], "usage"),
            ("chat", &["nonsense"], "nonsense"),
            ("chat", &["127.0.0.1:0", "more"], "more"),
            ("chat", &[&tcp_taken], &tcp_taken),
            ("kv", &["--port"], "--port"),
            ("kv", &["127.0.0.1:0", "long"], "long"),
            ("kv", &["127.0.0.1:0", "0"], "usage"),
            ("kv", &["127.0.0.1:0", "1", "more"], "more"),
            ("kv", &[&tcp_taken], &tcp_taken),
            ("udp_echo", &["--port"], "unknown option --port"),
            ("udp_echo", &["nonsense"], "nonsense"),
            ("udp_echo", &["127.0.0.1:0", "more"], "more than one address"),
            ("udp_echo", &[&udp_taken], &udp_taken),
            ("unix_echo", &["--port"], "unknown option --port"),
            ("unix_echo", &["/nowhere/at/all"], "/nowhere/at/all"),
            ("unix_echo", &["a", "b"], "more than one path"),
            ("mini_redis", &["--port"], "unknown option --port"),
            ("mini_redis", &["--workers"], "unknown option --workers"),
            ("mini_redis", &["--workers", "0"], "\"0\" workers"),
            ("mini_redis", &["a", "b"], "more than one address"),
            ("mini_redis", &[&tcp_taken], &tcp_taken),
            ("one_per_core", &["--port"], "unknown option --port"),
            ("one_per_core", &["--workers", "1025"], "\"1025\" workers"),
            ("one_per_core", &["nonsense"], "nonsense"),
            ("one_per_core", &["a", "b"], "more than one address"),
            ("one_per_core", &[&tcp_taken], &tcp_taken),
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
        let mut proxied = Proxied::start("2");
        let (mut client, mut backend) = proxied.pair();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(backend.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (_, errors) = proxied.proxy.end_by("INT");
        assert!(errors.contains("no byte has moved for 2s"), "{errors}");
    });
}

/// The proxy resets a connection whose reader has stalled, although its writer would go on.
#[test]
fn proxy_cuts_stalled_connections() {
    within(|| {
        let mut proxied = Proxied::start("2");
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
        let down = closed_address();
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
        // Without a pause these clients would keep the proxy at its limit, and its listener open.
        while TcpStream::connect(proxied.proxy.address()).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
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

// ---- chat ----

/// Each client reads the lines of the others and not its own, and who comes and goes.
#[test]
fn chat_passes_lines_to_others() {
    within(|| {
        let mut chat = Program::start("chat", &["127.0.0.1:0"]);
        let mut one = Member::join(&chat, &mut []);
        let mut two = Member::join(&chat, &mut [&mut one]);
        let mut three = Member::join(&chat, &mut [&mut one, &mut two]);
        one.send(b"hello\n");
        let line = format!("{}: hello", one.name);
        assert_eq!([two.line(), three.line()], [line.clone(), line]);
        three.send(b"hello yourself\r\n");
        let line = format!("{}: hello yourself", three.name);
        // Its own line would have come to the first client before this one.
        assert_eq!([one.line(), two.line()], [line.clone(), line]);

        two.stream().shutdown(Shutdown::Write).unwrap();
        let line = format!("{} has left", two.name);
        assert_eq!([one.line(), three.line()], [line.clone(), line]);
        let name = three.name.clone();
        reset(three.lines.into_inner());
        assert_eq!(one.line(), format!("{name} has left"));
        let (report, _) = chat.end_by("INT");
        assert!(report.starts_with("3 accepted: 2 served, 1 failed"), "{report}");
        assert_eq!(one.line(), "", "the end of the server must be the end of the connection");
    });
}

/// Control characters and bytes that are no text do not reach the others, a line without an end is a line, and a long
/// line arrives in pieces.
#[test]
fn chat_passes_only_text() {
    within(|| {
        let chat = Program::start("chat", &["127.0.0.1:0"]);
        let mut reader = Member::join(&chat, &mut []);
        let mut writer = Member::join(&chat, &mut [&mut reader]);
        writer.send(b"\x1b[2Jcl\x07ear\xFF\n");
        assert_eq!(reader.line(), format!("{}: [2Jclear\u{FFFD}", writer.name));
        writer.send(&[b"x".repeat(2500), b"\nlast".to_vec()].concat());
        writer.stream().shutdown(Shutdown::Write).unwrap();
        let texts: Vec<_> = (0..4).map(|_| reader.line().split_once(": ").unwrap().1.to_owned()).collect();
        assert_eq!(texts, ["x".repeat(1000), "x".repeat(1000), "x".repeat(500), "last".to_owned()]);
    });
}

/// A client that never reads is dropped, whether it is silent or sends. The others get every line.
#[test]
fn chat_drops_clients_that_never_read() {
    for sends in [false, true] {
        within(move || {
            let mut chat = Program::start("chat", &["127.0.0.1:0"]);
            let slow = small_window(&chat);
            let slow_name = slow.local_addr().unwrap().to_string();
            let mut members: Vec<Member> = Vec::new();
            for _ in 0..4 {
                let joined = Member::join(&chat, &mut members.iter_mut().collect::<Vec<_>>());
                members.push(joined);
            }
            std::thread::scope(|scope| {
                if sends {
                    // It is told of the reset.
                    scope.spawn(|| while (&slow).write_all(b"me too\n").is_ok() {});
                }
                let mut is_dropped = false;
                for round in 0.. {
                    let line = format!("{round} {}", "x".repeat(900));
                    members.iter_mut().for_each(|member| member.send(format!("{line}\n").as_bytes()));
                    for member in &mut members {
                        let mut others = 0;
                        while others < 3 {
                            match member.line() {
                                left if left == format!("{slow_name} has left") => is_dropped = true,
                                other if other.starts_with(&slow_name) => {}
                                other if other.ends_with(&format!(": {line}")) => others += 1,
                                other => panic!("not a line of round {round}: {other:?}"),
                            }
                        }
                    }
                    if is_dropped {
                        break;
                    }
                }
            });
            if !sends {
                let error = (&slow).read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            let (report, errors) = chat.end_by("TERM");
            assert!(report.starts_with("5 accepted: 4 served, 1 failed"), "{report}");
            assert_eq!(errors, format!("chat: {slow_name}: it reads too slowly\n"));
        });
    }
}

/// A signal ends the chat, although a client sends lines without an end. The drain timeout cuts off that client.
#[test]
fn signal_ends_chat_under_load() {
    within(|| {
        let mut chat = Program::start("chat", &["127.0.0.1:0"]);
        let mut reader = Member::join(&chat, &mut []);
        let flood = chat.connect();
        std::thread::scope(|scope| {
            scope.spawn(|| while (&flood).write_all(b"again\n").is_ok() {});
            while !reader.line().ends_with(": again") {}
            let (report, errors) = chat.end_by("INT");
            assert!(report.starts_with("2 accepted: 1 served, 0 failed, 0 panicked, 1 open"), "{report}{errors}");
        });
    });
}

// ---- kv ----

/// The store answers each request with one line, also those that it does not understand.
#[test]
fn kv_answers_each_request() {
    within(|| {
        let kv = Program::start("kv", &["127.0.0.1:0"]);
        let mut client = BufReader::new(kv.connect());
        let other = BufReader::new(kv.connect());
        assert_eq!(ask(&mut client, b"get bird"), "none");
        assert_eq!(ask(&mut client, b"set bird 60 a small gull"), "ok");
        assert_eq!(ask(&mut client, b"get bird"), "value a small gull");
        assert_eq!(ask(&mut client, b"get bird\r"), "value a small gull");
        assert_eq!(ask(&mut client, b"set bird 60 "), "ok");
        assert_eq!(ask(&mut client, b"get bird"), "value ");
        assert_eq!(ask(&mut client, b"stats"), "1 keys, 2 clients");
        assert_eq!(ask(&mut client, b"del bird"), "ok");
        assert_eq!(ask(&mut client, b"del bird"), "none");
        let mistakes: [&[u8]; 9] = [
            b"",
            b"get",
            b"GET bird",
            b"get bird now",
            b"set bird",
            b"set bird 60",
            b"set bird soon x",
            b"set bird -1 x",
            b"set bird 60 \xFF",
        ];
        for request in mistakes {
            let reply = ask(&mut client, request);
            assert!(reply.starts_with("error: "), "{:?} was answered by {reply:?}", String::from_utf8_lossy(request));
        }
        assert_eq!(ask(&mut client, b"stats"), "0 keys, 2 clients");
        drop(other);
    });
}

/// A value is there until its time is over, and not after that.
#[test]
fn kv_forgets_expired_values() {
    within(|| {
        let kv = Program::start("kv", &["127.0.0.1:0"]);
        let mut client = BufReader::new(kv.connect());
        let set = Instant::now();
        assert_eq!(ask(&mut client, b"set bird 0.05 kittiwake"), "ok");
        while ask(&mut client, b"get bird") == "value kittiwake" {}
        assert!(set.elapsed() >= Duration::from_millis(50), "the value has expired early: after {:?}", set.elapsed());
        assert_eq!(ask(&mut client, b"get bird"), "none");
    });
}

/// A line that is too long, or cut by the end, is no request. Its reply arrives although input is unread, and then the
/// connection ends.
#[test]
fn kv_takes_only_whole_lines() {
    within(|| {
        let kv = Program::start("kv", &["127.0.0.1:0"]);
        for request in [&b"set bird 60 x".repeat(50_000)[..], b"set bird 60 kitti"] {
            let mut client = kv.connect();
            client.write_all(request).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let reply = String::from_utf8(read_all(client)).unwrap();
            assert!(reply.starts_with("error: ") && reply.lines().count() == 1, "{reply}");
        }
        assert_eq!(ask(&mut BufReader::new(kv.connect()), b"get bird"), "none");
    });
}

/// A full store takes no more keys until one expires. Requests that come together are answered in their order.
#[test]
fn kv_limits_its_keys() {
    within(|| {
        let kv = Program::start("kv", &["127.0.0.1:0"]);
        let mut client = BufReader::new(kv.connect());
        assert_eq!(ask(&mut client, b"set short 0.001 x"), "ok");
        let requests: String = (1..10_000).map(|number| format!("set {number} 60 x\nget {number}\n")).collect();
        let mut writer = client.get_ref().try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(requests.as_bytes()).unwrap());
            for number in 1..10_000 {
                assert_eq!((line_of(&mut client), line_of(&mut client)), ("ok".into(), "value x".into()), "{number}");
            }
        });
        // The one that has expired makes room for one.
        assert_eq!(ask(&mut client, b"set new 60 x"), "ok");
        assert_eq!(ask(&mut client, b"set newer 60 x"), "error: the store is full");
        assert_eq!(ask(&mut client, b"set new 60 y"), "ok");
        assert_eq!(ask(&mut client, b"stats"), "10000 keys, 1 clients");
        assert_eq!(ask(&mut client, b"del new"), "ok");
        assert_eq!(ask(&mut client, b"set newer 60 x"), "ok");
    });
}

/// A client that sends nothing, half a request, or reads no replies loses its connection.
#[test]
fn kv_ends_idle_connections() {
    within(|| {
        let mut kv = Program::start("kv", &["127.0.0.1:0", "0.1"]);
        let silent = kv.connect();
        let mut half = kv.connect();
        half.write_all(b"get bi").unwrap();
        let slow = kv.connect();
        let mut requests = &slow;
        while requests.write_all(&b"no request\n".repeat(1000)).is_ok() {}
        assert_eq!((read_all(silent), read_all(half)), (Vec::new(), Vec::new()));
        let (report, errors) = kv.end_by("INT");
        assert!(report.starts_with("3 accepted: 0 served, 3 failed"), "{report}");
        assert_eq!(errors.matches("the time for this operation is over").count(), 3, "{errors}");
    });
}

/// A signal ends the store. Requests that were sent before it are answered, and silent clients read to an end.
#[test]
fn signal_ends_kv_after_answers() {
    within(|| {
        let mut kv = Program::start("kv", &["127.0.0.1:0"]);
        let silent = kv.connect();
        let mut client = kv.connect();
        client.write_all(&b"set bird 60 kittiwake\nget bird\n".repeat(1000)).unwrap();
        let (report, errors) = kv.end_by("TERM");
        assert!(report.starts_with("2 accepted: 2 served"), "{report}{errors}");
        assert_eq!(read_all(client), b"ok\nvalue kittiwake\n".repeat(1000));
        assert_eq!(read_all(silent), b"");
    });
}

// ---- udp_echo ----

/// Datagrams of all sizes return, to each client its own.
#[test]
fn udp_echo_returns_datagrams() {
    within(|| {
        let mut echo = Program::start("udp_echo", &["127.0.0.1:0"]);
        let clients: Vec<_> = (0..3).map(|_| udp_client(&echo)).collect();
        let sizes = [0, 1, 1500, 65_507];
        for (number, client) in clients.iter().enumerate() {
            for size in sizes {
                client.send(&vec![number as u8; size]).unwrap();
                let mut reply = vec![7; 65_535];
                let length = client.recv(&mut reply).unwrap();
                assert_eq!(length, size);
                assert!(reply[..length].iter().all(|byte| *byte == number as u8), "client {number} got other bytes");
            }
        }
        let (report, errors) = echo.end_by("TERM");
        assert_eq!((report.as_str(), errors.as_str()), ("12 datagrams echoed, 201024 bytes; 0 replies failed\n", ""));
    });
}

/// A signal ends the server although datagrams keep coming.
#[test]
fn signal_ends_udp_echo_under_load() {
    within(|| {
        let mut echo = Program::start("udp_echo", &["127.0.0.1:0"]);
        let (client, is_over, sent) = (udp_client(&echo), AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    // It fails once the port is closed.
                    let _ = client.send(b"again");
                    sent.fetch_add(1, SeqCst);
                }
            });
            while sent.load(SeqCst) < 1000 {
                std::thread::yield_now();
            }
            let (report, _) = echo.end_by("INT");
            is_over.store(true, SeqCst);
            assert!(report.contains(" 0 replies failed"), "{report}");
        });
    });
}

// ---- unix_echo ----

/// Bytes return, the end too, and the file is gone once the server has ended.
#[test]
fn unix_echo_returns_bytes() {
    within(|| {
        let path = socket_path();
        let mut echo = Program::start("unix_echo", &[path.to_str().unwrap()]);
        let silent = unix_client(&path);
        let bytes = pattern(1_000_000);
        let client = unix_client(&path);
        let (mut reader, mut reply) = (&client, Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (&client).write_all(&bytes).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            reader.read_to_end(&mut reply).unwrap();
        });
        assert!(reply == bytes, "the bytes must return unchanged");
        let (report, errors) = echo.end_by("TERM");
        assert!(report.starts_with("2 accepted: 2 served"), "{report}{errors}");
        assert_eq!((&silent).read(&mut [0]).unwrap(), 0);
        assert!(!path.exists(), "the server must remove its file");
    });
}

/// A server that was killed leaves its file, and the next server takes it over. Beside a running server it does not
/// start.
#[test]
fn unix_echo_replaces_a_stale_file() {
    within(|| {
        let path = socket_path();
        let args = [path.to_str().unwrap()];
        drop(Program::start("unix_echo", &args));
        assert!(path.exists(), "a killed server leaves its file");

        let mut echo = Program::start("unix_echo", &args);
        let second = run("unix_echo", &args);
        let message = String::from_utf8(second.stderr).unwrap();
        assert_eq!(second.status.code(), Some(2), "{message}");
        assert!(message.contains("another socket uses the path"), "{message}");
        let mut client = unix_client(&path);
        client.write_all(b"still here").unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
        drop(client);
        let (report, _) = echo.end_by("INT");
        assert!(
            report.starts_with("1 accepted: 1 served"),
            "the second server must not connect to the first: {report}"
        );
    });
}

/// A file that is no socket is never removed, nor is a link to a stale socket.
#[test]
fn unix_echo_keeps_other_files() {
    within(|| {
        let (path, stale) = (socket_path(), socket_path());
        drop(Program::start("unix_echo", &[stale.to_str().unwrap()]));
        std::fs::write(&path, "a letter").unwrap();
        let link = socket_path();
        std::os::unix::fs::symlink(&stale, &link).unwrap();
        for taken in [&path, &link] {
            let failed = run("unix_echo", &[taken.to_str().unwrap()]);
            let message = String::from_utf8(failed.stderr).unwrap();
            assert_eq!(failed.status.code(), Some(2), "{message}");
            assert!(message.contains("the file there is no socket"), "{message}");
            assert!(taken.symlink_metadata().is_ok(), "{} was removed", taken.display());
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter");
        [path, stale, link].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    });
}

// ---- mini_redis ----

/// Each command has the replies of Redis, whether it is sent as a line or as an array of strings.
#[test]
fn mini_redis_answers_commands() {
    let wrong_type = "-ERR value is not an integer or out of range\r\n";
    let conversation = [
        ("PING", "+PONG\r\n"),
        ("ping hello", "$5\r\nhello\r\n"),
        ("ECHO hello", "$5\r\nhello\r\n"),
        ("GET bird", "$-1\r\n"),
        ("SET bird kittiwake", "+OK\r\n"),
        ("GET bird", "$9\r\nkittiwake\r\n"),
        ("TTL bird", ":-1\r\n"),
        ("EXPIRE bird 150", ":1\r\n"),
        ("TTL bird", ":150\r\n"),
        ("SET bird gull EX 50", "+OK\r\n"),
        ("TTL bird", ":50\r\n"),
        ("SET bird gull px 20000", "+OK\r\n"),
        ("TTL bird", ":20\r\n"),
        ("SET bird gull", "+OK\r\n"),
        ("TTL bird", ":-1\r\n"),
        ("SET bird x EX 0", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET bird x PX -1", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET bird x EX soon", wrong_type),
        ("SET bird x EX 99999999999999999999", wrong_type),
        ("SET bird x EX 9223372036854775807", wrong_type),
        ("SET bird x EX", "-ERR syntax error\r\n"),
        ("SET bird x NX", "-ERR syntax error\r\n"),
        ("GET bird", "$4\r\ngull\r\n"),
        ("DEL bird nothing bird", ":1\r\n"),
        ("DEL bird", ":0\r\n"),
        ("TTL bird", ":-2\r\n"),
        ("EXPIRE bird 1", ":0\r\n"),
        ("EXPIRE bird soon", wrong_type),
        ("SET bird gull", "+OK\r\n"),
        ("EXPIRE bird 0", ":1\r\n"),
        ("GET bird", "$-1\r\n"),
        ("GET", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("PING a b", "-ERR wrong number of arguments for 'ping' command\r\n"),
        ("DEL", "-ERR wrong number of arguments for 'del' command\r\n"),
        ("FLY away", "-ERR unknown command 'fly'\r\n"),
        ("COMMAND DOCS", "*0\r\n"),
        ("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
    ];
    within(move || {
        let redis = Program::start("mini_redis", &["127.0.0.1:0"]);
        let mut client = redis.connect();
        for (request, reply) in conversation {
            let words: Vec<_> = request.split(' ').map(str::as_bytes).collect();
            assert_reply(&mut client, &array(&words), reply);
            // A line changes nothing that the array has not changed, except where the reply is the count of a change.
            if !request.starts_with("DEL bird nothing") && !request.starts_with("EXPIRE bird 0") {
                assert_reply(&mut client, format!("  {request} \n").as_bytes(), reply);
            }
        }
        // Keys and values are bytes.
        let (key, value) = (&b"\0\r\n$1\r\n\xFF"[..], pattern(60_000));
        assert_redis(&mut client, &array(&[b"SET", key, &value]), "+OK\r\n");
        client.write_all(&array(&[b"GET", key])).unwrap();
        let mut reply = vec![0; 60_010];
        client.read_exact(&mut reply).unwrap();
        assert!(reply == [b"$60000\r\n", &value[..], b"\r\n"].concat(), "the value must return unchanged");
    });
}

/// Requests that come together are answered in their order, also while one more has come only in part.
#[test]
fn mini_redis_pipelines() {
    within(|| {
        let redis = Program::start("mini_redis", &["--workers", "2", "127.0.0.1:0"]);
        let mut client = redis.connect();
        let (mut requests, mut replies) = (Vec::new(), String::new());
        for number in 0..10_000 {
            let number = number.to_string();
            requests.extend([array(&[b"SET", b"bird", number.as_bytes()]), array(&[b"GET", b"bird"])].concat());
            replies += &format!("+OK\r\n${}\r\n{number}\r\n", number.len());
        }
        let mut writer = client.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&requests).unwrap());
            assert_redis(&mut client, b"", &replies);
        });
        assert_redis(&mut client, b"PING\r\n*2\r\n$4\r\nECHO\r\n$5\r\nhel", "+PONG\r\n");
        assert_redis(&mut client, b"lo\r\n", "$5\r\nhello\r\n");
        // Another worker may serve this client. It has the same store.
        let mut others: Vec<_> = (0..4).map(|_| redis.connect()).collect();
        others.iter_mut().for_each(|other| assert_redis(other, b"GET bird\n", "$4\r\n9999\r\n"));
    });
}

/// Requests may be split at every byte. Here the server reads each byte alone, before the next one is sent.
#[test]
fn mini_redis_joins_split_requests() {
    within(|| {
        let redis = Program::start("mini_redis", &["127.0.0.1:0"]);
        let (mut client, mut other) = (redis.connect(), redis.connect());
        client.set_nodelay(true).unwrap();
        let requests = [array(&[b"SET", b"bird", b"a\r\nb"]), b"\r\nGET bird\r\n".to_vec(), array(&[b"PING"])].concat();
        for at in 0..requests.len() {
            client.write_all(&requests[at..=at]).unwrap();
            // The server has one thread, and reads what has come before this request no later than the next one.
            assert_redis(&mut other, b"PING\n", "+PONG\r\n");
        }
        assert_redis(&mut client, b"", "+OK\r\n$4\r\na\r\nb\r\n+PONG\r\n");
    });
}

/// A value is there until its time is over, and not after that.
#[test]
fn mini_redis_forgets_expired_values() {
    within(|| {
        let redis = Program::start("mini_redis", &["127.0.0.1:0"]);
        let mut client = BufReader::new(redis.connect());
        let set = Instant::now();
        assert_eq!(ask(&mut client, b"SET bird gull PX 50"), "+OK\r");
        while ask(&mut client, b"GET bird") == "$4\r" {
            assert_eq!(line_of(&mut client), "gull\r");
        }
        assert!(set.elapsed() >= Duration::from_millis(50), "the value has expired early: after {:?}", set.elapsed());
        assert_eq!(ask(&mut client, b"DEL bird"), ":0\r");
    });
}

/// Memory has a limit. Expired values give it back, although no client asks for them.
#[test]
fn mini_redis_limits_its_memory() {
    within(|| {
        let redis = Program::start("mini_redis", &["127.0.0.1:0"]);
        let mut client = BufReader::new(redis.connect());
        let (value, full) = (vec![b'x'; 65_536], "-OOM command not allowed when used memory > 'maxmemory'.\r");
        let set = |client: &mut BufReader<TcpStream>, key: &str, options: &[&[u8]]| {
            client.get_mut().write_all(&array(&[&[b"SET", key.as_bytes(), &value], options].concat())).unwrap();
            line_of(client)
        };
        let kept = (0..2000).take_while(|key| set(&mut client, &key.to_string(), &[]) == "+OK\r").count();
        assert!((1000..1024).contains(&kept), "64 MiB have room for about 1,000 values of 64 KiB, and not for {kept}");
        assert_eq!(ask(&mut client, b"DEL 0"), ":1\r");
        assert_eq!(set(&mut client, "short", &[b"PX", b"1"]), "+OK\r");
        while set(&mut client, "new", &[]) == full {}
        assert_eq!(set(&mut client, "newer", &[]), full);
    });
}

/// A mistake in the protocol has the reply of Redis, and ends the connection. Others go on.
#[test]
fn mini_redis_survives_any_bytes() {
    within(|| {
        let redis = Program::start("mini_redis", &["127.0.0.1:0"]);
        let mut other = redis.connect();
        let mistakes: [(&[u8], &str); 13] = [
            (b"*x\r\n", "invalid multibulk length"),
            (b"*\r\n", "invalid multibulk length"),
            (b"*1025\r\n", "invalid multibulk length"),
            (b"*99999999999999999999\r\n", "invalid multibulk length"),
            (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
            (b"*1\r\n\xFF\r\n", "expected '$', got '\\xff'"),
            (b"*1\r\n\r\n", "expected '$', got ''"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$262144\r\n", "invalid bulk length"),
            (b"*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
            (&[b'x'; 200_000], "too big inline request"),
            (&b"*1\r\n$".repeat(50_000), "invalid bulk length"),
            // Each of these strings alone is small enough.
            (&[b"*1024\r\n", &array(&[&[b'x'; 1000]])[4..].repeat(300)[..]].concat(), "invalid bulk length"),
        ];
        for (bytes, mistake) in mistakes {
            let mut client = redis.connect();
            // The server may have ended the connection before it has all of a long request.
            let _ = client.write_all(&[b"PING\n*0\r\n*-1\r\n\r\n", bytes].concat());
            let expected = format!("+PONG\r\n-ERR Protocol error: {mistake}\r\n");
            assert_redis(&mut client, b"", &expected);
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "{mistake} must end the connection");
        }
        let signs = b"*$\r\n0123456789-GETSETDELPINGx \xFF\0";
        let mut state = 1_u64;
        for _ in 0..300 {
            let mut client = redis.connect();
            let bytes = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                signs[(state >> 33) as usize % signs.len()]
            });
            let bytes: Vec<u8> = bytes.take(500).collect();
            let _ = client.write_all(&bytes);
            let _ = client.shutdown(Shutdown::Write);
            let _ = client.read_to_end(&mut Vec::new());
            assert_redis(&mut other, b"PING\n", "+PONG\r\n");
        }
    });
}

/// A signal ends the server. Requests that were sent before it are answered, and silent clients read to an end.
#[test]
fn signal_ends_mini_redis_after_answers() {
    within(|| {
        let mut redis = Program::start("mini_redis", &["--workers", "2", "127.0.0.1:0"]);
        let (silent, mut client) = (redis.connect(), redis.connect());
        client.write_all(&b"PING\n".repeat(1000)).unwrap();
        let (report, errors) = redis.end_by("TERM");
        assert!(report.starts_with("2 accepted: 2 served"), "{report}{errors}");
        assert_eq!((read_all(client), read_all(silent)), (b"+PONG\r\n".repeat(1000), Vec::new()));
    });
}

// ---- one_per_core ----

/// Clients reach several threads. Each thread has one count for all its clients, and no other thread's.
#[test]
fn one_per_core_uses_its_threads() {
    within(|| {
        let mut server = Program::start("one_per_core", &["--workers", "4", "127.0.0.1:0"]);
        let mut clients: Vec<_> = (0..64).map(|_| BufReader::new(server.connect())).collect();
        let mut answered = [0; 4];
        for round in 0..2 {
            for client in &mut clients {
                let reply = ask(client, b"hello");
                let (worker, count) = reply.strip_prefix("worker ").and_then(|rest| rest.split_once(": ")).unwrap();
                let worker: usize = worker.parse().unwrap();
                answered[worker] += 1;
                assert_eq!(count, answered[worker].to_string(), "round {round}, worker {worker}");
            }
        }
        let busy = answered.iter().filter(|count| **count > 0).count();
        assert!(busy > 1, "one thread has got all clients: {answered:?}");
        drop(clients);
        let (report, errors) = server.end_by("INT");
        for (number, line) in report.lines().enumerate() {
            let clients = answered[number] / 2;
            let expected = format!("worker {number}: {clients} accepted: {clients} served");
            assert!(line.trim_start_matches("one_per_core: ").starts_with(&expected), "{report}{errors}");
        }
        assert_eq!(report.lines().count(), 4, "{report}");
    });
}

/// A signal ends all threads. Lines that were sent before it are answered, and silent clients read to an end.
#[test]
fn signal_ends_all_threads() {
    within(|| {
        let mut server = Program::start("one_per_core", &["--workers", "3", "127.0.0.1:0"]);
        let mut clients: Vec<_> = (0..32).map(|_| server.connect()).collect();
        for client in &mut clients[..16] {
            client.write_all(b"hello\nhello\n").unwrap();
        }
        let (report, errors) = server.end_by("TERM");
        assert_eq!(report.lines().count(), 3, "{report}{errors}");
        for (number, client) in clients.into_iter().enumerate() {
            let lines = String::from_utf8(read_all(client)).unwrap().lines().count();
            assert_eq!(lines, if number < 16 { 2 } else { 0 }, "client {number}: {report}{errors}");
        }
    });
}

// ---- helpers ----

/// A request of Redis: an array of strings.
fn array(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).as_bytes());
        request.extend([word, &b"\r\n"[..]].concat());
    }
    request
}

/// Sends bytes, and fails unless the next bytes that come back are the reply.
#[track_caller]
fn assert_redis(client: &mut TcpStream, request: &[u8], reply: &str) {
    let got = redis_reply(client, request, reply);
    assert!(got == reply, "{:?} was answered by {got:?}, and not by {reply:?}", String::from_utf8_lossy(request));
}

/// Like [`assert_redis`]. A time to live may have become up to ten seconds less on a slow machine, with as many digits.
#[track_caller]
fn assert_reply(client: &mut TcpStream, request: &[u8], reply: &str) {
    let number = |reply: &str| reply.strip_prefix(':')?.trim_end().parse::<i64>().ok();
    let Some(most) = number(reply).filter(|most| *most > 10) else { return assert_redis(client, request, reply) };
    let got = redis_reply(client, request, reply);
    let is_right = number(&got).is_some_and(|left| (most - 10..=most).contains(&left));
    assert!(is_right, "{:?} was answered by {got:?}, and not by {reply:?}", String::from_utf8_lossy(request));
}

/// Sends bytes, and returns the next ones that come back, as many as `reply` has.
#[track_caller]
fn redis_reply(client: &mut TcpStream, request: &[u8], reply: &str) -> String {
    client.write_all(request).unwrap();
    let mut got = vec![0; reply.len()];
    if let Err(error) = client.read_exact(&mut got) {
        panic!("{:?} must be answered by {reply:?}: {error}", String::from_utf8_lossy(request));
    }
    String::from_utf8_lossy(&got).into_owned()
}

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

/// A client of the chat.
struct Member {
    /// The name that the other members see.
    name: String,
    lines: BufReader<TcpStream>,
}

impl Member {
    /// Joins, and waits until all `others` know.
    #[track_caller]
    fn join(chat: &Program, others: &mut [&mut Self]) -> Self {
        let stream = chat.connect();
        let name = stream.local_addr().unwrap().to_string();
        for other in others {
            assert_eq!(other.line(), format!("{name} has joined"));
        }
        Self { name, lines: BufReader::new(stream) }
    }

    fn stream(&self) -> &TcpStream {
        self.lines.get_ref()
    }

    #[track_caller]
    fn send(&mut self, bytes: &[u8]) {
        self.lines.get_mut().write_all(bytes).unwrap();
    }

    /// The next line, without its end. Empty at the end of the connection.
    #[track_caller]
    fn line(&mut self) -> String {
        line_of(&mut self.lines)
    }
}

/// A client whose kernel keeps only a few bytes for it.
#[track_caller]
fn small_window(program: &Program) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    socket.connect(&program.address().into()).unwrap();
    socket.into()
}

/// The next line, without its end.
#[track_caller]
fn line_of(client: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    line.trim_end_matches('\n').to_owned()
}

/// Sends a request to the store, and returns its reply.
#[track_caller]
fn ask(client: &mut BufReader<TcpStream>, request: &[u8]) -> String {
    client.get_mut().write_all(&[request, b"\n"].concat()).unwrap();
    line_of(client)
}

#[track_caller]
fn udp_client(echo: &Program) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(echo.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

#[track_caller]
fn unix_client(path: &PathBuf) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

/// A path that no other test uses, and at which no file is.
fn socket_path() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, SeqCst);
    std::env::temp_dir().join(format!("kittiwake-examples-{}-{number}.socket", std::process::id()))
}
