//! Timeouts of streams that several tasks, threads and runtimes use.

use std::future::{Future, poll_fn};
use std::io::{ErrorKind, Write};
use std::sync::{Arc, mpsc};
use std::task::Poll;

use futures_lite::future::{self, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::runtime::Runtime;
use kittiwake::spawn;
use kittiwake::time::{Duration, Instant, advance, sleep};

use super::*;

/// The halves of a stream set and return the stream's timeouts.
#[test]
fn halves_share_the_streams_timeouts() {
    let (mut stream, _peer) = pair_with_std();
    {
        let (read, write) = stream.split();
        read.set_read_timeout(Some(SECOND)).expect("a timeout");
        write.set_write_timeout(Some(TEN)).expect("a timeout");
        write.set_idle_timeout(Some(HOUR)).expect("a timeout");
        assert_eq!((read.read_timeout(), write.write_timeout()), (Some(SECOND), Some(TEN)));
        assert_eq!(
            (read.idle_timeout(), write.idle_timeout()),
            (Some(HOUR), Some(HOUR)),
            "the idle timeout belongs to the stream"
        );
        read.set_idle_timeout(Some(HOUR * 2)).expect("a timeout");
        assert_eq!(write.idle_timeout(), Some(HOUR * 2), "the idle timeout belongs to the stream");
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
    assert_eq!(
        (read.read_timeout(), write.write_timeout()),
        (Some(SECOND), Some(TEN)),
        "`into_split` must keep the timeouts"
    );
    read.set_read_timeout(None).expect("no timeout");
    write.set_write_timeout(Some(MS)).expect("a timeout");
    read.set_idle_timeout(Some(SECOND)).expect("a timeout");
    assert_eq!(
        (read.idle_timeout(), write.idle_timeout()),
        (Some(SECOND), Some(SECOND)),
        "the idle timeout belongs to the stream"
    );
    write.set_idle_timeout(Some(TEN)).expect("a timeout");
    let stream = read.reunite(write).expect("both halves are of one stream");
    assert_eq!(
        (stream.read_timeout(), stream.write_timeout(), stream.idle_timeout()),
        (None, Some(MS), Some(TEN)),
        "`reunite` must keep the timeouts of the halves"
    );
}

/// Two owned halves that wait in two tasks each time out at their own deadline.
#[test]
fn owned_halves_time_out_separately() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Write, direction: Direction::Write }, TEN).await;
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

        let mut stream = read.reunite(write).expect("both halves are of one stream");
        let start = Instant::now();
        assert_timed_out(Poll::Ready(stream.read(&mut [0; 8]).await));
        assert_at(Instant::now(), start + 7 * SECOND);
    });
}

/// The time runs on through `split`, `into_split` and `reunite`.
#[test]
fn split_and_reunite_keep_deadline() {
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
        let mut stream = write.reunite(read).expect("both halves are of one stream");
        assert_timed_out(Poll::Ready(stream.split().0.read(&mut [0; 8]).await));
        assert_at(Instant::now(), start + TEN);
    });
}

/// Two tasks that wait in one direction of a stream both time out. The first timeout must not consume the second
/// one's.
#[test]
fn both_readers_time_out() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        let first = link.spawn();
        settle().await;
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
        assert!(ends[1] <= ends[0] + TEN + TICK, "the second task waited for {:?} more", ends[1] - ends[0]);
    });
}

/// When one of two waiting tasks is served, the other one times out from then on.
#[test]
fn unserved_reader_times_out_later() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let (first, second) = (link.spawn(), link.spawn());
        settle().await;
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
            [(Ok(_), _), (Ok(_), _)] => {
                assert!(case.direction == Direction::Write, "the bytes were enough for one read only");
            }
            [(Ok(_), _), (Err(error), at)] => {
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{case:?}: {error}");
                assert_at(*at, served + TEN);
            }
            other => panic!("{case:?}: one of the tasks must be served: {other:?}"),
        }
    });
}

