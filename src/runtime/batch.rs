//! Batch: how many entries a worker runs between two looks at the kernel.
//!
//! 1. At most [`MOST`].
//! 2. Fewer if they take long: a batch ends when the clock says that it has lasted for [`LONGEST`]. The next batch has
//!    only as many entries as fit into that time. Each further batch with an entry has at most twice as many, until
//!    there is one that takes too long.
//! 3. The clock is read after [`CLOCKED`] entries, or after fewer in a small batch.
//! 4. Unless the last batch was cut by the clock, the entries that are ready when this one begins have not waited for
//!    long. They are run before the clock is first read. If the time of the batch's begin is not known then, one more
//!    entry is run before the next reading.
//!
//! The time is an argument.

/// The most entries in a batch.
const MOST: usize = 64;

/// The most entries between two readings of the clock, but for those that were ready when the batch began.
const CLOCKED: usize = 6;

/// A batch ends at the first reading of the clock at which it has lasted for so many nanoseconds.
const LONGEST: u64 = 1_500_000;

/// How many entries a worker runs in a batch.
pub(super) struct Batch {
    /// The most entries of this batch.
    size: usize,
    /// The entries that the worker was told to run, in this batch.
    granted: usize,
    /// The entries to run between two readings of the clock. A batch is small after one that took long, and the next
    /// entry may take as long again.
    clocked: usize,
    /// [`next`](Batch::next) has ended the last batch, and there were other entries.
    is_cut: bool,
    /// How long the batch had lasted at the last reading of the clock. 0 if there was none.
    lasted: u64,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { size: MOST, granted: 0, clocked: CLOCKED, is_cut: false, lasted: 0 }
    }

    /// Begins a batch, with so many entries `ready`. Returns how many to run before the clock is read.
    pub(super) fn begin(&mut self, ready: usize) -> usize {
        let most = if self.is_cut { self.clocked } else { ready.max(1) };
        self.is_cut = false;
        self.lasted = 0;
        self.granted = most.min(self.size);
        self.granted
    }

    /// The granted entries have been run, and there are others. The batch has lasted for so many nanoseconds, or for 0
    /// if that is not known. Returns how many more to run, or `None` if the batch is over.
    pub(super) fn next(&mut self, lasted: u64) -> Option<usize> {
        self.lasted = lasted;
        let next = if lasted == 0 { 1 } else { self.clocked }.min(self.size - self.granted);
        if next == 0 || lasted >= LONGEST {
            self.is_cut = true;
            return None;
        }
        self.granted += next;
        Some(next)
    }

    /// Ends the batch, with `left` of the granted entries not run. Returns how many were run.
    pub(super) fn end(&mut self, left: usize) -> usize {
        let ran = self.granted - left;
        if ran == 0 {
            // This says nothing about how long entries take.
            return 0;
        }
        self.size = if self.lasted < LONGEST {
            (2 * self.size).min(MOST)
        } else {
            // Fits into a `usize`, because it is not more than `ran`. `lasted` may not fit.
            (ran as u64 * LONGEST / self.lasted).max(1) as usize
        };
        self.clocked = (self.size / 8).clamp(1, CLOCKED);
        ran
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a batch of entries that take `each` nanoseconds, without end. Returns how many it had.
    fn run(batch: &mut Batch, ready: usize, each: u64) -> usize {
        let (mut left, mut lasted) = (batch.begin(ready), 0);
        loop {
            lasted += left as u64 * each;
            match batch.next(lasted) {
                Some(next) => left = next,
                None => return batch.end(0),
            }
        }
    }

    /// Quick entries come in batches of 64, however many are ready.
    #[test]
    fn quick_entries_fill_the_batch() {
        for ready in [0, 1, 64, 1000] {
            assert_eq!(run(&mut Batch::new(), ready, 10), MOST, "{ready} were ready");
        }
    }

    /// Once entries take long, a batch has one of them. If they grow long in the middle of a batch, it has at most as
    /// many of them as lie between two readings of the clock.
    #[test]
    fn long_entries_shrink_the_batch() {
        let mut batch = Batch::new();
        run(&mut batch, 1, 10);
        assert_eq!(run(&mut batch, 1, 20_000_000), CLOCKED);
        for _ in 0..5 {
            assert_eq!(run(&mut batch, 1, 20_000_000), 1);
        }
        // The task that a timer wakes is quick, and long entries follow.
        run(&mut batch, 1, 10);
        assert_eq!(run(&mut batch, 1, 20_000_000), 1);
    }

    /// A batch has at most twice as many entries as the last one, until they take too long.
    #[test]
    fn batch_grows_by_doubling() {
        let mut batch = Batch::new();
        run(&mut batch, 1, 20_000_000);
        let sizes: Vec<_> = (0..8).map(|_| run(&mut batch, 1, 10)).collect();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 64]);
    }

    /// A batch that has lasted for 2^32 ns or longer is followed by one of one entry. If the size were computed in
    /// `usize`, this would fail with 32-bit pointers, and only there.
    #[test]
    fn longest_batch_shrinks_to_one() {
        for lasted in [1 << 32, (1 << 32) + 1, 5 << 32, u64::MAX] {
            let mut batch = Batch::new();
            batch.begin(MOST);
            assert_eq!(batch.next(lasted), None);
            batch.end(0);
            assert_eq!(batch.begin(MOST), 1, "after {lasted} ns");
        }
    }

    /// Batches without entries, as of a worker that looks after others, leave the next one as it is. Otherwise it would
    /// run several long entries after a quick one without a reading of the clock.
    #[test]
    fn empty_batch_changes_nothing() {
        let mut batch = Batch::new();
        run(&mut batch, 1, 20_000_000);
        for _ in 0..10 {
            batch.begin(0);
            assert_eq!(batch.end(1), 0);
        }
        assert_eq!((batch.begin(1), batch.next(10)), (1, None));
    }

    /// If the last batch left nothing behind, the entries that are ready are run before the clock is read.
    #[test]
    fn ready_entries_need_no_clock() {
        let mut batch = Batch::new();
        assert_eq!(batch.begin(32), 32);
        assert_eq!(batch.end(0), 32);
        run(&mut batch, 1, 10);
        assert_eq!(batch.begin(32), CLOCKED, "the last batch left entries behind");
        assert_eq!(batch.end(3), CLOCKED - 3, "the queue was empty");
    }
}
