//! When a timeout ends, and the readiness that wins over it.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::replace;
use std::net::Shutdown;
use std::task::Poll;

use futures_lite::future::{self, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::spawn;
use kittiwake::task::JoinHandle;
use kittiwake::time::{Duration, Instant, advance, interval, sleep};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// A wait fails at its deadline, and its task is woken once. A task that was woken more often would poll for the
/// deadline.
#[test]
fn timeout_wakes_once_at_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "the operation must wait");
        advance_to(start + TEN - MS).await;
        assert_eq!(link.wakes.get(), 0, "no wake may come before the deadline");
        advance_to(start + TEN + TICK).await;
        assert_eq!(link.wakes.get(), 1, "the waiting task must be woken at the deadline");
        assert_timed_out(link.poll());
    });
}

/// A wait never fails early: the timer, the kernel's wait and a cached clock must all round up.
#[test]
fn wait_never_fails_early() {
    const MICROS: [u64; 11] = [1, 10, 65, 66, 131, 500, 999, 1000, 1001, 2500, 5200];
    for case in CASES {
        run(move || async move {
            let link = Link::new(case, HOUR).await;
            for duration in MICROS.map(|micros| Duration::from_micros(micros) + Duration::from_nanos(1)) {
                case.set(&link.stream, Some(duration)).expect("a timeout");
                for _ in 0..3 {
                    let took = link.time_out().await;
                    assert!(took >= duration, "{case:?}: a timeout of {duration:?} ended after {took:?}");
                }
            }
        });
    }
}

/// The time runs from the first poll that must wait. Time that no operation waited does not count.
#[test]
fn time_starts_at_first_wait() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        advance(HOUR).await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// Further polls of a waiting operation do not postpone its deadline.
#[test]
fn pending_polls_postpone_no_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        for _ in 0..9 {
            assert!(link.poll().is_pending(), "the operation must wait");
            advance(SECOND).await;
        }
        link.fails_at(start + TEN).await;
    });
}

/// The time runs on when the future is dropped. A loop that drops its read in each round must time out too.
#[test]
fn dropped_future_keeps_its_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        let mut tick = interval(SECOND);
        let error = loop {
            let operation = async { Some(link.operate().await) };
            let ticked = async {
                tick.tick().await;
                None
            };
            match future::or(operation, ticked).await {
                None => {}
                Some(result) => break result.expect_err("the operation must wait"),
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert_at(Instant::now(), start + TEN);
    });
}

/// A deadline that passed while no task polled is reported to the next poll, and the time then starts again.
#[test]
fn missed_deadline_fails_next_poll() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(poll_once(link.operate()).await.is_none(), "the operation must wait");
        advance(HOUR).await;
        assert_timed_out(link.poll());
        let afresh = Instant::now();
        advance(HOUR).await;
        assert!(link.poll().is_pending(), "the time must start again with a wait, and not at {afresh:?}");
    });
}

/// A completed operation ends the time. It does not count against the next one.
#[test]
fn completed_operation_clears_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "the operation must wait");
        advance_to(start + 9 * SECOND).await;
        link.serve_and_complete().await;
        link.use_up().await;
        assert!(link.poll().is_pending(), "the operation must wait");
        link.fails_at(start + 19 * SECOND).await;

        assert!(link.poll().is_pending(), "the operation must wait");
        link.serve_and_complete().await;
        link.use_up().await;
        advance(HOUR).await;
        let later = Instant::now();
        link.fails_at(later + TEN).await;
    });
}

/// A busy stream wakes its task for the clock at most once per timeout. Re-arming the timer for each operation
/// would be costly.
#[test]
fn busy_stream_wakes_once_per_timeout() {
    const OPERATIONS: u32 = 200;
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let mut operations = if case.direction == Direction::Read { OPERATIONS } else { OPERATIONS / 10 };
        let (start, step) = (Instant::now(), 100 * SECOND / operations);
        let mut events = 0;
        while operations > 0 {
            assert!(link.poll().is_pending(), "the operation must wait");
            advance(step).await;
            let before = link.wakes.get();
            link.serve_and_complete().await;
            // Zero, if the clock had already woken the task, which has not polled since.
            events += link.wakes.get() - before;
            link.use_up().await;
            operations -= 1;
        }
        let spans = start.elapsed().as_secs() / TEN.as_secs();
        let for_the_clock = link.wakes.get() - events;
        // Allows for events that the kernel reports on its own.
        assert!(for_the_clock as u64 <= 2 * (spans + 1), "the clock caused {for_the_clock} wakes in {spans} timeouts");
    });
}

/// After a timeout the stream works, and the next wait has the full time again.
#[test]
fn time_restarts_after_each_timeout() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        for _ in 0..5 {
            let start = Instant::now();
            link.fails_at(start + TEN).await;
        }
        advance(HOUR).await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
        link.serve_and_complete().await;
        link.use_up().await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// Timeouts lose no byte, whether the reader or the writer is the slow one.
