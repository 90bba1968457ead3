//! `net::serve`: which clients it accepts, how it counts their connections, and how it ends.
// Some tests need Linux.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unused_imports))]

mod support;

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::future::{pending, poll_fn};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{
    Failure, HandlerOutput, Report, Serve, ServeError, ServeStats, ShutdownSignal, TcpListener, TcpStream, serve,
    serve_local,
};
use kittiwake::task::JoinHandle;
use kittiwake::time::sleep;
use support::{
    ErrorLog, PATIENCE, Wakes, assert_refuses, count_of, counting_waker, in_own_process, open_reactor, own_listener,
    panic_of, paused_runtime, poll_with, progress, reset, run, run_paused, settle, sources, until, will_reset, within,
};

// ---- counts and reports ----

/// The report counts each connection as served, failed or panicked, and `on_error` reports each failure with its
/// peer.
#[test]
fn report_counts_every_outcome() {
    run(|| async {
        let errors = ErrorLog::default();
        let handler = |mut stream: TcpStream, _| async move {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
            match byte[0] {
                b's' => Ok(()),
                b'f' => Err("so it goes".to_owned()),
                _ => std::panic::resume_unwind(Box::new("the handler panicked")),
            }
        };
        let server = start(handler, |serve| serve.on_error(errors.listen())).await;
        let mut clients = Vec::new();
        for what in b"sffppppssss" {
            clients.push(server.connect());
            clients.last_mut().unwrap().write_all(&[*what]).expect("the client writes");
        }
        let peers: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
        for client in clients {
            assert_eq!(read_all(client).await, b"", "every connection must end");
        }
        let report = server.end().await;
        assert_eq!((report.accepted, report.served, report.failed, report.panicked), (11, 5, 2, 4));
        assert_eq!((report.refused, report.open.len()), (0, 0));
        let mut expected: Vec<_> = peers[1..3].iter().map(|peer| format!("{peer}: so it goes")).collect();
        expected.extend(peers[3..7].iter().map(|peer| format!("{peer}: its handler panicked")));
        expected.sort();
        assert_eq!(errors.sorted(), expected, "each failure must be reported with its peer");
    });
}

/// A handler that panics before its first await ends only its own connection.
#[test]
fn panicking_handler_ends_only_its_connection() {
    run(|| async {
        let calls = AtomicUsize::new(0);
        let handler = move |_stream, _peer| {
            if calls.fetch_add(1, SeqCst) == 0 {
                std::panic::resume_unwind(Box::new("called"));
            }
            async {}
        };
        let server = start(handler, |serve| serve).await;
        assert_eq!(read_all(server.connect()).await, b"");
        assert_eq!(read_all(server.connect()).await, b"");
        let report = server.end().await;
        assert_eq!((report.accepted, report.served, report.panicked), (2, 1, 1));
    });
}

/// A handler whose destructor panics counts as panicked. A connection ends when the handler's state has been
/// dropped.
#[test]
fn panicking_destructor_counts_as_panic() {
    run(|| async {
        let handler = |_stream, _peer| {
            let bomb = PanicsWhenDropped;
            poll_fn(move |_| {
                let _ = &bomb;
                Poll::Ready(())
            })
        };
        let server = start(handler, |serve| serve).await;
        assert_eq!(read_all(server.connect()).await, b"");
        let report = server.end().await;
        assert_eq!((report.accepted, report.served, report.panicked), (1, 0, 1));
    });
}

/// A handler that ends while its thread unwinds for another reason has not panicked: here the whole server runs in a
/// destructor.
#[test]
fn unwinding_thread_blames_no_handler() {
    struct ServesWhenDropped(Arc<Mutex<Option<Report>>>);

    impl Drop for ServesWhenDropped {
        fn drop(&mut self) {
            let report = kittiwake::block_on(async {
                let server = start(|_, _| async {}, |serve| serve).await;
                let _client = server.connect();
                until(|| server.stats.served() + server.stats.panicked() == 1).await;
                server.end().await
            });
            *self.0.lock().unwrap() = Some(report);
        }
    }

    within(|| {
        let report = Arc::new(Mutex::new(None));
        let serves = ServesWhenDropped(report.clone());
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _serves = serves;
            panic!("the thread unwinds");
        }));
        assert!(unwound.is_err());
        let report = report.lock().unwrap().take().expect("the server has ended");
        assert_eq!((report.served, report.panicked), (1, 0));
    });
}

/// A panic of `on_error` ends neither a connection nor the process.
#[test]
fn panicking_on_error_is_contained() {
    run(|| async {
        // The server calls `on_error` while the destructor's panic unwinds.
        let handler = |_stream, _peer| {
            let bomb = PanicsWhenDropped;
            poll_fn(move |_| {
                let _ = &bomb;
                Poll::Ready(Err::<(), _>("refused"))
            })
        };
        let server = start(handler, |serve| serve.on_error(|_| std::panic::resume_unwind(Box::new("the log")))).await;
        for _ in 0..3 {
            assert_eq!(read_all(server.connect()).await, b"");
        }
        assert_eq!(server.end().await.panicked, 3);
    });
}

