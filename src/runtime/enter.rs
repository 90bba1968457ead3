//! Making a thread a worker's, and giving it back.
//!
//! Each service owns its own thread-local "current"; this only sets them together and restores
//! what was there. Something may have been there: a runtime may be dropped inside
//! a task of another one.

use std::sync::Arc;

use crate::blocking::{self, Pool};
use crate::executor::{self, Executor};
use crate::reactor::{self, Reactor};
use crate::time::{self, Timers};

/// While this lives, the thread is the worker's.
pub(super) struct Entered {
    _executor: executor::Entered,
    _blocking: blocking::Entered,
    _reactor: reactor::Entered,
    _time: time::Entered,
}

pub(super) fn enter(
    executor: &Executor,
    pool: &Arc<Pool>,
    reactor: &Reactor,
    timers: &Arc<Timers>,
    clock: time::Clock,
) -> Entered {
    Entered {
        _executor: executor.enter(),
        _blocking: blocking::enter(pool.clone()),
        _reactor: reactor::enter(reactor.registry().clone()),
        _time: time::enter(timers.clone(), clock),
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
