//! Several workers: who runs what, where tasks end, and how a runtime of several threads does.
//!
//! A worker is made to do nothing by a task that blocks on a channel of std's, which the test opens when it has seen what has
//! to happen meanwhile. So nothing here goes by the clock, and what does not happen is a hang that [`within`] ends.

// A call hands its tasks to the next one in many of these tests.
#![allow(clippy::async_yields_async)]

mod support;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::future::{Future, pending, poll_fn, ready};
use std::io::{ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};

use futures_lite::future::{self, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::{AbortHandle, JoinHandle, yield_now};
use kittiwake::time::{Duration, Instant, Sleep, interval, pause, sleep, sleep_until, timeout, timeout_at};
use kittiwake::{block_on, spawn, spawn_blocking, spawn_local};
use support::*;

/// How many workers there may be. More than there are cores, too.
const SEVERAL: [usize; 3] = [2, 3, 4];

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

// ---- settings ----

/// Without it a runtime on which no task ever runs, or one that takes all of the system's threads.
#[test]
fn a_number_of_workers_that_makes_no_sense_is_refused() {
    let said = panic_of(|| drop(Builder::new().workers(0)));
    assert!(said.contains("Builder::workers") && said.contains("use 1 or more"), "{said}");
    let said = panic_of(|| drop(Builder::new().workers(5000)));
    assert!(said.contains("Builder::workers") && said.contains("5000 are more than 4096"), "{said}");
    drop(Builder::new().workers(4096));
}

/// Without it cores are idle, or more is used than was allowed.
#[test]
fn there_are_as_many_workers_as_were_asked_for_and_each_runs_tasks() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            assert_eq!(runtime.handle().metrics().workers().len(), count);
            let threads: HashSet<_> = on_each_worker(runtime.handle(), count, |_| here()).into_iter().collect();
            assert_eq!(threads.len(), count, "each of {count} workers has a thread");
            assert!(!threads.contains(&here()));
            // With all of them stuck there is nobody more.
            let stuck = stick(runtime.handle(), count);
            let late = runtime.handle().spawn(async {});
            runtime.block_on(settle());
            assert!(!late.is_finished(), "{count} workers were asked for, and one more runs tasks");
            drop(stuck);
            future::block_on(late).expect("now it runs");
        }
    });
}

/// Without it nobody knows a runtime's threads in a debugger, or in what top shows.
#[test]
#[cfg(target_os = "linux")]
fn a_workers_thread_has_the_builders_name_and_a_number() {
    within(|| {
        let runtime = Builder::new().workers(3).thread_name("puffin").build().expect("a runtime");
        on_each_worker(runtime.handle(), 3, |_| ());
        assert_eq!(threads_called("puffin-"), ["puffin-0", "puffin-1", "puffin-2"]);
        drop(runtime);
        let runtime = workers(2);
        let mut names = on_each_worker(runtime.handle(), 2, |_| thread::current().name().expect("a name").to_owned());
        names.sort_unstable();
        assert_eq!(names, ["kittiwake-0", "kittiwake-1"], "without a name");
    });
}

/// Without it the panic comes from the midst of std, when the thread is made.
#[test]
fn a_thread_name_with_a_nul_is_refused() {
    let said = panic_of(|| drop(Builder::new().thread_name("puf\0fin")));
    assert!(said.contains("Builder::thread_name") && said.contains("NUL"), "{said}");
}

/// Without it a clock that stands still on one worker and runs on another.
#[test]
fn a_clock_that_stands_still_is_for_one_worker() {
    within(|| {
        for builder in [Builder::new().workers(2).start_paused(true), Builder::new().start_paused(true).workers(2)] {
            let error = builder.build().expect_err("a clock for two");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("Builder::workers(1)"), "it must say what to do: {error}");
        }
        let runtime = Builder::new().start_paused(true).build().expect("a runtime");
        assert_eq!(runtime.handle().metrics().workers().len(), 1, "alone it is for one worker");
        runtime.block_on(sleep(HOUR));
    });
}

/// Without it a test that pauses the clock of several workers waits for an hour that does not pass.
#[test]
fn to_pause_the_clock_of_several_workers_panics_with_what_to_do_instead() {
    within(|| {
        let runtime = workers(2);
        let on_a_worker = future::block_on(runtime.handle().spawn(async { panic_of(pause) })).expect("it is caught");
        let in_a_call = runtime.block_on(async { panic_of(pause) });
        for said in [on_a_worker, in_a_call] {
            assert!(said.contains("time::pause") && said.contains("Builder::workers(1)"), "{said}");
        }
        // The clock runs all the same.
        runtime.block_on(sleep(MS));
        future::block_on(runtime.handle().spawn(sleep(MS))).expect("it sleeps");
    });
}

// ---- who runs what ----

/// Without it one core works and the others look on.
#[test]
fn a_burst_of_spawns_from_one_task_is_shared() {
    const BURST: usize = 10_000;
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            let ran_on: Arc<Mutex<HashMap<ThreadId, usize>>> = Arc::default();
            let burst = runtime.handle().spawn({
                let ran_on = ran_on.clone();
                async move {
                    let tasks: Vec<_> = (0..BURST)
                        .map(|_| {
                            let ran_on = ran_on.clone();
                            spawn(async move {
                                spin(Duration::from_micros(20));
                                *ran_on.lock().unwrap().entry(here()).or_default() += 1;
                            })
                        })
                        .collect();
                    for task in tasks {
                        task.await.expect("it runs");
                    }
                }
            });
            future::block_on(burst).expect("it ends");
            let ran_on = ran_on.lock().unwrap();
            assert_eq!(ran_on.values().sum::<usize>(), BURST, "each runs once");
            // A tenth of what each would have if all were given the same time by a machine that is busy with other things.
            let least = BURST / count / 10;
            assert!(
                ran_on.len() == count && ran_on.values().all(|ran| *ran > least),
                "each of {count} workers must have a share of the {BURST}: {ran_on:?}"
            );
        }
    });
}

/// Without it one bad task stops whatever it had begun.
#[test]
fn what_a_task_spawned_before_it_blocks_runs_elsewhere() {
    on_runtimes_that_are_idle_or_busy(|runtime, _| {
        let (open, closed) = mpsc::channel::<()>();
        let (ran, runs) = mpsc::channel();
        let bad = runtime.handle().spawn(async move {
            for _ in 0..100 {
                let ran = ran.clone();
                drop(spawn(async move { ran.send(()).unwrap() }));
            }
            let _ = closed.recv();
        });
        all_run_while_it_blocks(&runs, bad, open);
    });
}

/// Without it one bad task stops those that it had woken, or that were woken on its worker before it came.
#[test]
fn what_a_task_woke_before_it_blocks_runs_elsewhere() {
    on_runtimes_that_are_idle_or_busy(|runtime, _| {
        let (wake, woken) = async_channel::bounded::<()>(1);
        let (ran, runs) = mpsc::channel();
        let begun = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let (woken, ran, begun) = (woken.clone(), ran.clone(), begun.clone());
            drop(runtime.handle().spawn(async move {
                begun.fetch_add(1, SeqCst);
                woken.recv().await.expect_err("the channel is closed");
                ran.send(()).unwrap();
            }));
        }
        runtime.block_on(until(|| begun.load(SeqCst) == 100));
        let (open, closed) = mpsc::channel::<()>();
        let bad = runtime.handle().spawn(async move {
            drop(wake);
            let _ = closed.recv();
        });
        all_run_while_it_blocks(&runs, bad, open);
    });
}

/// Without it a wake from outside goes to where its task last ran, and stays there.
#[test]
fn what_is_woken_from_outside_while_its_worker_is_stuck_runs_elsewhere() {
    on_runtimes_that_are_idle_or_busy(|runtime, count| {
        let others = stick(runtime.handle(), count - 1);
        let (wake, woken) = async_channel::bounded::<()>(1);
        let ((ran, runs), (tell, told)) = (mpsc::channel(), mpsc::channel());
        let (open, closed) = mpsc::channel::<()>();
        // There is one worker left for this task and its children.
        let bad = runtime.handle().spawn(async move {
            let begun = Arc::new(AtomicUsize::new(0));
            for _ in 0..100 {
                let (ran, woken, begun) = (ran.clone(), woken.clone(), begun.clone());
                drop(spawn(async move {
                    begun.fetch_add(1, SeqCst);
                    woken.recv().await.expect_err("the channel is closed");
                    ran.send(()).unwrap();
                }));
            }
            until(|| begun.load(SeqCst) == 100).await;
            tell.send(()).unwrap();
            let _ = closed.recv();
        });
        told.recv().expect("they wait");
        drop(others);
        drop(wake);
        all_run_while_it_blocks(&runs, bad, open);
    });
}