/// The counts of a running server are read on any thread, and are those of the report in the end.
#[test]
fn stats_count_while_server_runs() {
    run(|| async {
        let server = start(|stream, _| fail(stream), |serve| serve).await;
        let stats = server.stats.clone();
        let counts = |stats: &ServeStats| {
            let ended = (stats.served(), stats.failed(), stats.panicked());
            (stats.accepted(), stats.open(), ended)
        };
        assert_eq!(counts(&stats), (0, 0, (0, 0, 0)));
        let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
        until(|| stats.open() == 4).await;
        let elsewhere = kittiwake::spawn_blocking(move || counts(&stats)).await.expect("the closure does not panic");
        assert_eq!(elsewhere, (4, 4, (0, 0, 0)));
        let requests = [("s", (4, 3, (0, 1, 0))), ("p", (4, 2, (0, 1, 1))), ("ok", (4, 1, (1, 1, 1)))];
        for (request, expected) in requests {
            let mut client = clients.pop().expect("a client");
            client.write_all(request.as_bytes()).expect("the client writes");
            assert_eq!(read_all(client).await, b"");
            // The handler's socket closes before the connection leaves the table.
            until(|| server.stats.open() == expected.1).await;
            assert_eq!(counts(&server.stats), expected, "after {request:?}");
        }
        let stats = server.stats.clone();
        drop(clients);
        let report = server.end().await;
        assert_eq!(counts(&stats), (4, 0, (report.served, report.failed, report.panicked)));
        assert_eq!(report.failed, 2);
    });
}

/// A connection that a server aborts is not open any more, and the report has it.
#[test]
fn aborted_connections_leave_the_stats() {
    run(|| async {
        let server = start(|stream, _| hold(stream), |serve| serve.drain_timeout(Duration::ZERO)).await;
        let (stats, _client) = (server.stats.clone(), server.connect());
        until(|| stats.open() == 1).await;
        let report = server.end().await;
        assert_eq!((stats.accepted(), stats.open(), report.open.len()), (1, 0, 1));
    });
}

/// A failure has the error of its handler, with the type, the kind and the sources. So a log can leave out what it does
/// not want, and print the causes of all else.
#[test]
fn failure_has_kind_and_sources() {
    run(|| async {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = {
            let seen = seen.clone();
            move |failure: &Failure<'_>| {
                let cause = failure.source().map(ToString::to_string);
                let is_query = matches!(failure.error(), Some(error) if error.is::<QueryFailed>());
                let kind = failure.kind();
                let line = (failure.peer().copied(), kind, cause, is_query, failure.is_disconnect());
                seen.lock().unwrap().push(line);
            }
        };
        let server = start(|stream, _| fail(stream), |serve| serve.on_error(log)).await;
        let mut expected = Vec::new();
        let outcomes = [
            (b'i', io::ErrorKind::TimedOut, Some(io::Error::from(io::ErrorKind::TimedOut).to_string()), true, false),
            (b's', io::ErrorKind::Other, None, false, false),
            (b'p', io::ErrorKind::Other, None, false, false),
            (b'r', io::ErrorKind::ConnectionReset, None, false, true),
            (b'e', io::ErrorKind::UnexpectedEof, None, false, true),
        ];
        for (byte, kind, cause, is_query, is_disconnect) in outcomes {
            let mut client = server.connect();
            expected.push((Some(client.local_addr().unwrap()), kind, cause, is_query, is_disconnect));
            client.write_all(&[byte]).expect("the client writes");
            match byte {
                b'e' => client.shutdown(std::net::Shutdown::Write).expect("the client closes"),
                b'r' => {
                    server.until_accepted(expected.len()).await;
                    settle().await;
                    reset(client);
                }
                _ => assert_eq!(read_all(client).await, b""),
            }
            until(|| seen.lock().unwrap().len() == expected.len()).await;
        }
        assert_eq!(*seen.lock().unwrap(), expected, "each failure must show the error of its handler");
        assert_eq!(server.end().await.panicked, 1);
    });
}

/// A failure and its sources together print each error once.
#[test]
fn failure_prints_each_error_once() {
    let error = QueryFailed(io::Error::other("the wire is cut"));
    let failure: Failure<'_, u8> = Failure::Handler { peer: 7, error: &error };
    let sources = std::iter::successors(failure.source(), |&error| error.source());
    let lines: Vec<_> = std::iter::once(failure.to_string()).chain(sources.map(ToString::to_string)).collect();
    assert_eq!(lines, ["7: the query has failed", "the wire is cut"]);
    let accept = io::Error::from_raw_os_error(libc::EMFILE);
    let failure: Failure<'_, u8> = Failure::Accept(&accept);
    assert_eq!((failure.peer(), failure.kind(), failure.is_disconnect()), (None, accept.kind(), false));
    let accept = io::Error::from(io::ErrorKind::ConnectionReset);
    let failure: Failure<'_, u8> = Failure::Accept(&accept);
    assert!(!failure.is_disconnect(), "the listener has failed, and no client has gone away");
}

/// Fails in the way that the first byte of the client says.
async fn fail(mut stream: TcpStream) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    match byte[0] {
        b'i' => Err(Box::new(QueryFailed(io::ErrorKind::TimedOut.into()))),
        b's' => Err("so it goes".into()),
        b'p' => std::panic::resume_unwind(Box::new("the handler panicked")),
        // The client closes or resets the connection.
        _ => Ok(stream.read_exact(&mut byte).await?),
    }
}

/// An error of a user's own, with a source.
#[derive(Debug)]
struct QueryFailed(io::Error);

impl fmt::Display for QueryFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the query has failed")
    }
}

impl Error for QueryFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// A report prints one line, and one more for each of the first ten connections that were open. A server prints it
/// last.
#[test]
fn report_prints_open_connections() {
    run_paused(|| async {
        let server = start(|stream, _| hold(stream), |serve| serve.drain_timeout(Duration::from_secs(3))).await;
        let clients: Vec<_> = (0..12).map(|_| server.connect()).collect();
        server.until_accepted(12).await;
        let report = server.end().await;
        let text = report.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "12 accepted: 0 served, 0 failed, 0 panicked, 12 open; 0 refused");
        assert!(lines[1].ends_with(" was open for 3.0s"), "{text}");
        assert_eq!((lines.len(), lines[11]), (12, "and 2 more"), "{text}");
        drop(clients);
    });
}

