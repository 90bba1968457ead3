//! A worker's timers: its wheel, behind a lock, and the clock it is turned by.
//!
//! 1. A [`Sleep`](super::Sleep) that must wait arms a timer with the worker that polls it ([`Timers::arm`]).
//! 2. The worker asks how long it may block ([`Timers::next_deadline`]), and after each wait lets the wheel go on
//!    ([`Timers::fire`]), which wakes what is due.
//! 3. When the worker ends ([`Timers::close`]), whoever waits is woken, and arms anew where it is polled then.
//!
//! # Never early
//! The wheel counts ticks of 2^16 ns from the worker's start ([`Ticks`]). Deadlines are rounded up to a tick, the present
//! down: a timer is due at its deadline or up to 65 µs after.
//!
//! # The race
//! A `Sleep` that has moved to another thread may be reset there to an earlier deadline while the worker blocks until the
//! later one. So whoever resets a timer from elsewhere rings the worker.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;

use super::clock::{self, Clock, Instant};
use crate::sync::wake_all;
use crate::wheel::{Key, Scale, Wheel};

const TICK_BITS: u32 = 16;
/// In nanoseconds.
const TICK: u64 = 1 << TICK_BITS;

/// The timers of one worker.
pub(crate) struct Timers {
    inner: Mutex<Inner>,
}

struct Inner {
    wheel: Wheel<Ticks>,
    /// Ends the worker's block, from any thread. `None` once the worker has ended: all timers have fired then, due or not,
    /// and the descriptor behind it is not kept open for sleeps that live on.
    ring: Option<Waker>,
}

/// Ticks of 2^16 ns since the worker's start.
struct Ticks {
    origin: Instant,
}

/// What became of a timer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Pending,
    Fired,
    /// Its worker has ended.
    Closed,
}

impl Timers {
    pub(crate) fn new(ring: Waker, origin: Instant) -> Arc<Self> {
        let wheel = Wheel::new(Ticks { origin }, origin);
        Arc::new(Self { inner: Mutex::new(Inner { wheel, ring: Some(ring) }) })
    }

    /// The timers of the worker on this thread.
    pub(super) fn current() -> Option<Arc<Self>> {
        // No borrow flag to look at: nothing comes between.
        CURRENT.with(|current| {
            let timers = current.take();
            current.set(timers.clone());
            timers
        })
    }

    /// Arms a timer. `None` if its deadline has passed, as far as the worker knows. The worker is the one on this thread.
    #[inline]
    pub(super) fn arm(&self, deadline: Instant, waker: Waker) -> Option<Key> {
        let mut inner = self.inner.lock();
        debug_assert!(inner.ring.is_some(), "a worker that has ended polls nothing");
        // If it has, the waker is dropped after the lock: parameters go last.
        if inner.wheel.has_passed(deadline) {
            return None;
        }
        Some(inner.wheel.insert(deadline, waker))
    }

    /// How a timer stands; while it is pending, `waker` is the one that it will wake.
    pub(super) fn poll(&self, key: Key, waker: &Waker) -> Status {
        let mut inner = self.inner.lock();
        let status = inner.status(key);
        if status != Status::Pending || inner.wheel.waker(key).is_some_and(|known| known.will_wake(waker)) {
            return status;
        }
        // Cloning is foreign code, so not under the lock; meanwhile the timer may fire.
        drop(inner);
        let waker = waker.clone();
        let mut inner = self.inner.lock();
        let status = inner.status(key);
        let replaced = match status {
            Status::Pending => inner.wheel.waker(key).map(|known| std::mem::replace(known, waker)),
            _ => Some(waker),
        };
        drop(inner);
        drop(replaced);
        status
    }

    /// Moves a pending timer; `false` if it is not pending.
    pub(super) fn reset(&self, key: Key, deadline: Instant) -> bool {
        let mut inner = self.inner.lock();
        let is_pending = inner.status(key) == Status::Pending;
        if !is_pending {
            return false;
        }
        inner.wheel.reset(key, deadline);
        let ring = if self.is_here() { None } else { inner.ring.clone() };
        drop(inner);
        if let Some(ring) = ring {
            ring.wake();
        }
        true
    }

    /// Takes a timer away.
    #[inline(never)]
    pub(super) fn disarm(&self, key: Key) {
        let mut inner = self.inner.lock();
        let removed = inner.wheel.remove(key);
        drop(inner);
        drop(removed);
    }

    /// How many timers have not fired.
    pub(crate) fn pending(&self) -> usize {
        self.inner.lock().wheel.pending()
    }

    /// The next moment at which there is something to do.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.inner.lock().wheel.next()
    }

    /// Wakes what is due; `wakers` is empty, and is again afterwards.
    #[inline]
    pub(crate) fn fire(&self, wakers: &mut Vec<Waker>) {
        let mut inner = self.inner.lock();
        if inner.wheel.next().is_none() {
            return;
        }
        inner.wheel.advance(Instant::now(), wakers);
        drop(inner);
        wake_all(wakers);
    }

    /// Ends the worker's timers and wakes whoever waits for them.
    pub(crate) fn close(&self) {
        // A waker that polls where it is woken is to find no timers here any more.
        if self.is_here() {
            drop(CURRENT.with(|current| current.take()));
        }
        let mut wakers = Vec::new();
        let mut inner = self.inner.lock();
        let ring = inner.ring.take();
        inner.wheel.fire_all(&mut wakers);
        drop(inner);
        drop(ring);
        wake_all(&mut wakers);
    }

    fn is_here(&self) -> bool {
        Self::current().is_some_and(|timers| std::ptr::eq(&raw const *timers, self))
    }
}

impl Scale for Ticks {
    type Moment = Instant;

    const NEVER: Instant = Instant::NEVER;

    fn tick_at(&self, instant: Instant) -> u64 {
        instant.nanos_since(self.origin) >> TICK_BITS
    }

    fn tick_from(&self, instant: Instant) -> u64 {
        instant.nanos_since(self.origin).saturating_add(TICK - 1) >> TICK_BITS
    }

    fn start_of(&self, tick: u64) -> Instant {
        self.origin.nanos_later(tick.saturating_mul(TICK))
    }
}

impl Inner {
    fn status(&self, key: Key) -> Status {
        if self.ring.is_none() {
            Status::Closed
        } else if self.wheel.has_fired(key) {
            Status::Fired
        } else {
            Status::Pending
        }
    }
}

thread_local! {
    /// Without a destructor, so that a runtime may be dropped by another thread-local's; [`Entered`] leaves it empty.
    static CURRENT: ManuallyDrop<Cell<Option<Arc<Timers>>>> = const { ManuallyDrop::new(Cell::new(None)) };
}

/// Whether there are timers on this thread.
pub(crate) fn is_entered() -> bool {
    Timers::current().is_some()
}

/// While this lives, timers polled on this thread are armed here.
pub(crate) struct Entered {
    timers: Option<Arc<Timers>>,
    clock: Clock,
}

/// Makes `timers` and `clock` those of this thread.
pub(crate) fn enter(timers: Arc<Timers>, clock: Clock) -> Entered {
    let timers = CURRENT.with(|current| current.replace(Some(timers)));
    Entered { timers, clock: clock::replace(clock) }
}

impl Drop for Entered {
    fn drop(&mut self) {
        clock::replace(self.clock);
        let ours = CURRENT.with(|current| current.replace(self.timers.take()));
        drop(ours);
    }
}
