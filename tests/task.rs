//! One task and its handles: how the task ends, what its handles report, and what is dropped with it.

mod support;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};

use kittiwake::runtime::{Handle, Runtime};
use kittiwake::task::{JoinError, JoinHandle, JoinSet, yield_now};
use kittiwake::{spawn, spawn_blocking, spawn_local};
use support::{Counted, PATIENCE, counting_waker, hold, one_worker, run, within};

// ---- panics ----

/// A panic ends only its own task. One request must not end a whole server.
#[test]
fn panic_ends_only_its_task() {
    run(|| async {
        let before = spawn(async {
            yield_now().await;
            "before"
        });
        let panicking = spawn(async { panic!("on purpose") });
        let after = spawn(async {
            yield_now().await;
            "after"
        });
        assert!(panicking.await.unwrap_err().is_panic(), "the handle must report the panic");
        assert_eq!(before.await.unwrap(), "before", "a task that was spawned earlier must continue");
        assert_eq!(after.await.unwrap(), "after", "a task that was spawned later must continue");
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "new tasks must still run");
    });
}

/// A `JoinError` names the task and the cause.
#[test]
fn join_error_names_task_and_cause() {
    run(|| async {
        let text = spawn(async { panic!("no more {}", "tea") });
        let id = text.id();
        let error = text.await.unwrap_err();
        assert_eq!(error.id(), id);
        assert_eq!(error.to_string(), format!("task {id} panicked: no more tea"));
        assert!(!error.is_cancelled(), "a panic must not count as a cancellation");

        let literal = spawn(async { panic!("plain") });
        assert!(literal.await.unwrap_err().to_string().ends_with("panicked: plain"));

        let number = spawn(async { panic_any(7_u32) });
        let error = number.await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("task {} panicked", error.id()),
            "a payload that is no text must be left out"
        );

        let cancelled = spawn(pending::<()>());
        cancelled.abort();
        let error = cancelled.await.unwrap_err();
        assert_eq!(error.to_string(), format!("task {} was cancelled", error.id()));
        assert!(!error.is_panic(), "a cancellation must not count as a panic");
        assert!(
            format!("{error:?}").contains("was cancelled"),
            "the Debug text, which `unwrap` prints, must name the cause too"
        );
    });
}

/// The payload of a panic is returned whole, so that a supervisor can resume the panic.
#[test]
fn panic_payload_is_returned_whole() {
    run(|| async {
        let error = spawn(async { panic_any(vec![1, 2, 3]) }).await.unwrap_err();
        let payload = error.into_panic().downcast::<Vec<i32>>().expect("the payload keeps its type");
        assert_eq!(*payload, [1, 2, 3]);
    });
}

/// A cancellation has no payload. `into_panic` then panics, and `try_into_panic` returns the error.
#[test]
fn cancellation_has_no_payload() {
    run(|| async {
        let cancelled = || async {
            let task = spawn(pending::<()>());
            task.abort();
            task.await.unwrap_err()
        };
        let error = cancelled().await.try_into_panic().expect_err("a cancellation has no payload");
        assert!(error.is_cancelled(), "the error must be returned unchanged");
        let error = cancelled().await;
        let panic =
            catch_unwind(AssertUnwindSafe(|| error.into_panic())).expect_err("`into_panic` refuses a cancellation");
        assert!(message(&*panic).contains("cancelled"), "the panic must say why: {}", message(&*panic));
    });
}

/// A `JoinError` is a `Send + Sync` error, so it can be returned with `?`.
#[test]
fn join_error_is_a_sendable_error() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    fn is_send<T: Send>() {}
    fn is_unpin<T: Unpin>() {}
    is_error::<JoinError>();
    is_send::<JoinHandle<Cell<u8>>>();
    is_unpin::<JoinHandle<std::marker::PhantomPinned>>();
}

