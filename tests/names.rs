//! Host names instead of addresses. `localhost` is the only name that every machine knows, and no name exists under
//! `invalid.`.

mod support;

use std::net::SocketAddr;

use futures_lite::future::try_zip;
use kittiwake::net::{TcpListener, TcpStream, lookup_host};
use kittiwake::spawn;
use support::*;

/// A host name is accepted wherever an address is.
#[test]
fn names_work_like_addresses() {
    run(|| async {
        let listener = TcpListener::bind("localhost:0").await.expect("localhost is an address of this machine");
        let address = listener.local_addr().expect("the address");
        assert!(address.ip().is_loopback(), "{address}");
        let port = address.port();
        for attempt in 0..5 {
            let connect = async {
                match attempt {
                    0 => TcpStream::connect(format!("localhost:{port}")).await,
                    1 => TcpStream::connect(format!("localhost:{port}").as_str()).await,
                    2 => TcpStream::connect(("localhost", port)).await,
                    3 => TcpStream::connect((String::from("localhost"), port)).await,
                    _ => TcpStream::connect_timeout(("localhost", port), PATIENCE).await,
                }
            };
            let (_, client) = try_zip(async { listener.accept().await }, connect).await.expect("a connection");
            assert_eq!(client.peer_addr().expect("the peer's address"), address);
        }
        TcpListener::bind(("localhost", 0)).await.expect("localhost is an address of this machine");
    });
}

/// `lookup_host` returns the addresses of std in the same order and with the port.
#[test]
fn lookup_host_agrees_with_std() {
    use std::net::ToSocketAddrs;
    run(|| async {
        let expected: Vec<SocketAddr> = "localhost:7".to_socket_addrs().expect("std resolves the name").collect();
        let found: Vec<SocketAddr> = lookup_host("localhost:7").await.expect("kittiwake resolves the name").collect();
        assert_eq!(found, expected);
        let found = spawn(lookup_host(("localhost", 7))).await.expect("the lookup works in a task").expect("localhost");
        assert_eq!(found.collect::<Vec<_>>(), expected);
        // The resolver parses an address with a zone, without a network.
        let zoned: Vec<_> = lookup_host(("fe80::1%lo", 7)).await.expect("the zone exists").collect();
        assert!(matches!(zoned[..], [SocketAddr::V6(address)] if address.scope_id() != 0), "{zoned:?}");
    });
}

/// An unknown name is an error that contains the name.
#[test]
fn lookup_error_contains_the_name() {
    run(|| async {
        let looked_up = lookup_host("nobody.invalid:80").await.map(drop);
        // A name server that does not answer holds each look-up up.
        progress();
        let connected = TcpStream::connect(("nobody.invalid", 80)).await.map(drop);
        progress();
        let bound = TcpListener::bind("nobody.invalid:0").await.map(drop);
        for result in [looked_up, connected, bound] {
            let error = result.expect_err("the name does not exist");
            assert!(error.to_string().contains("\"nobody.invalid\" cannot be looked up: "), "{error}");
        }
        assert_eq!(sources(), 0, "no socket may stay registered");
    });
}

/// An address needs no blocking thread.
#[test]
#[cfg(target_os = "linux")]
fn address_needs_no_thread() {
    in_own_process("address_needs_no_thread", || {
        let before = count_of("task");
        kittiwake::block_on(async {
            let (listener, address) = listener().await;
            let connect = TcpStream::connect(address.to_string());
            try_zip(async { listener.accept().await }, connect).await.expect("a connection");
            for _ in lookup_host("[::1]:80").await.expect("an address").chain(lookup_host(address).await.expect("one"))
            {
            }
            TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
            assert_eq!(count_of("task"), before, "no thread may be started for an address");
            lookup_host("localhost:80").await.expect("a name").for_each(drop);
            assert_eq!(count_of("task"), before + 1, "one thread must be started for a name");
        });
    });
}

/// A name outside a runtime is an error, and neither panics nor blocks another executor.
#[test]
fn name_outside_a_runtime_fails() {
    within(|| {
        let error =
            futures_lite::future::block_on(TcpListener::bind("localhost:0")).expect_err("no runtime resolves the name");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
        let lookup = futures_lite::future::block_on(lookup_host("127.0.0.1:80")).expect("an address needs no runtime");
        assert_eq!(lookup.count(), 1);
    });
}

/// A lookup that begins after the end of its runtime fails at once. No thread would ever run it.
#[test]
fn lookup_after_its_runtime_fails() {
    within(|| {
        let handle = one_worker().handle().clone();
        let error = handle.block_on(lookup_host("localhost:80")).map(Iterator::count).expect_err("there is no thread");
        assert!(error.to_string().contains("\"localhost\" cannot be looked up: "), "{error}");
    });
}

/// Many lookups share the blocking threads.
#[test]
fn lookups_share_blocking_threads() {
    within(|| {
        let runtime = blocking_threads(4);
        runtime.block_on(async {
            let lookups: Vec<_> = (0..200).map(|port| spawn(lookup_host(("localhost", port)))).collect();
            for (port, lookup) in lookups.into_iter().enumerate() {
                let mut found = lookup.await.expect("a task").expect("localhost");
                assert!(found.all(|address| usize::from(address.port()) == port));
            }
        });
    });
}
