//! The read, write and idle timeouts of a stream: never early, never instead of bytes that are there, and for whoever waits,
//! wherever that is.
//!
//! Most laws hold for each timeout and for each way to wait that it bounds, see [`CASES`], and are shown on a paused clock.
//! The test then plays the executor: it polls with a waker that counts, and moves the time.

mod support;

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use futures_lite::future::{self, poll_once};
use kittiwake::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use kittiwake::net::TcpStream;
use kittiwake::runtime::Runtime;
use kittiwake::spawn;
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::time::{Duration, Instant, advance, interval, sleep};
use support::*;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// What most tests set.
const TEN: Duration = Duration::from_secs(10);

// ---- when the time is over ----

/// A timeout that does not come at its time is no guard, and one that polls to find out is no timeout.
#[test]
fn a_wait_fails_at_its_deadline_and_is_woken_once() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance_to(start + TEN - MS).await;
        assert_eq!(link.wakes.get(), 0, "nobody is woken before the time is over");
        advance_to(start + TEN + TICK).await;
        assert_eq!(link.wakes.get(), 1, "then the one who waits is woken");
        assert_timed_out(link.poll());
    });
}

/// Rounding to the wrong side, of the timer, of the kernel's wait or of a clock that was read before, would be early.
#[test]
fn a_wait_never_fails_early() {
    const MICROS: [u64; 11] = [1, 10, 65, 66, 131, 500, 999, 1000, 1001, 2500, 5200];
    for case in CASES {
        run(move || async move {
            let link = Link::new(case, HOUR).await;
            for duration in MICROS.map(|micros| Duration::from_micros(micros) + Duration::from_nanos(1)) {
                case.set(&link.stream, Some(duration)).expect("a timeout");
                for _ in 0..3 {
                    let took = link.time_out().await;
                    assert!(took >= duration, "{case:?}: {duration:?} were over after {took:?}");
                }
            }
        });
    }
}

/// Time that runs while nobody waits would fail the first read after a pause.
#[test]
fn the_time_runs_from_the_first_poll_that_has_to_wait() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        advance(HOUR).await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// Time that begins anew with each poll never ends for whoever polls often.
#[test]
fn polls_that_have_to_wait_do_not_push_the_time_back() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        for _ in 0..9 {
            assert!(link.poll().is_pending(), "there is nothing to do");
            advance(SECOND).await;
        }
        link.fails_at(start + TEN).await;
    });
}

/// A loop that reads beside other things drops its read in each round, and would wait for ever.
#[test]
fn the_time_runs_on_when_the_future_is_dropped() {
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
                Some(result) => break result.expect_err("there is nothing to do"),
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert_at(Instant::now(), start + TEN);
    });
}

/// And when nobody polls at all, the next poll must tell: who looks once a minute would wait for ever.
#[test]
fn time_that_was_over_long_ago_is_told_to_the_next_poll() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(poll_once(link.operate()).await.is_none(), "there is nothing to do");
        advance(HOUR).await;
        assert_timed_out(link.poll());
        let afresh = Instant::now();
        advance(HOUR).await;
        assert!(link.poll().is_pending(), "the time starts afresh, with a wait, and not at {afresh:?}");
    });
}

/// What a stream did for the last time must not count against what it does next.
#[test]
fn an_operation_that_is_ready_ends_the_time() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance_to(start + 9 * SECOND).await;
        link.is_served().await;
        link.use_up().await;
        assert!(link.poll().is_pending(), "there is nothing more to do");
        link.fails_at(start + 19 * SECOND).await;

        assert!(link.poll().is_pending(), "there is nothing to do");
        link.is_served().await;
        link.use_up().await;
        advance(HOUR).await;
        let later = Instant::now();
        link.fails_at(later + TEN).await;
    });
}

/// A timer that is armed, or a task that is woken, for each read is what a timeout around each would cost.
#[test]
fn a_busy_stream_wakes_its_task_for_a_deadline_at_most_once_in_each_span_of_it() {
    const OPERATIONS: u32 = 200;
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let mut operations = if case.way == Way::Read { OPERATIONS } else { OPERATIONS / 10 };
        let (start, step) = (Instant::now(), 100 * SECOND / operations);
        let mut events = 0;
        while operations > 0 {
            assert!(link.poll().is_pending(), "there is nothing to do");
            advance(step).await;
            let before = link.wakes.get();
            link.is_served().await;
            // None, if the clock had woken it and it had not polled since.
            events += link.wakes.get() - before;
            link.use_up().await;
            operations -= 1;
        }
        let spans = start.elapsed().as_secs() / TEN.as_secs();
        let for_the_clock = link.wakes.get() - events;
        // Some room for what the kernel tells of its own accord.
        assert!(for_the_clock as u64 <= 2 * (spans + 1), "{for_the_clock} wakes in {spans} spans");
    });
}

/// A timeout that broke the stream, or that came only once, could not be borne by a server that goes on.
#[test]
fn after_a_timeout_the_time_starts_afresh_again_and_again() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        for _ in 0..5 {
            let start = Instant::now();
            link.fails_at(start + TEN).await;
        }
        advance(HOUR).await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
        link.is_served().await;
        link.use_up().await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// A byte that a timeout takes with it breaks the protocol of whoever goes on.
#[test]
fn after_timeouts_no_byte_is_lost() {
    run_paused(|| async {
        let (client, server) = pair().await;
        client.set_write_timeout(Some(SECOND)).expect("a timeout");
        server.set_read_timeout(Some(SECOND)).expect("a timeout");
        let sent = pattern(16 << 20);
        // First a writer that is too slow for its reader, then a reader that is too slow for its writer.
        let writer = spawn({
            let (sent, mut client) = (sent.clone(), client);
            async move {
                let (mut at, mut timeouts) = (0, 0);
                while at < sent.len() {
                    let part = if at < SLOW { 1000 } else { sent.len() - at };
                    timeouts += bear(client.write(&sent[at..at + part]).await, &mut at);
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
                timeouts += bear(server.read(&mut buf).await, &mut at);
                received.extend_from_slice(&buf[..at - received.len()]);
                if at > SLOW {
                    sleep(5 * SECOND).await;
                }
            }
            (received, timeouts)
        });
        let (received, late_reads) = reader.await.expect("the reader");
        let late_writes = writer.await.expect("the writer");
        assert!(late_reads >= 5, "{late_reads} reads timed out, where a slow writer was to make five and more");
        assert!(late_writes > 0, "no write timed out, where a slow reader was to make some");
        assert!(received == sent, "every byte arrives, once and in order");
    });
}

/// Bytes that are written slowly.
const SLOW: usize = 5000;

/// Adds what was moved; a timeout counts one.
#[track_caller]
fn bear(result: io::Result<usize>, moved: &mut usize) -> usize {
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

// ---- what is there wins ----

/// Bytes that came late are bytes all the same; who gives up instead may wait for them for ever.
#[test]
fn what_can_be_done_wins_over_time_that_is_over() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        assert_eq!(link.wakes.get(), 1, "the time is over");
        link.serve().await;
        settle().await;
        assert_done(link.poll());
        link.use_up().await;
        assert!(link.poll().is_pending(), "and the time that was over counts no more");
        advance(SECOND).await;
        assert!(link.poll().is_pending(), "and the time that was over counts no more");
    });
}

/// As above, when the reactor has not yet heard of it: a worker that was busy sees the clock and the bytes at once.
#[test]
fn what_the_reactor_has_not_seen_wins_over_time_that_is_over() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        link.serve_at_once();
        assert_done(link.poll());
    });
}

/// As above, for the last that there is to read.
#[test]
fn an_end_that_the_reactor_has_not_seen_wins_over_time_that_is_over() {
    for kind in [Kind::Read, Kind::Idle] {
        run_paused(move || async move {
            let link = Link::new(Case { kind, way: Way::Read }, TEN).await;
            assert!(link.poll().is_pending(), "there is nothing to read");
            advance(HOUR).await;
            link.peer.shutdown(Shutdown::Write).expect("the peer ends");
            while link.twin.peek(&mut [0]).is_err() {}
            let end = link.poll();
            assert!(matches!(end, Poll::Ready(Ok(0))), "{kind:?}: the end is read, however late, and not {end:?}");
        });
    }
}

/// The end of a stream is an answer too, and the last one that there is.
#[test]
fn the_end_wins_over_time_that_is_over() {
    for kind in [Kind::Read, Kind::Idle] {
        run_paused(move || async move {
            let link = Link::new(Case { kind, way: Way::Read }, TEN).await;
            assert!(link.poll().is_pending(), "there is nothing to read");
            advance(HOUR).await;
            link.peer.shutdown(Shutdown::Write).expect("the peer ends");
            until(|| link.wakes.get() > 1 || link.twin.peek(&mut [0]).is_ok()).await;
            settle().await;
            for _ in 0..3 {
                let end = link.poll();
                assert!(matches!(end, Poll::Ready(Ok(0))), "{kind:?}: the end is read, however late, and not {end:?}");
                advance(HOUR).await;
            }
        });
    }
}

/// A reset that is taken for a timeout is tried again, for nothing.
#[test]
fn a_reset_wins_over_time_that_is_over() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        let Link { stream, peer, waker, .. } = link;
        reset(peer);
        until(|| stream.peer_addr().is_err()).await;
        settle().await;
        match case.way.poll(&waker, &stream) {
            Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
            other => panic!("the connection was reset, and not {other:?}"),
        }
    });
}

