//! The methods beside reading and writing: `closed`, readiness, and system calls of the user's own.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, Interest};
use kittiwake::net::Shutdown;
use kittiwake::runtime::Builder;
use kittiwake::spawn;
use kittiwake::task::yield_now;
use socket2::SockRef;

use super::*;

/// `closed` notices that the peer has gone, though bytes before the end are unread, and takes none of them.
#[test]
fn closed_sees_end_behind_unread_bytes() {
    run(|| async {
        let (stream, peer) = pair().await;
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let mut closed = Box::pin(stream.closed());
        assert!(closed.as_mut().poll(&mut cx).is_pending(), "the peer is there");
        peer.try_write(b"unread").expect("write");
        until(|| wakes.get() > 0).await;
        assert!(closed.as_mut().poll(&mut cx).is_pending(), "bytes are no end");
        drop(peer);
        closed.await.expect("closed");
        stream.closed().await.expect("it stays closed");
        let mut text = String::new();
        (&stream).read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "unread");
    });
}

/// A half-close of the peer counts, and our own of the reading side; a half-close of our writing side does not.
#[test]
fn closed_means_the_reading_side() {
    run(|| async {
        let (stream, peer) = pair().await;
        stream.shutdown(Shutdown::Write).expect("shutdown");
        assert!(poll_once(stream.closed()).await.is_none(), "we can read on");
        peer.closed().await.expect("we write no more");
        peer.shutdown(Shutdown::Write).expect("shutdown");
        stream.closed().await.expect("the peer writes no more");
    });
}

/// A call for both directions that waits to read does not keep another task from writing, nor does it spin because the
/// stream can be written.
#[test]
fn call_for_both_spares_writer() {
    run(|| async {
        let (stream, peer) = pair().await;
        let both = Interest::READABLE | Interest::WRITABLE;
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let mut reading = Box::pin(stream.async_io(both, || stream.try_read(&mut [0; 8])));
        for _ in 0..10 {
            assert!(reading.as_mut().poll(&mut cx).is_pending(), "there is nothing to read");
            settle().await;
        }
        if cfg!(not(mio_unsupported_force_poll_poll)) {
            assert!(wakes.get() <= 2, "room for writing woke the call {} times", wakes.get());
        }
        // This waits for ever if the call has hidden the room.
        assert_eq!((&stream).write(b"request").await.expect("write"), 7);
        peer.try_write(b"reply").expect("write");
        assert_eq!(reading.await.expect("read"), 5);
    });
}

/// A task that waits for the end is woken by it and by nothing else, and a cancelled wait leaves nothing behind.
#[test]
fn closed_waits_without_spinning() {
    run(|| async {
        let (stream, peer) = pair().await;
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let mut closed = Box::pin(stream.closed());
        assert!(closed.as_mut().poll(&mut cx).is_pending());
        settle().await;
        assert_eq!(wakes.get(), 0, "nothing has happened");
        drop((closed, waker));
        assert_eq!(Arc::strong_count(&wakes), 1, "a cancelled wait keeps its waker");
        drop(peer);
        stream.closed().await.expect("closed");
    });
}

/// A task may read while another waits for the end: neither hides an event from the other.
#[test]
fn closed_waits_beside_a_reader() {
    run(|| async {
        let (stream, peer) = pair().await;
        let closed = async { stream.closed().await.expect("closed") };
        let reading = async {
            let mut bytes = Vec::new();
            (&stream).read_to_end(&mut bytes).await.expect("read");
            bytes
        };
        let writing = async {
            for byte in 0..10_u8 {
                (&peer).write_all(&[byte]).await.expect("write");
                settle().await;
            }
            peer.shutdown(Shutdown::Write).expect("shutdown");
        };
        let (((), bytes), ()) = futures_lite::future::zip(futures_lite::future::zip(closed, reading), writing).await;
        assert_eq!(bytes, (0..10).collect::<Vec<u8>>());
    });
}

/// `poll_peek` stores its waker, and returns the bytes that the next read takes.
#[test]
fn poll_peek_leaves_the_bytes() {
    run(|| async {
        let (stream, peer) = pair().await;
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let mut buf = [0; 8];
        assert!(stream.poll_peek(&mut cx, &mut buf).is_pending());
        assert!(matches!(stream.poll_peek(&mut cx, &mut []), Poll::Ready(Ok(0))), "nothing is asked for");
        peer.try_write(b"hello").expect("write");
        until(|| wakes.get() > 0).await;
        assert!(matches!(stream.poll_peek(&mut cx, &mut buf), Poll::Ready(Ok(5))));
        assert_eq!((stream.try_read(&mut buf).expect("read"), &buf[..5]), (5, &b"hello"[..]));
        drop(peer);
        assert_eq!(stream.peek(&mut buf).await.expect("the end"), 0);
    });
}

