//! System calls that fail: interrupted, cut short, refused. Each test runs itself in a child process in which
//! `faults.c` makes chosen calls fail, and says there what must come of it.
#![cfg(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static")))]

mod support;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::{env, fs};

use futures_lite::future::{poll_once, try_zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, Result};
use kittiwake::net::{ServeError, ShutdownSignal, TcpStream, lookup_host, serve};
use kittiwake::runtime::Builder;
use kittiwake::spawn_blocking;
use support::*;

/// Of the calls of one function the first to fail, counted from 1, then every how many-th: 0 for none.
struct Fault(&'static str, i32, u32, u32);

/// Without it a client that gives up while it waits in the queue ends the server.
#[test]
fn accept_passes_over_connections_that_were_given_up_and_interruptions() {
    let faults = [
        Fault("accept4", libc::ECONNABORTED, 2, 5),
        Fault("accept4", libc::EPROTO, 3, 5),
        Fault("accept4", libc::EINTR, 4, 5),
    ];
    with_faults("accept_passes_over_connections_that_were_given_up_and_interruptions", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            for _ in 0..50 {
                let connect = TcpStream::connect(address);
                try_zip(async { listener.accept().await }, connect).await.expect("accept goes on by itself");
            }
        });
    });
}

/// Without it the kernel makes a socket for each look at an empty queue, and takes it back.
#[test]
fn accept_is_called_once_for_each_connection() {
    const CONNECTIONS: u32 = 3;
    let faults = [Fault("accept4", libc::EMFILE, CONNECTIONS + 1, 0)];
    with_faults("accept_is_called_once_for_each_connection", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            for _ in 0..CONNECTIONS {
                assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected yet");
                let connect = TcpStream::connect(address);
                try_zip(async { listener.accept().await }, connect).await.expect("a connection");
            }
            assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected since");
            let _client = TcpStream::connect(address).await.expect("connect");
            let reported = listener.accept().await.expect_err("this call is the one that fails");
            assert_eq!(reported.raw_os_error(), Some(libc::EMFILE));
        });
    });
}

/// Without it a server does not learn that it is out of something, or cannot go on when it has it again.
#[test]
fn accept_reports_what_the_process_lacks_and_goes_on() {
    const LACKS: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    let faults: Vec<_> = (1..).zip(LACKS).map(|(call, error)| Fault("accept4", error, call, 0)).collect();
    with_faults("accept_reports_what_the_process_lacks_and_goes_on", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            let (waker, wakes) = counting_waker();
            let mut accept = listener.accept();
            assert!(poll_with(&waker, &mut accept).is_pending(), "nobody has connected yet");
            let _client = TcpStream::connect(address).await.expect("connect");
            until(|| wakes.get() > 0).await;
            for error in LACKS {
                let reported = listener.accept().await.expect_err("the process lacks something");
                assert_eq!(reported.raw_os_error(), Some(error), "the kernel's error, as it is");
            }
            listener.accept().await.expect("the connection has waited, and there is no other event");
        });
    });
}

/// Without it a server ends for a moment's lack of something, or for one client's network.
#[test]
fn serve_waits_for_what_the_process_lacks_and_goes_on() {
    use libc::{ECONNABORTED, ECONNRESET, EMFILE, ENETDOWN, ENFILE, ENOBUFS, ENOMEM};
    const LACKS: [i32; 7] = [EMFILE, ENFILE, ENOBUFS, ENOMEM, ENETDOWN, ECONNABORTED, ECONNRESET];
    let faults: Vec<_> = (1..).zip(LACKS).map(|(call, error)| Fault("accept4", error, call, 0)).collect();
    with_faults("serve_waits_for_what_the_process_lacks_and_goes_on", &faults, || {
        run_paused(|| async {
            let (listener, address) = listener().await;
            let (said, shutdown) = (Arc::new(Mutex::new(Vec::new())), ShutdownSignal::new());
            let told = said.clone();
            let serving = serve(listener, |_, _| async {}).with_shutdown(&shutdown).on_error(move |error| {
                let ServeError::Accept(error) = error else { panic!("{error}") };
                told.lock().unwrap().push(error.raw_os_error().expect("the kernel's error, as it is"));
            });
            let server = kittiwake::spawn(serving.into_future());
            settle_without_time().await;
            let mut client = TcpStream::connect(address).await.expect("connect");
            assert_eq!(client.read(&mut [0; 8]).await.expect("it is served"), 0);
            shutdown.trigger();
            assert_eq!(server.await.unwrap().expect("it ends well").served, 1);
            // Who has given up is passed over, and the connection after that is tried for at once.
            assert_eq!(*said.lock().unwrap(), LACKS[..5], "one report for each wait");
        });
    });
}

