//! Listeners that a process inherits from its parent. Each test runs itself in a child process whose descriptors a
//! shell arranges. The descriptor to inherit arrives as the shell's standard input.
#![cfg(all(target_os = "linux", feature = "listenfd"))]

mod support;

use std::env;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::TcpListener;
use support::*;

/// Addresses the descriptors to this process, as systemd does.
const FOR_THE_CHILD: &str = "export LISTEN_PID=$$";

/// Starts the test `name` in a child with `passed` as descriptors 3 and 4, and with the variables that `script`
/// exports.
#[track_caller]
fn start(name: &str, script: &str, passed: impl Into<OwnedFd>) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{script}; exec \"$0\" \"$@\" 3<&0 4<&0 0</dev/null")])
        .arg(env::current_exe().expect("the path of this test program"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::from(passed.into()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh runs")
}

#[track_caller]
fn check(child: Child) {
    let output = child.wait_with_output().expect("the child ends");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "the child failed:\n{out}\n{err}");
    baseline::pass_on(&err);
}

fn localhost() -> StdListener {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind to port 0")
}

fn flags(listener: &TcpListener) -> (bool, bool) {
    let flags = descriptor_flags(listener);
    (flags & libc::O_NONBLOCK != 0, flags & libc::O_CLOEXEC != 0)
}

/// The inherited listeners serve in the child. A connection can therefore start a server, and a restart refuses no
/// client.
#[test]
fn inherited_listeners_serve_in_child() {
    if is_child() {
        return within_once(serve_what_is_inherited);
    }
    let listener = localhost();
    let address: SocketAddr = listener.local_addr().expect("the address");
    let script = format!("{FOR_THE_CHILD} LISTEN_FDS=2");
    let child = start("inherited_listeners_serve_in_child", &script, listener);
    within_once(move || {
        for _ in 0..2 {
            // The listener is open as long as the child has it. The client waits in its queue, or fails if the
            // child has failed.
            let Ok(mut stream) = StdStream::connect(address) else { break };
            stream.write_all(b"x").expect("write");
            let _ = stream.read(&mut [0]);
        }
        check(child);
    });
}

fn serve_what_is_inherited() {
    let listeners = TcpListener::inherited().expect("two listeners");
    assert_eq!(listeners.len(), 2);
    assert!(TcpListener::inherited().expect("nothing").is_empty(), "a second call must return no listener");
    for variable in ["LISTEN_FDS", "LISTEN_PID"] {
        assert_eq!(env::var_os(variable), None, "a child of this process must not see the variable");
    }
    assert_eq!(listeners[0].local_addr().expect("an address"), listeners[1].local_addr().expect("an address"));
    kittiwake::block_on(async {
        for listener in &listeners {
            assert_eq!(flags(listener), (true, true), "the listener must be non-blocking and close-on-exec");
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut byte = [0];
            stream.read_exact(&mut byte).await.expect("read");
            stream.write_all(&byte).await.expect("write");
        }
    });
}

/// Descriptors for another process are not touched.
#[test]
fn foreign_descriptors_are_left_alone() {
    if is_child() {
        return within(|| {
            assert!(TcpListener::inherited().expect("no listener is for this process").is_empty());
            assert!(File::open("/proc/self/fd/3").is_err_and(|error| error.raw_os_error() == Some(libc::ENXIO)));
        });
    }
    assert!(TcpListener::inherited().expect("no listener was passed").is_empty());
    for variables in [
        "LISTEN_PID=1 LISTEN_FDS=1",
        "LISTEN_PID=x LISTEN_FDS=1",
        "LISTEN_PID=$$ LISTEN_FDS=0",
        "LISTEN_PID=$$",
        "LISTEN_PID=$$ LISTEN_FDS=",
    ] {
        check(start("foreign_descriptors_are_left_alone", &format!("export {variables}"), localhost()));
    }
}

/// A descriptor that is no TCP listener is an error at the start, and not at the first connection.
#[test]
fn non_listener_is_an_error() {
    if is_child() {
        return within_once(|| {
            let error = TcpListener::inherited().expect_err("the descriptor is not a TCP listener");
            let expected = env::var("EXPECTED").expect("the expected error");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("LISTEN_FDS"), "{error}");
            assert!(error.to_string().contains(&expected), "{error}");
            assert!(TcpListener::inherited().expect("the error is reported once").is_empty());
        });
    }
    let listener = localhost();
    let connected = StdStream::connect(listener.local_addr().expect("the address")).expect("connect");
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind to port 0");
    let path = env::temp_dir().join(format!("kittiwake-inherited-{}", std::process::id()));
    let unix = UnixListener::bind(&path).expect("bind");
    std::fs::remove_file(path).expect("the path of the socket is not needed");
    let unconnected = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let fails = |passed: OwnedFd, count: &str, expected: &str| {
        let script = format!("{FOR_THE_CHILD} LISTEN_FDS={count} EXPECTED='{expected}'");
        check(start("non_listener_is_an_error", &script, passed));
    };
    // macOS does not tell whether a socket listens.
    if cfg!(not(kittiwake_portable)) {
        fails(connected.into(), "1", "does not listen");
        fails(unconnected.into(), "1", "does not listen");
    }
    fails(udp.into(), "1", "fd 3 is not a valid tcp socket");
    fails(unix.into(), "1", "fd 3 is not a valid tcp socket");
    fails(File::open("/dev/null").expect("open").into(), "1", "fd 3 is not a socket");
    for nonsense in ["many", "-1", "4000000000"] {
        fails(localhost().into(), nonsense, "is not a number of descriptors");
    }
    // One more than there are. The third descriptor belongs to the test program, or is not open.
    fails(listener.into(), "3", "fd 5 is not a");
}
