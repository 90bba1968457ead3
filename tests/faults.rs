//! System calls that fail: interrupted, cut short or refused. Each test runs itself in a child process in which
//! `faults.c`, strace or a seccomp filter makes chosen calls fail, and asserts the consequences there. `tests/proof/faults.sh`
//! does the same to the examples.
#![cfg(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static")))]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{IoSlice, IoSliceMut, Read as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::{env, fs};

use futures_lite::future::{Boxed, FutureExt as _, poll_once, try_zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind, Interest, Result};
use kittiwake::net::{Failure, ShutdownSignal, TcpStream, UdpSocket, lookup_host, serve};
use kittiwake::runtime::Builder;
use kittiwake::spawn_blocking;
use kittiwake::time::{Duration, Instant, sleep};
#[cfg(not(mio_unsupported_force_poll_poll))]
use kittiwake::time::{Elapsed, timeout};
use support::*;

/// A rule for one function: its name, the errno, the number of the first call to fail (counted from 1), and the
/// distance to each further one, or 0 for none.
struct Fault(&'static str, i32, u32, u32);

/// `accept` skips connections that were aborted in the queue, and repeats interrupted calls.
#[test]
fn accept_skips_aborted_connections() {
    let faults = [
        Fault("accept4", libc::ECONNABORTED, 2, 5),
        Fault("accept4", libc::EPROTO, 3, 5),
        Fault("accept4", libc::EINTR, 4, 5),
    ];
    with_faults("accept_skips_aborted_connections", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            for _ in 0..50 {
                let connect = TcpStream::connect(address);
                try_zip(async { listener.accept().await }, connect).await.expect("`accept` continues by itself");
            }
        });
    });
}

/// `accept` makes one system call per connection. A call on an empty queue would make the kernel create a socket
/// and drop it.
#[test]
fn accept_is_called_once_per_connection() {
    const CONNECTIONS: u32 = 3;
    let faults = [Fault("accept4", libc::EMFILE, CONNECTIONS + 1, 0)];
    with_faults("accept_is_called_once_per_connection", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            for _ in 0..CONNECTIONS {
                assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
                let connect = TcpStream::connect(address);
                try_zip(async { listener.accept().await }, connect).await.expect("a connection");
            }
            assert!(poll_once(listener.accept()).await.is_none(), "no further client has connected");
            let _client = TcpStream::connect(address).await.expect("connect");
            let reported = listener.accept().await.expect_err("the next call is the one that fails");
            assert_eq!(reported.raw_os_error(), Some(libc::EMFILE));
        });
    });
}

/// `accept` reports exhausted resources of the process, and then continues.
#[test]
fn accept_reports_exhausted_resources() {
    const LACKS: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    let faults: Vec<_> = (1..).zip(LACKS).map(|(call, error)| Fault("accept4", error, call, 0)).collect();
    with_faults("accept_reports_exhausted_resources", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            let (waker, wakes) = counting_waker();
            let mut accept = listener.accept();
            assert!(poll_with(&waker, &mut accept).is_pending(), "no client has connected yet");
            let _client = TcpStream::connect(address).await.expect("connect");
            until(|| wakes.get() > 0).await;
            for error in LACKS {
                let reported = listener.accept().await.expect_err("a resource is exhausted");
                assert_eq!(reported.raw_os_error(), Some(error), "the error must be the kernel's own");
            }
            listener.accept().await.expect("the connection is still in the queue, without another event");
        });
    });
}

