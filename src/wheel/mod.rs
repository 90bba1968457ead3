//! A hierarchical timing wheel: it keeps timers in slots by how far away their deadlines are.
//!
//! The wheel is pure. The present is an argument of its methods; the wheel has no clock, no thread and no I/O. It
//! returns the wakers of expired timers to its caller. It never wakes or drops a waker itself.
//!
//! # Levels
//! Level 0 has a slot for each of the next 64 ticks. A slot of each further level spans the 64 slots of the level
//! below.
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
//! 1. A new timer is in no slot. [`Wheel::insert`] puts it on the list of new timers and notes its deadline if that is
//!    the earliest. Most timers bound an operation that finishes in time, so they are removed before they ever need a
//!    slot.
//! 2. A timer that is removed while it is new leaves its entry on the list. The next new timer takes that entry over.
//!    Neither step touches any other entry.
//! 3. When something is due, [`Wheel::advance`] empties the list and gives each new timer a slot. Each level stands for
//!    six bits of a tick. The highest bit in which the tick of the deadline and the present tick differ decides the
//!    level. So every timer of a level is due before every timer of the levels above.
//! 4. When time reaches the start of a slot, the timers of the slot move down. Those of level 0 fire.
//! 5. A deadline beyond the last level is parked in the farthest slot of that level. When time reaches that slot, the
//!    timer gets a new slot by its true deadline. So it is never lost, and it moves once in 51 days.
//! 6. A timer that has fired keeps its entry, without a waker, until its owner removes it. So a key is never stale.
//!
//! # Cost
//! Each level has a word with one bit for each slot that is not empty. By rule 3 the next slot is the first such bit of
//! the lowest level that has one. `fire_all`, `advance_exact`, `take_wakers` and `visit` may look at every entry.
//! `advance` moves each timer a bounded number of times, sorts those that fire, and then looks at the slot of the next
//! tick. All other methods are O(1).
//!
//! # Moments and ticks
//! Callers pass moments, and a [`Scale`] turns them into ticks. It rounds deadlines up and the present down, so no
//! timer fires early. `advance` compares the moment of a new timer with the present, so a timer that is due while it is
//! still new fires without any rounding. When timers fire, those of the next tick whose moments have passed fire with
//! them, so that none is overtaken. [`Wheel::advance_exact`] compares the moments of all timers, for a clock that
//! stands still.

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

use std::mem;
use std::num::NonZeroU32;
use std::ops::Range;
use std::task::Waker;

use crate::memory;

const LEVELS: usize = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_MASK: u64 = SLOTS as u64 - 1;

/// The number of ticks that the wheel spans. Deadlines farther away are parked.
const SPAN: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// The conversion between moments and ticks.
pub(crate) trait Scale {
    type Moment: Copy + Ord;

    /// The last moment. No deadline is later.
    const NEVER: Self::Moment;

    /// The last tick that begins at `moment` or before it.
    fn tick_at(&self, moment: Self::Moment) -> u64;

    /// The first tick that begins at `moment` or after it.
    fn tick_from(&self, moment: Self::Moment) -> u64;

    /// The moment at which `tick` begins.
    fn start_of(&self, tick: u64) -> Self::Moment;
}

/// Timers, and the moment up to which they have been advanced.
pub(crate) struct Wheel<S: Scale> {
    scale: S,
    /// The moment that [`new`](Wheel::new) or `advance` last received. `S::NEVER` once the wheel has ended.
    present: S::Moment,
    /// The tick up to which slots have been emptied. Every timer in a slot has a later tick.
    now: u64,
    /// No timer fires before this moment. Once the last timer is gone it stays as it was, which may be too early, until
    /// a timer comes. `S::NEVER` once the wheel has ended.
    next: S::Moment,
    /// The number of timers that have neither fired nor been removed.
    pending: usize,
    /// The head of the list of new timers. Some entries on the list are vacant: their timers were removed.
    new: Link,
    /// One word for each level, with one bit for each slot that has timers.
    occupied: [u64; LEVELS],
    /// The first timer of each slot, ordered by level and then by slot.
    first: [Link; LEVELS * SLOTS],
    /// The timers by key. Entry 0 is never used, because a [`Key`] is never 0.
    entries: Vec<Entry<S::Moment>>,
    /// The head of the list of vacant entries.
    free: Link,
    /// The timers that fire in this call of `advance`. Empty otherwise, and kept for its memory.
    due: Vec<Key>,
}

/// The next or previous entry of a list, or `None` at its end.
type Link = Option<Key>;

/// A timer of one wheel, valid until the timer is removed.
///
/// It is the index of the timer's entry, and never 0. So a [`Link`] needs no more space than a key: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(NonZeroU32);

