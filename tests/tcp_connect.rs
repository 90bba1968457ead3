//! Connecting: successes, refusals, several addresses, and futures that are dropped on the way.

mod support;

use std::net::SocketAddr;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind};
use kittiwake::net::TcpStream;
use kittiwake::time::Duration;
use socket2::{Domain, Socket, Type};
use support::*;

/// Without it a connection counts as made before it is, and the first write fails.
#[test]
fn a_connection_can_be_used_at_once() {
    run(|| async {
        let (listener, address) = listener().await;
        for _ in 0..50 {
            let client = TcpStream::connect(address).await.expect("connect");
            assert_eq!(client.peer_addr().expect("it is connected"), address);
            assert_eq!(client.try_write(b"x").expect("it can be written"), 1);
            let (server, peer) = listener.accept().await.expect("accept");
            assert_eq!(peer, client.local_addr().expect("local_addr"));
            assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 1);
        }
    });
}

/// Without it a refusal reads as a success whose first write fails, or as a hang.
#[test]
fn a_refused_connection_says_so() {
    run(|| async {
        let (_socket, address) = refusing();
        let error = TcpStream::connect(address).await.expect_err("the port is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "the kernel's error, as it is");
        assert_eq!(sources(), 0, "the socket of a failed connect has left the reactor");
    });
}

/// Without it a server that has just gone looks like one that is slow.
#[test]
fn a_port_that_was_closed_meanwhile_refuses() {
    run(|| async {
        let (listener, address) = listener().await;
        let client = TcpStream::connect(address).await.expect("connect");
        drop(listener);
        let error = TcpStream::connect(address).await.expect_err("the receiver is gone");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        let error = (&client).read(&mut [0; 8]).await.expect_err("nobody accepted it");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// Without it a connect that somebody else began, and that fails, is reported twice or not at all.
#[test]
fn a_pending_error_is_taken_once() {
    run(|| async {
        let (_socket, address) = refusing();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        let _ = socket.connect(&address.into());
        let stream = TcpStream::from_std(socket.into()).expect("from_std");
        stream.writable().await.expect("a failure counts as writable");
        let error = stream.take_error().expect("SO_ERROR").expect("the connect has failed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        assert!(stream.take_error().expect("SO_ERROR").is_none(), "it was taken");
    });
}

/// Without it a host with one dead address of two cannot be reached.
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
        assert_eq!(client.peer_addr().expect("peer_addr"), address, "the first that accepts is taken");
        let error = TcpStream::connect(vec![dead, dead]).await.expect_err("the port is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        drop(client);
        assert_eq!(sources(), 0, "no socket of a failed attempt is left in the reactor");
    });
}

/// Without it nonsense goes to the network as a name, or fails in some other way than is documented.
#[test]
fn nonsense_is_invalid() {
    run(|| async {
        for nonsense in ["", "127.0.0.1", "127.0.0.1:port", ":80"] {
            let error = TcpStream::connect(nonsense).await.expect_err("no address");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{nonsense:?}: {error}");
        }
        let error = TcpStream::connect(Vec::<SocketAddr>::new()).await.expect_err("no address at all");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    });
}

/// Without it a connect that is given up leaves a connection that nobody owns.
#[test]
fn a_dropped_connect_closes_its_socket() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(TcpStream::connect(address)).await.is_none(), "connecting has to wait");
        assert_eq!(sources(), 0, "the socket has left the reactor");
        let (server, _) = listener.accept().await.expect("accept");
        assert_eq!((&server).read(&mut [0; 8]).await.expect("read"), 0, "the other end is closed");
    });
}

/// Without it a connect to a server that is too busy to accept cannot be given up cleanly.
#[test]
#[cfg(target_os = "linux")]
fn a_connect_to_a_full_queue_waits_and_can_be_dropped() {
    run(|| async {
        let (_listener, address, queued) = full_queue();
        let mut connect = Box::pin(TcpStream::connect(address));
        assert!(poll_once(&mut connect).await.is_none(), "connecting has to wait");
        settle().await;
        assert!(poll_once(&mut connect).await.is_none(), "there is no room in the queue");
        assert_eq!(sources(), 1, "the reactor watches it");
        // The kernel's table shows a moment that is never quite now, so look again until it shows this one.
        until(|| connecting_to(address) == queued_without_room(&queued) + 1).await;
        drop(connect);
        assert_eq!(sources(), 0, "it has left the reactor");
        until(|| connecting_to(address) == queued_without_room(&queued)).await;
    });
}

/// Without it a host that never answers keeps its caller for the minutes that the kernel gives it.
#[test]
#[cfg(target_os = "linux")]
fn a_connect_that_takes_too_long_times_out() {
    run(|| async {
        let (_listener, address, queued) = full_queue();
        let error = TcpStream::connect_timeout(address, Duration::from_millis(5)).await.expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        until(|| connecting_to(address) == queued_without_room(&queued)).await;
    });
}

/// A listener whose queue has no room, and what is in it.
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

/// How many sockets of this machine are waiting for an answer from `address`.
#[cfg(target_os = "linux")]
fn connecting_to(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { panic!("the table is that of IPv4") };
    let peer = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table of sockets");
    let connecting = table.lines().filter_map(|line| match line.split_whitespace().take(4).collect::<Vec<_>>()[..] {
        [_, local, remote, "02"] if remote == peer => Some(local),
        _ => None,
    });
    // A set, because the table is read piece by piece and may show a socket twice.
    connecting.collect::<std::collections::BTreeSet<_>>().len()
}

/// Without it one slow server keeps everybody else from being reached.
#[test]
fn many_connects_at_once_all_succeed() {
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
            peers.swap_remove(at.expect("each was accepted once"));
            assert_eq!((&client).read(&mut [0; 8]).await.expect("read"), 1);
        }
    });
}

/// An address where nobody listens, for as long as the socket lives: nobody else can take it.
#[track_caller]
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("bind");
    let address = socket.local_addr().expect("local_addr").as_socket().expect("an IP address");
    (socket, address)
}