/// The deadline wakes the task that polled last.
#[test]
fn deadline_wakes_the_last_poller() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(5 * SECOND).await;
        let (waker, wakes) = counting_waker();
        assert!(case.direction.poll(&waker, &link.stream).is_pending(), "the operation must wait");
        advance_to(start + TEN - MS).await;
        let before = wakes.get();
        advance_to(start + TEN + TICK).await;
        assert_eq!(wakes.get(), before + 1, "the waker that polled last must be woken");
        assert_timed_out(case.direction.poll(&waker, &link.stream));
    });
}

/// The deadline moves with the stream to another task after the earlier tasks have ended.
#[test]
fn deadline_moves_to_another_task() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        for _ in 0..3 {
            let stream = link.stream.clone();
            spawn(async move {
                assert!(poll_once(case.direction.operate(&stream)).await.is_none(), "the operation must wait");
            })
            .await
            .expect("the task");
            advance(2 * SECOND).await;
        }
        let (result, at) = link.spawn().await.expect("the task");
        assert_timed_out(Poll::Ready(result));
        assert_at(at, start + TEN);
    });
}

/// A timeout that another thread sets holds for a waiting operation. The worker with the timer sleeps in the kernel
/// with no deadline or a distant one.
#[test]
fn other_thread_may_set_timeout() {
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
                assert!(took >= 5 * MS, "{case:?}: the timeout ended after {took:?}");
            });
        }
    }
}

/// The deadline moves with the stream to another runtime: the timer belongs to one thread, the waiting task to
/// another.
#[test]
fn deadline_moves_to_another_runtime() {
    for case in CASES {
        within(move || {
            let background = Background::start();
            let link = kittiwake::block_on(Link::new(case, 20 * MS));
            let start = std::time::Instant::now();
            let stream = link.stream.clone();
            background.run(async move {
                let _ = poll_once(case.direction.operate(&stream)).await;
            });
            kittiwake::block_on(async {
                link.time_out().await;
                assert!(start.elapsed() >= 20 * MS, "{case:?}: 20 ms ended after {:?}", start.elapsed());
                for _ in 0..2 {
                    let took = link.time_out().await;
                    assert!(took >= 20 * MS, "{case:?}: 20 ms ended after {took:?}");
                }
                link.serve().await;
                link.operate().await.expect("later operations succeed");
            });
            background.stop();
        });
    }
}

/// A stream whose first runtime has ended times out in the next one.
#[test]
fn timeout_works_in_next_runtime() {
    for case in CASES {
        within(move || {
            let runtime = Runtime::new().expect("a runtime");
            let link = runtime.block_on(async move {
                let link = Link::new(case, 5 * MS).await;
                link.time_out().await;
                link.begin_wait();
                link
            });
            drop(runtime);
            assert_eq!(case.kind.get(&link.stream), Some(5 * MS), "the timeout must stay");
            kittiwake::block_on(async {
                // The interrupted wait reports the end of the runtime first, or continues here.
                let first = link.operate().await.expect_err("the operation must wait").to_string();
                assert!(first.contains("has ended") || first.contains("timeout"), "{case:?}: {first}");
                for _ in 0..2 {
                    let took = link.time_out().await;
                    assert!(took >= 5 * MS, "{case:?}: 5 ms ended after {took:?}");
                }
                link.serve().await;
                link.operate().await.expect("later operations succeed");
            });
        });
    }
}