/// A timer, or vacant space for one.
struct Entry<M> {
    deadline: M,
    /// The deadline as a tick. It is set when the timer gets its first slot.
    tick: u64,
    /// `None` once the timer has fired, and while the entry is vacant.
    waker: Option<Waker>,
    slot: Slot,
    /// The previous timer of the slot. `None` for the first timer of a slot, for new timers, and for unlinked entries.
    previous: Link,
    /// The next timer of the slot, or the next entry on the list of new timers.
    next: Link,
    /// The next vacant entry, while this entry is vacant.
    next_free: Link,
}

/// A slot of the wheel, as `level * SLOTS + slot`; or one of the markers [`NEW`] and [`UNLINKED`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot(u16);

/// The entry is on the list of new timers.
const NEW: Slot = Slot(u16::MAX);

/// The entry is in no slot and on no list of timers.
const UNLINKED: Slot = Slot(u16::MAX - 1);

impl<S: Scale> Wheel<S> {
    /// Creates an empty wheel whose present is `present`.
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
            due: Vec::new(),
        }
    }

    /// Adds a timer that fires at `deadline`.
    ///
    /// If `deadline` has passed, the timer fires in the next call of [`advance`](Wheel::advance).
    ///
    /// # Panics
    /// Panics if the wheel has 2^32 - 1 timers already.
    pub(crate) fn insert(&mut self, deadline: S::Moment, waker: Waker) -> Key {
        if deadline < self.next {
            self.next = deadline;
        }
        self.pending += 1;
        let key = self.free.unwrap_or_else(|| self.add_entry(deadline));
        let entry = self.entry(key);
        entry.deadline = deadline;
        // A vacant entry has no waker, so there is nothing to drop. `forget` saves the check.
        mem::forget(entry.waker.replace(waker));
        let (is_new, next_free) = (entry.slot == NEW, entry.next_free);
        self.free = next_free;
        if !is_new {
            self.link_new(key);
        }
        key
    }

    /// Adds an entry that is not on the list of vacant entries.
    // A timer costs 0.5 % more without this.
    #[cold]
    fn add_entry(&mut self, deadline: S::Moment) -> Key {
        let key = Key::new(self.entries.len());
        self.entries.push(Entry::vacant(deadline));
        key
    }

    /// Removes a timer, and returns its waker if the timer has not fired.
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

    /// Returns whether a timer has fired.
    pub(crate) fn has_fired(&self, key: Key) -> bool {
        self.entries[key.index()].waker.is_none()
    }

    /// The waker of a timer, or `None` if the timer has fired.
    pub(crate) fn waker(&mut self, key: Key) -> Option<&mut Waker> {
        self.entry(key).waker.as_mut()
    }

    /// Returns whether `deadline` has passed, as far as the wheel can tell without a clock.
    ///
    /// `false` may be wrong. A timer that is inserted nevertheless fires in the next call of
    /// [`advance`](Wheel::advance).
    pub(crate) fn has_passed(&self, deadline: S::Moment) -> bool {
        // The first comparison is false for most deadlines, and `insert` makes it anyway.
        deadline <= self.next && deadline <= self.present
    }

    /// The moment by which the caller should call [`advance`](Wheel::advance), or `None` if no timer is pending.
    ///
    /// No timer fires before this moment. It is not always the deadline of a timer: it may be the moment at which
    /// timers move down a level, or the deadline of a removed timer.
    pub(crate) fn next(&self) -> Option<S::Moment> {
        (self.pending > 0).then_some(self.next)
    }

    /// Advances the present to `now`, and appends the wakers of all timers that fire to `fired`.
    ///
    /// The wakers are in the order of the deadlines. Returns the earliest of these deadlines, or `None` if no timer
    /// fires.
    pub(crate) fn advance(&mut self, now: S::Moment, fired: &mut Vec<Waker>) -> Option<S::Moment> {
        // An ended wheel stays so.
        self.present = self.present.max(now);
        if self.next <= now { self.fire_due(now, fired) } else { None }
    }

    /// As [`advance`](Wheel::advance), and also fires the timers that are due at `now` although their ticks, which are
    /// rounded up, are not. For a clock that stands still at `now`.
    #[cold]
    pub(crate) fn advance_exact(&mut self, now: S::Moment, fired: &mut Vec<Waker>) {
        self.advance(now, fired);
        let end_of_tick = self.scale.start_of(self.scale.tick_from(now));
        if self.next().is_none_or(|next| next > end_of_tick) {
            return;
        }
        for number in 1..self.entries.len() {
            let entry = &self.entries[number];
            // New timers that are due have fired above.
            if entry.waker.is_some() && entry.deadline <= now {
                let key = Key::new(number);
                self.unlink(key);
                self.due.push(key);
            }
        }
        self.fire(fired);
    }

    /// Fires every timer that is due at `present`, and finds the next moment at which there is work to do. Returns the
    /// earliest deadline of these timers.
    fn fire_due(&mut self, present: S::Moment, fired: &mut Vec<Waker>) -> Option<S::Moment> {
        let now = self.scale.tick_at(present);
        self.place_new(present);
        while let Some((slot, start)) = self.next_slot() {
            if start > now {
                break;
            }
            // `now` moves first: `move_down` chooses the new slots relative to it.
            self.now = self.now.max(start);
            self.move_down(slot);
        }
        self.now = self.now.max(now);
        if !self.due.is_empty() {
            self.take_passed(present);
        }
        let earliest = self.fire(fired);
        self.next = self.next_slot().map_or(S::NEVER, |(_, start)| self.scale.start_of(start));
        earliest
    }

    /// Finds the timers of the next tick whose deadlines have passed already. A timer that was new may be due now by
    /// its exact deadline, and those with earlier ones fire before it.
    fn take_passed(&mut self, present: S::Moment) {
        let Some((slot, _)) = self.next_slot().filter(|(_, start)| *start == self.now + 1) else { return };
        let mut next = self.first[slot.index()];
        while let Some(key) = next {
            let entry = self.entry(key);
            next = entry.next;
            if entry.waker.is_some() && entry.deadline <= present {
                self.unlink(key);
                self.due.push(key);
            }
        }
    }

    /// Fires the timers that were found to be due, and returns the earliest of their deadlines.
    fn fire(&mut self, fired: &mut Vec<Waker>) -> Option<S::Moment> {
        let Self { due, entries, .. } = self;
        self.pending -= due.len();
        if due.len() > 1 {
            due.sort_by_key(|key| entries[key.index()].deadline);
        }
        let earliest = due.first().map(|key| entries[key.index()].deadline);
        fired.extend(due.drain(..).filter_map(|key| entries[key.index()].waker.take()));
        earliest
    }

    /// Fires all timers, whether they are due or not. This is the end of the wheel: it answers from now on that every
    /// deadline has passed.
    pub(crate) fn fire_all(&mut self, fired: &mut Vec<Waker>) {
        for entry in &mut self.entries {
            (entry.slot, entry.previous, entry.next) = (UNLINKED, None, None);
            fired.extend(entry.waker.take());
        }
        self.pending = 0;
        self.new = None;
        self.occupied.fill(0);
        self.first.fill(None);
        (self.present, self.next) = (S::NEVER, S::NEVER);
    }

    /// Moves the wakers of all pending timers to `wakers`. The timers stay, and wake no task until they get a
    /// [waker](Wheel::waker) again.
    pub(crate) fn take_wakers(&mut self, wakers: &mut Vec<Waker>) {
        let taken = self.entries.iter_mut().filter_map(|entry| entry.waker.as_mut());
        wakers.extend(taken.map(|waker| mem::replace(waker, Waker::noop().clone())));
    }

    /// Whether [`fire_all`](Wheel::fire_all) was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.present == S::NEVER
    }

    /// Whether the wheel has far more memory than its pending timers need.
    pub(crate) fn is_sparse(&self) -> bool {
        memory::is_sparse(self.pending, self.entries.capacity())
    }

    /// The number of timers that have neither fired nor been removed.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// Shows the timers of these entries that have not fired.
    pub(crate) fn visit(&self, entries: Range<usize>, mut visit: impl FnMut(S::Moment, &Waker)) {
        let end = self.entries.len().min(entries.end);
        for entry in self.entries.get(entries.start..end).unwrap_or_default() {
            if let Some(waker) = &entry.waker {
                visit(entry.deadline, waker);
            }
        }
    }

    /// The number of entries, with those that have no timer.
    pub(crate) fn entries(&self) -> usize {
        self.entries.len()
    }

    /// The number of timers that have not been removed, including those that have fired.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        let free = std::iter::successors(self.free, |key| self.entries[key.index()].next_free);
        self.entries.len() - 1 - free.count()
    }

    /// The next slot that has timers, and the first tick of that slot.
    fn next_slot(&self) -> Option<(Slot, u64)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let shift = SLOT_BITS * level as u32;
        let present = (self.now >> shift) & SLOT_MASK;
        // The rotation counts slots from the present one on. Only the last level wraps around: there, a slot before the
        // present one belongs to the next round.
        let ahead = u64::from(self.occupied[level].rotate_right(present as u32).trailing_zeros());
        let start = ((self.now >> shift) + ahead) << shift;
        Some((Slot::new(level, present + ahead), start))
    }

    /// Empties the list of new timers: it drops vacant entries from the list and gives each timer a slot, unless the
    /// timer is due.
    fn place_new(&mut self, present: S::Moment) {
        let mut next = self.new.take();
        while let Some(key) = next {
            let deadline = self.entry(key).deadline;
            // A timer that is due fires in this call. Rounded up, its deadline could lie after the present tick.
            self.entry(key).tick = if deadline <= present { self.now } else { self.scale.tick_from(deadline) };
            next = self.place(key);
        }
    }

    /// Finds the timers of a slot that are due, and moves the others of the slot down.
    fn move_down(&mut self, slot: Slot) {
        self.occupied[slot.level()] &= !slot.bit();
        let mut next = self.first[slot.index()].take();
        while let Some(key) = next {
            next = self.place(key);
        }
    }

    /// Notes that a timer is due, or else gives it a slot. Returns the next entry of its list.
    ///
    /// The caller has taken the whole list, so the entry's old links are stale. A vacant entry is only unlinked.
    fn place(&mut self, key: Key) -> Link {
        let now = self.now;
        let entry = self.entry(key);
        let next = entry.next.take();
        (entry.slot, entry.previous) = (UNLINKED, None);
        if entry.waker.is_some() {
            if entry.tick <= now {
                self.due.push(key);
            } else {
                let slot = slot_of(now, entry.tick);
                self.link(key, slot);
            }
        }
        next
    }

    /// Puts an unlinked entry on the list of new timers.
    fn link_new(&mut self, key: Key) {
        let next = self.new.replace(key);
        let entry = self.entry(key);
        (entry.slot, entry.next) = (NEW, next);
    }

    /// Puts an unlinked entry into `slot`.
    fn link(&mut self, key: Key, slot: Slot) {
        self.occupied[slot.level()] |= slot.bit();
        let next = self.first[slot.index()].replace(key);
        let entry = self.entry(key);
        (entry.slot, entry.next) = (slot, next);
        if let Some(next) = next {
            self.entry(next).previous = Some(key);
        }
    }

    /// Takes a timer out of its slot. The timer must not be new.
    fn unlink(&mut self, key: Key) {
        let entry = self.entry(key);
        let (slot, previous, next) = (entry.slot, entry.previous.take(), entry.next.take());
        entry.slot = UNLINKED;
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

    fn entry(&mut self, key: Key) -> &mut Entry<S::Moment> {
        &mut self.entries[key.index()]
    }
}