/// `serve` waits while resources are exhausted, and then continues. A client's network error does not end it
/// either.
#[test]
fn serve_survives_exhausted_resources() {
    const LACKS: [i32; 6] =
        [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::ENETDOWN, libc::ECONNABORTED];
    let faults: Vec<_> = (1..).zip(LACKS).map(|(call, error)| Fault("accept4", error, call, 0)).collect();
    with_faults("serve_survives_exhausted_resources", &faults, || {
        run_paused(|| async {
            let (listener, address) = listener().await;
            let (reports, shutdown) = (Arc::new(Mutex::new(Vec::new())), ShutdownSignal::new());
            let recorded = reports.clone();
            let serving = serve(listener, |_, _| async {}).with_shutdown(&shutdown).on_error(move |error| {
                let Failure::Accept(error) = error else { panic!("{error}") };
                recorded.lock().unwrap().push(error.raw_os_error().expect("the error is the kernel's own"));
            });
            let server = kittiwake::spawn(serving.into_future());
            settle().await;
            let mut client = TcpStream::connect(address).await.expect("connect");
            assert_eq!(client.read(&mut [0; 8]).await.expect("the client is served"), 0);
            shutdown.trigger();
            assert_eq!(server.await.unwrap().expect("the task ends without an error").served, 1);
            // A connection that the network has failed or that was aborted is skipped, and the next one is accepted.
            assert_eq!(*reports.lock().unwrap(), LACKS[..4], "each wait must be reported once");
        });
    });
}

/// Interrupted transfers are repeated and lose no byte.
#[test]
#[cfg(mio_unsupported_force_poll_poll)]
fn interrupted_transfers_are_repeated() {
    let faults = ["recv", "recvmsg", "send", "sendmsg"].map(|call| Fault(call, libc::EINTR, 3, 3));
    with_faults("interrupted_transfers_are_repeated", &faults, || run(|| exchange(300_000)));
}

/// Interrupted transfers are repeated and lose no byte. Transfers on epoll do not go through libc, so strace interrupts
/// them.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn interrupted_transfers_are_repeated() {
    if is_child() {
        return run(|| exchange(300_000));
    }
    const CALLS: [&str; 4] = ["recvfrom", "recvmsg", "sendto", "sendmsg"];
    let rules = CALLS.map(|call| format!("inject={call}:error=EINTR:when=3+3"));
    let Some(injected) = with_strace("interrupted_transfers_are_repeated", &CALLS.join(","), &rules) else { return };
    for call in CALLS {
        assert!(injected.iter().any(|line| line.contains(call)), "no {call} was interrupted");
    }
}

/// An error event of the past does not keep a socket ready. Here it tells of a timestamp in the socket's error queue. A
/// task that waits again after each `WouldBlock` would otherwise spin. Without edges it does: poll(2) reports the error
/// for as long as it is in the queue.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn error_event_ends_with_its_edge() {
    with_faults("error_event_ends_with_its_edge", &[Fault("timestamps", 0, 0, 0)], || {
        run(|| async {
            let (client, server) = pair().await;
            client.set_nodelay(true).expect("set_nodelay");
            client.try_write(b"x").expect("the byte leaves");
            assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 1);
            let (mut reads, mut writes) = (0, 0);
            let wait = async {
                loop {
                    client.readable().await.expect("readable");
                    let _ = client.try_read(&mut [0; 8]);
                    reads += 1;
                }
            };
            let waited: std::result::Result<(), Elapsed> = timeout(Duration::from_millis(100), wait).await;
            waited.expect_err("the peer sends nothing");
            assert!(reads < 10, "one event of the past made the socket readable {reads} times");
            // A full buffer is not writable, and the event must not make it so.
            while client.try_write(&[0; 65536]).is_ok() {}
            let wait = async {
                loop {
                    client.writable().await.expect("writable");
                    while client.try_write(&[0; 65536]).is_ok() {}
                    writes += 1;
                }
            };
            let waited: std::result::Result<(), Elapsed> = timeout(Duration::from_millis(100), wait).await;
            waited.expect_err("the peer reads nothing");
            assert!(writes < 100, "one event of the past made the socket writable {writes} times");
        });
    });
}

/// An entry in the error queue is neither the end of a stream nor readiness. poll(2) reports it as an error until the
/// program takes it out.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn error_queue_is_no_end() {
    with_faults("error_queue_is_no_end", &[Fault("timestamps", 0, 0, 0)], || {
        run(|| async {
            let (client, server) = pair().await;
            client.set_nodelay(true).expect("set_nodelay");
            client.try_write(b"x").expect("the byte leaves");
            assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 1);
            let mut closed = std::pin::pin!(client.closed());
            assert!(poll_once(&mut closed).await.is_none(), "the peer has not closed the stream");
            while client.try_write(&[0; 65536]).is_ok() {}
            settle().await;
            let both = Interest::READABLE | Interest::WRITABLE;
            let blocks = || Err::<(), _>(ErrorKind::WouldBlock.into());
            assert_eq!(client.try_io(both, blocks).expect_err("it blocks").kind(), ErrorKind::WouldBlock);
            let ready = poll_once(client.ready(both)).await;
            assert!(ready.is_none(), "no direction is ready after WouldBlock: {ready:?}");
            assert!(poll_once(&mut closed).await.is_none(), "the peer has not closed the stream");
            drop(server);
            closed.await.expect("the peer has closed the stream");
        });
    });
}