/// The handlers of `serve_local` need not be `Send`.
#[test]
fn local_handlers_need_not_be_send() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let (shutdown, count) = (ShutdownSignal::new(), Rc::new(Cell::new(0)));
        let (tie, counted) = (shutdown.clone(), count.clone());
        let handler = move |mut stream: TcpStream, _| {
            let count = counted.clone();
            async move {
                stream.read_exact(&mut [0]).await?;
                count.set(count.get() + 1);
                stream.write_all(b"y").await
            }
        };
        let server = kittiwake::spawn_local(async move { serve_local(listener, handler).with_shutdown(&tie).await });
        let exchange = async {
            let mut client = TcpStream::connect(address).await?;
            client.write_all(b"x").await?;
            client.read_exact(&mut [0]).await
        };
        exchange.await.expect("the client is served");
        shutdown.trigger();
        assert_eq!((server.await.unwrap().unwrap().served, count.get()), (1, 1));
    });
}

// ---- accepting ----

/// `max_connections` limits the connections that are served at a time. The other clients wait in the listen queue.
#[test]
fn max_connections_limits_the_server() {
    run(|| async {
        let there = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let counted = there.clone();
        let handler = move |stream, _| {
            let there = counted.clone();
            async move {
                there.1.fetch_max(there.0.fetch_add(1, SeqCst) + 1, SeqCst);
                let result = answer(stream).await;
                there.0.fetch_sub(1, SeqCst);
                result
            }
        };
        let server = start(handler, |serve| serve.max_connections(3)).await;
        let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
        until(|| there.0.load(SeqCst) == 3).await;
        settle().await;
        assert_eq!(there.0.load(SeqCst), 3, "three clients must be served while seven wait");
        // The last clients stay in the queue until earlier connections have ended.
        for client in &mut clients {
            client.write_all(b"x").expect("the client writes");
        }
        for client in clients {
            assert_eq!(read_all(client).await, b"y", "every client must be served in the end");
        }
        assert_eq!(there.1.load(SeqCst), 3, "the server must never serve more than three at a time");
        assert_eq!(server.end().await.served, 10);
    });
}

/// A limit of zero connections is refused.
#[test]
fn zero_max_connections_is_refused() {
    run(|| async {
        let (listener, _) = own_listener().await;
        let panic = panic_of(|| drop(serve(listener, |_, _| async {}).max_connections(0)));
        assert!(panic.contains("max_connections"), "{panic}");
    });
}

/// A long listen queue is accepted in parts, so that a burst of clients does not delay the other tasks.
#[test]
fn long_queue_is_accepted_in_parts() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let clients: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
        let calls = Rc::new(Cell::new(0));
        let called = calls.clone();
        let handler = move |_, _| {
            called.set(called.get() + 1);
            async {}
        };
        let mut serving = serve(listener, handler).into_future();
        assert!(poll_once(&mut serving).await.is_none());
        let first = calls.get();
        assert!((1..=128).contains(&first), "one poll accepted {first} connections");
        poll_fn(|cx| match Pin::new(&mut serving).poll(cx) {
            Poll::Pending if calls.get() == 300 => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
        clients.iter().for_each(will_reset);
    });
}

// ---- graceful shutdown ----

/// A graceful shutdown serves the clients in the listen queue before it closes the socket. A deployment that closed
/// it first would reset them.
#[test]
fn shutdown_serves_the_listen_queue() {
    run(|| async {
        const QUEUED: u64 = 200;
        let (listener, address) = own_listener().await;
        let mut clients: Vec<_> =
            (0..QUEUED).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
        clients.iter_mut().for_each(|client| client.write_all(b"x").expect("the client writes"));
        let report = serve(listener, |stream, _| answer(stream)).with_graceful_shutdown(async {}).await;
        assert_eq!(report.expect("the task ends without an error").served, QUEUED);
        for client in clients {
            assert_eq!(read_all(client).await, b"y");
        }
        assert_refuses(address);
    });
}

/// A graceful shutdown serves the listen queue beyond `max_connections` too, and never more clients at a time.
#[test]
fn shutdown_serves_queue_within_limit() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let mut clients: Vec<_> = (0..10).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
        clients.iter_mut().for_each(|client| client.write_all(b"x").expect("the client writes"));
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let handler = {
            let most = most.clone();
            move |stream, _| {
                let (open, most) = (open.clone(), most.clone());
                async move {
                    most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
                    settle().await;
                    let answered = answer(stream).await;
                    open.fetch_sub(1, SeqCst);
                    answered
                }
            }
        };
        let server = serve(listener, handler).max_connections(4).with_graceful_shutdown(async {});
        let report = server.await.expect("the task ends without an error");
        assert_eq!((report.accepted, report.served, most.load(SeqCst)), (10, 10, 4));
        for client in clients {
            assert_eq!(read_all(client).await, b"y");
        }
    });
}

/// At the limit, clients in the queue wait until the drain timeout and are reset then. One that was accepted ahead counts
/// as refused.
#[test]
fn drain_timeout_ends_the_queue() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let clients: Vec<_> = (0..6).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
        let server = serve(listener, |stream, _| hold(stream));
        let server = server.max_connections(2).drain_timeout(Duration::from_millis(20));
        let report = server.with_graceful_shutdown(async {}).await.unwrap();
        assert_eq!((report.accepted, report.open.len(), report.refused), (2, 2, 1));
        // The handlers end only after the report.
        settle().await;
        for mut client in clients {
            match client.read(&mut [0]) {
                Ok(read) => assert_eq!(read, 0),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            }
        }
    });
}

