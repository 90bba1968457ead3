//! Runtimes of several workers: which worker runs which task, where tasks end, and how the runtime ends.
//!
//! A test blocks a worker by a task that waits on a channel of std, and opens the channel once it has seen the expected
//! events. No test here depends on the clock: an event that does not happen is a hang, which [`support::within`] ends.

// A call returns its tasks to the test in many of these tests.
#![allow(clippy::async_yields_async)]

#[path = "../support/mod.rs"]
mod support;

mod block_on;
mod local;
mod settings;
mod shutdown;
mod stealing;
mod stuck;
mod timers;
mod wakes;
mod yields;

use futures_lite::future;
use kittiwake::task::JoinHandle;
use kittiwake::time::Duration;

/// The numbers of workers to test. Some exceed the number of cores.
const SEVERAL: [usize; 3] = [2, 3, 4];

const MS: Duration = Duration::from_millis(1);

const HOUR: Duration = Duration::from_secs(3600);

/// Waits for a task that must be cancelled.
#[track_caller]
fn assert_cancelled<T>(task: JoinHandle<T>) {
    let error = future::block_on(task).map(drop).expect_err("the task must not have an output");
    assert!(error.is_cancelled(), "{error}");
}