/// An interrupted wait of the reactor is repeated.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn interrupted_wait_is_repeated() {
    let faults = [Fault("epoll_wait", libc::EINTR, 1, 2)];
    with_faults("interrupted_wait_is_repeated", &faults, || run(|| exchange(300_000)));
}

/// A transfer of which the kernel took or gave a part is completed. With edge-triggered events a part means that
/// the kernel's buffer is full or empty, which a test cannot pretend.
#[test]
#[cfg(mio_unsupported_force_poll_poll)]
fn short_transfers_are_completed() {
    let faults = [Fault("short", 0, 1, 3)];
    with_faults("short_transfers_are_completed", &faults, || run(|| exchange(20_000)));
}

/// No write can raise SIGPIPE, even in a process that has not disabled the signal.
#[test]
fn writes_raise_no_signal() {
    with_faults("writes_raise_no_signal", &[], || {
        run(|| async {
            // From the first vectored write on, SIGPIPE would end this process.
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

/// A socket that the kernel refuses to watch reports the error, is not registered, and can try again.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn unwatchable_socket_can_retry() {
    // The first descriptor that is added is the runtime's own unparker.
    let faults = [2, 3, 4, 5].map(|call| Fault("epoll_add", libc::ENOSPC, call, 0));
    with_faults("unwatchable_socket_can_retry", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            let (client, server) = {
                let client = std::net::TcpStream::connect(address).expect("connect");
                (TcpStream::from_std(client).expect("from_std"), listener.accept().await.expect("accept").0)
            };
            let fails = |error: std::io::Error| {
                assert_eq!(errno(&error), Some(libc::ENOSPC), "the error must be the kernel's own");
                assert_eq!(sources(), 0, "a refused socket must not be registered");
            };
            fails((&server).read(&mut [0; 8]).await.expect_err("reading would wait"));
            fails(server.readable().await.expect_err("no reactor would report readiness"));
            fails(listener.accept().await.expect_err("accepting would wait"));
            fails(TcpStream::connect(address).await.expect_err("connecting would wait"));
            drop(listener.accept().await.expect("the failed connect has reached the queue"));

            assert!(poll_once((&server).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
            assert_eq!(sources(), 2, "both sockets must be registered now");
            (&client).write_all(b"x").await.expect("write");
            assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 1);
            let connect = TcpStream::connect(address);
            try_zip(async { listener.accept().await }, connect).await.expect("a connection");
        });
    });
}

/// A connect that fails at once reports the error, and the next address is tried.
#[test]
fn failed_connect_tries_next_address() {
    let faults = [1, 2].map(|call| Fault("connect", libc::EADDRNOTAVAIL, call, 0));
    with_faults("failed_connect_tries_next_address", &faults, || {
        run(|| async {
            let (listener, address) = listener().await;
            let error = TcpStream::connect(address).await.expect_err("no port is free");
            assert_eq!(errno(&error), Some(libc::EADDRNOTAVAIL), "the error must be the kernel's own");
            assert_eq!(sources(), 0, "no socket may stay registered");
            let client = TcpStream::connect(vec![address, address]).await.expect("the second attempt succeeds");
            assert_eq!(listener.accept().await.expect("accept").1, client.local_addr().expect("local_addr"));
        });
    });
}

/// A runtime that cannot be made is an error, and leaves no descriptor open.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn failed_runtime_leaves_nothing_open() {
    let faults = [
        Fault("epoll_create1", libc::EMFILE, 1, 0),
        Fault("eventfd", libc::ENFILE, 1, 0),
        Fault("epoll_add", libc::ENOMEM, 1, 0),
        Fault("dup", libc::EMFILE, 1, 0),
    ];
    with_faults("failed_runtime_leaves_nothing_open", &faults, || {
        within(|| {
            let before = open_descriptors();
            let mut errors = Vec::new();
            let runtime = loop {
                match Builder::new_multi_thread().build() {
                    Ok(runtime) => break runtime,
                    Err(error) => errors.push(error.raw_os_error().expect("the error is the kernel's own")),
                }
                assert_eq!(open_descriptors(), before, "a runtime that failed must leave no descriptor open");
            };
            errors.sort_unstable();
            let mut expected = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EMFILE];
            expected.sort_unstable();
            assert_eq!(errors, expected, "each failure must be reported");
            assert_eq!(runtime.block_on(async { 1 }), 1, "the runtime must work in the end");
        });
    });
}

