//! Listening and accepting: no connection is lost in the queue, and no client can end the listener.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use futures_lite::StreamExt;
use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind};
use kittiwake::net::{TcpListener, TcpStream};
use support::*;

/// Two connections behind one event are both accepted.
#[test]
fn one_event_yields_two_connections() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
        let (one, two) = (connect_std(address), connect_std(address));
        let first = listener.accept().await.expect("accept").1;
        let second = listener.accept().await.expect("the second accept needs no further event").1;
        assert_eq!((first, second), (local(&one), local(&two)), "the connections must be accepted in order");
    });
}

/// A cancelled acceptor that was woken loses no connection, because another acceptor is woken for it.
#[test]
fn cancelled_acceptor_loses_no_connection() {
    run(|| async {
        let (listener, address) = listener().await;
        let listener = Arc::new(listener);
        let (waker, wakes) = counting_waker();
        let mut cancelled = listener.accept();
        assert!(poll_with(&waker, &mut cancelled).is_pending(), "no client has connected yet");
        let (taken, accepted) = async_channel::unbounded();
        for _ in 0..3 {
            let (listener, taken) = (listener.clone(), taken.clone());
            kittiwake::spawn(async move {
                loop {
                    let connection = listener.accept().await.expect("accept");
                    taken.send(connection).await.expect("the test still runs");
                }
            });
        }
        settle().await;

        let clients: Vec<_> = (0..5).map(|_| connect_std(address)).collect();
        until(|| wakes.get() > 0).await;
        drop(cancelled);

        let mut peers = Vec::new();
        while peers.len() < 5 {
            peers.push(accepted.recv().await.expect("the acceptors live").1);
        }
        peers.sort();
        let mut expected: Vec<_> = clients.iter().map(local).collect();
        expected.sort();
        assert_eq!(peers, expected, "every connection must be accepted once");
    });
}

/// A dropped `accept` loses no connection.
#[test]
fn dropped_accept_loses_no_connection() {
    run(|| async {
        let (listener, address) = listener().await;
        for when_woken in [false, true] {
            let (waker, wakes) = counting_waker();
            let mut accept = listener.accept();
            assert!(poll_with(&waker, &mut accept).is_pending(), "no client has connected yet");
            let client;
            if when_woken {
                client = connect_std(address);
                until(|| wakes.get() > 0).await;
                drop(accept);
            } else {
                drop(accept);
                client = connect_std(address);
            }
            drop(waker);
            assert_eq!(Arc::strong_count(&wakes), 1, "a dropped accept must release its waker");
            assert_eq!(
                listener.accept().await.expect("accept").1,
                local(&client),
                "the connection must still be in the queue"
            );
        }
    });
}

/// `incoming` is a stream of connections that never ends.
#[test]
fn incoming_never_ends() {
    run(|| async {
        let (listener, address) = listener().await;
        let mut incoming = listener.incoming();
        let (waker, wakes) = counting_waker();
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(incoming.poll_next(&mut cx).is_pending(), "no client has connected yet");
        for round in 0..5 {
            let clients: Vec<_> = (0..3).map(|_| connect_std(address)).collect();
            until(|| wakes.get() > 0).await;
            for client in &clients {
                let stream = incoming.next().await.expect("the task never ends").expect("accept");
                assert_eq!(stream.peer_addr().expect("peer_addr"), local(client), "round {round}");
            }
        }
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(matches!(incoming.poll_next(&mut cx), Poll::Pending), "the stream must wait for more connections");
        drop((incoming, waker));
        assert_eq!(Arc::strong_count(&wakes), 1, "a dropped stream must release its waker");
    });
}

/// `incoming_with_peer` gives each connection with the address of its own peer, and keeps no waker.
#[test]
fn incoming_with_peer_names_each_peer() {
    run(|| async {
        let (listener, address) = listener().await;
        let mut incoming = listener.incoming_with_peer();
        let (waker, wakes) = counting_waker();
        assert!(
            incoming.poll_next(&mut std::task::Context::from_waker(&waker)).is_pending(),
            "no client has connected"
        );
        drop((incoming, waker));
        assert_eq!(Arc::strong_count(&wakes), 1, "a dropped stream must release its waker");
        let clients: Vec<_> = (0..4).map(|_| connect_std(address)).collect();
        let mut accepted = Vec::new();
        for _ in &clients[..2] {
            accepted.push(listener.incoming_with_peer().next().await.expect("the stream never ends").expect("accept"));
        }
        let mut owning = listener.into_incoming_with_peer();
        for _ in &clients[2..] {
            accepted.push(owning.next().await.expect("the stream never ends").expect("accept"));
        }
        for ((stream, peer), client) in accepted.iter().zip(&clients) {
            assert_eq!((*peer, stream.peer_addr().expect("peer_addr")), (local(client), local(client)));
        }
        assert_eq!(owning.into_inner().local_addr().expect("the listener's address"), address);
    });
}

