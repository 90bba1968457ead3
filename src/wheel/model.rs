//! A model test of the wheel: it runs scripts of operations on a wheel and on a `BTreeMap`, and compares the two.
//!
//! The unit test of this module runs random scripts. The fuzz target `wheel` searches for scripts that fail.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};

use super::{Key, Scale, Wheel};

/// Runs `script` on the wheel and on the model, ten bytes a step. Ignores an incomplete last step.
///
/// # Panics
/// Panics if the wheel and the model differ.
#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "the fuzz targets call it"))]
pub fn run(script: &[u8]) {
    let mut world = World::new(script.len() as u64);
    for step in script.chunks_exact(10) {
        world.apply(Op::from_bytes(step));
    }
    world.finish();
}

/// One step of a script.
enum Op {
    /// Inserts a timer this far in the future.
    Insert(u64),
    /// Inserts a timer at this moment, which may be past or far beyond the last level.
    InsertAt(u64),
    /// Removes the timer of this index.
    Remove(usize),
    /// Resets the timer of this index to a deadline this far in the future.
    Reset(usize, u64),
    /// Advances time by this much.
    Advance(u64),
    /// Advances time by this much, and fires what is due without any rounding.
    AdvanceExact(u64),
    /// Advances time to this much before [`Wheel::next`]: 0 or 1.
    AdvanceToNext(u64),
}

impl Op {
    /// Decodes a step: one byte for the operation, one for the timer, eight for a number.
    fn from_bytes(step: &[u8]) -> Self {
        let index = usize::from(step[1]);
        let number = u64::from_le_bytes(step[2..].try_into().expect("eight bytes"));
        match step[0] % 8 {
            0..=2 => Self::Insert(distance(number)),
            3 => Self::Remove(index),
            4 => Self::Reset(index, distance(number)),
            5 => Self::InsertAt(number >> (16 + number % 44)),
            6 if step[0] & 8 == 0 => Self::Advance(distance(number)),
            6 => Self::AdvanceExact(distance(number)),
            _ => Self::AdvanceToNext(number & 1),
        }
    }
}

/// A scale of 16 moments to a tick, so that deadlines lie both on the edges of ticks and between them.
pub(super) struct Sixteen;

impl Scale for Sixteen {
    type Moment = u64;

    const NEVER: u64 = u64::MAX;

    fn tick_at(&self, moment: u64) -> u64 {
        moment / 16
    }

    fn tick_from(&self, moment: u64) -> u64 {
        moment.div_ceil(16)
    }

    fn start_of(&self, tick: u64) -> u64 {
        tick.saturating_mul(16)
    }
}

/// The wheel, its model, and the timers of both.
struct World {
    wheel: Wheel<Sixteen>,
    now: u64,
    timers: Vec<Timer>,
    /// The pending timers, by deadline and then by the number of their token.
    pending: BTreeMap<(u64, u64), ()>,
    next_token: u64,
}

struct Timer {
    key: Key,
    deadline: u64,
    token: Arc<Token>,
    fired: bool,
}

/// The waker of one timer. It counts how often it was woken.
struct Token {
    number: u64,
    /// The number of wakes.
    woken: AtomicU64,
}

impl Wake for Token {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

impl World {
    fn new(seed: u64) -> Self {
        // The wheel starts at a pseudo-random tick, so that slots of every level are reached at every offset.
        let now = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
        Self { wheel: Wheel::new(Sixteen, now), now, timers: Vec::new(), pending: BTreeMap::new(), next_token: 0 }
    }

    fn apply(&mut self, op: Op) {
        let at = |distance| self.now.saturating_add(distance);
        match op {
            Op::Insert(distance) => self.insert(at(distance)),
            Op::InsertAt(deadline) => self.insert(deadline),
            Op::Remove(index) => self.remove(index),
            Op::Reset(index, distance) => self.reset(index, at(distance)),
            Op::Advance(distance) => self.advance(at(distance), false),
            Op::AdvanceExact(distance) => self.advance(at(distance), true),
            Op::AdvanceToNext(short) => {
                if let Some(next) = self.wheel.next() {
                    self.advance(next.saturating_sub(short).max(self.now), false);
                }
            }
        }
        self.check();
    }

    fn token(&mut self) -> Arc<Token> {
        self.next_token += 1;
        Arc::new(Token { number: self.next_token, woken: AtomicU64::new(0) })
    }

    fn insert(&mut self, deadline: u64) {
        let token = self.token();
        if self.wheel.has_passed(deadline) {
            assert!(deadline <= self.now, "{deadline} has not passed at {}", self.now);
        }
        let key = self.wheel.insert(deadline, Waker::from(token.clone()));
        self.pending.insert((deadline, token.number), ());
        self.timers.push(Timer { key, deadline, token, fired: false });
    }

    fn remove(&mut self, index: usize) {
        if self.timers.is_empty() {
            return;
        }
        let timer = self.timers.swap_remove(index % self.timers.len());
        let waker = self.wheel.remove(timer.key);
        assert_eq!(waker.is_none(), timer.fired, "exactly the timers that have fired have no waker");
        self.pending.remove(&(timer.deadline, timer.token.number));
        drop(waker);
        assert_eq!(Arc::strong_count(&timer.token), 1, "the wheel still holds the waker of a removed timer");
    }