/// A panic in the drop of a future that has ended is the panic of its task.
#[test]
fn panic_in_drop_is_the_tasks() {
    run(|| async {
        let bomb = PanicOnDrop::armed();
        let mut held = Some(bomb);
        let task = spawn(poll_fn(move |_| {
            assert!(held.as_mut().is_some(), "the future must hold the bomb until it is dropped");
            Poll::Ready(5)
        }));
        assert!(task.await.unwrap_err().is_panic(), "the handle must report that the future's drop panicked");
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "no task may be alive");
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "the runtime must continue");
    });
}

/// A panic in the drop of an aborted future is the panic of its task. The worker survives it.
#[test]
fn panic_in_aborted_drop_is_contained() {
    run(|| async {
        for polls in 0..3 {
            let bomb = PanicOnDrop::armed();
            let task = spawn(async move {
                let _bomb = bomb;
                pending::<()>().await;
            });
            for _ in 0..polls {
                yield_now().await;
            }
            task.abort();
            assert!(task.await.unwrap_err().is_panic(), "the handle must report the panic of the drop");
        }
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "no task may be alive");
    });
}

/// A panic in a future's drop at the end of the runtime does not keep the other tasks from being dropped.
#[test]
fn panic_in_shutdown_drop_is_contained() {
    within(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            for _ in 0..3 {
                spawn(hold(Counted(dropped.clone())));
                spawn(hold(PanicOnDrop::armed()));
            }
            yield_now().await;
        });
        drop(runtime);
        assert_eq!(dropped.load(Ordering::SeqCst), 3, "the future of every other task must be dropped");
    });
}

/// A panic in the drop of an output that is never taken is contained.
#[test]
fn panic_in_outputs_drop_is_contained() {
    run(|| async {
        // The handle is dropped first, so the worker drops the output.
        drop(spawn(async { PanicOnDrop::armed() }));
        yield_now().await;
        // The task ends first, so the drop of the handle drops the output.
        let task = spawn(async { PanicOnDrop::armed() });
        yield_now().await;
        assert!(task.is_finished());
        drop(task);
        // The handle also drops the payload of a panic.
        let task = spawn(async { panic_any(PanicOnDrop::armed()) });
        yield_now().await;
        drop(task);
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "the runtime must continue");
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "no task may be alive");
    });
}

// ---- abort ----

/// A task that is aborted before its first poll never runs.
#[test]
fn abort_before_first_poll_prevents_it() {
    run(|| async {
        let ran = Arc::new(AtomicBool::new(false));
        let task = spawn({
            let ran = ran.clone();
            async move { ran.store(true, Ordering::SeqCst) }
        });
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(!ran.load(Ordering::SeqCst), "the future must be dropped without a poll");
    });
}

/// An abort ends a task that waits. Nothing else would wake it.
#[test]
fn abort_ends_waiting_task() {
    run(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let task = spawn(hold(Counted(dropped.clone())));
        yield_now().await;
        assert_eq!(dropped.load(Ordering::SeqCst), 0, "the task must wait");
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "the future must be dropped once");
    });
}

/// A task that aborts itself ends at its next await.
#[test]
fn self_abort_ends_at_next_await() {
    run(|| async {
        let trace = Arc::new(Mutex::new(Vec::new()));
        let own: Arc<Mutex<Option<kittiwake::task::AbortHandle>>> = Arc::default();
        let task = spawn({
            let (trace, own) = (trace.clone(), own.clone());
            async move {
                own.lock().unwrap().take().expect("the task's own handle").abort();
                trace.lock().unwrap().push("the poll continues");
                yield_now().await;
                trace.lock().unwrap().push("the task is polled again");
            }
        });
        *own.lock().unwrap() = Some(task.abort_handle());
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(*trace.lock().unwrap(), ["the poll continues"]);
    });
}