/// The reserve is a file of its own, so that closing it makes room for a connection also if the system has too many open
/// files. It is close-on-exec, or a child process would keep the file open.
#[test]
#[cfg(target_os = "linux")]
fn reserve_is_its_own_file() {
    use kittiwake::net::Listener;
    use std::os::fd::AsRawFd;
    run(|| async {
        let (listener, _) = listener().await;
        let reserve = listener.reserve().expect("a descriptor is free");
        let file = |fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).expect("the name of the open file");
        assert_ne!(file(reserve.as_raw_fd()), file(listener.as_raw_fd()), "the reserve is a duplicate of the listener");
        assert_ne!(descriptor_flags(&reserve) & libc::O_CLOEXEC, 0, "the reserve must be close-on-exec");
    });
}

/// Every socket is non-blocking and close-on-exec.
#[test]
#[cfg(target_os = "linux")]
fn sockets_are_nonblocking_and_cloexec() {
    run(|| async {
        let (listener, address) = listener().await;
        let client = TcpStream::connect(address).await.expect("connect");
        let (server, _) = listener.accept().await.expect("accept");
        let (from_std, _peer) = pair_with_std();
        assert_flags(&listener, "the listener");
        assert_flags(&client, "a stream that was connected");
        assert_flags(&server, "a stream that was accepted");
        assert_flags(&from_std, "a stream that came from std");
    });
}

#[cfg(target_os = "linux")]
#[track_caller]
fn assert_flags(socket: &impl std::os::fd::AsRawFd, kind: &str) {
    let flags = descriptor_flags(socket);
    assert_ne!(flags & libc::O_NONBLOCK, 0, "{kind} must be non-blocking");
    assert_ne!(flags & libc::O_CLOEXEC, 0, "{kind} must be close-on-exec");
}

/// An address can be bound again right after its use, so a server can restart at once.
#[test]
fn used_address_can_be_rebound() {
    run(|| async {
        let (listener, address) = own_listener().await;
        let client = connect_std(address);
        let (server, _) = listener.accept().await.expect("accept");
        // The side that closes first keeps the address in the TIME_WAIT state.
        drop(server);
        assert_eq!(read_all(client), b"");
        drop(listener);
        let listener = TcpListener::bind(address).await.expect("the second bind succeeds");
        let client = connect_std(address);
        assert_eq!(listener.accept().await.expect("accept").1, local(&client), "the new listener must work");
    });
}

/// Hundreds of connections wait in the listen queue, which is longer than 128.
#[test]
#[cfg(target_os = "linux")]
fn listen_queue_holds_hundreds() {
    run(|| async {
        let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("the kernel's limit");
        // The count stays well below the usual limit of 1,024 descriptors.
        let count = allowed.trim().parse::<usize>().expect("a number").min(600);
        let (listener, address) = listener().await;
        let clients: Vec<_> = (0..count).map(|_| connect_std(address)).collect();
        for client in clients {
            let (_, peer) = listener.accept().await.expect("accept");
            assert_eq!(peer, local(&client), "each connected client must be in the queue");
        }
    });
}

/// An address that cannot be bound returns an error with the cause.
#[test]
fn bind_error_names_the_cause() {
    run(|| async {
        let (_listener, taken) = listener().await;
        let error = TcpListener::bind(taken).await.expect_err("the port is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}");
        assert_eq!(errno(&error), Some(libc::EADDRINUSE), "the code must be the kernel's own");
        assert!(error.to_string().starts_with(&format!("cannot bind {taken}: ")), "{error}");
        // A network for documentation, which no machine has.
        let error = TcpListener::bind("192.0.2.1:0").await.expect_err("the address belongs to another machine");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
        for nonsense in ["", "127.0.0.1", "127.0.0.1:port", ":0"] {
            let error = TcpListener::bind(nonsense).await.expect_err("no address");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{nonsense:?}: {error}");
        }
        let error = TcpListener::bind(Vec::<SocketAddr>::new()).await.expect_err("no address at all");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    });
}

/// Several addresses are tried in turn, and the error is that of the last one. It names all of them.
#[test]
fn addresses_are_bound_in_turn() {
    run(|| async {
        let (_listener, taken) = listener().await;
        let foreign: SocketAddr = "192.0.2.1:0".parse().expect("an address");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let listener = TcpListener::bind(&[taken, foreign, any][..]).await.expect("the third one is free");
        assert_eq!(listener.local_addr().expect("local_addr").ip(), any.ip());
        let error = TcpListener::bind(vec![taken, foreign]).await.expect_err("neither port is free");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "the error must be that of the last address: {error}");
        let error = TcpListener::bind(vec![foreign, taken]).await.expect_err("neither port is free");
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "the error must be that of the last address: {error}");
        let text = format!("cannot bind any of 2 addresses: {foreign}: ");
        assert!(error.to_string().starts_with(&text), "the error must name the first address: {error}");
        assert!(error.to_string().contains(&format!("; {taken}: ")), "the error must name the last address: {error}");
    });
}

