//! Tasks: run, wake, abort, join, detach and panic in any order, on a real runtime.
//!
//! Whatever the order, each future is dropped once, each output is delivered or dropped once, no waker is left, and
//! the runtime has no tasks when they have all ended.
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

/// What all tasks of one run have in common.
#[derive(Default)]
struct Counts {
    futures: AtomicUsize,
    outputs: AtomicUsize,
}

/// Counts itself while it lives, and panics when it is dropped if it is told to.
struct Counted {
    counts: Arc<Counts>,
    is_output: bool,
    panics: bool,
}

impl Counted {
    fn new(counts: &Arc<Counts>, is_output: bool, panics: bool) -> Self {
        let counted = Self { counts: counts.clone(), is_output, panics };
        counted.count().fetch_add(1, Ordering::Relaxed);
        counted
    }

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

/// What one task does when it is polled next, and what the script knows of it.
struct Task {
    next: Rc<Cell<Next>>,
    waker: Rc<Cell<Option<Waker>>>,
    handle: Option<JoinHandle<Counted>>,
    abort: AbortHandle,
}

#[derive(Clone, Copy)]
enum Next {
    Wait,
    WakeItself,
    End,
    Panic,
}

fn spawn(counts: &Arc<Counts>, how: u8) -> Task {
    let (next, waker) = (Rc::new(Cell::new(Next::Wait)), Rc::new(Cell::new(None)));
    let held = Counted::new(counts, false, how & 1 != 0);
    let (counts, panics) = (counts.clone(), how & 2 != 0);
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

async fn step(tasks: &mut Vec<Task>, counts: &Arc<Counts>, what: u8, how: u8) {
    if what.is_multiple_of(8) && tasks.len() < 8 {
        tasks.push(spawn(counts, how));
        return;
    }
    let number = usize::from(how) % tasks.len().max(1);
    let Some(task) = tasks.get_mut(number) else { return };
    match what % 8 {
        1 => task.next.set([Next::Wait, Next::WakeItself, Next::End, Next::Panic][usize::from(how >> 6)]),
        2 => {
            if let Some(waker) = task.waker.take() {
                if how & 64 != 0 { waker.wake() } else { waker.wake_by_ref() }
            }
        }
        3 => task.abort.abort(),
        4 => drop(task.handle.take()),
        5 => poll_handle(task),
        6 => drop(tasks.swap_remove(number)),
        _ => yield_now().await,
    }
}

/// Polls a task's handle once, and gives it up when it is ready.
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
            // Half of the runs leave what was detached to the end of the call.
            return;
        }
        drop(tasks);
        for _ in 0..8 {
            yield_now().await;
        }
        // What is left was detached by dropping all that knew of it, and waits for ever.
        assert!(Handle::current().metrics().tasks_alive() <= script.len() / 2);
    });
    assert_eq!(counts.futures.load(Ordering::Relaxed), 0, "a future was dropped never, or twice");
    assert_eq!(counts.outputs.load(Ordering::Relaxed), 0, "an output was dropped never, or twice");
    assert_eq!(Arc::strong_count(&counts), 1);
});
