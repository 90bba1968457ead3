//! Runtimes: where they may be entered, what lives from call to call, and how they end.

// A call hands its tasks to the next one in many of these tests.
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
    Counted, OnDrop, PATIENCE, busy, count_of, hold, in_own_process, listener, one_worker, pair, pair_with_std, run,
    will_reset, within,
};

// ---- where it may be entered ----

/// A thread that waits inside a task would never run the task it waits for: a hang, were it no panic.
#[test]
fn block_on_inside_a_runtime_panics_with_what_to_do_instead() {
    run(|| async {
        let other = Runtime::new().unwrap();
        let calls: [(&str, &dyn Fn()); 2] =
            [("block_on", &|| block_on(async {})), ("Runtime::block_on", &|| other.block_on(async {}))];
        for (function, call) in calls {
            let said = panic_of(call);
            assert!(said.contains(function), "it must name {function}: {said}");
            assert!(said.contains("await") && said.contains("spawn"), "it must say what to do instead: {said}");
        }
        let in_task = spawn(async { panic_of(|| block_on(async {})) }).await.unwrap();
        assert!(in_task.contains("inside a runtime"), "the same in a task: {in_task}");
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "the runtime around it must go on");
        // It cannot be dropped by the panics above, and is no runtime's business here.
        drop(other);
    });
}

#[test]
fn a_runtimes_own_block_on_cannot_be_nested_in_itself() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let said = runtime.block_on(async { panic_of(|| runtime.block_on(async {})) });
        assert!(said.contains("inside a runtime"), "{said}");
        assert_eq!(runtime.block_on(async { 1 }), 1, "and is usable afterwards");
    });
}

/// After a call the thread is free again: for the same runtime, another one, a new one.
#[test]
fn a_thread_is_free_after_block_on() {
    within(|| {
        let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
        for _ in 0..3 {
            assert_eq!(first.block_on(ready(1)), 1);
            assert_eq!(second.block_on(ready(2)), 2);
            assert_eq!(block_on(ready(3)), 3);
            assert!(Handle::try_current().is_err(), "the thread must be outside again");
        }
    });
}

/// Nobody would ever run such a task, so there is nothing to return.
#[test]
fn to_spawn_outside_a_runtime_panics_with_what_to_do_instead() {
    within(|| {
        let mut set = JoinSet::new();
        let calls: [(&str, &mut dyn FnMut()); 4] = [
            ("spawn", &mut || drop(spawn(async {}))),
            ("spawn_local", &mut || drop(spawn_local(async {}))),
            ("JoinSet::spawn", &mut || drop(set.spawn(async {}))),
            ("Handle::current", &mut || drop(Handle::current())),
        ];
        for (function, call) in calls {
            let said = panic_of(call);
            assert!(said.contains(function), "it must name {function}: {said}");
            assert!(said.contains("block_on"), "it must say where to call it: {said}");
        }
        assert!(set.is_empty(), "nothing was spawned");
        let error = Handle::try_current().unwrap_err();
        assert!(error.to_string().contains("not inside a kittiwake runtime"), "{error}");
    });
}

/// The line that is wrong is the caller's, and that is the one the panic has to show.
#[test]
fn the_panic_of_a_misplaced_call_points_to_the_caller() {
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

// ---- what lives from call to call ----

/// A `Send` task is the runtime's, not the call's: it goes on in the next one, wherever that is.
#[test]
fn a_task_goes_on_in_the_next_call_also_on_another_thread() {
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
        assert!(!task.is_finished(), "it has two polls to go");
        let there = std::thread::spawn({
            let runtime = runtime.clone();
            move || (runtime.block_on(task).unwrap(), std::thread::current().id())
        });
        let (output, there) = there.join().unwrap();
        assert_eq!(output, "ended");
        let polled_on = polled_on.lock().unwrap();
        assert_eq!(polled_on[0], std::thread::current().id(), "the first poll is in the first call");
        assert_eq!(*polled_on.last().unwrap(), there, "the last poll is in the second call");
    });
}