/// The vectored methods fill and drain their buffers in order, pass over empty ones, and do not wait.
#[test]
fn vectored_methods_go_in_order() {
    run(|| async {
        let (stream, peer) = pair().await;
        let empty = stream.try_read_vectored(&mut [IoSliceMut::new(&mut [0; 4])]).expect_err("nothing is there");
        assert_eq!(empty.kind(), ErrorKind::WouldBlock);
        let slices = [IoSlice::new(b""), IoSlice::new(b"he"), IoSlice::new(b""), IoSlice::new(b"llo")];
        assert_eq!(peer.try_write_vectored(&slices).expect("write"), 5);
        stream.readable().await.expect("readable");
        let (mut one, mut other) = ([0; 1], [0; 8]);
        let mut slices = [IoSliceMut::new(&mut []), IoSliceMut::new(&mut one), IoSliceMut::new(&mut other)];
        assert_eq!(stream.try_read_vectored(&mut slices).expect("read"), 5);
        assert_eq!((&one, &other[..4]), (b"h", &b"ello"[..]));
        let filled = std::iter::repeat_with(|| peer.try_write_vectored(&[IoSlice::new(&[0; 65_536]); 3]));
        let error = filled.into_iter().find_map(Result::err).expect("it never fills");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    });
}

/// After `WouldBlock` of a system call of the user's own, `writable` waits for room instead of returning at once.
#[test]
fn own_writes_do_not_spin() {
    run(|| async {
        let (stream, peer) = pair().await;
        let write = || SockRef::from(&stream).send(&[0; 65_536]);
        stream.writable().await.expect("writable");
        let mut written = 0;
        while let Ok(more) = stream.try_io(Interest::WRITABLE, write) {
            written += more;
        }
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(stream.poll_writable(&mut cx).is_pending(), "`writable` returns although there is no room");
        settle().await;
        assert_eq!(wakes.get(), 0, "no room has been made");
        let reading = async {
            let mut buf = vec![0; 65_536];
            let mut read = 0;
            while read < written {
                read += (&peer).read(&mut buf).await.expect("read");
            }
        };
        let sending = async { stream.async_io(Interest::WRITABLE, write).await.expect("send") };
        let (sent, ()) = futures_lite::future::zip(sending, reading).await;
        assert!(sent > 0);
    });
}

/// A read of the user's own clears readiness by `WouldBlock`, also where a short read of ours has not.
#[test]
fn own_reads_do_not_spin() {
    run(|| async {
        let (stream, peer) = pair().await;
        let mut cx = Context::from_waker(Waker::noop());
        peer.try_write(b"hello").expect("write");
        stream.readable().await.expect("readable");
        let read = || SockRef::from(&stream).recv(&mut [std::mem::MaybeUninit::uninit(); 5]);
        assert_eq!(stream.try_io(Interest::READABLE, read).expect("read"), 5);
        assert!(stream.poll_readable(&mut cx).is_ready(), "no call has said otherwise");
        assert_eq!(stream.try_io(Interest::READABLE, read).expect_err("empty").kind(), ErrorKind::WouldBlock);
        assert!(stream.poll_readable(&mut cx).is_pending());
        peer.try_write(b"again").expect("write");
        assert_eq!(stream.async_io(Interest::READABLE, read).await.expect("read"), 5);
    });
}

/// `ready` returns the directions that are, of those that were asked for.
#[test]
fn ready_returns_what_is_ready() {
    run(|| async {
        let (stream, peer) = pair().await;
        let both = Interest::READABLE | Interest::WRITABLE;
        let ready = stream.ready(both).await.expect("ready");
        assert!(ready.is_writable() && !ready.is_readable(), "{ready:?}");
        assert!(poll_once(stream.ready(Interest::READABLE)).await.is_none());
        peer.try_write(b"x").expect("write");
        let ready = stream.ready(Interest::READABLE).await.expect("ready");
        assert!(ready.is_readable() && !ready.is_writable(), "{ready:?}");
        let ready = stream.ready(both).await.expect("ready");
        assert!(ready.is_readable() && ready.is_writable(), "{ready:?}");
    });
}

