//! Descriptors: none is leaked, and running out of them is survived. Each test counts or limits those of the
//! whole process, so each runs in a process of its own.
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

/// Little, so that it is soon used up.
const FEW: u32 = 40;
const MANY: u32 = 1024;
/// What a runtime needs for itself, by its documentation.
const NEEDED: usize = 3;

/// Without it a server that runs out of descriptors freezes, or never serves again.
#[test]
fn accepting_without_descriptors_fails_and_resumes() {
    if !is_child() {
        return in_child_with_descriptors("accepting_without_descriptors_fails_and_resumes", FEW);
    }
    run(|| async {
        let (listener, address) = listener().await;
        assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected yet");
        let (served, mut client_of_served) = serve_one(&listener, address).await;
        let mut clients = vec![std::net::TcpStream::connect(address).expect("connect")];
        clients.push(std::net::TcpStream::connect(address).expect("connect"));
        let mut hoard = take_all_descriptors();
        let paces = start_pacing();

        for _ in 0..1000 {
            assert_no_descriptors(listener.accept().await.expect_err("there is no descriptor"));
        }
        let before = paces.get();
        for _ in 0..10 {
            assert_no_descriptors(listener.accept().await.expect_err("there still is no descriptor"));
            settle().await;
        }
        assert!(paces.get() > before, "other tasks go on while accepting fails");
        (&served).write_all(b"still here").await.expect("other connections go on");
        client_of_served.read_exact(&mut [0; 10]).expect("the client reads");

        // No connection comes, and so no event: the queue is as it was.
        for client in clients {
            hoard.pop();
            let (stream, peer) = listener.accept().await.expect("a descriptor is free");
            assert_eq!(peer, client.local_addr().expect("local_addr"), "the connections have waited");
            drop(client);
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 0, "and work");
        }
        drop(hoard);
        serve_one(&listener, address).await;
    });
}

/// Without it a server by hand that is told to end, and has no descriptor left, ends with an error that no client has caused.
#[test]
fn a_wait_for_a_connection_that_is_ended_needs_no_descriptor() {
    if !is_child() {
        return in_child_with_descriptors("a_wait_for_a_connection_that_is_ended_needs_no_descriptor", FEW);
    }
    run(|| async {
        let (listener, _) = listener().await;
        let shutdown = ShutdownSignal::new();
        let mut ended = shutdown.clone();
        let mut accept = pin!(ended.run_until_triggered(listener.accept()));
        assert!(poll_once(&mut accept).await.is_none(), "nobody has connected");
        let _hoard = take_all_descriptors();
        shutdown.trigger();
        assert!(accept.await.is_none(), "nobody has connected, and the end has begun");
    });
}

/// Without it a loop that accepts at once after each failure keeps its worker for ever.
#[test]
fn a_loop_of_failing_accepts_lets_others_run() {
    if !is_child() {
        return in_child_with_descriptors("a_loop_of_failing_accepts_lets_others_run", FEW);
    }
    run(|| async {
        let (listener, address) = listener().await;
        let client = std::net::TcpStream::connect(address).expect("connect");
        let mut hoard = take_all_descriptors();
        let accepted = kittiwake::spawn_local(async move {
            // What many servers do: report it, and try again.
            let mut incoming = listener.incoming();
            loop {
                match incoming.next().await.expect("it never ends") {
                    Ok(stream) => return stream,
                    Err(error) => assert_no_descriptors(error),
                }
            }
        });
        let paces = start_pacing();
        until(|| paces.get() > 20).await;
        assert!(!accepted.is_finished(), "there is no descriptor");
        hoard.pop();
        let stream = accepted.await.expect("the task goes on when there is one");
        assert_eq!(stream.peer_addr().expect("peer_addr"), client.local_addr().expect("local_addr"));
    });
}

/// Without it a connect or a bind without descriptors hangs, or costs one.
#[test]
fn connecting_and_binding_without_descriptors_fail() {
    if !is_child() {
        return in_child_with_descriptors("connecting_and_binding_without_descriptors_fail", FEW);
    }
    run(|| async {
        let (_listener, address) = listener().await;
        let hoard = take_all_descriptors();
        assert_no_descriptors(TcpStream::connect(address).await.expect_err("there is no descriptor"));
        assert_no_descriptors(TcpListener::bind("127.0.0.1:0").await.expect_err("there is no descriptor"));
        drop(hoard);
        TcpStream::connect(address).await.expect("now there is one");
    });
}

/// Without it a runtime that cannot be made panics, or leaves the descriptors behind that it got.
#[test]
fn a_runtime_without_descriptors_is_an_error_and_leaks_none() {
    if !is_child() {
        return in_child_with_descriptors("a_runtime_without_descriptors_is_an_error_and_leaks_none", FEW);
    }
    within(|| {
        let mut hoard = take_all_descriptors();
        let mut free = 0;
        let runtime = loop {
            match (Builder::new().workers(1).build(), Builder::new().workers(1).build()) {
                (Ok(runtime), _) => break runtime,
                (Err(one), Err(two)) => [one, two].map(assert_no_descriptors),
                (Err(error), Ok(_)) => panic!("the second attempt succeeded after {error}"),
            };
            drop(hoard.pop());
            free += 1;
            assert_eq!(take_all_descriptors().len(), free, "a runtime that failed has left descriptors open");
        };
        assert!(free <= NEEDED, "a runtime needs {NEEDED} descriptors, and had {free} when it was made");
        assert_eq!(runtime.block_on(async { 1 }), 1);
    });
}

