//! Blocking closures: the threads on which they run, how they end, and the effect of their runtime's end.

mod support;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread;

use futures_lite::future;
use kittiwake::net::lookup_host;
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::JoinHandle;
use kittiwake::time::{Duration, Instant, pause, sleep};
use kittiwake::{spawn, spawn_blocking};
use support::*;

/// A closure that has begun and runs until the sender is dropped.
async fn running_closure() -> (JoinHandle<&'static str>, Sender<()>) {
    let (begin, begun) = async_channel::bounded(1);
    let (end, ended) = mpsc::channel::<()>();
    let closure = spawn_blocking(move || {
        begin.try_send(()).expect("the channel has room");
        let _ = ended.recv();
        "done"
    });
    begun.recv().await.expect("the task begins");
    (closure, end)
}

/// True if the value with the sender has been dropped.
fn is_gone(receiver: &Receiver<()>) -> bool {
    receiver.try_recv() == Err(mpsc::TryRecvError::Disconnected)
}

/// Panics in its drop.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        resume_unwind(Box::new("on purpose"));
    }
}

/// A closure runs on a thread of its own, not on the worker, and returns its output.
#[test]
fn closure_runs_on_blocking_thread() {
    run(|| async {
        let worker = thread::current().id();
        let (id, name) = spawn_blocking(|| (thread::current().id(), thread::current().name().map(str::to_owned)))
            .await
            .expect("the closure runs");
        assert_ne!(id, worker);
        assert_eq!(name.as_deref(), Some("kittiwake-blocking"));
    });
}

/// Tasks and sockets continue while a closure blocks.
#[test]
fn blocked_closure_delays_no_task() {
    run(|| async {
        let (closure, end) = running_closure().await;
        let (client, server) = pair().await;
        client.writable().await.expect("writable");
        client.try_write(b"x").expect("write");
        server.readable().await.expect("readable");
        assert_eq!(spawn(async { 1 }).await.expect("a task"), 1);
        assert!(!closure.is_finished());
        drop(end);
        assert_eq!(closure.await.expect("the closure ends"), "done");
    });
}

/// A closure that panics ends neither its thread nor the process.
#[test]
fn panicking_closure_ends_alone() {
    run(|| async {
        let error =
            spawn_blocking(|| resume_unwind(Box::new("no more tea"))).await.map(drop).expect_err("the closure panics");
        assert!(error.is_panic() && !error.is_cancelled());
        assert_eq!(error.into_panic().downcast_ref::<&str>(), Some(&"no more tea"));
        assert_eq!(spawn_blocking(|| 1).await.expect("the next closure runs"), 1);
    });
}

/// A panic in a drop of a closure or of its output is contained. async-task aborts the process if one escapes.
#[test]
fn panicking_drops_are_contained() {
    within(|| {
        let runtime = blocking_threads(1);
        runtime.block_on(async {
            let (_stuck, end) = running_closure().await;
            let bomb = Bomb;
            let aborted = spawn_blocking(move || drop(bomb));
            aborted.abort();
            drop(spawn_blocking(|| Bomb));
            drop(spawn_blocking(|| resume_unwind(Box::new(Bomb))));
            drop(end);
            assert!(aborted.await.expect_err("the closure was aborted, and its drop panicked").is_panic());
            assert_eq!(spawn_blocking(|| 1).await.expect("the thread still works"), 1);
            let (_stuck, end) = running_closure().await;
            let bomb = Bomb;
            let waiting = spawn_blocking(move || drop(bomb));
            (end, waiting)
        });
        drop(runtime);
    });
}

