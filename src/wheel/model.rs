//! A model of the wheel, a `BTreeMap`, to hold it against: for the unit tests and the fuzz target `wheel`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};

use super::{Key, Scale, Wheel};

/// Runs `script`, ten bytes a step, against the model.
///
/// # Panics
/// Where the wheel does something else than the model.
#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "public to the fuzz targets"))]
pub fn run(script: &[u8]) {
    let mut world = World::new(script.len() as u64);
    for step in script.chunks_exact(10) {
        world.apply(Op::read(step));
    }
    world.end();
}

/// One step of a script.
enum Op {
    /// A timer so far away.
    Insert(u64),
    /// A timer at this moment: what is past, what is far beyond the wheel.
    InsertAt(u64),
    Remove(usize),
    /// Another deadline, so far away.
    Reset(usize, u64),
    /// Time passes by so much.
    Advance(u64),
    /// Time passes to what is next, or to one short of it.
    AdvanceToNext(u64),
}

impl Op {
    /// Reads ten bytes.
    fn read(step: &[u8]) -> Self {
        let which = usize::from(step[1]);
        let number = u64::from_le_bytes(step[2..].try_into().expect("eight bytes"));
        match step[0] % 8 {
            0..=2 => Self::Insert(distance(number)),
            3 => Self::Remove(which),
            4 => Self::Reset(which, distance(number)),
            5 => Self::InsertAt(number >> (16 + number % 44)),
            6 => Self::Advance(distance(number)),
            _ => Self::AdvanceToNext(number & 1),
        }
    }
}

/// Ticks of sixteen: deadlines lie on their edges, and between them.
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

struct World {
    wheel: Wheel<Sixteen>,
    now: u64,
    timers: Vec<Timer>,
    /// The pending timers' tokens by deadline.
    pending: BTreeMap<(u64, u64), ()>,
    next_token: u64,
}

struct Timer {
    key: Key,
    deadline: u64,
    token: Arc<Token>,
    fired: bool,
}

/// Tells one waker from another: each holds one, and waking notes when.
struct Token {
    number: u64,
    woken: AtomicU64,
}

impl Wake for Token {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

impl World {
    fn new(seed: u64) -> Self {
        // Not from tick 0 only: somewhere in the wheel's first rounds.
        let now = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
        Self { wheel: Wheel::new(Sixteen, now), now, timers: Vec::new(), pending: BTreeMap::new(), next_token: 0 }
    }

    fn apply(&mut self, op: Op) {
        let at = |distance| self.now.saturating_add(distance);
        match op {
            Op::Insert(distance) => self.insert(at(distance)),
            Op::InsertAt(deadline) => self.insert(deadline),
            Op::Remove(which) => self.remove(which),
            Op::Reset(which, distance) => self.reset(which, at(distance)),
            Op::Advance(distance) => self.advance(at(distance)),
            Op::AdvanceToNext(short) => {
                if let Some(next) = self.wheel.next() {
                    self.advance(next.saturating_sub(short).max(self.now));
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

    fn remove(&mut self, which: usize) {
        if self.timers.is_empty() {
            return;
        }
        let timer = self.timers.swap_remove(which % self.timers.len());
        let waker = self.wheel.remove(timer.key);
        assert_eq!(waker.is_none(), timer.fired, "a timer that has fired has no waker, and no other");
        self.pending.remove(&(timer.deadline, timer.token.number));
        drop(waker);
        assert_eq!(Arc::strong_count(&timer.token), 1, "a removed timer's waker is still somewhere");
    }

    fn reset(&mut self, which: usize, deadline: u64) {
        if self.timers.is_empty() {
            return;
        }
        let index = which % self.timers.len();
        let timer = &mut self.timers[index];
        if timer.fired {
            return;
        }
        self.wheel.reset(timer.key, deadline);
        self.pending.remove(&(timer.deadline, timer.token.number));
        self.pending.insert((deadline, timer.token.number), ());
        timer.deadline = deadline;
    }

    fn advance(&mut self, now: u64) {
        let mut fired = Vec::new();
        self.wheel.advance(now, &mut fired);
        self.now = now;
        fired.into_iter().for_each(Waker::wake);
        for timer in &mut self.timers {
            // Whichever way it went: up to the next tick it may wait, but not beyond.
            let due = timer.fired || timer.deadline.div_ceil(16) <= now / 16;
            let woken = timer.token.woken.load(Ordering::Relaxed);
            assert!(woken <= 1, "fired {woken} times");
            assert!(woken == 0 || timer.deadline <= now, "fired at {now}, before its deadline {}", timer.deadline);
            assert!(woken == 1 || !due, "not fired at {now}, its deadline was {}", timer.deadline);
            if woken == 1 && !timer.fired {
                timer.fired = true;
                self.pending.remove(&(timer.deadline, timer.token.number));
            }
        }
        self.check_rest();
    }

    fn check(&self) {
        assert_eq!(self.wheel.len(), self.timers.len());
        for timer in &self.timers {
            assert_eq!(self.wheel.has_fired(timer.key), timer.fired);
        }
        let next = self.wheel.next();
        match self.pending.first_key_value() {
            None => assert_eq!(next, None, "nothing is pending, and the wheel waits"),
            Some(((deadline, _), ())) => {
                let next = next.expect("something is pending, and the wheel does not wait");
                let end = deadline.div_ceil(16).saturating_mul(16);
                assert!(next <= end, "the wheel would sleep past {deadline} until {next}");
            }
        }
    }

    /// After it was told the time, the wheel has nothing more to do at that time: a worker that asks what is next would spin.
    fn check_rest(&self) {
        let next = self.wheel.next();
        assert!(
            next.is_none_or(|next| next > self.now),
            "the wheel has still something to do at {}: {next:?}",
            self.now
        );
    }

    fn end(mut self) {
        let mut left = Vec::new();
        self.wheel.fire_all(&mut left);
        assert_eq!(left.len(), self.pending.len(), "all wakers are handed out that were not");
        drop(left);
        assert_eq!(self.wheel.next(), None, "nothing is pending any more");
        for timer in &self.timers {
            assert_eq!(Arc::strong_count(&timer.token), 1, "a waker was left behind");
            assert!(self.wheel.remove(timer.key).is_none(), "the waker was handed out already");
        }
        assert_eq!(self.wheel.len(), 0);
    }
}

/// Distances at every level and across their edges, and beyond the last.
fn distance(number: u64) -> u64 {
    let bits = (number >> 58) % 40;
    let near_edge = (number >> 56) & 1 == 1;
    let random = number & ((1 << bits) - 1);
    if near_edge { (1 << bits) + (number & 3) - 2.min(1 << bits) } else { random }
}

#[cfg(test)]
mod tests {
    /// Random scripts; the fuzz target finds those that are less likely.
    #[test]
    fn a_wheel_does_what_the_model_does() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..600 {
            let script: Vec<u8> = std::iter::repeat_with(|| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random >> 32) as u8
            })
            .take(10 * 150 + round % 10)
            .collect();
            super::run(&script);
        }
    }
}
