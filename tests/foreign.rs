//! Sockets outside a runtime, after their runtime, under a second one, and in executors that are not ours.

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use futures_lite::future::{block_on, poll_once, try_zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, Error, ErrorKind};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::Runtime;
use support::*;

/// Without it a socket can only be made where it is used.
#[test]
fn sockets_made_outside_a_runtime_work_inside_one() {
    within(|| {
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("binding does not wait");
        let (stream, mut peer) = pair_with_std();
        let address = listener.local_addr().expect("local_addr");
        kittiwake::block_on(async {
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            let client = kittiwake::spawn(TcpStream::connect(address));
            listener.accept().await.expect("accept");
            client.await.expect("the task").expect("connect");
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
        });
    });
}

/// Without it a program that forgets the runtime hangs, or loses its sockets with the error.
#[test]
fn waiting_outside_a_runtime_is_an_error_that_says_so() {
    within(|| {
        let (mut stream, mut peer) = pair_with_std();
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("binding does not wait");
        let address = listener.local_addr().expect("local_addr");
        for _ in 0..2 {
            assert_no_runtime(block_on(stream.read(&mut [0; 8])).expect_err("reading would wait"));
            assert_no_runtime(block_on(stream.peek(&mut [0; 8])).expect_err("peeking would wait"));
            assert_no_runtime(block_on(stream.readable()).expect_err("no reactor reports readiness"));
            assert_no_runtime(block_on(stream.writable()).expect_err("no reactor reports readiness"));
            assert_no_runtime(block_on(listener.accept()).expect_err("accepting would wait"));
            assert_no_runtime(block_on(TcpStream::connect(address)).expect_err("connecting has to wait"));
            // The attempt above got as far as the queue.
            drop(block_on(listener.accept()).expect("accepting need not wait"));
        }
        assert_no_runtime(block_on(stream.write_all(&vec![7; 64 << 20])).expect_err("writing would wait"));

        peer.set_nonblocking(true).expect("non-blocking");
        while peer.read(&mut [0; 65_536]).is_ok() {}
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!(block_on(stream.read(&mut [0; 8])).expect("reading need not wait"), 1);
        assert_no_runtime(block_on(stream.read(&mut [0; 8])).expect_err("reading would wait"));
        for _ in 0..2 {
            peer.write_all(b"x").expect("the peer writes");
            let read = block_on(stream.read(&mut [0; 8]));
            assert_eq!(read.expect("reading need not wait, though it was short the last time"), 1);
        }
        kittiwake::block_on(async {
            assert!(poll_once(stream.read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            peer.write_all(b"yz").expect("the peer writes");
            assert_eq!(stream.read(&mut [0; 8]).await.expect("inside a runtime it waits"), 2);
        });
    });
}

#[track_caller]
fn assert_no_runtime(error: Error) {
    assert_eq!(error.kind(), ErrorKind::Other, "{error}");
    assert!(error.to_string().contains("no kittiwake runtime"), "the error must say what is missing: {error}");
}

/// Without it a descriptor that is no socket hangs or panics, or keeps a place in the reactor.
#[test]
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
fn what_is_no_socket_fails_and_keeps_no_place() {
    run(|| async {
        let file = std::fs::File::open(std::env::current_exe().expect("this program's path")).expect("a file");
        let stream = TcpStream::from_std(std::os::fd::OwnedFd::from(file).into()).expect("from_std");
        for _ in 0..2 {
            let error = (&stream).read(&mut [0; 8]).await.expect_err("a file is no socket");
            assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK), "the kernel's error, as it is");
            let error = stream.readable().await.expect_err("files are not watched");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "the kernel's error, as it is");
            assert_eq!(sources(), 0, "what is not watched has no place");
        }
    });
}

/// Without it a pending read hangs when its runtime ends, fails for ever, or never fails.
#[test]
fn a_pending_read_fails_once_when_its_runtime_ends_and_then_works_in_another() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let (waker, wakes) = counting_waker();
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
        });
        assert_eq!(wakes.get(), 0, "nothing has happened yet");
        drop(runtime);
        assert_eq!(wakes.get(), 1, "the end of the runtime wakes whoever waits");
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1, "and lets its waker go");
        kittiwake::block_on(async {
            assert_ended((&stream).read(&mut [0; 8]).await.expect_err("the wait was cut off"));
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "now it waits here");
            assert_eq!(sources(), 1, "it is watched here");
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
        });
    });
}

