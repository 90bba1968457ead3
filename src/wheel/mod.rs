//! A hierarchical timing wheel: timers in slots by how far away they are.
//!
//! Level 0 has a slot for each of the next 64 ticks; a slot of each further level spans the 64 slots of the level below.
//!
//! | level | a slot spans | the level spans, at 2^16 ns a tick |
//! | --- | --- | --- |
//! | 0 | 1 tick | 4.2 ms |
//! | 1 | 64 ticks | 268 ms |
//! | 2 | 2^12 | 17 s |
//! | 3 | 2^18 | 18 min |
//! | 4 | 2^24 | 20 h |
//! | 5 | 2^30 | 52 days |
//!
//! # The rules
//! 1. A new timer is in no slot yet but in a list of its own, and the wheel remembers that it must look at it by its
//!    deadline. Most timers are bounds on something that comes in time, and go again without ever having been placed. Such a
//!    one leaves its entry in the list, for the next new timer to take over: neither of them touches any other entry.
//! 2. When something is due ([`Wheel::advance`]), the list is emptied and the new timers are placed, each at the lowest
//!    level at which its deadline and the present are in the same round: the level of the highest bit in which they differ.
//!    So what is at a level comes before everything at the levels above.
//! 3. When time reaches the start of a slot, its timers move down; those of level 0 fire.
//! 4. A deadline beyond the last level is parked in that level's farthest slot. When time reaches that, it is placed anew,
//!    by its true deadline: it is never lost, and moves once in 51 days.
//! 5. A timer that has fired keeps its entry, marked, until its owner removes it. So a key is never stale.
//!
//! Each level has a word with a bit for each slot that is not empty. By rule 2 the next slot is the first such bit of the
//! lowest level that has one: O(1), as is everything else but `advance`, which does a bounded amount for each timer.
//!
//! # Moments and ticks
//! Callers speak of moments, which a [`Scale`] turns into ticks: a deadline is rounded up, the present down, so that no timer
//! fires early. A timer that is due while it is still new is compared by its moment, and fires without any rounding.
//!
//! Pure: the present is an argument. No clock, no threads. Wakers are handed out, never woken or dropped here.

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

use std::mem;
use std::num::NonZeroU32;
use std::task::Waker;

const LEVELS: usize = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_MASK: u64 = SLOTS as u64 - 1;

/// Ticks that the wheel spans; deadlines farther away are parked.
const SPAN: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// How moments are counted in ticks.
pub(crate) trait Scale {
    type Moment: Copy + Ord;

    /// After all others.
    const NEVER: Self::Moment;

    /// The tick that has begun at `moment`.
    fn tick_at(&self, moment: Self::Moment) -> u64;

    /// The first tick that begins at `moment` or after it.
    fn tick_from(&self, moment: Self::Moment) -> u64;

    /// When `tick` begins.
    fn start_of(&self, tick: u64) -> Self::Moment;
}

/// Timers, and the present as far as they know.
pub(crate) struct Wheel<S: Scale> {
    scale: S,
    /// The latest moment that it was told.
    present: S::Moment,
    /// The tick up to which everything has fired.
    now: u64,
    /// Nothing is due before this. It means nothing while nothing is pending.
    next: S::Moment,
    /// How many timers have neither fired nor been removed.
    pending: usize,
    /// The first of the new timers, among which are entries that have none any more.
    new: Link,
    /// For each level, a bit for each slot that has timers.
    occupied: [u64; LEVELS],
    /// The first timer of each slot, level after level.
    first: [Link; LEVELS * SLOTS],
    /// The first of them is nobody's.
    entries: Vec<Entry<S::Moment>>,
    /// The first entry that has no timer.
    free: Link,
}

/// An entry in the same list, or none.
type Link = Option<Key>;

/// A timer of one wheel: valid until it is removed. The number of its entry, never 0, so that a [`Link`] is as small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(NonZeroU32);

/// A timer, or a place for one.
struct Entry<M> {
    deadline: M,
    /// Its deadline as a tick, once it has been placed.
    tick: u64,
    /// `None` once the timer has fired, and while there is none.
    waker: Option<Waker>,
    slot: Slot,
    /// The one before it in its slot; `None` for the first, for all that are new, and for those in no slot.
    previous: Link,
    next: Link,
    /// The next entry that has no timer, while this has none.
    next_free: Link,
}

/// A slot of some level: `level * SLOTS + slot`; or where new timers are, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot(u16);

const NEW: Slot = Slot(u16::MAX);
const NOWHERE: Slot = Slot(u16::MAX - 1);

impl<S: Scale> Wheel<S> {
    /// A wheel whose present is `now`.
    pub(crate) fn new(scale: S, present: S::Moment) -> Self {
        let now = scale.tick_at(present);
        Self {
            scale,
            present,
            now,
            next: S::NEVER,
            pending: 0,
            new: None,
            occupied: [0; LEVELS],
            first: [None; LEVELS * SLOTS],
            entries: vec![Entry::vacant(present)],
            free: None,
        }
    }

