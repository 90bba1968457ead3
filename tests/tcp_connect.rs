//! Connecting: success, refusal, races of several addresses, time limits, and dropped futures.
// Some tests need Linux.
#![cfg_attr(not(target_os = "linux"), allow(unused_imports))]

mod support;

use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Wake, Waker};
use std::thread::ThreadId;

use futures_lite::future::{or, poll_once};
use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt, ErrorKind};
use kittiwake::net::{AddrError, TcpListener, TcpSocket, TcpStream, lookup_host};
use kittiwake::task::consume_budget;
use kittiwake::time::{Duration, Instant, advance};
use socket2::{Domain, Socket, Type};
use support::*;

/// The time between two attempts: the Connection Attempt Delay that RFC 8305 recommends.
const STAGGER: Duration = Duration::from_millis(250);

/// A connection can be used as soon as `connect` returns.
#[test]
fn connection_is_usable_at_once() {
    run(|| async {
        let (listener, address) = listener().await;
        for _ in 0..50 {
            let client = TcpStream::connect(address).await.expect("connect");
            assert_eq!(client.peer_addr().expect("the stream is connected"), address);
            assert_eq!(client.try_write(b"x").expect("the stream is writable"), 1);
            let (server, peer) = listener.accept().await.expect("accept");
            assert_eq!(peer, client.local_addr().expect("local_addr"));
            assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 1);
        }
    });
}

/// A refused connection is reported as such, and neither as a success nor as a hang. The error names the address and
/// keeps the kernel's code.
#[test]
fn refused_connection_is_reported() {
    run(|| async {
        let (_socket, address) = refusing();
        let error = TcpStream::connect(address).await.expect_err("the port is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        let kernels = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(error.to_string(), format!("cannot connect to {address}: {kernels}"));
        let inside = AddrError::of(&error).expect("the error has the address inside");
        assert_eq!(inside.addr(), address);
        assert_eq!(inside.raw_os_error(), Some(libc::ECONNREFUSED), "the code must be the kernel's own");
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(
            source.and_then(io::Error::raw_os_error),
            Some(libc::ECONNREFUSED),
            "the source must be the kernel's"
        );
        assert_eq!(sources(), 0, "the socket of a failed connect must be deregistered");
    });
}

/// A port whose listener was closed refuses connections.
#[test]
fn closed_port_refuses_connections() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let client = TcpStream::connect(address).await.expect("connect");
        drop(listener);
        assert_refuses(address);
        let error = TcpStream::connect(address).await.expect_err("the listener is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        let error = (&client).read(&mut [0; 8]).await.expect_err("no server accepted the connection");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// The failure of a connect that began outside kittiwake is reported once.
#[test]
fn pending_error_is_taken_once() {
    run(|| async {
        let (_socket, address) = refusing();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        let _ = socket.connect(&address.into());
        let stream = TcpStream::from_std(socket.into()).expect("from_std");
        stream.writable().await.expect("a failure counts as writable");
        let error = stream.take_error().expect("SO_ERROR").expect("the connect has failed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        assert!(stream.take_error().expect("SO_ERROR").is_none(), "the error must be taken once");
    });
}

/// Several addresses are tried in turn, so a host with one dead address can be reached.
#[test]
fn addresses_are_tried_in_turn() {
    run(|| async {
        let (_socket, dead) = refusing();
        let (listener, address) = listener().await;
        let client = TcpStream::connect(&[dead, address][..]).await.expect("the second address accepts");
        assert_eq!(client.peer_addr().expect("peer_addr"), address);
        let (_, peer) = listener.accept().await.expect("accept");
        assert_eq!(peer, client.local_addr().expect("local_addr"));
        drop(client);
        let client = TcpStream::connect(vec![address, dead]).await.expect("the first address accepts");
        assert_eq!(client.peer_addr().expect("peer_addr"), address, "the first address that accepts must be taken");
        let (_other, other) = refusing();
        let error = TcpStream::connect(vec![dead, other]).await.expect_err("both ports are closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        let tried: Vec<_> = AddrError::of(&error).expect("the error has the addresses").attempts().collect();
        assert_eq!(tried.iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [dead, other]);
        for addr in [dead, other] {
            assert!(error.to_string().contains(&addr.to_string()), "the error must name {addr}: {error}");
        }
        drop(client);
        assert_eq!(sources(), 0, "no socket of a failed attempt may stay registered");
    });
}

/// An invalid address is an `InvalidInput` error.
#[test]
fn invalid_address_is_refused() {
    run(|| async {
        for nonsense in ["", "127.0.0.1", "127.0.0.1:port", ":80"] {
            let error = TcpStream::connect(nonsense).await.expect_err("no address");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{nonsense:?}: {error}");
        }
        let error = TcpStream::connect(Vec::<SocketAddr>::new()).await.expect_err("no address at all");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    });
}

/// A dropped connect closes its socket.
#[test]
fn dropped_connect_closes_its_socket() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(TcpStream::connect(address)).await.is_none(), "the connect must wait");
        assert_eq!(sources(), 0, "the socket must be deregistered");
        let (server, _) = listener.accept().await.expect("accept");
        assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 0, "the other end must be closed");
    });
}