/// A wait under a timeout goes on when its runtime ends, by the clock that it began with.
#[test]
fn runtimes_end_keeps_wait() {
    in_each_case(|case| async move {
        let ended = std::thread::spawn(move || {
            let runtime = one_worker();
            runtime.block_on(async move {
                let link = Link::new(case, TEN).await;
                assert!(link.poll().is_pending(), "the operation must wait");
                link
            })
        });
        let link = ended.join().expect("the thread of the first runtime");
        assert!(link.wakes.get() > 0, "the end of the runtime must wake the waiting task");
        let start = Instant::now();
        // The wait has begun on the system's clock, which has gone on since this one was paused.
        let ahead = std::time::Instant::now().saturating_duration_since(start.into_std());
        advance(9 * SECOND).await;
        let result = poll_once(link.operate()).await;
        assert!(result.is_none(), "the operation must wait: {result:?}");
        let error = link.operate().await.expect_err("nothing comes");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        let waited = start.elapsed();
        assert!(waited >= 9 * SECOND && waited < TEN + SECOND + ahead, "the wait took {waited:?}");
        link.serve_and_complete().await;
    });
}

/// A stream that timed out before its runtime ended does not fail again, because nothing waits on it.
#[test]
fn timed_out_stream_survives_runtimes_end() {
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
        assert!(result.is_none(), "a new operation must wait: {result:?}");
        link.serve_and_complete().await;
    });
}

/// The reactor and the timer of a wait belong to a runtime that ends while a task of another runtime waits. The
/// operation fails or continues; it does not wait for a reactor that has ended.
#[test]
fn runtimes_end_reaches_foreign_waiter() {
    for case in CASES {
        within(move || {
            let background = Background::start();
            let link = kittiwake::block_on(Link::new(case, HOUR));
            let stream = link.stream.clone();
            background.run(async move {
                assert!(poll_once(case.direction.operate(&stream)).await.is_none(), "the operation must wait");
            });
            kittiwake::block_on(async {
                let waiter = link.spawn();
                settle().await;
                assert!(
                    !waiter.is_finished() && sources() == 0,
                    "{case:?}: the task must wait for the other runtime's reactor"
                );
                background.stop();
                until(|| waiter.is_finished() || sources() == 1).await;
                link.serve_until(|| waiter.is_finished()).await;
                if let Err(error) = waiter.await.expect("the waiter").0 {
                    assert!(error.to_string().contains("has ended"), "{case:?}: {error}");
                    link.serve().await;
                    link.operate().await.expect("later operations succeed");
                }
                link.use_up().await;
                case.set(&link.stream, Some(5 * MS)).expect("a timeout");
                let took = link.time_out().await;
                assert!(took >= 5 * MS, "{case:?}: 5 ms ended after {took:?}");
            });
        });
    }
}

/// The timeouts of a stream that outlives its runtime can be set and read, and the stream can be dropped.
#[test]
fn stream_may_outlive_its_runtime() {
    for case in CASES {
        within(move || {
            let (waker, wakes) = counting_waker();
            let runtime = Runtime::new().expect("a runtime");
            let link = runtime.block_on(async {
                let link = Link::new(case, HOUR).await;
                assert!(case.direction.poll(&waker, &link.stream).is_pending(), "the operation must wait");
                link
            });
            drop(runtime);
            assert!(wakes.get() > 0, "{case:?}: the end of the runtime must wake the waiting task");
            drop(waker);
            assert_eq!(Arc::strong_count(&wakes), 1, "{case:?}: the runtime must release the waker");
            case.set(&link.stream, Some(SECOND)).expect("a timeout");
            assert_eq!(case.kind.get(&link.stream), Some(SECOND));
            case.set(&link.stream, None).expect("no timeout");
            case.set(&link.stream, Some(MS)).expect("a timeout");
            drop(link);
        });
    }
}

/// An operation that need not wait works under a timeout outside a runtime, because it needs no timer.
#[test]
fn ready_operation_needs_no_runtime() {
    within(|| {
        let (mut stream, mut peer) = pair_with_std();
        for kind in [Kind::Read, Kind::Write, Kind::Idle] {
            kind.set(&stream, Some(SECOND)).expect("a timeout");
        }
        peer.write_all(b"four").expect("the peer writes");
        while stream.try_read(&mut []).is_err() || !has_input(&stream) {}
        assert_eq!(future::block_on(stream.read(&mut [0; 8])).expect("the bytes are there"), 4);
        assert_eq!(future::block_on(stream.write(b"five5")).expect("the send buffer has room"), 5);
        let error = future::block_on(stream.read(&mut [0; 8])).expect_err("the read must wait");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
    });
}

