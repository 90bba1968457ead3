//! The end of a runtime of several workers.

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn, ready};
use std::io::{Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};

use crate::support::*;
use crate::{HOUR, MS, SEVERAL, assert_cancelled};
use futures_lite::future::{self, poll_once};
use kittiwake::io::AsyncReadExt;
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::time::sleep;
use kittiwake::{spawn, spawn_blocking, spawn_local};

/// A dropped runtime drops every task on one of its workers before the drop returns, and reports the tasks as
/// cancelled.
#[test]
fn workers_drop_tasks_at_shutdown() {
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
            // Some tasks wait, some have not begun, and some never wait.
            tasks.extend((0..20).map(|_| runtime.handle().spawn(hold(note()))));
            tasks.extend((0..5).map(|_| {
                let note = note();
                runtime.handle().spawn(async move {
                    let _note = note;
                    busy().await;
                })
            }));
            let blocked = block_workers(runtime.handle(), count);
            tasks.extend((0..20).map(|_| runtime.handle().spawn(hold(note()))));
            drop(blocked);
            drop(runtime);
            let dropped_on = std::mem::take(&mut *dropped_on.lock().unwrap());
            assert_eq!(dropped_on.len(), 65, "every future must be dropped once, before the runtime's drop returns");
            assert!(dropped_on.iter().all(|thread| threads.contains(thread)), "a worker must drop each task");
            tasks.into_iter().for_each(assert_cancelled);
            for peer in &mut peers {
                assert_eq!(peer.read(&mut [0]).expect("an orderly end"), 0, "the peer must read the end of the stream");
            }
        }
    });
}

/// A task may drop the last reference to its own runtime: one of a server's connections may tell the server to end.
#[test]
fn task_may_drop_its_runtime() {
    in_own_process("shutdown::task_may_drop_its_runtime", || {
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
                // The task does not wait for itself: the runtime ends when the task next waits.
                drop(handed.recv().await.expect("the last reference to the runtime"));
                hold(counted).await;
            }));
            let handle = runtime.handle().clone();
            hand.try_send(runtime).expect("the channel has room");
            tasks.into_iter().for_each(assert_cancelled);
            wait_until_spawn_fails(&handle);
            assert_nothing_left(threads, descriptors);
            assert_eq!(drops.load(SeqCst), 21 + count, "every future must be dropped once");
        }
    });
}

/// A task that drops its own runtime and ends in the same poll has an output.
#[test]
fn runtime_dropping_task_keeps_output() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let handle = runtime.handle().clone();
            let last = handle.spawn(async move {
                drop(runtime);
                "done"
            });
            assert_eq!(future::block_on(last).expect("the task ends by itself"), "done");
            wait_until_spawn_fails(&handle);
        }
    });
}

/// Aborts, wakes and spawns after the end of a runtime return at once and have no effect.
#[test]
fn late_calls_do_nothing() {
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
            runtime.shutdown_timeout(PATIENCE).expect("nothing delays the shutdown");
            assert_eq!(drops.load(SeqCst), 1);
            task.abort();
            assert_cancelled(task);
            wakers.lock().unwrap().drain(..).for_each(Waker::wake);
            for _ in 0..3 {
                let late = handle.spawn(hold(Counted(drops.clone())));
                assert!(late.is_finished(), "a task that was spawned after the end must be finished");
                assert_cancelled(late);
                assert!(
                    future::block_on(handle.spawn_blocking(|| ()))
                        .expect_err("no thread runs the closure")
                        .is_cancelled()
                );
            }
            assert_eq!(drops.load(SeqCst), 4, "a refused future must be dropped");
        }
    });
}

/// A runtime ends although wakes are in every queue.
#[test]
fn wake_storm_does_not_delay_shutdown() {
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
                    // Each task wakes another one.
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
            assert_eq!(drops.load(SeqCst), 10 + 5 * count, "every future must be dropped once, in round {round}");
            tasks.into_iter().for_each(assert_cancelled);
            stop.store(true, SeqCst);
            storm.join().unwrap();
            progress();
        }
    });
}

