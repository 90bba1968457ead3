//! Which worker runs which task: stealing, blocked workers, and fairness between tasks.

use std::collections::HashMap;
use std::future::{pending, ready};
use std::io::{Read, Write};
use std::panic::resume_unwind;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};

use crate::support::*;
use crate::{HOUR, MS, SEVERAL, assert_cancelled};
use futures_lite::future::{self, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::time::{Duration, sleep};
use kittiwake::{spawn, spawn_local};

/// When one task spawns many, each worker gets a share of them.
#[test]
fn burst_of_spawns_is_shared() {
    const BURST: usize = 10_000;
    // A worker that the machine holds up runs few tasks, so an attempt may fail. Without stealing each attempt fails.
    const ATTEMPTS: usize = 10;
    within(|| {
        for count in [2, 4] {
            // A tenth of an equal share: the machine may be busy with other programs.
            let least = BURST / count / 10;
            let mut unfair = Vec::new();
            loop {
                let ran_on = run_burst(count, BURST);
                assert_eq!(ran_on.values().sum::<usize>(), BURST, "each task must run once");
                if ran_on.len() == count && ran_on.values().all(|ran| *ran > least) {
                    break;
                }
                unfair.push(ran_on);
                assert!(
                    unfair.len() < ATTEMPTS,
                    "each of {count} workers must run a share of the {BURST} tasks: {unfair:?}"
                );
            }
        }
    });
}

/// Spawns `burst` tasks from one task, and returns how many of them each worker ran.
fn run_burst(count: usize, burst: usize) -> HashMap<ThreadId, usize> {
    let runtime = workers(count);
    // A thread that has only just been created may begin when the burst is over.
    on_each_worker(runtime.handle(), count, |_| ());
    let ran_on: Arc<Mutex<HashMap<ThreadId, usize>>> = Arc::default();
    let parent = runtime.handle().spawn({
        let ran_on = ran_on.clone();
        async move {
            let tasks: Vec<_> = (0..burst)
                .map(|_| {
                    let ran_on = ran_on.clone();
                    spawn(async move {
                        spin(Duration::from_micros(20));
                        *ran_on.lock().unwrap().entry(here()).or_default() += 1;
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("the task runs");
            }
        }
    });
    future::block_on(parent).expect("the task ends");
    std::mem::take(&mut ran_on.lock().unwrap())
}

/// Tasks that a task spawned before it blocks run on other workers.
#[test]
fn spawned_tasks_leave_blocked_worker() {
    on_idle_and_busy_runtimes(|runtime, _| {
        let (open, closed) = mpsc::channel::<()>();
        let (ran, runs) = mpsc::channel();
        let bad = runtime.handle().spawn(async move {
            for _ in 0..100 {
                let ran = ran.clone();
                drop(spawn(async move { ran.send(()).unwrap() }));
            }
            let _ = closed.recv();
        });
        all_run_while_blocked(&runs, bad, open);
    });
}

/// Tasks that a task woke before it blocks run on other workers, and so do tasks that were woken on its worker
/// earlier.
#[test]
fn woken_tasks_leave_blocked_worker() {
    on_idle_and_busy_runtimes(|runtime, _| {
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
        all_run_while_blocked(&runs, bad, open);
    });
}

/// A wake from outside a runtime does not leave its task on the blocked worker on which it ran last.
#[test]
fn outside_wake_avoids_blocked_worker() {
    on_idle_and_busy_runtimes(|runtime, count| {
        let others = block_workers(runtime.handle(), count - 1);
        let (wake, woken) = async_channel::bounded::<()>(1);
        let ((ran, runs), (notify, notified)) = (mpsc::channel(), mpsc::channel());
        let (open, closed) = mpsc::channel::<()>();
        // One worker is left for this task and its children.
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
            notify.send(()).unwrap();
            let _ = closed.recv();
        });
        notified.recv().expect("the children wait");
        drop(others);
        drop(wake);
        all_run_while_blocked(&runs, bad, open);
    });
}

/// A task that is woken from outside an idle runtime runs on the worker where it ran last, wherever it was spawned.
#[test]
fn woken_task_runs_where_it_ran_last() {
    const MOVES: usize = 20;
    // If the machine holds the worker up, the other one takes the task, so an attempt may fail.
    const ATTEMPTS: usize = 5;
    within(|| {
        let mut stayed = Vec::new();
        // If the task ran where it was spawned, none would be right. On any worker, half would be.
        while stayed.last().is_none_or(|stayed| *stayed <= MOVES * 3 / 4) {
            assert!(stayed.len() < ATTEMPTS, "of {MOVES} moves the task stayed after {stayed:?} where it had moved to");
            stayed.push(moves_that_last(MOVES));
        }
    });
}

/// Moves a task to the other one of two workers by blocking its own. Returns after how many of the moves it ran again
/// where it had moved to.
fn moves_that_last(moves: usize) -> usize {
    let runtime = workers(2);
    let (wake, woken) = async_channel::unbounded::<()>();
    let (ran, runs) = mpsc::channel();
    let task = runtime.handle().spawn(async move {
        while woken.recv().await.is_ok() {
            ran.send(here()).expect("the test waits");
        }
    });
    let run = || {
        wake.try_send(()).expect("the task goes on");
        runs.recv().expect("the task runs")
    };
    let mut last = run();
    let mut stayed = 0;
    for _ in 0..moves {
        let (at_last, at_other): (Vec<_>, Vec<_>) =
            block_workers(runtime.handle(), 2).into_iter().partition(|blocked| blocked.thread == last);
        wake.try_send(()).expect("the task goes on");
        drop(at_other);
        let moved_to = runs.recv().expect("the task runs on the free worker");
        assert_ne!(moved_to, last, "a blocked worker runs nothing");
        drop(at_last);
        quiet_metrics(&runtime);
        last = run();
        stayed += usize::from(last == moved_to);
    }
    drop(wake);
    future::block_on(task).expect("the task ends");
    stayed
}

/// A local task in the queue of a blocked worker does not hide the tasks behind it from stealing.
#[test]
fn queued_local_tasks_block_no_stealing() {
    on_idle_and_busy_runtimes(|runtime, _| {
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
            runs.recv().expect("another worker runs the task");
        }
        assert!(local_runs.try_recv().is_err(), "a local task ran although its worker is blocked");
        drop(open);
        let there = future::block_on(bad).expect("the task ends");
        for _ in 0..30 {
            assert_eq!(
                local_runs.recv().expect("the task's own worker runs it"),
                there,
                "a local task ran on another worker"
            );
        }
    });
}

/// A task that is spawned from outside runs on a worker that is not blocked.
#[test]
fn outside_spawn_avoids_blocked_workers() {
    on_idle_and_busy_runtimes(|runtime, count| {
        let blocked = block_workers(runtime.handle(), count - 1);
        let tasks: Vec<_> = (0..100).map(|i| runtime.handle().spawn(ready(i))).collect();
        let sum: usize = tasks.into_iter().map(|task| future::block_on(task).expect("the task runs")).sum();
        assert_eq!(sum, 4950);
        drop(blocked);
    });
}

/// When the events of one batch wake many tasks and the first of them blocks, the others run on other workers.
#[test]
fn same_batch_leaves_blocked_worker() {
    const SOCKETS: usize = 40;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let others = block_workers(runtime.handle(), count - 1);
            let ((open, closed), (first, is_first)) = (mpsc::channel::<()>(), mpsc::channel());
            // The task that runs first takes this channel and blocks on it.
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
            // The only free worker is blocked until all bytes are there, so one batch reports them all.
            let last = block_workers(runtime.handle(), 1);
            for peer in &mut peers {
                peer.write_all(b"x").expect("write");
            }
            drop((others, last));
            is_first.recv().expect("one task runs first");
            for _ in 1..SOCKETS {
                runs.recv().expect("another worker runs the task");
            }
            assert!(runs.try_recv().is_err(), "the first task must block until here");
            drop(open);
            runs.recv().expect("the task ends");
        }
    });
}