/// A wait that another executor refused starts no time.
#[test]
fn refused_wait_starts_no_time() {
    for case in CASES {
        within(move || {
            let background = Background::start();
            let limit = 5 * MS;
            let link = background.run(async move {
                let link = Link::new(case, HOUR).await;
                case.set(&link.stream, None).expect("no timeout");
                assert!(link.poll().is_pending(), "the operation must wait");
                case.set(&link.stream, Some(limit)).expect("a timeout");
                link
            });
            future::block_on(link.operate()).expect_err("no timer bounds this wait");
            kittiwake::block_on(async {
                sleep(2 * limit).await;
                let took = link.time_out().await;
                assert!(took >= limit, "{case:?}: {limit:?} ended after {took:?}");
            });
            background.stop();
        });
    }
}

/// A registered stream can be used in another executor when it is ready, whether or not the reactor has reported
/// that.
#[test]
fn ready_stream_works_without_runtime() {
    for case in CASES {
        within(move || {
            let background = Background::start();
            let link = background.run(async move {
                let link = Link::new(case, HOUR).await;
                assert!(link.poll().is_pending(), "the operation must wait");
                link
            });
            for _ in 0..if case.direction == Direction::Read { 50 } else { 5 } {
                case.set(&link.stream, Some(HOUR)).expect("a timeout");
                link.serve_at_once();
                let result = future::block_on(link.operate());
                assert!(result.is_ok(), "{case:?}: {result:?}, but the operation could proceed");
                future::block_on(link.use_up());
            }
            background.stop();
        });
    }
}

/// A runtime goes on to time a stream that waits in another executor. That executor has no timers, so a second timer
/// would have no worker.
#[test]
fn foreign_executor_times_out_again() {
    for case in CASES {
        within(move || {
            let background = Background::start();
            let link = background.run(async move {
                let link = Link::new(case, 5 * MS).await;
                link.begin_wait();
                link
            });
            for round in 1..=3 {
                let took = future::block_on(link.time_out());
                // The first wait began in the runtime.
                assert!(round == 1 || took >= 5 * MS, "{case:?}: 5 ms ended after {took:?}");
            }
            background.stop();
            let error = std::iter::repeat_with(|| future::block_on(link.operate())).find_map(Result::err);
            let error = error.expect("no reactor watches the stream");
            assert!(error.to_string().contains("no kittiwake runtime"), "{case:?}: {error}");
        });
    }
}

/// A registered stream that must wait under a timeout in another executor fails if it has never waited under one in
/// its runtime: no worker would time it.
#[test]
fn waiting_without_timer_fails() {
    for case in CASES {
        within(move || {
            let background = Background::start();
            let link = background.run(async move {
                let link = Link::new(case, HOUR).await;
                case.set(&link.stream, None).expect("no timeout");
                assert!(link.poll().is_pending(), "the operation must wait");
                case.set(&link.stream, Some(5 * MS)).expect("a timeout");
                link
            });
            for _ in 0..3 {
                let error = future::block_on(link.operate()).expect_err("the operation must wait");
                assert!(error.to_string().contains("no kittiwake runtime"), "{case:?}: {error}");
            }
            case.set(&link.stream, None).expect("no timeout");
            let stream = link.stream.clone();
            let waiter = std::thread::spawn(move || future::block_on(case.direction.operate(&stream)));
            future::block_on(link.serve_until(|| waiter.is_finished()));
            waiter.join().expect("the thread").expect("an operation without a timeout may wait in any executor");
            background.stop();
        });
    }
}