/// A runtime whose threads cannot be started is an error, and leaves neither threads nor descriptors.
#[test]
fn unstartable_worker_fails_the_build() {
    // The first two threads are those of the test program and of the test. The rules then fail the first of three
    // workers, the second and the third.
    let faults = [3, 5, 8].map(|call| Fault("thread", libc::EAGAIN, call, 0));
    with_faults("unstartable_worker_fails_the_build", &faults, || {
        within(|| {
            let (descriptors, threads) = (open_descriptors(), count_of("task"));
            for _ in 0..3 {
                let error = Builder::new_multi_thread().worker_threads(3).build().expect_err("there is no thread");
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "the error is EAGAIN: {error}");
                assert!(error.to_string().contains("no thread"), "the error must name what failed: {error}");
                assert!(
                    error.to_string().contains("os error 11"),
                    "the error must contain the system's reason: {error}"
                );
                assert_eq!(open_descriptors(), descriptors, "a runtime that failed must leave no descriptor open");
                // The kernel lists a thread for a moment after it was joined.
                while count_of("task") > threads {
                    std::thread::yield_now();
                }
            }
            let runtime =
                Builder::new_multi_thread().worker_threads(3).build().expect("the threads can be started now");
            assert_eq!(on_each_worker(runtime.handle(), 3, |worker| worker).len(), 3);
        });
    });
}

/// A closure for which no thread can be started fails with an error, and the next one runs.
#[test]
fn closure_without_thread_fails() {
    // The first two threads are those of the test program and of the test.
    let faults = [3, 4].map(|call| Fault("thread", libc::EAGAIN, call, 0));
    with_faults("closure_without_thread_fails", &faults, || {
        run(|| async {
            let error = spawn_blocking(|| ()).await.expect_err("there is no thread");
            assert!(error.is_cancelled() && !error.is_panic());
            assert!(
                std::error::Error::source(&error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>),
                "{error:?}"
            );
            assert!(error.to_string().contains("no thread can be started"), "{error}");
            assert!(error.to_string().contains("os error 11"), "the error must contain the system's reason: {error}");
            let error = lookup_host("localhost:80").await.map(Iterator::count).expect_err("there is no thread");
            assert!(error.to_string().contains("\"localhost\" cannot be looked up"), "{error}");
            assert!(error.to_string().contains("no thread can be started"), "{error}");
            assert_eq!(spawn_blocking(|| 1).await.expect("a thread can be started again"), 1);
        });
    });
}

/// Closures wait for the existing threads if no more can be started.
#[test]
fn closures_share_the_startable_threads() {
    let faults = [4, 5, 6].map(|call| Fault("thread", libc::EAGAIN, call, 0));
    with_faults("closures_share_the_startable_threads", &faults, || {
        run(|| async {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let first = spawn_blocking(move || ended.recv().is_err());
            let waiting: Vec<_> = (0..3).map(|i| spawn_blocking(move || i)).collect();
            drop(end);
            assert!(first.await.expect("the closure has a thread"));
            for (i, task) in waiting.into_iter().enumerate() {
                assert_eq!(task.await.expect("the thread of the first closure runs this one"), i);
            }
        });
    });
}

