//! Medians, ratios slice by slice, and their bootstrap intervals.

/// The median, or NaN for no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len => f64::midpoint(sorted[(len - 1) / 2], sorted[len / 2]),
    }
}

/// A median and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Estimate {
    /// The estimate of the ratios of two series of slices that were taken side by side.
    pub(crate) fn of_ratios(values: &[f64], base: &[f64]) -> Self {
        let ratios: Vec<f64> = values.iter().zip(base).map(|(value, base)| value / base).collect();
        Self::of(&ratios)
    }

    /// The percentile bootstrap: the medians of 2,000 samples of the same size, drawn with replacement. The seed is fixed,
    /// so the same figures give the same interval.
    pub(crate) fn of(values: &[f64]) -> Self {
        const SAMPLES: usize = 2000;
        if values.is_empty() {
            return Self { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        }
        let mut random = fastrand::Rng::with_seed(1);
        let mut sample = || median(&values.iter().map(|_| values[random.usize(..values.len())]).collect::<Vec<_>>());
        let mut medians: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
        medians.sort_unstable_by(f64::total_cmp);
        Self { median: median(values), low: medians[SAMPLES / 40], high: medians[SAMPLES - 1 - SAMPLES / 40] }
    }
}

/// The cost of one operation, from the totals of two runs. The program's start and end are in both, and cancel.
pub(crate) fn per_operation(few: (u64, u64), many: (u64, u64)) -> f64 {
    (many.1 as f64 - few.1 as f64) / (many.0 - few.0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_survive_a_change_of_speed() {
        let base: Vec<f64> = (0..60).map(|i| if i < 30 { 100.0 } else { 300.0 }).collect();
        let values: Vec<f64> = base.iter().map(|base| base * 1.25).collect();
        let ratio = Estimate::of_ratios(&values, &base);
        assert_eq!((ratio.median, ratio.low, ratio.high), (1.25, 1.25, 1.25));
    }

    #[test]
    fn interval_narrows_with_more_slices() {
        let noise = |i: usize| 1.0 + ((i * 7919) % 101) as f64 / 100.0;
        let few = Estimate::of(&(0..20).map(noise).collect::<Vec<_>>());
        let many = Estimate::of(&(0..500).map(noise).collect::<Vec<_>>());
        for estimate in [few, many] {
            assert!(estimate.low <= estimate.median && estimate.median <= estimate.high, "{estimate:?}");
        }
        assert!(many.high - many.low < (few.high - few.low) / 2.0, "{few:?} {many:?}");
    }

    #[test]
    fn interval_is_reproducible() {
        let values = [1.0, 5.0, 2.0, 8.0, 3.0];
        assert_eq!(Estimate::of(&values), Estimate::of(&values));
    }

    #[test]
    fn start_and_end_cancel() {
        assert_eq!(per_operation((1000, 50_000 + 1000 * 400), (3000, 50_000 + 3000 * 400)), 400.0);
    }
}
