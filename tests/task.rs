//! One task and its handles: how it ends, who hears of it, and what it takes with it.

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
use kittiwake::task::{JoinError, JoinHandle, yield_now};
use kittiwake::{spawn, spawn_local};
use support::{Counted, PATIENCE, counting_waker, hold, one_worker, run, within};

// ---- panics ----

/// A panic that ended more than its task would let one request take a whole server down.
#[test]
fn a_panic_ends_its_task_alone() {
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
        assert!(panicking.await.unwrap_err().is_panic(), "the handle must say that the task panicked");
        assert_eq!(before.await.unwrap(), "before", "a task spawned earlier must go on");
        assert_eq!(after.await.unwrap(), "after", "a task spawned later must go on");
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "new tasks must still run");
    });
}

/// Whoever logs the error sees which task it was and what it said.
#[test]
fn a_join_error_says_which_task_and_why() {
    run(|| async {
        let text = spawn(async { panic!("no more {}", "tea") });
        let id = text.id();
        let error = text.await.unwrap_err();
        assert_eq!(error.id(), id);
        assert_eq!(error.to_string(), format!("task {id} panicked: no more tea"));
        assert!(!error.is_cancelled(), "a panic is no cancellation");

        let literal = spawn(async { panic!("plain") });
        assert!(literal.await.unwrap_err().to_string().ends_with("panicked: plain"));

        let number = spawn(async { panic_any(7_u32) });
        let error = number.await.unwrap_err();
        assert_eq!(error.to_string(), format!("task {} panicked", error.id()), "a payload that is no text is left out");

        let cancelled = spawn(pending::<()>());
        cancelled.abort();
        let error = cancelled.await.unwrap_err();
        assert_eq!(error.to_string(), format!("task {} was cancelled", error.id()));
        assert!(!error.is_panic(), "a cancellation is no panic");
        assert!(format!("{error:?}").contains("was cancelled"), "Debug, which unwrap prints, must say it too");
    });
}

/// A supervisor resumes the panic where it wants it: so the payload must be the very one.
#[test]
fn the_payload_of_a_panic_comes_out_whole() {
    run(|| async {
        let error = spawn(async { panic_any(vec![1, 2, 3]) }).await.unwrap_err();
        let payload = error.into_panic().downcast::<Vec<i32>>().expect("the payload's own type");
        assert_eq!(*payload, [1, 2, 3]);
    });
}

/// `into_panic` on a cancellation is a mistake of the caller, and `try_into_panic` the way to ask.
#[test]
fn a_cancellation_has_no_payload() {
    run(|| async {
        let cancelled = || async {
            let task = spawn(pending::<()>());
            task.abort();
            task.await.unwrap_err()
        };
        let error = cancelled().await.try_into_panic().expect_err("there is no panic to take");
        assert!(error.is_cancelled(), "the error must come back as it was");
        let error = cancelled().await;
        let panic = catch_unwind(AssertUnwindSafe(|| error.into_panic())).expect_err("into_panic must refuse");
        assert!(said(&*panic).contains("cancelled"), "the panic must say why: {}", said(&*panic));
    });
}

/// An error that is passed up with `?` has to be a `Send + Sync` error like any other.
#[test]
fn a_join_error_is_an_error_like_any_other() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    fn is_send<T: Send>() {}
    fn is_unpin<T: Unpin>() {}
    is_error::<JoinError>();
    is_send::<JoinHandle<Cell<u8>>>();
    is_unpin::<JoinHandle<std::marker::PhantomPinned>>();
}

/// The destructor of a request's state may fail an assertion: that is the task's own panic.
#[test]
fn a_panic_in_a_futures_drop_after_its_end_is_the_tasks() {
    run(|| async {
        let bomb = PanicOnDrop::armed();
        let mut held = Some(bomb);
        let task = spawn(poll_fn(move |_| {
            assert!(held.as_mut().is_some(), "the future holds the bomb until it is dropped");
            Poll::Ready(5)
        }));
        assert!(task.await.unwrap_err().is_panic(), "the handle must say that the future's drop panicked");
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "the task must be gone");
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "the runtime must go on");
    });
}

/// The same while it is aborted: the destructor runs on the worker, which must survive it.
#[test]
fn a_panic_in_a_futures_drop_on_abort_is_the_tasks() {
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
            assert!(task.await.unwrap_err().is_panic(), "the drop panicked, and nobody would hear of it otherwise");
        }
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "the tasks must be gone");
    });
}

