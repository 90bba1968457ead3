//! Runtimes: where `block_on` may be called, what survives from call to call, and how a runtime ends.

// A call returns its tasks to the test in many of these tests.
#![allow(clippy::async_yields_async)]

mod support;

use std::cell::RefCell;
use std::future::{pending, poll_fn, ready};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread::ThreadId;
use std::time::Duration;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::TcpStream;
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::{JoinSet, yield_now};
use kittiwake::{block_on, spawn, spawn_local};
use support::{
    Counted, OnDrop, PATIENCE, assert_refuses, busy, count_of, hold, in_own_process, listener, one_worker,
    own_listener, pair, pair_with_std, progress, run, will_reset, within,
};

// ---- entering ----

/// `block_on` inside a runtime panics and says what to do. A thread that waited inside a task would never run the
/// task for which it waits.
#[test]
fn nested_block_on_panics() {
    run(|| async {
        let other = Runtime::new().unwrap();
        let calls: [(&str, &dyn Fn()); 2] =
            [("block_on", &|| block_on(async {})), ("Runtime::block_on", &|| other.block_on(async {}))];
        for (function, call) in calls {
            let message = panic_of(call);
            assert!(message.contains(function), "the panic must name {function}: {message}");
            assert!(
                message.contains("await") && message.contains("spawn"),
                "the panic must say what to do instead: {message}"
            );
        }
        let in_task = spawn(async { panic_of(|| block_on(async {})) }).await.unwrap();
        assert!(in_task.contains("inside a runtime"), "the panic must be the same in a task: {in_task}");
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "the outer runtime must continue");
        // The panics above have left this runtime whole, and it is no part of the outer one.
        drop(other);
    });
}

/// A runtime's own `block_on` cannot be nested in itself.
#[test]
fn block_on_cannot_nest_in_itself() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let message = runtime.block_on(async { panic_of(|| runtime.block_on(async {})) });
        assert!(message.contains("inside a runtime"), "{message}");
        assert_eq!(runtime.block_on(async { 1 }), 1, "the runtime must be usable afterwards");
    });
}

/// After a call the thread is free for the same runtime, for another one and for a new one.
#[test]
fn thread_is_free_after_block_on() {
    within(|| {
        let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
        for _ in 0..3 {
            assert_eq!(first.block_on(ready(1)), 1);
            assert_eq!(second.block_on(ready(2)), 2);
            assert_eq!(block_on(ready(3)), 3);
            assert!(Handle::try_current().is_err(), "the thread must be outside the runtime again");
        }
    });
}

/// A spawn outside a runtime panics and says what to do, because no runtime would run the task.
#[test]
fn spawning_outside_a_runtime_panics() {
    within(|| {
        let mut set = JoinSet::new();
        let calls: [(&str, &mut dyn FnMut()); 4] = [
            ("spawn", &mut || drop(spawn(async {}))),
            ("spawn_local", &mut || drop(spawn_local(async {}))),
            ("JoinSet::spawn", &mut || drop(set.spawn(async {}))),
            ("Handle::current", &mut || drop(Handle::current())),
        ];
        for (function, call) in calls {
            let message = panic_of(call);
            assert!(message.contains(function), "the panic must name {function}: {message}");
            assert!(message.contains("block_on"), "the panic must say where to call {function}: {message}");
        }
        assert!(set.is_empty(), "no task may have been spawned");
        let error = Handle::try_current().unwrap_err();
        assert!(error.to_string().contains("not inside a kittiwake runtime"), "{error}");
    });
}

/// The panic of a misplaced call points to the caller's line.
#[test]
fn panic_points_to_the_caller() {
    within(|| {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new({
            let (seen, test) = (seen.clone(), std::thread::current().id());
            move |info| {
                if std::thread::current().id() == test {
                    seen.lock().unwrap().push(info.location().expect("a location").file().to_owned());
                } else {
                    default(info);
                }
            }
        }));
        let _ = catch_unwind(|| drop(spawn(async {})));
        let _ = catch_unwind(|| drop(spawn_local(async {})));
        let _ = catch_unwind(|| drop(Handle::current()));
        let _ = catch_unwind(|| drop(JoinSet::new().spawn(async {})));
        let _ = catch_unwind(|| block_on(async { block_on(async {}) }));
        let _ = catch_unwind(|| block_on(async { Runtime::new().unwrap().block_on(async {}) }));
        let _ = std::panic::take_hook();
        assert_eq!(*seen.lock().unwrap(), [file!(); 6]);
    });
}

