//! Sockets outside a runtime, after the end of their runtime, in a second runtime and in foreign executors.

mod support;

use std::future::poll_fn;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use futures_lite::future::{block_on, poll_once, try_zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, Error, ErrorKind};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::Runtime;
use kittiwake::time::{Duration, sleep};
use support::*;

/// A socket that is made outside a runtime works inside one.
#[test]
fn sockets_need_no_runtime_yet() {
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

/// Waiting outside a runtime fails with an error that names the cause, and the socket stays usable.
#[test]
fn waiting_outside_a_runtime_fails() {
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
            // The failed connect has reached the listen queue.
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
            assert_eq!(read.expect("the read need not wait, although the last read was short"), 1);
        }
        kittiwake::block_on(async {
            assert!(poll_once(stream.read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            peer.write_all(b"yz").expect("the peer writes");
            assert_eq!(stream.read(&mut [0; 8]).await.expect("the read waits inside a runtime"), 2);
        });
    });
}

#[track_caller]
fn assert_no_runtime(error: Error) {
    assert_eq!(error.kind(), ErrorKind::Other, "{error}");
    assert!(error.to_string().contains("no kittiwake runtime"), "the error must name the missing runtime: {error}");
}

/// A descriptor that is no socket fails and is not registered.
#[test]
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
fn non_socket_fails_unregistered() {
    run(|| async {
        let file = std::fs::File::open(std::env::current_exe().expect("this program's path")).expect("a file");
        let stream = TcpStream::from_std(std::os::fd::OwnedFd::from(file).into()).expect("from_std");
        for _ in 0..2 {
            let error = (&stream).read(&mut [0; 8]).await.expect_err("a file is no socket");
            assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK), "the error must be the kernel's own");
            let error = stream.readable().await.expect_err("epoll refuses files");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "the error must be the kernel's own");
            assert_eq!(sources(), 0, "a refused descriptor must not be registered");
        }
    });
}

/// The end of a runtime wakes a pending read, which then goes on in another runtime.
#[test]
fn runtimes_end_wakes_read() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let (waker, wakes) = counting_waker();
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            assert_eq!(wakes.get(), 0, "no event may come yet");
        });
        drop(runtime);
        assert_eq!(wakes.get(), 1, "the end of the runtime must wake the waiting task");
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1, "the runtime must release the waker");
        kittiwake::block_on(async {
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "the read must wait here");
            assert_eq!(sources(), 1, "the stream must be registered here");
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
        });
    });
}

/// The end of a runtime wakes a pending `accept` and a pending `readable`, which then go on in another runtime.
#[test]
fn runtimes_end_wakes_futures() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("bind");
        let address = listener.local_addr().expect("local_addr");
        let (waker, wakes) = counting_waker();
        let mut accept = listener.accept();
        let mut readable = Box::pin(stream.readable());
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(poll_with(&waker, &mut accept).is_pending(), "no client has connected yet");
            assert!(poll_with(&waker, &mut readable).is_pending(), "there is nothing to read yet");
        });
        drop(runtime);
        assert_eq!(wakes.get(), 2, "the end of the runtime must wake both waits");
        kittiwake::block_on(async {
            assert!(poll_with(&waker, &mut accept).is_pending(), "the accept must wait here");
            assert!(poll_with(&waker, &mut readable).is_pending(), "the readable must wait here");
            let client = std::net::TcpStream::connect(address).expect("connect");
            let (_, from) = accept.await.expect("accept");
            assert_eq!(from, client.local_addr().expect("local_addr"));
            peer.write_all(b"x").expect("the peer writes");
            readable.await.expect("readable");
        });
    });
}

/// A read that was cancelled before its runtime ended does not make the next read fail in another runtime.
#[test]
fn cancelled_read_fails_no_later_read() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let runtime = one_worker();
        runtime.block_on(async { assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none()) });
        drop(runtime);
        kittiwake::block_on(async {
            let mut buf = [0; 8];
            let mut reader = &stream;
            let mut read = reader.read(&mut buf);
            assert!(poll_once(&mut read).await.is_none(), "the read must wait, and not fail");
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!(read.await.expect("read"), 1);
        });
    });
}