/// At the runtime's end nobody is left to be told, and the other tasks must be dropped all the same.
#[test]
fn a_panic_in_a_futures_drop_at_the_runtimes_end_is_contained() {
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
        assert_eq!(dropped.load(Ordering::SeqCst), 3, "every other task's future must be dropped");
    });
}

/// An output that nobody takes is dropped by whoever comes last, with its panic.
#[test]
fn a_panic_in_an_unwanted_outputs_drop_is_contained() {
    run(|| async {
        // The handle goes first: the worker drops the output.
        drop(spawn(async { PanicOnDrop::armed() }));
        yield_now().await;
        // The task ends first: dropping the handle drops the output.
        let task = spawn(async { PanicOnDrop::armed() });
        yield_now().await;
        assert!(task.is_finished());
        drop(task);
        // A panic's payload is an output of a kind.
        let task = spawn(async { panic_any(PanicOnDrop::armed()) });
        yield_now().await;
        drop(task);
        assert_eq!(spawn(ready(1)).await.unwrap(), 1, "the runtime must go on");
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "the tasks must be gone");
    });
}

// ---- abort ----

/// A task that was told to end before it began must not begin.
#[test]
fn a_task_aborted_before_its_first_poll_never_runs() {
    run(|| async {
        let ran = Arc::new(AtomicBool::new(false));
        let task = spawn({
            let ran = ran.clone();
            async move { ran.store(true, Ordering::SeqCst) }
        });
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(!ran.load(Ordering::SeqCst), "the future must be dropped unpolled");
    });
}

/// Nothing would ever wake a task that waits for ever but its abort.
#[test]
fn a_task_aborted_while_it_waits_ends() {
    run(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let task = spawn(hold(Counted(dropped.clone())));
        yield_now().await;
        assert_eq!(dropped.load(Ordering::SeqCst), 0, "it waits");
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "its future must be dropped once");
    });
}

/// A task may find out during a poll that it is to end; the poll goes on to its next await.
#[test]
fn a_task_that_aborts_itself_ends_at_its_next_await() {
    run(|| async {
        let trace = Arc::new(Mutex::new(Vec::new()));
        let own: Arc<Mutex<Option<kittiwake::task::AbortHandle>>> = Arc::default();
        let task = spawn({
            let (trace, own) = (trace.clone(), own.clone());
            async move {
                own.lock().unwrap().take().expect("the task's own handle").abort();
                trace.lock().unwrap().push("goes on within its poll");
                yield_now().await;
                trace.lock().unwrap().push("polled again");
            }
        });
        *own.lock().unwrap() = Some(task.abort_handle());
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(*trace.lock().unwrap(), ["goes on within its poll"]);
    });
}

/// Who ends by itself in the very poll that aborted it has ended first: the output is not thrown away.
#[test]
fn a_task_that_ends_in_the_poll_that_aborts_it_has_its_output() {
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

/// Aborting what has ended is no mistake: who aborts often cannot know.
#[test]
fn an_abort_after_the_end_changes_nothing() {
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

/// An old handle must not end the task that took its task's place in the table.
#[test]
fn an_abort_after_the_end_does_not_meet_the_next_task() {
    run(|| async {
        let old = spawn(ready(()));
        let abort = old.abort_handle();
        old.await.unwrap();
        let new = spawn(async {
            yield_now().await;
            "untouched"
        });
        abort.abort();
        assert!(abort.is_finished(), "the old task has ended, whoever has its place now");
        assert_eq!(new.await.unwrap(), "untouched");
    });
}

#[test]
fn to_abort_twice_is_to_abort_once() {
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
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "its future must be dropped once");
    });
}

/// The worker sleeps while another thread aborts: it has to be rung, and the joiner woken.
#[test]
fn an_abort_from_another_thread_wakes_the_joiner() {
    run(|| async {
        let dropped_on = Arc::new(Mutex::new(None));
        let task = spawn(hold(NoteThread(dropped_on.clone())));
        let abort = task.abort_handle();
        yield_now().await;
        let thread = std::thread::spawn(move || abort.abort());
        assert!(task.await.unwrap_err().is_cancelled());
        thread.join().unwrap();
        let dropped_on = *dropped_on.lock().unwrap();
        assert_eq!(dropped_on, Some(std::thread::current().id()), "the future must be dropped by its worker");
    });
}