/// A task that has used up its turn is told to wait, and must not take that for a stream on which nothing came.
#[test]
fn a_task_without_budget_does_not_time_out_on_a_stream_that_has_bytes() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        link.serve().await;
        settle().await;
        let (budget, _peer) = pair_with_std();
        let (stream, mut turn) = (link.stream.clone(), 0);
        let task = spawn(poll_fn(move |cx| {
            turn += 1;
            if turn == 1 {
                while poll_write(cx.waker(), &budget, b"x").is_ready() {}
            }
            case.way.poll(cx.waker(), &stream).map(|result| (result, turn))
        }));
        let (result, turn) = task.await.expect("the task");
        assert!(result.is_ok(), "{case:?}: {result:?} in turn {turn}");
        assert!(turn > 1, "in the first turn it had no budget");
    });
}

/// As before, where nothing is there: the timeout comes all the same, a turn later.
#[test]
fn a_task_without_budget_times_out_in_its_next_turn() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        let (budget, _peer) = pair_with_std();
        let (stream, mut turn) = (link.stream.clone(), 0);
        let task = spawn(poll_fn(move |cx| {
            turn += 1;
            if turn == 1 {
                while poll_write(cx.waker(), &budget, b"x").is_ready() {}
            }
            case.way.poll(cx.waker(), &stream)
        }));
        until(|| task.is_finished()).await;
        assert_timed_out(Poll::Ready(task.await.expect("the task")));
    });
}

// ---- settings ----

/// Who asks for the timeout that is set must learn it, and a new stream has none.
#[test]
fn a_stream_tells_its_timeouts() {
    let (stream, _peer) = pair_with_std();
    for kind in [Kind::Read, Kind::Write, Kind::Idle] {
        assert_eq!(kind.get(&stream), None, "{kind:?}: by default there is none");
    }
    for duration in [Duration::from_nanos(1), MS, TEN, HOUR * 24 * 365, Duration::MAX] {
        for (at, kind) in [Kind::Read, Kind::Write, Kind::Idle].into_iter().enumerate() {
            let duration = duration.saturating_sub(Duration::from_nanos(at as u64)).max(Duration::from_nanos(1));
            kind.set(&stream, Some(duration)).expect("a timeout");
            assert_eq!(kind.get(&stream), Some(duration), "{kind:?}");
        }
    }
    for kind in [Kind::Write, Kind::Read, Kind::Idle] {
        kind.set(&stream, None).expect("no timeout");
        assert_eq!(kind.get(&stream), None, "{kind:?}: taken away");
    }
}

/// The three are three settings: one that overwrites another leaves a stream unguarded.
#[test]
fn each_timeout_is_set_for_itself() {
    let (stream, _peer) = pair_with_std();
    let all = |stream: &TcpStream| (stream.read_timeout(), stream.write_timeout(), stream.idle_timeout());
    stream.set_read_timeout(Some(SECOND)).expect("a timeout");
    assert_eq!(all(&stream), (Some(SECOND), None, None));
    stream.set_idle_timeout(Some(HOUR)).expect("a timeout");
    assert_eq!(all(&stream), (Some(SECOND), None, Some(HOUR)));
    stream.set_write_timeout(Some(TEN)).expect("a timeout");
    assert_eq!(all(&stream), (Some(SECOND), Some(TEN), Some(HOUR)));
    stream.set_idle_timeout(None).expect("no timeout");
    assert_eq!(all(&stream), (Some(SECOND), Some(TEN), None));
    stream.set_read_timeout(None).expect("no timeout");
    assert_eq!(all(&stream), (None, Some(TEN), None));
}

/// Zero would fail every read that waits; std refuses it, and who tries must not lose what was set.
#[test]
fn zero_is_refused_and_changes_nothing() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(6 * SECOND).await;
        let error = case.set(&link.stream, Some(Duration::ZERO)).expect_err("zero is no timeout");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(case.kind.get(&link.stream), Some(TEN), "the old timeout is kept");
        link.fails_at(start + TEN).await;

        let (fresh, _peer) = pair_with_std();
        assert!(case.set(&fresh, Some(Duration::ZERO)).is_err(), "zero is no timeout");
        assert_eq!(case.kind.get(&fresh), None, "nothing was set");
    });
}

/// An overflow of the deadline would fail at once.
#[test]
fn a_timeout_of_all_time_never_comes() {
    in_each_case(|case| async move {
        for duration in [Duration::MAX, Duration::from_secs(u64::MAX / 10), Duration::from_nanos(u64::MAX)] {
            let link = Link::new(case, duration).await;
            assert!(link.poll().is_pending(), "there is nothing to do");
            advance(HOUR).await;
            assert!(link.poll().is_pending(), "{duration:?} are not over");
            assert_eq!(link.wakes.get(), 0, "and nobody is woken");
        }
    });
}

/// Who waits already, without a limit, is the very one that a limit is set for.
#[test]
fn a_timeout_that_is_set_holds_for_who_waits_already() {
    each_change(None, Some(TEN), Some(15 * SECOND));
}

/// The old deadline is later: a timer that is not moved comes too late.
#[test]
fn a_timeout_that_is_shortened_holds_for_who_waits_already() {
    each_change(Some(HOUR), Some(TEN), Some(15 * SECOND));
}

/// The old deadline is earlier: a timer that is not moved comes too early.
#[test]
fn a_timeout_that_is_lengthened_holds_for_who_waits_already() {
    each_change(Some(TEN), Some(HOUR), Some(HOUR + 5 * SECOND));
}

/// To set what is set is to set it: the time begins now.
#[test]
fn a_timeout_that_is_set_again_begins_anew_for_who_waits_already() {
    each_change(Some(TEN), Some(TEN), Some(15 * SECOND));
}

/// A timer that is left behind would fail who may wait for ever.
#[test]
fn a_timeout_that_is_taken_away_fails_nobody() {
    each_change(Some(TEN), None, None);
}

/// As above, when the time was over already and nobody has looked.
#[test]
fn time_that_is_over_and_untold_is_forgotten_with_a_setting() {
    in_each_case(|case| async move {
        for setting in [None, Some(TEN), Some(HOUR)] {
            let link = Link::new(case, TEN).await;
            assert!(link.poll().is_pending(), "there is nothing to do");
            advance(HOUR).await;
            case.set(&link.stream, setting).expect("a setting");
            let start = Instant::now();
            assert!(link.poll().is_pending(), "{setting:?} begins now");
            match setting {
                Some(duration) => drop(link.fails_at(start + duration).await),
                None => link.waits_for_ever().await,
            }
        }
    });
}

/// One that is set again and again, faster than it ends, is a watchdog that is fed.
#[test]
fn settings_in_a_row_each_begin_the_time_anew() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        let waiter = link.spawn();
        for second in 1..=50 {
            settle_without_time().await;
            advance_to(start + second * SECOND).await;
            let duration = if second % 3 == 0 { HOUR } else { TEN };
            case.set(&link.stream, Some(duration)).expect("a timeout");
        }
        settle_without_time().await;
        fails_in_task_at(waiter, start + 60 * SECOND).await;
    });
}

/// From no timeout on: a stream that has served for long gets one, and the next wait has it.
#[test]
fn a_timeout_can_be_set_between_waits() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        for round in 0..5 {
            case.set(&link.stream, None).expect("no timeout");
            link.waits_for_ever().await;
            link.is_served().await;
            link.use_up().await;
            let duration = TEN * (round + 1);
            case.set(&link.stream, Some(duration)).expect("a timeout");
            let start = Instant::now();
            link.fails_at(start + duration).await;
        }
    });
}

// ---- what is an operation ----

/// Half a megabyte to a slow peer is many waits, and each has its time; a peer that takes nothing has no more than one.
#[test]
fn each_part_of_a_write_all_has_its_time() {
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
                assert!(!writer.is_finished() || received.len() > sent.len() / 2, "{kind:?}: it gave up");
                sleep(9 * SECOND).await;
                while let Ok(read) = peer.read(&mut buf) {
                    assert!(read > 0, "{kind:?}: it gave up after {} bytes", received.len());
                    received.extend_from_slice(&buf[..read]);
                }
            }
            let (result, mut stream) = writer.await.expect("the writer");
            result.expect("each part came in time");
            assert!(start.elapsed() > 2 * TEN, "all of it took longer than one timeout");
            assert!(received == sent, "and all of it came");

            let error = stream.write_all(&sent).await.expect_err("the peer takes nothing any more");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        });
    }
}

/// A reader of several buffers waits for the same bytes.
#[test]
fn vectored_operations_are_bounded() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll_vectored().is_pending(), "there is nothing to do");
        advance_to(start + TEN - MS).await;
        assert_eq!(link.wakes.get(), 0, "the time is not over");
        assert!(link.poll_vectored().is_pending(), "the time is not over");
        advance_to(start + TEN + TICK).await;
        assert_eq!(link.wakes.get(), 1, "the time is over");
        assert_timed_out(link.poll_vectored());

        assert!(link.poll_vectored().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        link.serve().await;
        settle().await;
        assert_done(link.poll_vectored());
        link.use_up().await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// Who takes bytes with `try_read` has got them: the time that a reader has waited is over.
#[test]
fn an_operation_that_is_tried_ends_the_time() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance_to(start + 9 * SECOND).await;
        link.serve().await;
        settle().await;
        assert!(link.attempt().expect("it can be done") > 0, "it is done");
        link.use_up().await;
        assert!(link.poll().is_pending(), "there is nothing more to do");
        link.fails_at(start + 19 * SECOND).await;
    });
}

/// An attempt does not wait: it has no time that could be over, it starts none, and it pushes none back.
#[test]
fn an_attempt_that_finds_nothing_leaves_the_time_alone() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        link.attempt_finds_nothing();
        advance(9 * SECOND).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "nobody has waited so far");
        advance(5 * SECOND).await;
        link.attempt_finds_nothing();
        link.fails_at(start + TEN).await;

        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        link.attempt_finds_nothing();
        assert_timed_out(link.poll());
    });
}

