//! Spawns, wakes, aborts, joins, detaches and panics tasks in any order, on a real runtime.
//!
//! In every order, each future is dropped once, and each output is delivered or dropped once. No waker is left, and no
//! task is left when `block_on` returns.
#![no_main]

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use kittiwake::runtime::Handle;
use kittiwake::task::{AbortHandle, JoinHandle, yield_now};
use libfuzzer_sys::fuzz_target;

/// The futures and outputs of one run that have not been dropped.
#[derive(Default)]
struct Counts {
    futures: AtomicUsize,
    outputs: AtomicUsize,
}

/// A part of a future, or an output, that is counted while it lives.
struct Counted {
    counts: Arc<Counts>,
    is_output: bool,
    /// Its drop panics.
    panics: bool,
}

impl Counted {
    fn new(counts: &Arc<Counts>, is_output: bool, panics: bool) -> Self {
        let counted = Self { counts: counts.clone(), is_output, panics };
        counted.count().fetch_add(1, Ordering::Relaxed);
        counted
    }

    /// The counter of values of this kind.
    fn count(&self) -> &AtomicUsize {
        if self.is_output { &self.counts.outputs } else { &self.counts.futures }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count().fetch_sub(1, Ordering::Relaxed);
        if self.panics && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("dropped"));
        }
    }
}

/// A task, and everything by which the script controls it.
struct Task {
    /// What the task does in its next poll.
    next: Rc<Cell<Next>>,
    /// The waker of the last poll that waited.
    waker: Rc<Cell<Option<Waker>>>,
    /// `None` once the task was joined or detached.
    handle: Option<JoinHandle<Counted>>,
    abort: AbortHandle,
}

/// The outcome of a poll.
#[derive(Clone, Copy)]
enum Next {
    Wait,
    WakeItself,
    End,
    Panic,
}

/// Spawns a task. Bit 0 of `argument` makes the drop of its future panic, bit 1 the drop of its output.
fn spawn(counts: &Arc<Counts>, argument: u8) -> Task {
    let (next, waker) = (Rc::new(Cell::new(Next::Wait)), Rc::new(Cell::new(None)));
    let held = Counted::new(counts, false, argument & 1 != 0);
    let (counts, panics) = (counts.clone(), argument & 2 != 0);
    let handle = kittiwake::spawn_local({
        let (next, waker) = (next.clone(), waker.clone());
        poll_fn(move |cx: &mut Context<'_>| {
            let _held = &held;
            match next.replace(Next::Wait) {
                Next::Wait => waker.set(Some(cx.waker().clone())),
                Next::WakeItself => cx.waker().wake_by_ref(),
                Next::End => return Poll::Ready(Counted::new(&counts, true, panics)),
                Next::Panic => std::panic::resume_unwind(Box::new("polled")),
            }
            Poll::Pending
        })
    });
    Task { next, waker, abort: handle.abort_handle(), handle: Some(handle) }
}

/// Runs one step of the script: it spawns a task, or acts on one.
async fn step(tasks: &mut Vec<Task>, counts: &Arc<Counts>, operation: u8, argument: u8) {
    if operation.is_multiple_of(8) && tasks.len() < 8 {
        tasks.push(spawn(counts, argument));
        return;
    }
    let number = usize::from(argument) % tasks.len().max(1);
    let Some(task) = tasks.get_mut(number) else { return };
    match operation % 8 {
        1 => task.next.set([Next::Wait, Next::WakeItself, Next::End, Next::Panic][usize::from(argument >> 6)]),
        2 => {
            if let Some(waker) = task.waker.take() {
                if argument & 64 != 0 { waker.wake() } else { waker.wake_by_ref() }
            }
        }
        3 => task.abort.abort(),
        4 => drop(task.handle.take()),
        5 => poll_handle(task),
        6 => drop(tasks.swap_remove(number)),
        _ => yield_now().await,
    }
}

/// Polls the handle of a task once, and drops the handle if it is ready.
fn poll_handle(task: &mut Task) {
    let Some(handle) = &mut task.handle else { return };
    let waker = task.waker.take().unwrap_or_else(|| Waker::noop().clone());
    if let Poll::Ready(result) = Pin::new(handle).poll(&mut Context::from_waker(&waker)) {
        task.handle = None;
        if let Ok(mut output) = result {
            output.panics = false;
        }
    }
}

fuzz_target!(|script: &[u8]| {
    let counts = Arc::new(Counts::default());
    kittiwake::block_on(async {
        let mut tasks = Vec::new();
        for step_bytes in script.chunks_exact(2) {
            step(&mut tasks, &counts, step_bytes[0], step_bytes[1]).await;
        }
        for task in &mut tasks {
            task.abort.abort();
            if let Some(handle) = task.handle.take()
                && let Ok(mut output) = handle.await
            {
                output.panics = false;
            }
        }
        if script.len().is_multiple_of(2) {
            // Half of the runs leave detached tasks to the end of `block_on`.
            return;
        }
        drop(tasks);
        for _ in 0..8 {
            yield_now().await;
        }
        // Every task that is alive now was detached by operation 6, and nothing can wake it any more.
        assert!(Handle::current().metrics().tasks_alive() <= script.len() / 2);
    });
    assert_eq!(counts.futures.load(Ordering::Relaxed), 0, "a future was never dropped, or dropped twice");
    assert_eq!(counts.outputs.load(Ordering::Relaxed), 0, "an output was never dropped, or dropped twice");
    assert_eq!(Arc::strong_count(&counts), 1);
});