/// At the limit, an empty queue is closed at once: a client that comes later must not wait for a server that ends.
#[test]
fn empty_queue_closes_at_the_limit() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let held = std::net::TcpStream::connect(address).expect("connect");
        let (shutdown, stays) = (ShutdownSignal::new(), ShutdownSignal::new());
        let handler = {
            let stays = stays.clone();
            move |stream: TcpStream, _| {
                let mut stays = stays.clone();
                async move {
                    let _stream = stream;
                    stays.triggered().await;
                }
            }
        };
        let server = serve(listener, handler).max_connections(1).with_shutdown(&shutdown);
        let stats = server.stats();
        let server = kittiwake::spawn(server.drain_timeout(Duration::MAX));
        until(|| stats.open() == 1).await;
        shutdown.trigger();
        settle().await;
        assert_refuses(address);
        stays.trigger();
        assert_eq!(server.await.unwrap().unwrap().accepted, 1);
        drop(held);
    });
}

/// A drain waits for the running handlers and accepts no new clients.
#[test]
fn drain_waits_and_accepts_no_client() {
    run(|| async {
        let server = start(|stream, _| answer(stream), |serve| serve.drain_timeout(Duration::MAX)).await;
        let mut clients = [server.connect(), server.connect()];
        server.until_accepted(2).await;
        let address = server.address;
        let report = kittiwake::spawn(server.end());
        until(|| std::net::TcpStream::connect(address).is_err()).await;
        settle().await;
        assert!(!report.is_finished(), "the handlers have not ended yet");
        clients.iter_mut().for_each(|client| client.write_all(b"x").expect("the client writes"));
        for client in clients {
            assert_eq!(read_all(client).await, b"y");
        }
        let report = report.await.unwrap();
        assert!(report.served >= 2 && report.open.is_empty(), "{report}");
    });
}

/// A handler that has not ended within `drain_timeout` is aborted and named in the report.
#[test]
fn late_handlers_are_aborted_and_named() {
    run_paused(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let counted = dropped.clone();
        let handler = move |stream, _| {
            let dropped = CountsDrop(counted.clone());
            async move {
                let _dropped = dropped;
                hold(stream).await;
            }
        };
        let server = start(handler, |serve| serve.drain_timeout(Duration::from_secs(5))).await;
        let first = server.connect();
        server.until_accepted(1).await;
        sleep(Duration::from_secs(7)).await;
        let second = server.connect();
        server.until_accepted(2).await;
        let report = server.end().await;
        let peers = [&first, &second].map(|client| client.local_addr().expect("local_addr"));
        assert_eq!(
            report.open.iter().map(|open| open.peer).collect::<Vec<_>>(),
            peers,
            "the report must name the oldest connection first"
        );
        for (open, secs) in report.open.iter().zip([12, 5]) {
            let expected = Duration::from_secs(secs)..Duration::from_secs(secs + 1);
            assert!(expected.contains(&open.age), "the age is {:?} instead of {secs} s", open.age);
        }
        assert_eq!((report.accepted, report.served, report.failed, report.panicked), (2, 0, 0, 0));
        until(|| dropped.load(SeqCst) == 2).await;
        drop((first, second));
    });
}

/// A `drain_timeout` of zero aborts the handlers at once.
#[test]
fn zero_drain_timeout_aborts_at_once() {
    run(|| async {
        let server = start(|stream, _| hold(stream), |serve| serve.drain_timeout(Duration::ZERO)).await;
        let client = server.connect();
        server.until_accepted(1).await;
        assert_eq!(server.end().await.open.len(), 1);
        assert_eq!(read_all(client).await, b"");
    });
}

/// An immediate shutdown ends a drain, and also works without one. An operator presses Ctrl-C twice.
#[test]
fn immediate_shutdown_ends_a_drain() {
    for drains in [true, false] {
        run(move || async move {
            let (now, stop) = (ShutdownSignal::new(), ShutdownSignal::new());
            let (is_now, is_stopped) = (now.clone(), stop.clone());
            let build = |serve: TestServe<_, _>| {
                let serve = serve.drain_timeout(Duration::MAX).with_graceful_shutdown(is_stopped);
                serve.with_immediate_shutdown(is_now)
            };
            let server = start(|stream, _| hold(stream), build).await;
            let client = server.connect();
            server.until_accepted(1).await;
            if drains {
                stop.trigger();
                until(|| std::net::TcpStream::connect(server.address).is_err()).await;
            }
            settle().await;
            assert!(!server.task.is_finished());
            now.trigger();
            let report = server.task.await.unwrap().expect("the task ends without an error");
            assert_eq!(report.open[0].peer, client.local_addr().expect("local_addr"));
            assert!(server.shutdown.is_triggered(), "an immediate shutdown must trigger the tied shutdown too");
            assert_eq!(read_all(client).await, b"");
        });
    }
}

/// A dropped server aborts its handlers and closes its socket.
#[test]
fn dropped_server_aborts_its_handlers() {
    run(|| async {
        let server = start(|stream, _| hold(stream), |serve| serve).await;
        let clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        server.until_accepted(3).await;
        server.task.abort();
        assert!(server.task.await.unwrap_err().is_cancelled());
        for client in clients {
            assert_eq!(read_all(client).await, b"");
        }
        assert_refuses(server.address);
    });
}