/// Without it a local task in the queue hides what stands behind it.
#[test]
fn local_tasks_in_the_queue_of_a_stuck_worker_hold_nobody_up() {
    on_runtimes_that_are_idle_or_busy(|runtime, _| {
        let (open, closed) = mpsc::channel::<()>();
        let ((ran, runs), (ran_local, local_runs)) = (mpsc::channel(), mpsc::channel());
        let bad = runtime.handle().spawn(async move {
            for child in 0..60 {
                if child % 2 == 0 {
                    let ran_local = ran_local.clone();
                    drop(spawn_local(async move { ran_local.send(here()).unwrap() }));
                } else {
                    let ran = ran.clone();
                    drop(spawn(async move { ran.send(()).unwrap() }));
                }
            }
            let _ = closed.recv();
            here()
        });
        for _ in 0..30 {
            runs.recv().expect("another worker runs it");
        }
        assert!(local_runs.try_recv().is_err(), "a local task ran though its worker is stuck");
        drop(open);
        let there = future::block_on(bad).expect("it ends");
        for _ in 0..30 {
            assert_eq!(local_runs.recv().expect("its worker comes to it"), there, "a local task ran elsewhere");
        }
    });
}

/// Without it what is spawned from outside may be given to a worker that is stuck, and stay there.
#[test]
fn what_is_spawned_from_outside_runs_beside_workers_that_are_stuck() {
    on_runtimes_that_are_idle_or_busy(|runtime, count| {
        let stuck = stick(runtime.handle(), count - 1);
        let tasks: Vec<_> = (0..100).map(|i| runtime.handle().spawn(ready(i))).collect();
        let sum: usize = tasks.into_iter().map(|task| future::block_on(task).expect("it runs")).sum();
        assert_eq!(sum, 4950);
        drop(stuck);
    });
}

/// Without it one bad task stops all whose events were reported together with its own.
#[test]
fn what_was_woken_by_the_same_look_at_the_kernel_runs_elsewhere() {
    const SOCKETS: usize = 40;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let others = stick(runtime.handle(), count - 1);
            let ((open, closed), (first, is_first)) = (mpsc::channel::<()>(), mpsc::channel());
            // Whoever runs first takes it, and blocks.
            let bad = Arc::new(Mutex::new(Some((closed, first))));
            let (ran, runs) = mpsc::channel();
            let (streams, mut peers): (Vec<_>, Vec<_>) = (0..SOCKETS).map(|_| pair_with_std()).unzip();
            let begun = Arc::new(AtomicUsize::new(0));
            for mut stream in streams {
                let (bad, ran, begun) = (bad.clone(), ran.clone(), begun.clone());
                drop(runtime.handle().spawn(async move {
                    let mut byte = [0];
                    let mut read = std::pin::pin!(stream.read(&mut byte));
                    assert!(poll_once(read.as_mut()).await.is_none(), "nothing was sent");
                    begun.fetch_add(1, SeqCst);
                    assert_eq!(read.await.expect("read"), 1);
                    let taken = bad.lock().unwrap().take();
                    if let Some((closed, first)) = taken {
                        first.send(()).unwrap();
                        let _ = closed.recv();
                    }
                    ran.send(()).unwrap();
                }));
            }
            runtime.block_on(until(|| begun.load(SeqCst) == SOCKETS));
            // Their worker does not look before all bytes are there.
            let last = stick(runtime.handle(), 1);
            for peer in &mut peers {
                peer.write_all(b"x").expect("write");
            }
            drop((others, last));
            is_first.recv().expect("one is the first");
            for _ in 1..SOCKETS {
                runs.recv().expect("another worker runs it");
            }
            assert!(runs.try_recv().is_err(), "the first blocks until here");
            drop(open);
            runs.recv().expect("it ends");
        }
    });
}

/// Without it a few panics leave a runtime with no worker.
#[test]
fn workers_survive_the_panics_of_their_tasks() {
    within(|| {
        let runtime = workers(2);
        let tasks: Vec<_> = (0..100)
            .map(|task| {
                runtime.handle().spawn(async move {
                    let _in_drop = OnDrop::new(move || {
                        if task % 2 == 0 {
                            resume_unwind(Box::new("in its drop"));
                        }
                    });
                    yield_now().await;
                    if task % 2 == 1 {
                        resume_unwind(Box::new("in its poll"));
                    }
                })
            })
            .collect();
        for task in tasks {
            assert!(future::block_on(task).expect_err("it panics").is_panic());
        }
        on_each_worker(runtime.handle(), 2, |_| ());
    });
}

// ---- who has to wait for whom ----

/// One event wakes both, everybody else sleeps, and the local task comes first: nobody would look for the other one.
#[test]
fn what_is_woken_with_a_local_task_does_not_wait_for_it() {
    within(|| {
        let runtime = Builder::new().workers(2).spin(Duration::ZERO).build().expect("a runtime");
        for other_entries in 0..4 {
            let (ours, mut peer) = pair_with_std();
            let ours = Arc::new(ours);
            let (waits, waiting) = mpsc::channel();
            let (open, gate) = mpsc::channel::<()>();
            let (has_run, ran) = mpsc::channel();
            drop(runtime.handle().spawn(async move {
                let shared = ours.clone();
                drop(spawn_local(async move {
                    // Which of the two kinds is next differs by what was run before.
                    for _ in 0..other_entries {
                        yield_now().await;
                    }
                    ours.readable().await.expect("readable");
                    gate.recv().expect("the other one has run");
                }));
                yield_now().await;
                waits.send(()).unwrap();
                shared.readable().await.expect("readable");
                has_run.send(()).unwrap();
            }));
            waiting.recv().expect("both wait, or will");
            settled(&runtime);
            peer.write_all(b"x").expect("write");
            ran.recv().expect("it is run elsewhere, or first");
            open.send(()).unwrap();
        }
    });
}

/// The worker that watches the others is told to poll for an hour. What is behind a stuck task waits for it all the same.
#[test]
fn a_worker_that_polls_for_long_looks_after_the_others() {
    within(|| {
        let runtime = Builder::new().workers(2).spin(HOUR).build().expect("a runtime");
        settle_for_a_moment(&runtime);
        let (has_run, ran) = mpsc::channel();
        let parent = runtime.handle().spawn(async move {
            drop(spawn(async move { has_run.send(()).unwrap() }));
            ran.recv().expect("it is run elsewhere");
        });
        future::block_on(parent).expect("it ends");
    });
}

/// Waits until both workers have been to their reactor.
fn settle_for_a_moment(runtime: &Runtime) {
    while runtime.handle().metrics().workers().iter().any(|worker| worker.turns == 0) {
        thread::yield_now();
    }
}

/// A runtime whose task has the last hold of the one that it is dropped in: the worker would wait for itself.
#[test]
fn a_runtime_dropped_inside_another_may_own_that_one() {
    within(|| {
        let outer = workers(2);
        let (end, ended) = mpsc::channel();
        let handle = outer.handle().clone();
        drop(handle.spawn(async move {
            let inner = one_worker();
            drop(inner.handle().spawn(async move {
                let _outer = outer;
                pending::<()>().await;
            }));
            drop(inner);
            end.send(()).unwrap();
        }));
        ended.recv().expect("nobody waits for itself");
    });
}

/// Without it a worker's local tasks wait for as long as there is anything that all workers share: here for ever.
#[test]
fn a_local_task_runs_beside_tasks_that_never_wait() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            // On the only worker that is left, so that nobody takes the others away.
            let stuck = stick(runtime.handle(), count - 1);
            let (hand, handed) = mpsc::channel();
            drop(runtime.handle().spawn(async move {
                (0..3).for_each(|_| drop(spawn(busy())));
                hand.send(spawn_local(here_after_yielding())).unwrap();
            }));
            let local = handed.recv().expect("it is spawned");
            let thread = future::block_on(local).expect("it runs");
            assert!(stuck.iter().all(|stuck| stuck.thread != thread));
        }
    });
}

/// Without it a connection with a local handler, or a local timer, stands still on a worker that has much to do.
#[test]
fn a_local_task_hears_of_sockets_timers_and_wakes_beside_tasks_that_never_wait() {
    within(|| {
        let runtime = workers(2);
        let _stuck = stick(runtime.handle(), 1);
        let (mut ours, mut peer) = pair_with_std();
        let (send, receive) = async_channel::bounded::<()>(1);
        let (hand, handed) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        drop(runtime.handle().spawn(async move {
            hand.send(spawn_local(async move {
                begin.send(()).unwrap();
                receive.recv().await.expect("a word");
                sleep(MS).await;
                let mut byte = [0];
                ours.read_exact(&mut byte).await.expect("read");
                ours.write_all(&byte).await.expect("write");
            }))
            .unwrap();
        }));
        let local = handed.recv().expect("it is spawned");
        begun.recv().expect("it begins");
        // From now on there is always something else to do.
        let busy = runtime.handle().spawn(async { (0..3).for_each(|_| drop(spawn(busy()))) });
        future::block_on(busy).expect("they begin");
        send.send_blocking(()).unwrap();
        peer.write_all(b"x").expect("write");
        peer.read_exact(&mut [0]).expect("it answers");
        future::block_on(local).expect("it ends");
    });
}