/// Without it a signal in the wrong moment is an error of the connection, or loses bytes.
#[test]
fn interrupted_transfers_are_done_again() {
    // On Linux send(2) is not libc's, and recv(2) only for peeking; what is done about it is the same for all.
    #[cfg(not(mio_unsupported_force_poll_poll))]
    let calls = ["recv", "readv", "sendmsg"];
    #[cfg(mio_unsupported_force_poll_poll)]
    let calls = ["recv", "readv", "send", "sendmsg"];
    let faults = calls.map(|call| Fault(call, libc::EINTR, 3, 3));
    with_faults("interrupted_transfers_are_done_again", &faults, || run(|| exchange(300_000)));
}

/// Without it a signal in the wrong moment stops the loop.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn an_interrupted_wait_is_done_again() {
    let faults = [Fault("epoll_wait", libc::EINTR, 1, 2)];
    with_faults("an_interrupted_wait_is_done_again", &faults, || run(|| exchange(300_000)));
}

/// Without it a transfer counts as whole when the kernel took or gave a part of it. Where events are edges
/// a part means that the kernel's buffer is full or empty, which cannot be pretended from outside.
#[test]
#[cfg(mio_unsupported_force_poll_poll)]
fn transfers_of_a_few_bytes_are_put_together() {
    let faults = [Fault("short", 0, 1, 3)];
    with_faults("transfers_of_a_few_bytes_are_put_together", &faults, || run(|| exchange(20_000)));
}

/// Without it a peer that goes away kills a process that has not switched SIGPIPE off.
#[test]
fn no_write_could_raise_a_signal() {
    with_faults("no_write_could_raise_a_signal", &[], || {
        run(|| async {
            // From the first vectored write on, SIGPIPE ends this process.
            exchange(10_000).await;
            let (stream, peer) = pair().await;
            drop(peer);
            while stream.try_write(b"x").is_ok() {
                settle().await;
            }
            (&stream).write(b"x").await.expect_err("the peer has gone");
            let slices = [IoSlice::new(b"x"), IoSlice::new(b"y")];
            (&stream).write_vectored(&slices).await.expect_err("the peer has gone");
        });
    });
}

/// Without it a socket that the kernel will not watch keeps its place, or can never be watched.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn a_socket_that_cannot_be_watched_says_so_and_can_try_again() {
    // The first to be added is the runtime's own bell.
    let faults = [2, 3, 4, 5].map(|call| Fault("epoll_add", libc::ENOSPC, call, 0));
    with_faults("a_socket_that_cannot_be_watched_says_so_and_can_try_again", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            let (client, server) = {
                let client = std::net::TcpStream::connect(address).expect("connect");
                (TcpStream::from_std(client).expect("from_std"), listener.accept().await.expect("accept").0)
            };
            let fails = |error: std::io::Error| {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "the kernel's error, as it is");
                assert_eq!(sources(), 0, "what is not watched has no place");
            };
            fails((&server).read(&mut [0; 8]).await.expect_err("reading would wait"));
            fails(server.readable().await.expect_err("nobody would report it"));
            fails(listener.accept().await.expect_err("accepting would wait"));
            fails(TcpStream::connect(address).await.expect_err("connecting would wait"));
            drop(listener.accept().await.expect("that attempt got as far as the queue"));

            assert!(poll_once((&server).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected yet");
            assert_eq!(sources(), 2, "now they are watched");
            (&client).write_all(b"x").await.expect("write");
            assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 1);
            let connect = TcpStream::connect(address);
            try_zip(async { listener.accept().await }, connect).await.expect("a connection");
        });
    });
}

/// Without it a client on a machine without free ports hangs, or gets some other error.
#[test]
fn a_connect_that_fails_at_once_says_so_and_the_next_address_is_tried() {
    let faults = [1, 2].map(|call| Fault("connect", libc::EADDRNOTAVAIL, call, 0));
    with_faults("a_connect_that_fails_at_once_says_so_and_the_next_address_is_tried", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            let error = TcpStream::connect(address).await.expect_err("no port is free");
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "the kernel's error, as it is");
            assert_eq!(sources(), 0, "nothing is left of it");
            let client = TcpStream::connect(vec![address, address]).await.expect("the second attempt");
            assert_eq!(listener.accept().await.expect("accept").1, client.local_addr().expect("local_addr"));
        });
    });
}

