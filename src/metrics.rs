//! The counters of a worker, which [`Handle::metrics`](crate::runtime::Handle::metrics) reports.
//!
//! # Two steps
//! 1. Each worker has [`Counters`]. Every thread may read them. Only the worker writes them, but for the two counts of
//!    step 2: a thread in a `block_on` call beside the workers adds its own to those of the worker that serves the
//!    call.
//! 2. Some events happen deep inside a task, where the code has no worker at hand. Such an event is counted in a
//!    thread-local first ([`count_accept`], [`count_budget_yield`]). Adding to a thread-local is one instruction. The
//!    worker moves these counts to its counters after each batch ([`Counters::take_thread_counts`]).

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one worker, on cache lines of their own.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) polls: Counter,
    pub(crate) turns: Counter,
    pub(crate) events: Counter,
    pub(crate) parked_nanos: Counter,
    pub(crate) budget_yields: Counter,
    pub(crate) accepts: Counter,
}

/// A number that every thread reads. It begins with its worker.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `more` to a number that only one thread writes. So a load and a store are enough.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Adds `more` to a number that several threads write.
    fn add_shared(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

thread_local! {
    /// The budget yields on this thread that are not yet in the counters of a worker.
    static BUDGET_YIELDS: Cell<u64> = const { Cell::new(0) };
    /// The accepted connections on this thread that are not yet in the counters of a worker.
    static ACCEPTS: Cell<u64> = const { Cell::new(0) };
}

/// Counts a task that yielded because its budget was spent.
pub(crate) fn count_budget_yield() {
    BUDGET_YIELDS.set(BUDGET_YIELDS.get() + 1);
}

/// Counts an accepted connection.
pub(crate) fn count_accept() {
    ACCEPTS.set(ACCEPTS.get() + 1);
}

/// While this lives, the counts of the thread are those of the runtime that it has entered. Then it has its old counts
/// again.
pub(crate) struct Entered {
    budget_yields: u64,
    accepts: u64,
}

/// Begins the counts of this thread at zero.
pub(crate) fn enter() -> Entered {
    Entered { budget_yields: BUDGET_YIELDS.replace(0), accepts: ACCEPTS.replace(0) }
}

impl Drop for Entered {
    fn drop(&mut self) {
        BUDGET_YIELDS.set(self.budget_yields);
        ACCEPTS.set(self.accepts);
    }
}

impl Counters {
    /// Moves the counts of this thread to these counters, which another thread may write too.
    pub(crate) fn take_thread_counts(&self) {
        if BUDGET_YIELDS.get() | ACCEPTS.get() != 0 {
            self.budget_yields.add_shared(BUDGET_YIELDS.replace(0));
            self.accepts.add_shared(ACCEPTS.replace(0));
        }
    }

    /// Adds one turn of the reactor, which has reported `events` events.
    pub(crate) fn add_turn(&self, events: usize) {
        self.turns.add(1);
        self.events.add(events as u64);
    }
}