/// A task that ends in the poll that aborts it keeps its output.
#[test]
fn ending_poll_wins_over_abort() {
    run(|| async {
        let own: Arc<Mutex<Option<kittiwake::task::AbortHandle>>> = Arc::default();
        let task = spawn({
            let own = own.clone();
            async move {
                own.lock().unwrap().take().expect("the task's own handle").abort();
                8
            }
        });
        *own.lock().unwrap() = Some(task.abort_handle());
        assert_eq!(task.await.unwrap(), 8);
    });
}

/// An abort after the end of a task changes nothing.
#[test]
fn abort_after_end_changes_nothing() {
    run(|| async {
        let task = spawn(ready(3));
        let abort = task.abort_handle();
        yield_now().await;
        assert!(task.is_finished() && abort.is_finished());
        task.abort();
        abort.abort();
        assert_eq!(task.await.unwrap(), 3);
        abort.abort();
        assert!(abort.is_finished());
    });
}

/// An abort handle does not abort the task that took over the slot of an ended one.
#[test]
fn stale_abort_spares_the_next_task() {
    run(|| async {
        let old = spawn(ready(()));
        let abort = old.abort_handle();
        old.await.unwrap();
        let new = spawn(async {
            yield_now().await;
            "untouched"
        });
        abort.abort();
        assert!(abort.is_finished(), "the old task must stay finished");
        assert_eq!(new.await.unwrap(), "untouched");
    });
}

/// A repeated abort counts as one.
#[test]
fn repeated_abort_counts_once() {
    run(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let task = spawn(hold(Counted(dropped.clone())));
        let abort = task.abort_handle();
        yield_now().await;
        task.abort();
        task.abort();
        abort.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        abort.abort();
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "the future must be dropped once");
    });
}

/// An abort from another thread wakes the sleeping worker and the joining task.
#[test]
fn abort_from_thread_wakes_joiner() {
    run(|| async {
        let dropped_on = Arc::new(Mutex::new(None));
        let task = spawn(hold(NoteThread(dropped_on.clone())));
        let abort = task.abort_handle();
        yield_now().await;
        let thread = std::thread::spawn(move || abort.abort());
        assert!(task.await.unwrap_err().is_cancelled());
        thread.join().unwrap();
        let dropped_on = *dropped_on.lock().unwrap();
        assert_eq!(dropped_on, Some(std::thread::current().id()), "the worker must drop the future");
    });
}

/// An abort between two calls of `block_on` takes effect in the next call, if the runtime has one worker.
#[test]
fn abort_between_calls_waits() {
    within(|| {
        let runtime = one_worker();
        let (task, abort) = runtime.block_on(async {
            let task = spawn(pending::<()>());
            let abort = task.abort_handle();
            yield_now().await;
            (task, abort)
        });
        abort.abort();
        assert!(!abort.is_finished(), "no thread could have dropped the future yet");
        assert!(runtime.block_on(task).unwrap_err().is_cancelled());
        assert!(abort.is_finished());
        drop(runtime);
        abort.abort();
    });
}

// ---- handles ----

/// A future is dropped before its handle is ready. A port, a lock or an `Arc` that it held is then free.
#[test]
fn future_is_dropped_before_handle_readiness() {
    run(|| async {
        let held = Arc::new(());
        let ends = spawn(poll_fn({
            let held = held.clone();
            move |_| Poll::Ready(Arc::strong_count(&held))
        }));
        assert_eq!(ends.await.unwrap(), 2);
        assert_eq!(Arc::strong_count(&held), 1, "a future must be dropped after its end");

        let panics = spawn(panicking(held.clone()));
        panics.await.unwrap_err();
        assert_eq!(Arc::strong_count(&held), 1, "a future must be dropped after a panic");

        let aborted = spawn(hold(held.clone()));
        yield_now().await;
        aborted.abort();
        aborted.await.unwrap_err();
        assert_eq!(Arc::strong_count(&held), 1, "a future must be dropped after an abort");
    });
}