/// A fatal error of the listener ends the server after a drain, instead of endless retries. The report is not lost.
#[test]
#[cfg(target_os = "linux")]
fn fatal_error_ends_server_after_drain() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let copy = socket2::Socket::from(listener.as_fd().try_clone_to_owned().expect("a duplicate"));
        let (errors, shutdown) = (ErrorLog::default(), ShutdownSignal::new());
        let serving = serve(listener, |stream, _| answer(stream)).with_shutdown(&shutdown).on_error(errors.listen());
        let server = kittiwake::spawn(serving.into_future());
        let mut client = std::net::TcpStream::connect(address).expect("connect");
        settle().await;
        // After this, accept(2) reports that the socket does not listen.
        copy.shutdown(std::net::Shutdown::Both).expect("shutdown");
        shutdown.clone().await;
        settle().await;
        assert!(!server.is_finished(), "one connection is open");
        client.write_all(b"x").expect("the client writes");
        assert_eq!(read_all(client).await, b"y");
        let ServeError { error, report, .. } = server.await.unwrap().expect_err("the server ends with the error");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
        assert_eq!((report.accepted, report.served), (1, 1), "{report}");
        assert_eq!(errors.sorted(), [format!("cannot accept connections: {error}")]);
    });
}

// ---- net::Shutdown ----

/// Handlers that wait for the shutdown end when the drain begins. Idle keep-alive connections would otherwise delay
/// the end until the drain timeout.
#[test]
fn idle_handlers_end_with_the_drain() {
    run(|| async {
        let shutdown = ShutdownSignal::new();
        let (tie, clone) = (shutdown.clone(), shutdown.clone());
        let handler = move |stream, _| keep_alive(stream, clone.clone());
        let server = start(handler, |serve| serve.drain_timeout(Duration::MAX).with_shutdown(&tie)).await;
        let mut clients = Vec::new();
        for _ in 0..50 {
            let mut client = TcpStream::from_std(server.connect()).expect("from_std");
            client.write_all(b"first").await.expect("the client writes");
            client.read_exact(&mut [0; 5]).await.expect("the client is answered");
            clients.push(client);
        }
        settle().await;
        // A request that was sent before the shutdown is answered.
        for client in &mut clients[..25] {
            client.write_all(b"last").await.expect("the client writes");
        }
        shutdown.trigger();
        let report = server.task.await.unwrap().expect("the task ends without an error");
        assert_eq!((report.served, report.open.len()), (50, 0));
        for (number, mut client) in clients.into_iter().enumerate() {
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.expect("the client reads to an end");
            assert_eq!(rest, if number < 25 { &b"last"[..] } else { b"" });
        }
    });
}

/// Servers that are tied to one shutdown end together.
#[test]
fn tied_servers_end_together() {
    run(|| async {
        let stop = ShutdownSignal::new();
        let stopped = stop.clone();
        let first = start(|stream, _| answer(stream), |serve| serve.with_graceful_shutdown(stopped)).await;
        let shutdown = first.shutdown.clone();
        let second = start(|stream, _| answer(stream), |serve| serve.with_shutdown(&shutdown)).await;
        stop.trigger();
        first.task.await.unwrap().expect("the task ends without an error");
        second.task.await.unwrap().expect("the task ends without an error");
    });
}

/// Servers that are tied to one shutdown end together also when one of them is dropped. A program of several servers
/// would otherwise run on without it.
#[test]
fn dropped_server_ends_its_twin() {
    run(|| async {
        let first = start(|stream, _| answer(stream), |serve| serve).await;
        let shutdown = first.shutdown.clone();
        let second = start(|stream, _| answer(stream), |serve| serve.with_shutdown(&shutdown)).await;
        first.task.abort();
        assert!(first.task.await.unwrap_err().is_cancelled());
        assert!(shutdown.is_triggered(), "the dropped server has not triggered the shutdown");
        second.task.await.unwrap().expect("the task ends without an error");
    });
}

/// A shutdown is ready for each clone, whether the clone was polled before the shutdown began or later.
#[test]
fn shutdown_is_ready_for_all_clones() {
    run(|| async {
        let shutdown = ShutdownSignal::new();
        assert!(!shutdown.is_triggered());
        let waiting: Vec<_> = (0..100).map(|_| kittiwake::spawn(shutdown.clone())).collect();
        let aborted = kittiwake::spawn(shutdown.clone());
        settle().await;
        aborted.abort();
        assert!(waiting.iter().all(|task| !task.is_finished()), "the shutdown has not begun");
        let begins = shutdown.clone();
        std::thread::spawn(move || begins.trigger()).join().unwrap();
        for task in waiting {
            task.await.unwrap();
        }
        let mut late = shutdown.clone();
        for _ in 0..3 {
            assert!(poll_once(&mut late).await.is_some(), "the shutdown must stay ready");
        }
        shutdown.trigger();
        assert!(late.is_triggered());
        assert_eq!(late.run_until_triggered(async { 1 }).await, Some(1), "a ready future must win over the shutdown");
        assert_eq!(late.run_until_triggered(pending::<u8>()).await, None);
    });
}

/// A clone that is polled while the shutdown begins does not miss it.
#[test]
fn racing_shutdown_reaches_every_clone() {
    within(|| {
        let (give, take) = std::sync::mpsc::channel::<ShutdownSignal>();
        let thread = std::thread::spawn(move || take.into_iter().for_each(|shutdown| shutdown.trigger()));
        for _ in 0..3_000 {
            let shutdown = ShutdownSignal::new();
            give.send(shutdown.clone()).expect("the thread takes the shutdown");
            let (waker, wakes) = counting_waker();
            let mut waiting = Vec::new();
            // The shutdown begins between two polls, or in the middle of one.
            while !shutdown.is_triggered() {
                let mut clone = shutdown.clone();
                if poll_with(&waker, &mut clone).is_pending() {
                    waiting.push(clone);
                }
            }
            while wakes.get() < waiting.len() {
                std::thread::yield_now();
            }
            assert_eq!(wakes.get(), waiting.len(), "each clone must be woken once");
            progress();
        }
        drop(give);
        thread.join().expect("the thread ends");
    });
}