/// A call that is always ready does not keep its worker from other tasks.
#[test]
fn own_calls_spend_the_budget() {
    run(|| async {
        let (stream, _peer) = pair().await;
        let endless = spawn(async move {
            loop {
                stream.async_io(Interest::WRITABLE, || Ok(())).await.expect("the call succeeds");
            }
        });
        kittiwake::time::sleep(std::time::Duration::from_millis(2)).await;
        endless.abort();
        assert!(endless.await.is_err_and(|error| error.is_cancelled()));
    });
}

/// A stream goes to std's, to a bare descriptor and back, and its bytes go with it.
#[test]
fn conversions_keep_the_connection() {
    run(|| async {
        let (stream, peer) = pair().await;
        assert!(poll_once(stream.readable()).await.is_none(), "it is registered");
        let mut blocking = stream.into_std().expect("into_std");
        peer.try_write(b"std").expect("write");
        blocking.read_exact(&mut [0; 3]).expect("it is blocking again");
        blocking.write_all(b"back").expect("write");
        let stream = Stream::try_from(blocking).expect("try_from");
        assert_eq!((&peer).read(&mut [0; 8]).await.expect("read"), 4);
        let descriptor = std::os::fd::OwnedFd::from(stream);
        drop(descriptor);
        peer.closed().await.expect("the descriptor was the last one");
    });
}

/// The owned halves transfer, and the writer's drop is the end.
#[test]
fn halves_are_the_stream() {
    run(|| async {
        let (stream, peer) = pair().await;
        let (mut reader, mut writer) = stream.into_split();
        let sent = pattern(300_000);
        let writing = spawn({
            let sent = sent.clone();
            async move { writer.write_all(&sent).await }
        });
        let mut received = Vec::new();
        (&peer).read_to_end(&mut received).await.expect("read");
        assert!(received == sent);
        writing.await.expect("the writer").expect("write");
        (&peer).write_all(b"answer").await.expect("write");
        drop(peer);
        let mut text = String::new();
        reader.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "answer");
    });
}

/// A timeout on reading ends a wait, and loses nothing.
#[test]
fn read_timeout_ends_a_wait() {
    run(|| async {
        let (stream, peer) = pair().await;
        stream.set_read_timeout(Some(std::time::Duration::from_millis(3))).expect("a timeout");
        let mut buf = [0; 8];
        assert_eq!((&stream).read(&mut buf).await.expect_err("silence").kind(), ErrorKind::TimedOut);
        peer.try_write(b"late").expect("write");
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 4);
    });
}

/// A stream that was never waited for can be asked outside a runtime, and a call there works if it need not wait.
#[test]
fn own_calls_need_no_runtime() {
    let (stream, mut peer) = pair_with_std();
    peer.write_all(b"x").expect("the peer writes");
    wait_readable(&stream);
    let read = || SockRef::from(&stream).recv(&mut [std::mem::MaybeUninit::uninit(); 5]);
    let read_once = futures_lite::future::block_on(stream.async_io(Interest::READABLE, read));
    assert_eq!(read_once.expect("the byte is there"), 1);
    let error = futures_lite::future::block_on(stream.async_io(Interest::READABLE, read)).expect_err("it has to wait");
    assert!(error.to_string().contains("runtime"), "{error}");
    run(open_reactor);
}

/// An event that the reactor reports between the system call and its `WouldBlock` is kept. The system reports no second
/// one, so the next wait would not end.
#[test]
fn event_during_own_call_is_kept() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
        let task = runtime.handle().spawn(async {
            let (stream, peer) = pair_with_std();
            assert!(poll_once(stream.readable()).await.is_none(), "it is registered with this worker");
            let (stream, reported) = (Arc::new(stream), Arc::new(AtomicBool::new(false)));
            let watching = spawn({
                let (stream, reported) = (stream.clone(), reported.clone());
                async move {
                    stream.readable().await.expect("readable");
                    reported.store(true, Ordering::SeqCst);
                }
            });
            yield_now().await;
            let call = || {
                (&peer).write_all(b"late").expect("the peer writes");
                // The other worker turns the reactor of this one, which is stuck here.
                while !reported.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                Err::<(), _>(ErrorKind::WouldBlock.into())
            };
            stream.try_io(Interest::READABLE, call).expect_err("as the call said");
            stream.readable().await.expect("the bytes came after the call had looked");
            watching.await.expect("the other task");
        });
        runtime.block_on(task).expect("the task");
    });
}