/// A panic of a task, in its poll or in its drop, does not end its worker.
#[test]
fn workers_survive_task_panics() {
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
            assert!(future::block_on(task).expect_err("the task panics").is_panic());
        }
        on_each_worker(runtime.handle(), 2, |_| ());
    });
}

/// A task that is woken together with a local task does not wait for it. One event wakes both, the local task runs
/// first, and every other worker sleeps: the woken worker must wake another.
#[test]
fn woken_task_overtakes_local_task() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).spin(Duration::ZERO).build().expect("a runtime");
        for other_entries in 0..4 {
            let (ours, mut peer) = pair_with_std();
            let ours = Arc::new(ours);
            let (waits, waiting) = mpsc::channel();
            let (open, gate) = mpsc::channel::<()>();
            let (has_run, ran) = mpsc::channel();
            drop(runtime.handle().spawn(async move {
                let shared = ours.clone();
                drop(spawn_local(async move {
                    // The number of entries that ran before decides which of the two kinds runs next.
                    for _ in 0..other_entries {
                        yield_now().await;
                    }
                    ours.readable().await.expect("readable");
                    gate.recv().expect("the other task has run");
                }));
                yield_now().await;
                waits.send(()).unwrap();
                shared.readable().await.expect("readable");
                has_run.send(()).unwrap();
            }));
            waiting.recv().expect("both tasks wait, or soon will");
            quiet_metrics(&runtime);
            peer.write_all(b"x").expect("write");
            ran.recv().expect("the task runs on another worker, or first");
            open.send(()).unwrap();
        }
    });
}