/// A connect to a server with a full listen queue waits and can be dropped.
#[test]
#[cfg(target_os = "linux")]
fn waiting_connect_can_be_dropped() {
    run(|| async {
        let (_listener, address, queued) = full_queue();
        let mut connect = Box::pin(TcpStream::connect(address));
        assert!(poll_once(&mut connect).await.is_none(), "the connect must wait");
        settle().await;
        assert!(poll_once(&mut connect).await.is_none(), "the listen queue is full");
        assert_eq!(sources(), 1, "the socket must be registered");
        // The kernel's table is never quite current, so the test looks until the table shows the expected state.
        until(|| connecting_to(address) == queued_without_room(&queued) + 1).await;
        drop(connect);
        assert_eq!(sources(), 0, "the socket must be deregistered");
        until(|| connecting_to(address) == queued_without_room(&queued)).await;
    });
}

/// `connect_timeout` ends a connect to a host that never answers.
#[test]
#[cfg(target_os = "linux")]
fn slow_connect_times_out() {
    run(|| async {
        let (_listener, address, queued) = full_queue();
        let error = TcpStream::connect_timeout(address, Duration::from_millis(5)).await.expect_err("no server answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        until(|| connecting_to(address) == queued_without_room(&queued)).await;
    });
}

/// Returns a listener with a full queue, and the sockets in the queue.
#[cfg(target_os = "linux")]
fn full_queue() -> (Socket, SocketAddr, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("bind");
    listener.listen(0).expect("listen");
    let address = listener.local_addr().expect("local_addr").as_socket().expect("an IP address");
    let queued = (0..8).map(|_| begin_connect(address)).collect();
    (listener, address, queued)
}

#[cfg(target_os = "linux")]
fn begin_connect(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("non-blocking");
    let _ = socket.connect(&address.into());
    socket
}

#[cfg(target_os = "linux")]
fn queued_without_room(queued: &[Socket]) -> usize {
    queued.iter().filter(|socket| socket.peer_addr().is_err()).count()
}

/// The number of sockets of this machine that wait for an answer from `address`.
#[cfg(target_os = "linux")]
fn connecting_to(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { panic!("the table is that of IPv4") };
    let peer = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table of sockets");
    let connecting = table.lines().filter_map(|line| match line.split_whitespace().take(4).collect::<Vec<_>>()[..] {
        [_, local, remote, "02"] if remote == peer => Some(local),
        _ => None,
    });
    // A set, because the kernel returns the table in pieces and may list a socket twice.
    connecting.collect::<std::collections::BTreeSet<_>>().len()
}

/// The limit of `connect_timeout` is not zero: such a connect could never succeed.
#[test]
fn zero_timeout_is_invalid() {
    run(|| async {
        let (_listener, address) = listener().await;
        let error = TcpStream::connect_timeout(address, Duration::ZERO).await.expect_err("the timeout is zero");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    });
}

/// The next address is tried 250 ms after one that does not answer.
#[test]
#[cfg(target_os = "linux")]
fn silent_address_costs_one_stagger() {
    run_paused(|| async {
        let (_silent, dead, _queued) = full_queue();
        let (listener, address) = listener().await;
        let start = Instant::now();
        let client = TcpStream::connect(vec![dead, address]).await.expect("the second address accepts");
        assert_at(Instant::now(), start + STAGGER);
        assert_eq!(client.peer_addr().expect("peer_addr"), address);
        assert_eq!(listener.accept().await.expect("accept").1, client.local_addr().expect("local_addr"));
        assert_eq!(sources(), 1, "the socket that lost the race must be deregistered");
    });
}

/// A silent address does not use up the time of the others.
#[test]
#[cfg(target_os = "linux")]
fn silent_address_leaves_time() {
    run(|| async {
        let (_silent, dead, queued) = full_queue();
        let (_listener, address) = listener().await;
        let connect = TcpStream::connect_timeout(vec![dead, dead, address], PATIENCE / 2);
        assert_eq!(connect.await.expect("the third address accepts").peer_addr().expect("peer_addr"), address);
        until(|| connecting_to(dead) == queued_without_room(&queued)).await;
    });
}

/// An attempt that fails starts the next one at once.
#[test]
fn failure_starts_next_attempt() {
    run_paused(|| async {
        let (_socket, dead) = refusing();
        let (_listener, address) = listener().await;
        let start = Instant::now();
        let client = TcpStream::connect(vec![dead, dead, dead, address]).await.expect("the last address accepts");
        assert_eq!(client.peer_addr().expect("peer_addr"), address);
        assert!(Instant::now() - start < STAGGER, "an attempt has waited although the one before it had failed");
    });
}

/// A failure while a silent attempt goes on starts the next one at once, too.
#[test]
#[cfg(target_os = "linux")]
fn late_failure_starts_next_attempt() {
    run_paused(|| async {
        let (_silent, silent, _queued) = full_queue();
        let (_socket, refused) = refusing();
        let (_listener, address) = listener().await;
        let start = Instant::now();
        let client = TcpStream::connect(vec![silent, refused, address]).await.expect("the last address accepts");
        assert_at(Instant::now(), start + STAGGER);
        assert_eq!(client.peer_addr().expect("peer_addr"), address);
    });
}

/// The next attempt starts in its time, and the limit is met, although another future of the task uses up the budget of
/// each poll.
#[test]
#[cfg(target_os = "linux")]
fn flood_hides_neither_stagger_nor_limit() {
    run_paused(|| async {
        let (_silent, first, _queued) = full_queue();
        let (_also_silent, second, _also_queued) = full_queue();
        let flood = async {
            let pass_budgets = async || {
                for _ in 0..1_000 {
                    consume_budget().await;
                }
            };
            for started in 1..=2 {
                pass_budgets().await;
                assert_eq!(sources(), started, "the attempts that run");
                advance(STAGGER).await;
            }
            pass_budgets().await;
            Ok(None)
        };
        let connect = async { TcpStream::connect_timeout(vec![first, second], 2 * STAGGER).await.map(Some) };
        let error =
            or(flood, connect).await.map(|found| found.expect("the limit is met")).expect_err("no server answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    });
}

/// A connection that the server has accepted is returned at the limit, although another future of the task uses up the
/// budget of each poll.
#[test]
fn flood_hides_no_connection_at_limit() {
    run(|| async {
        let (_listener, address) = listener().await;
        let flood = async {
            loop {
                consume_budget().await;
            }
        };
        let connect = TcpStream::connect_timeout(address, Duration::from_millis(100));
        let connected = or(flood, connect).await.map(|stream| stream.peer_addr().expect("it is connected"));
        assert_eq!(connected.expect("the server has accepted long before"), address);
    });
}

/// A failure starts the next attempt at once, also if the task's budget is used up just then.
#[test]
#[cfg(target_os = "linux")]
fn failure_is_kept_without_budget() {
    run_paused(|| async {
        let (_silent, silent, _queued) = full_queue();
        let (_socket, refused) = refusing();
        let (_listener, address) = listener().await;
        // The budget is 128 operations. The first poll after the stagger starts the attempt that fails, and the next one
        // learns of the failure. In one of these rounds the budget ends between that and the next start.
        for (nth, spent) in (1..=2).flat_map(|nth| (120..=128).map(move |spent| (nth, spent))) {
            let start = Instant::now();
            let (mut connect, mut polls) = (pin!(TcpStream::connect(vec![silent, refused, address])), 0);
            let client = poll_fn(|cx| {
                polls += usize::from(Instant::now() >= start + STAGGER);
                if polls == nth {
                    (0..spent).for_each(|_| assert!(pin!(consume_budget()).poll(cx).is_ready(), "128 operations"));
                }
                connect.as_mut().poll(cx)
            });
            let client = client.await.expect("the last address accepts");
            assert!(polls >= nth, "the attempt has ended in {polls} polls");
            assert_eq!(client.peer_addr().expect("peer_addr"), address);
            assert_at(Instant::now(), start + STAGGER);
        }
    });
}

/// The slow first attempt still wins if it succeeds before any other.
#[test]
#[cfg(target_os = "linux")]
fn slow_attempt_can_win() {
    run_paused(|| async {
        let (listener, first, queued) = full_queue();
        let (_silent, second, _also_queued) = full_queue();
        let connect = kittiwake::spawn(TcpStream::connect(vec![first, second]));
        settle().await;
        advance(2 * STAGGER).await;
        assert_eq!(sources(), 2, "both attempts must be running");
        drop(queued);
        while !connect.is_finished() {
            // The kernel sends its SYN again after a second of real time, and then there is room.
            listener.set_nonblocking(true).expect("non-blocking");
            while listener.accept().is_ok() {}
            kittiwake::task::yield_now().await;
        }
        let client = connect.await.expect("the task").expect("the first address has room");
        assert_eq!(client.peer_addr().expect("peer_addr"), first);
        assert_eq!(sources(), 1, "the socket that lost the race must be deregistered");
    });
}

/// `TimedOut` names each address, and says which were tried.
#[test]
#[cfg(target_os = "linux")]
fn timeout_names_every_address() {
    run_paused(|| async {
        let (_silent, silent, _queued) = full_queue();
        let (_socket, refused) = refusing();
        let (_listener, untried) = listener().await;
        let (limit, start) = (Duration::from_millis(100), Instant::now());
        let error = TcpStream::connect_timeout(vec![refused, silent, untried], limit).await.expect_err("time is over");
        assert_at(Instant::now(), start + limit);
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        let kernels = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let expected = format!(
            "cannot connect to any of 3 addresses: {refused}: {kernels}; {silent}: no answer came within 100ms; \
             {untried}: it was not tried within 100ms"
        );
        assert_eq!(error.to_string(), expected);
        assert_eq!(sources(), 0, "no socket may stay registered");
        let error = TcpStream::connect_timeout(silent, limit).await.expect_err("time is over");
        assert_eq!(error.to_string(), format!("cannot connect to {silent}: no answer came within 100ms"));
    });
}

/// The limit holds for the look-up of a name too, and the error names it.
#[test]
fn lookup_counts_towards_the_limit() {
    within(|| {
        blocking_threads(1).block_on(async {
            let (open, closed) = mpsc::channel::<()>();
            let waker = Waker::from(Arc::new(BlockingWaker { closed: Mutex::new(closed), except: here() }));
            // Each of these look-ups blocks its thread when it ends. There are fewer threads for look-ups.
            let mut lookups = Vec::new();
            while lookups.len() < 16 {
                // Without budget a poll would not store the waker.
                kittiwake::task::yield_now().await;
                let mut lookup = Box::pin(lookup_host("localhost:8"));
                if poll_with(&waker, &mut lookup).is_pending() {
                    lookups.push(lookup);
                }
            }
            let error = TcpStream::connect_timeout("localhost:9", Duration::from_millis(5)).await;
            let error = error.expect_err("the look-up cannot begin");
            drop(open);
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            assert_eq!(error.to_string(), "\"localhost\" was not looked up within 5ms");
        });
    });
}

/// Blocks the thread that wakes it, except one.
struct BlockingWaker {
    closed: Mutex<mpsc::Receiver<()>>,
    except: ThreadId,
}

impl Wake for BlockingWaker {
    fn wake(self: Arc<Self>) {
        if here() != self.except {
            let _ = self.closed.lock().expect("the lock").recv();
        }
    }
}

/// A dropped race closes the sockets of all its attempts.
#[test]
#[cfg(target_os = "linux")]
fn dropped_race_closes_its_sockets() {
    in_own_process("dropped_race_closes_its_sockets", || {
        paused_runtime().block_on(async {
            let (_silent, dead, _queued) = full_queue();
            open_reactor().await;
            let before = count_of("fd");
            let mut race = Box::pin(TcpStream::connect(vec![dead; 4]));
            for attempts in 1..=3 {
                assert!(poll_once(&mut race).await.is_none(), "no server answers");
                assert_eq!(sources(), attempts, "each attempt must have one socket");
                assert_eq!(count_of("fd"), before + attempts);
                advance(STAGGER).await;
            }
            drop(race);
            assert_eq!(sources(), 0, "all sockets must be deregistered");
            assert_eq!(count_of("fd"), before, "all sockets must be closed");
        });
    });
}

/// A race that has ended leaves one open socket, or none if it failed.
#[test]
#[cfg(target_os = "linux")]
fn ended_race_leaves_one_socket() {
    in_own_process("ended_race_leaves_one_socket", || {
        paused_runtime().block_on(async {
            let (_silent, dead, _queued) = full_queue();
            let (_socket, refused) = refusing();
            let (_listener, address) = listener().await;
            open_reactor().await;
            let before = count_of("fd");
            for _ in 0..10 {
                let client =
                    TcpStream::connect(vec![dead, refused, dead, address]).await.expect("the last one accepts");
                assert_eq!(count_of("fd"), before + 1, "only the winner may stay open");
                drop(client);
                TcpStream::connect_timeout(vec![dead, refused], 2 * STAGGER).await.expect_err("no server answers");
                assert_eq!(count_of("fd"), before, "a failed race must close all its sockets");
            }
        });
    });
}

/// A limited connect that leaves its runtime keeps its limit. If no runtime can time it any more, it fails and does not
/// panic.
#[test]
#[cfg(target_os = "linux")]
fn limit_holds_in_foreign_executor() {
    within(|| {
        let (_silent, dead, _queued) = full_queue();
        let (sockets, timers) = (Background::start(), Background::start());
        // The socket stays with the first runtime, and the timers move to the second one.
        let moved = |limit| {
            let mut connect = Box::pin(TcpStream::connect_timeout(vec![dead, dead], limit));
            for runtime in [&sockets, &timers] {
                let mut polled = [connect];
                let ended;
                ([connect], ended) = runtime.run(async move {
                    let ended = poll_once(&mut polled[0]).await;
                    (polled, ended)
                });
                if let Some(ended) = ended {
                    let error = ended.expect_err("no server answers");
                    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
                    return None;
                }
            }
            Some(connect)
        };
        // On a slow machine a limit may be over before both runtimes have polled the connect.
        let limits = [300, 1_000, 3_000, 10_000].map(Duration::from_millis);
        let timed = limits.into_iter().find_map(moved).expect("10 s are long enough for two polls");
        let untimed = moved(Duration::from_secs(600)).expect("10 minutes are long enough for two polls");
        let error = futures_lite::future::block_on(timed).expect_err("no server answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        timers.stop();
        let error = futures_lite::future::block_on(untimed).expect_err("no runtime has the timer any more");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
    });
}

/// A connect that lands on its own socket is refused. As a stream it would keep the port from its server.
#[test]
#[cfg(target_os = "linux")]
fn connection_to_itself_is_refused() {
    run(|| async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(own_address().parse().expect("an address")).expect("bind");
        let address = socket.local_addr().expect("local_addr");
        let error = socket.connect(address).await.expect_err("the socket has connected to itself");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        assert!(error.to_string().starts_with(&format!("cannot connect to {address}: the socket has ")), "{error}");
        // Without SO_REUSEADDR, so that a connection in the TIME_WAIT state would be in the way for a minute. The process that
        // another test starts has a copy of the socket until it executes its program.
        let end = Instant::now() + Duration::from_secs(30);
        until(|| {
            let bound = TcpSocket::new_v4().expect("a socket").bind(address);
            assert!(bound.is_ok() || Instant::now() < end, "the port must be free: {bound:?}");
            bound.is_ok()
        })
        .await;
    });
}

/// `TcpStream::connect` detects a connection to itself, and tries again before it gives up.
#[test]
#[cfg(target_os = "linux")]
fn ephemeral_port_never_connects_itself() {
    in_own_network("ephemeral_port_never_connects_itself", || {
        let ports = "/proc/sys/net/ipv4/ip_local_port_range";
        kittiwake::block_on(async {
            std::fs::write(ports, "40000 40000").expect("one port for all connects");
            let error = TcpStream::connect("127.0.0.1:40000").await.expect_err("no server listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            assert!(error.to_string().contains("has connected to itself"), "{error}");
            TcpListener::bind("127.0.0.1:40000").await.expect("the server can have its port");
            std::fs::write(ports, "40000 40001").expect("two ports for all connects");
            for _ in 0..100 {
                let error = TcpStream::connect("127.0.0.1:40001").await.expect_err("no server listens");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            }
        });
    });
}

/// A machine without IPv6 reaches a host that has both kinds of addresses, and without a wait.
#[test]
#[cfg(target_os = "linux")]
fn host_without_ipv6_uses_ipv4() {
    in_own_network("host_without_ipv6_uses_ipv4", || {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("IPv6 is turned off");
        paused_runtime().block_on(async {
            let (_listener, address) = listener().await;
            let six = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], address.port()));
            let start = Instant::now();
            let client = TcpStream::connect(vec![six, address]).await.expect("IPv4 works");
            assert_eq!(client.peer_addr().expect("peer_addr"), address);
            assert!(Instant::now() - start < STAGGER, "the failure of IPv6 must start the next attempt at once");
            let error = TcpStream::connect(six).await.expect_err("there is no IPv6");
            assert!(error.to_string().starts_with(&format!("cannot connect to {six}: ")), "{error}");
            assert!(errno(&error).is_some(), "the error must be the kernel's own: {error}");
        });
    });
}

/// Many connects at once all succeed. A slow one does not delay the others.
#[test]
fn many_concurrent_connects_succeed() {
    run(|| async {
        let (listener, address) = listener().await;
        let clients: Vec<_> = (0..100).map(|_| kittiwake::spawn(TcpStream::connect(address))).collect();
        let mut peers = Vec::new();
        for _ in &clients {
            let (mut server, peer) = listener.accept().await.expect("accept");
            server.write_all(b"x").await.expect("write");
            peers.push(peer);
        }
        for client in clients {
            let client = client.await.expect("the task").expect("connect");
            let at = peers.iter().position(|peer| *peer == client.local_addr().expect("local_addr"));
            peers.swap_remove(at.expect("each client was accepted once"));
            assert_eq!((&client).read(&mut [0; 8]).await.expect("read"), 1);
        }
    });
}

/// An address that refuses connections as long as the socket lives, because no other socket can bind it.
#[track_caller]
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("bind");
    let address = socket.local_addr().expect("local_addr").as_socket().expect("an IP address");
    (socket, address)
}
