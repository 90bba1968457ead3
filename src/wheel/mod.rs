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
//!    deadline. Most timers are bounds on something that comes in time, and go again without ever having been placed.
//! 2. When something is due ([`Wheel::advance`]), the new timers are placed, each at the lowest level at which its deadline
//!    and the present are in the same round: the level of the highest bit in which they differ. So what is at a level comes
//!    before everything at the levels above.
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

use std::num::NonZeroU32;
use std::task::Waker;

use slab::Slab;

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
    /// The first of the new timers.
    new: Link,
    /// For each level, a bit for each slot that has timers.
    occupied: [u64; LEVELS],
    /// The first timer of each slot, level after level.
    first: [Link; LEVELS * SLOTS],
    timers: Slab<Timer<S::Moment>>,
}

/// A timer in the same slot, or none.
type Link = Option<Key>;

/// A timer of one wheel: valid until it is removed. One more than its place in the slab, so that a [`Link`] is as small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(NonZeroU32);

struct Timer<M> {
    deadline: M,
    /// Its deadline as a tick, once it has been placed.
    tick: u64,
    /// `None` once the timer has fired.
    waker: Option<Waker>,
    /// The timer before it in its slot; `None` for the first, and once it has fired.
    previous: Link,
    next: Link,
    slot: Slot,
}

/// A slot of some level: `level * SLOTS + slot`; or where new timers are.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot(u16);

const NEW: Slot = Slot(u16::MAX);

impl<S: Scale> Wheel<S> {
    /// A wheel whose present is `now`.
    pub(crate) fn new(scale: S, present: S::Moment) -> Self {
        let now = scale.tick_at(present);
        Self {
            scale,
            present,
            now,
            next: S::NEVER,
            new: None,
            occupied: [0; LEVELS],
            first: [None; LEVELS * SLOTS],
            timers: Slab::new(),
        }
    }

    /// Adds a timer that fires at `deadline`, or when time next goes on if that is past.
    ///
    /// # Panics
    /// With 2^32 timers in one wheel.
    #[inline]
    pub(crate) fn insert(&mut self, deadline: S::Moment, waker: Waker) -> Key {
        self.next = self.next.min(deadline);
        let next = self.new;
        let timer = Timer { deadline, tick: 0, waker: Some(waker), previous: None, next, slot: NEW };
        let key = Key::new(self.timers.insert(timer));
        self.new = Some(key);
        if let Some(next) = next {
            self.timer(next).previous = Some(key);
        }
        key
    }

    /// Removes a timer, fired or not. Returns its waker if it has not fired.
    #[inline]
    pub(crate) fn remove(&mut self, key: Key) -> Option<Waker> {
        let timer = self.timers.remove(key.index());
        if timer.waker.is_some() {
            self.unlink(timer.slot, timer.previous, timer.next);
        }
        timer.waker
    }

    /// Moves a timer that has not fired to another deadline.
    pub(crate) fn reset(&mut self, key: Key, deadline: S::Moment) {
        let timer = self.timer(key);
        debug_assert!(timer.waker.is_some(), "a timer that has fired has no waker");
        timer.deadline = deadline;
        let (slot, previous, next) = (timer.slot, timer.previous, timer.next);
        self.unlink(slot, previous, next);
        self.link(key, NEW);
        self.next = self.next.min(deadline);
    }

    /// Whether a timer has fired.
    pub(crate) fn has_fired(&self, key: Key) -> bool {
        self.timers[key.index()].waker.is_none()
    }

    /// The waker that a timer will hand out, or `None` if it has.
    pub(crate) fn waker(&mut self, key: Key) -> Option<&mut Waker> {
        self.timer(key).waker.as_mut()
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
        let pending = self.new.is_some() || self.occupied.iter().any(|slots| *slots != 0);
        pending.then_some(self.next)
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
        fired.extend(self.timers.iter_mut().filter_map(|(_, timer)| timer.waker.take()));
        self.new = None;
        self.occupied.fill(0);
        self.first.fill(None);
    }

    /// How many timers there are, fired ones that were not removed included.
    pub(crate) fn len(&self) -> usize {
        self.timers.len()
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

    /// Fires the new timers that are due, and gives the others their slots.
    fn place_new(&mut self, present: S::Moment, fired: &mut Vec<Waker>) {
        let mut next = self.new.take();
        while let Some(key) = next {
            let deadline = self.timer(key).deadline;
            // Not rounded up where it is due, so that it goes now, and among the others that do in its order.
            let tick = if deadline <= present { self.scale.tick_at(deadline) } else { self.scale.tick_from(deadline) };
            self.timer(key).tick = tick;
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
        let timer = self.timer(key);
        let next = timer.next.take();
        timer.previous = None;
        if timer.tick <= now {
            fired.extend(timer.waker.take());
        } else {
            let slot = place(now, timer.tick);
            self.link(key, slot);
        }
        next
    }

    /// Puts a timer that is in no slot into this one.
    fn link(&mut self, key: Key, slot: Slot) {
        let first = if slot == NEW {
            &mut self.new
        } else {
            self.occupied[slot.level()] |= slot.bit();
            &mut self.first[slot.index()]
        };
        let next = first.replace(key);
        let timer = self.timer(key);
        (timer.slot, timer.previous, timer.next) = (slot, None, next);
        if let Some(next) = next {
            self.timer(next).previous = Some(key);
        }
    }

    /// Takes a timer with these neighbours out of its slot.
    #[inline]
    fn unlink(&mut self, slot: Slot, previous: Link, next: Link) {
        if let Some(next) = next {
            self.timer(next).previous = previous;
        }
        if let Some(previous) = previous {
            self.timer(previous).next = next;
            return;
        }
        if slot == NEW {
            self.new = next;
            return;
        }
        self.first[slot.index()] = next;
        if next.is_none() {
            self.occupied[slot.level()] &= !slot.bit();
        }
    }

    #[inline]
    fn timer(&mut self, key: Key) -> &mut Timer<S::Moment> {
        &mut self.timers[key.index()]
    }
}

impl Key {
    #[inline]
    fn new(index: usize) -> Self {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("fewer than 2^32 timers"))
    }

    #[inline]
    fn index(self) -> usize {
        self.0.get() as usize - 1
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