// ---- from call to call ----

/// A `Send` task belongs to the runtime and not to the call. It continues in the next call, even on another thread.
#[test]
fn task_continues_in_next_call() {
    within(|| {
        let runtime = Arc::new(one_worker());
        let polled_on: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
        let task = runtime.block_on(async {
            let polled_on = polled_on.clone();
            let task = spawn(async move {
                for _ in 0..3 {
                    polled_on.lock().unwrap().push(std::thread::current().id());
                    yield_now().await;
                }
                "ended"
            });
            yield_now().await;
            task
        });
        assert!(!task.is_finished(), "the task has two polls left");
        let there = std::thread::spawn({
            let runtime = runtime.clone();
            move || (runtime.block_on(task).unwrap(), std::thread::current().id())
        });
        let (output, there) = there.join().unwrap();
        assert_eq!(output, "ended");
        let polled_on = polled_on.lock().unwrap();
        assert_eq!(polled_on[0], std::thread::current().id(), "the first poll must happen in the first call");
        assert_eq!(*polled_on.last().unwrap(), there, "the last poll must happen in the second call");
    });
}

/// A task that waits on a socket between two calls is woken by an event that arrived meanwhile.
#[test]
fn socket_is_served_in_next_call() {
    within(|| {
        let runtime = one_worker();
        let (mut ours, mut peer) = pair_with_std();
        let echo = runtime.block_on(async {
            let echo = spawn(async move {
                let mut buf = [0; 4];
                ours.read_exact(&mut buf).await?;
                ours.write_all(&buf).await
            });
            yield_now().await;
            echo
        });
        std::io::Write::write_all(&mut peer, b"ping").unwrap();
        runtime.block_on(echo).unwrap().unwrap();
        let mut buf = [0; 4];
        peer.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"ping");
    });
}

/// Wakes and spawns between two calls take effect in the next one.
#[test]
fn wakes_between_calls_are_kept() {
    within(|| {
        let runtime = one_worker();
        let (send, receive) = async_channel::bounded(1);
        let waiting = runtime.block_on(async {
            let waiting = spawn(async move { receive.recv().await.unwrap() });
            yield_now().await;
            waiting
        });
        send.send_blocking(1).unwrap();
        let spawned = runtime.handle().spawn(ready(2));
        assert!(!waiting.is_finished() && !spawned.is_finished(), "no thread could have run the tasks");
        assert_eq!(runtime.block_on(async { (waiting.await.unwrap(), spawned.await.unwrap()) }), (1, 2));
    });
}

/// A local task is dropped on its thread before its call returns, because it may hold an `Rc` of that thread.
#[test]
fn local_tasks_end_with_the_call() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let held = Rc::new(());
        let locals = |polled: bool| {
            let tasks: Vec<_> = (0..5).map(|_| spawn_local(hold(held.clone()))).collect();
            async move {
                if polled {
                    yield_now().await;
                }
                tasks
            }
        };
        for polled in [true, false] {
            let tasks = runtime.block_on(async { locals(polled).await });
            assert_eq!(Rc::strong_count(&held), 1, "a local task outlives its call");
            for task in tasks {
                let error = futures_lite::future::block_on(task).unwrap_err();
                assert!(error.is_cancelled(), "the handle must report the task as cancelled");
            }
        }
        let panic = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                drop(locals(true).await);
                resume_unwind(Box::new("on purpose"));
            });
        }));
        assert!(panic.is_err(), "the panic must reach the caller");
        assert_eq!(Rc::strong_count(&held), 1, "a local task outlives a call that panics");
    });
}