/// What waits on a socket between two calls is woken by an event that came meanwhile.
#[test]
fn a_socket_is_served_in_the_next_call() {
    within(|| {
        let runtime = Runtime::new().unwrap();
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

/// What is woken and spawned between two calls waits for the next one.
#[test]
fn wakes_and_spawns_between_two_calls_are_kept() {
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
        assert!(!waiting.is_finished() && !spawned.is_finished(), "nobody could have run them");
        assert_eq!(runtime.block_on(async { (waiting.await.unwrap(), spawned.await.unwrap()) }), (1, 2));
    });
}

/// A local task may borrow a thread's state through an `Rc`: it must be gone, from its thread, when the call is over.
#[test]
fn local_tasks_are_dropped_on_their_thread_before_the_call_returns() {
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
                assert!(error.is_cancelled(), "its handle must say so");
            }
        }
        let panic = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                drop(locals(true).await);
                resume_unwind(Box::new("on purpose"));
            });
        }));
        assert!(panic.is_err(), "the panic must come out");
        assert_eq!(Rc::strong_count(&held), 1, "a local task outlives its call when that panics");
    });
}

/// A local task dropped while other threads wake it must be dropped here all the same, and the call must not hang
/// on a wake that is on its way.
#[test]
fn local_tasks_that_are_woken_meanwhile_are_dropped_too() {
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
            assert_eq!(Rc::strong_count(&held), 1, "a local task outlives its call, in round {round}");
        }
        stop.store(true, Ordering::SeqCst);
        storm.join().unwrap();
    });
}

/// What is ready when a call ends is left for the next one: the caller has been promised its thread back.
#[test]
fn the_end_of_a_call_runs_no_other_task() {
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
        assert_eq!(polled.load(Ordering::SeqCst), 0, "it was polled after the main future's end");
        runtime.block_on(task).unwrap();
        assert_eq!(polled.load(Ordering::SeqCst), 1);
    });
}

/// Tasks that wake themselves for ever must not keep a call, or a runtime, from its end.
#[test]
fn tasks_that_never_wait_do_not_keep_a_call_from_its_end() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        for _ in 0..3 {
            runtime.block_on(async {
                drop(spawn(busy()));
                drop(spawn_local(busy()));
                yield_now().await;
            });
        }
        assert_eq!(runtime.handle().metrics().tasks_alive(), 3, "the local ones are gone, the others stay");
    });
}

/// The task that is dropped at the end of its call has a task of its own that it tells to go on.
#[test]
fn a_local_task_may_spawn_and_wake_in_its_drop() {
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
                    assert!(refused.is_finished(), "the call is over for local tasks");
                }
            });
            drop(spawn(async move {
                woken.recv().await.unwrap();
                report.send("woken").await.unwrap();
            }));
            drop(spawn_local(hold(in_drop)));
            yield_now().await;
        });
        let mut heard = runtime.block_on(async { [reports.recv().await.unwrap(), reports.recv().await.unwrap()] });
        heard.sort_unstable();
        assert_eq!(heard, ["spawned", "woken"], "what a drop started must go on in the next call");
    });
}

/// The panic is the caller's to handle; the runtime is whole.
#[test]
fn a_panic_of_the_main_future_comes_out_and_leaves_the_runtime_usable() {
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
        assert!(Handle::try_current().is_err(), "the thread must be outside again");
        assert_eq!(runtime.handle().metrics().tasks_alive(), 1, "the local task is gone, the other one stays");
        assert_eq!(runtime.block_on(async { spawn(ready(1)).await.unwrap() }), 1, "it must be usable again");
    });
}

/// The free function has no next call: all children go, and the panic comes out after them.
#[test]
fn children_are_dropped_when_the_main_future_panics() {
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

/// A runtime has one worker: two threads cannot both be it, and waiting for the other could be for ever.
#[test]
fn a_second_block_on_at_the_same_time_panics_with_what_to_do_instead() {
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
        let said = panic_of(|| runtime.block_on(async {}));
        assert!(said.contains("another thread") && said.contains("Handle::spawn"), "{said}");
        open.send_blocking(()).unwrap();
        first.join().expect("the first call must not be disturbed");
        assert_eq!(runtime.block_on(ready(1)), 1, "and now it is free");
    });
}