/// `is_finished` is true once awaiting the handle cannot wait, and not earlier.
#[test]
fn is_finished_predicts_the_await() {
    run(|| async {
        let (open, gate) = async_channel::bounded::<()>(1);
        let task = spawn(async move { gate.recv().await });
        let abort = task.abort_handle();
        yield_now().await;
        assert!(!task.is_finished() && !abort.is_finished(), "the task must wait for the gate");
        open.send(()).await.unwrap();
        while !task.is_finished() {
            yield_now().await;
        }
        assert!(abort.is_finished());
        let mut task = task;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut task).poll(&mut cx).is_ready(), "the handle of a finished task must be ready");
        assert!(task.is_finished(), "the task must stay finished after its output was taken");
    });
}

/// No two tasks share an id, even if one takes over the slot of the other.
#[test]
fn task_ids_are_unique() {
    run(|| async {
        let mut ids = std::collections::HashSet::new();
        for _ in 0..100 {
            let first = spawn(ready(()));
            let second = spawn_local(ready(()));
            assert_eq!(first.id(), first.abort_handle().id(), "the handles of a task must agree on its id");
            assert!(ids.insert(first.id()) && ids.insert(second.id()), "two tasks have the same id");
            first.await.unwrap();
            second.await.unwrap();
        }
    });
}

/// A task continues without its handle.
#[test]
fn task_continues_without_its_handle() {
    run(|| async {
        let (report, ended) = async_channel::bounded(1);
        drop(spawn(async move {
            yield_now().await;
            report.send("ended").await.unwrap();
        }));
        assert_eq!(ended.recv().await.unwrap(), "ended");
    });
}

/// A handle that was ready panics when it is polled again.
#[test]
fn ready_handle_panics_when_repolled() {
    run(|| async {
        let mut task = spawn(ready(1));
        assert_eq!((&mut task).await.unwrap(), 1);
        let again = catch_unwind(AssertUnwindSafe(|| {
            let _ = Pin::new(&mut task).poll(&mut Context::from_waker(Waker::noop()));
        }));
        let panic = again.expect_err("a second poll panics");
        assert!(message(&*panic).contains("JoinHandle") && message(&*panic).contains("ready"), "{}", message(&*panic));
    });
}

/// A handle wakes the waker that polled it last.
#[test]
fn handle_wakes_its_last_poller() {
    run(|| async {
        let (open, gate) = async_channel::bounded::<()>(1);
        let mut task = spawn(async move { gate.recv().await.unwrap() });
        let (old_waker, old) = counting_waker();
        let (new_waker, new) = counting_waker();
        for waker in [&old_waker, &new_waker] {
            assert!(Pin::new(&mut task).poll(&mut Context::from_waker(waker)).is_pending());
        }
        open.send(()).await.unwrap();
        while !task.is_finished() {
            yield_now().await;
        }
        assert!(new.get() >= 1, "the newest waker must be woken");
        assert_eq!(old.get(), 0, "the old waker no longer waits");
    });
}

/// A handle can be awaited in another runtime, in another executor and on a plain thread.
#[test]
fn handle_can_be_awaited_anywhere() {
    run(|| async {
        let gated = || {
            let (open, gate) = async_channel::bounded::<u32>(1);
            (open, spawn(async move { gate.recv().await.unwrap() }))
        };
        type Join = fn(JoinHandle<u32>) -> u32;
        let elsewhere: [(&str, Join); 3] = [
            ("a foreign executor", |task| futures_lite::future::block_on(task).unwrap()),
            ("another runtime", |task| kittiwake::block_on(task).unwrap()),
            ("a task of another runtime", |task| kittiwake::block_on(async { spawn(task).await.unwrap().unwrap() })),
        ];
        for (place, join) in elsewhere {
            let (open, task) = gated();
            let (started, starts) = async_channel::bounded::<()>(1);
            let thread = std::thread::spawn(move || {
                started.send_blocking(()).unwrap();
                join(task)
            });
            starts.recv().await.unwrap();
            open.send(9).await.unwrap();
            while !thread.is_finished() {
                yield_now().await;
            }
            assert_eq!(thread.join().unwrap(), 9, "the handle was awaited in {place}");
        }
    });
}