/// Without it waiting for a connection or for readiness hangs when its runtime ends, or fails for ever.
#[test]
fn futures_pending_on_a_runtime_that_ends_fail_once_and_then_work_in_another() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("bind");
        let address = listener.local_addr().expect("local_addr");
        let (waker, wakes) = counting_waker();
        let mut accept = listener.accept();
        let mut readable = Box::pin(stream.readable());
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(poll_with(&waker, &mut accept).is_pending(), "nobody has connected yet");
            assert!(poll_with(&waker, &mut readable).is_pending(), "there is nothing to read yet");
        });
        drop(runtime);
        assert_eq!(wakes.get(), 2, "the end of the runtime wakes whoever waits");
        kittiwake::block_on(async {
            assert_ended(accept.await.expect_err("the wait was cut off"));
            assert_ended(readable.await.expect_err("the wait was cut off"));
            assert!(poll_once(listener.accept()).await.is_none(), "now it waits here");
            assert!(poll_once(stream.readable()).await.is_none(), "now it waits here");
            let client = std::net::TcpStream::connect(address).expect("connect");
            let (_, from) = listener.accept().await.expect("accept");
            assert_eq!(from, client.local_addr().expect("local_addr"));
            peer.write_all(b"x").expect("the peer writes");
            stream.readable().await.expect("readable");
        });
    });
}

/// Without it the end of a runtime costs sockets that did not wait a failed operation.
#[test]
fn what_did_not_wait_when_its_runtime_ended_does_not_fail() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let runtime = one_worker();
        runtime.block_on(async {
            stream.writable().await.expect("writable");
            peer.write_all(b"x").expect("the peer writes");
            stream.readable().await.expect("readable");
            assert_eq!(sources(), 1, "it is watched");
        });
        drop(runtime);
        assert_eq!(block_on((&stream).read(&mut [0; 8])).expect("a read that need not wait"), 1);
        assert_eq!(block_on((&stream).write(b"y")).expect("a write that need not wait"), 1);
        kittiwake::block_on(async {
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "a new wait waits");
            peer.write_all(b"z").expect("the peer writes");
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("and is woken here"), 1);
        });
    });
}

/// Without it the new reader of a stream pays for the wait of one that was given up before its runtime ended.
#[test]
fn a_wait_in_the_first_runtime_is_not_held_against_new_futures() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("bind");
        let address = listener.local_addr().expect("local_addr");
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(poll_once(stream.readable()).await.is_none(), "there is nothing to read yet");
            assert!(poll_once(listener.accept()).await.is_none(), "nobody has connected yet");
        });
        drop(runtime);
        kittiwake::block_on(async {
            peer.write_all(b"x").expect("the peer writes");
            stream.readable().await.expect("a new future has lost nothing");
            let _client = std::net::TcpStream::connect(address).expect("connect");
            listener.accept().await.expect("a new future has lost nothing");
        });
    });
}

/// Without it a task of one runtime that waits on a socket of another is forgotten when that ends.
#[test]
fn a_task_that_waits_on_another_runtimes_socket_is_told_of_its_end() {
    within(|| {
        let other = Background::start();
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        let bound = stream.clone();
        other.run(async move { assert!(poll_once((&*bound).read(&mut [0; 8])).await.is_none()) });
        kittiwake::block_on(async {
            let reader = kittiwake::spawn({
                let stream = stream.clone();
                async move { (&*stream).read(&mut [0; 8]).await }
            });
            settle().await;
            assert_eq!(sources(), 0, "the socket stays with the runtime that it is bound to");
            assert!(!reader.is_finished(), "there is nothing to read yet");
            other.stop();
            assert_ended(reader.await.expect("the task").expect_err("the wait was cut off"));
            let reader = kittiwake::spawn(async move { (&*stream).read(&mut [0; 8]).await });
            until(|| sources() == 1).await;
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!(reader.await.expect("the task").expect("it binds to this runtime"), 1);
        });
    });
}

#[track_caller]
fn assert_ended(error: Error) {
    assert_eq!(error.kind(), ErrorKind::Other, "{error}");
    assert!(error.to_string().contains("has ended"), "the error must say what happened: {error}");
}