/// Each task that is spawned while the runtime ends runs or is cancelled. None is lost, and none keeps the runtime
/// from ending.
#[test]
fn spawn_storm_does_not_delay_shutdown() {
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
            // These tasks spawn further tasks for ever.
            for _ in 0..4 {
                drop(runtime.handle().spawn(offspring(spawns.clone(), drops.clone())));
            }
            runtime.block_on(until(|| spawns.load(SeqCst) > 200));
            drop(runtime);
            for spawner in spawners {
                spawner.join().expect("a spawner").into_iter().for_each(assert_cancelled);
            }
            assert_eq!(drops.load(SeqCst), spawns.load(SeqCst), "every future must be dropped once, in round {round}");
            progress();
        }
    });
}

/// `shutdown_timeout` reports a blocked worker, and the worker ends once its task returns.
#[test]
fn shutdown_reports_blocked_worker() {
    in_own_process("shutdown::shutdown_reports_blocked_worker", || {
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
            let blocked = block_workers(&handle, 1);
            let ((end, ended), (begin, begun)) = (mpsc::channel::<()>(), mpsc::channel());
            let closure = handle.spawn_blocking(move || {
                begin.send(()).unwrap();
                ended.recv().is_err()
            });
            begun.recv().expect("the task begins");
            let error = runtime.shutdown_timeout(10 * MS).expect_err("a task is blocked");
            // The other workers may have to wait for the blocked one.
            assert!((1..=count).contains(&error.workers_running()), "{error:?}");
            assert_eq!(error.closures_running(), 1);
            let message = error.to_string();
            assert!(message.contains("worker") && message.contains("1 blocking task"), "{message}");
            wait_until_spawn_fails(&handle);
            drop(blocked);
            drop(end);
            assert!(future::block_on(closure).expect("a running closure continues to its end"));
            tasks.into_iter().for_each(assert_cancelled);
            assert_nothing_left(threads, descriptors);
            assert_eq!(drops.load(SeqCst), 10 + count, "every future must be dropped once");
        }
    });
}

/// The time of `shutdown_timeout` includes the destructors of the threads' thread-locals, which may block.
#[test]
fn timeout_includes_thread_local_destructors() {
    type Blocks = OnDrop<Box<dyn FnOnce()>>;
    thread_local! {
        static BLOCKS: RefCell<Option<Blocks>> = const { RefCell::new(None) };
    }
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let (end, ended) = mpsc::channel::<()>();
            let ended = Arc::new(Mutex::new(ended));
            let block = move || {
                let ended = ended.clone();
                BLOCKS.set(Some(OnDrop::new(Box::new(move || assert!(ended.lock().unwrap().recv().is_err())))));
            };
            on_each_worker(runtime.handle(), count, {
                let block = block.clone();
                move |_| block()
            });
            future::block_on(runtime.handle().spawn_blocking(block)).expect("the closure runs");
            let error = runtime.shutdown_timeout(20 * MS).expect_err("the threads' destructors block");
            // On a slow machine, a thread may not have come to its destructors.
            let threads = error.workers_running() + error.closures_running() + error.threads_ending();
            assert_eq!(threads, count + 1, "each thread must be reported once: {error}");
            drop(end);
        }
    });
}

/// The time of `shutdown_timeout` does not wait for the destructors of closures that have not begun, and none of them
/// begins, although the workers are stuck.
#[test]
fn timeout_includes_queued_closures() {
    within(|| {
        let runtime = few_blocking_threads(2, 1);
        let handle = runtime.handle().clone();
        let blocked = block_workers(&handle, 2);
        let ((end, ended), (begin, begun)) = (mpsc::channel::<()>(), mpsc::channel());
        let running = handle.spawn_blocking(move || {
            begin.send(()).unwrap();
            let _ = ended.recv();
        });
        begun.recv().expect("the closure begins");
        let (open, closed) = mpsc::channel::<()>();
        let blocks = OnDrop::new(move || assert!(closed.recv().is_err()));
        let queued = handle.spawn_blocking(move || drop(blocks));
        let error = runtime.shutdown_timeout(20 * MS).expect_err("the workers and a closure are stuck");
        assert_eq!((error.workers_running(), error.tasks_alive(), error.closures_running()), (2, 2, 1), "{error}");
        assert_eq!(error.threads_ending(), 0);
        assert_eq!(error.to_string(), "the runtime did not end in time: 2 workers, 2 tasks, 1 blocking task went on");
        drop(end);
        future::block_on(running).expect("a running closure continues to its end");
        drop(open);
        assert_cancelled(queued);
        drop(blocked);
    });
}