/// A buffer of no length says nothing about the peer, who may still be silent.
#[test]
fn an_empty_buffer_leaves_the_time_alone() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to do");
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
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(HOUR).await;
        assert_eq!(stream.read(&mut []).await.expect("it is no wait"), 0);
        assert_eq!(stream.write(&[]).await.expect("it is no wait"), 0);
    });
}

/// They tell whether there is something, and can be bounded by a timeout of their own; a server waits in them for its next
/// request.
#[test]
fn peek_readable_and_writable_are_not_bounded() {
    run_paused(|| async {
        for kind in [Kind::Read, Kind::Write, Kind::Idle] {
            let link = Link::new(Case { kind, way: Way::Write }, SECOND).await;
            let (waker, wakes) = counting_waker();
            let (mut buf, stream) = ([0; 8], &*link.stream);
            let (mut peek, mut readable) = (Box::pin(stream.peek(&mut buf)), Box::pin(stream.readable()));
            let mut writable = Box::pin(stream.writable());
            // The readiness that nobody has looked at yet is told first.
            while let Poll::Ready(ready) = poll_with(&waker, &mut writable) {
                ready.expect("writable");
                link.attempt_finds_nothing();
                writable = Box::pin(stream.writable());
            }
            assert!(poll_with(&waker, &mut peek).is_pending(), "there is nothing to peek at");
            assert!(poll_with(&waker, &mut readable).is_pending(), "there is nothing to read");
            advance(HOUR).await;
            assert_eq!(wakes.get(), 0, "{kind:?}: it is for operations");
            assert!(poll_with(&waker, &mut peek).is_pending(), "{kind:?}: there is nothing to peek at");
            assert!(poll_with(&waker, &mut readable).is_pending(), "{kind:?}: there is nothing to read");
            assert!(poll_with(&waker, &mut writable).is_pending(), "{kind:?}: there is no room");
        }
    });
}

/// A drain waits for the peer's end as long as the peer wants, unless this holds for it.
#[test]
fn a_drain_is_bounded() {
    for kind in [Kind::Read, Kind::Idle] {
        run_paused(move || async move {
            let (stream, mut peer) = pair_with_std();
            kind.set(&stream, Some(TEN)).expect("a timeout");
            let start = Instant::now();
            let drain = spawn(async move { (stream.drain(1 << 20).await.map(|_| 0), Instant::now()) });
            settle_without_time().await;
            advance_to(start + 6 * SECOND).await;
            peer.write_all(b"a part").expect("the peer writes");
            settle().await;
            fails_in_task_at(drain, start + 16 * SECOND).await;
        });
    }
}

/// The two directions of a conversation are two waits.
#[test]
fn read_and_write_timeouts_do_not_meddle() {
    run_paused(|| async {
        let read = Link::new(Case { kind: Kind::Read, way: Way::Read }, TEN).await;
        let start = Instant::now();
        assert!(read.poll().is_pending(), "there is nothing to read");
        advance_to(start + 5 * SECOND).await;
        until(|| poll_write(Waker::noop(), &read.stream, b"x").is_ready()).await;
        assert!(read.stream.try_write(b"x").is_ok(), "there is room");
        read.fails_at(start + TEN).await;

        let mut write = Link::new(Case { kind: Kind::Write, way: Way::Write }, TEN).await;
        let start = Instant::now();
        assert!(write.poll().is_pending(), "there is no room");
        assert!(poll_read(Waker::noop(), &write.stream, &mut [0; 8]).is_pending(), "there is nothing to read");
        advance_to(start + 5 * SECOND).await;
        write.peer.write_all(b"x").expect("the peer writes");
        until(|| poll_read(Waker::noop(), &write.stream, &mut [0; 8]).is_ready()).await;
        write.fails_at(start + TEN).await;
        assert!(poll_read(Waker::noop(), &write.stream, &mut [0; 8]).is_pending(), "reads may wait for ever");
    });
}

// ---- idle ----

/// Who waits for the next request while a long reply goes out is not idle.
#[test]
fn a_write_pushes_back_the_idle_time_of_a_waiting_read() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, way: Way::Read }, TEN).await;
        let start = Instant::now();
        let reader = link.spawn();
        settle_without_time().await;
        for second in [6, 12, 18] {
            advance_to(start + second * SECOND).await;
            until(|| poll_write(Waker::noop(), &link.stream, b"a part").is_ready()).await;
        }
        advance_to(start + 24 * SECOND).await;
        assert_eq!(link.stream.try_write(b"a part").expect("there is room"), 6);
        fails_in_task_at(reader, start + 34 * SECOND).await;
    });
}

/// The other way round: an upload goes on while a reply is stuck.
#[test]
fn a_read_pushes_back_the_idle_time_of_a_waiting_write() {
    run_paused(|| async {
        let mut link = Link::new(Case { kind: Kind::Idle, way: Way::Write }, TEN).await;
        let start = Instant::now();
        let writer = link.spawn();
        settle_without_time().await;
        for second in [6, 12, 18] {
            advance_to(start + second * SECOND).await;
            link.peer.write_all(b"a part").expect("the peer writes");
            until(|| poll_read(Waker::noop(), &link.stream, &mut [0; 64]).is_ready()).await;
        }
        advance_to(start + 24 * SECOND).await;
        link.peer.write_all(b"a part").expect("the peer writes");
        until(|| link.stream.try_read(&mut [0; 64]).is_ok()).await;
        fails_in_task_at(writer, start + 34 * SECOND).await;
    });
}

/// Whoever comes while nobody else waits begins the time: what the stream did before, and when, is no matter.
#[test]
fn an_operation_in_the_other_direction_starts_no_idle_time() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, way: Way::Read }, TEN).await;
        until(|| poll_write(Waker::noop(), &link.stream, b"a part").is_ready()).await;
        advance(HOUR).await;
        let start = Instant::now();
        link.fails_at(start + TEN).await;
    });
}

/// An end that is read again and again is no life, and a timeout that was told is none either.
#[test]
fn only_bytes_push_the_idle_time_of_the_other_direction_back() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, way: Way::Write }, TEN).await;
        link.peer.shutdown(Shutdown::Write).expect("the peer ends");
        until(|| link.twin.peek(&mut [0]).is_ok()).await;
        // The end may have come with room.
        link.use_up().await;
        let start = Instant::now();
        let writer = link.spawn();
        settle_without_time().await;
        advance_to(start + 5 * SECOND).await;
        link.stream.set_read_timeout(Some(SECOND)).expect("a timeout");
        for _ in 0..2 {
            until(|| poll_read(Waker::noop(), &link.stream, &mut [0; 64]).is_ready()).await;
            assert_eq!(link.stream.try_read(&mut [0; 64]).expect("the end"), 0);
            assert_eq!(link.stream.try_read(&mut []).expect("a read into nothing"), 0);
        }
        fails_in_task_at(writer, start + TEN).await;
    });
}

/// One of two who wait on a stream that is dead would else wait for ever.
#[test]
fn an_idle_stream_fails_the_read_and_the_write_that_wait() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Idle, way: Way::Write }, TEN).await;
        for _ in 0..3 {
            let start = Instant::now();
            let write = link.spawn();
            let read = Way::Read.spawn(&link.stream);
            settle_without_time().await;
            advance_to(start + TEN - MS).await;
            settle_without_time().await;
            assert!(!read.is_finished() && !write.is_finished(), "the time is not over");
            advance_to(start + TEN + TICK).await;
            settle_without_time().await;
            for task in [read, write] {
                assert!(task.is_finished(), "both fail when the time is over");
                assert_timed_out(Poll::Ready(task.await.expect("the task").0));
            }
        }
    });
}

/// Each waits since its own first poll: failing the later one with the earlier would be too early for it.
#[test]
fn of_two_that_wait_on_an_idle_stream_each_has_its_own_time() {
    for (first, second) in [(Way::Read, Way::Write), (Way::Write, Way::Read)] {
        run_paused(move || async move {
            let link = Link::new(Case { kind: Kind::Idle, way: Way::Write }, TEN).await;
            let start = Instant::now();
            let first = first.spawn(&link.stream);
            settle_without_time().await;
            advance_to(start + 5 * SECOND).await;
            let second = second.spawn(&link.stream);
            settle_without_time().await;
            advance_to(start + TEN + TICK).await;
            settle_without_time().await;
            assert!(first.is_finished(), "its time is over");
            assert!(!second.is_finished(), "its time is not over");
            advance_to(start + 5 * SECOND + TEN + TICK).await;
            settle_without_time().await;
            for task in [first, second] {
                assert_timed_out(Poll::Ready(task.await.expect("the task").0));
            }
        });
    }
}

/// A guard that does not say which limit was met cannot be set right.
#[test]
fn of_two_timeouts_the_first_that_is_over_counts_and_the_error_says_which() {
    run_paused(|| async {
        for (way, other) in [(Way::Read, Kind::Read), (Way::Write, Kind::Write)] {
            let mut texts = Vec::new();
            for (own, idle, expected) in [(TEN, HOUR, TEN), (HOUR, TEN, TEN)] {
                let link = Link::new(Case { kind: other, way }, own).await;
                link.stream.set_idle_timeout(Some(idle)).expect("a timeout");
                let start = Instant::now();
                texts.push(link.fails_at(start + expected).await);
            }
            assert_ne!(texts[0], texts[1], "the error says which");
            assert!(texts[0].contains(other.name()), "{other:?}: {}", texts[0]);
            assert!(texts[1].contains("idle"), "{}", texts[1]);
        }
    });
}

