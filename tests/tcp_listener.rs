//! Listening and accepting: nobody is lost in the queue, and the listener outlives everything.

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

/// Without it connections that arrive together wait for the next one to arrive.
#[test]
fn two_connections_behind_one_event_are_both_accepted() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected yet");
        let (one, two) = (connect_std(address), connect_std(address));
        let first = listener.accept().await.expect("accept").1;
        let second = listener.accept().await.expect("accept without another event").1;
        assert_eq!((first, second), (local(&one), local(&two)), "in the order in which they came");
    });
}

/// Without it the wake-up of a cancelled acceptor is lost, and with it a connection that came with others.
#[test]
fn an_acceptor_cancelled_after_its_wake_loses_no_connection() {
    run(|| async {
        let (listener, address) = listener().await;
        let listener = Arc::new(listener);
        let (waker, wakes) = counting_waker();
        let mut cancelled = listener.accept();
        assert!(poll_with(&waker, &mut cancelled).is_pending(), "nobody has connected yet");
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
        assert_eq!(peers, expected, "every connection is accepted once");
    });
}

/// Without it accepting with a timeout, or in a select, drops connections unseen.
#[test]
fn a_dropped_accept_loses_no_connection() {
    run(|| async {
        let (listener, address) = listener().await;
        for when_woken in [false, true] {
            let (waker, wakes) = counting_waker();
            let mut accept = listener.accept();
            assert!(poll_with(&waker, &mut accept).is_pending(), "nobody has connected yet");
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
            assert_eq!(Arc::strong_count(&wakes), 1, "the waker of a dropped accept is dropped with it");
            assert_eq!(listener.accept().await.expect("accept").1, local(&client), "the connection is still there");
        }
    });
}

/// Without it a listener cannot be used as a stream of connections, or that stream ends.
#[test]
fn incoming_is_a_stream_of_connections_that_never_ends() {
    run(|| async {
        let (listener, address) = listener().await;
        let mut incoming = listener.incoming();
        let (waker, wakes) = counting_waker();
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(incoming.poll_next(&mut cx).is_pending(), "nobody has connected yet");
        for round in 0..5 {
            let clients: Vec<_> = (0..3).map(|_| connect_std(address)).collect();
            until(|| wakes.get() > 0).await;
            for client in &clients {
                let stream = incoming.next().await.expect("the task never ends").expect("accept");
                assert_eq!(stream.peer_addr().expect("peer_addr"), local(client), "round {round}");
            }
        }
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(matches!(incoming.poll_next(&mut cx), Poll::Pending), "it waits for more");
        drop((incoming, waker));
        assert_eq!(Arc::strong_count(&wakes), 1, "the waker of a dropped stream is dropped with it");
    });
}

/// Without it one slow read blocks the worker, or a child process keeps every connection open.
#[test]
#[cfg(target_os = "linux")]
fn every_socket_is_non_blocking_and_close_on_exec() {
    run(|| async {
        let (listener, address) = listener().await;
        let client = TcpStream::connect(address).await.expect("connect");
        let (server, _) = listener.accept().await.expect("accept");
        let (from_std, _peer) = pair_with_std();
        assert_flags(&listener, "the listener");
        assert_flags(&client, "a stream that was connected");
        assert_flags(&server, "a stream that was accepted");
        assert_flags(&from_std, "a stream that was std's");
    });
}

#[cfg(target_os = "linux")]
#[track_caller]
fn assert_flags(socket: &impl std::os::fd::AsRawFd, what: &str) {
    let flags = descriptor_flags(socket);
    assert_ne!(flags & libc::O_NONBLOCK, 0, "{what} must be non-blocking");
    assert_ne!(flags & libc::O_CLOEXEC, 0, "{what} must be close-on-exec");
}

/// Without it a server cannot be started again for a minute after it ended.
#[test]
fn an_address_can_be_bound_again_right_after_its_use() {
    run(|| async {
        let (listener, address) = listener().await;
        let client = connect_std(address);
        let (server, _) = listener.accept().await.expect("accept");
        // Whoever closes first is left with the address in the TIME_WAIT state.
        drop(server);
        assert_eq!(read_all(client), b"");
        drop(listener);
        let listener = TcpListener::bind(address).await.expect("bind again");
        let client = connect_std(address);
        assert_eq!(listener.accept().await.expect("accept").1, local(&client), "the new listener works");
    });
}

/// Without it a burst of connections meets a queue of 128, and the rest wait a second or more.
#[test]
#[cfg(target_os = "linux")]
fn hundreds_of_connections_wait_in_the_queue() {
    run(|| async {
        let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("what the kernel allows");
        // Well below the usual limit of 1,024 descriptors.
        let count = allowed.trim().parse::<usize>().expect("a number").min(600);
        let (listener, address) = listener().await;
        let clients: Vec<_> = (0..count).map(|_| connect_std(address)).collect();
        for client in clients {
            let (_, peer) = listener.accept().await.expect("accept");
            assert_eq!(peer, local(&client), "each that connected is in the queue");
        }
    });
}