/// IPv6 works like IPv4.
#[test]
fn ipv6_works_like_ipv4() {
    run(|| async {
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            return; // This machine has no IPv6.
        }
        let listener = TcpListener::bind("[::1]:0").await.expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("local_addr")).await.expect("connect");
        let (server, peer) = listener.accept().await.expect("accept");
        assert_eq!(peer, client.local_addr().expect("local_addr"));
        (&client).write_all(b"six").await.expect("write");
        drop(client);
        let mut text = String::new();
        (&server).read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "six");
    });
}

/// Connections that are reset in the queue do not harm the listener.
#[test]
fn reset_in_queue_spares_listener() {
    run(|| async {
        let (listener, address) = listener().await;
        for _ in 0..5 {
            reset(connect_std(address));
        }
        let client = connect_std(address);
        // Linux still returns connections that were reset. Other systems skip them.
        loop {
            let (stream, peer) = listener.accept().await.expect("accept");
            if peer == local(&client) {
                break;
            }
            let read = (&stream).read(&mut [0; 8]).await.map_err(|error| error.kind());
            assert_eq!(read, Err(ErrorKind::ConnectionReset), "the read of a reset connection must report the reset");
        }
    });
}

/// A blocking listener of std becomes non-blocking in `from_std`.
#[test]
fn blocking_std_listener_blocks_no_worker() {
    run(|| async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("local_addr");
        let listener = TcpListener::from_std(listener).expect("from_std");
        let acceptor = kittiwake::spawn(async move { listener.accept().await });
        settle().await;
        assert!(!acceptor.is_finished(), "no client has connected yet");
        let client = connect_std(address);
        assert_eq!(acceptor.await.expect("the task").expect("accept").1, local(&client));
    });
}

/// A listener that is converted to std blocks and is deregistered.
#[test]
fn listener_converted_to_std_blocks() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
        assert_eq!(sources(), 1, "a waiting listener must be registered");
        let listener = listener.into_std().expect("into_std");
        assert_eq!(sources(), 0, "the converted listener must be deregistered");
        #[cfg(target_os = "linux")]
        assert_eq!(descriptor_flags(&listener) & libc::O_NONBLOCK, 0, "a listener of std must block");
        let accepting = std::thread::spawn(move || listener.accept().map(|(_, peer)| (listener, peer)));
        let client = connect_std(address);
        let (listener, peer) = accepting.join().expect("the thread").expect("a blocking accept waits");
        assert_eq!(peer, local(&client));

        let listener = TcpListener::from_std(listener).expect("from_std");
        assert!(poll_once(listener.accept()).await.is_none(), "the listener must be non-blocking again");
        assert_eq!(sources(), 1, "the listener must be registered again");
        let client = connect_std(address);
        assert_eq!(listener.accept().await.expect("accept").1, local(&client));
    });
}

/// Dropping a listener ends the connections in its queue.
#[test]
fn dropped_listener_ends_queued_connections() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
        let mut client = connect_std(address);
        drop(listener);
        assert_eq!(sources(), 0, "the listener must be deregistered");
        let error = client.read(&mut [0; 8]).expect_err("no server will answer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// The options of a listener apply to its own socket, and accepted streams inherit them.
#[test]
fn options_apply_to_the_listener() {
    run(|| async {
        let (listener, address) = listener().await;
        listener.set_ttl(9).expect("IP_TTL");
        assert_eq!(listener.ttl().expect("IP_TTL"), 9);
        assert!(listener.take_error().expect("SO_ERROR").is_none(), "no error may be pending");
        let mut client = connect_std(address);
        let (stream, _) = listener.accept().await.expect("accept");
        assert_eq!(stream.ttl().expect("IP_TTL"), 9, "an accepted stream must inherit the option");
        client.write_all(b"x").expect("the client writes");
        assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
    });
}

/// Connects a client of std. It fails instead of waiting for ever if the listen queue is full.
#[track_caller]
fn connect_std(address: SocketAddr) -> std::net::TcpStream {
    let client = std::net::TcpStream::connect_timeout(&address, PATIENCE / 2).expect("connect");
    client.set_read_timeout(Some(PATIENCE)).expect("a bound on reads");
    client
}

#[track_caller]
fn local(client: &std::net::TcpStream) -> SocketAddr {
    client.local_addr().expect("local_addr")
}

/// `from_std` refuses a socket that does not listen. A wait for its connections would never end.
#[test]
#[cfg(not(any(target_vendor = "apple", kittiwake_portable)))]
fn unlistening_socket_is_refused() {
    let (stream, _peer) = pair_with_std();
    let connected = std::os::fd::OwnedFd::from(stream.into_std().expect("into_std"));
    let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    for socket in [connected, bound.into()] {
        let error = TcpListener::from_std(socket.into()).expect_err("the socket does not listen");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("does not listen"), "{error}");
    }
}