/// A shutdown keeps one waker per clone. A handler that polls its clone in a loop must not leave a waker each time.
#[test]
fn shutdown_keeps_one_waker_per_clone() {
    within(|| {
        let (first, first_wakes) = counting_waker();
        let (second, second_wakes) = counting_waker();
        let wakers = |wakes: &Arc<Wakes>| Arc::strong_count(wakes) - 2;
        let mut shutdown = ShutdownSignal::new();
        assert!(poll_with(&first, &mut shutdown).is_pending());
        let kept = wakers(&first_wakes);
        assert!(kept > 0);
        for _ in 0..100 {
            assert!(poll_with(&first, &mut shutdown).is_pending());
        }
        assert_eq!(wakers(&first_wakes), kept, "a second poll of the same task must not add a waker");
        for _ in 0..100 {
            assert!(poll_with(&second, &mut shutdown).is_pending());
            assert_eq!(
                (wakers(&first_wakes), wakers(&second_wakes)),
                (0, kept),
                "the waker of another task must replace the old one"
            );
            assert!(poll_with(&first, &mut shutdown).is_pending());
        }
        let mut clone = shutdown.clone();
        assert!(poll_with(&second, &mut clone).is_pending());
        assert_eq!((wakers(&first_wakes), wakers(&second_wakes)), (kept, kept), "each clone must keep its own waker");
        drop(clone);
        assert_eq!(wakers(&second_wakes), 0, "a dropped clone must release its waker");
        let mut clone = shutdown.clone();
        assert!(poll_with(&second, &mut clone).is_pending());
        shutdown.trigger();
        assert_eq!((first_wakes.get(), second_wakes.get()), (1, 1), "each waker must be woken once");
        assert!(poll_with(&first, &mut shutdown).is_ready() && poll_with(&second, &mut clone).is_ready());
        drop((shutdown, clone));
        assert_eq!((wakers(&first_wakes), wakers(&second_wakes)), (0, 0));
    });
}

/// A shutdown wakes and drops foreign wakers outside its lock, so a waker may use the shutdown.
#[test]
fn foreign_wakers_may_use_the_shutdown() {
    /// Of the second, the count of wakes that found the shutdown triggered: a panic in a waker would be contained.
    struct CallsBack(ShutdownSignal, Arc<AtomicUsize>);
    impl std::task::Wake for CallsBack {
        fn wake(self: Arc<Self>) {
            let is_triggered = poll_with(std::task::Waker::noop(), &mut self.0.clone()).is_ready();
            self.1.fetch_add(is_triggered.into(), SeqCst);
            self.0.trigger();
        }
    }
    impl Drop for CallsBack {
        fn drop(&mut self) {
            let _ = poll_with(std::task::Waker::noop(), &mut self.0.clone());
        }
    }
    within(|| {
        let (mut shutdown, woken) = (ShutdownSignal::new(), Arc::new(AtomicUsize::new(0)));
        let waker = || std::task::Waker::from(Arc::new(CallsBack(shutdown.clone(), woken.clone())));
        let wakers = [waker(), waker(), waker()];
        let mut clone = shutdown.clone();
        for waker in wakers {
            assert!(poll_with(&waker, &mut clone).is_pending());
        }
        drop(clone);
        let waker = waker();
        assert!(poll_with(&waker, &mut shutdown).is_pending());
        drop(waker);
        shutdown.trigger();
        assert_eq!(woken.load(SeqCst), 1, "the waker must be woken once, and find the shutdown triggered");
        // The waker's reference to the shutdown and the shutdown's reference to the waker form a cycle until here.
        assert!(poll_with(std::task::Waker::noop(), &mut shutdown).is_ready());
    });
}

// ---- descriptor exhaustion ----

/// When a connection ends, a server at the limit of its descriptors accepts the next client at once.
#[test]
#[cfg(target_os = "linux")]
fn ended_connection_resumes_accepting() {
    in_own_process("ended_connection_resumes_accepting", || {
        paused_runtime().block_on(async {
            let server = start(|stream, _| answer(stream), |serve| serve).await;
            let mut clients = vec![server.connect()];
            server.until_accepted(1).await;
            clients.extend((1..10).map(|_| server.connect()));
            clients[1..].iter_mut().for_each(|client| client.write_all(b"x").expect("the client writes"));
            let hoard = take_all_descriptors();
            // The server now waits for 640 ms. The first connection ends in the middle of this wait.
            sleep(Duration::from_millis(700)).await;
            let start = kittiwake::time::Instant::now();
            clients[0].write_all(b"x").expect("the client writes");
            for client in clients {
                assert_eq!(read_all(client).await, b"y");
            }
            assert!(start.elapsed() < Duration::from_millis(100), "the server waited for {:?}", start.elapsed());
            drop(hoard);
            let report = server.end().await;
            assert_eq!((report.served, report.refused), (10, 0));
        });
    });
}

