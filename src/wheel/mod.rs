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
//! 1. A timer is at the lowest level at which its deadline and the present are in the same round: the level of the highest
//!    bit in which they differ. So what is at a level comes before everything at the levels above.
//! 2. When time reaches the start of a slot, its timers move down ([`Wheel::advance`]); those of level 0 fire.
//! 3. A deadline beyond the last level is parked in that level's farthest slot. When time reaches that, it is placed anew,
//!    by its true deadline: it is never lost, and moves once in 51 days.
//! 4. A timer that has fired keeps its entry, marked, until its owner removes it. So a key is never stale.
//!
//! Each level has a word with a bit for each slot that is not empty. By rule 1 the next event is the first such bit of the
//! lowest level that has one: O(1), as is everything else but `advance`, which does a bounded amount for each timer.
//!
//! Pure: the present is an argument, in ticks. No clock, no threads. Wakers are handed out, never woken or dropped here.

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

use std::mem;
use std::task::Waker;

use slab::Slab;

const LEVELS: usize = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_MASK: u64 = SLOTS as u64 - 1;

/// Ticks that the wheel spans; deadlines farther away are parked.
const SPAN: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// Timers, and the present as far as they know.
pub(crate) struct Wheel {
    /// The tick up to which everything has fired.
    now: u64,
    levels: [Level; LEVELS],
    timers: Slab<Timer>,
}

struct Level {
    /// A bit for each slot that has timers.
    occupied: u64,
    /// The first timer of each slot.
    first: [Link; SLOTS],
}

/// A timer in the same slot, or none.
type Link = Option<Key>;

/// A timer of one wheel: valid until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

struct Timer {
    deadline: u64,
    /// `None` once the timer has fired.
    waker: Option<Waker>,
    level: u8,
    slot: u8,
    /// The timer before it in its slot; `None` for the first, and once it has fired.
    previous: Link,
    next: Link,
}

impl Wheel {
    /// A wheel whose present is tick `now`.
    pub(crate) fn new(now: u64) -> Self {
        const EMPTY: Level = Level { occupied: 0, first: [None; SLOTS] };
        Self { now, levels: [EMPTY; LEVELS], timers: Slab::new() }
    }

    /// Adds a timer that fires at tick `deadline`, or at the next tick if that is past.
    ///
    /// # Panics
    /// With 2^32 timers in one wheel.
    pub(crate) fn insert(&mut self, deadline: u64, waker: Waker) -> Key {
        let timer = Timer { deadline, waker: Some(waker), level: 0, slot: 0, previous: None, next: None };
        let key = Key(u32::try_from(self.timers.insert(timer)).expect("fewer than 2^32 timers"));
        self.link(key);
        key
    }

