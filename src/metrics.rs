//! What a worker counts, for [`Handle::metrics`](crate::runtime::Handle::metrics).
//!
//! Each worker has [`Counters`], which it alone writes and anybody may read. What happens deep inside a task, where no worker
//! is at hand, is counted in the thread first ([`count_accept`], [`count_budget_yield`]), and moved to the worker's counters
//! once a turn: adding to a thread-local is one instruction.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One worker's, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    polls: Counter,
    turns: Counter,
    events: Counter,
    parked_nanos: Counter,
    budget_yields: Counter,
    accepts: Counter,
}

/// What was counted up to some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) polls: u64,
    pub(crate) turns: u64,
    pub(crate) events: u64,
    pub(crate) parked: Duration,
    pub(crate) budget_yields: u64,
    pub(crate) accepts: u64,
}

#[derive(Default)]
struct Counter(AtomicU64);

impl Counter {
    /// A load and a store: there is one writer.
    #[inline]
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

thread_local! {
    static BUDGET_YIELDS: Cell<u64> = const { Cell::new(0) };
    static ACCEPTS: Cell<u64> = const { Cell::new(0) };
}

/// A task had to give way because its budget was spent.
pub(crate) fn count_budget_yield() {
    BUDGET_YIELDS.set(BUDGET_YIELDS.get() + 1);
}

/// A connection was accepted.
pub(crate) fn count_accept() {
    ACCEPTS.set(ACCEPTS.get() + 1);
}

/// What a thread has counted, to be given to [`restore`].
pub(crate) struct Saved {
    budget_yields: u64,
    accepts: u64,
}

/// Begins at nothing: what was counted so far is not for the worker that comes to this thread.
pub(crate) fn suspend() -> Saved {
    Saved { budget_yields: BUDGET_YIELDS.replace(0), accepts: ACCEPTS.replace(0) }
}

/// Puts back what [`suspend`] took away.
pub(crate) fn restore(saved: &Saved) {
    BUDGET_YIELDS.set(saved.budget_yields);
    ACCEPTS.set(saved.accepts);
}

impl Counters {
    /// The worker has run tasks so often. What its thread has counted meanwhile is added too.
    #[inline]
    pub(crate) fn ran(&self, polls: u64) {
        self.polls.add(polls);
        if BUDGET_YIELDS.get() | ACCEPTS.get() != 0 {
            self.budget_yields.add(BUDGET_YIELDS.replace(0));
            self.accepts.add(ACCEPTS.replace(0));
        }
    }

    #[inline]
    pub(crate) fn turned(&self, events: usize) {
        self.turns.add(1);
        self.events.add(events as u64);
    }

    pub(crate) fn was_parked(&self, nanos: u64) {
        self.parked_nanos.add(nanos);
    }

    pub(crate) fn read(&self) -> Counts {
        Counts {
            polls: self.polls.get(),
            turns: self.turns.get(),
            events: self.events.get(),
            parked: Duration::from_nanos(self.parked_nanos.get()),
            budget_yields: self.budget_yields.get(),
            accepts: self.accepts.get(),
        }
    }
}