/// A local task that other threads wake while it is dropped is dropped all the same, and the call does not hang.
#[test]
fn woken_local_tasks_end_with_call() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (hand, wakers) = mpsc::channel::<Waker>();
        let storm = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut known = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    known.extend(wakers.try_iter());
                    known.iter().for_each(Waker::wake_by_ref);
                    known.drain(..known.len().saturating_sub(8));
                }
            }
        });
        for round in 0..300 {
            let held = Rc::new(());
            runtime.block_on(async {
                for _ in 0..3 {
                    let (hand, held) = (hand.clone(), held.clone());
                    drop(spawn_local(poll_fn(move |cx| {
                        let _ = (&held, hand.send(cx.waker().clone()));
                        Poll::<()>::Pending
                    })));
                }
                for _ in 0..round % 4 {
                    yield_now().await;
                }
            });
            assert_eq!(Rc::strong_count(&held), 1, "a local task outlives its call in round {round}");
        }
        stop.store(true, Ordering::SeqCst);
        storm.join().unwrap();
    });
}

/// The end of a call runs no further task. A ready task waits for the next call.
#[test]
fn end_of_call_runs_no_task() {
    within(|| {
        let runtime = one_worker();
        let polled = Arc::new(AtomicUsize::new(0));
        let task = runtime.block_on(async {
            let task = spawn({
                let polled = polled.clone();
                async move { polled.fetch_add(1, Ordering::SeqCst) }
            });
            drop(spawn_local(pending::<()>()));
            task
        });
        assert_eq!(polled.load(Ordering::SeqCst), 0, "a task was polled after the end of the main future");
        runtime.block_on(task).unwrap();
        assert_eq!(polled.load(Ordering::SeqCst), 1);
    });
}

/// Tasks that never wait do not keep a call, or the runtime, from ending.
#[test]
fn busy_tasks_do_not_delay_return() {
    within(|| {
        let runtime = one_worker();
        for _ in 0..3 {
            runtime.block_on(async {
                drop(spawn(busy()));
                drop(spawn_local(busy()));
                yield_now().await;
            });
        }
        assert_eq!(
            runtime.handle().metrics().tasks_alive(),
            3,
            "the local tasks must have ended, and the others must be alive"
        );
    });
}

/// A local task may spawn and wake in its drop at the end of the call.
#[test]
fn local_drop_may_spawn_and_wake() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let (report, reports) = async_channel::unbounded();
        let (wake, woken) = async_channel::bounded::<()>(1);
        runtime.block_on(async {
            let in_drop = OnDrop::new({
                let report = report.clone();
                move || {
                    wake.try_send(()).unwrap();
                    drop(spawn(async move { report.send("spawned").await.unwrap() }));
                    let refused = spawn_local(pending::<()>());
                    assert!(refused.is_finished(), "a local task that is spawned after the call must be finished");
                }
            });
            drop(spawn(async move {
                woken.recv().await.unwrap();
                report.send("woken").await.unwrap();
            }));
            drop(spawn_local(hold(in_drop)));
            yield_now().await;
        });
        let mut received = runtime.block_on(async { [reports.recv().await.unwrap(), reports.recv().await.unwrap()] });
        received.sort_unstable();
        assert_eq!(received, ["spawned", "woken"], "tasks that a drop started must continue in the next call");
    });
}

/// A panic of the main future reaches the caller and leaves the runtime usable.
#[test]
fn panicking_main_future_leaves_runtime_usable() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let main_dropped = Arc::new(AtomicUsize::new(0));
        let counted = Counted(main_dropped.clone());
        let panic = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async move {
                let _counted = counted;
                drop(spawn(pending::<()>()));
                drop(spawn_local(pending::<()>()));
                yield_now().await;
                panic!("on purpose");
            });
        }));
        let payload = panic.expect_err("the panic must come out");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"), "the payload must be the future's own");
        assert_eq!(main_dropped.load(Ordering::SeqCst), 1);
        assert!(Handle::try_current().is_err(), "the thread must be outside the runtime again");
        assert_eq!(runtime.handle().metrics().tasks_alive(), 1, "only the task that is not local must be alive");
        assert_eq!(runtime.block_on(async { spawn(ready(1)).await.unwrap() }), 1, "the runtime must be usable again");
    });
}