/// The other way round: local tasks must not keep their worker from what is shared.
#[test]
fn a_task_runs_beside_local_tasks_that_never_wait() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let locals = on_each_worker(runtime.handle(), count, |_| [(); 3].map(|()| spawn_local(busy())));
            let tasks: Vec<_> = (0..100).map(|_| runtime.handle().spawn(here_after_yielding())).collect();
            for task in tasks {
                let _ = future::block_on(task).expect("it runs");
            }
            assert!(locals.iter().flatten().all(|local| !local.is_finished()));
        }
    });
}

/// A worker that is stuck keeps the runtime from its end, but not the tasks that others can end, and their connections.
#[test]
fn the_end_reaches_what_is_not_stuck() {
    within(|| {
        for never_waits in [false, true] {
            let runtime = workers(2);
            let stuck = stick(runtime.handle(), 1);
            let drops = Arc::new(AtomicUsize::new(0));
            let tasks: Vec<_> = (0..5)
                .map(|_| {
                    let counted = Counted(drops.clone());
                    runtime.handle().spawn(async move {
                        let _counted = counted;
                        if never_waits {
                            busy().await;
                        }
                        pending::<()>().await;
                    })
                })
                .collect();
            let error = runtime.shutdown_timeout(MS).expect_err("a worker is stuck");
            assert!(error.workers_running() > 0);
            tasks.into_iter().for_each(is_cancelled);
            assert_eq!(drops.load(SeqCst), 5);
            drop(stuck);
        }
    });
}

// ---- wakes ----

/// One wake that is lost stops the ring: its tasks wait on different workers, and strangers wake them for nothing meanwhile.
#[test]
fn no_wake_between_workers_is_lost_in_a_storm() {
    const TASKS: usize = 16;
    const WORDS: usize = 1_500;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let ring: Arc<Vec<Mailbox>> = Arc::new((0..TASKS).map(|_| Mailbox::default()).collect());
            let tasks: Vec<_> = (0..TASKS)
                .map(|place| {
                    let ring = ring.clone();
                    runtime.handle().spawn(async move {
                        for _ in 0..WORDS {
                            ring[place].take().await;
                            ring[(place + 1) % TASKS].put();
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
                future::block_on(task).expect("it passes on all its words");
            }
            stop.store(true, SeqCst);
            storm.join().unwrap();
        }
    });
}

/// Nobody else wakes a worker that sleeps: a wake that comes while it goes to sleep must not be lost. Local tasks, so that
/// nobody takes the work from it.
#[test]
fn no_wake_is_lost_on_a_worker_that_goes_to_sleep() {
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
        // From here to one worker, from there to the other, and back.
        for _ in 0..TIMES {
            boxes[0].put();
            future::block_on(boxes[2].take());
        }
        ends.into_iter().for_each(|end| future::block_on(end).expect("it ends"));
    });
}

/// A word is exactly what is lost or doubled when a channel's wake goes to the wrong worker, or to none.
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
                        assert!(inside.fetch_add(1, SeqCst) < 2, "there are two permits");
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
                        send.send(number * (task + 1)).await.expect("there are receivers");
                    }
                }));
            }
            drop((send, receive));
            tasks.into_iter().for_each(|task| future::block_on(task).expect("it ends"));
            let expected = (1..=8).sum::<usize>() * (0..EACH).sum::<usize>();
            assert_eq!(*total.lock_blocking(), expected, "each number must be added once");
        }
    });
}

/// A socket stays with the worker that first waited for it, and a timer too; the task that waits for both does not.
#[test]
fn a_task_that_moves_while_it_waits_for_a_socket_and_a_timer_loses_nothing() {
    const PIECES: usize = 300;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let guides = Guides::start(runtime.handle(), count);
            let (mut stream, mut peer) = pair_with_std();
            let task = runtime.handle().spawn(async move {
                let (mut buf, mut threads) = ([0; 512], HashSet::new());
                for turn in 0.. {
                    guides.go(turn).await;
                    threads.insert(here());
                    // Some reads are given up and begun again elsewhere.
                    match timeout(Duration::from_micros(turn as u64 % 7 * 50), stream.read(&mut buf)).await {
                        Err(_) => continue,
                        Ok(read) => match read.expect("read") {
                            0 => break,
                            read => {
                                guides.go(turn + 1).await;
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
                assert!(back == piece, "piece {i} must come back as it was");
            }
            peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
            let threads = future::block_on(task).expect("it ends");
            assert!(threads > 1, "the task has not moved, so this test shows nothing");
        }
    });
}

// ---- aborts ----

/// Without it a request that was given up is begun all the same.
#[test]
fn a_task_that_is_aborted_before_it_begins_is_never_polled() {
    within(|| {
        let runtime = workers(2);
        for _ in 0..20 {
            let stuck = stick(runtime.handle(), 2);
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
            assert_eq!(drops.load(SeqCst), 0, "a future is dropped by a worker");
            drop(stuck);
            tasks.into_iter().for_each(is_cancelled);
            assert_eq!((polls.load(SeqCst), drops.load(SeqCst)), (0, 20), "none is polled, each is dropped once");
        }
    });
}

/// The flag is set while another worker has the task in its hands: too late for this poll, but not to be missed after it.
#[test]
fn a_task_that_is_aborted_while_it_runs_ends_after_that_poll() {
    within(|| {
        let runtime = workers(2);
        let handle = runtime.handle();
        for round in 0..100 {
            let (ends, from_worker) = (round % 2 == 0, round % 4 < 2);
            let (drops, (tell, told), (open, closed)) =
                (Arc::new(AtomicUsize::new(0)), mpsc::channel(), mpsc::channel::<()>());
            let counted = Counted(drops.clone());
            let task = handle.spawn(async move {
                let _counted = counted;
                tell.send(()).unwrap();
                let _ = closed.recv();
                if !ends {
                    pending::<()>().await;
                }
            });
            told.recv().expect("it runs");
            if from_worker {
                let abort = task.abort_handle();
                future::block_on(handle.spawn(async move { abort.abort() })).expect("the other worker runs this");
            } else {
                task.abort();
            }
            assert!(!task.is_finished() && drops.load(SeqCst) == 0, "it runs");
            drop(open);
            match future::block_on(task) {
                Ok(()) => assert!(ends, "it never ends by itself"),
                Err(error) => assert!(error.is_cancelled() && !ends, "its output came first: {error}"),
            }
            assert_eq!(drops.load(SeqCst), 1);
        }
    });
}

/// Nothing else would ever wake it.
#[test]
fn a_task_that_is_aborted_while_it_waits_ends() {
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
                begun.recv_blocking().expect("it begins");
            }
            if round % 2 == 0 {
                let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
                drop(handle.spawn(async move { aborts.iter().for_each(AbortHandle::abort) }));
            } else {
                tasks.iter().for_each(JoinHandle::abort);
            }
            tasks.into_iter().for_each(is_cancelled);
            assert_eq!(drops.load(SeqCst), 20, "each is dropped once");
        }
    });
}

/// It stands in a queue already: it must not be polled from there, nor queued a second time.
#[test]
fn a_task_that_is_aborted_when_it_is_woken_is_not_polled_again() {
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
            // When both are stuck, none is in the middle of a poll.
            let stuck = stick(runtime.handle(), 2);
            wakers.lock().unwrap().drain(..).for_each(Waker::wake);
            tasks.iter().for_each(JoinHandle::abort);
            drop(stuck);
            tasks.into_iter().for_each(is_cancelled);
            assert_eq!((polls.load(SeqCst), drops.load(SeqCst)), (20, 20), "each is polled once and dropped once");
        }
    });
}

/// Its output is there, and is its handle's.
#[test]
fn a_task_that_is_aborted_after_its_end_keeps_its_output() {
    within(|| {
        let runtime = workers(2);
        for _ in 0..50 {
            let task = runtime.handle().spawn(ready(7));
            runtime.block_on(until(|| task.is_finished()));
            task.abort();
            let abort = task.abort_handle();
            future::block_on(runtime.handle().spawn(async move { abort.abort() })).expect("it aborts");
            assert_eq!(future::block_on(task).expect("its output"), 7);
        }
    });
}

/// Every race at once. What is lost hangs; what is dropped twice, or ends and is called cancelled, is counted.
#[test]
fn aborts_that_race_with_everything_are_exact() {
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
            // Two of the aborters are tasks, one is a thread, and they are in each other's way.
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
            aborters.into_iter().for_each(|aborter| future::block_on(aborter).expect("it aborts"));
            let mut outputs = 0;
            for task in tasks {
                match future::block_on(task) {
                    Ok(()) => outputs += 1,
                    Err(error) => assert!(error.is_cancelled(), "{error}"),
                }
            }
            assert_eq!(drops.load(SeqCst), TASKS, "each future is dropped once, before its handle says so");
            assert_eq!(outputs, ends.load(SeqCst), "who came to an end has an output, and nobody else");
            assert_eq!(runtime.handle().metrics().tasks_alive(), 0);
        }
    });
}

// ---- local tasks ----