/// A wait outside of every runtime says what to do, also on a socket whose runtime has ended.
#[test]
fn wait_after_runtimes_end_needs_runtime() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let runtime = one_worker();
        runtime.block_on(async { assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none()) });
        drop(runtime);
        assert_no_runtime(block_on((&stream).read(&mut [0; 8])).expect_err("no reactor would wake this read"));
        peer.write_all(b"x").expect("the peer writes");
        wait_readable(&stream);
        assert_eq!(block_on((&stream).read(&mut [0; 8])).expect("bytes need no wait"), 1);
    });
}

/// A socket that waited in a current-thread runtime goes on in another one, while the first is idle. Its waiting task
/// is woken when the first runtime leaves `block_on`, whether it waited there itself or in the other runtime.
#[test]
fn idle_runtime_gives_sockets_up() {
    for waits_elsewhere_first in [false, true] {
        within(move || {
            let (stream, mut peer) = pair_with_std();
            let stream = Arc::new(stream);
            let (first, second) = (one_worker(), Background::start());
            let read = {
                let stream = stream.clone();
                async move { (&*stream).read(&mut [0; 8]).await }
            };
            let reader = first.block_on(async {
                assert!(poll_once((&*stream).read(&mut [0; 8])).await.is_none());
                assert_eq!(sources(), 1);
                let reader = waits_elsewhere_first.then(|| second.handle().spawn(read));
                settle().await;
                reader.ok_or(())
            });
            // The first runtime is idle from here on.
            let reader = reader.unwrap_or_else(|()| {
                let stream = stream.clone();
                second.handle().spawn(async move { (&*stream).read(&mut [0; 8]).await })
            });
            while second.handle().metrics().sources_registered() == 0 {
                std::thread::yield_now();
            }
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!(block_on(reader).expect("the task").expect("read"), 1);
            assert_eq!(first.handle().metrics().sources_registered(), 0, "the socket must have moved");
            second.stop();
        });
    }
}

/// A thread without a runtime polls a read with the waker of another runtime's task, while the socket's own runtime is
/// idle. The task itself then still takes the socket along.
#[test]
fn poll_outside_keeps_no_socket_idle() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        let idle = one_worker();
        let registers = async { poll_once((&*stream).read(&mut [0])).await };
        assert!(idle.block_on(registers).is_none(), "nothing was sent");

        let (give, given) = mpsc::channel::<Waker>();
        let (sleep, sleeps) = mpsc::channel();
        let reading = thread::spawn({
            let stream = stream.clone();
            move || {
                let (mut give, mut byte) = (Some(give), [0]);
                one_worker().block_on(poll_fn(|cx| match give.take() {
                    Some(give) => {
                        give.send(cx.waker().clone()).unwrap();
                        Poll::Pending
                    }
                    None => {
                        let read = poll_read(cx.waker(), &*stream, &mut byte);
                        sleep.send(()).unwrap();
                        read
                    }
                }))
            }
        });
        let waker = given.recv().unwrap();
        assert!(poll_read(&waker, &*stream, &mut [0]).is_pending(), "nothing was sent");
        waker.wake();
        sleeps.recv().unwrap();
        peer.write_all(b"x").unwrap();
        assert_eq!(reading.join().unwrap().expect("a read"), 1);
    });
}

/// A sleep and a stream's timeout that were armed in a current-thread runtime end in another one, while the first is
/// idle.
#[test]
fn idle_runtime_gives_timers_up() {
    const SOON: Duration = Duration::from_millis(50);
    type Waits = Pin<Box<dyn Future<Output = ()> + Send>>;
    for waits_elsewhere_first in [false, true] {
        within(move || {
            let (stream, _peer) = pair_with_std();
            stream.set_read_timeout(Some(SOON)).expect("set_read_timeout");
            let (first, second) = (one_worker(), Background::start());
            let mut reads: Waits = Box::pin(async move {
                let error = (&stream).read(&mut [0; 8]).await.expect_err("nothing was sent");
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            });
            let spawn = |waits| second.handle().spawn(waits);
            let waiting = first.block_on(async {
                // A busy machine may take so long from the begin of a sleep to its first poll that it is over.
                let sleeps: Waits = loop {
                    let mut sleeps = Box::pin(sleep(SOON));
                    if poll_once(&mut sleeps).await.is_none() {
                        break sleeps;
                    }
                };
                assert!(poll_once(&mut reads).await.is_none(), "nothing was sent");
                if !waits_elsewhere_first {
                    return Err([sleeps, reads]);
                }
                let tasks = [sleeps, reads].map(spawn);
                settle().await;
                Ok(tasks)
            });
            // The first runtime is idle from here on.
            let tasks = waiting.unwrap_or_else(|waits| waits.map(spawn));
            tasks.into_iter().for_each(|task| block_on(task).expect("the task ends"));
            second.stop();
        });
    }
}

