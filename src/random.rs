//! Random: a small generator of numbers, for orders and for scripts of tests. No secret may depend on it.

/// A generator (xorshift). The same seed gives the same numbers on each machine.
pub(crate) struct Random(u64);

impl Random {
    /// One of the generators of a seed. Generators of another number have other numbers.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        // The mixing of splitmix64: the first numbers of neighbouring seeds would resemble each other without it.
        let mut mixed = seed.wrapping_add((number + 1).wrapping_mul(GOLDEN));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // From 0 the generator would yield zeros only.
        Self((mixed ^ (mixed >> 31)).max(1))
    }

    /// The generator that begins with this state.
    #[cfg(test)]
    pub(crate) fn from_state(state: u64) -> Self {
        Self(state)
    }

    /// The next number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.number()) * limit as u128) >> 64) as usize
    }

    /// Brings `entries` into a random order (Fisher-Yates).
    pub(crate) fn shuffle<T>(&mut self, entries: &mut [T]) {
        for last in (1..entries.len()).rev() {
            entries.swap(last, self.below(last + 1));
        }
    }
}

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The seeds that a test counts up, from 0, are as good as others: each order of four entries comes about as often
    /// as each other one.
    #[test]
    fn small_seeds_give_all_orders() {
        let mut orders = BTreeMap::new();
        for seed in 0..2400 {
            let mut entries = [0, 1, 2, 3];
            Random::new(seed, 0).shuffle(&mut entries);
            *orders.entry(entries).or_insert(0) += 1;
        }
        assert_eq!(orders.len(), 24, "some orders never come: {orders:?}");
        assert!(orders.values().all(|count| (60..150).contains(count)), "some orders come too often: {orders:?}");
    }
}