    fn reset(&mut self, index: usize, deadline: u64) {
        if self.timers.is_empty() {
            return;
        }
        let index = index % self.timers.len();
        let timer = &mut self.timers[index];
        if timer.fired {
            return;
        }
        self.wheel.reset(timer.key, deadline);
        self.pending.remove(&(timer.deadline, timer.token.number));
        self.pending.insert((deadline, timer.token.number), ());
        timer.deadline = deadline;
    }

    fn advance(&mut self, now: u64, is_exact: bool) {
        let mut fired = Vec::new();
        let earliest = self.wheel.advance(now, &mut fired);
        self.now = now;
        let mut deadlines = fired.iter().map(|waker| self.deadline_of(waker));
        assert!(deadlines.clone().is_sorted(), "timers fired in another order than that of their deadlines");
        assert_eq!(earliest, deadlines.next(), "the wheel must return the earliest deadline of the timers that fired");
        if is_exact {
            let mut rounded = Vec::new();
            self.wheel.advance_exact(now, &mut rounded);
            let deadlines = rounded.iter().map(|waker| self.deadline_of(waker));
            assert!(
                deadlines.is_sorted(),
                "timers that were rounded up fired in another order than that of their deadlines"
            );
            fired.append(&mut rounded);
        }
        fired.into_iter().for_each(Waker::wake);
        for timer in &mut self.timers {
            // A timer may fire from its deadline on. It must fire once the tick after its deadline begins, or at once if
            // the wheel was advanced exactly.
            let due = timer.fired || timer.deadline.div_ceil(16) <= now / 16 || is_exact && timer.deadline <= now;
            let woken = timer.token.woken.load(Ordering::Relaxed);
            assert!(woken <= 1, "fired {woken} times");
            assert!(woken == 0 || timer.deadline <= now, "fired at {now}, before its deadline {}", timer.deadline);
            assert!(woken == 1 || !due, "not fired at {now}, its deadline was {}", timer.deadline);
            if woken == 1 && !timer.fired {
                timer.fired = true;
                self.pending.remove(&(timer.deadline, timer.token.number));
            }
        }
        self.check_nothing_due();
    }

    fn deadline_of(&self, waker: &Waker) -> u64 {
        let is_its = |timer: &&Timer| ptr::eq(Arc::as_ptr(&timer.token).cast(), waker.data());
        self.timers.iter().find(is_its).expect("a timer of this wheel").deadline
    }

    fn check(&self) {
        assert_eq!(self.wheel.len(), self.timers.len());
        for timer in &self.timers {
            assert_eq!(self.wheel.has_fired(timer.key), timer.fired);
        }
        let next = self.wheel.next();
        match self.pending.first_key_value() {
            None => assert_eq!(next, None, "no timer is pending, but the wheel has a next moment"),
            Some(((deadline, _), ())) => {
                let next = next.expect("a timer is pending, so the wheel has a next moment");
                let end = deadline.div_ceil(16).saturating_mul(16);
                assert!(next <= end, "the wheel would sleep past {deadline} until {next}");
            }
        }
    }

    /// Checks that an advanced wheel has nothing left to do at the present: a worker would otherwise advance it for
    /// ever.
    fn check_nothing_due(&self) {
        let next = self.wheel.next();
        assert!(
            next.is_none_or(|next| next > self.now),
            "the wheel was advanced to {}, and its next moment is {next:?}",
            self.now
        );
    }

    /// Checks that `fire_all` returns every waker that was left, and that the wheel keeps none.
    fn finish(mut self) {
        let mut left = Vec::new();
        self.wheel.fire_all(&mut left);
        assert_eq!(left.len(), self.pending.len(), "fire_all returns the waker of every pending timer");
        drop(left);
        assert_eq!(self.wheel.next(), None, "no timer is pending after fire_all");
        for timer in &self.timers {
            assert_eq!(Arc::strong_count(&timer.token), 1, "the wheel still holds a waker");
            assert!(self.wheel.remove(timer.key).is_none(), "fire_all returned the waker already");
        }
        assert_eq!(self.wheel.len(), 0);
    }
}

/// Turns a number into a distance: at every level, at the edges of levels, and beyond the last level.
fn distance(number: u64) -> u64 {
    let bits = (number >> 58) % 40;
    let near_edge = (number >> 56) & 1 == 1;
    let random = number & ((1 << bits) - 1);
    if near_edge { (1 << bits) + (number & 3) - 2.min(1 << bits) } else { random }
}

#[cfg(test)]
mod tests {
    use crate::random_scripts::random_scripts;

    /// The wheel fires the timers that the model fires, at the same moments. The scripts are random; the fuzz target
    /// finds less likely ones.
    #[test]
    fn wheel_matches_model() {
        let lengths = (0..600).map(|round| 10 * 150 + round % 10);
        random_scripts(lengths).for_each(|script| super::run(&script));
    }
}
