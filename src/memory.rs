//! Memory: when a queue or a table gives memory back that a spike has left.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Room for so many entries is always kept.
pub(crate) const KEPT: usize = 512;

/// The time from the first block of a thread, after it has used enough, until it gives memory back. Not at once,
/// because spikes may come one after the other.
const SHRINK_AFTER: Duration = Duration::from_millis(500);

/// When memory is given back that a spike of tasks, sockets or timers has left.
#[derive(Default)]
pub(crate) struct ShrinkTimer {
    /// How many tasks have run, events come and timers fired since memory was given back last. Tasks alone would not
    /// do: a `block_on` call beside the workers has its sockets and timers at a worker, and runs its tasks on its own
    /// thread.
    used: u64,
    /// When it is given back next. `None` unless so much was used that there is memory to give.
    due: Option<Instant>,
}

impl ShrinkTimer {
    /// So many more tasks have run, events have come, or timers have fired.
    pub(crate) fn add(&mut self, used: u64) {
        self.used += used;
    }

    /// How long it is until memory is to be given back, zero from then on. `None` if too little was used to leave any.
    pub(crate) fn left(&mut self) -> Option<Duration> {
        if self.used < KEPT as u64 {
            return None;
        }
        let now = Instant::now();
        let due = *self.due.get_or_insert(now + SHRINK_AFTER);
        Some(due.saturating_duration_since(now))
    }

    /// Memory is given back now.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Whether room for `capacity` entries is far more than `len` entries need.
pub(crate) fn is_sparse(len: usize, capacity: usize) -> bool {
    capacity > KEPT && len < capacity / 4
}

/// Gives memory back that `entries` had to have for a spike, and has no use for now.
pub(crate) fn shrink<T>(entries: &mut Vec<T>) {
    if is_sparse(entries.len(), entries.capacity()) {
        entries.shrink_to(KEPT.max(2 * entries.len()));
    }
}

/// As [`shrink`], for a queue.
pub(crate) fn shrink_queue<T>(entries: &mut VecDeque<T>) {
    if is_sparse(entries.len(), entries.capacity()) {
        entries.shrink_to(KEPT.max(2 * entries.len()));
    }
}