/// Without it a runtime that cannot be made panics, or leaves descriptors open.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn a_runtime_that_cannot_be_made_is_an_error_and_leaves_nothing_open() {
    let faults = [
        Fault("epoll_create1", libc::EMFILE, 1, 0),
        Fault("eventfd", libc::ENFILE, 1, 0),
        Fault("epoll_add", libc::ENOMEM, 1, 0),
        Fault("dup", libc::EMFILE, 1, 0),
    ];
    with_faults("a_runtime_that_cannot_be_made_is_an_error_and_leaves_nothing_open", &faults, || {
        within(|| {
            let before = open_descriptors();
            let mut errors = Vec::new();
            let runtime = loop {
                match Builder::new().build() {
                    Ok(runtime) => break runtime,
                    Err(error) => errors.push(error.raw_os_error().expect("the kernel's error, as it is")),
                }
                assert_eq!(open_descriptors(), before, "a runtime that failed leaves nothing open");
            };
            errors.sort_unstable();
            let mut expected = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EMFILE];
            expected.sort_unstable();
            assert_eq!(errors, expected, "each failure is reported");
            assert_eq!(runtime.block_on(async { 1 }), 1, "then it can be made");
        });
    });
}

/// Without it a runtime that cannot have all its workers hangs, goes on with fewer, or leaves the others behind.
#[test]
fn a_runtime_whose_threads_cannot_be_started_is_an_error_and_leaves_nothing() {
    // The first two threads are the test program's and the test's own; then the first worker of three fails, the second, the third.
    let faults = [3, 5, 8].map(|call| Fault("thread", libc::EAGAIN, call, 0));
    with_faults("a_runtime_whose_threads_cannot_be_started_is_an_error_and_leaves_nothing", &faults, || {
        within(|| {
            let (descriptors, threads) = (open_descriptors(), count_of("task"));
            for _ in 0..3 {
                let error = Builder::new().workers(3).build().expect_err("there is no thread");
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "EAGAIN: {error}");
                assert!(error.to_string().contains("no thread"), "it must say what failed: {error}");
                assert!(error.to_string().contains("os error 11"), "the system's reason: {error}");
                assert_eq!(open_descriptors(), descriptors, "a runtime that failed leaves nothing open");
                // The kernel lists a thread for a moment after it was joined.
                while count_of("task") > threads {
                    std::thread::yield_now();
                }
            }
            let runtime = Builder::new().workers(3).build().expect("now there are enough");
            assert_eq!(on_each_worker(runtime.handle(), 3, |worker| worker).len(), 3);
        });
    });
}

/// Without it a server on a machine that is out of threads hangs, spins, or panics.
#[test]
fn a_closure_that_no_thread_can_be_started_for_says_so_and_the_next_one_runs() {
    // The first two threads are the test program's and the test's own.
    let faults = [3, 4].map(|call| Fault("thread", libc::EAGAIN, call, 0));
    with_faults("a_closure_that_no_thread_can_be_started_for_says_so_and_the_next_one_runs", &faults, || {
        run(|| async {
            let error = spawn_blocking(|| ()).await.expect_err("there is no thread");
            assert!(error.is_cancelled() && !error.is_panic());
            assert!(error.to_string().contains("no thread can be started"), "{error}");
            assert!(error.to_string().contains("os error 11"), "the system's reason: {error}");
            let error = lookup_host("localhost:80").await.map(Iterator::count).expect_err("there is no thread");
            assert!(error.to_string().contains("\"localhost\" cannot be looked up"), "{error}");
            assert!(error.to_string().contains("no thread can be started"), "{error}");
            assert_eq!(spawn_blocking(|| 1).await.expect("now there is one"), 1);
        });
    });
}

/// Without it a burst on a machine that is nearly out of threads loses a part of its work.
#[test]
fn closures_wait_for_the_threads_there_are_when_no_more_can_be_started() {
    let faults = [4, 5, 6].map(|call| Fault("thread", libc::EAGAIN, call, 0));
    with_faults("closures_wait_for_the_threads_there_are_when_no_more_can_be_started", &faults, || {
        run(|| async {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let first = spawn_blocking(move || ended.recv().is_err());
            let waiting: Vec<_> = (0..3).map(|i| spawn_blocking(move || i)).collect();
            drop(end);
            assert!(first.await.expect("it has a thread"));
            for (i, task) in waiting.into_iter().enumerate() {
                assert_eq!(task.await.expect("the first one's thread comes to it"), i);
            }
        });
    });
}