/// When the main future of the free `block_on` panics, all its tasks are dropped before the panic reaches the
/// caller.
#[test]
fn panicking_main_future_drops_children() {
    within(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let panic = catch_unwind(AssertUnwindSafe(|| {
            block_on(async {
                drop(spawn(hold(Counted(dropped.clone()))));
                drop(spawn_local(hold(Counted(dropped.clone()))));
                drop(spawn(hold(OnDrop::new(|| resume_unwind(Box::new("a child's"))))));
                yield_now().await;
                resume_unwind(Box::new("the main future's"));
            });
        }));
        let payload = panic.expect_err("the panic must come out");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"the main future's"));
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
    });
}

/// A second `block_on` at the same time on a runtime of one worker panics and says what to do, because two threads
/// cannot both be the worker.
#[test]
fn concurrent_block_on_panics() {
    within(|| {
        let runtime = Arc::new(one_worker());
        let (entered, is_entered) = mpsc::channel();
        let (open, gate) = async_channel::bounded::<()>(1);
        let first = std::thread::spawn({
            let runtime = runtime.clone();
            move || {
                runtime.block_on(async move {
                    entered.send(()).unwrap();
                    gate.recv().await.unwrap();
                });
            }
        });
        is_entered.recv_timeout(PATIENCE).unwrap();
        let message = panic_of(|| runtime.block_on(async {}));
        assert!(message.contains("another thread") && message.contains("Handle::spawn"), "{message}");
        open.send_blocking(()).unwrap();
        first.join().expect("the first call must not be disturbed");
        assert_eq!(runtime.block_on(ready(1)), 1, "the runtime must be free now");
    });
}

/// The main future may borrow from its caller.
#[test]
fn block_on_may_borrow_from_caller() {
    within(|| {
        let text = String::from("borrowed");
        let mut changed = Vec::new();
        let length = block_on(async {
            yield_now().await;
            changed.push(text.as_str());
            text.len()
        });
        assert_eq!((length, changed), (8, vec!["borrowed"]));
    });
}

// ---- the end of a runtime ----

/// A dropped runtime of one worker drops its tasks on the dropping thread.
#[test]
fn runtime_drops_tasks_where_dropped() {
    within(|| {
        let runtime = one_worker();
        let dropped_on: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
        let tasks: Vec<_> = runtime.block_on(async {
            let note = || {
                let dropped_on = dropped_on.clone();
                OnDrop::new(move || dropped_on.lock().unwrap().push(std::thread::current().id()))
            };
            let tasks = vec![spawn(hold(note())), spawn(hold(note()))];
            yield_now().await;
            tasks.into_iter().chain([spawn(hold(note()))]).collect()
        });
        let (handle, dropper) = (runtime.handle().clone(), std::thread::spawn(move || drop(runtime)));
        let there = dropper.thread().id();
        dropper.join().unwrap();
        assert_eq!(
            *dropped_on.lock().unwrap(),
            [there; 3],
            "each future must be dropped on the thread that drops the runtime"
        );
        assert_eq!(handle.metrics().tasks_alive(), 0);
        for task in tasks {
            assert!(
                futures_lite::future::block_on(task).unwrap_err().is_cancelled(),
                "a handle must outlive its runtime"
            );
        }
    });
}

/// The sockets of a dropped runtime's tasks are closed, so the peers do not wait.
#[test]
fn dropped_runtime_closes_its_sockets() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let (address, mut peers) = runtime.block_on(async {
            let (listener, address) = own_listener().await;
            drop(spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    connections.spawn(async move { stream.read(&mut [0; 16]).await });
                }
            }));
            let peers: Vec<_> = (0..10).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            while Handle::current().metrics().tasks_alive() < 11 {
                yield_now().await;
            }
            yield_now().await;
            (address, peers)
        });
        drop(runtime);
        for peer in &mut peers {
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(peer.read(&mut [0; 16]).unwrap(), 0, "the peer must read the end of the stream");
        }
        assert_refuses(address);
    });
}

