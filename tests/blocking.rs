//! Blocking closures: where they run, how they end, and what the end of their runtime is to them.

mod support;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread;

use futures_lite::future;
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::JoinHandle;
use kittiwake::time::{Duration, Instant, pause, sleep};
use kittiwake::{spawn, spawn_blocking};
use support::*;

/// A closure that has begun and runs until the sender is dropped.
async fn stuck() -> (JoinHandle<&'static str>, Sender<()>) {
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

/// Whether what holds the sender has been dropped.
fn is_gone(receiver: &Receiver<()>) -> bool {
    receiver.try_recv() == Err(mpsc::TryRecvError::Disconnected)
}

/// What panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        resume_unwind(Box::new("a bomb went off"));
    }
}

/// Without it whoever blocks stops the worker.
#[test]
fn a_closure_runs_on_a_thread_of_its_own_and_gives_its_output() {
    run(|| async {
        let worker = thread::current().id();
        let (id, name) = spawn_blocking(|| (thread::current().id(), thread::current().name().map(str::to_owned)))
            .await
            .expect("the task runs");
        assert_ne!(id, worker);
        assert_eq!(name.as_deref(), Some("kittiwake-blocking"));
    });
}

/// Without it a task waits for another one's blocking work.
#[test]
fn tasks_and_sockets_go_on_while_a_closure_blocks() {
    run(|| async {
        let (closure, end) = stuck().await;
        let (client, server) = pair().await;
        client.writable().await.expect("writable");
        client.try_write(b"x").expect("write");
        server.readable().await.expect("readable");
        assert_eq!(spawn(async { 1 }).await.expect("a task"), 1);
        assert!(!closure.is_finished());
        drop(end);
        assert_eq!(closure.await.expect("the task ends"), "done");
    });
}

/// Without it one closure's mistake ends its thread, or the process.
#[test]
fn a_closure_that_panics_ends_alone() {
    run(|| async {
        let error =
            spawn_blocking(|| resume_unwind(Box::new("no more tea"))).await.map(drop).expect_err("the task panics");
        assert!(error.is_panic() && !error.is_cancelled());
        assert_eq!(error.into_panic().downcast_ref::<&str>(), Some(&"no more tea"));
        assert_eq!(spawn_blocking(|| 1).await.expect("the next one runs"), 1);
    });
}

/// Without it the process ends: async-task lets no panic of a drop out.
#[test]
fn drops_that_panic_are_contained() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(1).build().expect("a runtime");
        runtime.block_on(async {
            let (_stuck, end) = stuck().await;
            let bomb = Bomb;
            let aborted = spawn_blocking(move || drop(bomb));
            aborted.abort();
            drop(spawn_blocking(|| Bomb));
            drop(spawn_blocking(|| resume_unwind(Box::new(Bomb))));
            drop(end);
            assert!(aborted.await.expect_err("it was aborted, and its drop panicked").is_panic());
            assert_eq!(spawn_blocking(|| 1).await.expect("the thread is in order"), 1);
            let (_stuck, end) = stuck().await;
            let bomb = Bomb;
            let waiting = spawn_blocking(move || drop(bomb));
            (end, waiting)
        });
        drop(runtime);
    });
}

/// Without it a big closure overflows the stacks it is passed through.
#[test]
fn a_large_closure_runs() {
    run(|| async {
        let bytes = [7_u8; 200_000];
        let sum = spawn_blocking(move || bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        assert_eq!(sum.await.expect("the task runs"), 1_400_000);
    });
}

/// Without it a burst starts as many threads as it has closures.
#[test]
fn there_are_no_more_threads_than_the_limit() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(3).build().expect("a runtime");
        runtime.block_on(async {
            let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            // Three reach it together, or nobody passes it: so the limit is reached, too.
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
                closure.await.expect("the task runs");
            }
            assert_eq!(most.load(Ordering::SeqCst), 3);
        });
    });
}

/// Without it an early closure may wait for ever behind later ones.
#[test]
fn closures_beyond_the_limit_run_in_order() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(1).build().expect("a runtime");
        runtime.block_on(async {
            let (ran, order) = mpsc::channel();
            let closures: Vec<_> = (0..100)
                .map(|i| {
                    let ran = ran.clone();
                    spawn_blocking(move || ran.send(i).expect("the test listens"))
                })
                .collect();
            for closure in closures {
                closure.await.expect("the task runs");
            }
            assert!(order.try_iter().eq(0..100));
        });
    });
}