/// Without it a socket can only be used by the threads of its own runtime.
#[test]
fn a_bound_socket_works_in_an_executor_that_is_not_ours() {
    within(|| {
        let home = Background::start();
        let (stream, mut peer) = pair_with_std();
        let stream = home.run(async move {
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            stream
        });
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            block_on((&stream).read_to_end(&mut received)).expect("read");
            block_on((&stream).write_all(&received)).expect("write");
            block_on((&stream).close()).expect("close");
            drop(stream);
            received
        });
        let bytes = pattern(100_000);
        for chunk in bytes.chunks(1_000) {
            peer.write_all(chunk).expect("the peer writes");
            thread::yield_now();
        }
        peer.shutdown(std::net::Shutdown::Write).expect("the peer ends its writing");
        assert!(read_all(peer) == bytes, "all comes back");
        assert!(reader.join().expect("the reader's thread") == bytes);
        assert_eq!(home.handle().metrics().sources_registered(), 0, "its place was released on another thread");
        home.stop();
    });
}

/// Without it an event that comes between the system call and the sleep of another thread is lost.
#[test]
fn no_wake_up_is_lost_between_the_loop_and_another_thread() {
    within(|| {
        let home = Background::start();
        let (stream, peer) = pair_with_std();
        peer.set_nodelay(true).expect("TCP_NODELAY");
        let mut stream = home.run(async move {
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            stream
        });
        stream.set_nodelay(true).expect("TCP_NODELAY");
        // One byte at a time goes there and back: a lost event is not made up for by the next one.
        let echo = thread::spawn(move || {
            block_on(async {
                let mut byte = [0];
                while stream.read(&mut byte).await.expect("read") == 1 {
                    stream.write_all(&byte).await.expect("write");
                }
            });
        });
        let mut byte = [0];
        for round in 0..20_000_u32 {
            (&peer).write_all(&[round as u8]).expect("the peer writes");
            (&peer).read_exact(&mut byte).expect("the peer reads");
            // At another moment each time.
            (0..round % 500).for_each(|_| std::hint::spin_loop());
        }
        drop(peer);
        echo.join().expect("the other thread");
        home.stop();
    });
}

/// Without it a listener's wake-up does not reach another thread, or reaches only one of those that wait.
#[test]
fn a_listener_accepts_on_several_foreign_threads() {
    within(|| {
        let home = Background::start();
        let listener = Arc::new(block_on(TcpListener::bind("127.0.0.1:0")).expect("bind"));
        let address = listener.local_addr().expect("local_addr");
        let bound = listener.clone();
        home.run(async move { assert!(poll_once(bound.accept()).await.is_none(), "nobody has connected yet") });
        let acceptors: Vec<_> = (0..4)
            .map(|_| {
                let listener = listener.clone();
                thread::spawn(move || {
                    (0..25).map(|_| block_on(listener.accept()).expect("accept").1).collect::<Vec<_>>()
                })
            })
            .collect();
        let clients: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
        let mut accepted: Vec<_> =
            acceptors.into_iter().flat_map(|acceptor| acceptor.join().expect("an acceptor's thread")).collect();
        let mut expected: Vec<_> = clients.iter().map(|client| client.local_addr().expect("local_addr")).collect();
        accepted.sort();
        expected.sort();
        assert_eq!(accepted, expected, "every connection is accepted once");
        home.stop();
    });
}

/// Without it two threads that first wait on one socket at the same moment register it twice.
#[test]
fn two_runtimes_that_race_for_a_socket_both_get_to_read_it() {
    within(|| {
        let runtimes = [Background::start(), Background::start()];
        for _ in 0..100 {
            let (stream, mut peer) = pair_with_std();
            let (stream, start) = (Arc::new(stream), Arc::new(AtomicUsize::new(0)));
            let readers: Vec<_> = runtimes
                .iter()
                .map(|runtime| {
                    let (stream, start) = (stream.clone(), start.clone());
                    runtime.handle().spawn(async move {
                        let mut byte = [0];
                        // Spins until the other one is here too: what follows then happens at the same moment.
                        start.fetch_add(1, Ordering::SeqCst);
                        while start.load(Ordering::SeqCst) < 2 {
                            std::hint::spin_loop();
                        }
                        (&*stream).read_exact(&mut byte).await.map(|()| byte[0])
                    })
                })
                .collect();
            drop(stream);
            while watched(&runtimes) == 0 {
                thread::yield_now();
            }
            peer.write_all(b"ab").expect("the peer writes");
            let mut read: Vec<_> =
                readers.into_iter().map(|reader| block_on(reader).expect("the task").expect("read")).collect();
            read.sort_unstable();
            assert_eq!(read, b"ab", "each reads a byte");
        }
        for runtime in runtimes {
            assert_eq!(runtime.handle().metrics().sources_registered(), 0, "no place is left behind");
            runtime.stop();
        }
    });
}