/// A task may spawn, use the handle and wake other tasks in its drop while the runtime ends.
#[test]
fn drops_may_spawn_during_shutdown() {
    within(|| {
        let refused: Arc<Mutex<Vec<kittiwake::task::JoinHandle<()>>>> = Arc::default();
        let dropped = Arc::new(AtomicUsize::new(0));
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let friends: Arc<Mutex<Vec<Waker>>> = Arc::default();
            for _ in 0..3 {
                let in_drop = OnDrop::new({
                    let (refused, dropped, friends) = (refused.clone(), dropped.clone(), friends.clone());
                    move || {
                        friends.lock().unwrap().iter().for_each(Waker::wake_by_ref);
                        let handle = Handle::current();
                        let counted = [Counted(dropped.clone()), Counted(dropped.clone()), Counted(dropped.clone())];
                        let [first, second, third] = counted;
                        let tasks = [spawn(hold(first)), spawn_local(hold(second)), handle.spawn(hold(third))];
                        refused.lock().unwrap().extend(tasks);
                    }
                });
                let friends = friends.clone();
                drop(spawn(async move {
                    let _in_drop = in_drop;
                    poll_fn(|cx| {
                        friends.lock().unwrap().push(cx.waker().clone());
                        Poll::<()>::Pending
                    })
                    .await;
                }));
            }
            yield_now().await;
        });
        drop(runtime);
        let refused = std::mem::take(&mut *refused.lock().unwrap());
        assert_eq!(refused.len(), 9, "each destructor must have run to its end");
        assert_eq!(dropped.load(Ordering::SeqCst), 9, "a refused future must be dropped");
        for task in refused {
            assert!(futures_lite::future::block_on(task).unwrap_err().is_cancelled());
        }
    });
}

/// Destructors may lock the same mutex. The runtime drops one task after another and holds no lock meanwhile.
#[test]
fn destructors_may_share_a_lock() {
    within(|| {
        let shared = Arc::new(Mutex::new(Vec::new()));
        let runtime = Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        runtime.block_on(async {
            for task in 0..2 {
                let (shared, handle) = (shared.clone(), handle.clone());
                drop(spawn(hold(OnDrop::new(move || {
                    let mut shared = shared.lock().unwrap();
                    shared.push(task);
                    // Each of these calls takes a lock of the runtime.
                    let _ = handle.metrics();
                    drop(handle.spawn(async {}));
                }))));
            }
            yield_now().await;
        });
        // Another thread takes the same locks in the same order meanwhile.
        let other = std::thread::spawn({
            let (shared, handle) = (shared.clone(), handle.clone());
            move || {
                for _ in 0..1000 {
                    let _shared = shared.lock().unwrap();
                    let _ = handle.metrics();
                    drop(handle.spawn(async {}));
                }
            }
        });
        drop(runtime);
        other.join().unwrap();
        let mut shared = shared.lock().unwrap();
        shared.sort_unstable();
        assert_eq!(*shared, [0, 1]);
    });
}

/// Wakes from another thread that race with the end of the runtime are harmless and hang nothing.
#[test]
fn wakes_may_race_with_shutdown() {
    within(|| {
        for _ in 0..300 {
            let dropped = Arc::new(AtomicUsize::new(0));
            let runtime = Runtime::new().unwrap();
            let wakers: Arc<Mutex<Vec<Waker>>> = Arc::default();
            runtime.block_on(async {
                for _ in 0..3 {
                    let (wakers, counted) = (wakers.clone(), Counted(dropped.clone()));
                    drop(spawn(poll_fn(move |cx| {
                        let _counted = &counted;
                        wakers.lock().unwrap().push(cx.waker().clone());
                        Poll::<()>::Pending
                    })));
                }
                yield_now().await;
            });
            let wakers = std::mem::take(&mut *wakers.lock().unwrap());
            let storm = std::thread::spawn(move || {
                for _ in 0..20 {
                    wakers.iter().for_each(Waker::wake_by_ref);
                }
                drop(wakers);
            });
            drop(runtime);
            assert_eq!(dropped.load(Ordering::SeqCst), 3, "every future must be dropped when the runtime is");
            storm.join().unwrap();
        }
    });
}

