//! Shuffle: the order of the entries in a queue of a runtime that has a seed.
//!
//! Entries are pushed in the order in which they become ready. A worker takes all that are in the queue, in a random
//! order ([`Shuffle::shuffle`]), and runs them before it takes the next ones.
//!
//! # Late entries
//! If that were all, an entry would never run before those that were taken earlier, and a chain of five wakes would
//! never overtake a chain of four. So, in a runtime with one worker, entries that become ready later are mixed with
//! those that were taken ([`Shuffle::mix`]). Their number is limited, and so no entry waits for ever.
//!
//! # Segments
//! A task that has yielded runs after all that was ready when it did so. So, in a runtime with one worker, its entry
//! begins a segment of the queue. A segment runs after those before it, and entries change places within their segment
//! only. Entries that have used up their budget begin segments too. Late entries are mixed with the last segment that
//! was taken, and they come from the first segment of the queue.
//!
//! With several workers the entries that give way have a queue of their own. In the stealable queue a segment begins
//! behind the entries that were counted to run before the ones that give way ([`overdue`](super::stealing)).

use crate::memory::shrink;
use crate::random::Random;

/// The shuffle of one queue.
pub(super) struct Shuffle {
    random: Random,
    /// The places in the queue where a segment begins, in order. One always begins at 0. If 0 is listed, that segment
    /// is not the rest of the one that was taken, and none of its entries is mixed with those.
    starts: Vec<usize>,
    /// The length of the last segment that was taken, with the late entries that were mixed into it.
    last_segment: usize,
    /// How many late entries may still be mixed into it.
    late: usize,
}

/// At most `LATE + 2 * n` late entries are mixed into a segment of `n`.
const LATE: usize = 8;

impl Shuffle {
    pub(super) fn new(random: Random) -> Self {
        Self { random, starts: Vec::new(), last_segment: 0, late: 0 }
    }

    /// The entry that is, or will be, at this place of the queue begins a segment.
    pub(super) fn begin_segment(&mut self, at: usize) {
        if self.starts.last().is_none_or(|last| *last < at) {
            self.starts.push(at);
        }
    }

    /// As many entries as `count` come to the end of a queue of `len`, in order. Each begins a segment.
    pub(super) fn begin_segments(&mut self, len: usize, count: usize) {
        (len..len + count).for_each(|at| self.begin_segment(at));
    }

    /// Whether an entry of the queue begins a segment.
    pub(super) fn has_segments(&self) -> bool {
        !self.starts.is_empty()
    }

    /// So many entries were put in front of the queue.
    pub(super) fn move_back(&mut self, count: usize) {
        self.starts.iter_mut().for_each(|start| *start += count);
    }

    /// Shuffles entries that were just taken: all that were in the queue. Then reverses them, so that `pop` takes the
    /// next one.
    pub(super) fn shuffle<T>(&mut self, taken: &mut [T]) {
        let mut start = 0;
        // An entry may have left the queue since it began a segment.
        for end in self.starts.drain(..).chain([usize::MAX]) {
            let end = end.min(taken.len());
            self.random.shuffle(&mut taken[start..end]);
            if start < end {
                self.last_segment = end - start;
            }
            start = end;
        }
        self.late = 2 * self.last_segment + LATE;
        taken.reverse();
    }

    /// Mixes entries of the queue, the late ones, with those that were taken, which are reversed.
    pub(super) fn mix<T>(&mut self, taken: &mut Vec<T>, queue: &mut Vec<T>) {
        if taken.is_empty() || taken.len() > self.last_segment {
            return;
        }
        let late = self.starts.first().map_or(queue.len(), |start| queue.len().min(*start)).min(self.late);
        if late == 0 {
            return;
        }
        self.late -= late;
        for entry in queue.drain(..late) {
            taken.push(entry);
            let last = taken.len() - 1;
            taken.swap(last, self.random.below(last + 1));
        }
        self.last_segment = taken.len();
        self.starts.iter_mut().for_each(|start| *start -= late);
    }

    /// The queue was emptied in another way.
    pub(super) fn clear(&mut self) {
        self.starts.clear();
    }

    /// Gives memory back that a spike has left.
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.starts);
    }
}

#[cfg(all(test, not(kittiwake_loom)))]
mod tests {
    use super::*;

    /// Entries change places within their segment, and leave it in no order.
    #[test]
    fn entries_stay_in_their_segment() {
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut shuffle = Shuffle::new(Random::new(seed, 0));
            shuffle.begin_segment(3);
            shuffle.begin_segments(4, 2);
            shuffle.move_back(1);
            let segments = [0, 0, 0, 0, 1, 2, 3, 3, 3];
            let mut taken = [0, 1, 2, 3, 4, 5, 6, 7, 8];
            shuffle.shuffle(&mut taken);
            let mut reversed = segments;
            reversed.reverse();
            assert_eq!(taken.map(|place| segments[place]), reversed, "an entry left its segment: {taken:?}");
            assert!(!shuffle.has_segments(), "the next entries have segments of their own");
            orders.insert(taken);
        }
        // 4! * 3! = 144 orders.
        assert!(orders.len() > 90, "200 seeds give only {} orders", orders.len());
    }

    /// A late entry may come before or after those that were taken. It comes before none that waits behind a segment,
    /// and no entry waits for ever.
    #[test]
    fn late_entries_are_mixed() {
        let mut firsts = 0;
        for seed in 0..100 {
            let mut shuffle = Shuffle::new(Random::new(seed, 0));
            let mut taken = vec!["taken"];
            shuffle.shuffle(&mut taken);
            let mut queue = vec!["late", "yielded", "behind"];
            shuffle.begin_segment(1);
            shuffle.mix(&mut taken, &mut queue);
            assert_eq!(queue, ["yielded", "behind"], "seed {seed}");
            firsts += usize::from(taken.last() == Some(&"late"));
            shuffle.mix(&mut taken, &mut queue);
            assert_eq!(queue.len(), 2, "with seed {seed} a yielded entry was mixed with those that are before it");

            let mut taken = vec!["old"];
            shuffle.shuffle(&mut taken);
            let runs = (0..1000).take_while(|_| {
                shuffle.mix(&mut taken, &mut vec!["late"]);
                taken.pop() != Some("old")
            });
            assert!(runs.count() <= LATE + 2, "with seed {seed} an entry waits for ever");
        }
        assert!((20..80).contains(&firsts), "a late entry comes first {firsts} times of 100");
    }

    /// The entries of a segment that runs later are not mixed with others before its turn.
    #[test]
    fn earlier_segments_take_no_late_entries() {
        let mut shuffle = Shuffle::new(Random::new(0, 0));
        shuffle.begin_segment(1);
        let (mut taken, mut queue) = (vec!["first", "yielded"], vec!["late"]);
        shuffle.shuffle(&mut taken);
        shuffle.mix(&mut taken, &mut queue);
        assert_eq!(taken, ["yielded", "first"]);
        taken.pop();
        shuffle.mix(&mut taken, &mut queue);
        assert_eq!(taken.len(), 2, "the last segment takes late entries");
    }

    /// A segment whose first entry has left the queue changes nothing.
    #[test]
    fn segments_may_lie_behind_the_queue() {
        let mut shuffle = Shuffle::new(Random::new(0, 0));
        shuffle.begin_segment(2);
        shuffle.begin_segment(5);
        let mut taken = vec![1, 2];
        shuffle.shuffle(&mut taken);
        shuffle.begin_segment(7);
        shuffle.mix(&mut taken, &mut vec![3]);
        shuffle.clear();
        shuffle.shuffle::<u8>(&mut []);
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3]);
    }
}
