//! The idle timeout, and two timeouts on one stream.

use std::io::Write;
use std::net::Shutdown;
use std::task::{Poll, Waker};

use kittiwake::io::Interest;
use kittiwake::time::{Instant, advance};

use super::*;

/// A write postpones the idle deadline of a waiting read: a long reply goes out while the server waits for the next
/// request.
#[test]
fn write_postpones_reads_idle_deadline() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, direction: Direction::Read }, TEN).await;
        let start = Instant::now();
        let reader = link.spawn();
        settle().await;
        for second in [6, 12, 18] {
            advance_to(start + second * SECOND).await;
            until(|| poll_write(Waker::noop(), &*link.stream, b"a part").is_ready()).await;
        }
        advance_to(start + 24 * SECOND).await;
        assert_eq!(link.stream.try_write(b"a part").expect("the channel has room"), 6);
        fails_in_task_at(reader, start + 34 * SECOND).await;
    });
}

/// Bytes that the caller's own system call has moved count as those of a write. sendfile(2) is such a call.
#[test]
fn own_calls_postpone_idle_deadline() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, direction: Direction::Read }, TEN).await;
        let start = Instant::now();
        let reader = link.spawn();
        settle().await;
        let call = || (&link.twin).write(b"a part");
        advance_to(start + 6 * SECOND).await;
        assert_eq!(link.stream.async_io(Interest::WRITABLE, call).await.expect("the channel has room"), 6);
        advance_to(start + 12 * SECOND).await;
        assert_eq!(link.stream.try_io(Interest::WRITABLE, call).expect("the channel has room"), 6);
        advance_to(start + 18 * SECOND).await;
        let blocks = || Err::<(), _>(ErrorKind::WouldBlock.into());
        link.stream.try_io(Interest::WRITABLE, blocks).expect_err("a call that moves nothing");
        fails_in_task_at(reader, start + 22 * SECOND).await;
    });
}

/// The end of the idle time fails no read before a waiting call of the caller's own has tried again.
#[test]
fn own_call_tries_before_idle_end() {
    run_paused(|| async {
        let mut link = Link::new(Case { kind: Kind::Idle, direction: Direction::Write }, TEN).await;
        link.case.direction = Direction::Read;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to read");
        let (waker, wakes) = counting_waker();
        let call = link.stream.async_io(Interest::WRITABLE, || (&link.twin).write(b"a part"));
        let mut call = std::pin::pin!(call);
        assert!(poll_with(&waker, &mut call).is_pending(), "the buffer is full");
        advance_to(start + TEN + TICK).await;
        let early = link.poll();
        assert!(early.is_pending(), "the read must wait for the call's attempt: {early:?}");
        assert_eq!(wakes.get(), 1, "the waiting call must be woken for an attempt");
        assert!(poll_with(&waker, &mut call).is_pending(), "the buffer is full");
        assert_timed_out(link.poll());

        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to read");
        advance_to(start + TEN + TICK).await;
        assert!(link.poll().is_pending(), "the read must wait for the call's attempt");
        link.case.direction = Direction::Write;
        link.serve_at_once();
        link.case.direction = Direction::Read;
        assert!(poll_with(&waker, &mut call).is_ready(), "the buffer has room");
        assert!(link.poll().is_pending(), "the read failed although bytes moved");
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// A read postpones the idle deadline of a waiting write: an upload continues while a reply waits.
#[test]
fn read_postpones_writes_idle_deadline() {
    run_paused(|| async {
        let mut link = Link::new(Case { kind: Kind::Idle, direction: Direction::Write }, TEN).await;
        let start = Instant::now();
        let writer = link.spawn();
        settle().await;
        for second in [6, 12, 18] {
            advance_to(start + second * SECOND).await;
            link.peer.write_all(b"a part").expect("the peer writes");
            until(|| poll_read(Waker::noop(), &*link.stream, &mut [0; 64]).is_ready()).await;
        }
        advance_to(start + 24 * SECOND).await;
        link.peer.write_all(b"a part").expect("the peer writes");
        until(|| link.stream.try_read(&mut [0; 64]).is_ok()).await;
        fails_in_task_at(writer, start + 34 * SECOND).await;
    });
}

/// An operation in the other direction starts no idle time, because nothing waits. The idle time starts with the
/// first wait.
#[test]
fn unwaited_operation_starts_no_idle_time() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, direction: Direction::Read }, TEN).await;
        until(|| poll_write(Waker::noop(), &*link.stream, b"a part").is_ready()).await;
        advance(HOUR).await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// Only bytes postpone the idle deadline of the other direction. A repeated end of the stream and a reported
/// timeout do not.
#[test]
fn only_bytes_postpone_idle_deadline() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, direction: Direction::Write }, TEN).await;
        link.peer.shutdown(Shutdown::Write).expect("the peer ends");
        until(|| has_input(&link.twin)).await;
        // The end of the stream may have freed buffer space.
        link.use_up().await;
        let start = Instant::now();
        let writer = link.spawn();
        settle().await;
        advance_to(start + 5 * SECOND).await;
        link.stream.set_read_timeout(Some(SECOND)).expect("a timeout");
        for _ in 0..2 {
            until(|| poll_read(Waker::noop(), &*link.stream, &mut [0; 64]).is_ready()).await;
            assert_eq!(link.stream.try_read(&mut [0; 64]).expect("the end"), 0);
            assert_eq!(link.stream.try_read(&mut []).expect("a read into nothing"), 0);
        }
        fails_in_task_at(writer, start + TEN).await;
    });
}

