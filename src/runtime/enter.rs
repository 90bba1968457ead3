//! Enter: what a thread is inside of.
//!
//! Each service owns its own thread-local "current". This file sets them together and restores what was there.
//! Something may have been there: a runtime may be dropped inside a task of another one.
//!
//! | service | thread-local | entered as |
//! | --- | --- | --- |
//! | `executor::current` | `CONTEXT`: the worker, its queues | the worker's, or that of a `block_on` call |
//! | `reactor::registry` | `CURRENT`: where sockets register | the worker's, or that of a `block_on` call |
//! | `time::timers` | `CURRENT`: where timers are armed | as for sockets |
//! | `time::clock` | `CLOCK` | the runtime's, or the system's for a call beside its workers |
//! | `blocking` | `CURRENT`: the pool | the runtime's |
//! | `runtime::handle` | `CURRENT`: the handle | the runtime's |
//! | `budget` | `LEFT`: operations left | unlimited |
//! | `budget` | `MOVED`, `ASKS_KERNEL`: bytes moved, whether to ask the kernel | not entered |
//! | `metrics` | `BUDGET_YIELDS`, `ACCEPTS` | 0 |
//! | `sync` | `EXECUTORS`: the vtable of the waker with which a future was last polled | not entered |
//!
//! These are all thread-locals of the crate, apart from the one of `live_threads`, which belongs to no runtime that a
//! thread is inside of. None of these has a destructor.

use std::sync::Arc;

use super::handle::{self, Handle};
use crate::blocking::{self, Pool};
use crate::current::Entered;
use crate::executor::{self, Executor};
use crate::metrics;
use crate::reactor::{self, Registry};
use crate::time::{self, Clock, Timers};

/// While this lives, the thread is inside the runtime.
pub(super) struct InRuntime {
    _executor: executor::Entered,
    _pool: Entered<Arc<Pool>>,
    _registry: Entered<Arc<Registry>>,
    _time: time::Entered,
    _handle: Entered<Handle>,
    _metrics: metrics::Entered,
}

/// Makes this thread the one that `executor` runs on. Its sockets register with `registry`, and its timers are armed
/// with `timers`.
pub(super) fn enter(
    executor: &Executor,
    registry: &Arc<Registry>,
    timers: &Arc<Timers>,
    clock: Clock,
    handle: &Handle,
) -> InRuntime {
    InRuntime {
        _executor: executor.enter(),
        _pool: blocking::enter(handle.pool().clone()),
        _registry: reactor::enter(registry.clone()),
        _time: time::enter(timers.clone(), clock),
        _handle: handle::enter(handle.clone()),
        _metrics: metrics::enter(),
    }
}

/// Panics on a thread that is inside a runtime already.
#[track_caller]
pub(super) fn check(function: &str) {
    assert!(
        !executor::is_entered(),
        "{function} was called inside a runtime: it would keep this thread from running the tasks it \
         already has; `.await` the future instead, or spawn it"
    );
}