/// Spawns from another thread that race with the end of the runtime are run or cancelled. None is lost.
#[test]
fn spawns_may_race_with_shutdown() {
    within(|| {
        for _ in 0..200 {
            let dropped = Arc::new(AtomicUsize::new(0));
            let runtime = Runtime::new().unwrap();
            let handle = runtime.handle().clone();
            let spawner = std::thread::spawn({
                let dropped = dropped.clone();
                move || (0..20).map(|_| handle.spawn(hold(Counted(dropped.clone())))).collect::<Vec<_>>()
            });
            runtime.block_on(yield_now());
            drop(runtime);
            for task in spawner.join().unwrap() {
                assert!(futures_lite::future::block_on(task).unwrap_err().is_cancelled());
            }
            assert_eq!(dropped.load(Ordering::SeqCst), 20, "every future must be dropped");
        }
    });
}

/// A task of one runtime may drop another runtime with its tasks and sockets.
#[test]
fn runtime_may_be_dropped_in_task() {
    run(|| async {
        let (ours, _peer) = pair().await;
        let inner = Runtime::new().unwrap();
        let refused = Arc::new(Mutex::new(None));
        let note = OnDrop::new({
            let refused = refused.clone();
            move || *refused.lock().unwrap() = Some(spawn(pending::<()>()).is_finished())
        });
        let pending_task = inner.handle().spawn(hold(note));
        drop(inner.handle().spawn(hold(ours)));
        let outer_task = spawn(async move {
            let beside = spawn(ready("beside"));
            drop(inner);
            // The thread belongs to the outer runtime again, with its queue, its reactor and its budget.
            let (mut ours, mut peer) = pair().await;
            ours.write_all(b"x").await.unwrap();
            assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 1);
            beside.await.unwrap()
        });
        assert_eq!(outer_task.await.unwrap(), "beside");
        assert!(pending_task.await.unwrap_err().is_cancelled());
        let refused = *refused.lock().unwrap();
        assert_eq!(refused, Some(true), "a task must be dropped inside its own runtime, which refuses new ones");
        assert_eq!(Handle::current().metrics().sources_registered(), 0, "the outer runtime must have no socket left");
    });
}

/// A runtime in a thread-local is dropped when its thread ends, among other thread-locals.
#[test]
fn thread_local_runtime_ends_with_thread() {
    thread_local! {
        static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
    }
    // A panic in a thread-local's destructor aborts the process.
    in_own_process("thread_local_runtime_ends_with_thread", || {
        for used_before_it_is_kept in [true, false] {
            let dropped = Arc::new(AtomicUsize::new(0));
            let thread = std::thread::spawn({
                let dropped = dropped.clone();
                move || {
                    if used_before_it_is_kept {
                        // This makes the crate's own thread-locals first, so they are destroyed last.
                        block_on(async {});
                    }
                    RUNTIME.set(Some(Runtime::new().unwrap()));
                    RUNTIME.with_borrow(|runtime| {
                        runtime.as_ref().unwrap().block_on(async {
                            drop(spawn(hold(Counted(dropped))));
                            yield_now().await;
                        });
                    });
                }
            });
            thread.join().unwrap();
            assert_eq!(dropped.load(Ordering::SeqCst), 1, "the task must be dropped with its runtime");
        }
    });
}

/// A thousand runtimes leave no descriptor and no thread. A test suite makes many short-lived ones.
#[test]
fn thousand_runtimes_leave_nothing() {
    // Other tests of this file open and close descriptors at the same time, so this one needs a process of its own.
    in_own_process("thousand_runtimes_leave_nothing", || {
        let life = || {
            let runtime = Runtime::new().unwrap();
            runtime.block_on(async {
                drop(spawn(pending::<()>()));
                let (ours, theirs) = pair().await;
                will_reset(&ours);
                will_reset(&theirs);
                drop(spawn(async move { theirs.readable().await }));
                drop(spawn(hold(ours)));
                yield_now().await;
            });
        };
        life();
        let (descriptors, threads) = (count_of("fd"), count_of("task"));
        (0..1000).for_each(|_| life());
        assert_eq!(count_of("fd"), descriptors, "descriptors were left");
        // The kernel takes a thread out of the list a moment after the join. So the first count may be too high by some.
        let end = std::time::Instant::now() + PATIENCE / 2;
        while count_of("task") > threads && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert!(count_of("task") <= threads, "{} threads were left", count_of("task") - threads);
    });
}