/// What a local task has is not `Send`: on another thread, be it only its drop, it is a race.
#[test]
fn a_local_task_is_polled_and_dropped_on_its_own_thread() {
    const EACH: usize = 30;
    const WORDS: usize = 20;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let tally = Arc::new(Tally::default());
            let locals = on_each_worker(runtime.handle(), count, {
                let tally = tally.clone();
                move |_| {
                    let one = |_| {
                        let (tell, told) = async_channel::unbounded();
                        let (homebody, tally) = (Homebody::new(&tally), tally.clone());
                        let task = spawn_local(async move {
                            while let Ok(()) = told.recv().await {
                                homebody.check();
                                tally.words.fetch_add(1, SeqCst);
                            }
                            homebody.check();
                        });
                        (tell, task)
                    };
                    (0..EACH).map(one).collect::<Vec<_>>()
                }
            });
            let (tells, tasks): (Vec<_>, Vec<_>) = locals.into_iter().flatten().unzip();
            // Told by tasks on all workers, and by this thread.
            let tellers: Vec<_> = (0..count)
                .map(|_| {
                    let tells = tells.clone();
                    runtime.handle().spawn(async move {
                        for _ in 0..WORDS {
                            tells.iter().for_each(|tell| tell.try_send(()).unwrap());
                            yield_now().await;
                        }
                    })
                })
                .collect();
            for _ in 0..WORDS {
                tells.iter().for_each(|tell| tell.try_send(()).unwrap());
            }
            tellers.into_iter().for_each(|teller| future::block_on(teller).expect("it tells them"));
            let expected = (count + 1) * WORDS * EACH * count;
            runtime.block_on(until(|| tally.words.load(SeqCst) == expected));
            // A third end by themselves, a third are aborted from elsewhere, a third are there when the runtime ends.
            let (mut left, mut aborts) = (Vec::new(), Vec::new());
            for (i, (tell, task)) in tells.into_iter().zip(tasks).enumerate() {
                match i % 3 {
                    0 => {
                        drop(tell);
                        future::block_on(task).expect("it ends by itself");
                    }
                    1 if i % 2 == 0 => {
                        task.abort();
                        is_cancelled(task);
                        drop(tell);
                    }
                    1 => aborts.push((task, tell)),
                    _ => left.push((task, tell)),
                }
            }
            let aborter = runtime.handle().spawn(async move {
                for (task, _tell) in aborts {
                    task.abort();
                    assert!(task.await.expect_err("it was aborted").is_cancelled());
                }
            });
            future::block_on(aborter).expect("they are cancelled");
            assert_eq!(tally.drops.load(SeqCst), EACH * count - left.len(), "those that have ended are dropped");
            drop(runtime);
            assert_eq!(tally.drops.load(SeqCst), EACH * count, "the end drops the others");
            assert_eq!(tally.strays.load(SeqCst), 0, "a local task was polled or dropped on another thread");
            left.into_iter().for_each(|(task, _)| is_cancelled(task));
        }
    });
}

/// Their thread is the caller's, who has it back when the call returns.
#[test]
fn a_guests_local_tasks_are_dropped_on_its_thread_before_its_call_returns() {
    within(|| {
        let runtime = workers(2);
        let held = Rc::new(());
        let (tell, told) = async_channel::unbounded::<()>();
        for panics in [false, true] {
            let tasks = Rc::new(Cell::new(Vec::new()));
            let result = catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(async {
                    let task = |held: Rc<()>| {
                        let told = told.clone();
                        spawn_local(async move {
                            let _held = held;
                            while told.recv().await.is_ok() {}
                        })
                    };
                    tasks.set((0..10).map(|_| task(held.clone())).collect());
                    yield_now().await;
                    // They are being woken from the workers when the call ends.
                    for _ in 0..2 {
                        let tell = tell.clone();
                        drop(spawn(async move { (0..200).for_each(|_| tell.try_send(()).unwrap()) }));
                    }
                    yield_now().await;
                    if panics {
                        resume_unwind(Box::new("on purpose"));
                    }
                });
            }));
            assert_eq!(result.is_err(), panics);
            assert_eq!(Rc::strong_count(&held), 1, "a local task outlives its call");
            tasks.take().into_iter().for_each(is_cancelled);
        }
    });
}

/// A runtime of one worker has no thread of its own: local tasks are those of the call, and of the thread that was in it.
#[test]
fn a_runtime_that_moves_to_another_thread_takes_no_local_task_along() {
    within(|| {
        let runtime = one_worker();
        let tally = Arc::new(Tally::default());
        let (wakers, sent) = runtime.block_on(async {
            let wakers: Arc<Mutex<Vec<Waker>>> = Arc::default();
            for _ in 0..10 {
                let (homebody, wakers) = (Homebody::new(&tally), wakers.clone());
                drop(spawn_local(poll_fn(move |cx| {
                    homebody.check();
                    wakers.lock().unwrap().push(cx.waker().clone());
                    Poll::<()>::Pending
                })));
            }
            let sent = spawn(async {
                yield_now().await;
                yield_now().await;
                here()
            });
            yield_now().await;
            (wakers, sent)
        });
        assert_eq!(tally.drops.load(SeqCst), 10, "local tasks end with their call");
        let other = thread::spawn(move || {
            // Wakes that come too late find nobody.
            wakers.lock().unwrap().iter().for_each(Waker::wake_by_ref);
            let thread = runtime.block_on(async move {
                settle().await;
                sent.await.expect("it goes on")
            });
            assert_eq!(thread, here(), "the others moved");
            drop(runtime);
            drop(wakers);
        });
        other.join().expect("the other thread");
        assert_eq!((tally.drops.load(SeqCst), tally.strays.load(SeqCst)), (10, 0));
    });
}

// ---- handles ----

/// A handle that only its maker's worker may await is no handle for others.
#[test]
fn a_handle_can_be_awaited_on_any_worker_in_a_guest_and_outside() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let (hand, handed) = async_channel::unbounded::<(usize, JoinHandle<usize>)>();
            // The tasks are of all workers, some local, and end while they are awaited, before or after.
            on_each_worker(runtime.handle(), count, move |worker| {
                for task in 0..200 {
                    let number = worker * 200 + task;
                    let body = async move {
                        for _ in 0..number % 7 {
                            yield_now().await;
                        }
                        if number % 10 == 0 {
                            resume_unwind(Box::new(number));
                        }
                        number
                    };
                    let handle = if number % 3 == 0 { spawn_local(body) } else { spawn(body) };
                    hand.try_send((number, handle)).unwrap();
                }
            });
            let heard = Arc::new(AtomicUsize::new(0));
            let hear = || {
                let (handed, heard) = (handed.clone(), heard.clone());
                async move {
                    while let Ok((number, task)) = handed.recv().await {
                        match task.await {
                            Ok(output) => assert_eq!((output, number % 10 > 0), (number, true)),
                            Err(error) => assert_eq!(error.into_panic().downcast_ref(), Some(&number)),
                        }
                        heard.fetch_add(1, SeqCst);
                        yield_now().await;
                    }
                }
            };
            let on_workers: Vec<_> = (0..count).map(|_| runtime.handle().spawn(hear())).collect();
            let outside = [hear(), hear()].map(|hear| thread::spawn(|| future::block_on(hear)));
            let elsewhere = [hear()].map(|hear| thread::spawn(|| block_on(hear)));
            runtime.block_on(hear());
            outside.into_iter().chain(elsewhere).for_each(|thread| thread.join().expect("what it heard is right"));
            on_workers.into_iter().for_each(|task| future::block_on(task).expect("what it heard is right"));
            assert_eq!(heard.load(SeqCst), count * 200, "each handle has given what it had");
        }
    });
}

// ---- guests ----

/// Beside several workers a call is not the runtime's only one: without it one thread waits for another.
#[test]
fn any_number_of_threads_may_be_in_block_on_at_once() {
    within(|| {
        for guests in [2, 8] {
            let runtime = Arc::new(workers(2));
            let barrier = Arc::new(Barrier::new(guests));
            let (send, receive) = async_channel::unbounded();
            let threads: Vec<_> = (0..guests)
                .map(|guest| {
                    let (runtime, barrier) = (runtime.clone(), barrier.clone());
                    let (send, receive) = (send.clone(), receive.clone());
                    thread::spawn(move || {
                        runtime.block_on(async {
                            // All are in their calls here.
                            barrier.wait();
                            let (mut client, mut server) = pair().await;
                            let echo = spawn(async move {
                                let mut byte = [0];
                                server.read_exact(&mut byte).await?;
                                server.write_all(&byte).await
                            });
                            client.write_all(&[guest as u8]).await.expect("write");
                            let mut byte = [0];
                            client.read_exact(&mut byte).await.expect("read");
                            assert_eq!(byte, [guest as u8]);
                            echo.await.expect("a task").expect("an echo");
                            sleep(MS).await;
                            // And they hear of each other.
                            send.send(guest).await.expect("somebody listens");
                            let home = here();
                            let heard = receive.recv().await.expect("somebody speaks");
                            assert_eq!(here(), home, "a guest's future stays on its thread");
                            heard
                        })
                    })
                })
                .collect();
            let mut heard: Vec<_> = threads.into_iter().map(|guest| guest.join().expect("a guest")).collect();
            heard.sort_unstable();
            assert!(heard.into_iter().eq(0..guests), "each word is heard once");
        }
    });
}