/// Without it "cannot serve" is all that a user gets to know.
#[test]
fn an_address_that_cannot_be_bound_says_why() {
    run(|| async {
        let (_listener, taken) = listener().await;
        let error = TcpListener::bind(taken).await.expect_err("the port is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}");
        // A network for documentation, which no machine has.
        let error = TcpListener::bind("192.0.2.1:0").await.expect_err("not an address of this machine");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
        for nonsense in ["", "127.0.0.1", "127.0.0.1:port", ":0"] {
            let error = TcpListener::bind(nonsense).await.expect_err("no address");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{nonsense:?}: {error}");
        }
        let error = TcpListener::bind(Vec::<SocketAddr>::new()).await.expect_err("no address at all");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    });
}

/// Without it only the first of several addresses counts, or an error that is not the last one's is reported.
#[test]
fn addresses_are_bound_in_turn() {
    run(|| async {
        let (_listener, taken) = listener().await;
        let foreign: SocketAddr = "192.0.2.1:0".parse().expect("an address");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let listener = TcpListener::bind(&[taken, foreign, any][..]).await.expect("the third one is free");
        assert_eq!(listener.local_addr().expect("local_addr").ip(), any.ip());
        let error = TcpListener::bind(vec![taken, foreign]).await.expect_err("neither port is free");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "the last one's error: {error}");
        let error = TcpListener::bind(vec![foreign, taken]).await.expect_err("neither port is free");
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "the last one's error: {error}");
    });
}

/// Without it only half of the internet can connect.
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

/// Without it a client that gives up early takes the server along.
#[test]
fn connections_that_are_reset_in_the_queue_do_not_harm_the_listener() {
    run(|| async {
        let (listener, address) = listener().await;
        for _ in 0..5 {
            reset(connect_std(address));
        }
        let client = connect_std(address);
        // Linux still gives out those that were reset, and other systems leave them out.
        loop {
            let (stream, peer) = listener.accept().await.expect("accept");
            if peer == local(&client) {
                break;
            }
            let read = (&stream).read(&mut [0; 8]).await.map_err(|error| error.kind());
            assert_eq!(read, Err(ErrorKind::ConnectionReset), "a connection that was reset says so");
        }
    });
}

/// Without it a listener of std's that blocks stops the whole worker.
#[test]
fn a_blocking_listener_of_stds_does_not_block_the_worker() {
    run(|| async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("local_addr");
        let listener = TcpListener::from_std(listener).expect("from_std");
        let acceptor = kittiwake::spawn(async move { listener.accept().await });
        settle().await;
        assert!(!acceptor.is_finished(), "nobody has connected yet");
        let client = connect_std(address);
        assert_eq!(acceptor.await.expect("the task").expect("accept").1, local(&client));
    });
}

/// Without it a listener that is handed back does not block, or is still watched by the reactor.
#[test]
fn a_listener_given_back_to_std_blocks_and_is_no_longer_watched() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected yet");
        assert_eq!(sources(), 1, "a listener that waits is watched");
        let listener = listener.into_std().expect("into_std");
        assert_eq!(sources(), 0, "a listener that was given back is not");
        #[cfg(target_os = "linux")]
        assert_eq!(descriptor_flags(&listener) & libc::O_NONBLOCK, 0, "a listener of std's blocks");
        let accepting = std::thread::spawn(move || listener.accept().map(|(_, peer)| (listener, peer)));
        let client = connect_std(address);
        let (listener, peer) = accepting.join().expect("the thread").expect("a blocking accept waits");
        assert_eq!(peer, local(&client));

        let listener = TcpListener::from_std(listener).expect("from_std");
        assert!(poll_once(listener.accept()).await.is_none(), "it does not block again");
        assert_eq!(sources(), 1, "it is watched again");
        let client = connect_std(address);
        assert_eq!(listener.accept().await.expect("accept").1, local(&client));
    });
}

/// Without it connections that nobody accepted stay open when the server has gone.
#[test]
fn dropping_a_listener_ends_the_connections_in_its_queue() {
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected yet");
        let mut client = connect_std(address);
        drop(listener);
        assert_eq!(sources(), 0, "the listener has left the reactor");
        let error = client.read(&mut [0; 8]).expect_err("nobody will ever answer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// Without it an option is set on some other socket, or a pending error stays.
#[test]
fn options_are_the_listeners() {
    run(|| async {
        let (listener, address) = listener().await;
        listener.set_ttl(9).expect("IP_TTL");
        assert_eq!(listener.ttl().expect("IP_TTL"), 9);
        assert!(listener.take_error().expect("SO_ERROR").is_none(), "nothing has failed");
        let mut client = connect_std(address);
        let (stream, _) = listener.accept().await.expect("accept");
        assert_eq!(stream.ttl().expect("IP_TTL"), 9, "what it accepts inherits the option");
        client.write_all(b"x").expect("the client writes");
        assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
    });
}

/// A client of std's; it fails, and does not wait for ever, when the queue has no room.
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

/// Without it a descriptor that is something else is waited on for ever: nobody connects to a connection.
#[test]
#[cfg(any(target_os = "android", target_os = "linux"))]
fn a_socket_that_does_not_listen_is_no_listener() {
    let (stream, _peer) = pair_with_std();
    let connected = std::os::fd::OwnedFd::from(stream.into_std().expect("into_std"));
    let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    for socket in [connected, bound.into()] {
        let error = TcpListener::from_std(socket.into()).expect_err("it does not listen");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("does not listen"), "{error}");
    }
}
