//! The executor: what a worker runs, and how a task gets there.
//!
//! It knows no reactor: it has a `Waker` that ends the block of its worker. A worker's own half is the [`Executor`],
//! which hands out the next entry. The other half is in [`Workers`], to which tasks and other threads refer.
//!
//! # The way of a task
//! 1. [`spawn()`] wraps the future (`task`), inserts it in the registry and schedules it.
//! 2. Scheduling, which is also what its wakers do, queues it on this thread if this is a worker that may run it, and
//!    otherwise pushes it to one (`current`).
//! 3. A worker takes it ([`Executor::next`]), in order, and runs it.
//! 4. Its future completes, panics or is cancelled. The wrapper is dropped and leaves the registry.
//!
//! # The queues
//! | queue | for | lock | file |
//! | --- | --- | --- | --- |
//! | taken | what the worker has taken from the thread's queue, and runs next | none | `executor` |
//! | refused | what has used up its budget, if there is one worker | none | `executor` |
//! | the thread's queue | what only this worker may run, until it takes it | none | `current` |
//! | yielded | what only this worker may run and gives way, if there are several workers | none | `current` |
//! | deferred | tasks that others may steal, woken between two batches | none | `current` |
//! | remote queue | what only this worker may run, woken elsewhere | yes | `remote_queue` |
//! | stealable queue | tasks that any worker may run, if there are several | yes | `stealing` |
//!
//! A runtime with a seed runs what is taken together in a random order (`shuffle`).
//!
//! # The end
//! [`Executor::cancel_local`] cancels the local tasks when a `block_on` call returns, [`Workers::cancel_all`] all tasks
//! when the runtime ends. The workers run on until the tasks are gone. Only then are the queues closed.

mod current;
#[expect(clippy::module_inception, reason = "the worker's own half of the executor")]
mod executor;
mod join;
mod join_set;
#[cfg(all(test, kittiwake_loom))]
mod models;
mod outcome;
mod record;
mod registry;
mod remote_queue;
mod shared;
mod shuffle;
mod spawn;
mod stealing;
mod task;
mod yield_now;

#[cfg(feature = "hyper")]
pub(crate) use current::is_alone;
pub(crate) use current::{Entered, EnteredWorkers, enter_workers, is_entered};
pub(crate) use executor::Executor;
pub use join::{AbortHandle, JoinHandle};
pub use join_set::JoinSet;
pub use outcome::JoinError;
pub(crate) use record::Step;
pub use registry::Id;
pub(crate) use registry::{Kind, Look, TaskSet};
pub(crate) use remote_queue::Idleness;
#[cfg(all(test, kittiwake_loom))]
pub(crate) use remote_queue::RemoteQueue;
pub(crate) use shared::{Entry, OnPoll, RunningTask, TaskNames, TimedPoll, WorkerRef, Workers};
pub(crate) use spawn::{add_names, shrink_blocking, spawn_local_at, spawn_on, spawning_worker, workers_here};
pub use spawn::{spawn, spawn_local};
#[cfg(fuzzing)]
pub(crate) use stealing::model;
pub(crate) use task::{BlockingTask, boxed, is_large, spawn_blocking_on};
pub use yield_now::{YieldNow, consume_budget, yield_now};