/// When no descriptor is free for long, the server closes new connections instead of letting clients wait, and
/// limits its reports.
#[test]
#[cfg(target_os = "linux")]
fn descriptor_exhaustion_refuses_clients() {
    in_own_process("descriptor_exhaustion_refuses_clients", || {
        paused_runtime().block_on(async {
            let errors = ErrorLog::default();
            let server = start(|stream, _| answer(stream), |serve| serve.on_error(errors.listen())).await;
            let mut served = server.connect();
            server.until_accepted(1).await;
            for round in 1..=3 {
                let clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
                let hoard = take_all_descriptors();
                let start = kittiwake::time::Instant::now();
                sleep(Duration::from_secs(10)).await;
                let calls = errors.len();
                assert_eq!(server.stats.refused(), 100 * round as u64, "the clients are refused while it runs");
                assert!(calls <= 18 * round, "{calls} reports in {:?} and {round} rounds", start.elapsed());
                for mut client in clients {
                    client.set_nonblocking(true).expect("set_nonblocking");
                    let read = client.read(&mut [0]);
                    assert_eq!(
                        read.expect("the server closed the connection"),
                        0,
                        "the server must close the connection without an answer"
                    );
                }
                drop(hoard);
            }
            let reported = &errors.sorted()[0];
            assert!(reported.starts_with("cannot accept connections: Too many open files"), "{reported}");
            assert!(
                reported.ends_with("; raise the limit of open files (ulimit -n), or set max_connections"),
                "{reported}"
            );
            // The server has its reserve descriptor again, and serves at once.
            let mut next = server.connect();
            server.until_accepted(2).await;
            for client in [&mut served, &mut next] {
                client.write_all(b"x").expect("the client writes");
            }
            assert_eq!((read_all(served).await, read_all(next).await), (b"y".into(), b"y".into()));
            let report = server.end().await;
            assert_eq!((report.accepted, report.served, report.refused), (2, 2, 300));
        });
    });
}

/// A server that stops without a descriptor waits for one. Closing the listener would reset the clients in its queue.
#[test]
#[cfg(target_os = "linux")]
fn stopping_server_waits_for_descriptors() {
    in_own_process("stopping_server_waits_for_descriptors", || {
        paused_runtime().block_on(async {
            let (server, mut clients, hoard) = stop_without_descriptors(Duration::from_secs(25)).await;
            clients.iter_mut().for_each(|client| client.write_all(b"x").expect("the client writes"));
            sleep(Duration::from_millis(200)).await;
            drop(hoard);
            let report = server.end().await;
            assert_eq!((report.accepted, report.served, report.refused), (4, 4, 0));
            for client in clients {
                assert_eq!(read_all(client).await, b"y");
            }
        });
    });
}

/// A server that stops and gets no descriptor turns away the clients in its queue, at the latest when the drain ends. Each
/// client reads an end instead of a reset, and the report counts it.
#[test]
#[cfg(target_os = "linux")]
fn stopping_server_refuses_without_descriptors() {
    in_own_process("stopping_server_refuses_without_descriptors", || {
        for drain in [Duration::ZERO, Duration::from_millis(100), Duration::from_secs(25)] {
            paused_runtime().block_on(async {
                let (server, clients, hoard) = stop_without_descriptors(drain).await;
                let start = kittiwake::time::Instant::now();
                let report = server.end().await;
                assert_eq!((report.accepted, report.served, report.refused), (1, 1, 3), "the drain lasted {drain:?}");
                assert!(start.elapsed() < Duration::from_secs(5), "the server waited for {:?}", start.elapsed());
                drop(hoard);
                for mut client in clients {
                    let read = client.read(&mut [0]).expect("the server closed the connection without a reset");
                    assert_eq!(read, 0, "the server must close the connection without an answer");
                }
            });
        }
    });
}

/// A server that has served a client and was asked to stop, with three clients in its queue and no descriptor left.
#[cfg(target_os = "linux")]
async fn stop_without_descriptors(drain: Duration) -> (Server, Vec<std::net::TcpStream>, Vec<File>) {
    let server = start(|stream, _| answer(stream), |serve| serve.drain_timeout(drain)).await;
    let mut first = server.connect();
    first.write_all(b"x").expect("the client writes");
    assert_eq!(read_all(first).await, b"y");
    let clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let hoard = take_all_descriptors();
    server.shutdown.trigger();
    (server, clients, hoard)
}

/// A hundred thousand connections leave no memory, socket or task.
#[test]
#[cfg(target_os = "linux")]
fn hundred_thousand_connections_leave_nothing() {
    in_own_process("hundred_thousand_connections_leave_nothing", || {
        const CONNECTIONS: u64 = 100_000;
        kittiwake::block_on(async {
            open_reactor().await;
            let before = count_of("fd");
            let server = start(|stream, _| answer(stream), |serve| serve).await;
            let resident = |at: &str| -> usize {
                let status = std::fs::read_to_string("/proc/self/statm").expect("/proc");
                status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect(at)
            };
            let mut pages = 0;
            for number in 0..CONNECTIONS {
                let mut client = TcpStream::connect(server.address).await.expect("connect");
                will_reset(&client);
                client.write_all(b"x").await.expect("the client writes");
                client.read_exact(&mut [0]).await.expect("the client is answered");
                progress();
                if number == CONNECTIONS / 10 {
                    pages = resident("the resident pages after the warm-up");
                }
            }
            let more = resident("the resident pages at the end").saturating_sub(pages);
            assert!(more < 100, "the process has {more} more pages after {CONNECTIONS} connections");
            let report = server.end().await;
            assert_eq!((report.accepted, report.served), (CONNECTIONS, CONNECTIONS));
            settle().await;
            assert_eq!((sources(), count_of("fd")), (0, before), "no socket may be left");
            assert_eq!(kittiwake::runtime::Handle::current().metrics().tasks_alive(), 0, "no task may be left");
        });
    });
}

// ---- servers, handlers and clients ----

type TestServe<H, F> = Serve<TcpListener, H, F>;

struct Server {
    address: SocketAddr,
    shutdown: ShutdownSignal,
    task: JoinHandle<Result<Report, ServeError>>,
    /// Counts the calls of the handler. The server's future is inside a task and cannot be asked.
    calls: Arc<AtomicUsize>,
    stats: ServeStats,
}