/// A server that cannot wait for signals, because its reactor cannot be made, ends with an error. Its exit status must
/// not be that of a server that was asked to end.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn server_without_reactor_ends_with_error() {
    let name = "server_without_reactor_ends_with_error";
    let mut echo = refusing("epoll_create1=EMFILE");
    echo.arg(programs::example("echo")).arg("127.0.0.1:0");
    let Some(output) = within_once(move || output_where_refused(name, &mut echo)) else { return };
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.starts_with("echo: cannot serve on ") && err.contains("os error 24"), "{err}");
}

/// Threads that the kernel refuses make the build of a runtime fail, or a closure. Neither leaves a thread or a
/// descriptor, and the next one works, however often runtimes are made and dropped. Here the system call itself fails,
/// also on the workers' threads.
#[test]
fn runtimes_survive_refused_threads() {
    if is_child() {
        return within_once(make_runtimes_without_threads);
    }
    // The call is counted on each thread by itself. The first ones are those of the test program and of the test.
    let rules = ["clone", "clone3"].map(|call| format!("inject={call}:error=EAGAIN:when=2+5"));
    let injected = with_strace("runtimes_survive_refused_threads", "clone,clone3", &rules);
    assert!(injected.is_none_or(|lines| lines.len() > 10), "a few threads must be refused");
}

fn make_runtimes_without_threads() {
    let (descriptors, threads) = (open_descriptors(), count_of("task"));
    let (mut failed, mut worked) = (0, 0);
    let mut count = |failure: Option<String>| match failure {
        Some(error) => {
            assert!(error.contains("no thread") && error.contains("os error 11"), "{error}");
            failed += 1;
        }
        None => worked += 1,
    };
    for round in 0..60 {
        match Builder::new_multi_thread().worker_threads(1 + round % 4).build() {
            Err(error) => count(Some(error.to_string())),
            Ok(runtime) => {
                count(None);
                count(runtime.block_on(async { spawn_blocking(|| ()).await }).err().map(|error| error.to_string()));
                let on_worker = runtime.handle().spawn(async { spawn_blocking(|| ()).await });
                let closure = runtime.block_on(on_worker).expect("the task ends");
                count(closure.err().map(|error| error.to_string()));
            }
        }
        // The drop waits for no thread of a closure. While such a thread wakes a worker, it keeps the worker's eventfd.
        while count_of("task") > threads {
            std::thread::yield_now();
        }
        assert_eq!(open_descriptors(), descriptors, "the runtime of round {round} leaves a descriptor open");
    }
    assert!(failed > 10 && worked > 10, "{failed} builds and closures have failed, and {worked} have worked");
}

/// Timers are right where a sandbox refuses timerfd_create(2): never early, and at most about a millisecond late.
#[test]
fn timers_need_no_timerfd() {
    with_refused("timers_need_no_timerfd", "timerfd_create=EPERM", || {
        run(|| async {
            // Without a reactor a condition variable ends the wait.
            open_reactor().await;
            let mut best = Duration::MAX;
            for round in 0..100 {
                let (begin, length) = (Instant::now(), Duration::from_micros(1_100 + 37 * round));
                sleep(length).await;
                let late = begin.elapsed().checked_sub(length).expect("a timer must not fire early");
                best = best.min(late);
            }
            // A busy machine delays most wake-ups, but not each of them.
            assert!(best < Duration::from_micros(1_200), "the best of 100 timers is {best:?} late");
        });
    });
}

/// Sockets work where a sandbox refuses ppoll(2), which they use to ask for readiness beside the reactor.
#[test]
fn sockets_need_no_ppoll() {
    with_refused("sockets_need_no_ppoll", "ppoll=ENOSYS", || {
        run(|| async {
            let (listener, address) = listener().await;
            for _ in 0..5 {
                assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
                // One event announces both connections.
                let clients = [0, 1].map(|_| std::net::TcpStream::connect(address).expect("connect"));
                for client in clients {
                    let (_, peer) = listener.accept().await.expect("accept");
                    assert_eq!(peer, client.local_addr().expect("local_addr"));
                }
            }
            exchange(100_000).await;
        });
    });
}