fn watched(runtimes: &[Background]) -> usize {
    runtimes.iter().map(|runtime| runtime.handle().metrics().sources_registered()).sum()
}

/// Without it a socket that is dropped elsewhere meets the event that is just being handed out, or the place
/// that was just given to another one.
#[test]
fn sockets_dropped_on_other_threads_leave_the_loop_in_order() {
    within(|| {
        let home = Background::start();
        let done = Arc::new(AtomicBool::new(false));
        let witness = home.handle().spawn({
            let done = done.clone();
            async move {
                // A connection that shares the loop, and must be neither lost nor mixed up with others.
                let (stream, mut peer) = pair_with_std();
                let mut rounds = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    let (mut reader, mut bytes) = (&stream, [0; 4]);
                    // The read first, so that it has to wait for the event.
                    let write = async { peer.write_all(&rounds.to_le_bytes()) };
                    try_zip(reader.read_exact(&mut bytes), write).await.expect("a transfer");
                    assert_eq!(u32::from_le_bytes(bytes), rounds);
                    rounds += 1;
                }
            }
        });
        let droppers: Vec<_> = (0..2)
            .map(|_| {
                let handle = home.handle().clone();
                thread::spawn(move || (0..200).for_each(|_| bind_and_drop(&handle)))
            })
            .collect();
        for dropper in droppers {
            dropper.join().expect("a dropper's thread");
        }
        done.store(true, Ordering::Relaxed);
        block_on(witness).expect("the witness");
        assert_eq!(home.handle().metrics().sources_registered(), 0, "no place is left behind");
        home.stop();
    });
}

/// Binds a socket to the runtime, and drops it here while its event is on the way.
fn bind_and_drop(handle: &kittiwake::runtime::Handle) {
    let (stream, mut peer) = pair_with_std();
    let stream = block_on(handle.spawn(async move {
        assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
        stream
    }));
    let stream = stream.expect("the task");
    peer.write_all(b"x").expect("the peer writes");
    drop(stream);
}

/// Without it the end of a runtime that races with its sockets hangs, or reports both an event and a failure.
#[test]
fn data_that_races_with_the_end_of_the_runtime_is_read_or_the_wait_fails() {
    within(|| {
        for _ in 0..100 {
            let home = Background::start();
            let (stream, mut peer) = pair_with_std();
            let stream = home.run(async move {
                assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
                stream
            });
            let reader = thread::spawn(move || {
                let result = block_on((&stream).read(&mut [0; 8]));
                (stream, result)
            });
            let writer = thread::spawn(move || {
                peer.write_all(b"x").expect("the peer writes");
                peer
            });
            home.stop();
            let peer = writer.join().expect("the writer's thread");
            let (stream, result) = reader.join().expect("the reader's thread");
            match result {
                Ok(read) => assert_eq!(read, 1),
                Err(error) => {
                    let again = block_on((&stream).read(&mut [0; 8]));
                    let again = again.unwrap_or_else(|second| panic!("a wait failed twice:\n{error}\n{second}"));
                    assert_eq!(again, 1, "the byte is still there");
                }
            }
            drop(peer);
        }
    });
}

/// Without it a duplicate of a descriptor keeps the kernel reporting events for a socket that has gone.
#[test]
fn a_duplicate_does_not_keep_a_dropped_socket_watched() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let stream = stream.into_std().expect("into_std");
        let mut duplicate = stream.try_clone().expect("a duplicate");
        let stream = TcpStream::from_std(stream).expect("from_std");
        let (waker, wakes) = counting_waker();
        assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
        #[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
        assert!(is_in_an_epoll(&duplicate), "the kernel watches a socket that waits");
        drop(stream);
        assert_eq!(sources(), 0, "a dropped socket is not watched");
        #[cfg(target_os = "linux")]
        assert!(!is_in_an_epoll(&duplicate), "nor does the kernel watch it, duplicate or not");
        peer.write_all(b"x").expect("the peer writes");
        settle().await;
        assert_eq!(wakes.get(), 0, "nobody is woken for a socket that has gone");
        duplicate.set_nonblocking(false).expect("blocking");
        assert_eq!(duplicate.read(&mut [0; 8]).expect("read"), 1, "the duplicate still works");

        let again = TcpStream::from_std(duplicate).expect("from_std");
        assert!(poll_once((&again).read(&mut [0; 8])).await.is_none(), "the duplicate can be watched in its turn");
        peer.write_all(b"y").expect("the peer writes");
        assert_eq!((&again).read(&mut [0; 8]).await.expect("read"), 1);
    });
}

