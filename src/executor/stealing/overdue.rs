//! Overdue: when entries that give way run although others are ready.
//!
//! Each entry that gives way on a worker gets a number, one more than the one before it. Such entries run in the order
//! of their numbers, when nothing else is ready. But something else may always be ready. Then
//! 1. the worker counts the entries that are ready. The count of those that others may steal is in
//!    [`queues`](super::queues), because a stolen one counts no longer.
//! 2. Once all of these have run, the entries that had given way before the count are overdue. They take turns with the
//!    others, so that neither keeps the other from running.
//! 3. When none of them is left, the worker counts anew, for those that have given way meanwhile.

/// Which of a worker's entries that give way are overdue.
#[derive(Default)]
pub(in crate::executor) struct Overdue(State);

#[derive(Default)]
enum State {
    /// No count was begun.
    #[default]
    Idle,
    /// `local` entries of the worker alone are still to run before those with numbers below `end`.
    Counting { local: usize, end: u64 },
    /// The entries with numbers below `end` are overdue. `was_overdue`: the last turn was theirs.
    Overdue { end: u64, was_overdue: bool },
}

impl Overdue {
    pub(in crate::executor) fn is_idle(&self) -> bool {
        matches!(self.0, State::Idle)
    }

    /// Begins a count, of `local` entries that only this worker may run, for the entries with numbers below `end`.
    pub(in crate::executor) fn begin_count(&mut self, local: usize, end: u64) {
        self.0 = State::Counting { local, end };
    }

    /// An entry that only this worker may run is about to be run.
    pub(in crate::executor) fn count_local(&mut self) {
        if let State::Counting { local, .. } = &mut self.0 {
            *local = local.saturating_sub(1);
        }
    }

    /// An entry is about to be run. If it is the turn of those that are overdue, returns the number below which
    /// an entry is overdue. `stealable` returns how many of the counted entries that others may steal are left.
    pub(in crate::executor) fn take_turn(&mut self, stealable: impl FnOnce() -> usize) -> Option<u64> {
        if let State::Counting { local: 0, end } = self.0 {
            if stealable() == 0 {
                self.0 = State::Overdue { end, was_overdue: false };
            }
        }
        let State::Overdue { end, was_overdue } = &mut self.0 else { return None };
        *was_overdue = !*was_overdue;
        was_overdue.then_some(*end)
    }

    /// None of the overdue entries is left, or nothing else is ready.
    pub(in crate::executor) fn stop(&mut self) {
        self.0 = State::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries that gave way before the count are overdue once all that was counted has run, and take turns from then
    /// on.
    #[test]
    fn counted_entries_run_before_overdue_ones() {
        let mut overdue = Overdue::default();
        assert_eq!(overdue.take_turn(|| 0), None, "nothing was counted");
        overdue.begin_count(2, 5);
        assert_eq!(overdue.take_turn(|| 0), None, "two local entries are left");
        (0..2).for_each(|_| overdue.count_local());
        assert_eq!(overdue.take_turn(|| 1), None, "one that can be stolen is left");
        let turns: Vec<_> = (0..4).map(|_| overdue.take_turn(|| 0)).collect();
        assert_eq!(turns, [Some(5), None, Some(5), None]);
        overdue.stop();
        assert!(overdue.is_idle() && overdue.take_turn(|| 0).is_none());
    }
}