/// Without it a limit of 0 is a runtime in which every look-up hangs.
#[test]
fn a_limit_of_no_threads_is_refused() {
    let said = panic_of(|| drop(Builder::new().max_blocking_threads(0)));
    assert!(said.contains("use 1 or more"), "{said}");
}

/// Without it a closure whose caller has gone still runs.
#[test]
fn abort_drops_a_closure_that_waits_for_a_thread() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(1).build().expect("a runtime");
        runtime.block_on(async {
            let (stuck, end) = stuck().await;
            let (kept, gone) = mpsc::channel();
            let closures = [(); 2].map(|()| {
                let kept = kept.clone();
                spawn_blocking(move || kept.send(()))
            });
            drop(kept);
            closures[0].abort();
            let handle = closures[1].abort_handle();
            handle.abort();
            assert!(!is_gone(&gone), "when its turn comes");
            drop(end);
            stuck.await.expect("the task ends");
            for closure in closures {
                assert!(closure.await.map(drop).expect_err("the task was aborted").is_cancelled());
            }
            assert!(handle.is_finished() && is_gone(&gone), "it was dropped, and has not run");
        });
    });
}

/// Without it abort promises what nobody can do, or loses an output.
#[test]
fn abort_leaves_a_closure_that_runs_alone() {
    run(|| async {
        let (closure, end) = stuck().await;
        closure.abort();
        let handle = closure.abort_handle();
        handle.abort();
        settle().await;
        assert!(!closure.is_finished() && !handle.is_finished());
        drop(end);
        assert_eq!(closure.await.expect("the task ends"), "done");
        assert!(handle.is_finished());
    });
}

/// Without it a closure's handle can be taken for a task's.
#[test]
fn a_closure_has_an_id_like_a_task() {
    run(|| async {
        let (task, closure, other) = (spawn(async {}), spawn_blocking(|| ()), spawn_blocking(|| ()));
        assert!(task.id() != closure.id() && closure.id() != other.id() && task.id() != other.id());
        let id = closure.id();
        assert_eq!(closure.abort_handle().id(), id);
        let panicking = spawn_blocking(|| resume_unwind(Box::new(())));
        let id = panicking.id();
        assert_eq!(panicking.await.map(drop).expect_err("the task panics").id(), id);
    });
}

/// Without it a handle is bound to the thread or the executor of its maker.
#[test]
fn a_handle_can_be_awaited_anywhere_and_dropped() {
    within(|| {
        let other = Background::start();
        let runtime = Runtime::new().expect("a runtime");
        // Nobody is in this runtime's block_on: its pool works all the same.
        let handle = runtime.handle().clone();
        assert_eq!(future::block_on(handle.spawn_blocking(|| 1)).expect("outside any runtime"), 1);
        let closure = handle.spawn_blocking(|| 2);
        assert_eq!(other.run(closure).expect("in another runtime"), 2);
        let closure = runtime.block_on(async { (spawn_blocking(|| 3),) }).0;
        assert_eq!(thread::spawn(|| future::block_on(closure)).join().expect("a thread").expect("on a thread"), 3);
        let (ran, listening) = mpsc::channel();
        drop(handle.spawn_blocking(move || ran.send(4)));
        assert_eq!(listening.recv(), Ok(4), "dropping the handle detaches");
        other.stop();
    });
}

/// Without it a mistake is a hang or a silent loss.
#[test]
fn outside_a_runtime_it_says_what_to_do() {
    let said = panic_of(|| drop(spawn_blocking(|| ())));
    assert!(said.contains("outside a runtime") && said.contains("Handle::spawn_blocking"), "{said}");
    run(|| async {
        let is_inside = spawn_blocking(|| Handle::try_current().is_ok()).await.expect("the task runs");
        assert!(!is_inside, "a closure is on no worker");
        let handle = Handle::current();
        let task = spawn_blocking(move || handle.spawn(async { 1 })).await.expect("but it may have a handle");
        assert_eq!(task.await.expect("a task"), 1);
    });
}

/// Without it blocking work counts as a task that never ends, in whoever watches the numbers.
#[test]
fn metrics_count_tasks_and_not_closures() {
    run(|| async {
        let (closure, end) = stuck().await;
        assert_eq!(Handle::current().metrics().tasks_alive(), 0);
        drop(end);
        closure.await.expect("the task ends");
    });
}