/// Without it a thread waits inside a task, for what only that thread could do.
#[test]
fn a_call_inside_a_call_or_a_task_panics_with_what_to_do_instead() {
    within(|| {
        let runtime = Arc::new(workers(2));
        let nested = {
            let runtime = runtime.clone();
            move || {
                let other = workers(2);
                let calls: [&dyn Fn(); 3] =
                    [&|| runtime.block_on(async {}), &|| other.block_on(async {}), &|| block_on(async {})];
                let said = calls.map(panic_of);
                // The runtime is not to be dropped by the thread of a task.
                thread::spawn(move || drop(other)).join().unwrap();
                said
            }
        };
        let in_a_call = runtime.block_on(async { nested() });
        let in_a_local_task = runtime.block_on(async { spawn_local(ready(nested())).await.expect("it is caught") });
        let in_a_task = future::block_on(runtime.handle().spawn(async move { nested() })).expect("it is caught");
        for said in in_a_call.into_iter().chain(in_a_local_task).chain(in_a_task) {
            assert!(said.contains("block_on") && said.contains("inside a runtime"), "{said}");
            assert!(said.contains("await") && said.contains("spawn"), "it must say what to do instead: {said}");
        }
        assert_eq!(runtime.block_on(async { spawn(ready(1)).await.expect("it runs") }), 1, "and is usable afterwards");
        on_each_worker(runtime.handle(), 2, |_| ());
    });
}

/// A guest has promised its thread to its own future: a task of the runtime there would end, or block, with the call.
#[test]
fn what_a_guest_spawns_runs_on_the_workers_and_outlives_the_call() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let stuck = stick(runtime.handle(), count);
            let (wake, woken) = async_channel::bounded::<()>(1);
            let tasks = runtime.block_on(async {
                let tasks: Vec<_> = (0..50)
                    .map(|_| {
                        let woken = woken.clone();
                        spawn(async move {
                            let begun_on = here();
                            woken.recv().await.expect_err("the channel is closed");
                            [begun_on, here()]
                        })
                    })
                    .collect();
                // The guest has all the time, and the workers none.
                settle().await;
                assert_eq!(Handle::current().metrics().workers().len(), count);
                tasks
            });
            let threads: Vec<_> = stuck.iter().map(|stuck| stuck.thread).collect();
            drop(stuck);
            runtime.block_on(async {
                drop(wake);
                settle().await;
            });
            for task in tasks {
                let ran_on = future::block_on(task).expect("it goes on without a call");
                assert!(ran_on.iter().all(|thread| threads.contains(thread)), "a task ran on a guest's thread");
            }
        }
    });
}

/// Its reactor is gone with the call; a connection that a task has must not notice.
#[test]
fn a_guests_sockets_go_on_in_tasks_after_its_call() {
    const LENGTH: usize = 40_000;
    within(|| {
        let runtime = workers(2);
        for round in 0..40 {
            let (ours, peer) = pair_with_std();
            let bytes = pattern(LENGTH);
            // Bytes come and go before the end of the call, during it and after it.
            let (began, has_begun) = mpsc::channel();
            let writer = thread::spawn({
                let (mut peer, bytes) = (peer.try_clone().expect("try_clone"), bytes.clone());
                move || {
                    for piece in bytes.chunks(700) {
                        peer.write_all(piece).expect("write");
                        let _ = began.send(());
                        thread::yield_now();
                    }
                    peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
                }
            });
            let reader = thread::spawn(move || read_all(peer));
            let task = runtime.block_on(async {
                let mut ours = ours;
                let mut first = vec![0; 1 + round % 3];
                ours.read_exact(&mut first).await.expect("read");
                // A wait for what the guest's reactor is to report.
                let mut next = [0];
                let given_up = poll_once(ours.read(&mut next)).await.map(|read| read.expect("read"));
                first.extend_from_slice(&next[..given_up.unwrap_or(0)]);
                let echo = async move {
                    let mut buf = [0; 300];
                    ours.write_all(&first).await?;
                    loop {
                        match ours.read(&mut buf).await? {
                            0 => return ours.close().await,
                            read => ours.write_all(&buf[..read]).await?,
                        }
                    }
                };
                // In half of the rounds it is polled here first, and so has a wait to take along.
                let mut echo = Box::pin(echo);
                if round % 2 == 0 {
                    assert!(poll_once(echo.as_mut()).await.is_none(), "there is more to come");
                }
                let task = spawn(echo);
                for _ in 0..round % 5 {
                    let _ = has_begun.recv();
                    yield_now().await;
                }
                task
            });
            future::block_on(task).expect("it ends").expect("no operation fails because a call has ended");
            writer.join().expect("the writer");
            assert!(reader.join().expect("the reader") == bytes, "every byte must come back, once, in round {round}");
        }
    });
}

/// A socket may be kept outside, and a wait for it too: the next call goes on with it, and so does any other executor.
#[test]
fn a_guests_sockets_go_on_in_the_next_call_and_outside() {
    within(|| {
        let runtime = workers(2);
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        let listener = runtime.block_on(listener());
        for byte in 0..20 {
            let mut read = Box::pin({
                let stream = stream.clone();
                async move {
                    let mut buf = [0; 8];
                    let read = (&*stream).read(&mut buf).await?;
                    Ok::<_, std::io::Error>(buf[..read].to_vec())
                }
            });
            let mut accept = Box::pin(listener.0.accept());
            runtime.block_on(async {
                assert!(poll_once(read.as_mut()).await.is_none(), "nothing was sent");
                assert!(poll_once(accept.as_mut()).await.is_none(), "nobody has connected");
            });
            // The event comes in the call, or before it.
            let act = move |peer: &mut std::net::TcpStream| {
                peer.write_all(&[byte]).expect("write");
                std::net::TcpStream::connect(listener.1).expect("connect")
            };
            let _client = if byte % 2 == 0 { Some(act(&mut peer)) } else { None };
            let both = async {
                let _client = (byte % 2 == 1).then(|| act(&mut peer));
                (read.await, accept.await.map(drop))
            };
            let (read, accepted) = if byte % 3 == 0 { future::block_on(both) } else { runtime.block_on(both) };
            assert_eq!(read.expect("no read fails because a call has ended"), [byte]);
            accepted.expect("no accept fails because a call has ended");
        }
    });
}

/// Its wheel is gone with the call; who waits for a timer must not notice, and not be early.
#[test]
fn a_guests_timers_go_on_in_tasks_and_in_the_next_call() {
    within(|| {
        let runtime = workers(2);
        for round in 0..20 {
            let (deadline, tasks) = runtime.block_on(async {
                let deadline = Instant::now() + 5 * MS;
                // The wait begins here, and goes on there.
                let begun = |wait: Sleep| async move {
                    let mut wait = Box::pin(wait);
                    let is_over = poll_once(wait.as_mut()).await.is_some();
                    assert!(!is_over || Instant::now() >= wait.deadline(), "it is early");
                    wait
                };
                let wait = begun(sleep_until(deadline)).await;
                let (tell, told) = async_channel::bounded(1);
                let waiting = spawn(async move {
                    let mut wait = wait;
                    assert!(poll_once(wait.as_mut()).await.is_none() || Instant::now() >= deadline, "it is early");
                    // In half of the rounds nobody listens any more.
                    let _ = tell.try_send(());
                    wait.await;
                    Instant::now()
                });
                let limited = {
                    let mut limited = Box::pin(async move {
                        timeout_at(deadline, pending::<()>()).await.expect_err("the time is over");
                        Instant::now()
                    });
                    // On a slow machine the time may be over here.
                    let ended = poll_once(limited.as_mut()).await;
                    spawn(async move {
                        match ended {
                            Some(ended) => ended,
                            None => limited.await,
                        }
                    })
                };
                if round % 2 == 0 {
                    told.recv().await.expect("it waits");
                }
                let far = begun(sleep(HOUR)).await;
                let kept = begun(sleep_until(deadline)).await;
                (deadline, (waiting, limited, kept, far))
            });
            let (waiting, limited, kept, mut far) = tasks;
            for task in [waiting, limited] {
                let ended = future::block_on(task).expect("it ends");
                assert!(ended >= deadline, "a timer is {:?} early", deadline - ended);
            }
            runtime.block_on(async move {
                kept.await;
                assert!(Instant::now() >= deadline, "a timer is early");
                assert!(poll_once(far.as_mut()).await.is_none(), "a timer is an hour early");
                far.reset(Instant::now() + MS);
                far.await;
            });
        }
    });
}