/// A large closure does not overflow a stack on its way to the thread.
#[test]
fn large_closure_runs() {
    run(|| async {
        let bytes = [7_u8; 200_000];
        let sum = spawn_blocking(move || bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        assert_eq!(sum.await.expect("the closure runs"), 1_400_000);
    });
}

/// There are never more blocking threads than `max_blocking_threads`.
#[test]
fn thread_limit_holds() {
    within(|| {
        let runtime = blocking_threads(3);
        runtime.block_on(async {
            let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            // Three closures must reach the barrier together, so the limit is also reached.
            let barrier = Arc::new(Barrier::new(3));
            let closures: Vec<_> = (0..300)
                .map(|_| {
                    let (at_once, most, barrier) = (at_once.clone(), most.clone(), barrier.clone());
                    spawn_blocking(move || {
                        most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        barrier.wait();
                        at_once.fetch_sub(1, Ordering::SeqCst);
                    })
                })
                .collect();
            for closure in closures {
                closure.await.expect("the closure runs");
            }
            assert_eq!(most.load(Ordering::SeqCst), 3);
        });
    });
}

/// A look-up of a name does not wait for the closures that have all threads of the limit.
#[test]
fn blocked_closures_delay_no_lookup() {
    within(|| {
        let runtime = blocking_threads(1);
        runtime.block_on(async {
            let (closure, end) = running_closure().await;
            let queued = spawn_blocking(|| ());
            for _ in 0..20 {
                assert!(lookup_host("localhost:80").await.expect("localhost has an address").count() > 0);
            }
            assert!(!queued.is_finished(), "only one closure may run");
            drop(end);
            closure.await.expect("the closure ends");
            queued.await.expect("the closure runs");
        });
    });
}

/// Closures beyond the limit run in the order of their spawns.
#[test]
fn queued_closures_run_in_order() {
    within(|| {
        let runtime = blocking_threads(1);
        runtime.block_on(async {
            let (ran, order) = mpsc::channel();
            let closures: Vec<_> = (0..100)
                .map(|i| {
                    let ran = ran.clone();
                    spawn_blocking(move || ran.send(i).expect("the test waits"))
                })
                .collect();
            for closure in closures {
                closure.await.expect("the closure runs");
            }
            assert!(order.try_iter().eq(0..100));
        });
    });
}

/// A limit of zero threads is refused. Every address lookup would hang.
#[test]
fn zero_thread_limit_is_refused() {
    let message = panic_of(|| drop(Builder::new_multi_thread().max_blocking_threads(0)));
    assert!(message.contains("use 1 or more"), "{message}");
}

/// An abort drops a closure that waits for a thread.
#[test]
fn abort_drops_a_queued_closure() {
    within(|| {
        let runtime = blocking_threads(1);
        runtime.block_on(async {
            let (running_closure, end) = running_closure().await;
            let (kept, gone) = mpsc::channel();
            let closures = [(); 2].map(|()| {
                let kept = kept.clone();
                spawn_blocking(move || kept.send(()))
            });
            drop(kept);
            closures[0].abort();
            let handle = closures[1].abort_handle();
            handle.abort();
            assert!(!is_gone(&gone), "an aborted closure is dropped only when its turn comes");
            drop(end);
            running_closure.await.expect("the closure ends");
            for closure in closures {
                assert!(closure.await.map(drop).expect_err("the closure was aborted").is_cancelled());
            }
            assert!(handle.is_finished() && is_gone(&gone), "the closure must be dropped without running");
        });
    });
}

/// An abort does not affect a closure that runs. Its output is kept.
#[test]
fn abort_spares_a_running_closure() {
    run(|| async {
        let (closure, end) = running_closure().await;
        closure.abort();
        let handle = closure.abort_handle();
        handle.abort();
        settle().await;
        assert!(!closure.is_finished() && !handle.is_finished());
        drop(end);
        assert_eq!(closure.await.expect("the closure ends"), "done");
        assert!(handle.is_finished());
    });
}

/// A closure has an id that differs from those of tasks and other closures.
#[test]
fn closure_ids_are_unique() {
    run(|| async {
        let (task, closure, other) = (spawn(async {}), spawn_blocking(|| ()), spawn_blocking(|| ()));
        assert!(task.id() != closure.id() && closure.id() != other.id() && task.id() != other.id());
        let id = closure.id();
        assert_eq!(closure.abort_handle().id(), id);
        let panicking = spawn_blocking(|| resume_unwind(Box::new(())));
        let id = panicking.id();
        assert_eq!(panicking.await.map(drop).expect_err("the closure panics").id(), id);
    });
}

/// The handle of a closure can be awaited in any executor, and dropped.
#[test]
fn handle_can_be_awaited_anywhere() {
    within(|| {
        let other = Background::start();
        let runtime = Runtime::new().expect("a runtime");
        // No thread is in this runtime's `block_on`. Its blocking threads work all the same.
        let handle = runtime.handle().clone();
        assert_eq!(future::block_on(handle.spawn_blocking(|| 1)).expect("the closure runs outside any runtime"), 1);
        let closure = handle.spawn_blocking(|| 2);
        assert_eq!(other.run(closure).expect("the closure runs in another runtime"), 2);
        let closure = runtime.block_on(async { (spawn_blocking(|| 3),) }).0;
        assert_eq!(
            thread::spawn(|| future::block_on(closure))
                .join()
                .expect("a thread")
                .expect("the closure runs on a thread"),
            3
        );
        let (ran, listening) = mpsc::channel();
        drop(handle.spawn_blocking(move || ran.send(4)));
        assert_eq!(listening.recv(), Ok(4), "dropping the handle must detach the closure");
        other.stop();
    });
}

/// `spawn_blocking` outside a runtime panics and names `Handle::spawn_blocking`, which works there.
#[test]
fn spawn_blocking_needs_a_runtime() {
    let message = panic_of(|| drop(spawn_blocking(|| ())));
    assert!(message.contains("outside a runtime") && message.contains("Handle::spawn_blocking"), "{message}");
    run(|| async {
        let handle = Handle::current();
        let task = spawn_blocking(move || handle.spawn(async { 1 })).await.expect("a closure may use a handle");
        assert_eq!(task.await.expect("a task"), 1);
    });
}

/// A closure is inside its runtime: it spawns there, starts other closures, and blocks on futures.
#[test]
fn closures_are_inside_their_runtime() {
    for runtime in [one_worker as fn() -> Runtime, || workers(1)] {
        within(move || {
            let runtime = runtime();
            runtime.block_on(async {
                let closure = spawn_blocking(|| {
                    assert_eq!(Handle::current().block_on(async { spawn(async { 1 }).await.unwrap() }), 1);
                    // A closure may make a runtime of its own, and is in its own again after that.
                    assert_eq!(kittiwake::block_on(async { spawn(async { 2 }).await.unwrap() }), 2);
                    (spawn(async { thread::current().id() }), spawn_blocking(|| 3), thread::current().id())
                });
                let (task, closure, of_closure) = closure.await.expect("the closure is inside a runtime");
                assert_ne!(task.await.unwrap(), of_closure, "a worker runs the task");
                assert_eq!(closure.await.unwrap(), 3);
            });
            // The thread of the pool must not keep the runtime.
            let handle = runtime.handle().clone();
            drop(runtime);
            assert!(futures_lite::future::block_on(handle.spawn(async {})).unwrap_err().is_cancelled());
        });
    }
}

/// The metrics do not count a closure as a task.
#[test]
fn metrics_count_no_closure() {
    run(|| async {
        let (closure, end) = running_closure().await;
        assert_eq!(Handle::current().metrics().tasks_alive(), 0);
        drop(end);
        closure.await.expect("the closure ends");
    });
}

/// A paused clock stands still while a closure runs. A test would otherwise see timeouts before the closure's work.
#[test]
fn running_closure_holds_paused_clock() {
    within(|| {
        let runtime =
            Builder::new_current_thread().max_blocking_threads(1).start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let start = Instant::now();
            let hour = spawn(sleep(Duration::from_secs(3600)));
            let (first, end) = running_closure().await;
            let second = spawn_blocking(|| ());
            // The worker now sleeps in the kernel. Another thread ends the closure.
            let outside = thread::spawn(move || drop(end));
            first.await.expect("the first closure ends");
            second.await.expect("the second closure runs");
            assert_eq!(start.elapsed(), Duration::ZERO, "the clock must stand still");
            assert!(!hour.is_finished());
            hour.await.expect("the sleep ends");
            assert!(start.elapsed() >= Duration::from_secs(3600), "the clock must have advanced");
            outside.join().expect("a thread");
        });
    });
}

