//! Histograms of durations, in fixed memory.
//!
//! # The buckets
//! A duration is a number of nanoseconds. The first bucket takes the durations up to 2^8 ns. The last bucket takes those
//! above 2^42 ns, which is 73 minutes. Between the two, each power of two has eight buckets of equal width. So a bucket
//! ends at most an eighth above its begin.
//!
//! A bucket has its upper bound in it, but not its lower bound. So the durations up to a power of two fill whole buckets.
//! Prometheus counts the durations that are less than or equal to a bound, and these counts are exact.
//!
//! # One writer
//! One thread records durations in a [`Recorder`]. Every thread may take a snapshot of it, which is a [`Histogram`].
//! 1. The writer sets the sum and the maximum, and then the count of the bucket, with release.
//! 2. The reader loads the counts, with acquire, and then the sum and the maximum.
//!
//! So the maximum of a snapshot is never below a duration that its counts have. Otherwise a snapshot that is taken
//! during step 1 could report a quantile that is below the durations of its bucket.

use std::array;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first bucket ends at this power of two, in nanoseconds.
const FIRST_BITS: u32 = 8;

/// The last bucket begins at this power of two, in nanoseconds.
const LAST_BITS: u32 = 42;

/// Each power of two between them has this power of two of buckets.
const SPLIT_BITS: u32 = 3;

const SPLIT: usize = 1 << SPLIT_BITS;
const BUCKETS: usize = (LAST_BITS - FIRST_BITS) as usize * SPLIT + 2;

/// A histogram that one thread writes and every thread reads.
pub(crate) struct Recorder {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Recorder {
    pub(crate) const fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }

    /// Counts a duration. Only one thread calls this, so loads and stores are enough.
    pub(crate) fn record(&self, nanos: u64) {
        self.sum.store(self.sum.load(Ordering::Relaxed).saturating_add(nanos), Ordering::Relaxed);
        if nanos > self.max.load(Ordering::Relaxed) {
            self.max.store(nanos, Ordering::Relaxed);
        }
        let count = &self.counts[bucket_of(nanos)];
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// The durations so far.
    pub(crate) fn snapshot(&self) -> Histogram {
        let counts = Box::new(array::from_fn(|bucket| self.counts[bucket].load(Ordering::Acquire)));
        Histogram { counts, sum: self.sum.load(Ordering::Relaxed), max: self.max.load(Ordering::Relaxed) }
    }
}

/// The bucket of a duration.
fn bucket_of(nanos: u64) -> usize {
    // A bucket begins one nanosecond above the bound of the previous one.
    let above = nanos.saturating_sub(1);
    let power = above.max(1).ilog2();
    if power < FIRST_BITS {
        0
    } else if power >= LAST_BITS {
        BUCKETS - 1
    } else {
        let split = (above >> (power - SPLIT_BITS)) as usize % SPLIT;
        1 + (power - FIRST_BITS) as usize * SPLIT + split
    }
}

/// The longest duration of a bucket, in nanoseconds.
fn upper_bound(bucket: usize) -> u64 {
    match bucket {
        0 => 1 << FIRST_BITS,
        _ if bucket == BUCKETS - 1 => u64::MAX,
        _ => {
            let (power, split) = (FIRST_BITS as usize + (bucket - 1) / SPLIT, (bucket - 1) % SPLIT);
            (SPLIT + split + 1) as u64 * (1 << (power - SPLIT_BITS as usize))
        }
    }
}

/// How often durations of each length have occurred.
///
/// It has fixed memory, about 2 KiB. It counts durations in buckets, whose width is at most an eighth of the durations in
/// them, from 256 ns to 73 minutes. [`count`](Histogram::count), [`sum`](Histogram::sum) and [`max`](Histogram::max) are
/// exact.
///
/// [`Metrics::poll_times`](crate::runtime::Metrics::poll_times) and
/// [`Metrics::lateness`](crate::runtime::Metrics::lateness) return such histograms. They do not change afterwards.
///
/// # Examples
/// ```
/// use kittiwake::runtime::Builder;
/// use kittiwake::time::{Duration, sleep};
///
/// let runtime = Builder::new_current_thread().measure_polls(true).build()?;
/// runtime.block_on(async {
///     for _ in 0..10 {
///         sleep(Duration::from_millis(1)).await;
///     }
/// });
/// let lateness = runtime.handle().metrics().lateness().expect("the runtime measures");
/// assert!(lateness.count() <= 10);
/// assert!(lateness.quantile(0.5) <= lateness.max());
/// println!("99 % of the timers were late by at most {:?}", lateness.quantile(0.99));
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    sum: u64,
    max: u64,
}