/// A task may own its handle and drop it.
#[test]
fn task_may_drop_its_own_handle() {
    run(|| async {
        let own: Arc<Mutex<Option<JoinHandle<()>>>> = Arc::default();
        let (report, ended) = async_channel::bounded(1);
        let task = spawn({
            let own = own.clone();
            async move {
                drop(own.lock().unwrap().take().expect("the task's own handle"));
                yield_now().await;
                report.send(()).await.unwrap();
            }
        });
        *own.lock().unwrap() = Some(task);
        ended.recv().await.expect("the task continues without its handle");
    });
}

/// A task that holds its own handle is freed when the runtime ends.
#[test]
fn task_with_own_handle_is_freed() {
    within(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        kittiwake::block_on(async {
            let (give, given) = async_channel::bounded::<JoinHandle<()>>(1);
            let counted = Counted(dropped.clone());
            let task = spawn(async move {
                let _own = given.recv().await;
                hold(counted).await;
            });
            give.send(task).await.unwrap();
            yield_now().await;
            yield_now().await;
        });
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "the end of the runtime must drop the future");
    });
}

/// Large and unusual outputs arrive whole.
#[test]
fn unusual_outputs_arrive_whole() {
    run(|| async {
        assert_eq!(spawn(ready([7_u8; 1_000])).await.unwrap(), [7_u8; 1_000]);
        assert_eq!(spawn(ready(())).await.unwrap(), ());
        assert_eq!(spawn(ready(String::from("text"))).await.unwrap(), "text");
        assert!(spawn(async { Err::<(), _>("the task's own error") }).await.unwrap().is_err());
    });
}

// ---- local tasks ----

/// A local task may hold and return values that are not `Send`.
#[test]
fn local_task_may_be_unsendable() {
    run(|| async {
        let shared = Rc::new(RefCell::new(Vec::new()));
        let task = spawn_local({
            let shared = shared.clone();
            async move {
                shared.borrow_mut().push(1);
                yield_now().await;
                shared.borrow_mut().push(2);
                Rc::new("output")
            }
        });
        assert_eq!(*task.await.unwrap(), "output");
        assert_eq!(*shared.borrow(), [1, 2]);
        assert_eq!(Rc::strong_count(&shared), 1, "the future must be dropped");
    });
}

/// A local task that another thread wakes runs on its own thread.
#[test]
fn local_task_runs_on_its_thread() {
    run(|| async {
        let own_thread = std::thread::current().id();
        let (send, receive) = async_channel::unbounded::<()>();
        let not_send = Rc::new(());
        let task = spawn_local(async move {
            for _ in 0..100 {
                receive.recv().await.unwrap();
                assert_eq!(std::thread::current().id(), own_thread, "a local task was polled on another thread");
            }
            drop(not_send);
        });
        let thread = std::thread::spawn(move || {
            for _ in 0..100 {
                send.send_blocking(()).unwrap();
            }
        });
        task.await.unwrap();
        thread.join().unwrap();
    });
}

/// Another thread may await a local task whose output is `Send`.
#[test]
fn local_tasks_output_may_travel() {
    run(|| async {
        let (open, gate) = async_channel::bounded::<()>(1);
        let task = spawn_local(async move {
            let local = Rc::new(4);
            gate.recv().await.unwrap();
            *local
        });
        let thread = std::thread::spawn(move || futures_lite::future::block_on(task).unwrap());
        open.send(()).await.unwrap();
        while !thread.is_finished() {
            yield_now().await;
        }
        assert_eq!(thread.join().unwrap(), 4);
    });
}

// ---- refused spawns ----

