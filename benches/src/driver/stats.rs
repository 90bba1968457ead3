//! Medians, ratios slice by slice, and their bootstrap intervals.

/// The median; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// A median, and where it would fall in 95 of 100 repetitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Estimate {
    /// Of the ratios of two series of slices that were taken side by side.
    pub(crate) fn of_ratios(values: &[f64], base: &[f64]) -> Self {
        let ratios: Vec<f64> = values.iter().zip(base).map(|(value, base)| value / base).collect();
        Self::of(&ratios)
    }

    /// The percentile bootstrap: the median of 2,000 samples of the same size, drawn with replacement. The draws are the
    /// same each time, so that the same figures give the same interval.
    pub(crate) fn of(values: &[f64]) -> Self {
        const SAMPLES: usize = 2000;
        if values.is_empty() {
            return Self { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut sample = vec![0.0; values.len()];
        let mut medians = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            for slot in &mut sample {
                *slot = values[random.below(values.len())];
            }
            medians.push(median(&sample));
        }
        medians.sort_unstable_by(f64::total_cmp);
        Self { median: median(values), low: medians[SAMPLES / 40], high: medians[SAMPLES - 1 - SAMPLES / 40] }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(word ^ (word >> 31)) * bound as u128) >> 64) as usize
    }
}

/// What one operation costs, from the totals of two runs: start and end are in both, and cancel.
pub(crate) fn per_operation(few: (u64, u64), many: (u64, u64)) -> f64 {
    let ((few_operations, few_total), (many_operations, many_total)) = (few, many);
    (many_total as f64 - few_total as f64) / (many_operations - few_operations) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_of_neighbours_survive_a_machine_that_changes_speed() {
        let base: Vec<f64> = (0..60).map(|i| if i < 30 { 100.0 } else { 300.0 }).collect();
        let values: Vec<f64> = base.iter().map(|base| base * 1.25).collect();
        let ratio = Estimate::of_ratios(&values, &base);
        assert_eq!((ratio.median, ratio.low, ratio.high), (1.25, 1.25, 1.25));
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_more_slices() {
        let noise = |i: usize| 1.0 + ((i * 7919) % 101) as f64 / 100.0;
        let few = Estimate::of(&(0..20).map(noise).collect::<Vec<_>>());
        let many = Estimate::of(&(0..500).map(noise).collect::<Vec<_>>());
        for estimate in [few, many] {
            assert!(estimate.low <= estimate.median && estimate.median <= estimate.high, "{estimate:?}");
        }
        assert!(many.high - many.low < (few.high - few.low) / 2.0, "{few:?} {many:?}");
    }

    #[test]
    fn the_same_slices_give_the_same_interval() {
        let values = [1.0, 5.0, 2.0, 8.0, 3.0];
        assert_eq!(Estimate::of(&values), Estimate::of(&values));
    }

    #[test]
    fn what_both_runs_share_cancels() {
        assert_eq!(per_operation((1000, 50_000 + 1000 * 400), (3000, 50_000 + 3000 * 400)), 400.0);
    }
}
