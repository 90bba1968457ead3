//! Descriptors: none is leaked, and a process without free ones recovers. Each test counts or limits the
//! descriptors of a whole process, so each runs in a process of its own.
#![cfg(target_os = "linux")]

mod support;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_lite::StreamExt;
use futures_lite::future::{poll_fn, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, Error};
use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::task::yield_now;
use support::*;

/// A small limit, which is soon used up.
const FEW: u32 = 40;
const MANY: u32 = 1024;
/// The number of descriptors that a runtime needs, according to its documentation.
const NEEDED: usize = 3;

/// `accept` without descriptors fails and works again once one is free.
#[test]
fn accept_recovers_from_descriptor_exhaustion() {
    if !is_child() {
        return in_child_with_descriptors("accept_recovers_from_descriptor_exhaustion", FEW);
    }
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
        let (served, mut client_of_served) = serve_one(&listener, address).await;
        let mut clients = vec![std::net::TcpStream::connect(address).expect("connect")];
        clients.push(std::net::TcpStream::connect(address).expect("connect"));
        let mut hoard = take_all_descriptors();
        let polls = count_polls_of_a_task();

        for _ in 0..1000 {
            assert_no_descriptors(listener.accept().await.expect_err("there is no descriptor"));
        }
        let before = polls.get();
        for _ in 0..10 {
            assert_no_descriptors(listener.accept().await.expect_err("there is still no descriptor"));
            settle().await;
        }
        assert!(polls.get() > before, "other tasks must continue while `accept` fails");
        (&served).write_all(b"still here").await.expect("other connections continue");
        client_of_served.read_exact(&mut [0; 10]).expect("the client reads");

        // No new connection arrives, so there is no event.
        for client in clients {
            hoard.pop();
            let (stream, peer) = listener.accept().await.expect("a descriptor is free");
            assert_eq!(peer, client.local_addr().expect("local_addr"), "the connections must still be in the queue");
            drop(client);
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 0, "the connections must work");
        }
        drop(hoard);
        serve_one(&listener, address).await;
    });
}

/// A wait for a connection that a shutdown ends needs no descriptor. A server without a free one must end without
/// an error.
#[test]
fn shutdown_of_accept_needs_no_descriptor() {
    if !is_child() {
        return in_child_with_descriptors("shutdown_of_accept_needs_no_descriptor", FEW);
    }
    run(|| async {
        let (listener, _) = listener().await;
        let shutdown = ShutdownSignal::new();
        let mut ended = shutdown.clone();
        let mut accept = pin!(ended.run_until_triggered(listener.accept()));
        assert!(poll_once(&mut accept).await.is_none(), "no client has connected");
        let _hoard = take_all_descriptors();
        shutdown.trigger();
        assert!(accept.await.is_none(), "the shutdown has begun and no client has connected");
    });
}

/// A loop of failing accepts lets other tasks run.
#[test]
fn failing_accepts_let_tasks_run() {
    if !is_child() {
        return in_child_with_descriptors("failing_accepts_let_tasks_run", FEW);
    }
    run(|| async {
        let (listener, address) = listener().await;
        let client = std::net::TcpStream::connect(address).expect("connect");
        let mut hoard = take_all_descriptors();
        let accepted = kittiwake::spawn_local(async move {
            // Many servers report an error like this and try again.
            let mut incoming = listener.incoming();
            loop {
                match incoming.next().await.expect("the task never ends") {
                    Ok(stream) => return stream,
                    Err(error) => assert_no_descriptors(error),
                }
            }
        });
        let polls = count_polls_of_a_task();
        until(|| polls.get() > 20).await;
        assert!(!accepted.is_finished(), "there is no descriptor");
        hoard.pop();
        let stream = accepted.await.expect("the task continues once a descriptor is free");
        assert_eq!(stream.peer_addr().expect("peer_addr"), client.local_addr().expect("local_addr"));
    });
}

/// A connect and a bind without descriptors fail, and leak none.
#[test]
fn connect_without_descriptors_fails() {
    if !is_child() {
        return in_child_with_descriptors("connect_without_descriptors_fails", FEW);
    }
    run(|| async {
        let (_listener, address) = listener().await;
        let hoard = take_all_descriptors();
        assert_no_descriptors(TcpStream::connect(address).await.expect_err("there is no descriptor"));
        assert_no_descriptors(TcpListener::bind("127.0.0.1:0").await.expect_err("there is no descriptor"));
        drop(hoard);
        TcpStream::connect(address).await.expect("a descriptor is free again");
    });
}

/// A runtime that cannot be made for lack of descriptors is an error, and leaks none.
#[test]
fn failed_runtime_leaks_no_descriptor() {
    if !is_child() {
        return in_child_with_descriptors("failed_runtime_leaks_no_descriptor", FEW);
    }
    within(|| {
        let mut hoard = take_all_descriptors();
        let mut free = 0;
        let runtime = loop {
            // A current-thread runtime needs none before its first wait.
            let build = || Builder::new_multi_thread().worker_threads(1).build();
            match (build(), build()) {
                (Ok(runtime), _) => break runtime,
                (Err(one), Err(two)) => [one, two].map(assert_no_descriptors),
                (Err(error), Ok(_)) => panic!("the second attempt succeeded after {error}"),
            };
            drop(hoard.pop());
            free += 1;
            assert_eq!(take_all_descriptors().len(), free, "a runtime that failed must leave no descriptor open");
        };
        assert!((1..=NEEDED).contains(&free), "a runtime must need at most {NEEDED} descriptors, but it needed {free}");
        assert_eq!(runtime.block_on(async { 1 }), 1);
    });
}