/// A handle outlives its runtime and keeps no descriptor open.
#[test]
fn handle_outlives_its_runtime() {
    in_own_process("handle_outlives_its_runtime", || {
        drop(one_worker());
        let descriptors = count_of("fd");
        let runtime = one_worker();
        let handle = runtime.block_on(async {
            let (_ours, theirs) = pair().await;
            drop(spawn(async move { theirs.readable().await }));
            yield_now().await;
            Handle::current()
        });
        assert!(handle.metrics().tasks_alive() == 1 && handle.metrics().sources_registered() == 1);
        drop(runtime);
        assert_eq!(count_of("fd"), descriptors, "the handle keeps descriptors open");
        assert_eq!((handle.metrics().tasks_alive(), handle.metrics().sources_registered()), (0, 0));
        assert!(futures_lite::future::block_on(handle.spawn(ready(1))).unwrap_err().is_cancelled());
        assert!(format!("{handle:?}").starts_with("Handle"));
    });
}

/// The build of a multi-thread runtime without descriptors returns an error and closes what it had opened.
#[test]
fn failed_build_leaves_no_descriptor() {
    in_own_process("failed_build_leaves_no_descriptor", || {
        let descriptors = count_of("fd");
        let mut hoard = use_up_descriptors();
        // Three descriptors are enough. mio's poll(2) backend needs fewer.
        let mut free = 0;
        let runtime = loop {
            match Builder::new_multi_thread().worker_threads(1).build() {
                Ok(runtime) => break runtime,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{free} free descriptors: {error}");
                }
            }
            assert!(free < 3, "three descriptors must be enough");
            drop(hoard.pop());
            free += 1;
        };
        assert!(free > 0, "the test has not used up the descriptors");
        assert_eq!(runtime.block_on(ready(1)), 1);
        drop(runtime);
        drop(hoard);
        assert_eq!(count_of("fd"), descriptors, "descriptors were left");
    });
}

/// `block_on` runs although peers have used up all descriptors, on both kinds of runtime. Beside workers a socket waits
/// as always. On the current-thread kind it fails and says why: that runtime first needs descriptors when a socket
/// waits.
#[test]
fn block_on_needs_no_descriptor() {
    in_own_process("block_on_needs_no_descriptor", || {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let (ours, mut peer) = pair_with_std();
        let hoard = use_up_descriptors();
        let millisecond = std::time::Duration::from_millis(1);
        block_on(async {
            kittiwake::time::sleep(millisecond).await;
            let error = ours.readable().await.expect_err("no reactor can be made");
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
        });
        runtime.block_on(async {
            kittiwake::time::sleep(millisecond).await;
            assert!(futures_lite::future::poll_once(ours.readable()).await.is_none(), "nothing was sent");
            std::io::Write::write_all(&mut peer, b"x").expect("the peer writes");
            ours.readable().await.expect("the socket waits with a worker");
        });
        drop(hoard);
        block_on(ours.readable()).expect("there are descriptors again");
    });
}

fn use_up_descriptors() -> Vec<std::fs::File> {
    std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
}

// ---- with other crates ----

/// A foreign executor inside a task blocks the worker. Its own waker wakes it, not the task's.
#[test]
fn foreign_block_on_has_own_waker() {
    run(|| async {
        let (send, receive) = async_channel::bounded(1);
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let inner = futures_lite::future::block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
        assert!(!waker.will_wake(&inner), "the two wakers must be distinct");
        let thread = std::thread::spawn(move || send.send_blocking(5).unwrap());
        // A wake of the outer task must neither wake the inner wait nor be lost.
        waker.wake_by_ref();
        assert_eq!(futures_lite::future::block_on(receive.recv()).unwrap(), 5);
        thread.join().unwrap();
        yield_now().await;
    });
}