    /// Adds a timer that fires at `deadline`, or when time next goes on if that is past.
    ///
    /// # Panics
    /// With 2^32 timers in one wheel.
    #[inline]
    pub(crate) fn insert(&mut self, deadline: S::Moment, waker: Waker) -> Key {
        if deadline < self.next {
            self.next = deadline;
        }
        self.pending += 1;
        let key = self.free.unwrap_or_else(|| self.add_entry(deadline));
        let entry = self.entry(key);
        entry.deadline = deadline;
        // It had none: there is nothing to drop.
        mem::forget(entry.waker.replace(waker));
        let (is_new, next_free) = (entry.slot == NEW, entry.next_free);
        self.free = next_free;
        if !is_new {
            self.link_new(key);
        }
        key
    }

    #[cold]
    fn add_entry(&mut self, deadline: S::Moment) -> Key {
        let key = Key::new(self.entries.len());
        self.entries.push(Entry::vacant(deadline));
        key
    }

    /// Removes a timer, fired or not. Returns its waker if it has not fired.
    #[inline]
    pub(crate) fn remove(&mut self, key: Key) -> Option<Waker> {
        let next_free = self.free.replace(key);
        let entry = self.entry(key);
        entry.next_free = next_free;
        let slot = entry.slot;
        let waker = entry.waker.take()?;
        self.pending -= 1;
        if slot != NEW {
            self.unlink(key);
        }
        Some(waker)
    }

    /// Moves a timer that has not fired to another deadline.
    pub(crate) fn reset(&mut self, key: Key, deadline: S::Moment) {
        let entry = self.entry(key);
        debug_assert!(entry.waker.is_some(), "a timer that has fired has no waker");
        entry.deadline = deadline;
        if entry.slot != NEW {
            self.unlink(key);
            self.link_new(key);
        }
        self.next = self.next.min(deadline);
    }

    /// Whether a timer has fired.
    pub(crate) fn has_fired(&self, key: Key) -> bool {
        self.entries[key.index()].waker.is_none()
    }

    /// The waker that a timer will hand out, or `None` if it has.
    pub(crate) fn waker(&mut self, key: Key) -> Option<&mut Waker> {
        self.entry(key).waker.as_mut()
    }

    /// Whether a deadline is known to have passed.
    #[inline]
    pub(crate) fn has_passed(&self, deadline: S::Moment) -> bool {
        // The first comparison is the one that `insert` makes too: mostly it is all.
        deadline < self.next && deadline <= self.present
    }

    /// The moment by which to call [`advance`](Wheel::advance): no timer fires before it. `None` if nothing is pending.
    ///
    /// It need not be a deadline: it may be when timers move down, or the deadline of one that was removed.
    #[inline]
    pub(crate) fn next(&self) -> Option<S::Moment> {
        (self.pending > 0).then_some(self.next)
    }

    /// Lets time pass to `now` and appends the wakers of what fires to `fired`. What was new comes in any order, the rest in
    /// the order of the deadlines.
    #[inline]
    pub(crate) fn advance(&mut self, now: S::Moment, fired: &mut Vec<Waker>) {
        self.present = now;
        if self.next <= now {
            self.reach(now, fired);
        }
    }

    fn reach(&mut self, present: S::Moment, fired: &mut Vec<Waker>) {
        let now = self.scale.tick_at(present);
        self.place_new(present, fired);
        while let Some((slot, start)) = self.next_slot() {
            if start > now {
                break;
            }
            // The present first: the timers are placed anew in relation to it.
            self.now = self.now.max(start);
            self.move_down(slot, fired);
        }
        self.now = self.now.max(now);
        self.next = self.next_slot().map_or(S::NEVER, |(_, start)| self.scale.start_of(start));
    }

    /// Fires all timers, due or not.
    pub(crate) fn fire_all(&mut self, fired: &mut Vec<Waker>) {
        for entry in &mut self.entries {
            (entry.slot, entry.previous, entry.next) = (NOWHERE, None, None);
            fired.extend(entry.waker.take());
        }
        self.pending = 0;
        self.new = None;
        self.occupied.fill(0);
        self.first.fill(None);
    }