impl Histogram {
    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all durations, up to 584 years.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The longest duration, or zero if there is none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The duration that the part `q` of all durations does not exceed, or zero if there is none.
    ///
    /// `quantile(0.5)` is the median, `quantile(0.99)` the 99th percentile, and `quantile(1.0)` the maximum. A `q` below
    /// 0 counts as 0, and one above 1 as 1.
    ///
    /// The result is never below the exact duration. It is at most an eighth above it, if that is 256 ns or more. For
    /// shorter ones the result is at most 256 ns.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::runtime::Histogram;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Histogram::default().quantile(0.99), Duration::ZERO);
    /// ```
    pub fn quantile(&self, q: f64) -> Duration {
        let count = self.count();
        // For a NaN this is 0, as the conversion to an integer says.
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut counted = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            counted += count;
            if counted >= rank {
                return Duration::from_nanos(upper_bound(bucket).min(self.max));
            }
        }
        Duration::ZERO
    }

    /// All buckets, empty ones too: the longest duration that a bucket takes, and how many durations it has.
    ///
    /// The durations of a bucket are longer than those of the bucket before it. The last bucket has no limit:
    /// [`Duration::MAX`].
    ///
    /// # Examples
    /// ```
    /// use kittiwake::runtime::Builder;
    /// use kittiwake::time::{Duration, sleep};
    ///
    /// let runtime = Builder::new_current_thread().measure_polls(true).build()?;
    /// runtime.block_on(sleep(Duration::from_millis(5)));
    /// let lateness = runtime.handle().metrics().lateness().expect("the runtime measures");
    /// let mut counted = 0;
    /// for (longest, count) in lateness.buckets().filter(|(_, count)| *count > 0) {
    ///     println!("at most {longest:?}: {count}");
    ///     counted += count;
    /// }
    /// assert_eq!(counted, lateness.count());
    /// # std::io::Result::Ok(())
    /// ```
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.counts.iter().enumerate().map(|(bucket, count)| {
            let is_last = bucket == BUCKETS - 1;
            let longest = if is_last { Duration::MAX } else { Duration::from_nanos(upper_bound(bucket)) };
            (longest, *count)
        })
    }

    /// Adds the durations of `other`.
    ///
    /// # Examples
    /// The poll times of several runtimes:
    /// ```
    /// use kittiwake::runtime::{Builder, Histogram};
    ///
    /// let build = || Builder::new_current_thread().measure_polls(true).build();
    /// let mut all = Histogram::default();
    /// for runtime in [build()?, build()?] {
    ///     runtime.block_on(async {});
    ///     all.merge(&runtime.handle().metrics().poll_times().expect("the runtime measures"));
    /// }
    /// assert!(all.quantile(0.5) <= all.max());
    /// # std::io::Result::Ok(())
    /// ```
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count += more;
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }
}