/// Every descriptor is closed, however the sockets and runtimes were used.
#[test]
fn every_descriptor_is_closed() {
    if !is_child() {
        return in_child_with_descriptors("every_descriptor_is_closed", MANY);
    }
    within(|| {
        let before = open_descriptors();
        drop(Runtime::new().expect("a runtime"));
        assert_eq!(open_descriptors(), before, "an unused runtime must close its descriptors");
        kittiwake::block_on(use_sockets_in_every_way());
        assert_eq!(open_descriptors(), before, "a runtime and the sockets used in it must be closed");

        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let (listener, _) = listener().await;
            kittiwake::spawn(async move { listener.accept().await.map(drop) });
            for _ in 0..10 {
                let (stream, peer) = pair_with_std();
                kittiwake::spawn(async move { (&stream).read(&mut [0; 8]).await.map(|_| peer) });
            }
            settle().await;
        });
        assert!(open_descriptors() > before, "the tasks must keep their sockets");
        drop(runtime);
        assert_eq!(open_descriptors(), before, "the end of a runtime must close its tasks' sockets");

        let (stream, peer) = pair_with_std();
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async { assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none()) });
        drop(runtime);
        assert_eq!(open_descriptors(), before + 2, "a socket must keep no descriptor of its ended runtime open");
        drop((stream, peer));
        assert_eq!(open_descriptors(), before);
    });
}

/// The handles and wakers of an ended runtime keep no descriptor open.
#[test]
fn handles_keep_no_descriptor_open() {
    if !is_child() {
        return in_child_with_descriptors("handles_keep_no_descriptor_open", MANY);
    }
    within(|| {
        let before = open_descriptors();
        let runtime = Runtime::new().expect("a runtime");
        let handle = runtime.handle().clone();
        drop(runtime);
        assert_eq!(open_descriptors(), before, "a handle keeps a descriptor of its runtime open");
        drop(handle);
        let waker = kittiwake::block_on(async {
            let task = kittiwake::spawn(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
            task.await.expect("the task")
        });
        assert_eq!(open_descriptors(), before, "a task's waker keeps a descriptor of its runtime open");
        drop(waker);
        let waker = kittiwake::block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
        assert_eq!(open_descriptors(), before, "the waker of a `block_on` call keeps a descriptor open");
        waker.wake();
        let mut sleep = kittiwake::time::sleep(Duration::from_secs(3600));
        assert!(kittiwake::block_on(poll_once(&mut sleep)).is_none(), "the sleep has an hour left");
        assert_eq!(open_descriptors(), before, "a sleep keeps a descriptor of its runtime open");
    });
}

async fn use_sockets_in_every_way() {
    open_reactor().await;
    let before = open_descriptors();
    let (listener, address) = listener().await;
    let same = |what: &str| assert_eq!(open_descriptors(), before + 1, "only the listener may be open after {what}");
    for _ in 0..5 {
        let (client, server) = (TcpStream::connect(address).await, listener.accept().await);
        drop((client, server));
        same("a connection");
        let mut accept = Box::pin(listener.accept());
        assert!(poll_once(&mut accept).await.is_none(), "no client has connected yet");
        let connect = poll_once(TcpStream::connect(address)).await;
        assert!(connect.is_none(), "the connect must wait");
        until(|| has_accepted(&mut accept)).await;
        same("a connect that was dropped and accepted");
        let (_socket, refusing) = refusing();
        TcpStream::connect(refusing).await.expect_err("the port is closed");
        drop(_socket);
        same("a refused connection");
        let client = TcpStream::connect(address).await.expect("connect");
        let (read, write) = listener.accept().await.expect("accept").0.into_split();
        drop(client.into_std().expect("into_std"));
        drop(write);
        drop(read);
        same("dropped halves and a stream converted to std");
        let (stream, peer) = pair_with_std();
        let task = kittiwake::spawn(async move { (&stream).read(&mut [0; 8]).await });
        yield_now().await;
        task.abort();
        let _ = task.await;
        drop(peer);
        same("an aborted task");
        let (stream, peer) = pair_with_std();
        let task = kittiwake::spawn(async move {
            let _stream = stream;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        task.await.expect_err("the task panicked");
        drop(peer);
        same("a task that panicked");
    }
}

/// Accepts the connection whose other end is closed, and drops it. Returns true once that is done.
fn has_accepted(accept: &mut (impl Future<Output = std::io::Result<(TcpStream, SocketAddr)>> + Unpin)) -> bool {
    poll_with(std::task::Waker::noop(), accept).is_ready()
}

fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("bind");
    let address = socket.local_addr().expect("local_addr").as_socket().expect("an IP address");
    (socket, address)
}

async fn serve_one(listener: &TcpListener, address: SocketAddr) -> (TcpStream, std::net::TcpStream) {
    let mut client = std::net::TcpStream::connect(address).expect("connect");
    let (stream, _) = listener.accept().await.expect("accept");
    client.write_all(b"hello").expect("the client writes");
    let mut hello = [0; 5];
    (&stream).read_exact(&mut hello).await.expect("read");
    (stream, client)
}

/// Spawns a task that counts its polls.
fn count_polls_of_a_task() -> Rc<Cell<usize>> {
    let polls = Rc::new(Cell::new(0));
    let counted = polls.clone();
    kittiwake::spawn_local(async move {
        loop {
            yield_now().await;
            counted.set(counted.get() + 1);
        }
    });
    polls
}

fn take_all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn open_descriptors() -> usize {
    // The directory's own descriptor does not count.
    fs::read_dir("/proc/self/fd").expect("the descriptors of this process").count() - 1
}

#[track_caller]
fn assert_no_descriptors(error: Error) {
    assert_eq!(errno(&error), Some(libc::EMFILE), "{error}");
}