impl<M> Entry<M> {
    /// An entry without a timer. Its deadline has no meaning.
    fn vacant(deadline: M) -> Self {
        Self { deadline, tick: 0, waker: None, slot: UNLINKED, previous: None, next: None, next_free: None }
    }
}

impl Key {
    fn new(number: usize) -> Self {
        let number = u32::try_from(number).ok().and_then(NonZeroU32::new);
        Self(number.expect("fewer than 2^32 timers"))
    }

    fn index(self) -> usize {
        self.0.get() as usize
    }
}

impl Slot {
    /// Slot `number` of a level, modulo the number of slots.
    fn new(level: usize, number: u64) -> Self {
        Self((level as u16) << SLOT_BITS | (number & SLOT_MASK) as u16)
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }

    fn level(self) -> usize {
        self.index() >> SLOT_BITS
    }

    /// The bit of this slot in the word of its level.
    fn bit(self) -> u64 {
        1 << (u64::from(self.0) & SLOT_MASK)
    }
}

/// The slot for a timer of `tick`, which is later than `now`.
fn slot_of(now: u64, tick: u64) -> Slot {
    // A tick beyond the last level gets the farthest slot. The slot after that one is the present slot again, a whole
    // round ahead.
    let tick = tick.min(now.saturating_add(SPAN - (SPAN >> SLOT_BITS)));
    let highest_difference = (u64::BITS - 1) - ((now ^ tick) | SLOT_MASK).leading_zeros();
    let level = ((highest_difference / SLOT_BITS) as usize).min(LEVELS - 1);
    Slot::new(level, tick >> (SLOT_BITS * level as u32))
}

#[cfg(test)]
mod tests {
    use super::model::Sixteen;
    use super::*;

    /// A removed timer frees its entry for the next timer. Otherwise each read under a timeout would use memory until
    /// the timeout is over.
    #[test]
    fn removed_timer_frees_its_entry() {
        let (mut wheel, mut fired) = (Wheel::new(Sixteen, 0), Vec::new());
        for now in (0..16_000).step_by(16) {
            let in_slot = wheel.insert(now + 8_000, Waker::noop().clone());
            wheel.advance(now, &mut fired);
            let new = wheel.insert(now + 8_000, Waker::noop().clone());
            assert!(wheel.remove(in_slot).is_some() && wheel.remove(new).is_some());
            assert_eq!(wheel.next(), None, "no timer is pending, but the wheel has a next moment");
        }
        assert_eq!((wheel.entries.len() - 1, wheel.len(), fired.len()), (2, 0, 0));
    }
}