/// What pushes back the one must not push back the other.
#[test]
fn a_write_pushes_back_the_idle_time_but_not_the_read_timeout() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Read, way: Way::Read }, TEN).await;
        link.stream.set_idle_timeout(Some(8 * SECOND)).expect("a timeout");
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to read");
        advance_to(start + 5 * SECOND).await;
        until(|| poll_write(Waker::noop(), &link.stream, b"x").is_ready()).await;
        let text = link.fails_at(start + TEN).await;
        assert!(text.contains("read"), "the idle time was pushed back: {text}");
    });
}

/// Taking one away must leave the other.
#[test]
fn a_timeout_that_is_taken_away_leaves_the_other_to_who_waits() {
    run_paused(|| async {
        for (kind, way) in [(Kind::Read, Way::Read), (Kind::Write, Way::Write)] {
            for (take, leave) in [(kind, Kind::Idle), (Kind::Idle, kind)] {
                let link = Link::new(Case { kind: take, way }, 8 * SECOND).await;
                leave.set(&link.stream, Some(TEN)).expect("a timeout");
                let start = Instant::now();
                let waiter = link.spawn();
                settle_without_time().await;
                advance_to(start + 5 * SECOND).await;
                take.set(&link.stream, None).expect("no timeout");
                settle_without_time().await;
                // Whether that was a setting for the other one too is not said.
                advance_to(start + TEN - MS).await;
                assert!(!waiter.is_finished(), "{take:?} was taken away, and {leave:?} is not over");
                advance_to(start + 15 * SECOND + TICK).await;
                settle_without_time().await;
                assert!(waiter.is_finished(), "{leave:?} is over");
                let error = waiter.await.expect("the waiter").0.expect_err("there is nothing to do");
                assert!(error.to_string().contains(leave.name()), "{error}");
            }
        }
    });
}

// ---- who waits, and where ----

/// A half that cannot be bounded, or shows another value, makes `split` a loss.
#[test]
fn halves_set_and_tell_the_timeouts_of_their_stream() {
    let (mut stream, _peer) = pair_with_std();
    {
        let (read, write) = stream.split();
        read.set_read_timeout(Some(SECOND)).expect("a timeout");
        write.set_write_timeout(Some(TEN)).expect("a timeout");
        write.set_idle_timeout(Some(HOUR)).expect("a timeout");
        assert_eq!((read.read_timeout(), write.write_timeout()), (Some(SECOND), Some(TEN)));
        assert_eq!((read.idle_timeout(), write.idle_timeout()), (Some(HOUR), Some(HOUR)), "it is the stream's");
        read.set_idle_timeout(Some(HOUR * 2)).expect("a timeout");
        assert_eq!(write.idle_timeout(), Some(HOUR * 2), "it is the stream's");
        for refused in [
            read.set_read_timeout(Some(Duration::ZERO)),
            write.set_write_timeout(Some(Duration::ZERO)),
            read.set_idle_timeout(Some(Duration::ZERO)),
            write.set_idle_timeout(Some(Duration::ZERO)),
        ] {
            assert_eq!(refused.expect_err("zero is no timeout").kind(), ErrorKind::InvalidInput);
        }
    }
    let (read, write) = stream.into_split();
    assert_eq!((read.read_timeout(), write.write_timeout()), (Some(SECOND), Some(TEN)), "they came along");
    read.set_read_timeout(None).expect("no timeout");
    write.set_write_timeout(Some(MS)).expect("a timeout");
    read.set_idle_timeout(Some(SECOND)).expect("a timeout");
    assert_eq!((read.idle_timeout(), write.idle_timeout()), (Some(SECOND), Some(SECOND)), "it is the stream's");
    write.set_idle_timeout(Some(TEN)).expect("a timeout");
    let stream = read.reunite(write).expect("two of one");
    assert_eq!(
        (stream.read_timeout(), stream.write_timeout(), stream.idle_timeout()),
        (None, Some(MS), Some(TEN)),
        "what was set on the halves"
    );
}

/// Each half waits in a task of its own, and each timeout must find its own.
#[test]
fn owned_halves_in_two_tasks_time_out_each_at_its_time() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Write, way: Way::Write }, TEN).await;
        let (stream, _peer) = link.into_parts();
        let (mut read, mut write) = stream.into_split();
        read.set_read_timeout(Some(7 * SECOND)).expect("a timeout");
        let start = Instant::now();
        let writer = spawn(async move { (write.write(&[0; 4096]).await, Instant::now(), write) });
        let reader = spawn(async move { (read.read(&mut [0; 8]).await, Instant::now(), read) });
        let (result, at, read) = reader.await.expect("the reader");
        assert_timed_out(Poll::Ready(result));
        assert_at(at, start + 7 * SECOND);
        let (result, at, write) = writer.await.expect("the writer");
        assert_timed_out(Poll::Ready(result));
        assert_at(at, start + TEN);

        let mut stream = read.reunite(write).expect("two of one");
        let start = Instant::now();
        assert_timed_out(Poll::Ready(stream.read(&mut [0; 8]).await));
        assert_at(Instant::now(), start + 7 * SECOND);
    });
}

/// Borrowed halves are the stream; and what the owned ones waited, the reunited stream has waited.
#[test]
fn the_time_runs_on_through_split_and_reunite() {
    run_paused(|| async {
        let (mut stream, _peer) = pair_with_std();
        stream.set_read_timeout(Some(TEN)).expect("a timeout");
        let start = Instant::now();
        assert!(poll_once(stream.read(&mut [0; 8])).await.is_none(), "nothing was sent");
        advance(2 * SECOND).await;
        assert!(poll_once(stream.split().0.read(&mut [0; 8])).await.is_none(), "nothing was sent");
        advance(2 * SECOND).await;
        let (mut read, write) = stream.into_split();
        assert!(poll_once(read.read(&mut [0; 8])).await.is_none(), "nothing was sent");
        advance(2 * SECOND).await;
        let mut stream = write.reunite(read).expect("two of one");
        assert_timed_out(Poll::Ready(stream.split().0.read(&mut [0; 8]).await));
        assert_at(Instant::now(), start + TEN);
    });
}

/// A second reader that is not woken, because the first one took the timeout, waits for ever.
#[test]
fn of_two_tasks_that_read_one_stream_both_time_out() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        let first = link.spawn();
        settle_without_time().await;
        advance(4 * SECOND).await;
        let second = link.spawn();
        let mut ends = Vec::new();
        for task in [first, second] {
            let (result, at) = task.await.expect("the task");
            assert_timed_out(Poll::Ready(result));
            ends.push(at);
        }
        ends.sort_unstable();
        assert_at(ends[0], start + TEN);
        assert!(ends[1] <= ends[0] + TEN + TICK, "the second one waited for {:?} more", ends[1] - ends[0]);
    });
}

/// As before: one of them is served, and the other must not have its time from then on lost.
#[test]
fn a_reader_whose_neighbour_is_served_times_out_from_then_on() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let (first, second) = (link.spawn(), link.spawn());
        settle_without_time().await;
        advance(6 * SECOND).await;
        link.serve_until(|| first.is_finished() || second.is_finished()).await;
        link.use_up().await;
        let served = Instant::now();
        let mut results = Vec::new();
        for task in [first, second] {
            results.push(task.await.expect("the task"));
        }
        results.sort_by_key(|(result, _)| result.is_err());
        match &results[..] {
            [(Ok(_), _), (Ok(_), _)] => assert!(case.way == Way::Write, "there were bytes for one only"),
            [(Ok(_), _), (Err(error), at)] => {
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{case:?}: {error}");
                assert_at(*at, served + TEN);
            }
            other => panic!("{case:?}: one of them was to be served: {other:?}"),
        }
    });
}

/// A timer that wakes only its first poller loses a stream that has moved.
#[test]
fn the_one_that_polled_last_is_woken() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "there is nothing to do");
        advance(5 * SECOND).await;
        let (waker, wakes) = counting_waker();
        assert!(case.way.poll(&waker, &link.stream).is_pending(), "there is nothing to do");
        advance_to(start + TEN - MS).await;
        let before = wakes.get();
        advance_to(start + TEN + TICK).await;
        assert_eq!(wakes.get(), before + 1, "it waits, and is woken");
        assert_timed_out(case.way.poll(&waker, &link.stream));
    });
}

/// As before, with real tasks: those that polled before have ended.
#[test]
fn the_time_moves_with_the_stream_to_another_task() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        for _ in 0..3 {
            let stream = link.stream.clone();
            spawn(
                async move { assert!(poll_once(case.way.operate(&stream)).await.is_none(), "there is nothing to do") },
            )
            .await
            .expect("the task");
            advance(2 * SECOND).await;
        }
        let (result, at) = link.spawn().await.expect("the task");
        assert_timed_out(Poll::Ready(result));
        assert_at(at, start + TEN);
    });
}

/// The worker that has the timer sleeps in the kernel, without a deadline or with a far one.
#[test]
fn a_timeout_that_is_set_from_another_thread_holds_for_who_waits() {
    for before in [None, Some(HOUR)] {
        for case in CASES {
            run(move || async move {
                let link = Link::new(case, HOUR).await;
                case.set(&link.stream, before).expect("a setting");
                let (waits, waited_for) = mpsc::channel();
                let stream = link.stream.clone();
                let setter = std::thread::spawn(move || {
                    waited_for.recv().expect("the wait");
                    let start = std::time::Instant::now();
                    case.set(&stream, Some(5 * MS)).expect("a timeout");
                    start
                });
                let mut operation = Box::pin(link.operate());
                let result = poll_fn(|cx| {
                    let poll = operation.as_mut().poll(cx);
                    let _ = waits.send(());
                    poll
                })
                .await;
                let end = std::time::Instant::now();
                assert_timed_out(Poll::Ready(result));
                let took = end - setter.join().expect("the setter");
                assert!(took >= 5 * MS, "{case:?}: it was over after {took:?}");
            });
        }
    }
}