/// `closed` reports that poll(2) was refused. It must not say that the peer has gone: a server would give up its work.
#[test]
fn closed_reports_refused_ppoll() {
    with_refused("closed_reports_refused_ppoll", "ppoll=EPERM", || {
        run(|| async {
            let (client, _server) = pair().await;
            let error = client.closed().await.expect_err("the peer is there");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "the error must be the kernel's own");
        });
    });
}

/// A write to standard output that cannot wait for room fails, and does not try again without end. The output is a
/// non-blocking pipe that is full, and a sandbox refuses poll(2).
#[test]
fn refused_poll_ends_pooled_write() {
    with_refused("refused_poll_ends_pooled_write", "ppoll=EPERM", || {
        within(|| {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            rustix::io::ioctl_fionbio(&writer, true).expect("FIONBIO");
            let program = env::current_exe().expect("the path of this test program");
            let input = fs::File::open(program).expect("a regular file, longer than a pipe holds");
            let mut child = Command::new(programs::example("child"));
            let status = child.arg("cat").stdin(input).stdout(writer).status().expect("the example ends");
            assert!(!status.success(), "the pipe cannot take all bytes: {status}");
            drop(reader);
        });
    });
}

/// An interrupted poll(2) says nothing of the connection: `closed` makes the call again.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn closed_repeats_interrupted_ppoll() {
    const LOOKS: usize = 5;
    if is_child() {
        return run(|| async {
            let (client, server) = pair().await;
            for _ in 0..LOOKS {
                assert!(poll_once(client.closed()).await.is_none(), "the peer is there");
            }
            drop(server);
            client.closed().await.expect("the peer has gone");
        });
    }
    let rules = ["inject=ppoll:error=EINTR:when=1+2".to_owned()];
    let Some(injected) = with_strace("closed_repeats_interrupted_ppoll", "ppoll", &rules) else { return };
    assert!(injected.len() > LOOKS, "each look must be interrupted once: {injected:?}");
}

/// The flow information of an IPv6 address is the same bytes as with std, in both directions. `connect` is std's, and an
/// address of `recv_from` may go there.
#[test]
fn flow_info_is_as_with_std() {
    const FLOW_INFO: u32 = u32::from_ne_bytes([1, 2, 3, 4]);
    if is_child() {
        return run(|| async {
            let Ok(ours) = UdpSocket::bind("[::1]:0").await else { return };
            let theirs = std::net::UdpSocket::bind("[::1]:0").expect("bind");
            let target = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9, FLOW_INFO, 0));
            ours.try_send_to(b"x", target).expect_err("strace lets this call fail");
            theirs.send_to(b"x", target).expect_err("strace lets this call fail");
            ours.send_to(b"there", theirs.local_addr().expect("local_addr")).await.expect("send_to");
            theirs.send_to(b"back", ours.local_addr().expect("local_addr")).expect("send_to");
            let mut buf = [0; 8];
            assert_eq!(theirs.recv_from(&mut buf).expect("recv_from"), (5, target), "strace replaces the address");
            assert_eq!(ours.recv_from(&mut buf).await.expect("recv_from"), (4, target));
        });
    }
    let addr = format!("0a000009{:08x}{:032x}00000000", 0x0102_0304, 1);
    let rules =
        ["inject=sendto:error=ENETDOWN:when=1..2".to_owned(), format!("inject=recvfrom:poke_exit=@arg5={addr}")];
    let Some(injected) = with_strace("flow_info_is_as_with_std", "sendto,recvfrom", &rules) else { return };
    let of = |line: &String| Some(line.split_once("sin6_flowinfo=")?.1.split_once(',')?.0.to_owned());
    let sent: Vec<_> = injected.iter().filter_map(of).collect();
    if sent.is_empty() {
        eprintln!("flow_info_is_as_with_std is skipped: there is no IPv6");
    }
    // The child may run more than once.
    for pair in sent.chunks(2) {
        let [ours, theirs] = pair else { panic!("two calls fail each time: {injected:?}") };
        assert_eq!(ours, theirs, "{injected:?}");
    }
}