/// Between two calls of `block_on` nobody runs the task, if there is one worker: the abort waits for the next one.
#[test]
fn an_abort_outside_any_runtime_takes_effect_in_the_next_call() {
    within(|| {
        let runtime = one_worker();
        let (task, abort) = runtime.block_on(async {
            let task = spawn(pending::<()>());
            let abort = task.abort_handle();
            yield_now().await;
            (task, abort)
        });
        abort.abort();
        assert!(!abort.is_finished(), "nobody could have dropped the future yet");
        assert!(runtime.block_on(task).unwrap_err().is_cancelled());
        assert!(abort.is_finished());
        drop(runtime);
        abort.abort();
    });
}

// ---- handles ----

/// Whoever is told that a task has ended may rely on what it held being free: a port, a lock, an `Arc`.
#[test]
fn the_future_is_dropped_before_its_handle_is_ready() {
    run(|| async {
        let held = Arc::new(());
        let ends = spawn(poll_fn({
            let held = held.clone();
            move |_| Poll::Ready(Arc::strong_count(&held))
        }));
        assert_eq!(ends.await.unwrap(), 2);
        assert_eq!(Arc::strong_count(&held), 1, "after an end");

        let panics = spawn(panicking(held.clone()));
        panics.await.unwrap_err();
        assert_eq!(Arc::strong_count(&held), 1, "after a panic");

        let aborted = spawn(hold(held.clone()));
        yield_now().await;
        aborted.abort();
        aborted.await.unwrap_err();
        assert_eq!(Arc::strong_count(&held), 1, "after an abort");
    });
}

/// `is_finished` is how one looks without waiting: never too early, and true once awaiting cannot wait.
#[test]
fn is_finished_says_whether_awaiting_would_wait() {
    run(|| async {
        let (open, gate) = async_channel::bounded::<()>(1);
        let task = spawn(async move { gate.recv().await });
        let abort = task.abort_handle();
        yield_now().await;
        assert!(!task.is_finished() && !abort.is_finished(), "it waits for the gate");
        open.send(()).await.unwrap();
        while !task.is_finished() {
            yield_now().await;
        }
        assert!(abort.is_finished());
        let mut task = task;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut task).poll(&mut cx).is_ready(), "a finished task's handle must be ready");
        assert!(task.is_finished(), "and stays finished after it gave its output");
    });
}

/// Ids tell tasks apart in logs and in a `JoinSet`: also those of tasks that took an ended one's place.
#[test]
fn no_two_tasks_have_the_same_id() {
    run(|| async {
        let mut ids = std::collections::HashSet::new();
        for _ in 0..100 {
            let first = spawn(ready(()));
            let second = spawn_local(ready(()));
            assert_eq!(first.id(), first.abort_handle().id(), "a task's handles agree on its id");
            assert!(ids.insert(first.id()) && ids.insert(second.id()), "an id was given twice");
            first.await.unwrap();
            second.await.unwrap();
        }
    });
}

/// Fire and forget: a server keeps no handle of its connections.
#[test]
fn a_task_goes_on_without_its_handle() {
    run(|| async {
        let (report, ended) = async_channel::bounded(1);
        drop(spawn(async move {
            yield_now().await;
            report.send("ended").await.unwrap();
        }));
        assert_eq!(ended.recv().await.unwrap(), "ended");
    });
}

/// An output cannot be given twice, and the panic says whose mistake it is.
#[test]
fn a_handle_that_was_ready_panics_when_polled_again() {
    run(|| async {
        let mut task = spawn(ready(1));
        assert_eq!((&mut task).await.unwrap(), 1);
        let again = catch_unwind(AssertUnwindSafe(|| {
            let _ = Pin::new(&mut task).poll(&mut Context::from_waker(Waker::noop()));
        }));
        let panic = again.expect_err("a second output came from nowhere");
        assert!(said(&*panic).contains("JoinHandle") && said(&*panic).contains("ready"), "{}", said(&*panic));
    });
}

/// A handle that was polled with one waker and is then awaited elsewhere must wake the newer one.
#[test]
fn a_handle_wakes_whoever_polled_it_last() {
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
        assert_eq!(old.get(), 0, "the old one is no longer waiting");
    });
}

/// Handles go wherever a program needs them: another runtime, another executor, a plain thread.
#[test]
fn a_handle_can_be_awaited_anywhere() {
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
            assert_eq!(thread.join().unwrap(), 9, "awaited in {place}");
        }
    });
}

