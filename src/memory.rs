//! Memory: when a queue or a table gives memory back that a spike has left.

use std::collections::VecDeque;
use std::time::Duration;

/// Room for so many entries is always kept.
pub(crate) const KEPT: usize = 512;

/// How long after a spike a thread gives memory back: spikes may come one after the other.
pub(crate) const SHRINK_AFTER: Duration = Duration::from_millis(500);

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
