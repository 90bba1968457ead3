//! The operations that the read and write timeouts bound.

use std::io::{ErrorKind, Read, Write};
use std::task::{Poll, Waker};

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::spawn;
use kittiwake::time::{Instant, advance, sleep};

use super::*;

/// Each part of a `write_all` to a slow peer has the full time. A peer that takes nothing fails it after one
/// timeout.
#[test]
fn each_part_of_write_has_time() {
    for kind in [Kind::Write, Kind::Idle] {
        run_paused(move || async move {
            let (stream, mut peer) = pair_with_std();
            peer.set_nonblocking(true).expect("non-blocking");
            kind.set(&stream, Some(TEN)).expect("a timeout");
            let sent = pattern(24 << 20);
            let start = Instant::now();
            let writer = spawn({
                let (sent, mut stream) = (sent.clone(), stream);
                async move { (stream.write_all(&sent).await, stream) }
            });
            let (mut received, mut buf) = (Vec::new(), vec![0; 1 << 20]);
            while received.len() < sent.len() {
                assert!(!writer.is_finished() || received.len() > sent.len() / 2, "{kind:?}: the writer gave up");
                sleep(9 * SECOND).await;
                while let Ok(read) = peer.read(&mut buf) {
                    assert!(read > 0, "{kind:?}: the writer gave up after {} bytes", received.len());
                    received.extend_from_slice(&buf[..read]);
                }
            }
            let (result, mut stream) = writer.await.expect("the writer");
            result.expect("each part came in time");
            assert!(start.elapsed() > 2 * TEN, "the whole write must take longer than one timeout");
            assert!(received == sent, "every byte must arrive");

            let error = stream.write_all(&sent).await.expect_err("the peer reads no more");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        });
    }
}

/// The timeouts bound vectored operations too.
#[test]
fn vectored_operations_are_bounded() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll_vectored().is_pending(), "the operation must wait");
        advance_to(start + TEN - MS).await;
        assert_eq!(link.wakes.get(), 0, "the deadline has not passed");
        assert!(link.poll_vectored().is_pending(), "the deadline has not passed");
        advance_to(start + TEN + TICK).await;
        assert_eq!(link.wakes.get(), 1, "the deadline has passed");
        assert_timed_out(link.poll_vectored());

        assert!(link.poll_vectored().is_pending(), "the operation must wait");
        advance(HOUR).await;
        link.serve().await;
        settle().await;
        assert_done(link.poll_vectored());
        link.use_up().await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// A successful `try_read` or `try_write` ends the time of a waiting operation.
#[test]
fn successful_try_clears_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "the operation must wait");
        advance_to(start + 9 * SECOND).await;
        link.serve().await;
        settle().await;
        assert!(link.attempt().expect("the operation can proceed") > 0, "the operation must move bytes");
        link.use_up().await;
        assert!(link.poll().is_pending(), "the operation must wait");
        link.fails_at(start + 19 * SECOND).await;
    });
}

/// A `try_read` or `try_write` that finds nothing neither fails with a timeout, nor starts the time, nor postpones
/// the deadline.
#[test]
fn failed_try_leaves_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        link.attempt_finds_nothing();
        advance(9 * SECOND).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "no operation has waited so far");
        advance(5 * SECOND).await;
        link.attempt_finds_nothing();
        link.fails_at(start + TEN).await;

        assert!(link.poll().is_pending(), "the operation must wait");
        advance(HOUR).await;
        link.attempt_finds_nothing();
        assert_timed_out(link.poll());
    });
}

/// An operation with an empty buffer leaves the deadline alone, because it proves nothing about the peer.
#[test]
fn empty_buffer_leaves_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(5 * SECOND).await;
        let mut stream = &*link.stream;
        assert_eq!(stream.read(&mut []).await.expect("a read into nothing"), 0);
        assert_eq!(stream.write(&[]).await.expect("a write of nothing"), 0);
        assert_eq!(stream.read_vectored(&mut []).await.expect("a read into nothing"), 0);
        assert_eq!(stream.write_vectored(&[]).await.expect("a write of nothing"), 0);
        assert_eq!(stream.try_read(&mut []).expect("a read into nothing"), 0);
        assert_eq!(stream.try_write(&[]).expect("a write of nothing"), 0);
        link.fails_at(start + TEN).await;
        advance(HOUR).await;
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(HOUR).await;
        assert_eq!(stream.read(&mut []).await.expect("the operation does not wait"), 0);
        assert_eq!(stream.write(&[]).await.expect("the operation does not wait"), 0);
    });
}