/// A socket that did not wait when its runtime ended does not fail.
#[test]
fn runtimes_end_spares_idle_socket() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let runtime = one_worker();
        runtime.block_on(async {
            stream.writable().await.expect("writable");
            peer.write_all(b"x").expect("the peer writes");
            stream.readable().await.expect("readable");
            assert_eq!(sources(), 1, "the stream must be registered");
        });
        drop(runtime);
        assert_eq!(block_on((&stream).read(&mut [0; 8])).expect("a read that need not wait"), 1);
        assert_eq!(block_on((&stream).write(b"y")).expect("a write that need not wait"), 1);
        kittiwake::block_on(async {
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "a new read must wait");
            peer.write_all(b"z").expect("the peer writes");
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("the read is woken here"), 1);
        });
    });
}

/// The end of a runtime does not fail a new future because of a wait that was dropped earlier.
#[test]
fn runtimes_end_spares_new_futures() {
    within(|| {
        let (stream, mut peer) = pair_with_std();
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("bind");
        let address = listener.local_addr().expect("local_addr");
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(poll_once(stream.readable()).await.is_none(), "there is nothing to read yet");
            assert!(poll_once(listener.accept()).await.is_none(), "no client has connected yet");
        });
        drop(runtime);
        kittiwake::block_on(async {
            peer.write_all(b"x").expect("the peer writes");
            stream.readable().await.expect("a new future does not fail");
            let _client = std::net::TcpStream::connect(address).expect("connect");
            listener.accept().await.expect("a new future does not fail");
        });
    });
}

/// A task of one runtime that waits on a socket of another goes on when that one ends.
#[test]
fn runtimes_end_reaches_other_runtimes() {
    within(|| {
        let other = Background::start();
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        let shared = stream.clone();
        other.run(async move { assert!(poll_once((&*shared).read(&mut [0; 8])).await.is_none()) });
        kittiwake::block_on(async {
            let reader = kittiwake::spawn(async move { (&*stream).read(&mut [0; 8]).await });
            settle().await;
            assert_eq!(sources(), 0, "the socket must stay registered with its first runtime");
            assert!(!reader.is_finished(), "there is nothing to read yet");
            other.stop();
            until(|| sources() == 1).await;
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!(reader.await.expect("the task").expect("the stream is registered with this runtime"), 1);
        });
    });
}

/// A registered socket works in a foreign executor.
#[test]
fn registered_socket_works_in_foreign_executor() {
    within(|| {
        let background = Background::start();
        let (stream, mut peer) = pair_with_std();
        let stream = background.run(async move {
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
        peer.shutdown(std::net::Shutdown::Write).expect("the peer shuts down its writing side");
        assert!(read_all(peer) == bytes, "every byte must come back");
        assert!(reader.join().expect("the reader's thread") == bytes);
        assert_eq!(background.handle().metrics().sources_registered(), 0, "another thread must deregister the socket");
        background.stop();
    });
}

/// An event between the system call and the sleep of another thread is not lost.
#[test]
fn foreign_thread_loses_no_event() {
    within(|| {
        let background = Background::start();
        let (stream, peer) = pair_with_std();
        peer.set_nodelay(true).expect("TCP_NODELAY");
        let mut stream = background.run(async move {
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            stream
        });
        stream.set_nodelay(true).expect("TCP_NODELAY");
        // One byte at a time goes there and back, so no later event replaces a lost one.
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
            // The delay varies with the round.
            (0..round % 500).for_each(|_| std::hint::spin_loop());
        }
        drop(peer);
        echo.join().expect("the other thread");
        background.stop();
    });
}

/// A listener accepts on several foreign threads, and wakes each of them.
#[test]
fn listener_accepts_on_foreign_threads() {
    within(|| {
        let background = Background::start();
        let listener = Arc::new(block_on(TcpListener::bind("127.0.0.1:0")).expect("bind"));
        let address = listener.local_addr().expect("local_addr");
        let shared = listener.clone();
        background
            .run(async move { assert!(poll_once(shared.accept()).await.is_none(), "no client has connected yet") });
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
        assert_eq!(accepted, expected, "every connection must be accepted once");
        background.stop();
    });
}

/// Two runtimes that first wait on one socket at the same time register it once, and both read.
#[test]
fn racing_runtimes_register_once() {
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
                        // The task spins until the other one is here too, so that both register at the same time.
                        start.fetch_add(1, Ordering::SeqCst);
                        while start.load(Ordering::SeqCst) < 2 {
                            std::hint::spin_loop();
                        }
                        (&*stream).read_exact(&mut byte).await.map(|()| byte[0])
                    })
                })
                .collect();
            drop(stream);
            while registered(&runtimes) == 0 {
                thread::yield_now();
            }
            peer.write_all(b"ab").expect("the peer writes");
            let mut read: Vec<_> =
                readers.into_iter().map(|reader| block_on(reader).expect("the task").expect("read")).collect();
            read.sort_unstable();
            assert_eq!(read, b"ab", "each task must read one byte");
        }
        for runtime in runtimes {
            assert_eq!(runtime.handle().metrics().sources_registered(), 0, "no socket may stay registered");
            runtime.stop();
        }
    });
}