/// Two threads, and the stream between them: the timer belongs to the one, the wait is the other's.
#[test]
fn the_time_moves_with_the_stream_to_another_runtime() {
    for case in CASES {
        within(move || {
            let home = Background::start();
            let link = kittiwake::block_on(Link::new(case, 20 * MS));
            let start = std::time::Instant::now();
            let stream = link.stream.clone();
            home.run(async move {
                let _ = poll_once(case.way.operate(&stream)).await;
            });
            kittiwake::block_on(async {
                link.time_out().await;
                assert!(start.elapsed() >= 20 * MS, "{case:?}: 20 ms were over after {:?}", start.elapsed());
                for _ in 0..2 {
                    let took = link.time_out().await;
                    assert!(took >= 20 * MS, "{case:?}: 20 ms were over after {took:?}");
                }
                link.serve().await;
                link.operate().await.expect("after that it works as before");
            });
            home.stop();
        });
    }
}

/// A timer that ended with its runtime is no guard in the next.
#[test]
fn a_stream_whose_first_runtime_has_ended_times_out_in_the_next() {
    for case in CASES {
        within(move || {
            let runtime = Runtime::new().expect("a runtime");
            let link = runtime.block_on(async move {
                let link = Link::new(case, 5 * MS).await;
                link.time_out().await;
                assert!(link.poll().is_pending(), "there is nothing to do");
                link
            });
            drop(runtime);
            assert_eq!(case.kind.get(&link.stream), Some(5 * MS), "the timeout stays");
            kittiwake::block_on(async {
                // The wait that was cut off is told of that first, or goes on here.
                let first = link.operate().await.expect_err("there is nothing to do").to_string();
                assert!(first.contains("has ended") || first.contains("timeout"), "{case:?}: {first}");
                for _ in 0..2 {
                    let took = link.time_out().await;
                    assert!(took >= 5 * MS, "{case:?}: 5 ms were over after {took:?}");
                }
                link.serve().await;
                link.operate().await.expect("after that it works as before");
            });
        });
    }
}

/// What holds for a stream without a timeout holds for one with: its wait is cut off, it is told so, once.
#[test]
fn a_wait_under_a_timeout_fails_once_when_its_runtime_ends() {
    in_each_case(|case| async move {
        let ended = std::thread::spawn(move || {
            let runtime = one_worker();
            runtime.block_on(async move {
                let link = Link::new(case, TEN).await;
                assert!(link.poll().is_pending(), "there is nothing to do");
                link
            })
        });
        let link = ended.join().expect("the thread of the first runtime");
        assert!(link.wakes.get() > 0, "the end of the runtime wakes who waits");
        advance(9 * SECOND).await;
        match poll_once(link.operate()).await {
            Some(Err(error)) => assert!(error.to_string().contains("has ended"), "{error}"),
            other => panic!("the wait was cut off, and this is {other:?}"),
        }
        let result = poll_once(link.operate()).await;
        assert!(result.is_none(), "a new wait waits: {result:?}");
        let start = Instant::now();
        link.fails_at(start + TEN).await;
        link.is_served().await;
    });
}

/// After a timeout nobody waits any more, so the end of the runtime costs the stream nothing.
#[test]
fn a_stream_that_timed_out_before_its_runtime_ended_does_not_fail() {
    in_each_case(|case| async move {
        let ended = std::thread::spawn(move || {
            let runtime = Runtime::new().expect("a runtime");
            runtime.block_on(async move {
                let link = Link::new(case, MS).await;
                link.time_out().await;
                link
            })
        });
        let link = ended.join().expect("the thread of the first runtime");
        let result = poll_once(link.operate()).await;
        assert!(result.is_none(), "a new wait waits: {result:?}");
        link.is_served().await;
    });
}

/// The wait and its timer are of a runtime that ends while a task of another one waits. It fails or goes on, as the one or the
/// other is told first, and does not wait for a reactor and a timer that nobody turns any more.
#[test]
fn the_end_of_the_runtime_that_has_the_timer_is_told_to_who_waits_in_another() {
    for case in CASES {
        within(move || {
            let home = Background::start();
            let link = kittiwake::block_on(Link::new(case, HOUR));
            let stream = link.stream.clone();
            home.run(async move {
                assert!(poll_once(case.way.operate(&stream)).await.is_none(), "there is nothing to do");
            });
            kittiwake::block_on(async {
                let waiter = link.spawn();
                settle().await;
                assert!(!waiter.is_finished() && sources() == 0, "{case:?}: it waits for the other runtime's reactor");
                home.stop();
                until(|| waiter.is_finished() || sources() == 1).await;
                link.serve_until(|| waiter.is_finished()).await;
                if let Err(error) = waiter.await.expect("the waiter").0 {
                    assert!(error.to_string().contains("has ended"), "{case:?}: {error}");
                    link.serve().await;
                    link.operate().await.expect("after that it works as before");
                }
                link.use_up().await;
                case.set(&link.stream, Some(5 * MS)).expect("a timeout");
                let took = link.time_out().await;
                assert!(took >= 5 * MS, "{case:?}: 5 ms were over after {took:?}");
            });
        });
    }
}

/// A stream that nobody turns any more can still be set, asked and dropped.
#[test]
fn a_stream_that_outlives_its_runtime_can_be_set_and_dropped() {
    for case in CASES {
        within(move || {
            let (waker, wakes) = counting_waker();
            let runtime = Runtime::new().expect("a runtime");
            let link = runtime.block_on(async {
                let link = Link::new(case, HOUR).await;
                assert!(case.way.poll(&waker, &link.stream).is_pending(), "there is nothing to do");
                link
            });
            drop(runtime);
            assert!(wakes.get() > 0, "{case:?}: the end of the runtime wakes who waits");
            drop(waker);
            assert_eq!(Arc::strong_count(&wakes), 1, "{case:?}: and lets its waker go");
            case.set(&link.stream, Some(SECOND)).expect("a timeout");
            assert_eq!(case.kind.get(&link.stream), Some(SECOND));
            case.set(&link.stream, None).expect("no timeout");
            case.set(&link.stream, Some(MS)).expect("a timeout");
            drop(link);
        });
    }
}

/// Nothing has to wait, so nothing needs a timer: outside a runtime it works as before.
#[test]
fn outside_a_runtime_what_need_not_wait_works_under_a_timeout() {
    within(|| {
        let (mut stream, mut peer) = pair_with_std();
        for kind in [Kind::Read, Kind::Write, Kind::Idle] {
            kind.set(&stream, Some(SECOND)).expect("a timeout");
        }
        peer.write_all(b"four").expect("the peer writes");
        while stream.try_read(&mut []).is_err() || peer_has_not_arrived(&stream) {}
        assert_eq!(future::block_on(stream.read(&mut [0; 8])).expect("the bytes are there"), 4);
        assert_eq!(future::block_on(stream.write(b"five5")).expect("there is room"), 5);
        let error = future::block_on(stream.read(&mut [0; 8])).expect_err("it would have to wait");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
    });
}

fn peer_has_not_arrived(stream: &TcpStream) -> bool {
    twin(stream).peek(&mut [0]).is_err()
}

/// What failed in another executor has not begun to wait: the time is not to run from there on.
#[test]
fn a_wait_that_another_executor_refused_starts_no_time() {
    for case in CASES {
        within(move || {
            let home = Background::start();
            let limit = 5 * MS;
            let link = home.run(async move {
                let link = Link::new(case, HOUR).await;
                case.set(&link.stream, None).expect("no timeout");
                assert!(link.poll().is_pending(), "there is nothing to do");
                case.set(&link.stream, Some(limit)).expect("a timeout");
                link
            });
            future::block_on(link.operate()).expect_err("nothing would time it");
            kittiwake::block_on(async {
                sleep(2 * limit).await;
                let took = link.time_out().await;
                assert!(took >= limit, "{case:?}: {limit:?} were over after {took:?}");
            });
            home.stop();
        });
    }
}

/// What is there can be taken anywhere, whether or not the reactor, on its own thread, has been told of it.
#[test]
fn a_bound_stream_need_not_wait_in_another_executor_for_what_is_there() {
    for case in CASES {
        within(move || {
            let home = Background::start();
            let link = home.run(async move {
                let link = Link::new(case, HOUR).await;
                assert!(link.poll().is_pending(), "there is nothing to do");
                link
            });
            for _ in 0..if case.way == Way::Read { 50 } else { 5 } {
                case.set(&link.stream, Some(HOUR)).expect("a timeout");
                link.serve_at_once();
                let result = future::block_on(link.operate());
                assert!(result.is_ok(), "{case:?}: {result:?}, and there was something to do");
                future::block_on(link.use_up());
            }
            home.stop();
        });
    }
}

/// Another executor has no timers: a wait that nothing would end in time must be refused, and not hang.
#[test]
fn a_bound_stream_that_has_to_wait_in_another_executor_fails() {
    for case in CASES {
        for armed in [false, true] {
            within(move || {
                let home = Background::start();
                let link = home.run(async move {
                    let link = Link::new(case, HOUR).await;
                    if !armed {
                        case.set(&link.stream, None).expect("no timeout");
                    }
                    assert!(link.poll().is_pending(), "there is nothing to do");
                    case.set(&link.stream, Some(5 * MS)).expect("a timeout");
                    link
                });
                for _ in 0..3 {
                    let error = future::block_on(link.operate()).expect_err("there is nothing to do");
                    let text = error.to_string();
                    assert!(
                        error.kind() == ErrorKind::TimedOut || text.contains("no kittiwake runtime"),
                        "{case:?}: a timeout, or what is missing: {text}"
                    );
                }
                case.set(&link.stream, None).expect("no timeout");
                let stream = link.stream.clone();
                let waiter = std::thread::spawn(move || future::block_on(case.way.operate(&stream)));
                future::block_on(link.serve_until(|| waiter.is_finished()));
                waiter.join().expect("the thread").expect("without a timeout it may wait anywhere");
                home.stop();
            });
        }
    }
}

