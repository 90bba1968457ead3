//! Trace: the spans and events that the runtime gives to a subscriber of `tracing`, with the feature of this name.
//!
//! Without the feature the types here have no size and the functions do nothing, so that their callers need no `cfg`.
//!
//! # The span of a task
//! Its name, target and fields are those that `console-subscriber` reads.
//! 1. [`TaskSpan::new`] opens it when the task is spawned. A [`TaskName`] was made before, if the task has one.
//! 2. [`TaskSpan::enter`] enters it for each poll.
//! 3. Its drop closes it, after the task's future was dropped and before the handle hears of the end.
//!
//! A wake that queues the task is an event with the id of the span ([`SpanId::wake`]). async-task owns the vtable of the
//! wakers, so their clones and drops, and wakes of a task that is queued already, are not seen. `tokio-console` takes a
//! task without wakers for one that sleeps for ever. So each task tells it of one clone, which is the waker that the
//! registry keeps, and a wake counts as one by reference.
//!
//! # The subscriber is foreign code
//! * It runs while no lock and no borrow of the runtime is held. A waker whose wake it sees is therefore not the
//!   executor's own any more (`sync::note_traced`).
//! * Its panics end here, reported by the panic hook alone.
//! * It may spawn and wake tasks, of which it hears nothing while it is in a call: an event for each event would have
//!   no end.

use std::error::Error;
use std::io;
use std::panic::Location;
use std::time::Duration;

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{EarlyId, NextName, SpanId, TaskName, TaskSpan};
#[cfg(feature = "tracing")]
pub(crate) use on::{EarlyId, NextName, SpanId, TaskName, TaskSpan};

/// Whether a subscriber can be called at all.
pub(crate) const IS_ON: bool = cfg!(feature = "tracing");

/// Reports an event. Its values are only computed if the subscriber wants it.
macro_rules! event {
    ($level:ident, $target:literal, $message:literal $(, $field:ident = $value:expr)* $(,)?) => {
        #[cfg(feature = "tracing")]
        on::report(|| tracing::event!(target: $target, tracing::Level::$level, $($field = $value,)* $message));
        #[cfg(not(feature = "tracing"))]
        if false {
            let _ = ($($value,)*);
        }
    };
}

/// A server could not accept. It tries again, or ends.
pub(crate) fn accept_failed(error: &io::Error, retry_after: Option<Duration>) {
    let cause: &(dyn Error + 'static) = error;
    match retry_after {
        Some(wait) => {
            event!(WARN, "kittiwake::serve", "cannot accept connections", error = cause, retry_after_ms = millis(wait));
        }
        None => {
            event!(WARN, "kittiwake::serve", "cannot accept connections any more, and stops", error = cause);
        }
    }
}

/// A server has no descriptor left, and refuses the clients in the queue with the one in reserve.
pub(crate) fn clients_refused() {
    event!(WARN, "kittiwake::serve", "no descriptor is left: refuses the clients in the queue");
}

/// A server stops: it accepts the clients in the queue, and no others.
pub(crate) fn server_stops(open: impl Fn() -> usize) {
    event!(INFO, "kittiwake::serve", "stops accepting", open = open());
}

/// A server has closed its listener, and waits for its handlers.
pub(crate) fn server_drains(open: impl Fn() -> usize) {
    event!(DEBUG, "kittiwake::serve", "the listener is closed: waits for the handlers", open = open());
}

/// A server has ended. It has aborted the handlers of the connections that were `open`.
pub(crate) fn server_ended(accepted: u64, refused: u64, open: usize) {
    event!(INFO, "kittiwake::serve", "has ended", accepted = accepted, refused = refused, open = open);
}

/// A runtime begins its end.
pub(crate) fn runtime_cancels(tasks: impl Fn() -> usize) {
    event!(DEBUG, "kittiwake::runtime", "shutdown: cancels the tasks", tasks = tasks());
}

/// A worker of a runtime that ends waits until no worker has a task left.
pub(crate) fn worker_waits(tasks: impl Fn() -> usize) {
    event!(DEBUG, "kittiwake::runtime", "shutdown: a worker waits for the tasks", tasks = tasks());
}

/// No worker of a runtime that ends has a task left, and this one has closed its reactor and its timers.
pub(crate) fn worker_ended() {
    event!(DEBUG, "kittiwake::runtime", "shutdown: a worker has ended");
}

/// The threads of all workers have ended.
pub(crate) fn threads_ended(threads: usize) {
    event!(DEBUG, "kittiwake::runtime", "shutdown: the threads of the workers have ended", threads = threads);
}

/// The time for the end of a runtime is over, and these threads and tasks go on.
pub(crate) fn shutdown_timed_out(workers: usize, tasks: usize, ending: usize, closures: usize) {
    event!(
        INFO,
        "kittiwake::runtime",
        "shutdown: threads go on",
        workers = workers,
        tasks = tasks,
        ending = ending,
        closures = closures,
    );
}

/// A poll of a task that took long, or takes long.
pub(crate) fn slow_poll(
    task: u64,
    name: Option<&str>,
    location: &Location<'_>,
    worker: usize,
    duration: Duration,
    is_over: bool,
) {
    event!(
        WARN,
        "kittiwake::task",
        "a task blocks its worker",
        task = task,
        name = name,
        file = location.file(),
        line = location.line(),
        worker = worker,
        duration_ms = millis(duration),
        is_over = is_over,
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
