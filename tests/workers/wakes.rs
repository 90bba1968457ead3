//! Wakes and aborts between workers.

use std::collections::HashSet;
use std::future::{pending, poll_fn, ready};
use std::io::{Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use crate::support::*;
use crate::{SEVERAL, assert_cancelled};
use futures_lite::future;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::spawn_local;
use kittiwake::task::{AbortHandle, JoinHandle, yield_now};
use kittiwake::time::{Duration, sleep, timeout};

/// Tasks on different workers pass messages around a ring while a thread causes spurious wakes. One lost wake stops
/// the ring.
#[test]
fn wake_storm_loses_no_wake() {
    const TASKS: usize = 16;
    const MESSAGES: usize = 1_500;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let ring: Arc<Vec<Mailbox>> = Arc::new((0..TASKS).map(|_| Mailbox::default()).collect());
            let tasks: Vec<_> = (0..TASKS)
                .map(|place| {
                    let ring = ring.clone();
                    runtime.handle().spawn(async move {
                        for _ in 0..MESSAGES {
                            ring[place].take().await;
                            ring[(place + 1) % TASKS].put();
                            if place == 0 {
                                progress();
                            }
                        }
                    })
                })
                .collect();
            let stop = Arc::new(AtomicBool::new(false));
            let storm = thread::spawn({
                let (ring, stop) = (ring.clone(), stop.clone());
                move || {
                    while !stop.load(SeqCst) {
                        ring.iter().for_each(Mailbox::disturb);
                        thread::yield_now();
                    }
                }
            });
            for _ in 0..3 {
                ring[0].put();
            }
            for task in tasks {
                future::block_on(task).expect("the task passes on every message");
            }
            stop.store(true, SeqCst);
            storm.join().unwrap();
        }
    });
}

/// A wake that arrives while a worker goes to sleep is not lost. The tasks are local, so no other worker would run
/// them.
#[test]
fn sleeping_worker_loses_no_wake() {
    const TIMES: usize = 2_000;
    within(|| {
        let runtime = workers(2);
        let boxes: Arc<[Mailbox; 3]> = Arc::default();
        let ends = on_each_worker(runtime.handle(), 2, {
            let boxes = boxes.clone();
            move |place| {
                let boxes = boxes.clone();
                spawn_local(async move {
                    for _ in 0..TIMES {
                        boxes[place].take().await;
                        boxes[place + 1].put();
                    }
                })
            }
        });
        // The message goes from here to one worker, from there to the other, and back.
        for _ in 0..TIMES {
            boxes[0].put();
            future::block_on(boxes[2].take());
            progress();
        }
        ends.into_iter().for_each(|end| future::block_on(end).expect("the task ends"));
    });
}

/// A channel's wake that went to the wrong worker, or to none, would lose or double a value.
#[test]
fn channels_and_locks_work_between_workers() {
    const EACH: usize = 400;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let (send, receive) = async_channel::bounded::<usize>(3);
            let total = Arc::new(async_lock::Mutex::new(0));
            let permits = Arc::new(async_lock::Semaphore::new(2));
            let inside = Arc::new(AtomicUsize::new(0));
            let mut tasks = Vec::new();
            for task in 0..8 {
                let (receive, total, permits, inside) =
                    (receive.clone(), total.clone(), permits.clone(), inside.clone());
                tasks.push(runtime.handle().spawn(async move {
                    while let Ok(number) = receive.recv().await {
                        let permit = permits.acquire().await;
                        assert!(inside.fetch_add(1, SeqCst) < 2, "the semaphore has two permits");
                        let mut total = total.lock().await;
                        let before = *total;
                        yield_now().await;
                        *total = before + number;
                        inside.fetch_sub(1, SeqCst);
                        drop((total, permit));
                    }
                }));
                let send = send.clone();
                tasks.push(runtime.handle().spawn(async move {
                    for number in 0..EACH {
                        send.send(number * (task + 1)).await.expect("the channel has receivers");
                    }
                }));
            }
            drop((send, receive));
            tasks.into_iter().for_each(|task| future::block_on(task).expect("the task ends"));
            let expected = (1..=8).sum::<usize>() * (0..EACH).sum::<usize>();
            assert_eq!(*total.lock_blocking(), expected, "each number must be added once");
        }
    });
}