#[test]
fn timeouts_lose_no_byte() {
    run_paused(|| async {
        let (client, server) = pair().await;
        client.set_write_timeout(Some(SECOND)).expect("a timeout");
        server.set_read_timeout(Some(SECOND)).expect("a timeout");
        let sent = pattern(16 << 20);
        // First the writer is too slow for the reader, then the reader is too slow for the writer.
        let writer = spawn({
            let (sent, mut client) = (sent.clone(), client);
            async move {
                let (mut at, mut timeouts) = (0, 0);
                while at < sent.len() {
                    let part = if at < SLOW { 1000 } else { sent.len() - at };
                    timeouts += count_timeout(client.write(&sent[at..at + part]).await, &mut at);
                    if at <= SLOW {
                        sleep(3 * SECOND).await;
                    }
                }
                timeouts
            }
        });
        let reader = spawn(async move {
            let (mut received, mut at, mut timeouts, mut buf, mut server) = (vec![], 0, 0, vec![0; 1 << 20], server);
            while at < 16 << 20 {
                timeouts += count_timeout(server.read(&mut buf).await, &mut at);
                received.extend_from_slice(&buf[..at - received.len()]);
                if at > SLOW {
                    sleep(5 * SECOND).await;
                }
            }
            (received, timeouts)
        });
        let (received, late_reads) = reader.await.expect("the reader");
        let late_writes = writer.await.expect("the writer");
        assert!(late_reads >= 5, "only {late_reads} reads timed out, but a slow writer must cause at least five");
        assert!(late_writes > 0, "no write timed out, but a slow reader must cause some");
        assert!(received == sent, "every byte must arrive once and in order");
    });
}

/// The number of bytes that are written slowly.
const SLOW: usize = 5000;

/// Adds the moved bytes to `moved` and returns the number of timeouts, zero or one.
#[track_caller]
fn count_timeout(result: io::Result<usize>, moved: &mut usize) -> usize {
    match result {
        Ok(length) => {
            *moved += length;
            0
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            1
        }
    }
}

/// An operation that can proceed wins over a deadline that has passed.
#[test]
fn readiness_beats_passed_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(HOUR).await;
        assert_eq!(link.wakes.get(), 1, "the deadline must wake the task");
        link.serve().await;
        settle().await;
        assert_done(link.poll());
        link.use_up().await;
        assert!(link.poll().is_pending(), "the passed deadline must not count any more");
        advance(SECOND).await;
        assert!(link.poll().is_pending(), "the passed deadline must not count any more");
    });
}

/// An operation that can proceed wins even if the reactor has not reported the event yet. A busy worker sees the
/// clock and the bytes at once.
#[test]
fn unreported_readiness_beats_passed_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(HOUR).await;
        link.serve_at_once();
        assert_done(link.poll());
    });
}

/// The end of the stream wins even if the reactor has not reported it yet.
#[test]
fn unreported_end_beats_passed_deadline() {
    for kind in [Kind::Read, Kind::Idle] {
        run_paused(move || async move {
            let link = Link::new(Case { kind, direction: Direction::Read }, TEN).await;
            assert!(link.poll().is_pending(), "there is nothing to read");
            advance(HOUR).await;
            link.peer.shutdown(Shutdown::Write).expect("the peer ends");
            while !has_input(&link.twin) {}
            let end = link.poll();
            assert!(matches!(end, Poll::Ready(Ok(0))), "{kind:?}: the read must return the end, and not {end:?}");
        });
    }
}

/// The end of the stream wins over a deadline that has passed.
#[test]
fn end_beats_passed_deadline() {
    for kind in [Kind::Read, Kind::Idle] {
        run_paused(move || async move {
            let link = Link::new(Case { kind, direction: Direction::Read }, TEN).await;
            assert!(link.poll().is_pending(), "there is nothing to read");
            advance(HOUR).await;
            link.peer.shutdown(Shutdown::Write).expect("the peer ends");
            until(|| link.wakes.get() > 1 || has_input(&link.twin)).await;
            settle().await;
            for _ in 0..3 {
                let end = link.poll();
                assert!(matches!(end, Poll::Ready(Ok(0))), "{kind:?}: the read must return the end, and not {end:?}");
                advance(HOUR).await;
            }
        });
    }
}

/// A reset wins over a deadline that has passed. A caller that saw a timeout would retry in vain.
#[test]
fn reset_beats_passed_deadline() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(HOUR).await;
        let Link { stream, twin, peer, waker, .. } = link;
        allow_reset(&twin);
        reset(peer);
        until(|| is_hung_up(&twin)).await;
        settle().await;
        let expected = if case.direction == Direction::Read { ErrorKind::ConnectionReset } else { RESET_AT_WRITE };
        match case.direction.poll(&waker, &stream) {
            Poll::Ready(Err(error)) => assert_eq!(error.kind(), expected, "{error}"),
            other => panic!("the operation must report the reset, and not {other:?}"),
        }
    });
}

/// Whether both sides of the connection have ended.
fn is_hung_up(socket: &impl AsFd) -> bool {
    let mut entry = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut entry, Some(&Timespec::default())).expect("poll(2)");
    entry[0].revents().contains(PollFlags::HUP)
}

/// A task without budget does not time out on a stream that has bytes.
#[test]
fn exhausted_budget_causes_no_timeout() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(HOUR).await;
        link.serve().await;
        settle().await;
        let result = spawn_without_budget(&link).await.expect("the task");
        assert!(result.is_ok(), "{case:?}: {result:?}");
    });
}

/// A task without budget times out on a stream without bytes.
#[test]
fn exhausted_budget_prevents_no_timeout() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(HOUR).await;
        let task = spawn_without_budget(&link);
        until(|| task.is_finished()).await;
        assert_timed_out(Poll::Ready(task.await.expect("the task")));
    });
}

/// A task that polls the link's operation. Its first poll has no budget left for it.
fn spawn_without_budget(link: &Link) -> JoinHandle<io::Result<usize>> {
    let (budget, peer) = pair_with_std();
    let (direction, stream, mut is_first) = (link.case.direction, link.stream.clone(), true);
    spawn(poll_fn(move |cx| {
        let _open = &peer;
        if replace(&mut is_first, false) {
            while poll_write(cx.waker(), &budget, b"x").is_ready() {}
        }
        direction.poll(cx.waker(), &stream)
    }))
}