/// The task may hold its own handle; dropping that, or awaiting others, is its own business.
#[test]
fn a_task_may_drop_its_own_handle() {
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
        ended.recv().await.expect("the task must go on without its handle");
    });
}

/// A task that holds its own handle refers to itself: abort and shutdown must free it all the same.
#[test]
fn a_task_that_holds_its_own_handle_is_freed() {
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
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "the end of the runtime must drop it");
    });
}

/// An output made on the worker and taken elsewhere is the output, whole.
#[test]
fn outputs_larger_and_odder_than_a_word_arrive_whole() {
    run(|| async {
        assert_eq!(spawn(ready([7_u8; 1_000])).await.unwrap(), [7_u8; 1_000]);
        assert_eq!(spawn(ready(())).await.unwrap(), ());
        assert_eq!(spawn(ready(String::from("text"))).await.unwrap(), "text");
        assert!(spawn(async { Err::<(), _>("its own error") }).await.unwrap().is_err());
    });
}

// ---- local tasks ----

/// `!Send` futures and outputs are what local tasks are for.
#[test]
fn a_local_task_may_hold_and_give_what_is_not_send() {
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

/// A local task is woken from anywhere and runs at home.
#[test]
fn a_local_task_woken_from_another_thread_runs_on_its_own() {
    run(|| async {
        let home = std::thread::current().id();
        let (send, receive) = async_channel::unbounded::<()>();
        let not_send = Rc::new(());
        let task = spawn_local(async move {
            for _ in 0..100 {
                receive.recv().await.unwrap();
                assert_eq!(std::thread::current().id(), home, "a local task was polled elsewhere");
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

/// A local task with a `Send` output can be awaited on another thread: only the output travels.
#[test]
fn a_local_tasks_output_may_travel() {
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

// ---- refused ----

/// A task that nobody would run must not wait for ever, nor keep what it holds.
#[test]
fn a_spawn_after_the_runtimes_end_is_cancelled_at_once() {
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
        // A destructor that panics there must not reach who spawned it.
        let task = handle.spawn(hold(PanicOnDrop::armed()));
        assert!(futures_lite::future::block_on(task).is_err());
    });
}

// ---- size ----

/// A mebibyte; less in an unoptimised build, where every move is a copy of its own.
const LARGE: usize = if cfg!(debug_assertions) { 320 << 10 } else { 1 << 20 };

/// Futures grow with every await in them, and a thread's stack is 2 MiB: there must not be another copy
/// of the future for each function it passes through.
#[test]
fn a_very_large_future_does_not_overflow_a_threads_stack() {
    let on_a_small_stack = |name: &str, test: fn() -> u64| {
        let (done, waiting) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(2 << 20);
        thread.spawn(move || done.send(test()).unwrap()).unwrap();
        assert_eq!(waiting.recv_timeout(PATIENCE).expect("the future ends"), LARGE as u64);
    };
    on_a_small_stack("block_on", || kittiwake::block_on(large()));
    on_a_small_stack("Runtime::block_on", || Runtime::new().unwrap().block_on(large()));
    on_a_small_stack("spawn", || kittiwake::block_on(async { spawn(large()).await.unwrap() }));
    on_a_small_stack("spawn_local", || kittiwake::block_on(async { spawn_local(large()).await.unwrap() }));
    on_a_small_stack("Handle::spawn", || {
        let runtime = Runtime::new().unwrap();
        let task = runtime.handle().spawn(large());
        runtime.block_on(task).unwrap()
    });
}

/// A future that is large by what it fills in while it runs, so that making it costs no stack here.
async fn large() -> u64 {
    let mut state = [0_u8; LARGE];
    for piece in state.chunks_mut(LARGE / 4) {
        piece.fill(1);
        yield_now().await;
    }
    state.iter().map(|byte| u64::from(*byte)).sum()
}

// ---- what the tests hold ----

async fn panicking<T>(_what: T) {
    yield_now().await;
    panic!("with something in its hands");
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
        // A second panic while one unwinds would end the process.
        assert!(!self.0 || std::thread::panicking(), "dropped, as the test wants it");
    }
}

/// The text of a panic.
fn said(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// An abort that comes just as the task begins to run must end it: lost, whoever waits for the task waits for ever.
#[test]
fn an_abort_at_the_moment_a_task_is_run_is_not_lost() {
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