/// The caller has to learn of it, and the workers have nothing to do with it.
#[test]
fn a_panic_in_a_guest_reaches_its_caller_and_leaves_the_runtime_usable() {
    within(|| {
        let runtime = workers(2);
        let task = runtime.handle().spawn(pending::<()>());
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        for _ in 0..3 {
            let panic = catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(async {
                    drop(spawn_local(pending::<()>()));
                    assert!(poll_once((&*stream).read(&mut [0])).await.is_none(), "nothing was sent");
                    yield_now().await;
                    resume_unwind(Box::new("on purpose"));
                });
            }));
            assert_eq!(panic.expect_err("it must come out").downcast_ref::<&str>(), Some(&"on purpose"));
            assert!(Handle::try_current().is_err(), "the thread must be outside again");
        }
        assert_eq!(runtime.handle().metrics().tasks_alive(), 1, "the tasks are not the guest's");
        assert!(!task.is_finished());
        peer.write_all(b"x").expect("write");
        assert_eq!(runtime.block_on(async { (&*stream).read(&mut [0]).await }).expect("its sockets go on"), 1);
        on_each_worker(runtime.handle(), 2, |_| ());
    });
}

// ---- timers ----

/// A timer of another worker's wheel, or of a stale clock, would be early.
#[test]
fn sleeps_on_several_workers_are_never_early() {
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
            sleeps.into_iter().flatten().for_each(|sleep| future::block_on(sleep).expect("it is on time"));
        }
    });
}

/// The timer stays on the worker that sleeps, perhaps for an hour: it must hear that the hour is now a millisecond.
#[test]
fn a_sleep_that_moves_to_another_worker_can_be_reset_there() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            for round in 0..10 {
                let (hand, handed) = async_channel::bounded::<Sleep>(count);
                // Each worker arms one that belongs to it from then on. Local: nobody takes it elsewhere.
                on_each_worker(runtime.handle(), count, move |_| {
                    let hand = hand.clone();
                    drop(spawn_local(async move {
                        let mut sleep = sleep(HOUR);
                        assert!(poll_once(&mut sleep).await.is_none(), "there is time");
                        hand.send(sleep).await.unwrap();
                    }));
                });
                let ends = on_each_worker(runtime.handle(), count, move |_| {
                    let handed = handed.clone();
                    spawn_local(async move {
                        let mut sleep = handed.recv().await.expect("there is one for each");
                        let deadline = Instant::now() + Duration::from_micros(200 * round);
                        sleep.reset(deadline);
                        if round % 2 == 0 {
                            // There and back, while it is armed.
                            let _ = poll_once(&mut sleep).await;
                            sleep.reset(deadline + HOUR);
                            assert!(poll_once(&mut sleep).await.is_none(), "it is an hour early");
                            sleep.reset(deadline);
                        }
                        sleep.await;
                        assert!(Instant::now() >= deadline, "a sleep that was reset is early");
                    })
                });
                ends.into_iter().for_each(|end| future::block_on(end).expect("it is on time"));
            }
        }
    });
}

/// A tick that is lost or early when its task moves shows in the count.
#[test]
fn an_interval_and_timeouts_keep_their_times_on_tasks_that_move() {
    within(|| {
        let runtime = workers(2);
        let guides = Guides::start(runtime.handle(), 2);
        let tasks: Vec<_> = (0..10)
            .map(|task| {
                let guides = guides.clone();
                runtime.handle().spawn(async move {
                    let start = Instant::now();
                    let mut interval = interval(MS);
                    for tick in 0..20 {
                        guides.go(task + tick as usize).await;
                        let said = interval.tick().await;
                        assert!(Instant::now() >= said && said >= start + MS * tick, "tick {tick} is early");
                    }
                    for turn in 0..5 {
                        guides.go(task + turn).await;
                        let begin = Instant::now();
                        timeout(MS, pending::<()>()).await.expect_err("the time is over");
                        assert!(begin.elapsed() >= MS, "a timeout is early");
                        timeout(HOUR, guides.go(task + turn + 1)).await.expect("the time is not over");
                    }
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| future::block_on(task).expect("they are on time"));
    });
}

/// The timer is with one worker, the socket with another, and who waits on a third.
#[test]
fn a_streams_timeout_finds_its_task_wherever_that_is() {
    const WAIT: Duration = Duration::from_millis(2);
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let guides = Guides::start(runtime.handle(), count);
            let (mut stream, mut peer) = pair_with_std();
            let (ask, asked) = mpsc::channel();
            let task = runtime.handle().spawn(async move {
                stream.set_read_timeout(Some(WAIT)).expect("a timeout");
                for turn in 0..30 {
                    guides.go(turn).await;
                    let begin = Instant::now();
                    let mut byte = [0];
                    let error = stream.read(&mut byte).await.expect_err("nothing was sent");
                    assert_eq!(error.kind(), ErrorKind::TimedOut);
                    assert!(begin.elapsed() >= WAIT, "the timeout is early");
                    guides.go(turn / 2).await;
                    ask.send(turn).unwrap();
                    // It may come late on a slow machine, and no byte is lost then.
                    while let Err(error) = stream.read_exact(&mut byte).await {
                        assert_eq!(error.kind(), ErrorKind::TimedOut);
                    }
                    assert_eq!(byte, [turn as u8]);
                }
            });
            while let Ok(turn) = asked.recv() {
                peer.write_all(&[turn as u8]).expect("write");
            }
            future::block_on(task).expect("it is on time");
        }
    });
}

// ---- the end ----

/// A server that ends must let go of everything, and say so to whoever waits.
#[test]
fn a_dropped_runtime_drops_its_tasks_on_its_workers() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let threads = on_each_worker(runtime.handle(), count, |_| here());
            let dropped_on: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
            let note = || {
                let dropped_on = dropped_on.clone();
                OnDrop::new(move || dropped_on.lock().unwrap().push(here()))
            };
            let (streams, mut peers): (Vec<_>, Vec<_>) = (0..20).map(|_| pair_with_std()).unzip();
            let mut tasks: Vec<_> = streams
                .into_iter()
                .map(|mut stream| {
                    let note = note();
                    runtime.handle().spawn(async move {
                        let _note = note;
                        let _ = stream.read(&mut [0]).await;
                    })
                })
                .collect();
            runtime.block_on(until(|| runtime.handle().metrics().sources_registered() == 20));
            // Some wait, some have not begun, some never wait.
            tasks.extend((0..20).map(|_| runtime.handle().spawn(hold(note()))));
            tasks.extend((0..5).map(|_| {
                let note = note();
                runtime.handle().spawn(async move {
                    let _note = note;
                    busy().await;
                })
            }));
            let stuck = stick(runtime.handle(), count);
            tasks.extend((0..20).map(|_| runtime.handle().spawn(hold(note()))));
            drop(stuck);
            drop(runtime);
            let dropped_on = std::mem::take(&mut *dropped_on.lock().unwrap());
            assert_eq!(dropped_on.len(), 65, "every future is dropped once, before the runtime's drop returns");
            assert!(dropped_on.iter().all(|thread| threads.contains(thread)), "a task must be dropped on a worker");
            tasks.into_iter().for_each(is_cancelled);
            for peer in &mut peers {
                assert_eq!(peer.read(&mut [0]).expect("an orderly end"), 0, "a peer must read the end");
            }
        }
    });
}

/// A server may be told to end by one of its own connections.
#[test]
fn a_task_may_drop_the_last_of_its_own_runtime() {
    in_own_process("a_task_may_drop_the_last_of_its_own_runtime", || {
        let (descriptors, threads) = (count_of("fd"), count_of("task"));
        for count in SEVERAL {
            let drops = Arc::new(AtomicUsize::new(0));
            let runtime = Arc::new(workers(count));
            let (hand, handed) = async_channel::bounded::<Arc<Runtime>>(1);
            let mut tasks: Vec<_> = (0..20).map(|_| runtime.handle().spawn(hold(Counted(drops.clone())))).collect();
            on_each_worker(runtime.handle(), count, {
                let drops = drops.clone();
                move |_| drop(spawn_local(hold(Counted(drops.clone()))))
            });
            let counted = Counted(drops.clone());
            tasks.push(runtime.handle().spawn(async move {
                // It does not wait for itself: the end comes when it next waits.
                drop(handed.recv().await.expect("the last"));
                hold(counted).await;
            }));
            let handle = runtime.handle().clone();
            hand.try_send(runtime).expect("there is room");
            tasks.into_iter().for_each(is_cancelled);
            refuses_tasks(&handle);
            leaves(threads, descriptors);
            assert_eq!(drops.load(SeqCst), 21 + count, "every future is dropped once");
        }
    });
}

/// As above, by a task that ends in that same poll: its output is there.
#[test]
fn a_task_that_drops_its_own_runtime_may_end_with_an_output() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let handle = runtime.handle().clone();
            let last = handle.spawn(async move {
                drop(runtime);
                "went on"
            });
            assert_eq!(future::block_on(last).expect("it ends by itself"), "went on");
            refuses_tasks(&handle);
        }
    });
}