/// The timeouts do not bound `peek`, `readable` and `writable`. A server waits in them for its next request, and a
/// caller can bound them itself.
#[test]
fn peek_and_readiness_are_unbounded() {
    run_paused(|| async {
        for kind in [Kind::Read, Kind::Write, Kind::Idle] {
            let link = Link::new(Case { kind, direction: Direction::Write }, SECOND).await;
            let (waker, wakes) = counting_waker();
            let (mut buf, stream) = ([0; 8], &*link.stream);
            let (mut peek, mut readable) = (Box::pin(stream.peek(&mut buf)), Box::pin(stream.readable()));
            let mut writable = Box::pin(stream.writable());
            // The first calls report readiness that no operation has used yet.
            while let Poll::Ready(ready) = poll_with(&waker, &mut writable) {
                ready.expect("writable");
                link.attempt_finds_nothing();
                writable = Box::pin(stream.writable());
            }
            assert!(poll_with(&waker, &mut peek).is_pending(), "there is nothing to peek at");
            assert!(poll_with(&waker, &mut readable).is_pending(), "there is nothing to read");
            advance(HOUR).await;
            assert_eq!(wakes.get(), 0, "{kind:?}: the timeout bounds operations only");
            assert!(poll_with(&waker, &mut peek).is_pending(), "{kind:?}: there is nothing to peek at");
            assert!(poll_with(&waker, &mut readable).is_pending(), "{kind:?}: there is nothing to read");
            assert!(poll_with(&waker, &mut writable).is_pending(), "{kind:?}: the send buffer is full");
        }
    });
}

/// The read and idle timeouts bound each wait of a `drain`.
#[test]
fn drain_is_bounded() {
    for kind in [Kind::Read, Kind::Idle] {
        run_paused(move || async move {
            let (stream, mut peer) = pair_with_std();
            kind.set(&stream, Some(TEN)).expect("a timeout");
            let start = Instant::now();
            let drain = spawn(async move { (stream.drain(1 << 20).await.map(|_| 0), Instant::now()) });
            settle().await;
            advance_to(start + 6 * SECOND).await;
            peer.write_all(b"a part").expect("the peer writes");
            settle().await;
            fails_in_task_at(drain, start + 16 * SECOND).await;
        });
    }
}

/// The read timeout and the write timeout run independently.
#[test]
fn read_and_write_timeouts_are_independent() {
    run_paused(|| async {
        let read = Link::new(Case { kind: Kind::Read, direction: Direction::Read }, TEN).await;
        let start = Instant::now();
        assert!(read.poll().is_pending(), "there is nothing to read");
        advance_to(start + 5 * SECOND).await;
        until(|| poll_write(Waker::noop(), &*read.stream, b"x").is_ready()).await;
        assert!(read.stream.try_write(b"x").is_ok(), "the send buffer has room");
        read.fails_at(start + TEN).await;

        let mut write = Link::new(Case { kind: Kind::Write, direction: Direction::Write }, TEN).await;
        let start = Instant::now();
        assert!(write.poll().is_pending(), "the send buffer is full");
        assert!(poll_read(Waker::noop(), &*write.stream, &mut [0; 8]).is_pending(), "there is nothing to read");
        advance_to(start + 5 * SECOND).await;
        write.peer.write_all(b"x").expect("the peer writes");
        until(|| poll_read(Waker::noop(), &*write.stream, &mut [0; 8]).is_ready()).await;
        write.fails_at(start + TEN).await;
        assert!(
            poll_read(Waker::noop(), &*write.stream, &mut [0; 8]).is_pending(),
            "a read without a timeout must wait"
        );
    });
}