/// Whether an epoll of this process watches the socket behind a descriptor.
#[cfg(target_os = "linux")]
fn is_in_an_epoll(socket: &impl std::os::fd::AsRawFd) -> bool {
    use std::fs;
    let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("the descriptor");
    let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
    let inode = format!("ino:{:x} ", inode.expect("a socket's inode"));
    let infos = fs::read_dir("/proc/self/fdinfo").expect("the descriptors of this process");
    // One that was closed meanwhile has nothing to say.
    let mut infos = infos.filter_map(|info| fs::read_to_string(info.ok()?.path()).ok());
    infos.any(|info| info.lines().any(|line| line.starts_with("tfd:") && line.contains(&inode)))
}

/// A runtime of one worker watches its sockets only while a thread is in its `block_on`. Whoever waits elsewhere is woken in
/// the next call, and not before, and not never.
#[test]
fn a_socket_of_a_runtime_between_two_calls_waits_for_the_next() {
    within(|| {
        let runtime = one_worker();
        let (stream, mut peer) = pair_with_std();
        let (waker, wakes) = counting_waker();
        let mut buf = [0; 8];
        runtime.block_on(async { assert!(poll_read(&waker, &stream, &mut buf).is_pending()) });
        peer.write_all(b"hello").unwrap();
        assert_eq!(wakes.get(), 0, "nobody looks for events between two calls");
        runtime.block_on(until(|| wakes.get() == 1));
        assert!(matches!(poll_read(&waker, &stream, &mut buf), std::task::Poll::Ready(Ok(5))));
    });
}

/// Without it a wait that the end of its runtime cut off fails, though it need not wait any more, because somebody else's read
/// was short meanwhile.
#[test]
fn a_peek_that_was_cut_off_sees_what_has_come_since() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let mut buf = [0; 8];
        let mut peek = Box::pin(stream.peek(&mut buf));
        let runtime = one_worker();
        runtime.block_on(async { assert!(poll_once(&mut peek).await.is_none(), "there is nothing yet") });
        drop(runtime);
        peer.write_all(b"abc").expect("the peer writes");
        wait_readable(&stream);
        assert_eq!(block_on((&stream).read(&mut [0; 8])).expect("reading need not wait"), 3);
        peer.write_all(b"de").expect("the peer writes");
        wait_readable(&stream);
        assert_eq!(block_on(peek).expect("peeking need not wait"), 2);
    });
}

/// The end of a runtime cuts a wait off. If what was waited for has come all the same, that is what counts; and a wait that
/// is over by then is not held against what comes after it.
#[test]
fn what_has_come_counts_more_than_the_end_of_the_runtime() {
    within(|| {
        let (mut stream, mut peer) = pair_with_std();
        let (waker, _) = counting_waker();
        let mut buf = [0; 8];
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async { assert!(poll_read(&waker, &stream, &mut buf).is_pending()) });
        drop(runtime);
        peer.write_all(b"hello").unwrap();
        kittiwake::block_on(async {
            assert_eq!(stream.read(&mut buf).await.unwrap(), 5, "what has come was not read");
            peer.write_all(b"again").unwrap();
            assert_eq!(stream.read(&mut buf).await.unwrap(), 5, "a wait that is over failed");
        });
    });
}

/// A stream of connections that has just yielded one is not waiting, so there is nothing that the end of its runtime could
/// cut off.
#[test]
fn an_incoming_that_has_yielded_is_not_told_of_the_end() {
    use futures_lite::StreamExt;
    within(|| {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = listener.incoming();
        let first = runtime.block_on(async {
            assert!(poll_once(incoming.next()).await.is_none(), "nobody has connected");
            let peer = std::net::TcpStream::connect(address).unwrap();
            (incoming.next().await.unwrap().unwrap(), peer)
        });
        drop(runtime);
        let _second = kittiwake::block_on(async {
            assert!(poll_once(incoming.next()).await.is_none(), "it must wait for the second, and not fail");
            let peer = std::net::TcpStream::connect(address).unwrap();
            incoming.next().await.unwrap().unwrap();
            peer
        });
        drop(first);
    });
}