/// Without it a test with a paused clock sees its timeouts before its work.
#[test]
fn a_paused_clock_stands_still_while_a_closure_is_out() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(1).start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let start = Instant::now();
            let hour = spawn(sleep(Duration::from_secs(3600)));
            let (first, end) = stuck().await;
            let second = spawn_blocking(|| ());
            // The worker waits now, in earnest; it is ended from outside.
            let outside = thread::spawn(move || drop(end));
            first.await.expect("the task ends");
            second.await.expect("the task runs");
            assert_eq!(start.elapsed(), Duration::ZERO, "the clock must stand still");
            assert!(!hour.is_finished());
            hour.await.expect("the sleep ends");
            assert!(start.elapsed() >= Duration::from_secs(3600), "now it has moved");
            outside.join().expect("a thread");
        });
    });
}

/// Without it the worker waits for ever: nobody is woken by the end of a closure that nobody waits for.
#[test]
fn a_paused_clock_goes_on_after_a_closure_that_nobody_waits_for() {
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
            assert_eq!(begun.load(Ordering::SeqCst), 1, "the closure comes before the jump");
            assert_at(Instant::now(), start + Duration::from_secs(1));
        }
    });
}

/// Without it the end of a program waits for a closure that may never end, or for those behind it.
#[test]
fn dropping_a_runtime_drops_what_waits_and_leaves_what_runs() {
    within(|| {
        let runtime = Builder::new().max_blocking_threads(1).build().expect("a runtime");
        let (running, end) = runtime.block_on(stuck());
        let (kept, gone) = mpsc::channel::<()>();
        let waiting = runtime.handle().spawn_blocking(move || drop(kept));
        let handle = runtime.handle().clone();
        drop(runtime);
        assert!(is_gone(&gone), "what waits is dropped before the drop returns");
        assert!(future::block_on(waiting).expect_err("it never ran").is_cancelled());
        assert!(future::block_on(handle.spawn_blocking(|| ())).expect_err("too late").is_cancelled());
        assert!(!running.is_finished());
        drop(end);
        assert_eq!(future::block_on(running).expect("what runs gives its output"), "done");
    });
}

/// Without it `block_on`, of which there is a runtime per call, hangs at its end.
#[test]
fn a_call_of_block_on_waits_for_no_closure() {
    within(|| {
        let (closure, end) = kittiwake::block_on(stuck());
        drop(end);
        assert_eq!(future::block_on(closure).expect("the task ends"), "done");
    });
}

/// Without it an output that comes too late leaks, or ends the process.
#[test]
fn an_output_that_nobody_is_left_for_is_dropped() {
    struct Told(Sender<thread::ThreadId>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).expect("the test listens");
            resume_unwind(Box::new("and its drop panics"));
        }
    }
    within(|| {
        let (told, dropped) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        kittiwake::block_on(async {
            let (begin, begun) = async_channel::bounded(1);
            drop(spawn_blocking(move || {
                begin.try_send(()).expect("the channel has room");
                let _ = ended.recv();
                Told(told)
            }));
            begun.recv().await.expect("the task begins");
        });
        drop(end);
        assert_ne!(dropped.recv().expect("the future is dropped"), thread::current().id());
    });
}

/// Without it a destructor can keep a runtime from ending.
#[test]
fn a_closure_made_by_a_destructor_at_the_end_is_cancelled() {
    struct Spawns(Sender<JoinHandle<()>>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            self.0.send(spawn_blocking(|| ())).expect("the test listens");
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
        assert!(future::block_on(handles.recv().expect("one was made")).expect_err("too late").is_cancelled());
    });
}