/// A paused clock continues after a closure whose handle was dropped. Its end must wake the worker.
#[test]
fn detached_closure_releases_paused_clock() {
    run_paused(|| async {
        for _ in 0..100 {
            let (start, begun) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
            drop(spawn_blocking({
                let begun = begun.clone();
                move || {
                    thread::yield_now();
                    begun.fetch_add(1, Ordering::SeqCst)
                }
            }));
            sleep(Duration::from_secs(1)).await;
            assert_eq!(begun.load(Ordering::SeqCst), 1, "the closure must run before the clock advances");
            assert_at(Instant::now(), start + Duration::from_secs(1));
        }
    });
}

/// A dropped runtime drops the closures that wait and does not wait for those that run.
#[test]
fn dropped_runtime_drops_queued_closures() {
    within(|| {
        let runtime = blocking_threads(1);
        let (running, end) = runtime.block_on(running_closure());
        let (kept, gone) = mpsc::channel::<()>();
        let waiting = runtime.handle().spawn_blocking(move || drop(kept));
        let handle = runtime.handle().clone();
        drop(runtime);
        assert!(is_gone(&gone), "a waiting closure must be dropped before the runtime's drop returns");
        assert!(future::block_on(waiting).expect_err("the closure never ran").is_cancelled());
        assert!(future::block_on(handle.spawn_blocking(|| ())).expect_err("the runtime has ended").is_cancelled());
        assert!(!running.is_finished());
        drop(end);
        assert_eq!(future::block_on(running).expect("a running closure returns its output"), "done");
    });
}