/// Without it sockets, listeners or runtimes are left open, each way of use by its own mistake.
#[test]
fn every_descriptor_is_closed() {
    if !is_child() {
        return in_child_with_descriptors("every_descriptor_is_closed", MANY);
    }
    within(|| {
        let before = open_descriptors();
        drop(Runtime::new().expect("a runtime"));
        assert_eq!(open_descriptors(), before, "a runtime that was not used");
        kittiwake::block_on(use_sockets_in_every_way());
        assert_eq!(open_descriptors(), before, "a runtime, and all sockets used in it");

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
        assert!(open_descriptors() > before, "the tasks keep their sockets");
        drop(runtime);
        assert_eq!(open_descriptors(), before, "a runtime that ends closes its tasks' sockets");

        let (stream, peer) = pair_with_std();
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async { assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none()) });
        drop(runtime);
        assert_eq!(open_descriptors(), before + 2, "a socket that outlives its runtime keeps nothing of it open");
        drop((stream, peer));
        assert_eq!(open_descriptors(), before);
    });
}

/// Without it whoever keeps a handle, or a waker, of a runtime that has ended keeps descriptors open.
#[test]
fn handles_and_wakers_keep_no_descriptor_open() {
    if !is_child() {
        return in_child_with_descriptors("handles_and_wakers_keep_no_descriptor_open", MANY);
    }
    within(|| {
        let before = open_descriptors();
        let runtime = Runtime::new().expect("a runtime");
        let handle = runtime.handle().clone();
        drop(runtime);
        assert_eq!(open_descriptors(), before, "a handle keeps something of its runtime open");
        drop(handle);
        let waker = kittiwake::block_on(async {
            let task = kittiwake::spawn(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
            task.await.expect("the task")
        });
        assert_eq!(open_descriptors(), before, "a task's waker keeps something of its runtime open");
        drop(waker);
        let waker = kittiwake::block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
        assert_eq!(open_descriptors(), before, "the waker of a call of block_on keeps something open");
        waker.wake();
        let mut sleep = kittiwake::time::sleep(Duration::from_secs(3600));
        assert!(kittiwake::block_on(poll_once(&mut sleep)).is_none(), "an hour is not over");
        assert_eq!(open_descriptors(), before, "a sleep keeps something of its runtime open");
    });
}

async fn use_sockets_in_every_way() {
    let before = open_descriptors();
    let (listener, address) = listener().await;
    let same = |what: &str| assert_eq!(open_descriptors(), before + 1, "only the listener is open after {what}");
    for _ in 0..5 {
        let (client, server) = (TcpStream::connect(address).await, listener.accept().await);
        drop((client, server));
        same("a connection");
        let mut accept = Box::pin(listener.accept());
        assert!(poll_once(&mut accept).await.is_none(), "nobody has connected yet");
        let connect = poll_once(TcpStream::connect(address)).await;
        assert!(connect.is_none(), "connecting has to wait");
        until(|| listener_has_one(&mut accept)).await;
        same("a connect that was dropped, and accepted");
        let (_socket, refusing) = refusing();
        TcpStream::connect(refusing).await.expect_err("nobody listens there");
        drop(_socket);
        same("a refused connection");
        let client = TcpStream::connect(address).await.expect("connect");
        let (read, write) = listener.accept().await.expect("accept").0.into_split();
        drop(client.into_std().expect("into_std"));
        drop(write);
        drop(read);
        same("halves, and a stream that was given back");
        let (stream, peer) = pair_with_std();
        let task = kittiwake::spawn(async move { (&stream).read(&mut [0; 8]).await });
        yield_now().await;
        task.abort();
        let _ = task.await;
        drop(peer);
        same("a task that was aborted");
        let (stream, peer) = pair_with_std();
        let task = kittiwake::spawn(async move {
            let _stream = stream;
            std::panic::resume_unwind(Box::new("the task ends so"));
        });
        task.await.expect_err("it panicked");
        drop(peer);
        same("a task that panicked");
    }
}

/// Accepts the connection whose other end has gone, and drops it.
fn listener_has_one(accept: &mut (impl Future<Output = std::io::Result<(TcpStream, SocketAddr)>> + Unpin)) -> bool {
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

/// A task that counts how often it gets to run.
fn start_pacing() -> Rc<Cell<usize>> {
    let paces = Rc::new(Cell::new(0));
    let counted = paces.clone();
    kittiwake::spawn_local(async move {
        loop {
            yield_now().await;
            counted.set(counted.get() + 1);
        }
    });
    paces
}

fn take_all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn open_descriptors() -> usize {
    // Not counting the one that looks.
    fs::read_dir("/proc/self/fd").expect("the descriptors of this process").count() - 1
}

#[track_caller]
fn assert_no_descriptors(error: Error) {
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
}