/// Without it nobody can end a program in order, or know that it was not.
#[test]
fn shutdown_timeout_waits_and_says_what_is_left() {
    within(|| {
        let runtime = Runtime::new().expect("a runtime");
        let (closures, ends): (Vec<_>, Vec<_>) = (0..2).map(|_| runtime.block_on(stuck())).unzip();
        let left = runtime.shutdown_timeout(Duration::from_millis(20)).expect_err("two closures run");
        assert_eq!(left.still_running(), 2);
        assert!(left.to_string().contains("2 blocking closures went on"), "{left}");
        drop(ends);
        closures.into_iter().for_each(|closure| assert_eq!(future::block_on(closure).expect("the task ends"), "done"));

        for timeout in [Duration::from_secs(3600), Duration::MAX] {
            let runtime = Runtime::new().expect("a runtime");
            let (closure, end) = runtime.block_on(stuck());
            let ending = thread::spawn(move || drop(end));
            runtime.shutdown_timeout(timeout).expect("the task ends by itself");
            assert!(closure.is_finished(), "the end of the closure was waited for");
            ending.join().expect("a thread");
        }
        let one = Builder::new().workers(1).build().expect("a runtime");
        one.shutdown_timeout(Duration::ZERO).expect("nothing ever ran");
        let runtime = Runtime::new().expect("a runtime");
        let tasks = runtime.block_on(async { (spawn(future::pending::<()>()), spawn_blocking(|| 1)) });
        assert_eq!(future::block_on(tasks.1).expect("the task runs"), 1);
        runtime.shutdown_timeout(PATIENCE).expect("an idle thread leaves at once");
        assert!(future::block_on(tasks.0).expect_err("tasks are dropped").is_cancelled());
    });
}

/// Without it a task blocks its worker, and nobody is told.
#[test]
fn shutdown_timeout_inside_a_runtime_says_so() {
    within(|| {
        let runtime = Runtime::new().expect("a runtime");
        let task = runtime.handle().spawn(future::pending::<()>());
        let said = kittiwake::block_on(async { panic_of(|| runtime.shutdown_timeout(PATIENCE).expect("unreachable")) });
        assert!(said.contains("Runtime::shutdown_timeout was called inside a runtime"), "{said}");
        assert!(future::block_on(task).expect_err("it was dropped").is_cancelled());
    });
}

/// Without it a runtime that its own closure owns hangs when that ends.
#[test]
fn a_runtime_can_end_on_a_thread_of_its_own_pool() {
    within(|| {
        let runtime = Runtime::new().expect("a runtime");
        let handle = runtime.handle().clone();
        let closure = handle.spawn_blocking(move || drop(runtime));
        future::block_on(closure).expect("the task ends");
        let runtime = Runtime::new().expect("a runtime");
        let handle = runtime.handle().clone();
        let closure = handle.spawn_blocking(move || runtime.shutdown_timeout(Duration::from_millis(1)));
        let left = future::block_on(closure).expect("the task ends").expect_err("itself");
        assert_eq!(left.still_running(), 1);
    });
}

/// Without it a program that makes runtimes runs out of threads or descriptors.
#[test]
#[cfg(target_os = "linux")]
fn a_hundred_runtimes_leave_no_thread_and_no_descriptor() {
    in_own_process("a_hundred_runtimes_leave_no_thread_and_no_descriptor", || {
        let before = (count_of("task"), count_of("fd"));
        let mut ends = Vec::new();
        for i in 0..100 {
            let runtime = Builder::new().start_paused(i % 2 == 0).build().expect("a runtime");
            runtime.block_on(async {
                if i % 10 == 0 {
                    let (_, end) = stuck().await;
                    // In a paused runtime the closure now has something of the worker's to ring.
                    future::or(async { drop(spawn(sleep(Duration::from_secs(1))).await) }, async {
                        for _ in 0..4 {
                            spawn_blocking(thread::yield_now).await.expect("the task runs");
                        }
                    })
                    .await;
                    ends.push(end);
                }
                spawn_blocking(|| ()).await.expect("the task runs");
            });
        }
        while count_of("task") > before.0 + ends.len() {
            thread::yield_now();
        }
        assert_eq!(count_of("fd"), before.1, "closures that go on keep nothing open");
        drop(ends);
        while count_of("task") > before.0 {
            thread::yield_now();
        }
    });
}

/// Every step of a closure against the end of its runtime, as they come.
#[test]
fn closures_made_while_the_runtime_ends_end_too() {
    within(|| {
        for _ in 0..300 {
            let runtime = Builder::new().max_blocking_threads(2).build().expect("a runtime");
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

/// Without it a clock that is paused between two looks at the pool is not held.
#[test]
fn a_clock_paused_later_stands_still_too() {
    run(|| async {
        let (closure, end) = stuck().await;
        pause();
        let start = Instant::now();
        let hour = spawn(sleep(Duration::from_secs(3600)));
        thread::spawn(move || drop(end));
        closure.await.expect("the task ends");
        assert!(start.elapsed() == Duration::ZERO && !hour.is_finished());
    });
}