/// A spawn after the end of the runtime is cancelled at once, and its future is dropped.
#[test]
fn spawn_after_shutdown_is_cancelled() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let dropped = Arc::new(AtomicUsize::new(0));
        let task = handle.spawn(hold(Counted(dropped.clone())));
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "the future must be dropped before spawn returns");
        assert!(task.is_finished());
        task.abort();
        assert!(futures_lite::future::block_on(task).unwrap_err().is_cancelled());
        assert_eq!(handle.metrics().tasks_alive(), 0);
        // A panic in the drop of a refused future does not reach the caller of `spawn`.
        let task = handle.spawn(hold(PanicOnDrop::armed()));
        assert!(futures_lite::future::block_on(task).is_err());
    });
}

// ---- size ----

/// One mebibyte, or less in an unoptimised build, where every move copies the future.
const LARGE: usize = if cfg!(debug_assertions) { 320 << 10 } else { 1 << 20 };

/// The size of a large output.
const OUTPUT: usize = if cfg!(debug_assertions) { 64 << 10 } else { 128 << 10 };

/// A very large future does not overflow a thread's stack of 2 MiB. The functions that it passes through must not
/// each hold a copy.
#[test]
fn large_future_overflows_no_stack() {
    let test = |name: &str, test: fn() -> u64| assert_eq!(on_a_small_stack(name, test), LARGE as u64);
    test("block_on", || kittiwake::block_on(large()));
    test("Runtime::block_on", || Runtime::new().unwrap().block_on(large()));
    test("spawn", || kittiwake::block_on(async { spawn(large()).await.unwrap() }));
    test("spawn_local", || kittiwake::block_on(async { spawn_local(large()).await.unwrap() }));
    test("Handle::spawn", || {
        let runtime = Runtime::new().unwrap();
        let task = runtime.handle().spawn(large());
        runtime.block_on(task).unwrap()
    });
    test("JoinSet::spawn", || {
        kittiwake::block_on(async {
            let mut set = JoinSet::new();
            set.spawn(large());
            set.join_next().await.unwrap().unwrap()
        })
    });
    test("JoinSet::spawn_local", || {
        kittiwake::block_on(async {
            let mut set = JoinSet::new();
            set.spawn_local(large());
            set.join_next().await.unwrap().unwrap()
        })
    });
}

/// The same with large outputs. Those of a set pass through more functions.
#[test]
fn large_output_overflows_no_stack() {
    let test = |name: &str, test: fn() -> u8| assert_eq!(on_a_small_stack(name, test), 1);
    test("block_on", || kittiwake::block_on(make())[OUTPUT - 1]);
    test("spawn", || kittiwake::block_on(async { spawn(make()).await.unwrap()[OUTPUT - 1] }));
    test("spawn_local", || kittiwake::block_on(async { spawn_local(make()).await.unwrap()[OUTPUT - 1] }));
    test("spawn_blocking", || kittiwake::block_on(async { spawn_blocking(|| [1; OUTPUT]).await.unwrap()[OUTPUT - 1] }));
    test("Handle::spawn", || {
        let runtime = Runtime::new().unwrap();
        let task = runtime.handle().spawn(make());
        runtime.block_on(task).unwrap()[OUTPUT - 1]
    });
    test("JoinSet::spawn", || {
        kittiwake::block_on(async {
            let mut set = JoinSet::new();
            set.spawn(async { [1; OUTPUT / 2] });
            set.join_next().await.unwrap().unwrap()[OUTPUT / 2 - 1]
        })
    });
}

/// An output of [`large_output_overflows_no_stack`].
async fn make() -> [u8; OUTPUT] {
    [1; OUTPUT]
}

/// Runs `test` on a thread with a stack of 2 MiB.
fn on_a_small_stack<T: Send + 'static>(name: &str, test: fn() -> T) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(2 << 20);
    thread.spawn(move || done.send(test()).unwrap()).unwrap();
    waiting.recv_timeout(PATIENCE).expect("the test ends")
}