fn registered(runtimes: &[Background]) -> usize {
    runtimes.iter().map(|runtime| runtime.handle().metrics().sources_registered()).sum()
}

/// A socket that is dropped on another thread leaves the reactor in order, even while its event is delivered or its
/// slot is reused.
#[test]
fn foreign_drops_deregister_in_order() {
    within(|| {
        let background = Background::start();
        let done = Arc::new(AtomicBool::new(false));
        let witness = background.handle().spawn({
            let done = done.clone();
            async move {
                // A connection in the same reactor, which must not lose or mix up its events.
                let (stream, mut peer) = pair_with_std();
                let mut rounds = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    let (mut reader, mut bytes) = (&stream, [0; 4]);
                    // The read comes first, so that it must wait for the event.
                    let write = async { peer.write_all(&rounds.to_le_bytes()) };
                    try_zip(reader.read_exact(&mut bytes), write).await.expect("a transfer");
                    assert_eq!(u32::from_le_bytes(bytes), rounds);
                    rounds += 1;
                }
            }
        });
        let droppers: Vec<_> = (0..2)
            .map(|_| {
                let handle = background.handle().clone();
                thread::spawn(move || (0..200).for_each(|_| register_and_drop(&handle)))
            })
            .collect();
        for dropper in droppers {
            dropper.join().expect("a dropper's thread");
        }
        done.store(true, Ordering::Relaxed);
        block_on(witness).expect("the witness");
        assert_eq!(background.handle().metrics().sources_registered(), 0, "no socket may stay registered");
        background.stop();
    });
}

/// Registers a socket with the runtime, and drops it here while its event is on the way.
fn register_and_drop(handle: &kittiwake::runtime::Handle) {
    let (stream, mut peer) = pair_with_std();
    let stream = block_on(handle.spawn(async move {
        assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
        stream
    }));
    let stream = stream.expect("the task");
    peer.write_all(b"x").expect("the peer writes");
    drop(stream);
}

/// Bytes that race with the end of the runtime are read, or the wait fails once.
#[test]
fn data_may_race_with_shutdown() {
    within(|| {
        for _ in 0..100 {
            let background = Background::start();
            let (stream, mut peer) = pair_with_std();
            let stream = background.run(async move {
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
            background.stop();
            let peer = writer.join().expect("the writer's thread");
            let (stream, result) = reader.join().expect("the reader's thread");
            match result {
                Ok(read) => assert_eq!(read, 1),
                Err(error) => {
                    let again = block_on((&stream).read(&mut [0; 8]));
                    let again = again.unwrap_or_else(|second| panic!("a wait failed twice:\n{error}\n{second}"));
                    assert_eq!(again, 1, "the byte must still be there");
                }
            }
            drop(peer);
        }
    });
}

/// A duplicate of a descriptor does not keep a dropped socket registered in the kernel.
#[test]
fn duplicate_keeps_no_registration() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let stream = stream.into_std().expect("into_std");
        let mut duplicate = stream.try_clone().expect("a duplicate");
        let stream = TcpStream::from_std(stream).expect("from_std");
        let (waker, wakes) = counting_waker();
        assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
        #[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
        assert!(is_in_an_epoll(&duplicate), "the kernel must watch a waiting socket");
        drop(stream);
        assert_eq!(sources(), 0, "a dropped socket must be deregistered");
        #[cfg(target_os = "linux")]
        assert!(!is_in_an_epoll(&duplicate), "the kernel must not watch the duplicate");
        peer.write_all(b"x").expect("the peer writes");
        settle().await;
        assert_eq!(wakes.get(), 0, "a dropped socket must wake no waker");
        duplicate.set_nonblocking(false).expect("blocking");
        assert_eq!(duplicate.read(&mut [0; 8]).expect("read"), 1, "the duplicate must still work");

        let again = TcpStream::from_std(duplicate).expect("from_std");
        assert!(poll_once((&again).read(&mut [0; 8])).await.is_none(), "the duplicate must be registered and wait");
        peer.write_all(b"y").expect("the peer writes");
        assert_eq!((&again).read(&mut [0; 8]).await.expect("read"), 1);
    });
}