/// A task that moves between workers loses no byte. The socket and the timer stay with the worker on which the task
/// first waited for them.
#[test]
fn moving_task_loses_no_byte() {
    const PIECES: usize = 300;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let echoes = WorkerEchoes::start(runtime.handle(), count);
            let (mut stream, mut peer) = pair_with_std();
            let task = runtime.handle().spawn(async move {
                let (mut buf, mut threads) = ([0; 512], HashSet::new());
                for turn in 0.. {
                    echoes.move_to(turn).await;
                    threads.insert(here());
                    // Some reads time out and begin again on another worker.
                    match timeout(Duration::from_micros(turn as u64 % 7 * 50), stream.read(&mut buf)).await {
                        Err(_) => continue,
                        Ok(read) => match read.expect("read") {
                            0 => break,
                            read => {
                                echoes.move_to(turn + 1).await;
                                stream.write_all(&buf[..read]).await.expect("write");
                            }
                        },
                    }
                }
                threads.len()
            });
            let bytes = pattern(PIECES * 300);
            for (i, piece) in bytes.chunks(300).enumerate() {
                peer.write_all(&piece[..i % 300]).expect("write");
                peer.write_all(&piece[i % 300..]).expect("write");
                let mut back = [0; 300];
                peer.read_exact(&mut back).expect("read");
                assert!(back == piece, "piece {i} must return unchanged");
            }
            peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
            let threads = future::block_on(task).expect("the task ends");
            assert!(threads > 1, "the task has not moved, so this test proves nothing");
        }
    });
}

/// A task that was aborted before its first poll is dropped and never polled.
#[test]
fn abort_before_first_poll_prevents_it() {
    within(|| {
        let runtime = workers(2);
        for _ in 0..20 {
            let blocked = block_workers(runtime.handle(), 2);
            let (polls, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    let (polls, counted) = (polls.clone(), Counted(drops.clone()));
                    runtime.handle().spawn(async move {
                        let _counted = counted;
                        polls.fetch_add(1, SeqCst);
                    })
                })
                .collect();
            tasks.iter().for_each(JoinHandle::abort);
            assert_eq!(drops.load(SeqCst), 0, "a worker must drop the future, not the aborting thread");
            drop(blocked);
            tasks.into_iter().for_each(assert_cancelled);
            assert_eq!(
                (polls.load(SeqCst), drops.load(SeqCst)),
                (0, 20),
                "no future may be polled, and each must be dropped once"
            );
        }
    });
}

/// An abort that arrives during a poll on another worker takes effect after that poll.
#[test]
fn abort_takes_effect_after_poll() {
    within(|| {
        let runtime = workers(2);
        let handle = runtime.handle();
        for round in 0..100 {
            let (ends, from_worker) = (round % 2 == 0, round % 4 < 2);
            let (drops, (notify, notified), (open, closed)) =
                (Arc::new(AtomicUsize::new(0)), mpsc::channel(), mpsc::channel::<()>());
            let counted = Counted(drops.clone());
            let task = handle.spawn(async move {
                let _counted = counted;
                notify.send(()).unwrap();
                let _ = closed.recv();
                if !ends {
                    pending::<()>().await;
                }
            });
            notified.recv().expect("the task runs");
            if from_worker {
                let abort = task.abort_handle();
                future::block_on(handle.spawn(async move { abort.abort() }))
                    .expect("the other worker runs the aborting task");
            } else {
                task.abort();
            }
            assert!(!task.is_finished() && drops.load(SeqCst) == 0, "the task must still run");
            drop(open);
            match future::block_on(task) {
                Ok(()) => assert!(ends, "a task that never ends has an output"),
                Err(error) => assert!(
                    error.is_cancelled() && !ends,
                    "a task that ended before its abort took effect was cancelled: {error}"
                ),
            }
            assert_eq!(drops.load(SeqCst), 1);
        }
    });
}

/// An abort wakes a task that waits. Nothing else would wake it.
#[test]
fn abort_ends_waiting_task() {
    within(|| {
        let runtime = workers(2);
        let handle = runtime.handle();
        for round in 0..50 {
            let drops = Arc::new(AtomicUsize::new(0));
            let (begin, begun) = async_channel::unbounded();
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    let (begin, counted) = (begin.clone(), Counted(drops.clone()));
                    handle.spawn(async move {
                        begin.try_send(()).unwrap();
                        hold(counted).await;
                    })
                })
                .collect();
            for _ in 0..20 {
                begun.recv_blocking().expect("the task begins");
            }
            if round % 2 == 0 {
                let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
                drop(handle.spawn(async move { aborts.iter().for_each(AbortHandle::abort) }));
            } else {
                tasks.iter().for_each(JoinHandle::abort);
            }
            tasks.into_iter().for_each(assert_cancelled);
            assert_eq!(drops.load(SeqCst), 20, "each future must be dropped once");
        }
    });
}