/// `shutdown_background` waits for no task and for no closure, and can be called on a worker. All tasks are cancelled.
#[test]
fn background_shutdown_waits_for_nothing() {
    within(|| {
        for count in SEVERAL {
            let runtime = few_blocking_threads(count, 1);
            let handle = runtime.handle().clone();
            let waiting: Vec<_> = (0..10).map(|_| handle.spawn(pending::<()>())).collect();
            let ((end, ended), (begin, begun)) = (mpsc::channel::<()>(), mpsc::channel());
            let running = handle.spawn_blocking(move || {
                begin.send(()).unwrap();
                ended.recv().is_err()
            });
            begun.recv().expect("the closure begins");
            let queued = handle.spawn_blocking(|| ());
            let blocked = (count > 1).then(|| block_workers(&handle, count - 1));
            let ending = handle.spawn(async move { runtime.shutdown_background() });
            future::block_on(ending).expect("the task ends by itself");
            wait_until_spawn_fails(&handle);
            drop(end);
            assert!(future::block_on(running).expect("a running closure continues to its end"));
            assert_cancelled(queued);
            drop(blocked);
            waiting.into_iter().for_each(assert_cancelled);
        }
    });
}

/// `shutdown_background` of a current-thread runtime drops the tasks before it returns, also inside another runtime.
#[test]
fn background_shutdown_drops_own_tasks() {
    run(|| async {
        let (runtime, drops) = (one_worker(), Arc::new(AtomicUsize::new(0)));
        let task = runtime.handle().spawn(hold(Counted(drops.clone())));
        runtime.shutdown_background();
        assert_eq!(drops.load(SeqCst), 1);
        assert_cancelled(task);
    });
}

/// A drop of the runtime waits for a poll that is under way.
#[test]
fn drop_waits_for_running_task() {
    within(|| {
        let runtime = workers(2);
        let (notify, notified) = mpsc::channel();
        let (open, closed) = mpsc::channel::<()>();
        let drops = Arc::new(AtomicUsize::new(0));
        let counted = Counted(drops.clone());
        let task = runtime.handle().spawn(async move {
            let _counted = counted;
            notify.send(()).unwrap();
            let _ = closed.recv();
        });
        notified.recv().expect("the task runs");
        let (handle, opener) = (runtime.handle().clone(), {
            let handle = runtime.handle().clone();
            thread::spawn(move || {
                // The runtime refuses spawns from the moment that it begins to end.
                while !handle.spawn(async {}).is_finished() {
                    thread::yield_now();
                }
                drop(open);
            })
        });
        drop(runtime);
        assert_eq!(drops.load(SeqCst), 1, "the drop returned before the task had ended");
        future::block_on(task).expect("the task ends");
        opener.join().unwrap();
        assert_cancelled(handle.spawn(async {}));
    });
}

/// `shutdown_timeout` inside a task panics, because the task would wait for itself. The runtime ends all the same.
#[test]
fn shutdown_inside_task_panics() {
    within(|| {
        let runtime = workers(2);
        let handle = runtime.handle().clone();
        let task = handle.spawn(async move { panic_of(move || drop(runtime.shutdown_timeout(PATIENCE))) });
        let message = future::block_on(task).expect("the task catches the panic");
        assert!(message.contains("Runtime::shutdown_timeout") && message.contains("inside a runtime"), "{message}");
        wait_until_spawn_fails(&handle);
    });
}

/// A task may spawn and wake other tasks in its drop while the runtime ends.
#[test]
fn drops_may_spawn_and_wake() {
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
            assert_eq!(drops.load(SeqCst), refused.len(), "a refused future must be dropped");
            refused.into_iter().for_each(assert_cancelled);
            friends.lock().unwrap().clear();
        }
    });
}