/// Without it a resolver that hangs is asked again and again for those who gave up long ago.
#[test]
fn a_look_up_that_is_given_up_before_it_begins_never_begins() {
    let faults = [Fault("getaddrinfo", libc::EAI_FAIL, 1, 0)];
    with_faults("a_look_up_that_is_given_up_before_it_begins_never_begins", &faults, || {
        within(|| {
            let runtime = Builder::new().max_blocking_threads(1).build().expect("a runtime");
            runtime.block_on(async {
                let (end, ended) = std::sync::mpsc::channel::<()>();
                let stuck = spawn_blocking(move || ended.recv().is_err());
                assert!(poll_once(TcpStream::connect("localhost:80")).await.is_none(), "it waits for a thread");
                drop(end);
                assert!(stuck.await.expect("it ends"));
                let error =
                    lookup_host("localhost:80").await.map(Iterator::count).expect_err("the first to be asked for");
                assert!(error.to_string().contains("\"localhost\" cannot be looked up: "), "{error}");
                lookup_host("localhost:80").await.expect("the resolver is well again").for_each(drop);
            });
        });
    });
}

/// Sends and receives by every form of transfer, both ways at once, and compares.
async fn exchange(length: usize) {
    let (client, server) = pair().await;
    let bytes = pattern(length);
    for form in [Form::Plain, Form::Vectored, Form::Tried] {
        let there = try_zip(send(&client, &bytes, form), receive(&server, length, form));
        let back = try_zip(send(&server, &bytes, form), receive(&client, length, form));
        let (((), there), ((), back)) = try_zip(there, back).await.expect("a transfer");
        assert!(there == bytes && back == bytes, "every byte in its place");
    }
}

#[derive(Clone, Copy)]
enum Form {
    Plain,
    Vectored,
    Tried,
}

async fn send(mut stream: &TcpStream, mut bytes: &[u8], form: Form) -> Result<()> {
    while !bytes.is_empty() {
        // Little at a time, for many calls.
        let part = &bytes[..bytes.len().min(3000)];
        let (first, second) = part.split_at(part.len() / 2);
        let written = match form {
            Form::Plain => stream.write(part).await?,
            Form::Vectored => stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]).await?,
            Form::Tried => try_until(|| stream.try_write(part), || stream.writable()).await?,
        };
        bytes = &bytes[written..];
    }
    Ok(())
}

async fn receive(mut stream: &TcpStream, length: usize, form: Form) -> Result<Vec<u8>> {
    let (mut received, mut buf) = (Vec::new(), vec![0; 5000]);
    while received.len() < length {
        let want = buf.len().min(length - received.len());
        stream.peek(&mut buf[..want]).await?;
        let read = match form {
            Form::Plain => stream.read(&mut buf[..want]).await?,
            Form::Vectored => {
                let (first, second) = buf[..want].split_at_mut(want / 2);
                stream.read_vectored(&mut [IoSliceMut::new(first), IoSliceMut::new(second)]).await?
            }
            Form::Tried => try_until(|| stream.try_read(&mut buf[..want]), || stream.readable()).await?,
        };
        assert!(read > 0, "the stream has not ended");
        received.extend_from_slice(&buf[..read]);
    }
    Ok(received)
}

async fn try_until<F: Future<Output = Result<()>>>(
    mut attempt: impl FnMut() -> Result<usize>,
    ready: impl Fn() -> F,
) -> Result<usize> {
    loop {
        match attempt() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => ready().await?,
            result => return result,
        }
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("the descriptors of this process").count()
}

/// Runs `body` in a process of its own in which system calls fail by `faults`; `name` is the test's. Fails when
/// a fault was never used: then the test has shown nothing.
#[track_caller]
fn with_faults(name: &str, faults: &[Fault], body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let rules: Vec<_> =
        faults.iter().map(|Fault(call, error, first, step)| format!("{call}:{error}:{first}:{step}")).collect();
    let output = Command::new(env::current_exe().expect("the path of this test program"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("LD_PRELOAD", shim())
        .env("FAULTS", rules.join(" "))
        .env(CHILD, "1")
        .output()
        .expect("the child runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed with faults {rules:?}:\n{out}\n{err}");
    assert!(out.contains("1 passed"), "no test is called {name}:\n{out}");
    assert!(!err.contains(" used 0 times"), "a fault was never used:\n{err}");
    assert_eq!(err.matches(" used ").count(), faults.iter().filter(|fault| fault.0 != "short").count(), "{err}");
}

/// `faults.c`, compiled once for each of its versions. There is a C compiler where Rust can link.
fn shim() -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults.c");
    let mut hash = DefaultHasher::new();
    fs::read(source).expect("the source of the shim").hash(&mut hash);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let compiled = folder.join(format!("faults-{:x}.so", hash.finish()));
    if !compiled.exists() {
        let thread = std::thread::current();
        let unfinished = folder.join(format!("faults-{}-{}.so", std::process::id(), thread.name().unwrap_or("test")));
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&unfinished).arg(source);
        let output = compiler.output().expect("cc runs");
        assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        fs::rename(&unfinished, &compiled).expect("the compiled shim gets its name");
    }
    compiled
}