/// A worker that spins for an hour and watches the others still runs tasks that wait behind a stuck one.
#[test]
fn spinning_worker_watches_the_others() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).spin(HOUR).build().expect("a runtime");
        wait_for_first_turns(&runtime);
        let (has_run, ran) = mpsc::channel();
        let parent = runtime.handle().spawn(async move {
            drop(spawn(async move { has_run.send(()).unwrap() }));
            ran.recv().expect("the task runs on another worker");
        });
        future::block_on(parent).expect("the task ends");
    });
}

/// Waits until both workers have had a turn of their reactor.
fn wait_for_first_turns(runtime: &Runtime) {
    while runtime.handle().metrics().workers().iter().any(|worker| worker.turns == 0) {
        thread::yield_now();
    }
}

/// The task of a runtime owns the last reference to the runtime in which the first one is dropped. The worker must
/// not wait for itself.
#[test]
fn nested_runtime_may_own_outer() {
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
        ended.recv().expect("no thread waits for itself");
    });
}

/// A local task runs although the shared queue is never empty.
#[test]
fn local_task_runs_beside_busy_tasks() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            // All of this runs on the only free worker, so no other worker steals the busy tasks.
            let blocked = block_workers(runtime.handle(), count - 1);
            let (hand, handed) = mpsc::channel();
            drop(runtime.handle().spawn(async move {
                (0..3).for_each(|_| drop(spawn(busy())));
                hand.send(spawn_local(here_after_yielding())).unwrap();
            }));
            let local = handed.recv().expect("the task is spawned");
            let thread = future::block_on(local).expect("the task runs");
            assert!(blocked.iter().all(|blocked| blocked.thread != thread));
        }
    });
}

/// A local task gets socket events, timers and wakes on a worker whose other tasks never wait.
#[test]
fn local_task_gets_events_beside_busy() {
    within(|| {
        let runtime = workers(2);
        let _stuck = block_workers(runtime.handle(), 1);
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
        let local = handed.recv().expect("the task is spawned");
        begun.recv().expect("the task begins");
        // From here on the worker always has another task to run.
        let busy = runtime.handle().spawn(async { (0..3).for_each(|_| drop(spawn(busy()))) });
        future::block_on(busy).expect("the tasks begin");
        send.send_blocking(()).unwrap();
        peer.write_all(b"x").expect("write");
        peer.read_exact(&mut [0]).expect("the task answers");
        future::block_on(local).expect("the task ends");
    });
}

/// Local tasks that never wait do not keep their worker from the shared tasks.
#[test]
fn task_runs_beside_busy_local_tasks() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let locals = on_each_worker(runtime.handle(), count, |_| [(); 3].map(|()| spawn_local(busy())));
            let tasks: Vec<_> = (0..100).map(|_| runtime.handle().spawn(here_after_yielding())).collect();
            for task in tasks {
                let _ = future::block_on(task).expect("the task runs");
            }
            assert!(locals.iter().flatten().all(|local| !local.is_finished()));
        }
    });
}

/// A blocked worker delays the end of the runtime, but the other workers still end their tasks and connections.
#[test]
fn shutdown_reaches_unblocked_workers() {
    within(|| {
        for never_waits in [false, true] {
            let runtime = workers(2);
            let blocked = block_workers(runtime.handle(), 1);
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
            let error = runtime.shutdown_timeout(MS).expect_err("a worker is blocked");
            assert!(error.workers_running() > 0);
            tasks.into_iter().for_each(assert_cancelled);
            assert_eq!(drops.load(SeqCst), 5);
            drop(blocked);
        }
    });
}

/// Waits until a hundred tasks have run while `bad` blocks, and then lets `bad` end.
#[track_caller]
fn all_run_while_blocked(runs: &mpsc::Receiver<()>, bad: JoinHandle<()>, open: mpsc::Sender<()>) {
    for _ in 0..100 {
        runs.recv().expect("another worker runs the task");
    }
    assert!(!bad.is_finished(), "the task must block until here");
    drop(open);
    future::block_on(bad).expect("the task ends");
}

/// Runs `test` on idle runtimes, and on runtimes whose workers are busy unless they are blocked.
#[track_caller]
fn on_idle_and_busy_runtimes(test: impl Fn(&Runtime, usize) + Clone + Send + 'static) {
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