/// The first has ended everything: what comes after it finds nothing, and does not wait for it.
#[test]
fn what_comes_after_the_end_finds_nothing() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let (handle, drops) = (runtime.handle().clone(), Arc::new(AtomicUsize::new(0)));
            let task = handle.spawn(hold(Counted(drops.clone())));
            let wakers: Arc<Mutex<Vec<Waker>>> = Arc::default();
            for _ in 0..5 {
                let wakers = wakers.clone();
                drop(handle.spawn(poll_fn(move |cx| {
                    wakers.lock().unwrap().push(cx.waker().clone());
                    Poll::<()>::Pending
                })));
            }
            runtime.block_on(until(|| wakers.lock().unwrap().len() == 5));
            runtime.shutdown_timeout(PATIENCE).expect("nothing holds it up");
            assert_eq!(drops.load(SeqCst), 1);
            task.abort();
            is_cancelled(task);
            wakers.lock().unwrap().drain(..).for_each(Waker::wake);
            for _ in 0..3 {
                let late = handle.spawn(hold(Counted(drops.clone())));
                assert!(late.is_finished(), "nobody will run it");
                is_cancelled(late);
                assert!(future::block_on(handle.spawn_blocking(|| ())).expect_err("no thread").is_cancelled());
            }
            assert_eq!(drops.load(SeqCst), 4, "what is refused is dropped");
        }
    });
}

/// Wakes are in every queue and on their way when it ends.
#[test]
fn a_runtime_ends_in_a_storm_of_wakes() {
    within(|| {
        for round in 0..60 {
            let count = SEVERAL[round % 3];
            let (drops, wakers) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::<Waker>::new())));
            let runtime = workers(count);
            let body = |drops: &Arc<AtomicUsize>, wakers: &Arc<Mutex<Vec<Waker>>>| {
                let (counted, wakers, mut is_new) = (Counted(drops.clone()), wakers.clone(), true);
                poll_fn(move |cx| {
                    let (_, mut wakers) = (&counted, wakers.lock().unwrap());
                    if std::mem::take(&mut is_new) {
                        wakers.push(cx.waker().clone());
                    }
                    // Each wakes some other.
                    let other = wakers.len() * 7 / 11;
                    wakers[other].wake_by_ref();
                    Poll::<()>::Pending
                })
            };
            let tasks: Vec<_> = (0..10).map(|_| runtime.handle().spawn(body(&drops, &wakers))).collect();
            on_each_worker(runtime.handle(), count, {
                let (drops, wakers) = (drops.clone(), wakers.clone());
                move |_| (0..5).for_each(|_| drop(spawn_local(body(&drops, &wakers))))
            });
            let stop = Arc::new(AtomicBool::new(false));
            let storm = thread::spawn({
                let (stop, wakers) = (stop.clone(), wakers.clone());
                move || {
                    while !stop.load(SeqCst) {
                        let wakers = wakers.lock().unwrap().clone();
                        wakers.iter().for_each(Waker::wake_by_ref);
                    }
                }
            });
            while wakers.lock().unwrap().len() < 10 {
                thread::yield_now();
            }
            drop(runtime);
            assert_eq!(drops.load(SeqCst), 10 + 5 * count, "every future is dropped once, in round {round}");
            tasks.into_iter().for_each(is_cancelled);
            stop.store(true, SeqCst);
            storm.join().unwrap();
        }
    });
}

/// Each of the spawned runs, or is cancelled; none is lost, and none keeps the runtime from its end.
#[test]
fn a_runtime_ends_in_a_storm_of_spawns() {
    within(|| {
        for round in 0..30 {
            let count = SEVERAL[round % 3];
            let (spawns, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let runtime = workers(count);
            let spawners: Vec<_> = (0..3)
                .map(|_| {
                    let (handle, spawns, drops) = (runtime.handle().clone(), spawns.clone(), drops.clone());
                    thread::spawn(move || {
                        let mut refused = 0;
                        let mut tasks = Vec::new();
                        while refused < 50 {
                            spawns.fetch_add(1, SeqCst);
                            let task = handle.spawn(hold(Counted(drops.clone())));
                            refused += usize::from(task.is_finished());
                            tasks.push(task);
                        }
                        tasks
                    })
                })
                .collect();
            // And tasks that never come to an end of it by themselves.
            for _ in 0..4 {
                drop(runtime.handle().spawn(offspring(spawns.clone(), drops.clone())));
            }
            runtime.block_on(until(|| spawns.load(SeqCst) > 200));
            drop(runtime);
            for spawner in spawners {
                spawner.join().expect("a spawner").into_iter().for_each(is_cancelled);
            }
            assert_eq!(drops.load(SeqCst), spawns.load(SeqCst), "every future is dropped once, in round {round}");
        }
    });
}

/// Without it a program that has to end hangs, or does not know why it does not.
#[test]
fn a_worker_that_is_stuck_at_the_end_is_reported_and_ends_when_it_can() {
    in_own_process("a_worker_that_is_stuck_at_the_end_is_reported_and_ends_when_it_can", || {
        let (descriptors, threads) = (count_of("fd"), count_of("task"));
        for count in SEVERAL {
            let drops = Arc::new(AtomicUsize::new(0));
            let runtime = workers(count);
            let handle = runtime.handle().clone();
            on_each_worker(&handle, count, {
                let drops = drops.clone();
                move |_| drop(spawn_local(hold(Counted(drops.clone()))))
            });
            let tasks: Vec<_> = (0..10).map(|_| handle.spawn(hold(Counted(drops.clone())))).collect();
            let stuck = stick(&handle, 1);
            let ((end, ended), (begin, begun)) = (mpsc::channel::<()>(), mpsc::channel());
            let closure = handle.spawn_blocking(move || {
                begin.send(()).unwrap();
                ended.recv().is_err()
            });
            begun.recv().expect("it begins");
            let error = runtime.shutdown_timeout(10 * MS).expect_err("a task is stuck");
            // The others may have to wait for it.
            assert!((1..=count).contains(&error.workers_running()), "{error:?}");
            assert_eq!(error.still_running(), 1);
            let said = error.to_string();
            assert!(said.contains("worker") && said.contains("1 blocking closure"), "{said}");
            refuses_tasks(&handle);
            drop(stuck);
            drop(end);
            assert!(future::block_on(closure).expect("a closure that runs goes on"));
            tasks.into_iter().for_each(is_cancelled);
            leaves(threads, descriptors);
            assert_eq!(drops.load(SeqCst), 10 + count, "every future is dropped once");
        }
    });
}

/// A drop waits for the poll that is under way: what that holds must not be used by two.
#[test]
fn a_drop_waits_for_the_task_that_runs() {
    within(|| {
        let runtime = workers(2);
        let (tell, told) = mpsc::channel();
        let (open, closed) = mpsc::channel::<()>();
        let drops = Arc::new(AtomicUsize::new(0));
        let counted = Counted(drops.clone());
        let task = runtime.handle().spawn(async move {
            let _counted = counted;
            tell.send(()).unwrap();
            let _ = closed.recv();
        });
        told.recv().expect("it runs");
        let (handle, opener) = (runtime.handle().clone(), {
            let handle = runtime.handle().clone();
            thread::spawn(move || {
                // Spawns are refused from the moment that the runtime ends.
                while !handle.spawn(async {}).is_finished() {
                    thread::yield_now();
                }
                drop(open);
            })
        });
        drop(runtime);
        assert_eq!(drops.load(SeqCst), 1, "the drop came back before the task had ended");
        future::block_on(task).expect("it came to its end");
        opener.join().unwrap();
        is_cancelled(handle.spawn(async {}));
    });
}

/// In a task it would wait for itself.
#[test]
fn to_shut_down_inside_a_task_panics_and_ends_the_runtime_all_the_same() {
    within(|| {
        let runtime = workers(2);
        let handle = runtime.handle().clone();
        let task = handle.spawn(async move { panic_of(move || drop(runtime.shutdown_timeout(PATIENCE))) });
        let said = future::block_on(task).expect("it is caught");
        assert!(said.contains("Runtime::shutdown_timeout") && said.contains("inside a runtime"), "{said}");
        refuses_tasks(&handle);
    });
}

/// Destructors do what they always did: spawn a farewell, wake a friend on another worker.
#[test]
fn tasks_may_spawn_and_wake_in_their_drops_at_the_end() {
    within(|| {
        for round in 0..30 {
            let count = SEVERAL[round % 3];
            let refused: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
            let drops = Arc::new(AtomicUsize::new(0));
            let runtime = workers(count);
            let friends: Arc<Mutex<Vec<Waker>>> = Arc::default();
            let make = {
                let (refused, drops, friends) = (refused.clone(), drops.clone(), friends.clone());
                move || {
                    let in_drop = OnDrop::new({
                        let (refused, drops, friends) = (refused.clone(), drops.clone(), friends.clone());
                        move || {
                            let known = friends.lock().unwrap().clone();
                            known.iter().for_each(Waker::wake_by_ref);
                            let [first, second, third] = [(); 3].map(|()| Counted(drops.clone()));
                            let handle = Handle::current();
                            let tasks = [spawn(hold(first)), spawn_local(hold(second)), handle.spawn(hold(third))];
                            refused.lock().unwrap().extend(tasks);
                        }
                    });
                    let friends = friends.clone();
                    poll_fn(move |cx| {
                        let _ = &in_drop;
                        friends.lock().unwrap().push(cx.waker().clone());
                        Poll::<()>::Pending
                    })
                }
            };
            for _ in 0..6 {
                drop(runtime.handle().spawn(make()));
            }
            on_each_worker(runtime.handle(), count, move |_| drop(spawn_local(make())));
            drop(runtime);
            let refused = std::mem::take(&mut *refused.lock().unwrap());
            assert_eq!(refused.len(), 3 * (6 + count), "each destructor must have run to its end, once");
            assert_eq!(drops.load(SeqCst), refused.len(), "what was refused must be dropped");
            refused.into_iter().for_each(is_cancelled);
            friends.lock().unwrap().clear();
        }
    });
}

/// Each waits for the other, and keeps it alive.
#[test]
fn tasks_that_hold_each_others_handles_are_dropped_at_the_end() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let drops = Arc::new(AtomicUsize::new(0));
            for _ in 0..20 {
                let ring: Vec<_> = (0..3).map(|_| async_channel::bounded::<JoinHandle<()>>(1)).collect();
                let tasks = ring.iter().map(|(_, handed)| {
                    let (handed, counted) = (handed.clone(), Counted(drops.clone()));
                    runtime.handle().spawn(async move {
                        let _counted = counted;
                        let other = handed.recv().await.expect("a handle");
                        let _ = other.await;
                    })
                });
                let tasks: Vec<_> = tasks.collect();
                for (place, task) in tasks.into_iter().enumerate() {
                    ring[(place + 1) % 3].0.try_send(task).expect("there is room");
                }
            }
            on_each_worker(runtime.handle(), count, |_| ());
            drop(runtime);
            assert_eq!(drops.load(SeqCst), 60, "every future is dropped once");
        }
    });
}

