//! Enter: what a thread is inside of.
//!
//! Each service owns its own thread-local "current". This file sets them together and restores what was there.
//! Something may have been there: a runtime may be dropped inside a task of another one.
//!
//! A worker, and a `block_on` call, enter all services ([`enter`]). [`Handle::enter`] enters the executor's workers,
//! the pool and the handle only ([`EnterGuard`]). The thread keeps its own reactor and timers, or has none. The threads
//! of the pool enter their runtime in the same way ([`enter_pool_threads`]).
//!
//! | service | thread-local | entered as |
//! | --- | --- | --- |
//! | `runtime::enter` | `INNERMOST`, `LAST_ID`: the calls and guards that have entered | the newest one |
//! | `executor::current` | `CONTEXT`: the worker, its queues | the worker's, or that of a `block_on` call |
//! | `reactor::registry` | `CURRENT`: where sockets register | the worker's, or that of a `block_on` call |
//! | `time::timers` | `CURRENT`: where timers are armed | as for sockets |
//! | `time::clock` | `CLOCK` | the runtime's, or the system's for a call beside its workers |
//! | `blocking` | `CURRENT`: the pool | the runtime's |
//! | `runtime::handle` | `CURRENT`: the handle | the runtime's |
//! | `budget` | `LEFT`: operations left | unlimited |
//! | `metrics` | `BUDGET_YIELDS`, `ACCEPTS` | 0 |
//! | `stamp` | `LAST`: the worker's number, and the last reading of the clock | no reading yet |
//!
//! The other thread-locals of the crate belong to a batch, a poll or a thread, and not to a runtime that a thread is
//! inside of. None of those in the table has a destructor.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;

use super::handle::{self, Handle};
use crate::blocking::{self, Pool};
use crate::current::Entered;
use crate::executor::{self, EnteredWorkers, Executor};
use crate::metrics;
use crate::reactor::{self, Registry};
use crate::time::{self, Clock, Timers};

/// While this lives, the thread is inside the runtime.
pub(super) struct InRuntime {
    _nesting: Nesting,
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
        _nesting: Nesting::begin(),
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

/// While this lives, the thread spawns on the runtime of a handle: see [`Handle::enter`].
///
/// # Panics
/// If it is dropped before a guard that was made later on this thread, or inside a `block_on` call that has begun later,
/// or after the `block_on` call in which it was made. The thread may then stay inside the runtime.
#[must_use = "the runtime is left when the guard is dropped"]
pub struct EnterGuard<'a> {
    /// `None` once it was dropped out of order.
    entered: Option<InHandle>,
    /// The thread-locals are this thread's, so the guard is not `Send`.
    _handle: PhantomData<(&'a Handle, *const ())>,
}

struct InHandle {
    nesting: Nesting,
    _workers: EnteredWorkers,
    _pool: Entered<Arc<Pool>>,
    _handle: Entered<Handle>,
}

impl InHandle {
    fn new(handle: &Handle) -> Self {
        Self {
            nesting: Nesting::begin(),
            _workers: executor::enter_workers(handle.workers()),
            _pool: blocking::enter(handle.pool().clone()),
            _handle: handle::enter(handle.clone()),
        }
    }
}

/// Has the threads of the runtime's pool enter it as [`Handle::enter`] does, so that closures can spawn.
pub(super) fn enter_pool_threads(handle: &Handle) {
    let weak = handle.downgrade();
    // `None` if the runtime has ended, and its last handle is gone.
    handle.pool().set_enter(Box::new(move || Box::new(weak.upgrade().map(|handle| InHandle::new(&handle)))));
}

impl<'a> EnterGuard<'a> {
    pub(super) fn new(handle: &'a Handle) -> Self {
        Self { entered: Some(InHandle::new(handle)), _handle: PhantomData }
    }
}

impl Drop for EnterGuard<'_> {
    fn drop(&mut self) {
        let Some(entered) = self.entered.take() else { return };
        if entered.nesting.is_innermost() {
            return;
        }
        // Restoring the services now would undo what a later call or guard has entered.
        mem::forget(entered);
        assert!(
            std::thread::panicking(),
            "an EnterGuard was dropped out of order: drop the guards of Handle::enter in the reverse order of their \
             making, and in the same block_on call"
        );
    }
}

impl fmt::Debug for EnterGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnterGuard").finish_non_exhaustive()
    }
}

thread_local! {
    /// The [`Nesting`] that this thread has begun last and not ended. 0 if there is none.
    static INNERMOST: Cell<u64> = const { Cell::new(0) };
    /// The last number that was given to a [`Nesting`] of this thread.
    static LAST_ID: Cell<u64> = const { Cell::new(0) };
}

/// A call or a guard that has entered a runtime. The number is never used again, so a guard that outlives the `block_on`
/// call in which it was made is not taken for a later one.
struct Nesting {
    id: u64,
    outer: u64,
}

impl Nesting {
    fn begin() -> Self {
        let id = LAST_ID.get() + 1;
        LAST_ID.set(id);
        Self { id, outer: INNERMOST.replace(id) }
    }

    fn is_innermost(&self) -> bool {
        INNERMOST.get() == self.id
    }
}

impl Drop for Nesting {
    fn drop(&mut self) {
        INNERMOST.set(self.outer);
    }
}