    /// Removes a timer, fired or not. Returns its waker if it has not fired.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Waker> {
        self.unlink(key);
        self.timers.remove(key.0 as usize).waker
    }

    /// Moves a timer that has not fired to another deadline.
    pub(crate) fn reset(&mut self, key: Key, deadline: u64) {
        debug_assert!(!self.has_fired(key), "a timer that has fired has no waker");
        self.unlink(key);
        self.timer(key).deadline = deadline;
        self.link(key);
    }

    /// Whether a timer has fired.
    pub(crate) fn has_fired(&self, key: Key) -> bool {
        self.timers[key.0 as usize].waker.is_none()
    }

    /// The waker that a timer will hand out, or `None` if it has.
    pub(crate) fn waker(&mut self, key: Key) -> Option<&mut Waker> {
        self.timer(key).waker.as_mut()
    }

    /// The tick at which there is something to do: no timer fires before it. `None` without timers.
    ///
    /// For a timer of the next 64 ticks it is the deadline; for others it may be when they move down.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.next_slot().map(|(_, _, start)| start)
    }

    /// Lets time pass to tick `now` and appends the wakers of what fires to `fired`, in the order of their deadlines.
    pub(crate) fn advance(&mut self, now: u64, fired: &mut Vec<Waker>) {
        while let Some((level, slot, start)) = self.next_slot() {
            if start > now {
                break;
            }
            // The present first: the timers are placed anew in relation to it.
            self.now = self.now.max(start);
            self.empty(level, slot, fired);
        }
        self.now = self.now.max(now);
    }

    /// Removes all timers and appends the wakers of those that have not fired to `wakers`. Their keys become stale.
    pub(crate) fn clear(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.timers.drain().filter_map(|timer| timer.waker));
        *self = Self::new(self.now);
    }

    /// How many timers there are, fired ones that were not removed included.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        self.timers.len()
    }

    /// The level, the number and the first tick of the next slot that has timers.
    #[inline]
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let level = self.levels.iter().position(|level| level.occupied != 0)?;
        let shift = SLOT_BITS * level as u32;
        let present = (self.now >> shift) & SLOT_MASK;
        // Counted from the present slot on; only the last level goes round.
        let ahead = self.levels[level].occupied.rotate_right(present as u32).trailing_zeros();
        let start = ((self.now >> shift) + u64::from(ahead)) << shift;
        Some((level, (present as usize + ahead as usize) % SLOTS, start))
    }

    /// Fires or moves down every timer of a slot whose time has come.
    fn empty(&mut self, level: usize, slot: usize, fired: &mut Vec<Waker>) {
        let mut next = mem::take(&mut self.levels[level].first[slot]);
        self.levels[level].occupied &= !(1 << slot);
        while let Some(key) = next {
            let now = self.now;
            let timer = self.timer(key);
            (next, timer.next, timer.previous) = (timer.next, None, None);
            if timer.deadline <= now {
                fired.extend(timer.waker.take());
            } else {
                self.link(key);
            }
        }
    }

    /// Puts a timer into the slot of its deadline.
    #[inline]
    fn link(&mut self, key: Key) {
        let now = self.now;
        let timer = self.timer(key);
        let (level, slot) = place(now, timer.deadline);
        (timer.level, timer.slot) = (level as u8, slot as u8);
        let first = self.levels[level].first[slot].replace(key);
        self.levels[level].occupied |= 1 << slot;
        self.timer(key).next = first;
        if let Some(first) = first {
            self.timer(first).previous = Some(key);
        }
    }

    /// Takes a timer out of its slot, if it has not fired.
    #[inline]
    fn unlink(&mut self, key: Key) {
        let timer = self.timer(key);
        if timer.waker.is_none() {
            return;
        }
        let (level, slot) = (usize::from(timer.level), usize::from(timer.slot));
        let (previous, next) = (timer.previous.take(), timer.next.take());
        if let Some(next) = next {
            self.timer(next).previous = previous;
        }
        match previous {
            Some(previous) => self.timer(previous).next = next,
            None => {
                let level = &mut self.levels[level];
                level.first[slot] = next;
                if next.is_none() {
                    level.occupied &= !(1 << slot);
                }
            }
        }
    }

    #[inline]
    fn timer(&mut self, key: Key) -> &mut Timer {
        &mut self.timers[key.0 as usize]
    }
}

/// The level and the slot of a deadline.
#[inline]
fn place(now: u64, deadline: u64) -> (usize, usize) {
    // What is past fires at the next tick: the present one's slot will not come again for a whole round. And the last
    // slot before the wheel would go round is as far as it reaches.
    let farthest = now.saturating_add(SPAN - (SPAN >> SLOT_BITS));
    let deadline = deadline.clamp(now.saturating_add(1), farthest);
    let highest_difference = (u64::BITS - 1) - ((now ^ deadline) | SLOT_MASK).leading_zeros();
    let level = ((highest_difference / SLOT_BITS) as usize).min(LEVELS - 1);
    (level, ((deadline >> (SLOT_BITS * level as u32)) & SLOT_MASK) as usize)
}
