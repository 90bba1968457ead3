//! Making a thread a worker's, and giving it back.
//!
//! Each service owns its own thread-local "current"; this only sets them together and restores
//! what was there. Something may have been there: a runtime may be dropped inside
//! a task of another one.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::Handle;
use crate::blocking;
use crate::executor::{self, Executor};
use crate::metrics;
use crate::reactor::{self, Reactor};
use crate::time::{self, Timers};

/// While this lives, the thread is the worker's.
pub(super) struct Entered {
    _executor: executor::Entered,
    _blocking: blocking::Entered,
    _reactor: reactor::Entered,
    _time: time::Entered,
    _handle: HandleEntered,
}

pub(super) fn enter(
    executor: &Executor,
    reactor: &Reactor,
    timers: &Arc<Timers>,
    clock: time::Clock,
    handle: &Handle,
) -> Entered {
    Entered {
        _executor: executor.enter(),
        _blocking: blocking::enter(handle.pool().clone()),
        _reactor: reactor::enter(reactor.registry().clone()),
        _time: time::enter(timers.clone(), clock),
        _handle: HandleEntered {
            previous: CURRENT.with(|current| current.replace(Some(handle.clone()))),
            counted: metrics::suspend(),
        },
    }
}

/// The handle of the runtime that this thread is in.
pub(super) fn current() -> Option<Handle> {
    CURRENT.with(|current| current.borrow().clone())
}

thread_local! {
    /// Without a destructor, so that a runtime may be dropped by another thread-local's; [`HandleEntered`] leaves it empty.
    static CURRENT: ManuallyDrop<RefCell<Option<Handle>>> = const { ManuallyDrop::new(RefCell::new(None)) };
}

struct HandleEntered {
    previous: Option<Handle>,
    counted: metrics::Saved,
}

impl Drop for HandleEntered {
    fn drop(&mut self) {
        let ours = CURRENT.with(|current| current.replace(self.previous.take()));
        drop(ours);
        metrics::restore(&self.counted);
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