    /// How many timers have not fired.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// How many timers there are, fired ones that were not removed included.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        let free = std::iter::successors(self.free, |key| self.entries[key.index()].next_free);
        self.entries.len() - 1 - free.count()
    }

    /// The next slot that has timers, and its first tick.
    #[inline]
    fn next_slot(&self) -> Option<(Slot, u64)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let shift = SLOT_BITS * level as u32;
        let present = (self.now >> shift) & SLOT_MASK;
        // Counted from the present slot on; only the last level goes round.
        let ahead = u64::from(self.occupied[level].rotate_right(present as u32).trailing_zeros());
        let start = ((self.now >> shift) + ahead) << shift;
        Some((Slot::new(level, present + ahead), start))
    }

    /// Fires the new timers that are due, and gives the others their slots. What has no timer is in the list no longer.
    fn place_new(&mut self, present: S::Moment, fired: &mut Vec<Waker>) {
        let mut next = self.new.take();
        while let Some(key) = next {
            let deadline = self.entry(key).deadline;
            // Not rounded up where it is due, so that it goes now, and among the others that do in its order.
            let tick = if deadline <= present { self.scale.tick_at(deadline) } else { self.scale.tick_from(deadline) };
            self.entry(key).tick = tick;
            next = self.fire_or_place(key, fired);
        }
    }

    /// Fires or moves down every timer of a slot whose time has come.
    fn move_down(&mut self, slot: Slot, fired: &mut Vec<Waker>) {
        self.occupied[slot.level()] &= !slot.bit();
        let mut next = self.first[slot.index()].take();
        while let Some(key) = next {
            next = self.fire_or_place(key, fired);
        }
    }

    /// Fires a timer that was taken out of its slot, or puts it into another. Returns the one after it.
    #[inline]
    fn fire_or_place(&mut self, key: Key, fired: &mut Vec<Waker>) -> Link {
        let now = self.now;
        let entry = self.entry(key);
        let next = entry.next.take();
        (entry.slot, entry.previous) = (NOWHERE, None);
        if entry.waker.is_some() {
            if entry.tick <= now {
                fired.extend(entry.waker.take());
                self.pending -= 1;
            } else {
                let slot = place(now, entry.tick);
                self.link(key, slot);
            }
        }
        next
    }

    /// Puts a timer that is in no slot among the new ones.
    fn link_new(&mut self, key: Key) {
        let next = self.new.replace(key);
        let entry = self.entry(key);
        (entry.slot, entry.next) = (NEW, next);
    }

    /// Puts a timer that is in no slot into this one.
    fn link(&mut self, key: Key, slot: Slot) {
        self.occupied[slot.level()] |= slot.bit();
        let next = self.first[slot.index()].replace(key);
        let entry = self.entry(key);
        (entry.slot, entry.next) = (slot, next);
        if let Some(next) = next {
            self.entry(next).previous = Some(key);
        }
    }

    /// Takes a timer that is not new out of its slot.
    fn unlink(&mut self, key: Key) {
        let entry = self.entry(key);
        let (slot, previous, next) = (entry.slot, entry.previous.take(), entry.next.take());
        entry.slot = NOWHERE;
        if let Some(next) = next {
            self.entry(next).previous = previous;
        }
        if let Some(previous) = previous {
            self.entry(previous).next = next;
            return;
        }
        self.first[slot.index()] = next;
        if next.is_none() {
            self.occupied[slot.level()] &= !slot.bit();
        }
    }

    #[inline]
    fn entry(&mut self, key: Key) -> &mut Entry<S::Moment> {
        &mut self.entries[key.index()]
    }
}

impl<M> Entry<M> {
    /// An entry that has no timer; its deadline means nothing.
    fn vacant(deadline: M) -> Self {
        Self { deadline, tick: 0, waker: None, slot: NOWHERE, previous: None, next: None, next_free: None }
    }
}

impl Key {
    fn new(number: usize) -> Self {
        let number = u32::try_from(number).ok().and_then(NonZeroU32::new);
        Self(number.expect("fewer than 2^32 timers"))
    }

    #[inline]
    fn index(self) -> usize {
        self.0.get() as usize
    }
}

impl Slot {
    /// A slot of a level, counted from its first one on and, after the last, from there again.
    #[inline]
    fn new(level: usize, number: u64) -> Self {
        Self((level as u16) << SLOT_BITS | (number & SLOT_MASK) as u16)
    }

    #[inline]
    fn index(self) -> usize {
        usize::from(self.0)
    }

    #[inline]
    fn level(self) -> usize {
        self.index() >> SLOT_BITS
    }

    /// Its bit in the word of its level.
    #[inline]
    fn bit(self) -> u64 {
        1 << (u64::from(self.0) & SLOT_MASK)
    }
}

/// The slot of a tick to come.
#[inline]
fn place(now: u64, tick: u64) -> Slot {
    // The last slot before the wheel would go round is as far as it reaches.
    let tick = tick.min(now.saturating_add(SPAN - (SPAN >> SLOT_BITS)));
    let highest_difference = (u64::BITS - 1) - ((now ^ tick) | SLOT_MASK).leading_zeros();
    let level = ((highest_difference / SLOT_BITS) as usize).min(LEVELS - 1);
    Slot::new(level, tick >> (SLOT_BITS * level as u32))
}

#[cfg(test)]
mod tests {
    use super::model::Sixteen;
    use super::*;

    /// Else each read under a timeout would cost memory until the timeout is over.
    #[test]
    fn a_removed_timer_leaves_its_entry_to_the_next() {
        let (mut wheel, mut fired) = (Wheel::new(Sixteen, 0), Vec::new());
        for now in (0..16_000).step_by(16) {
            let placed = wheel.insert(now + 8_000, Waker::noop().clone());
            wheel.advance(now, &mut fired);
            let new = wheel.insert(now + 8_000, Waker::noop().clone());
            assert!(wheel.remove(placed).is_some() && wheel.remove(new).is_some());
            assert_eq!(wheel.next(), None, "nothing is pending, and the wheel waits");
        }
        assert_eq!((wheel.entries.len() - 1, wheel.len(), fired.len()), (2, 0, 0));
    }
}