/// An idle stream fails both the read and the write that wait on it.
#[test]
fn idle_stream_fails_both_directions() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, direction: Direction::Write }, TEN).await;
        for _ in 0..3 {
            let start = Instant::now();
            let write = link.spawn();
            let read = Direction::Read.spawn(&link.stream);
            settle().await;
            advance_to(start + TEN - MS).await;
            settle().await;
            assert!(!read.is_finished() && !write.is_finished(), "the deadline has not passed");
            advance_to(start + TEN + TICK).await;
            settle().await;
            for task in [read, write] {
                assert!(task.is_finished(), "both operations must fail at the deadline");
                assert_timed_out(Poll::Ready(task.await.expect("the task").0));
            }
        }
    });
}

/// A read and a write that wait on an idle stream each have the full time from their own first poll.
#[test]
fn each_direction_has_own_idle_time() {
    for (first, second) in [(Direction::Read, Direction::Write), (Direction::Write, Direction::Read)] {
        run_paused(move || async move {
            let link = Link::new(Case { kind: Kind::Idle, direction: Direction::Write }, TEN).await;
            let start = Instant::now();
            let first = first.spawn(&link.stream);
            settle().await;
            advance_to(start + 5 * SECOND).await;
            let second = second.spawn(&link.stream);
            settle().await;
            advance_to(start + TEN + TICK).await;
            settle().await;
            assert!(first.is_finished(), "the deadline of the first operation has passed");
            assert!(!second.is_finished(), "the deadline of the second operation has not passed");
            advance_to(start + 5 * SECOND + TEN + TICK).await;
            settle().await;
            for task in [first, second] {
                assert_timed_out(Poll::Ready(task.await.expect("the task").0));
            }
        });
    }
}

/// The end of the idle time fails no operation before a waiting operation of the other direction has tried again. The
/// kernel may take or have bytes there that it has not reported.
#[test]
fn other_direction_tries_before_idle_end() {
    for (late, direction) in [(Direction::Read, Direction::Write), (Direction::Write, Direction::Read)] {
        run_paused(move || async move {
            // A link whose write must wait. There is nothing to read either.
            let mut link = Link::new(Case { kind: Kind::Idle, direction: Direction::Write }, TEN).await;
            link.case.direction = direction;
            let start = Instant::now();
            assert!(late.poll(Waker::noop(), &link.stream).is_pending(), "the {late:?} must wait");
            advance(SECOND).await;
            assert!(link.poll().is_pending(), "the operation must wait");
            advance_to(start + TEN + TICK).await;
            link.serve_at_once();
            let early = late.poll(Waker::noop(), &link.stream);
            assert!(early.is_pending(), "the {late:?} must wait for the other direction's attempt: {early:?}");
            assert_eq!(link.wakes.get(), 1, "the waiting task must be woken for an attempt");
            assert_done(link.poll());
            let start = Instant::now();
            advance_to(start + TEN - MS).await;
            let early = late.poll(Waker::noop(), &link.stream);
            assert!(early.is_pending(), "the {late:?} failed although bytes moved: {early:?}");
            advance_to(start + TEN + TICK).await;
            assert_timed_out(late.poll(Waker::noop(), &link.stream));
        });
    }
}