/// `block_on` does not wait for a closure at its end.
#[test]
fn block_on_waits_for_no_closure() {
    within(|| {
        let (closure, end) = kittiwake::block_on(running_closure());
        drop(end);
        assert_eq!(future::block_on(closure).expect("the closure ends"), "done");
    });
}

/// An output that arrives after the end of its runtime is dropped, and a panic of that drop is contained.
#[test]
fn unwanted_output_is_dropped() {
    struct SendsThreadOnDrop(Sender<thread::ThreadId>);
    impl Drop for SendsThreadOnDrop {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).expect("the test waits");
            resume_unwind(Box::new("on purpose"));
        }
    }
    within(|| {
        let (sender, dropped) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        kittiwake::block_on(async {
            let (begin, begun) = async_channel::bounded(1);
            drop(spawn_blocking(move || {
                begin.try_send(()).expect("the channel has room");
                let _ = ended.recv();
                SendsThreadOnDrop(sender)
            }));
            begun.recv().await.expect("the closure begins");
        });
        drop(end);
        assert_ne!(dropped.recv().expect("the output is dropped"), thread::current().id());
    });
}

/// A closure that a destructor spawns at the end of the runtime is cancelled.
#[test]
fn destructors_closure_is_cancelled() {
    struct Spawns(Sender<JoinHandle<()>>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            self.0.send(spawn_blocking(|| ())).expect("the test waits");
        }
    }
    within(|| {
        let (spawned, handles) = mpsc::channel();
        kittiwake::block_on(async {
            let spawns = Spawns(spawned);
            spawn(async move {
                let _spawns = spawns;
                future::pending::<()>().await;
            });
            settle().await;
        });
        assert!(
            future::block_on(handles.recv().expect("the destructor spawned a closure"))
                .expect_err("the runtime has ended")
                .is_cancelled()
        );
    });
}

/// `shutdown_timeout` waits for running closures and reports those that are left.
#[test]
fn shutdown_timeout_reports_running_closures() {
    within(|| {
        let runtime = Runtime::new().expect("a runtime");
        let (closures, ends): (Vec<_>, Vec<_>) = (0..2).map(|_| runtime.block_on(running_closure())).unzip();
        let left = runtime.shutdown_timeout(Duration::from_millis(20)).expect_err("two closures run");
        assert_eq!(left.closures_running(), 2);
        assert!(left.to_string().contains("2 blocking tasks"), "{left}");
        drop(ends);
        closures
            .into_iter()
            .for_each(|closure| assert_eq!(future::block_on(closure).expect("the closure ends"), "done"));

        for timeout in [Duration::from_secs(3600), Duration::MAX] {
            let runtime = Runtime::new().expect("a runtime");
            let (closure, end) = runtime.block_on(running_closure());
            let ending = thread::spawn(move || drop(end));
            runtime.shutdown_timeout(timeout).expect("the closure ends by itself");
            assert!(closure.is_finished(), "the shutdown must wait for the end of the closure");
            ending.join().expect("a thread");
        }
        let one = one_worker();
        one.shutdown_timeout(Duration::ZERO).expect("no closure ran");
        let runtime = Runtime::new().expect("a runtime");
        let tasks = runtime.block_on(async { (spawn(future::pending::<()>()), spawn_blocking(|| 1)) });
        assert_eq!(future::block_on(tasks.1).expect("the closure runs"), 1);
        runtime.shutdown_timeout(PATIENCE).expect("an idle thread ends at once");
        assert!(future::block_on(tasks.0).expect_err("the task is dropped").is_cancelled());
    });
}