// ---- what is left ----

/// A timer that is left keeps its task in memory, and wakes it, and keeps a worker from sleeping.
#[test]
fn a_stream_that_is_gone_leaves_no_waker() {
    in_each_case(|case| async move {
        for how in 0..4 {
            let link = Link::new(case, TEN).await;
            assert!(link.poll().is_pending(), "there is nothing to do");
            let wakes = link.wakes.clone();
            let (stream, _peer) = link.into_parts();
            match how {
                0 => drop(stream),
                1 => drop(stream.into_std().expect("into_std")),
                2 => drop(stream.into_split()),
                _ => std::thread::spawn(move || drop(stream)).join().expect("the thread"),
            }
            assert_eq!(Arc::strong_count(&wakes), 1, "its waker is gone");
            assert_eq!(sources(), 0, "its place is free");
            let before = wakes.get();
            advance(HOUR).await;
            assert_eq!(wakes.get(), before, "nobody is woken");
        }
    });
}

/// A paused clock that moves while nobody waits for time has found a timer of a stream that is gone.
#[test]
fn a_stream_that_is_gone_leaves_no_timer() {
    for case in CASES {
        for aborted in [false, true] {
            run_paused(move || async move {
                let link = Link::new(case, TEN).await;
                let task = link.spawn();
                settle_without_time().await;
                if aborted {
                    task.abort();
                } else {
                    link.serve_until(|| task.is_finished()).await;
                }
                assert_eq!(task.await.is_ok(), !aborted, "{case:?}: the task ends");
                drop(link);
                assert_eq!(kittiwake::runtime::Handle::current().metrics().tasks_alive(), 0);
                assert_eq!(sources(), 0);
                let before = Instant::now();
                an_idle_moment().await;
                assert_eq!(Instant::now(), before, "{case:?}: somebody still waited for time");
            });
        }
    }
}

/// The same of one that may wait for ever from now on.
#[test]
fn a_timeout_that_is_taken_away_leaves_no_timer() {
    for case in CASES {
        run_paused(move || async move {
            let link = Link::new(case, TEN).await;
            let task = link.spawn();
            settle_without_time().await;
            case.set(&link.stream, None).expect("no timeout");
            let before = Instant::now();
            an_idle_moment().await;
            assert_eq!(Instant::now(), before, "{case:?}: somebody still waited for time");
            assert!(!task.is_finished(), "{case:?}: it may wait for ever");
        });
    }
}

/// Lets the runtime sleep in the kernel for a little while. The pause orders nothing: a shorter one would only see less.
async fn an_idle_moment() {
    let (end, ended) = async_channel::bounded::<()>(1);
    let thread = std::thread::spawn(move || {
        std::thread::park_timeout(5 * MS);
        drop(end);
    });
    assert!(ended.recv().await.is_err(), "nothing is sent");
    thread.join().expect("the thread");
}

/// A waker is foreign code, and may be that of a task that runs at once: no lock may be held around it.
#[test]
fn a_waker_may_use_the_stream_whose_time_is_over() {
    for case in CASES {
        run_paused(move || async move {
            let link = Link::new(case, TEN).await;
            let user = Arc::new(UsesWhenWoken { case, stream: link.stream.clone(), seen: Mutex::default() });
            let waker = Waker::from(user.clone());
            assert!(case.way.poll(&waker, &link.stream).is_pending(), "there is nothing to do");
            for round in 1..=3 {
                advance(TEN + MS).await;
                let seen = user.seen.lock().expect("no panic").clone();
                assert_eq!(seen, vec![ErrorKind::TimedOut; round], "{case:?}: it timed out in its wake");
            }
            case.set(&link.stream, None).expect("no timeout");
            drop(waker);
            let (stream, _) = (link.stream.clone(), user);
            stream.shutdown(Shutdown::Both).expect("shutdown");
            drop(link);
            until(|| Arc::strong_count(&stream) == 1).await;
        });
    }
}

/// As above, when it is the end of the runtime that wakes: there is no timer to be had any more, and no time has passed.
#[test]
fn a_waker_may_use_the_stream_whose_runtime_ends() {
    for case in CASES {
        within(move || {
            let runtime = Runtime::new().expect("a runtime");
            let (link, user) = runtime.block_on(async move {
                let link = Link::new(case, HOUR).await;
                let user = Arc::new(UsesWhenWoken { case, stream: link.stream.clone(), seen: Mutex::default() });
                assert!(case.way.poll(&Waker::from(user.clone()), &link.stream).is_pending(), "there is nothing to do");
                (link, user)
            });
            drop(runtime);
            let seen = user.seen.lock().expect("no panic").clone();
            assert!(seen.is_empty(), "{case:?}: no hour has passed, and it saw {seen:?}");
            case.set(&link.stream, Some(MS)).expect("a timeout");
            kittiwake::block_on(link.time_out());
        });
    }
}

/// Operates each time it is woken until it has to wait, and sets the timeout again.
struct UsesWhenWoken {
    case: Case,
    stream: Arc<TcpStream>,
    seen: Mutex<Vec<ErrorKind>>,
}

impl Wake for UsesWhenWoken {
    fn wake(self: Arc<Self>) {
        let _notes = NotesPanic(&self.seen);
        let waker = Waker::from(self.clone());
        while let Poll::Ready(Err(error)) = self.case.way.poll(&waker, &self.stream) {
            if error.kind() != ErrorKind::TimedOut {
                return;
            }
            self.seen.lock().expect("no panic").push(error.kind());
            self.case.set(&self.stream, Some(TEN)).expect("a timeout");
        }
    }
}

/// Who wakes contains what a waker panics with.
struct NotesPanic<'a>(&'a Mutex<Vec<ErrorKind>>);

impl Drop for NotesPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().expect("no panic while it is locked").push(ErrorKind::Other);
        }
    }
}

/// As above: dropping the stream.
#[test]
fn a_stream_may_be_dropped_in_the_wake_of_its_timeout() {
    struct Drops(Mutex<Vec<TcpStream>>);
    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            let streams = std::mem::take(&mut *self.0.lock().expect("no panic"));
            drop(streams);
        }
    }
    in_each_case(|case| async move {
        let drops = Arc::new(Drops(Mutex::default()));
        let waker = Waker::from(drops.clone());
        let mut peers = Vec::new();
        for seconds in [10, 10, 10, 11, 3600] {
            let link = Link::new(case, SECOND * seconds).await;
            assert!(case.way.poll(&waker, &link.stream).is_pending(), "there is nothing to do");
            let (stream, peer) = link.into_parts();
            peers.push(peer);
            drops.0.lock().expect("no panic").push(stream);
        }
        advance(2 * HOUR).await;
        assert!(drops.0.lock().expect("no panic").is_empty(), "the first wake dropped them all");
        drop(waker);
        assert_eq!(Arc::strong_count(&drops), 1, "and none kept its waker");
    });
}

// ---- many, and long ----

/// The one deadline that is forgotten among many is a connection that stays for ever.
#[test]
fn of_many_streams_each_times_out_at_its_own_time() {
    const STREAMS: u64 = 60;
    run_paused(|| async {
        let mut waiters = Vec::new();
        for i in 0..STREAMS {
            let (stream, peer) = pair_with_std();
            let (read, idle) = (Duration::from_millis(997 * (i % 31 + 20)), Duration::from_millis(887 * (i % 29 + 20)));
            stream.set_read_timeout(Some(read)).expect("a timeout");
            stream.set_idle_timeout(Some(idle)).expect("a timeout");
            let served = Duration::from_millis(151 * i);
            let start = Instant::now();
            waiters.push(spawn(async move {
                let serving = spawn(async move {
                    sleep(served).await;
                    (&peer).write_all(b"x").expect("the peer writes");
                    peer
                });
                let mut stream = stream;
                assert_eq!(stream.read(&mut [0; 8]).await.expect("a byte comes in time"), 1);
                let from = Instant::now();
                assert!(from >= start + served, "the byte came then");
                let _peer = serving.await;
                let result = stream.read(&mut [0; 8]).await;
                assert_timed_out(Poll::Ready(result.map(|_| 0)));
                assert_at(Instant::now(), from + read.min(idle));
            }));
        }
        for waiter in waiters {
            waiter.await.expect("a waiter");
        }
        assert_eq!(sources(), 0, "all are gone");
    });
}

/// A conversation that goes on is not to be cut off, however long it lasts.
#[test]
fn a_busy_exchange_that_lasts_longer_than_its_timeouts_never_times_out() {
    run_paused(|| async {
        let (client, server) = pair().await;
        for stream in [&client, &server] {
            set_all(stream, SECOND);
        }
        let echo = spawn(echo(server));
        let start = Instant::now();
        let mut client = client;
        for i in 0..60_u32 {
            client.write_all(&i.to_be_bytes()).await.expect("a write");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(u32::from_be_bytes(answer), i, "the answer is the question");
            sleep(700 * MS).await;
        }
        assert!(start.elapsed() > 40 * SECOND, "it lasted");
        drop(client);
        echo.await.expect("the server").expect("its reads");
    });
}