/// A wait that was given up in one direction delays the idle end of the other one by a moment only.
#[test]
fn abandoned_wait_delays_idle_end_briefly() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, direction: Direction::Write }, TEN).await;
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(SECOND).await;
        for _ in 0..3 {
            let start = Instant::now();
            let reader = Direction::Read.spawn(&link.stream);
            settle().await;
            advance_to(start + TEN + TICK).await;
            settle().await;
            let (result, at) = reader.await.expect("the reader");
            assert_timed_out(Poll::Ready(result));
            assert!(at < start + TEN + SECOND + 200 * MS, "the idle time ended {:?} late", at - (start + TEN));
        }
    });
}

/// The first of two timeouts to end fails the operation, and the error names it.
#[test]
fn error_names_the_first_timeout() {
    run_paused(|| async {
        for (direction, other) in [(Direction::Read, Kind::Read), (Direction::Write, Kind::Write)] {
            let mut texts = Vec::new();
            for (own, idle, expected) in [(TEN, HOUR, TEN), (HOUR, TEN, TEN)] {
                let link = Link::new(Case { kind: other, direction }, own).await;
                link.stream.set_idle_timeout(Some(idle)).expect("a timeout");
                let start = Instant::now();
                texts.push(link.fails_at(start + expected).await);
            }
            assert_ne!(texts[0], texts[1], "the errors of two timeouts must differ");
            assert!(texts[0].contains(other.name()), "{other:?}: {}", texts[0]);
            assert!(texts[1].contains("idle"), "{}", texts[1]);
        }
    });
}

/// A write postpones the idle deadline of a waiting read, but not its read timeout.
#[test]
fn write_postpones_only_idle_deadline() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Read, direction: Direction::Read }, TEN).await;
        link.stream.set_idle_timeout(Some(8 * SECOND)).expect("a timeout");
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to read");
        advance_to(start + 5 * SECOND).await;
        until(|| poll_write(Waker::noop(), &*link.stream, b"x").is_ready()).await;
        let text = link.fails_at(start + TEN).await;
        assert!(text.contains("read"), "the write must postpone the idle deadline: {text}");
    });
}

/// Removing one timeout leaves the other one to a waiting operation.
#[test]
fn removed_timeout_leaves_the_other() {
    run_paused(|| async {
        for (kind, direction) in [(Kind::Read, Direction::Read), (Kind::Write, Direction::Write)] {
            for (take, leave) in [(kind, Kind::Idle), (Kind::Idle, kind)] {
                let link = Link::new(Case { kind: take, direction }, 8 * SECOND).await;
                leave.set(&link.stream, Some(TEN)).expect("a timeout");
                let start = Instant::now();
                let waiter = link.spawn();
                settle().await;
                advance_to(start + 5 * SECOND).await;
                take.set(&link.stream, None).expect("no timeout");
                settle().await;
                // Whether the removal also restarts the other timeout is unspecified.
                advance_to(start + TEN - MS).await;
                assert!(!waiter.is_finished(), "{take:?} was removed, and {leave:?} has not ended");
                advance_to(start + 15 * SECOND + TICK).await;
                settle().await;
                assert!(waiter.is_finished(), "{leave:?} has ended");
                let error = waiter.await.expect("the waiter").0.expect_err("the operation must wait");
                assert!(error.to_string().contains(leave.name()), "{error}");
            }
        }
    });
}