/// A future that is large because of its state while it runs. Making it costs no stack here.
async fn large() -> u64 {
    let mut state = [0_u8; LARGE];
    for piece in state.chunks_mut(LARGE / 4) {
        piece.fill(1);
        yield_now().await;
    }
    state.iter().map(|byte| u64::from(*byte)).sum()
}

// ---- helpers ----

async fn panicking<T>(_held: T) {
    yield_now().await;
    panic!("on purpose");
}

struct NoteThread(Arc<Mutex<Option<std::thread::ThreadId>>>);

impl Drop for NoteThread {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(std::thread::current().id());
    }
}

struct PanicOnDrop(bool);

impl PanicOnDrop {
    fn armed() -> Self {
        Self(true)
    }
}

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        // A second panic during unwinding would abort the process.
        assert!(!self.0 || std::thread::panicking(), "on purpose");
    }
}

/// Returns the message of a panic.
fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// An abort at the moment at which a task begins to run is not lost. A lost abort would leave the joining task
/// waiting for ever.
#[test]
fn racing_abort_is_not_lost() {
    within(|| {
        let runtime = kittiwake::runtime::Runtime::new().expect("a runtime");
        let (send, receive) = std::sync::mpsc::sync_channel::<kittiwake::task::AbortHandle>(1);
        let aborts = std::thread::spawn(move || {
            for (round, handle) in receive.into_iter().enumerate() {
                (0..round % 400).for_each(|_| std::hint::spin_loop());
                handle.abort();
            }
        });
        for _ in 0..3_000 {
            runtime.block_on(async {
                let task = kittiwake::spawn(std::future::pending::<()>());
                send.send(task.abort_handle()).expect("the thread that aborts");
                assert!(task.await.expect_err("the task was aborted").is_cancelled());
            });
        }
        drop(send);
        aborts.join().expect("the thread that aborts");
    });
}

// ---- what a caller may pass ----

/// Any `IntoFuture` can be spawned, blocked on and timed, without `into_future`.
#[test]
fn into_futures_are_taken_everywhere() {
    struct Seven;
    impl IntoFuture for Seven {
        type Output = u8;
        type IntoFuture = std::future::Ready<u8>;
        fn into_future(self) -> Self::IntoFuture {
            ready(7)
        }
    }
    within(|| {
        let runtime = Runtime::new().expect("a runtime");
        assert_eq!((kittiwake::block_on(Seven), runtime.block_on(Seven), runtime.handle().block_on(Seven)), (7, 7, 7));
        runtime.block_on(async {
            let handle = Handle::current();
            let mut set = JoinSet::new();
            set.spawn(Seven);
            set.spawn_local(Seven);
            for task in [spawn(Seven), spawn_local(Seven), handle.spawn(Seven)] {
                assert_eq!(task.await.expect("no panic"), 7);
            }
            while let Some(joined) = set.join_next().await {
                assert_eq!(joined.expect("no panic"), 7);
            }
            let hour = kittiwake::time::Duration::from_secs(3600);
            assert_eq!(kittiwake::time::timeout(hour, Seven).await, Ok(7));
        });
    });
}

/// `?` makes an `io::Error` of a `JoinError`, which keeps it.
#[test]
fn join_error_becomes_io_error() {
    async fn join(task: JoinHandle<()>) -> std::io::Result<()> {
        Ok(task.await?)
    }
    run(|| async {
        let panicked = join(spawn(async { panic!("on purpose") })).await.expect_err("it panics");
        let inner = panicked.get_ref().and_then(|error| error.downcast_ref::<JoinError>()).expect("it is kept");
        assert!(inner.is_panic() && panicked.to_string().contains("on purpose"), "{panicked}");
        let aborted = spawn(pending());
        aborted.abort();
        assert!(join(aborted).await.expect_err("it was aborted").to_string().contains("cancelled"));
    });
}