/// What the main future borrows from its caller is its caller's again afterwards.
#[test]
fn block_on_may_borrow_from_its_caller() {
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

// ---- the end ----

/// A server that is shut down must let go of everything it had, on the thread that ends it.
#[test]
fn a_dropped_runtime_drops_its_tasks_on_the_dropping_thread() {
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
        let (handle, home) = (runtime.handle().clone(), std::thread::spawn(move || drop(runtime)));
        let there = home.thread().id();
        home.join().unwrap();
        assert_eq!(*dropped_on.lock().unwrap(), [there; 3], "each future must be dropped where the runtime is");
        assert_eq!(handle.metrics().tasks_alive(), 0);
        for task in tasks {
            assert!(futures_lite::future::block_on(task).unwrap_err().is_cancelled(), "a handle outlives its runtime");
        }
    });
}

/// A peer must not wait for a server that is gone.
#[test]
fn the_sockets_of_a_dropped_runtimes_tasks_are_closed() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let (address, mut peers) = runtime.block_on(async {
            let (listener, address) = listener().await;
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
            assert_eq!(peer.read(&mut [0; 16]).unwrap(), 0, "a peer must read the end");
        }
        std::net::TcpStream::connect(address).expect_err("the listener must be closed");
    });
}

/// Destructors run late and do what they always did: spawn a farewell, look up the runtime, wake a friend.
#[test]
fn a_task_may_spawn_and_wake_in_its_drop_during_the_runtimes_end() {
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
        assert_eq!(dropped.load(Ordering::SeqCst), 9, "what was refused must be dropped");
        for task in refused {
            assert!(futures_lite::future::block_on(task).unwrap_err().is_cancelled());
        }
    });
}

/// Two destructors that lock the same mutex: one after the other, and no lock of the runtime's around them.
#[test]
fn destructors_may_lock_what_others_lock_too() {
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
                    // Each of these takes a lock of the runtime's.
                    let _ = handle.metrics();
                    drop(handle.spawn(async {}));
                }))));
            }
            yield_now().await;
        });
        // Another thread that comes and goes through the same locks meanwhile.
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

/// Wakes from another thread race with the end of the runtime: each finds the task or nobody, and nothing hangs.
#[test]
fn wakes_that_race_with_the_runtimes_end_are_harmless() {
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

/// Spawns from another thread race with the end: each runs, or is cancelled; none is lost.
#[test]
fn spawns_that_race_with_the_runtimes_end_are_not_lost() {
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

/// A runtime may be a part of something that a task of another runtime owns, tasks and sockets and all.
#[test]
fn a_runtime_may_be_dropped_inside_a_task_of_another() {
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
            // The thread is the outer runtime's again, with its queue, its reactor and its budget.
            let (mut ours, mut peer) = pair().await;
            ours.write_all(b"x").await.unwrap();
            assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 1);
            beside.await.unwrap()
        });
        assert_eq!(outer_task.await.unwrap(), "beside");
        assert!(pending_task.await.unwrap_err().is_cancelled());
        let refused = *refused.lock().unwrap();
        assert_eq!(refused, Some(true), "a task must be dropped inside its own runtime, which takes no new ones");
        assert_eq!(Handle::current().metrics().sources_registered(), 0, "the outer runtime has no socket any more");
    });
}