/// Channels and locks of other crates work across tasks and threads.
#[test]
fn foreign_channels_and_locks_work() {
    const EACH: usize = 500;
    run(|| async {
        let total = Arc::new(async_lock::Mutex::new(0));
        let (send, receive) = async_channel::bounded::<usize>(4);
        let add = |receive: async_channel::Receiver<usize>| {
            let total = total.clone();
            async move {
                while let Ok(number) = receive.recv().await {
                    let mut total = total.lock().await;
                    yield_now().await;
                    *total += number;
                }
            }
        };
        let mut set = JoinSet::new();
        set.spawn(add(receive.clone()));
        set.spawn_local(add(receive.clone()));
        let elsewhere = std::thread::spawn({
            let future = add(receive);
            move || block_on(future)
        });
        let sender = std::thread::spawn({
            let send = send.clone();
            move || (0..EACH).for_each(|_| send.send_blocking(1).unwrap())
        });
        for _ in 0..EACH {
            send.send(1).await.unwrap();
        }
        drop(send);
        while set.join_next().await.is_some() {}
        while !(elsewhere.is_finished() && sender.is_finished()) {
            yield_now().await;
        }
        assert_eq!(*total.lock().await, 2 * EACH);
    });
}

/// Two runtimes on two threads serve each other.
#[test]
fn two_runtimes_serve_each_other() {
    within(|| {
        let (notify, notified) = mpsc::channel();
        let server = std::thread::spawn(move || {
            block_on(async {
                let (listener, address) = listener().await;
                notify.send(address).unwrap();
                let (mut stream, _) = listener.accept().await.unwrap();
                echo(&mut stream).await;
            });
        });
        let address = notified.recv_timeout(PATIENCE).unwrap();
        block_on(async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            exchange(&mut stream, 100).await;
        });
        server.join().unwrap();
    });
}

// ---- settings ----

/// A worker that spins before it blocks misses no event.
#[test]
fn spinning_worker_misses_no_event() {
    within(|| {
        // The default policy, and fixed times. The longest exceeds every wait here, so the worker must see every
        // event while it spins.
        let fixed = [Duration::from_nanos(1), Duration::from_millis(1), 10 * PATIENCE];
        for builder in
            [Builder::new_multi_thread()].into_iter().chain(fixed.map(|spin| Builder::new_multi_thread().spin(spin)))
        {
            let runtime = builder.build().unwrap();
            runtime.block_on(async {
                let (mut client, mut server) = pair().await;
                drop(spawn(async move { echo(&mut server).await }));
                exchange(&mut client, 1_000).await;
            });
            runtime.block_on(ping_pong_with_a_thread(2_000));
            let other = std::thread::spawn({
                let handle = runtime.handle().clone();
                move || (0..100).map(|i| handle.spawn(ready(i))).collect::<Vec<_>>()
            });
            let mut sum = 0;
            for task in other.join().unwrap() {
                sum += runtime.block_on(task).unwrap();
            }
            assert_eq!(sum, 4950);
        }
    });
}

/// Sends a value to a thread and waits for its return, `times` times.
async fn ping_pong_with_a_thread(times: usize) {
    let (ping, pings) = async_channel::bounded(1);
    let (pong, pongs) = async_channel::bounded(1);
    let thread = std::thread::spawn(move || {
        while let Ok(word) = pings.recv_blocking() {
            pong.send_blocking(word).unwrap();
        }
    });
    for word in 0..times {
        ping.send(word).await.unwrap();
        assert_eq!(pongs.recv().await.unwrap(), word);
        progress();
    }
    drop(ping);
    thread.join().unwrap();
}

async fn echo(stream: &mut TcpStream) {
    let mut buf = [0; 64];
    loop {
        match stream.read(&mut buf).await.unwrap() {
            0 => return,
            read => stream.write_all(&buf[..read]).await.unwrap(),
        }
    }
}

async fn exchange(stream: &mut TcpStream, times: u32) {
    for number in 0..times {
        let mut reply = [0; 4];
        stream.write_all(&number.to_be_bytes()).await.unwrap();
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(u32::from_be_bytes(reply), number);
    }
}

// ---- helpers ----

/// Returns the message of the panic of `call`. Fails if `call` does not panic.
#[track_caller]
fn panic_of<T>(call: impl FnOnce() -> T) -> String {
    let payload = catch_unwind(AssertUnwindSafe(call)).err().expect("the call must panic");
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}