async fn start<H, F>(
    handler: H,
    build: impl FnOnce(
        TestServe<Box<dyn Fn(TcpStream, SocketAddr) -> F + Send>, F>,
    ) -> TestServe<Box<dyn Fn(TcpStream, SocketAddr) -> F + Send>, F>,
) -> Server
where
    H: Fn(TcpStream, SocketAddr) -> F + Send + 'static,
    F: Future<Output: HandlerOutput> + Send + 'static,
{
    let (listener, address) = own_listener().await;
    let (shutdown, calls) = (ShutdownSignal::new(), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    let handler = move |stream, peer| {
        counted.fetch_add(1, SeqCst);
        handler(stream, peer)
    };
    let handler: Box<dyn Fn(TcpStream, SocketAddr) -> F + Send> = Box::new(handler);
    let serve = build(serve(listener, handler).with_shutdown(&shutdown));
    let stats = serve.stats();
    Server { address, shutdown, task: kittiwake::spawn(serve), calls, stats }
}

impl Server {
    #[track_caller]
    fn connect(&self) -> std::net::TcpStream {
        let client = std::net::TcpStream::connect(self.address).expect("connect");
        client.set_read_timeout(Some(PATIENCE)).expect("a bound on the client's reads");
        client
    }

    async fn until_accepted(&self, count: usize) {
        until(|| self.calls.load(SeqCst) == count).await;
    }

    async fn end(self) -> Report {
        self.shutdown.trigger();
        self.task.await.expect("the server does not panic").expect("the task ends without an error")
    }
}

/// Answers one request of one byte.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0]).await?;
    stream.write_all(b"y").await
}

/// Keeps the connection and never ends.
async fn hold(stream: TcpStream) {
    let _stream = stream;
    pending::<()>().await;
}

async fn keep_alive(mut stream: TcpStream, mut shutdown: ShutdownSignal) -> io::Result<()> {
    let mut buf = [0; 16];
    while let Some(read) = shutdown.run_until_triggered(stream.read(&mut buf)).await {
        match read? {
            0 => break,
            read => stream.write_all(&buf[..read]).await?,
        }
    }
    Ok(())
}

/// Reads from a client until the end of the stream, while the server on this thread continues.
async fn read_all(client: std::net::TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut client = TcpStream::from_std(client).expect("from_std");
    client.read_to_end(&mut bytes).await.expect("the client reads to an end");
    bytes
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new("dropped"));
    }
}

struct CountsDrop(Arc<AtomicUsize>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn take_all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

// ---- what a caller may pass ----

/// `nodelay` is set on a connection before its handler sees it.
#[test]
fn nodelay_comes_before_the_handler() {
    run(|| async {
        for nodelay in [true, false] {
            let seen = Arc::new(Mutex::new(None));
            let handler = {
                let seen = seen.clone();
                move |stream: TcpStream, _| {
                    *seen.lock().unwrap() = Some(stream.nodelay().expect("TCP_NODELAY"));
                    async {}
                }
            };
            let server = start(handler, |serve| serve.nodelay(nodelay)).await;
            read_all(server.connect()).await;
            server.end().await;
            assert_eq!(*seen.lock().unwrap(), Some(nodelay));
        }
    });
}

/// The future that stops a server may return a `Result`, as `ctrl_c` does. An error is that of the server, and the
/// report is kept: a server that cannot be stopped must not run on unnoticed.
#[test]
fn failed_stop_future_ends_server() {
    run(|| async {
        let handler = |_: TcpStream, _| async {};
        let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let report = serve(bind().await, handler).with_graceful_shutdown(async { Ok::<_, io::Error>(1) }).await;
        assert_eq!(report.expect("it was asked to stop").accepted, 0);
        let graceful = serve(bind().await, handler).with_graceful_shutdown(async { Err::<(), _>("no signal") }).await;
        let immediate = serve(bind().await, handler).with_immediate_shutdown(async { Err::<(), _>("no signal") }).await;
        for (ended, method) in [(graceful, "with_graceful_shutdown"), (immediate, "with_immediate_shutdown")] {
            let ServeError { error, report, .. } = ended.expect_err("its future has failed");
            assert_eq!(error.to_string(), format!("the future of {method} has failed: no signal"));
            assert_eq!(report.accepted, 0);
        }
        // Compiles without wrapping.
        let _ = serve(bind().await, handler).with_graceful_shutdown(kittiwake::signal::ctrl_c());
    });
}

/// A stop future that fails stops the server as any other does: all clients of the queue are served. More than a batch of
/// them are there, and each waits for the one before it.
#[test]
fn failed_stop_future_refuses_none() {
    const QUEUED: usize = 200;
    run(|| async {
        let (listener, address) = support::own_listener().await;
        let clients: Vec<_> = (0..QUEUED).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
        let server = serve(listener, |_: TcpStream, _| kittiwake::task::yield_now()).max_connections(1);
        let ended = server.with_graceful_shutdown(async { Err::<(), _>("no signal") }).await;
        let ServeError { report, .. } = ended.expect_err("its future has failed");
        assert_eq!((report.served, report.refused), (QUEUED as u64, 0));
        drop(clients);
    });
}

/// A handler may end in an endless loop, or return a result of any type.
#[test]
fn handlers_return_what_they_like() {
    run(|| async {
        let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let _ = serve(bind().await, |_: TcpStream, _| async {
            loop {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let _ = serve(bind().await, |_: TcpStream, _| async {
            io::Result::<std::convert::Infallible>::Err(io::ErrorKind::Other.into())
        });
        let _ = serve(bind().await, |_: TcpStream, _| async { Result::<u64, String>::Ok(1) });
    });
}