/// `shutdown_timeout` inside a runtime panics with a message, because it would block the worker.
#[test]
fn shutdown_timeout_inside_runtime_panics() {
    within(|| {
        let runtime = Runtime::new().expect("a runtime");
        let task = runtime.handle().spawn(future::pending::<()>());
        let message =
            kittiwake::block_on(async { panic_of(|| runtime.shutdown_timeout(PATIENCE).expect("unreachable")) });
        assert!(message.contains("Runtime::shutdown_timeout was called inside a runtime"), "{message}");
        assert!(future::block_on(task).expect_err("the task was dropped").is_cancelled());
    });
}

/// A runtime may end on one of its own blocking threads. A shutdown there must not wait for its own closure.
#[test]
fn runtime_may_end_in_closure() {
    within(|| {
        let runtime = Runtime::new().expect("a runtime");
        let handle = runtime.handle().clone();
        let closure = handle.spawn_blocking(move || drop(runtime));
        future::block_on(closure).expect("the closure ends");
        for timeout in [Duration::from_millis(1), PATIENCE, Duration::MAX] {
            let runtime = Runtime::new().expect("a runtime");
            let handle = runtime.handle().clone();
            let closure = handle.spawn_blocking(move || runtime.shutdown_timeout(timeout));
            let left = future::block_on(closure).expect("the closure ends").expect_err("itself");
            assert_eq!(left.closures_running(), 1);
        }
    });
}

/// A hundred runtimes leave no thread and no descriptor.
#[test]
#[cfg(target_os = "linux")]
fn hundred_runtimes_leave_nothing() {
    in_own_process("hundred_runtimes_leave_nothing", || {
        let before = (count_of("task"), count_of("fd"));
        let mut ends = Vec::new();
        for i in 0..100 {
            let runtime = Builder::new_current_thread().start_paused(i % 2 == 0).build().expect("a runtime");
            runtime.block_on(async {
                if i % 10 == 0 {
                    let (_, end) = running_closure().await;
                    // In a paused runtime the closure now holds a reference to the worker's unparker.
                    future::or(async { drop(spawn(sleep(Duration::from_secs(1))).await) }, async {
                        for _ in 0..4 {
                            spawn_blocking(thread::yield_now).await.expect("the closure runs");
                        }
                    })
                    .await;
                    ends.push(end);
                }
                spawn_blocking(|| ()).await.expect("the closure runs");
            });
        }
        while count_of("task") > before.0 + ends.len() {
            thread::yield_now();
        }
        assert_eq!(count_of("fd"), before.1, "running closures must hold no descriptor");
        drop(ends);
        while count_of("task") > before.0 {
            thread::yield_now();
        }
    });
}

/// Closures that are spawned while their runtime ends run or are cancelled.
#[test]
fn spawning_may_race_with_shutdown() {
    within(|| {
        for _ in 0..300 {
            let runtime = blocking_threads(2);
            let handle = runtime.handle().clone();
            let barrier = Arc::new(Barrier::new(2));
            let maker = thread::spawn({
                let barrier = barrier.clone();
                move || {
                    barrier.wait();
                    (0..50).map(|i| handle.spawn_blocking(move || i)).collect::<Vec<_>>()
                }
            });
            barrier.wait();
            drop(runtime);
            for (i, closure) in maker.join().expect("a thread").into_iter().enumerate() {
                match future::block_on(closure) {
                    Ok(output) => assert_eq!(output, i),
                    Err(error) => assert!(error.is_cancelled()),
                }
            }
        }
    });
}

/// A clock that is paused while a closure runs stands still too.
#[test]
fn later_pause_holds_the_clock() {
    run(|| async {
        let (closure, end) = running_closure().await;
        pause();
        let start = Instant::now();
        let hour = spawn(sleep(Duration::from_secs(3600)));
        thread::spawn(move || drop(end));
        closure.await.expect("the closure ends");
        assert!(start.elapsed() == Duration::ZERO && !hour.is_finished());
    });
}