/// A socket may be anybody's: who waits for it outside must not wait for ever, and can go on elsewhere.
#[test]
fn who_waits_outside_on_a_socket_of_a_worker_fails_once_when_the_runtime_ends() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let (stream, mut peer) = pair_with_std();
            let stream = Arc::new(stream);
            // A worker watches it.
            future::block_on(runtime.handle().spawn({
                let stream = stream.clone();
                async move { assert!(poll_once(stream.readable()).await.is_none(), "nothing was sent") }
            }))
            .expect("it waits");
            let waiting = Arc::new(AtomicBool::new(false));
            let outside = thread::spawn({
                let (stream, waiting) = (stream.clone(), waiting.clone());
                move || {
                    let (mut byte, mut stream) = ([0], &*stream);
                    let mut read = std::pin::pin!(stream.read(&mut byte));
                    future::block_on(poll_fn(|cx| {
                        let polled = read.as_mut().poll(cx);
                        waiting.store(true, SeqCst);
                        polled
                    }))
                }
            });
            while !waiting.load(SeqCst) {
                thread::yield_now();
            }
            drop(runtime);
            outside.join().expect("it does not panic").expect_err("its runtime has ended");
            peer.write_all(b"x").expect("write");
            assert_eq!(workers(2).block_on(async { (&*stream).read(&mut [0]).await }).expect("it goes on"), 1);
        }
    });
}

/// Short-lived runtimes, as a test suite makes them: each takes everything down that it put up.
#[test]
fn a_hundred_runtimes_of_several_workers_leave_no_descriptor_and_no_thread() {
    in_own_process("a_hundred_runtimes_of_several_workers_leave_no_descriptor_and_no_thread", || {
        let life = |count| {
            let runtime = workers(count);
            drop(runtime.handle().spawn(sleep(HOUR)));
            let kept = runtime.block_on(async {
                let (ours, theirs) = pair().await;
                will_reset(&ours);
                will_reset(&theirs);
                drop(spawn(async move { theirs.readable().await }));
                drop(spawn_local(sleep(HOUR)));
                spawn_blocking(|| ()).await.expect("it runs");
                yield_now().await;
                ours
            });
            on_each_worker(runtime.handle(), count, |_| drop(spawn_local(pending::<()>())));
            drop(runtime);
            drop(kept);
        };
        let (descriptors, threads) = (count_of("fd"), count_of("task"));
        for count in [2, 4] {
            (0..100).for_each(|_| life(count));
            leaves(threads, descriptors);
        }
        (0..100).for_each(|_| drop(workers(2)));
        leaves(threads, descriptors);
    });
}

/// Its threads end too, among other thread-locals, when a thread ends that keeps a runtime.
#[test]
fn a_runtime_of_several_workers_may_be_dropped_in_a_task_of_another() {
    within(|| {
        let outer = workers(2);
        let drops = Arc::new(AtomicUsize::new(0));
        let inner = workers(2);
        let task = inner.handle().spawn(hold(Counted(drops.clone())));
        let ended = outer.handle().spawn(async move {
            drop(inner);
            // This thread is the outer runtime's.
            spawn(ready(1)).await.expect("it runs")
        });
        assert_eq!(future::block_on(ended).expect("it ends"), 1);
        is_cancelled(task);
        assert_eq!(drops.load(SeqCst), 1);
    });
}

// ---- what the tests do, and look at ----

/// A hundred tasks say that they have run while `bad` blocks; only then is it let go.
#[track_caller]
fn all_run_while_it_blocks(runs: &mpsc::Receiver<()>, bad: JoinHandle<()>, open: mpsc::Sender<()>) {
    for _ in 0..100 {
        runs.recv().expect("another worker runs it");
    }
    assert!(!bad.is_finished(), "the task blocks until here");
    drop(open);
    future::block_on(bad).expect("it ends");
}

/// Runs `test` on runtimes of several workers: beside nothing, and beside tasks that keep every worker busy that is not stuck.
#[track_caller]
fn on_runtimes_that_are_idle_or_busy(test: impl Fn(&Runtime, usize) + Send + 'static) {
    within(move || {
        for (count, is_busy) in SEVERAL.into_iter().flat_map(|count| [(count, false), (count, true)]) {
            let runtime = workers(count);
            if is_busy {
                (0..2 * count).for_each(|_| drop(runtime.handle().spawn(busy())));
            }
            test(&runtime, count);
        }
    });
}

async fn here_after_yielding() -> ThreadId {
    yield_now().await;
    here()
}

/// Computes for so long.
fn spin(duration: Duration) {
    let begin = std::time::Instant::now();
    while begin.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Spawns another of its kind, for ever.
fn offspring(spawns: Arc<AtomicUsize>, drops: Arc<AtomicUsize>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    spawns.fetch_add(1, SeqCst);
    let counted = Counted(drops.clone());
    Box::pin(async move {
        let _counted = counted;
        drop(spawn(offspring(spawns.clone(), drops.clone())));
        yield_now().await;
    })
}

/// Waits for a task that has to be cancelled.
#[track_caller]
fn is_cancelled<T>(task: JoinHandle<T>) {
    let error = future::block_on(task).map(drop).expect_err("the task must not have an output");
    assert!(error.is_cancelled(), "{error}");
}

/// Waits until a runtime that was told to end takes no more tasks. Those that it still takes come to an end, too.
#[track_caller]
fn refuses_tasks(handle: &Handle) {
    while future::block_on(handle.spawn(async {})).is_ok() {
        thread::yield_now();
    }
}

/// Waits until there are no more threads than that, and looks at the descriptors.
#[track_caller]
fn leaves(threads: usize, descriptors: usize) {
    // The kernel lists a thread for a moment after it was joined.
    while count_of("task") > threads {
        thread::yield_now();
    }
    assert_eq!(count_of("fd"), descriptors, "descriptors are left");
}

/// The names of this process's threads that begin so.
#[cfg(target_os = "linux")]
fn threads_called(begin: &str) -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    let mut names: Vec<_> = names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with(begin)).collect();
    names.sort_unstable();
    names
}

/// Words for one task, from anybody.
#[derive(Default)]
struct Mailbox {
    words: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Mailbox {
    /// Waits for a word and takes it.
    async fn take(&self) {
        poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            match self.words.fetch_update(SeqCst, SeqCst, |words| words.checked_sub(1)) {
                Ok(_) => Poll::Ready(()),
                Err(_) => Poll::Pending,
            }
        })
        .await;
    }

    fn put(&self) {
        self.words.fetch_add(1, SeqCst);
        // The only wake that there is for this word.
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes for nothing.
    fn disturb(&self) {
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
    }
}

/// What became of local tasks.
#[derive(Default)]
struct Tally {
    words: AtomicUsize,
    drops: AtomicUsize,
    /// Polls and drops on another thread than their own.
    strays: AtomicUsize,
}

/// Knows its thread, and counts when it finds itself on another.
struct Homebody {
    home: ThreadId,
    tally: Arc<Tally>,
    _not_send: Rc<()>,
}

impl Homebody {
    fn new(tally: &Arc<Tally>) -> Self {
        Self { home: here(), tally: tally.clone(), _not_send: Rc::default() }
    }

    fn check(&self) {
        self.tally.strays.fetch_add(usize::from(here() != self.home), SeqCst);
    }
}

impl Drop for Homebody {
    fn drop(&mut self) {
        self.check();
        self.tally.drops.fetch_add(1, SeqCst);
    }
}