/// Bytes between two sockets take real time: a clock that jumps meanwhile would time out for nothing.
#[test]
fn under_a_paused_clock_an_exchange_does_not_time_out() {
    run_paused(|| async {
        let (mut client, server) = pair().await;
        for stream in [&client, &server] {
            set_all(stream, MS);
        }
        let start = Instant::now();
        let echo = spawn(echo(server));
        for i in 0..500_u32 {
            client.write_all(&i.to_be_bytes()).await.expect("a write");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(u32::from_be_bytes(answer), i, "the answer is the question");
        }
        drop(client);
        echo.await.expect("the server").expect("its reads");
        assert!(start.elapsed() <= MS + TICK, "the clock moved by {:?}", start.elapsed());
    });
}

fn set_all(stream: &TcpStream, duration: Duration) {
    for kind in [Kind::Read, Kind::Write, Kind::Idle] {
        kind.set(stream, Some(duration)).expect("a timeout");
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buf = [0; 64];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            n => stream.write_all(&buf[..n]).await?,
        }
    }
}

// ---- races ----

/// The moment is chosen: the bytes come just before the deadline, at it and just after, and each time nobody looks until then.
#[test]
fn bytes_around_the_deadline_are_read_and_wake_the_reader() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Read, way: Way::Read }, TEN).await;
        let (waker, wakes) = counting_waker();
        for round in 0..2000_u32 {
            let kind = if round % 2 == 0 { Kind::Read } else { Kind::Idle };
            set_only(&link.stream, kind, TEN);
            let start = Instant::now();
            assert!(poll_read(&waker, &link.stream, &mut [0; 8]).is_pending(), "there is nothing to read");
            let before = wakes.get();
            let offset = Duration::from_nanos(u64::from(round % 8) << 14);
            advance_to(start + TEN - (TICK / 2) + offset).await;
            (&link.peer).write_all(&round.to_be_bytes()).expect("the peer writes");
            if round % 3 == 0 {
                advance_to(start + TEN + TICK).await;
            }
            until(|| wakes.get() > before).await;
            let mut buf = [0; 8];
            loop {
                match poll_read(&waker, &link.stream, &mut buf) {
                    Poll::Ready(Ok(read)) => {
                        assert_eq!(buf[..read], round.to_be_bytes(), "round {round}");
                        break;
                    }
                    // The wake came from the clock, and the bytes are still on their way.
                    Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::TimedOut, "round {round}: {error}"),
                    Poll::Pending => yield_now().await,
                }
            }
        }
    });
}

fn set_only(stream: &TcpStream, only: Kind, duration: Duration) {
    for kind in [Kind::Read, Kind::Write, Kind::Idle] {
        kind.set(stream, (kind == only).then_some(duration)).expect("a setting");
    }
}

/// The same in real time, against a thread: each byte is sent at about the moment when the time is over.
#[test]
fn reads_that_time_out_as_their_bytes_arrive_lose_no_byte_and_no_wake_up() {
    for kind in [Kind::Read, Kind::Idle] {
        run(move || async move {
            let (mut reader, peer) = pair_with_std();
            peer.set_nodelay(true).expect("TCP_NODELAY");
            let sent = pattern(2000);
            let (timed_out, wanted) = mpsc::channel();
            let writer = std::thread::spawn({
                let sent = sent.clone();
                move || {
                    for (at, byte) in sent.iter().enumerate() {
                        (&peer).write_all(&[*byte]).expect("the peer writes");
                        // Every other byte comes after a timeout at the earliest, the rest when they can.
                        if at % 2 == 0 && wanted.recv().is_err() {
                            return;
                        }
                    }
                }
            });
            let (mut received, mut timeouts, mut buf) = (Vec::new(), 0_u64, [0; 16]);
            loop {
                kind.set(&reader, Some(Duration::from_micros(20 + 60 * (timeouts % 5)))).expect("a timeout");
                match reader.read(&mut buf).await {
                    Ok(0) => break,
                    Ok(read) => received.extend_from_slice(&buf[..read]),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::TimedOut, "{kind:?}: {error}");
                        timeouts += 1;
                        let _ = timed_out.send(());
                    }
                }
            }
            writer.join().expect("the writer");
            assert!(timeouts >= 1000, "some reads timed out");
            assert_eq!(received, sent, "{kind:?}: every byte came, once and in order");
        });
    }
}

/// The timer, the reactor and the reader on three threads: the reader is woken by both at once.
#[test]
fn timeouts_on_another_runtimes_thread_lose_no_byte_and_no_wake_up() {
    for kind in [Kind::Read, Kind::Idle] {
        within(move || {
            let home = Background::start();
            let (stream, mut peer) = pair_with_std();
            kind.set(&stream, Some(100 * Duration::from_nanos(1000))).expect("a timeout");
            let mut stream = home.run(async move {
                let _ = poll_once((&stream).read(&mut [0; 8])).await;
                stream
            });
            let (timed_out, wanted) = mpsc::channel();
            let sent = pattern(1000);
            let writer = std::thread::spawn({
                let sent = sent.clone();
                move || {
                    for byte in sent {
                        if wanted.recv().is_err() {
                            return;
                        }
                        peer.write_all(&[byte]).expect("the peer writes");
                    }
                }
            });
            let received = kittiwake::block_on(async {
                let (mut received, mut buf) = (Vec::new(), [0; 16]);
                loop {
                    match stream.read(&mut buf).await {
                        Ok(0) => return received,
                        Ok(read) => received.extend_from_slice(&buf[..read]),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::TimedOut, "{kind:?}: {error}");
                            let _ = timed_out.send(());
                        }
                    }
                }
            });
            writer.join().expect("the writer");
            assert_eq!(received, sent, "{kind:?}: every byte came, once and in order");
            home.stop();
        });
    }
}

/// A setting that meets the firing of the timer, or the first wait, must not lose the deadline between them.
#[test]
fn settings_from_another_thread_lose_no_timeout() {
    for case in CASES {
        run(move || async move {
            let link = Link::new(case, 200 * Duration::from_nanos(1000)).await;
            let done = Arc::new(AtomicBool::new(false));
            let setter = std::thread::spawn({
                let (stream, done) = (link.stream.clone(), done.clone());
                move || {
                    let mut round = 0;
                    while !done.load(Ordering::SeqCst) {
                        let setting = [Some(HOUR), None, Some(MS), None][round % 4];
                        case.set(&stream, setting).expect("a setting");
                        case.set(&stream, Some(Duration::from_nanos(1 + 1009 * (round as u64 % 300))))
                            .expect("a timeout");
                        std::thread::yield_now();
                        round += 1;
                    }
                }
            });
            for _ in 0..300 {
                link.time_out().await;
            }
            done.store(true, Ordering::SeqCst);
            setter.join().expect("the setter");
            link.time_out().await;
        });
    }
}

/// A setting in the middle of a poll must not be taken for time that has passed.
#[test]
fn settings_from_another_thread_fail_no_wait_early() {
    for case in CASES {
        run(move || async move {
            let link = Link::new(case, HOUR).await;
            let stream = link.stream.clone();
            let waiter = link.spawn();
            let setter = std::thread::spawn(move || {
                for round in 0..20_000 {
                    case.set(&stream, Some(HOUR * (1 + round % 2))).expect("a timeout");
                }
            });
            until(|| setter.is_finished() || waiter.is_finished()).await;
            link.serve_until(|| waiter.is_finished()).await;
            let result = waiter.await.expect("the waiter").0;
            assert!(result.is_ok(), "{case:?}: no hour has passed: {result:?}");
            setter.join().expect("the setter");
        });
    }
}

/// A stream that is dropped on one thread while its timer fires on another must be dropped once, and woken by nobody after.
#[test]
fn streams_dropped_on_another_thread_while_they_time_out_leave_nothing() {
    run(|| async {
        let (waker, wakes) = counting_waker();
        let (give, take) = mpsc::channel::<TcpStream>();
        let dropper = std::thread::spawn(move || take.into_iter().for_each(drop));
        for round in 0..600_u64 {
            let (stream, peer) = pair_with_std();
            will_reset(&peer);
            set_all(&stream, Duration::from_nanos(1 + 3001 * (round % 100)));
            let _ = poll_read(&waker, &stream, &mut [0; 8]);
            for _ in 0..round % 7 {
                yield_now().await;
            }
            give.send(stream).expect("the dropper");
        }
        drop(give);
        dropper.join().expect("the dropper");
        sleep(2 * MS).await;
        assert_eq!(sources(), 0, "no stream is watched");
        assert_eq!(Arc::strong_count(&wakes), 2, "no waker is kept");
    });
}

// ---- helpers ----

/// One of the three settings.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Write,
    Idle,
}

impl Kind {
    fn set(self, stream: &TcpStream, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Read => stream.set_read_timeout(timeout),
            Self::Write => stream.set_write_timeout(timeout),
            Self::Idle => stream.set_idle_timeout(timeout),
        }
    }

    fn get(self, stream: &TcpStream) -> Option<Duration> {
        match self {
            Self::Read => stream.read_timeout(),
            Self::Write => stream.write_timeout(),
            Self::Idle => stream.idle_timeout(),
        }
    }

    /// The word that tells it from the others in an error's text.
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Idle => "idle",
        }
    }
}

/// What waits on a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Read,
    Write,
}

impl Way {
    /// Polls an operation once. It is a large one: small reads and writes are in the tests of their own.
    fn poll(self, waker: &Waker, stream: &TcpStream) -> Poll<io::Result<usize>> {
        match self {
            Self::Read => poll_read(waker, stream, &mut [0; 64]),
            Self::Write => poll_write(waker, stream, &[0; 1 << 14]),
        }
    }