/// A task that is aborted while it is in a queue is neither polled from there nor queued a second time.
#[test]
fn abort_of_queued_task_prevents_poll() {
    within(|| {
        let runtime = workers(2);
        for _ in 0..20 {
            let (polls, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let wakers: Arc<Mutex<Vec<Waker>>> = Arc::default();
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    let (polls, counted, wakers) = (polls.clone(), Counted(drops.clone()), wakers.clone());
                    runtime.handle().spawn(poll_fn(move |cx| {
                        let _ = &counted;
                        wakers.lock().unwrap().push(cx.waker().clone());
                        polls.fetch_add(1, SeqCst);
                        Poll::<()>::Pending
                    }))
                })
                .collect();
            runtime.block_on(until(|| polls.load(SeqCst) == 20));
            // When both workers are blocked, no task is in the middle of a poll.
            let blocked = block_workers(runtime.handle(), 2);
            wakers.lock().unwrap().drain(..).for_each(Waker::wake);
            tasks.iter().for_each(JoinHandle::abort);
            drop(blocked);
            tasks.into_iter().for_each(assert_cancelled);
            assert_eq!(
                (polls.load(SeqCst), drops.load(SeqCst)),
                (20, 20),
                "each future must be polled once and dropped once"
            );
        }
    });
}

/// An abort after the end of a task leaves its output to its handle.
#[test]
fn abort_after_end_keeps_output() {
    within(|| {
        let runtime = workers(2);
        for _ in 0..50 {
            let task = runtime.handle().spawn(ready(7));
            runtime.block_on(until(|| task.is_finished()));
            task.abort();
            let abort = task.abort_handle();
            future::block_on(runtime.handle().spawn(async move { abort.abort() })).expect("the aborting task ends");
            assert_eq!(future::block_on(task).expect("the task's output"), 7);
        }
    });
}

/// Aborts race with polls, wakes, timers and other aborts. A lost abort would hang; the counters show a future that
/// was dropped twice, or a task that ended and was reported as cancelled.
#[test]
fn racing_aborts_are_exact() {
    const TASKS: usize = 3_000;
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            let (drops, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let tasks: Vec<_> = (0..TASKS)
                .map(|task| {
                    let (counted, ends) = (Counted(drops.clone()), ends.clone());
                    runtime.handle().spawn(async move {
                        let _counted = counted;
                        for turn in 0..task % 9 {
                            if turn == 4 {
                                sleep(Duration::from_micros(task as u64 % 300)).await;
                            }
                            yield_now().await;
                        }
                        ends.fetch_add(1, SeqCst);
                    })
                })
                .collect();
            // Two aborters are tasks and one is a thread, and they abort overlapping sets of tasks.
            let aborts: Arc<Vec<_>> = Arc::new(tasks.iter().map(JoinHandle::abort_handle).collect());
            let aborters: Vec<_> = (0..2)
                .map(|aborter| {
                    let aborts = aborts.clone();
                    runtime.handle().spawn(async move {
                        for (task, abort) in aborts.iter().enumerate() {
                            if (task + aborter) % 3 == 0 {
                                abort.abort();
                            }
                            if task % 20 == 0 {
                                yield_now().await;
                            }
                        }
                    })
                })
                .collect();
            aborts.iter().rev().step_by(3).for_each(AbortHandle::abort);
            aborters.into_iter().for_each(|aborter| future::block_on(aborter).expect("the aborting task ends"));
            let mut outputs = 0;
            for task in tasks {
                match future::block_on(task) {
                    Ok(()) => outputs += 1,
                    Err(error) => assert!(error.is_cancelled(), "{error}"),
                }
            }
            assert_eq!(
                drops.load(SeqCst),
                TASKS,
                "each future must be dropped once, before its handle reports the end"
            );
            assert_eq!(outputs, ends.load(SeqCst), "exactly the tasks that ended must have an output");
            assert_eq!(runtime.handle().metrics().tasks_alive(), 0);
        }
    });
}

/// Counts the messages for one task. Any thread may put one in.
#[derive(Default)]
struct Mailbox {
    messages: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Mailbox {
    /// Waits for a message and takes it.
    async fn take(&self) {
        poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            match self.messages.fetch_update(SeqCst, SeqCst, |messages| messages.checked_sub(1)) {
                Ok(_) => Poll::Ready(()),
                Err(_) => Poll::Pending,
            }
        })
        .await;
    }

    fn put(&self) {
        self.messages.fetch_add(1, SeqCst);
        // This is the only wake for this message.
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes the task without a message.
    fn disturb(&self) {
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
    }
}
