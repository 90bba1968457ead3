//! Batch: how many entries a worker runs between two looks at the kernel.
//!
//! 1. At most [`MOST`].
//! 2. Fewer if they take long: a batch ends when the clock says that it has lasted for [`LONGEST`]. The next batch has
//!    only as many entries as fit into that time. Each further batch has at most twice as many, until there is one that
//!    takes too long.
//! 3. The clock is read after [`CLOCKED`] entries, with one exception: if the last batch left no entry behind, the
//!    entries that are ready when the batch begins are run first. None of them has waited for long. If the time of the
//!    batch's begin is not known then, one more entry is run before the next reading.
//!
//! The time is an argument.

/// The most entries in a batch.
const MOST: usize = 64;

/// The entries between two readings of the clock.
const CLOCKED: usize = 8;

/// The longest that a batch may last, in nanoseconds, but for the last [`CLOCKED`] entries.
const LONGEST: u64 = 1_500_000;

/// How many entries a worker runs in a batch.
pub(super) struct Batch {
    /// The most entries of this batch.
    size: usize,
    /// The entries that the worker was told to run, in this batch.
    granted: usize,
    /// The last batch ended before its entries did.
    is_cut: bool,
    /// How long the batch had lasted at the last reading of the clock. 0 if there was none.
    lasted: u64,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { size: MOST, granted: 0, is_cut: false, lasted: 0 }
    }

    /// Begins a batch, with so many entries `ready`. Returns how many to run before the clock is read.
    pub(super) fn begin(&mut self, ready: usize) -> usize {
        let most = if self.is_cut { CLOCKED } else { ready.max(1) };
        self.is_cut = false;
        self.lasted = 0;
        self.granted = most.min(self.size);
        self.granted
    }

    /// The granted entries have been run, and there are others. The batch has lasted for so many nanoseconds, or for 0 if
    /// that is not known. Returns how many more to run, or `None` if the batch is over.
    pub(super) fn next(&mut self, lasted: u64) -> Option<usize> {
        self.lasted = lasted;
        let next = if lasted == 0 { 1 } else { CLOCKED }.min(self.size - self.granted);
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
        self.size = if self.lasted < LONGEST {
            (2 * self.size).min(MOST)
        } else {
            (ran * LONGEST as usize / self.lasted as usize).max(1)
        };
        ran
    }
}
