//! Overdue: when entries that give way run although others are ready.
//!
//! Each entry that gives way on a worker gets a number, one more than the one before it. Such entries run in the order
//! of their numbers, when nothing else is ready. But something else may always be ready. So when a batch begins, the
//! worker counts the entries that are ready then, and after as many runs as these need, the entries that had given way
//! by then are overdue: they run before all others. Entries that give way later wait for the next count.

/// Which of a worker's entries that give way are overdue.
#[derive(Default)]
pub(in crate::executor) struct Overdue {
    /// How many entries run before those that are counted for. 0 if none are.
    left: usize,
    /// Those with lower numbers had given way when the count began.
    counted: u64,
    /// Those with lower numbers are overdue. 0 if none are.
    end: u64,
}

impl Overdue {
    /// Begins a count for the entries whose numbers are below `next`. `ready` is the length of the longer of two queues
    /// that take turns. Returns `false` if nothing is ready, or if others are counted for or overdue.
    pub(in crate::executor) fn begin_count(&mut self, ready: usize, next: u64) -> bool {
        let begins = ready > 0 && self.left == 0 && self.end == 0;
        if begins {
            self.counted = next;
            // One more: an entry is counted before it is run.
            self.left = 2 * ready + 1;
        }
        begins
    }

    /// An entry is about to be run. Returns the number below which those that give way are overdue.
    pub(in crate::executor) fn count_entry(&mut self) -> u64 {
        if self.left > 0 {
            self.left -= 1;
            if self.left == 0 {
                self.end = self.counted;
            }
        }
        self.end
    }

    /// None of the overdue entries is left.
    pub(in crate::executor) fn end(&mut self) {
        self.end = 0;
    }

    /// Nothing else is ready, so that those that give way run anyway.
    pub(in crate::executor) fn stop_counting(&mut self) {
        self.left = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries that gave way before the count began are overdue after it, and none that gave way later.
    #[test]
    fn entries_of_the_count_become_overdue() {
        let mut overdue = Overdue::default();
        assert!(!overdue.begin_count(0, 5));
        assert_eq!(overdue.count_entry(), 0, "nothing else was ready");
        assert!(overdue.begin_count(3, 5));
        assert!(!overdue.begin_count(1, 9));
        let counted: Vec<_> = (0..8).map(|_| overdue.count_entry()).collect();
        assert_eq!(counted, [0, 0, 0, 0, 0, 0, 5, 5], "two queues of three, in turn");
        assert!(!overdue.begin_count(1, 9));
        assert_eq!(overdue.count_entry(), 5, "a new count begins when those of the last one have run");
        overdue.end();
        assert!(overdue.begin_count(1, 9));
        assert_eq!([0; 3].map(|_| overdue.count_entry()), [0, 0, 9]);
    }

    /// If nothing else was ready in the meantime, the count begins anew.
    #[test]
    fn stopped_count_begins_anew() {
        let mut overdue = Overdue::default();
        assert!(overdue.begin_count(1, 5));
        overdue.count_entry();
        overdue.stop_counting();
        assert_eq!([0; 4].map(|_| overdue.count_entry()), [0; 4]);
        assert!(overdue.begin_count(1, 6));
        assert_eq!([0; 3].map(|_| overdue.count_entry()), [0, 0, 6]);
    }
}