/// A lookup that is dropped before it begins never begins. The resolver must not be asked in vain.
#[test]
fn dropped_lookup_never_begins() {
    let faults = [Fault("getaddrinfo", libc::EAI_FAIL, 1, 0)];
    with_faults("dropped_lookup_never_begins", &faults, || {
        within(|| {
            let runtime = blocking_threads(1);
            runtime.block_on(async {
                let (resolver, lookups) = hanging_lookups(4).await;
                assert!(
                    poll_once(TcpStream::connect("localhost:80")).await.is_none(),
                    "the lookup must wait for a thread"
                );
                drop(resolver);
                for lookup in lookups {
                    lookup.await.expect_err("the name does not exist");
                }
                let error = lookup_host("localhost:80")
                    .await
                    .map(Iterator::count)
                    .expect_err("this lookup is the first to reach the resolver");
                assert!(error.to_string().contains("\"localhost\" cannot be looked up: "), "{error}");
                lookup_host("localhost:80").await.expect("the resolver works again").for_each(drop);
            });
        });
    });
}

/// Look-ups that wait for a silent name server do not take the threads of closures.
#[test]
fn hanging_lookups_delay_no_closure() {
    with_faults("hanging_lookups_delay_no_closure", &[], || {
        within(|| {
            let runtime = blocking_threads(1);
            runtime.block_on(async {
                let (mut resolver, _lookups) = hanging_lookups(8).await;
                let end = &mut resolver.end;
                end.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout for reads");
                assert!(end.read(&mut [0]).is_err(), "with this limit no more than 4 look-ups may run");
                assert_eq!(spawn_blocking(|| 7).await.expect("the closure runs"), 7);
            });
        });
    });
}

/// The error of `shutdown_timeout` counts look-ups, and does not call them closures.
#[test]
fn shutdown_timeout_counts_lookups() {
    with_faults("shutdown_timeout_counts_lookups", &[], || {
        within(|| {
            let runtime = blocking_threads(1);
            let (_resolver, _lookups) = runtime.block_on(hanging_lookups(4));
            let left = runtime.shutdown_timeout(Duration::from_millis(20)).expect_err("the look-ups hang");
            // A thread that has ended its task, and not yet itself, may be among the ending ones.
            assert_eq!(left.closures_running(), 4, "{left}");
            assert!(left.to_string().contains("4 blocking tasks"), "{left}");
        });
    });
}

/// A lookup ends with its runtime: with its result if it has begun, and otherwise with an error.
#[test]
fn lookup_ends_with_its_runtime() {
    with_faults("lookup_ends_with_its_runtime", &[], || {
        within(|| {
            let runtime = blocking_threads(1);
            let (resolver, mut lookups) = runtime.block_on(hanging_lookups(5));
            drop(runtime);
            let error_of = |lookup: Boxed<Result<usize>>| {
                kittiwake::block_on(lookup).expect_err("the name does not exist").to_string()
            };
            let waits = error_of(lookups.pop().expect("5 look-ups"));
            assert!(waits.contains(".invalid\" cannot be looked up: ") && waits.contains("cancelled"), "{waits}");
            drop(resolver);
            for lookup in lookups {
                let begun = error_of(lookup);
                assert!(begun.contains("failed to lookup address information"), "{begun}");
            }
        });
    });
}

/// The silent name server of hanging look-ups. Its drop ends the 4 that are in the resolver. They do not use its socket
/// any more then, and those that still wait for a thread must have been dropped.
struct Silent {
    end: UnixStream,
    _resolver: UnixStream,
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.end.shutdown(Shutdown::Write).expect("shutdown");
        self.end.set_read_timeout(Some(PATIENCE)).expect("a timeout for reads");
        self.end.read_exact(&mut [0; 4]).expect("4 look-ups end");
    }
}

/// Begins `count` look-ups that wait until the name server is dropped, and waits until 4 of them are in the resolver.
async fn hanging_lookups(count: usize) -> (Silent, Vec<Boxed<Result<usize>>>) {
    let (end, resolver) = UnixStream::pair().expect("a pair of sockets");
    let name = format!("wait-{}.invalid:80", resolver.as_raw_fd());
    let mut silent = Silent { end, _resolver: resolver };
    let look_up = |_| {
        let name = name.clone();
        async move { lookup_host(name).await.map(Iterator::count) }.boxed()
    };
    let mut lookups: Vec<_> = (0..count).map(look_up).collect();
    for lookup in &mut lookups {
        assert!(poll_once(lookup).await.is_none(), "the look-up waits");
    }
    silent.end.read_exact(&mut [0; 4]).expect("4 look-ups begin");
    (silent, lookups)
}

