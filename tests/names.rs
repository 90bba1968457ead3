//! Names in place of addresses. The only name that all machines know is `localhost`, and under `invalid.` there is none.

mod support;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::mpsc;

use futures_lite::future::{poll_once, try_zip};
use kittiwake::net::{TcpListener, TcpStream, lookup_host};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::time::{Duration, timeout};
use kittiwake::{spawn, spawn_blocking};
use support::*;

/// Without it a server cannot be named.
#[test]
fn a_name_is_as_good_as_an_address() {
    run(|| async {
        let listener = TcpListener::bind("localhost:0").await.expect("localhost is ours");
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
            assert_eq!(client.peer_addr().expect("its peer"), address);
        }
        TcpListener::bind(("localhost", 0)).await.expect("localhost is ours");
    });
}

/// Without it the order or the port of the system's answer is lost.
#[test]
fn lookup_host_says_what_std_says() {
    use std::net::ToSocketAddrs;
    run(|| async {
        let expected: Vec<SocketAddr> = "localhost:7".to_socket_addrs().expect("std knows it").collect();
        let found: Vec<SocketAddr> = lookup_host("localhost:7").await.expect("so do we").collect();
        assert_eq!(found, expected);
        let found = spawn(lookup_host(("localhost", 7))).await.expect("in a task").expect("localhost");
        assert_eq!(found.collect::<Vec<_>>(), expected);
        // An address with a zone is read by the resolver, without a network.
        let zoned: Vec<_> = lookup_host(("fe80::1%lo", 7)).await.expect("a zone that is there").collect();
        assert!(matches!(zoned[..], [SocketAddr::V6(address)] if address.scope_id() != 0), "{zoned:?}");
    });
}

/// Without it nobody knows which of a program's names is wrong.
#[test]
fn a_name_that_is_not_found_is_an_error_with_the_name_in_it() {
    run(|| async {
        for error in [
            lookup_host("nobody.invalid:80").await.map(Iterator::count).expect_err("there is none"),
            TcpStream::connect(("nobody.invalid", 80)).await.expect_err("there is none"),
            TcpListener::bind("nobody.invalid:0").await.expect_err("there is none"),
        ] {
            assert!(error.to_string().contains("\"nobody.invalid\" cannot be looked up: "), "{error}");
        }
        assert_eq!(sources(), 0, "nothing is left of them");
    });
}

/// Without it each connection to an address pays for a thread.
#[test]
#[cfg(target_os = "linux")]
fn an_address_needs_no_thread() {
    in_own_process("an_address_needs_no_thread", || {
        let before = count_of("task");
        kittiwake::block_on(async {
            let (listener, address) = listener().await;
            let connect = TcpStream::connect(address.to_string());
            try_zip(async { listener.accept().await }, connect).await.expect("a connection");
            for _ in lookup_host("[::1]:80").await.expect("an address").chain(lookup_host(address).await.expect("one"))
            {
            }
            TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
            assert_eq!(count_of("task"), before, "no thread was started");
            lookup_host("localhost:80").await.expect("a name").for_each(drop);
            assert_eq!(count_of("task"), before + 1, "now one was");
        });
    });
}

/// Without it a program that is polled by another executor panics, or blocks it.
#[test]
fn outside_a_runtime_a_name_is_an_error() {
    within(|| {
        let error = futures_lite::future::block_on(TcpListener::bind("localhost:0")).expect_err("no runtime");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
        let lookup = futures_lite::future::block_on(lookup_host("127.0.0.1:80")).expect("an address needs none");
        assert_eq!(lookup.count(), 1);
    });
}

/// Without it a resolver that hangs hangs whoever gave up on it, or keeps a place in the queue for nothing.
#[test]
fn a_look_up_that_is_given_up_holds_nobody_up() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(1).build().expect("a runtime");
        runtime.block_on(async {
            // The one thread is busy, as it is with a name whose server does not answer.
            let (end, ended) = mpsc::channel::<()>();
            let stuck = spawn_blocking(move || ended.recv().is_err());
            timeout(Duration::from_millis(5), lookup_host("localhost:80")).await.map(drop).expect_err("the task waits");
            let error =
                TcpStream::connect_timeout("localhost:80", Duration::from_millis(5)).await.expect_err("the task waits");
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(poll_once(TcpListener::bind("localhost:0")).await.is_none(), "it waits");
            drop(end);
            assert!(stuck.await.expect("the task ends"));
            assert!(lookup_host("localhost:80").await.is_ok(), "the next one is answered");
        });
    });
}

/// Without it the end of a runtime waits for a name server.
#[test]
fn a_look_up_ends_with_its_runtime() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(1).build().expect("a runtime");
        let (end, ended) = mpsc::channel::<()>();
        runtime.handle().spawn_blocking(move || ended.recv());
        let mut lookup = Box::pin(async { lookup_host("localhost:80").await.map(Iterator::count) });
        runtime.block_on(async { assert!(poll_once(&mut lookup).await.is_none(), "it waits for a thread") });
        drop(runtime);
        let error = Runtime::new().expect("another").block_on(lookup).expect_err("the runtime has ended");
        assert!(error.to_string().contains("\"localhost\" cannot be looked up: "), "{error}");
        drop(end);
    });
}

/// Without it many names at once are many threads at once.
#[test]
fn many_look_ups_share_the_threads_there_are() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(4).build().expect("a runtime");
        runtime.block_on(async {
            let lookups: Vec<_> = (0..200).map(|port| spawn(lookup_host(("localhost", port)))).collect();
            for (port, lookup) in lookups.into_iter().enumerate() {
                let mut found = lookup.await.expect("a task").expect("localhost");
                assert!(found.all(|address| usize::from(address.port()) == port));
            }
        });
    });
}