/// True if an epoll instance of this process watches the socket behind the descriptor.
#[cfg(target_os = "linux")]
fn is_in_an_epoll(socket: &impl std::os::fd::AsRawFd) -> bool {
    use std::fs;
    let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("the descriptor");
    let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
    let inode = format!("ino:{:x} ", inode.expect("a socket's inode"));
    let infos = fs::read_dir("/proc/self/fdinfo").expect("the descriptors of this process");
    // An entry whose descriptor was closed meanwhile cannot be read.
    let mut infos = infos.filter_map(|info| fs::read_to_string(info.ok()?.path()).ok());
    infos.any(|info| info.lines().any(|line| line.starts_with("tfd:") && line.contains(&inode)))
}

/// A current-thread runtime turns its reactor only inside `block_on`. Leaving it wakes the tasks that wait, and an
/// event that comes between two calls is reported in the next one.
#[test]
fn events_between_calls_are_kept() {
    within(|| {
        let runtime = one_worker();
        let (stream, mut peer) = pair_with_std();
        let (waker, wakes) = counting_waker();
        let mut buf = [0; 8];
        runtime.block_on(async { assert!(poll_read(&waker, &stream, &mut buf).is_pending()) });
        assert_eq!(wakes.get(), 1, "the task must be woken, since no thread turns the reactor any more");
        assert!(
            poll_read(&waker, &stream, &mut buf).is_pending(),
            "without another runtime it waits for the next call"
        );
        peer.write_all(b"hello").unwrap();
        assert_eq!(wakes.get(), 1, "no thread may turn the reactor between two calls");
        runtime.block_on(until(|| wakes.get() == 2));
        assert!(matches!(poll_read(&waker, &stream, &mut buf), std::task::Poll::Ready(Ok(5))));
    });
}

/// A peek that the end of its runtime interrupted sees bytes that have arrived since, although another read was
/// short meanwhile.
#[test]
fn interrupted_peek_sees_later_bytes() {
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

/// Bytes that have arrived win over the end of the runtime, and a wait that has ended does not fail the next one.
#[test]
fn arrived_bytes_beat_runtimes_end() {
    within(|| {
        let (mut stream, mut peer) = pair_with_std();
        let (waker, _) = counting_waker();
        let mut buf = [0; 8];
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async { assert!(poll_read(&waker, &stream, &mut buf).is_pending()) });
        drop(runtime);
        peer.write_all(b"hello").unwrap();
        kittiwake::block_on(async {
            assert_eq!(stream.read(&mut buf).await.unwrap(), 5, "the read must return the bytes that have arrived");
            peer.write_all(b"again").unwrap();
            assert_eq!(stream.read(&mut buf).await.unwrap(), 5, "the ended wait must not fail this read");
        });
    });
}

/// A stream of connections that has just returned one does not wait, so the end of its runtime does not interrupt
/// it.
#[test]
fn runtimes_end_spares_yielded_incoming() {
    use futures_lite::StreamExt;
    within(|| {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = listener.incoming();
        let first = runtime.block_on(async {
            assert!(poll_once(incoming.next()).await.is_none(), "no client has connected");
            let peer = std::net::TcpStream::connect(address).unwrap();
            (incoming.next().await.unwrap().unwrap(), peer)
        });
        drop(runtime);
        let _second = kittiwake::block_on(async {
            assert!(
                poll_once(incoming.next()).await.is_none(),
                "the stream must wait for the second client, and not fail"
            );
            let peer = std::net::TcpStream::connect(address).unwrap();
            incoming.next().await.unwrap().unwrap();
            peer
        });
        drop(first);
    });
}