/// Sends and receives in each form of transfer, in both directions at once, and compares the bytes.
async fn exchange(length: usize) {
    let (client, server) = pair().await;
    let bytes = pattern(length);
    for form in [Form::Plain, Form::Vectored, Form::Tried] {
        let there = try_zip(send(&client, &bytes, form), receive(&server, length, form));
        let back = try_zip(send(&server, &bytes, form), receive(&client, length, form));
        let (((), there), ((), back)) = try_zip(there, back).await.expect("a transfer");
        assert!(there == bytes && back == bytes, "every byte must be in its place");
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
        // Small parts cause many calls.
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
        assert!(read > 0, "the stream must not end");
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

/// Runs `body` in a process of its own in which system calls fail by the rules `faults`. `name` is the name of the
/// test. Fails if a rule was never used, because the test would then prove nothing.
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
        // A rule names the number of a call, and a second run would make other calls.
        .env(baseline::ONCE, "1")
        .output()
        .expect("the child runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed with faults {rules:?}:\n{out}\n{err}");
    assert!(out.contains("1 passed"), "no test is called {name}:\n{out}");
    baseline::pass_on(&err);
    assert!(!err.contains(" used 0 times"), "a fault was never used:\n{err}");
    assert_eq!(
        err.matches(" used ").count(),
        faults.iter().filter(|fault| !matches!(fault.0, "short" | "timestamps")).count(),
        "{err}"
    );
}

/// Runs `body` in a process of its own in which a seccomp filter refuses system calls by the rules of
/// `tests/proof/refuse.py`. Where that cannot be done, says so.
#[track_caller]
fn with_refused(name: &str, rules: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let Some(output) = output_where_refused(name, as_child(name, &mut refusing(rules))) else { return };
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{name} failed:\n{out}\n{err}");
    baseline::pass_on(&err);
}

/// The command that refuses system calls to the program that is added as its arguments.
fn refusing(rules: &str) -> Command {
    let mut python = Command::new("python3");
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proof/refuse.py")).arg(rules);
    python
}

fn output_where_refused(name: &str, command: &mut Command) -> Option<Output> {
    // The status of `refuse.py` where it cannot install a filter.
    output_of(name, command).filter(|output| {
        let is_refused = output.status.code() != Some(77);
        if !is_refused {
            eprintln!("{name} is skipped: {}", String::from_utf8_lossy(&output.stderr));
        }
        is_refused
    })
}

/// Runs the test `name` as a child under strace, which makes calls fail. Returns the lines of the failed calls, and
/// `None` where strace cannot run.
#[track_caller]
fn with_strace(name: &str, calls: &str, rules: &[String]) -> Option<Vec<String>> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/stderr", "-e"]).arg(format!("trace={calls}"));
    for rule in rules {
        strace.args(["-e", rule]);
    }
    let output = output_of(name, as_child(name, &mut strace))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if err.contains("PTRACE") {
        eprintln!("{name} is skipped: strace may not trace here: {err}");
        return None;
    }
    let (injected, other): (Vec<_>, Vec<_>) =
        err.lines().map(str::to_owned).partition(|line| line.contains("(INJECTED)"));
    assert!(output.status.success() && out.contains("1 passed"), "{name} failed:\n{out}\n{}", other.join("\n"));
    baseline::pass_on(&err);
    Some(injected)
}

/// Runs a tool to its end. Returns `None` where there is no such tool, and says so.
#[track_caller]
fn output_of(name: &str, tool: &mut Command) -> Option<Output> {
    match tool.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{name} is skipped: {:?} is missing", tool.get_program());
            None
        }
        output => Some(output.expect("the tool runs")),
    }
}

/// Compiles `faults.c` once for each of its versions. A C compiler exists wherever Rust can link.
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
        fs::rename(&unfinished, &compiled).expect("the compiled shim is renamed");
    }
    compiled
}