/// Tasks that hold each other's handles are dropped when the runtime ends, although each keeps the next alive.
#[test]
fn handle_cycles_are_dropped() {
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
                    ring[(place + 1) % 3].0.try_send(task).expect("the channel has room");
                }
            }
            on_each_worker(runtime.handle(), count, |_| ());
            drop(runtime);
            assert_eq!(drops.load(SeqCst), 60, "every future must be dropped once");
        }
    });
}

/// A wait outside a runtime on a socket that a worker watches fails once when the runtime ends. The socket works
/// again on another runtime.
#[test]
fn outside_wait_fails_once_after_shutdown() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let (stream, mut peer) = pair_with_std();
            let stream = Arc::new(stream);
            // This registers the socket with a worker's reactor.
            future::block_on(runtime.handle().spawn({
                let stream = stream.clone();
                async move { assert!(poll_once(stream.readable()).await.is_none(), "nothing was sent") }
            }))
            .expect("the task waits");
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
            outside.join().expect("the reading thread does not panic").expect_err("the runtime has ended");
            peer.write_all(b"x").expect("write");
            assert_eq!(
                workers(2).block_on(async { (&*stream).read(&mut [0]).await }).expect("the operation continues"),
                1
            );
        }
    });
}

/// A runtime leaves no descriptor and no thread. A test suite makes many of them.
#[test]
fn hundred_runtimes_leave_nothing() {
    in_own_process("shutdown::hundred_runtimes_leave_nothing", || {
        let life = |count| {
            let runtime = workers(count);
            drop(runtime.handle().spawn(sleep(HOUR)));
            let kept = runtime.block_on(async {
                let (ours, theirs) = pair().await;
                will_reset(&ours);
                will_reset(&theirs);
                drop(spawn(async move { theirs.readable().await }));
                drop(spawn_local(sleep(HOUR)));
                spawn_blocking(|| ()).await.expect("the task runs");
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
            assert_nothing_left(threads, descriptors);
        }
        (0..100).for_each(|_| drop(workers(2)));
        assert_nothing_left(threads, descriptors);
    });
}

/// A task of one runtime may drop another runtime of several workers.
#[test]
fn runtime_may_be_dropped_in_task() {
    within(|| {
        let outer = workers(2);
        let drops = Arc::new(AtomicUsize::new(0));
        let inner = workers(2);
        let task = inner.handle().spawn(hold(Counted(drops.clone())));
        let ended = outer.handle().spawn(async move {
            drop(inner);
            // This thread belongs to the outer runtime.
            spawn(ready(1)).await.expect("the task runs")
        });
        assert_eq!(future::block_on(ended).expect("the task ends"), 1);
        assert_cancelled(task);
        assert_eq!(drops.load(SeqCst), 1);
    });
}

/// Spawns another task of its kind, for ever.
fn offspring(spawns: Arc<AtomicUsize>, drops: Arc<AtomicUsize>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    spawns.fetch_add(1, SeqCst);
    let counted = Counted(drops.clone());
    Box::pin(async move {
        let _counted = counted;
        drop(spawn(offspring(spawns.clone(), drops.clone())));
        yield_now().await;
    })
}

/// Waits until a runtime that is about to end refuses tasks. The tasks that it still accepts end too.
#[track_caller]
fn wait_until_spawn_fails(handle: &Handle) {
    while future::block_on(handle.spawn(async {})).is_ok() {
        thread::yield_now();
    }
}

/// A runtime of `count` workers with at most `limit` blocking threads.
fn few_blocking_threads(count: usize, limit: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(count).max_blocking_threads(limit).build().expect("a runtime")
}

/// Waits until the process has at most `threads` threads, and asserts the number of its descriptors.
#[track_caller]
fn assert_nothing_left(threads: usize, descriptors: usize) {
    // The kernel lists a thread for a moment after it was joined.
    while count_of("task") > threads {
        thread::yield_now();
    }
    assert_eq!(count_of("fd"), descriptors, "descriptors are left");
}