/// No durations.
impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), sum: 0, max: 0 }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("sum", &self.sum())
            .field("median", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all sizes, which look random and are the same in each run.
    fn numbers(count: usize) -> impl Iterator<Item = u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> (state % 60)
        })
        .take(count)
    }

    fn histogram(durations: &[u64]) -> Histogram {
        let recorder = Recorder::new();
        durations.iter().for_each(|nanos| recorder.record(*nanos));
        recorder.snapshot()
    }

    /// A bucket takes the durations above the bound of the previous bucket, up to its own bound. Its bound is at most
    /// an eighth above any of them.
    #[test]
    fn buckets_end_at_their_bounds() {
        assert_eq!([0, 1, 256].map(bucket_of), [0; 3], "the first bucket is open below");
        for bucket in 1..BUCKETS {
            let (lower, upper) = (upper_bound(bucket - 1), upper_bound(bucket));
            assert!(lower < upper, "bucket {bucket} is empty");
            let of = [lower, lower + 1, upper].map(bucket_of);
            assert_eq!(
                of,
                [bucket - 1, bucket, bucket],
                "bucket {bucket} must have the durations in {lower}..={upper}"
            );
            let is_last = bucket == BUCKETS - 1;
            assert!(is_last || upper - lower <= lower / 8, "bucket {bucket} is too wide: {lower}..={upper}");
        }
        assert_eq!(upper_bound(BUCKETS - 2), 1 << LAST_BITS, "the last bucket begins at its power of two");
    }

    /// A quantile is at least the exact one, and at most an eighth above it. Count, sum and maximum are exact.
    #[test]
    fn quantile_is_within_an_eighth() {
        let mut durations: Vec<u64> = numbers(10_000).map(|nanos| nanos % (1 << LAST_BITS)).collect();
        let histogram = histogram(&durations);
        durations.sort_unstable();
        for percent in 0..=100 {
            let rank = (percent * durations.len()).div_ceil(100).max(1);
            let (exact, q) = (durations[rank - 1], percent as f64 / 100.0);
            let found = histogram.quantile(q).as_nanos() as u64;
            // In floating point the rank may be one more.
            let next = durations[rank.min(durations.len() - 1)];
            assert!(found >= exact, "quantile({q}) is {found}, below the exact {exact}");
            assert!(found <= (next + next / 8).max(256), "quantile({q}) is {found}, far above the exact {exact}");
        }
        assert_eq!(histogram.count(), durations.len() as u64);
        assert_eq!(histogram.sum().as_nanos(), durations.iter().map(|nanos| u128::from(*nanos)).sum());
        assert_eq!(histogram.max().as_nanos() as u64, durations[durations.len() - 1]);
    }

    /// Merged histograms equal one histogram that has recorded all durations.
    #[test]
    fn merge_equals_recording_both() {
        let durations: Vec<u64> = numbers(1_000).collect();
        let (first, second) = durations.split_at(300);
        let mut merged = histogram(first);
        merged.merge(&histogram(second));
        assert_eq!(merged, histogram(&durations));
        merged.merge(&Histogram::default());
        assert_eq!(merged, histogram(&durations), "an empty histogram must add nothing");
    }

    /// The longest durations neither overflow nor wrap.
    #[test]
    fn longest_durations_do_not_overflow() {
        let mut longest = histogram(&[u64::MAX, u64::MAX]);
        longest.merge(&longest.clone());
        assert_eq!(longest.count(), 4);
        let all = Duration::from_nanos(u64::MAX);
        assert_eq!((longest.sum(), longest.max(), longest.quantile(0.5)), (all, all, all));
        assert_eq!(longest.buckets().last(), Some((Duration::MAX, 4)), "the last bucket has no limit");
        assert!(format!("{longest:?}").contains("count: 4"), "{longest:?}");
    }

    /// A quantile exists for every `q`, and for an empty histogram.
    #[test]
    fn odd_quantiles_have_results() {
        let nanos = Duration::from_nanos;
        let two = histogram(&[1_000, 2_000]);
        for (q, exact) in [(-1.0, 1_000), (0.0, 1_000), (f64::NAN, 1_000), (0.5, 1_000), (1.0, 2_000), (7.0, 2_000)] {
            let found = two.quantile(q);
            assert!(found >= nanos(exact) && found <= nanos(exact + exact / 8), "quantile({q}) is {found:?}");
        }
        assert_eq!(two.quantile(1.0), two.max(), "the last quantile is the exact maximum");
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }

    /// A snapshot that is taken while the writer records is consistent: its maximum is not below what its counts have.
    #[test]
    fn snapshot_during_record_is_consistent() {
        let powers = FIRST_BITS..LAST_BITS;
        let recorders: Vec<Recorder> = (0..500).map(|_| Recorder::new()).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for recorder in &recorders {
                    powers.clone().for_each(|power| recorder.record((1 << power) + 1));
                }
            });
            for recorder in &recorders {
                let mut snapshot = recorder.snapshot();
                while snapshot.count() < powers.len() as u64 {
                    let highest = snapshot.counts.iter().rposition(|count| *count > 0);
                    let shortest = highest.map_or(0, |bucket| upper_bound(bucket - 1) + 1);
                    assert!(snapshot.max >= shortest, "the maximum {} is below {shortest}", snapshot.max);
                    snapshot = recorder.snapshot();
                }
            }
        });
    }
}