    async fn operate(self, stream: &TcpStream) -> io::Result<usize> {
        poll_fn(|cx| self.poll(cx.waker(), stream)).await
    }

    /// Runs an operation as a task, which tells when it ended.
    fn spawn(self, stream: &Arc<TcpStream>) -> Waiter {
        let stream = stream.clone();
        spawn(async move { (self.operate(&stream).await, Instant::now()) })
    }
}

/// An operation in a task, and when it ended.
type Waiter = JoinHandle<(io::Result<usize>, Instant)>;

/// A timeout, and what it bounds.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    way: Way,
}

const CASES: [Case; 4] = [
    Case { kind: Kind::Read, way: Way::Read },
    Case { kind: Kind::Write, way: Way::Write },
    Case { kind: Kind::Idle, way: Way::Read },
    Case { kind: Kind::Idle, way: Way::Write },
];

impl Case {
    fn set(self, stream: &TcpStream, timeout: Option<Duration>) -> io::Result<()> {
        self.kind.set(stream, timeout)
    }
}

/// Runs `test` for each of [`CASES`], each on a paused clock of its own.
#[track_caller]
fn in_each_case<F: Future<Output = ()> + 'static>(test: fn(Case) -> F) {
    for case in CASES {
        // Told when it fails.
        println!("{case:?}");
        run_paused(move || test(case));
    }
}

/// Shows what a setting does to who waits: `before` it waits for 5 s, then `setting` is set, and the wait ends at `end` from
/// its beginning, or never.
#[track_caller]
fn each_change(before: Option<Duration>, setting: Option<Duration>, end: Option<Duration>) {
    for case in CASES {
        println!("{case:?}");
        run_paused(move || async move {
            let link = Link::new(case, HOUR).await;
            case.set(&link.stream, before).expect("a setting");
            let start = Instant::now();
            let waiter = link.spawn();
            settle_without_time().await;
            advance_to(start + 5 * SECOND).await;
            case.set(&link.stream, setting).expect("a setting");
            settle_without_time().await;
            match end {
                Some(end) => {
                    fails_in_task_at(waiter, start + end).await;
                }
                None => {
                    advance(24 * HOUR).await;
                    settle_without_time().await;
                    assert!(!waiter.is_finished(), "it may wait for ever");
                    link.serve_until(|| waiter.is_finished()).await;
                    waiter.await.expect("the waiter").0.expect("and then it is served");
                }
            }
        });
    }
}

/// A stream on which there is nothing to do in one way, and its peer.
struct Link {
    case: Case,
    stream: Arc<TcpStream>,
    /// The same socket for std: for looking at it without our stream's knowledge.
    twin: std::net::TcpStream,
    peer: std::net::TcpStream,
    waker: Waker,
    wakes: Arc<Wakes>,
}

impl Link {
    async fn new(case: Case, timeout: Duration) -> Self {
        let (stream, peer) = pair_with_std();
        peer.set_nonblocking(true).expect("non-blocking");
        let (waker, wakes) = counting_waker();
        let link = Self { case, twin: twin(&stream), stream: Arc::new(stream), peer, waker, wakes };
        link.use_up().await;
        case.set(&link.stream, Some(timeout)).expect("a timeout");
        link
    }

    fn poll(&self) -> Poll<io::Result<usize>> {
        self.case.way.poll(&self.waker, &self.stream)
    }

    fn poll_vectored(&self) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(&self.waker);
        let mut stream = &*self.stream;
        match self.case.way {
            Way::Read => {
                let (mut head, mut tail) = ([0; 8], [0; 64]);
                let mut bufs = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)];
                Pin::new(&mut stream).poll_read_vectored(&mut cx, &mut bufs)
            }
            Way::Write => {
                let bufs = [IoSlice::new(&[0; 8]), IoSlice::new(&[0; 1 << 14])];
                Pin::new(&mut stream).poll_write_vectored(&mut cx, &bufs)
            }
        }
    }

    async fn operate(&self) -> io::Result<usize> {
        self.case.way.operate(&self.stream).await
    }

    fn spawn(&self) -> Waiter {
        self.case.way.spawn(&self.stream)
    }

    /// `try_read` or `try_write`.
    fn attempt(&self) -> io::Result<usize> {
        match self.case.way {
            Way::Read => self.stream.try_read(&mut [0; 64]),
            Way::Write => self.stream.try_write(&[0; 1 << 14]),
        }
    }

    #[track_caller]
    fn attempt_finds_nothing(&self) {
        let error = self.attempt().expect_err("there is nothing to do");
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    }

    /// Gives the stream something to do: bytes to read, or room to write. When it returns, the kernel has it.
    async fn serve(&self) {
        until_yielding(self.serving()).await;
    }

    /// As [`serve`](Link::serve), without giving way: the reactor of this thread has no turn.
    fn serve_at_once(&self) {
        let mut serving = self.serving();
        while !serving() {
            std::thread::yield_now();
        }
    }

    /// Serves somebody who takes it at once, so that only `done` tells.
    async fn serve_until(&self, done: impl Fn() -> bool) {
        let mut serving = self.serving();
        until_yielding(|| {
            serving();
            done()
        })
        .await;
    }

    /// Begins to serve; what is returned goes on with it, and tells when it is done.
    fn serving(&self) -> impl FnMut() -> bool + '_ {
        let mut buf = vec![0; 1 << 20];
        if self.case.way == Way::Read {
            (&self.peer).write_all(b"four").expect("the peer writes");
        }
        move || match self.case.way {
            Way::Read => self.twin.peek(&mut [0]).is_ok(),
            Way::Write => {
                while (&self.peer).read(&mut buf).is_ok_and(|read| read > 0) {}
                (&self.twin).write(&[0]).is_ok()
            }
        }
    }

    /// Serves the stream, and has the operation done as soon as the reactor has seen it.
    async fn is_served(&self) {
        self.serve().await;
        let mut poll = self.poll();
        while poll.is_pending() {
            yield_now().await;
            poll = self.poll();
        }
        assert_done(poll);
    }

    /// Leaves nothing to do: no room to write, until the peer reads. (Bytes were all taken by the operation.)
    async fn use_up(&self) {
        let mut calm = 0;
        while self.case.way == Way::Write && calm < 3 {
            calm += 1;
            while (&self.twin).write(&[0; 1 << 16]).is_ok() {
                calm = 0;
            }
            // What the peer sends acknowledges what has come. Else that is done when the peer's kernel finds the time, and
            // makes room later.
            if (&self.peer).write(b"x").is_ok() {
                until_yielding(|| (&self.twin).read(&mut [0; 64]).is_ok()).await;
            }
        }
    }

    /// Operates until the time is over, and tells how long the last wait was. Room may turn up late: what the kernel had
    /// underway when the buffers were full.
    async fn time_out(&self) -> Duration {
        loop {
            let start = std::time::Instant::now();
            match self.operate().await {
                Ok(_) => continue,
                Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{:?}: {error}", self.case),
            }
            return start.elapsed();
        }
    }

    /// Fails unless a wait times out at `deadline`, and tells the error's text.
    async fn fails_at(&self, deadline: Instant) -> String {
        assert!(self.poll().is_pending(), "there is nothing to do");
        advance_to(deadline - MS).await;
        match self.poll() {
            Poll::Pending => {}
            Poll::Ready(result) => panic!("{:?}: too early: {result:?}", self.case),
        }
        let before = self.wakes.get();
        advance_to(deadline + TICK).await;
        assert!(self.wakes.get() > before, "{:?}: nobody was woken when the time was over", self.case);
        assert_timed_out(self.poll())
    }

    /// Fails if a wait times out at all.
    async fn waits_for_ever(&self) {
        assert!(self.poll().is_pending(), "there is nothing to do");
        let before = self.wakes.get();
        advance(24 * HOUR).await;
        assert_eq!(self.wakes.get(), before, "{:?}: somebody was woken", self.case);
        assert!(self.poll().is_pending(), "{:?}: it may wait for ever", self.case);
    }

    /// The stream by itself, and its peer. All else is gone.
    fn into_parts(self) -> (TcpStream, std::net::TcpStream) {
        (Arc::into_inner(self.stream).expect("nobody else has it"), self.peer)
    }
}

/// The same socket for std.
fn twin(stream: &TcpStream) -> std::net::TcpStream {
    stream.as_fd().try_clone_to_owned().expect("a duplicate of the descriptor").into()
}

/// Gives way until `condition` holds, in any executor.
async fn until_yielding(mut condition: impl FnMut() -> bool) {
    while !condition() {
        future::yield_now().await;
    }
}

async fn advance_to(moment: Instant) {
    advance(moment - Instant::now()).await;
}

/// Fails unless the operation in this task times out at `deadline`. It must wait already.
async fn fails_in_task_at(waiter: Waiter, deadline: Instant) {
    advance_to(deadline - MS).await;
    settle_without_time().await;
    assert!(!waiter.is_finished(), "it ended too early: {:?}", waiter.await);
    advance_to(deadline + TICK).await;
    settle_without_time().await;
    assert!(waiter.is_finished(), "it was not woken when the time was over");
    let (result, at) = waiter.await.expect("the waiter");
    assert_timed_out(Poll::Ready(result));
    assert_at(at, deadline);
}

/// The text of the error.
#[track_caller]
fn assert_timed_out(poll: Poll<io::Result<usize>>) -> String {
    match poll {
        Poll::Ready(Err(error)) if error.kind() == ErrorKind::TimedOut => error.to_string(),
        other => panic!("the time is over, and this is {other:?}"),
    }
}

#[track_caller]
fn assert_done(poll: Poll<io::Result<usize>>) {
    assert!(matches!(poll, Poll::Ready(Ok(1..))), "it can be done, and this is {poll:?}");
}
