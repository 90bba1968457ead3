//! Slots: the table from a token to what it stands for.
//!
//! A token is a slot's number and a generation. The events of one turn may still hold one for a socket that was closed
//! a moment ago, whose slot a new socket has since taken. The generation tells the two apart: a stale token finds no
//! value.
//!
//! `slab` reuses keys and keeps no generations, so one counter per table gives every insertion the next one. Pure: no
//! mio, no I/O, no clock.

use std::ops::Range;

use slab::Slab;

/// How many of a token's bits are the slot's number; the rest are generation.
/// 2^32 sources of 2^32 generations, or 2^22 of 2^10 where a word is 32 bits.
const SLOT_BITS: u32 = if usize::BITS == 64 { 32 } else { 22 };
const SLOT_MASK: usize = (1 << SLOT_BITS) - 1;

/// Values, each under a token that is not given out again for 2^32 insertions
/// (2^10 where a word is 32 bits).
pub(crate) struct Slots<T> {
    entries: Slab<Entry<T>>,
    /// The generation of the next insertion; all its bits below `SLOT_BITS`
    /// are zero, so that a token is the sum of the two.
    next_generation: usize,
}

struct Entry<T> {
    token: usize,
    value: T,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { entries: Slab::new(), next_generation: 0 }
    }
}

impl<T> Slots<T> {
    /// Never given out: their slot number is `SLOT_MASK`, and `insert` gives out only smaller ones.
    pub(crate) const RESERVED: [usize; 4] =
        [usize::MAX, SLOT_MASK, usize::MAX - (1 << SLOT_BITS), usize::MAX - (2 << SLOT_BITS)];

    /// Stores `value` and returns its token, or gives it back when the table
    /// is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<usize, T> {
        let entry = self.entries.vacant_entry();
        let slot = entry.key();
        if slot >= SLOT_MASK {
            return Err(value);
        }
        let token = self.next_generation | slot;
        self.next_generation = self.next_generation.wrapping_add(1 << SLOT_BITS);
        entry.insert(Entry { token, value });
        Ok(token)
    }

    /// The value of `token`, unless it has been removed.
    pub(crate) fn get(&self, token: usize) -> Option<&T> {
        let entry = self.entries.get(token & SLOT_MASK)?;
        (entry.token == token).then_some(&entry.value)
    }

    /// Removes and returns the value of `token`, unless it was removed before.
    pub(crate) fn remove(&mut self, token: usize) -> Option<T> {
        self.get(token)?;
        Some(self.entries.remove(token & SLOT_MASK).value)
    }

    /// If fewer than a quarter of the slots have a value, gives back the memory behind the last value.
    pub(crate) fn shrink(&mut self) {
        if self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to_fit();
        }
    }

    /// Removes all values.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        self.entries.drain().map(|entry| entry.value).collect()
    }

    /// Shows the values in these slots.
    pub(crate) fn visit(&self, slots: Range<usize>, visit: impl FnMut(&T)) {
        slots.filter_map(|slot| self.entries.get(slot)).map(|entry| &entry.value).for_each(visit);
    }

    /// The number of slots, with those that have no value.
    pub(crate) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(_, entry)| &entry.value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole reason for generations: an event for a closed socket must not
    /// wake the task of the socket that took its slot.
    #[test]
    fn stale_token_finds_no_value() {
        let mut slots = Slots::default();
        let old = slots.insert("old").unwrap();
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new").unwrap();
        assert_eq!(old & SLOT_MASK, new & SLOT_MASK, "the test needs the slot to be reused");
        assert_eq!(slots.get(old), None, "a stale token found the new owner of its slot");
        assert_eq!(slots.remove(old), None, "a stale token removed the new owner of its slot");
        assert_eq!(slots.get(new), Some(&"new"));
    }

    /// A spike of values leaves no memory, and the values that are left keep their tokens.
    #[test]
    fn spike_leaves_no_memory() {
        let mut slots = Slots::default();
        let first = slots.insert(0).unwrap();
        let spike: Vec<_> = (1..10_000).map(|value| slots.insert(value).unwrap()).collect();
        spike.iter().for_each(|token| assert!(slots.remove(*token).is_some()));
        slots.shrink();
        assert!(slots.entries.capacity() < 100, "room for {} values is left", slots.entries.capacity());
        let second = slots.insert(1).unwrap();
        assert_eq!((slots.get(first), slots.get(second), slots.get(spike[0])), (Some(&0), Some(&1), None));
    }

    #[test]
    fn generations_wrap_without_touching_slots() {
        let mut slots = Slots { entries: Slab::new(), next_generation: usize::MAX & !SLOT_MASK };
        let last = slots.insert(1).unwrap();
        let first = slots.insert(2).unwrap();
        assert_eq!((slots.get(last), slots.get(first)), (Some(&1), Some(&2)));
        assert!(!Slots::<i32>::RESERVED.contains(&last));
        assert_eq!(slots.take_all().len(), 2);
        assert_eq!(slots.len(), 0);
    }
}
