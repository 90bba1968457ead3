//! The counters of a worker, which [`Handle::metrics`](crate::runtime::Handle::metrics) reports.
//!
//! # Two steps
//! 1. Each worker has [`Counters`]. Every thread may read them. Only the worker writes them, but for the two counts of
//!    step 2: a thread in a `block_on` call beside the workers adds its own to those of the worker that serves the
//!    call.
//! 2. Some events happen deep inside a task, where the code has no worker at hand. Such an event is counted in a
//!    thread-local first ([`count_accept`], [`count_budget_yield`]). Adding to a thread-local is one instruction. The
//!    worker moves these counts to its counters after each batch ([`Counters::take_thread_counts`]).
//!
//! # Measures
//! Some figures need readings of the clock. The counters have [`Measures`] for them only if the runtime was told to
//! measure ([`Counters::new`]).

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::Recorder;

/// The counters of one worker, on cache lines of their own.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) polls: Counter,
    pub(crate) turns: Counter,
    pub(crate) events: Counter,
    pub(crate) parked: ParkedTime,
    pub(crate) budget_yields: Counter,
    pub(crate) accepts: Counter,
    /// `None` if the runtime does not measure.
    measures: Option<Box<Measures>>,
}

/// The measured times of one worker, on cache lines of their own.
#[repr(align(128))]
pub(crate) struct Measures {
    /// How long each poll of a task took.
    pub(crate) poll_times: Recorder,
    /// How late the worker was each time that it fired timers.
    pub(crate) lateness: Recorder,
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

/// How long a worker has been parked, in nanoseconds, a block that has not ended included.
///
/// While the worker is awake this is the sum. While it is parked, this is the sum minus the time at which the block
/// began, with [`IS_PARKED`] set. So one load tells both, and the worker pays for no further reading of the clock.
#[derive(Default)]
pub(crate) struct ParkedTime(AtomicU64);

/// Set while the worker is parked. The other bits count 292 years.
const IS_PARKED: u64 = 1 << 63;

impl ParkedTime {
    /// The worker parks. Only the worker calls this.
    pub(crate) fn begin(&self, now: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(now) | IS_PARKED, Ordering::Relaxed);
    }

    /// The worker is awake again. Only the worker calls this.
    pub(crate) fn end(&self, now: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(now) & !IS_PARKED, Ordering::Relaxed);
    }

    /// The sum at this moment, by the clock `now`.
    pub(crate) fn get(&self, now: impl Fn() -> u64) -> u64 {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let sum = if seen & IS_PARKED == 0 { seen } else { seen.wrapping_add(now()) & !IS_PARKED };
            // The worker may have woken before the clock was read. The sum would be too large then, and the next one
            // smaller: a counter that falls counts as a restart.
            let again = self.0.load(Ordering::Acquire);
            if again == seen {
                return sum;
            }
            seen = again;
        }
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
    /// Counters that begin at zero. They have measures if the runtime has to measure.
    pub(crate) fn new(measure_polls: bool) -> Self {
        let measures = || Box::new(Measures { poll_times: Recorder::new(), lateness: Recorder::new() });
        Self { measures: measure_polls.then(measures), ..Self::default() }
    }

    pub(crate) fn measures(&self) -> Option<&Measures> {
        self.measures.as_deref()
    }

    /// Adds a poll of a task that took this long. Only the worker's thread calls this.
    pub(crate) fn add_poll(&self, nanos: u64) {
        if let Some(measures) = &self.measures {
            measures.poll_times.record(nanos);
        }
    }

    /// Adds a firing of timers, of which the earliest was this late. Only the worker's thread calls this.
    pub(crate) fn add_lateness(&self, nanos: u64) {
        if let Some(measures) = &self.measures {
            measures.lateness.record(nanos);
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A poll is in the histogram of its worker once, and timers that fire late are in another histogram.
    #[test]
    fn poll_and_lateness_are_recorded_once() {
        let counters = Counters::new(true);
        counters.add_poll(20_000_000);
        counters.add_lateness(3_000);
        let measures = counters.measures().expect("the counters measure");
        let [polls, lateness] = [&measures.poll_times, &measures.lateness].map(Recorder::snapshot);
        assert_eq!((polls.count(), polls.max()), (1, Duration::from_millis(20)));
        assert_eq!((lateness.count(), lateness.max()), (1, Duration::from_micros(3)));
    }

    /// The time in which a worker is parked counts while it passes. Time in which the worker is awake does not.
    #[test]
    fn parked_time_counts_before_it_ends() {
        let parked = ParkedTime::default();
        assert_eq!(parked.get(|| 500), 0);
        parked.begin(1_000);
        assert_eq!(parked.get(|| 1_000), 0);
        assert_eq!(parked.get(|| 1_007), 7, "the block goes on");
        parked.end(1_010);
        assert_eq!(parked.get(|| 9_000), 10);
        parked.begin(20_000);
        assert_eq!(parked.get(|| 20_005), 15, "the blocks add up");
        parked.end(20_005);
        assert_eq!(parked.get(|| 30_000), 15);
    }

    /// A worker that wakes while the sum is read gets no time that it was awake. Otherwise the next sum could be smaller.
    #[test]
    fn reader_sees_that_worker_wakes() {
        let parked = ParkedTime::default();
        parked.begin(1_000);
        let sum = parked.get(|| {
            parked.end(1_010);
            1_020
        });
        assert_eq!(sum, 10);
    }

    /// Counters of a runtime that does not measure have no memory for it.
    #[test]
    fn counters_measure_only_on_request() {
        let counters = Counters::new(false);
        counters.add_poll(20_000_000);
        counters.add_lateness(3_000);
        assert!(counters.measures().is_none());
        assert_eq!(size_of::<Counters>(), 128, "the counters of a worker must fit into one pair of cache lines");
    }
}
