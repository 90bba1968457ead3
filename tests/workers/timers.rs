//! Timers on tasks that move between workers.

use std::future::pending;
use std::io::{ErrorKind, Write};
use std::sync::mpsc;
use std::thread;

use crate::support::*;
use crate::{HOUR, MS, SEVERAL};
use futures_lite::future::{self, poll_once};
use futures_util::future::join_all;
use kittiwake::io::AsyncReadExt;
use kittiwake::time::{Duration, Instant, Sleep, interval, sleep, timeout};
use kittiwake::{spawn, spawn_local};

/// A sleep is never early. A timer in another worker's wheel, or one that reads a stale clock, would be.
#[test]
fn sleeps_are_never_early() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let sleeps: Vec<_> = on_each_worker(runtime.handle(), count, |worker| {
                let sleeps = (0..60_u64).map(|i| {
                    spawn(async move {
                        let wait = Duration::from_micros((i * 7919 + worker as u64 * 131) % 8_000 + 1);
                        let (begin, begin_of_std) = (Instant::now(), std::time::Instant::now());
                        let mut sleep = sleep(wait);
                        assert!(sleep.deadline() >= begin + wait);
                        (&mut sleep).await;
                        assert!(Instant::now() >= sleep.deadline(), "a sleep of {wait:?} is early");
                        assert!(begin_of_std.elapsed() >= wait, "a sleep of {wait:?} is early");
                    })
                });
                sleeps.collect::<Vec<_>>()
            });
            sleeps
                .into_iter()
                .flatten()
                .for_each(|sleep| future::block_on(sleep).expect("the task sees no early timer"));
        }
    });
}

/// A sleep whose timer is on another worker can be reset. That worker may be asleep for an hour and must learn that
/// the hour is now a millisecond.
#[test]
fn moved_sleep_can_be_reset() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            for round in 0..10 {
                let (hand, handed) = async_channel::bounded::<Sleep>(count);
                // Each worker arms one sleep, which belongs to it from then on. The tasks are local, so no other
                // worker steals them.
                on_each_worker(runtime.handle(), count, move |_| {
                    let hand = hand.clone();
                    drop(spawn_local(async move {
                        let mut sleep = sleep(HOUR);
                        assert!(poll_once(&mut sleep).await.is_none(), "the sleep has an hour left");
                        hand.send(sleep).await.unwrap();
                    }));
                });
                let ends = on_each_worker(runtime.handle(), count, move |_| {
                    let handed = handed.clone();
                    spawn_local(async move {
                        let mut sleep = handed.recv().await.expect("each worker gets one sleep");
                        let deadline = Instant::now() + Duration::from_micros(200 * round);
                        sleep.reset(deadline);
                        if round % 2 == 0 {
                            // The deadline moves away and back while the timer is armed.
                            let _ = poll_once(&mut sleep).await;
                            sleep.reset(deadline + HOUR);
                            assert!(poll_once(&mut sleep).await.is_none(), "the sleep is an hour early");
                            sleep.reset(deadline);
                        }
                        sleep.await;
                        assert!(Instant::now() >= deadline, "a sleep that was reset is early");
                    })
                });
                ends.into_iter().for_each(|end| future::block_on(end).expect("the task sees no early timer"));
            }
        }
    });
}

/// An interval and timeouts keep their times on tasks that move between workers.
#[test]
fn moving_tasks_keep_interval_and_timeouts() {
    within(|| {
        let runtime = workers(2);
        let echoes = WorkerEchoes::start(runtime.handle(), 2);
        let tasks: Vec<_> = (0..10)
            .map(|task| {
                let echoes = echoes.clone();
                runtime.handle().spawn(async move {
                    let start = Instant::now();
                    let mut interval = interval(MS);
                    for tick in 0..20 {
                        echoes.move_to(task + tick as usize).await;
                        let due = interval.tick().await;
                        assert!(Instant::now() >= due && due >= start + MS * tick, "tick {tick} is early");
                    }
                    for turn in 0..5 {
                        echoes.move_to(task + turn).await;
                        let begin = Instant::now();
                        timeout(MS, pending::<()>()).await.expect_err("the timeout ends");
                        assert!(begin.elapsed() >= MS, "a timeout is early");
                        timeout(HOUR, echoes.move_to(task + turn + 1)).await.expect("the timeout has not ended");
                    }
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| future::block_on(task).expect("the task sees no early timer"));
    });
}

/// A stream's timeout reaches its task, although the timer, the socket and the task are on three different workers.
#[test]
fn stream_timeout_reaches_moved_task() {
    const WAIT: Duration = Duration::from_millis(2);
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let echoes = WorkerEchoes::start(runtime.handle(), count);
            let (mut stream, mut peer) = pair_with_std();
            let (ask, asked) = mpsc::channel();
            let task = runtime.handle().spawn(async move {
                stream.set_read_timeout(Some(WAIT)).expect("a timeout");
                for turn in 0..30 {
                    echoes.move_to(turn).await;
                    let begin = Instant::now();
                    let mut byte = [0];
                    let error = stream.read(&mut byte).await.expect_err("nothing was sent");
                    assert_eq!(error.kind(), ErrorKind::TimedOut);
                    assert!(begin.elapsed() >= WAIT, "the timeout is early");
                    echoes.move_to(turn / 2).await;
                    ask.send(turn).unwrap();
                    // The timeout may end first on a slow machine. No byte is lost then.
                    while let Err(error) = stream.read_exact(&mut byte).await {
                        assert_eq!(error.kind(), ErrorKind::TimedOut);
                    }
                    assert_eq!(byte, [turn as u8]);
                }
            });
            while let Ok(turn) = asked.recv() {
                peer.write_all(&[turn as u8]).expect("write");
            }
            future::block_on(task).expect("the task sees no early timer");
        }
    });
}

/// A sleep of a `block_on` call that is armed while the runtime ends still ends. The timers of a worker that has ended
/// never fire.
#[test]
fn sleep_outlasts_ending_worker() {
    within(|| {
        for _ in 0..30 {
            let runtime = workers(1);
            let handle = runtime.handle().clone();
            let (begin, begun) = mpsc::channel();
            let ending = thread::spawn(move || {
                let _ = begun.recv();
                drop(runtime);
            });
            handle.block_on(async {
                begin.send(()).expect("the thread that ends the runtime");
                let mut sleeps = Vec::new();
                // The worker ends between two of these sleeps, or in the midst of one.
                while !ending.is_finished() {
                    let mut sleep = sleep(20 * MS);
                    if poll_once(&mut sleep).await.is_none() {
                        sleeps.push(sleep);
                    }
                }
                // It polls only the sleeps that are woken: each has to fire.
                join_all(sleeps).await;
            });
            ending.join().expect("the thread that ends the runtime");
            progress();
        }
    });
}