/// A program that keeps a runtime for each thread drops it when the thread ends, among other thread-locals.
#[test]
fn a_runtime_in_a_thread_local_is_dropped_at_the_threads_end() {
    thread_local! {
        static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
    }
    // A panic in a thread-local's destructor ends the process.
    in_own_process("a_runtime_in_a_thread_local_is_dropped_at_the_threads_end", || {
        for used_before_it_is_kept in [true, false] {
            let dropped = Arc::new(AtomicUsize::new(0));
            let thread = std::thread::spawn({
                let dropped = dropped.clone();
                move || {
                    if used_before_it_is_kept {
                        // The crate's own thread-locals are made first, and so are destroyed last.
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

/// Short-lived runtimes, as a test suite makes them: each takes everything down that it put up.
#[test]
fn a_thousand_runtimes_leave_no_descriptor_and_no_thread() {
    // Of its own process: other tests of this file open and close descriptors at the same time.
    in_own_process("a_thousand_runtimes_leave_no_descriptor_and_no_thread", || {
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
        assert_eq!(count_of("fd"), descriptors, "descriptors are left");
        assert_eq!(count_of("task"), threads, "threads are left");
    });
}

/// A handle is a way to reach a runtime, not a part of it: it must not keep its descriptors open.
#[test]
fn a_handle_outlives_its_runtime() {
    in_own_process("a_handle_outlives_its_runtime", || {
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

/// Out of descriptors is an error of `build`, and what it had opened is closed again.
#[test]
fn a_runtime_that_cannot_be_made_is_an_error_and_leaves_nothing() {
    in_own_process("a_runtime_that_cannot_be_made_is_an_error_and_leaves_nothing", || {
        let descriptors = count_of("fd");
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
        }
        // Three are enough; mio's poll(2) backend needs fewer.
        let mut free = 0;
        let runtime = loop {
            match Builder::new().workers(1).build() {
                Ok(runtime) => break runtime,
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "with {free} free: {error}"),
            }
            let said = panic_of(|| block_on(async {}));
            assert!(said.contains("reactor"), "{said}");
            assert!(free < 3, "three descriptors must be enough");
            drop(hoard.pop());
            free += 1;
        };
        assert!(free > 0, "the test has not used up the descriptors");
        assert_eq!(runtime.block_on(ready(1)), 1);
        drop(runtime);
        drop(hoard);
        assert_eq!(count_of("fd"), descriptors, "descriptors are left");
    });
}

// ---- with other crates ----

/// A foreign executor inside a task blocks the worker, and must be woken by its own waker, not by ours.
#[test]
fn a_foreign_block_on_inside_a_task_has_its_own_waker() {
    run(|| async {
        let (send, receive) = async_channel::bounded(1);
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let inner = futures_lite::future::block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
        assert!(!waker.will_wake(&inner), "the two wakers must be distinct");
        let thread = std::thread::spawn(move || send.send_blocking(5).unwrap());
        // Waking the outer one meanwhile must not wake the inner wait, nor be lost.
        waker.wake_by_ref();
        assert_eq!(futures_lite::future::block_on(receive.recv()).unwrap(), 5);
        thread.join().unwrap();
        yield_now().await;
    });
}

/// Channels and locks are not ours to write: so those that exist have to work, across tasks and threads.
#[test]
fn channels_and_locks_of_other_crates_work_across_tasks_and_threads() {
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

/// Two runtimes on two threads talk to each other.
#[test]
fn two_runtimes_serve_each_other() {
    within(|| {
        let (tell, told) = mpsc::channel();
        let server = std::thread::spawn(move || {
            block_on(async {
                let (listener, address) = listener().await;
                tell.send(address).unwrap();
                let (mut stream, _) = listener.accept().await.unwrap();
                echo(&mut stream).await;
            });
        });
        let address = told.recv_timeout(PATIENCE).unwrap();
        block_on(async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            exchange(&mut stream, 100).await;
        });
        server.join().unwrap();
    });
}

// ---- settings ----

/// A worker that looks for events before it blocks must miss none that come while it looks.
#[test]
fn a_spinning_worker_misses_nothing() {
    within(|| {
        // As it decides by itself, and for a fixed time. The last is longer than anybody waits: whatever comes must be seen
        // while it looks.
        let fixed = [Duration::from_nanos(1), Duration::from_millis(1), 10 * PATIENCE];
        for builder in [Builder::new()].into_iter().chain(fixed.map(|spin| Builder::new().spin(spin))) {
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

/// Sends a word to a thread and waits for it to come back, `times` times.
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

// ---- what the tests look at ----

/// What `call` says when it panics, as it must.
#[track_caller]
fn panic_of<T>(call: impl FnOnce() -> T) -> String {
    let payload = catch_unwind(AssertUnwindSafe(call)).err().expect("the call must panic");
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}
