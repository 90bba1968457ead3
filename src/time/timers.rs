//! Timers: the wheel of one worker, behind a lock.
//!
//! 1. A [`Sleep`](super::Sleep) that has to wait arms a timer with the timers of the thread that polls it
//!    ([`Timers::arm`]).
//! 2. The worker asks until when it may block ([`Timers::prepare_block`]). After each wait it advances the wheel
//!    ([`Timers::fire`]), which wakes what is due.
//! 3. When the worker ends ([`Timers::close`]), all waiting tasks are woken. They arm anew where they are polled then.
//!    So it is when a current-thread runtime leaves `block_on` ([`Timers::stop`]).
//!
//! # Never early
//! The wheel counts ticks of 2^16 ns from the worker's start ([`Ticks`]). Deadlines are rounded up to a tick, the
//! present down. A timer fires at its deadline or up to 65 µs after.
//!
//! # The race
//! Another thread may reset a timer while the worker blocks until a later deadline: its task moved there with its
//! `Sleep`. So the worker notes under the lock until when it blocks, and the other thread unparks it if its deadline
//! comes earlier.

use std::sync::{Arc, Weak};
use std::task::Waker;

use parking_lot::{Mutex, MutexGuard};

use super::clock::{self, Clock, Instant};
use crate::current::{self, Current};
use crate::sync::wake_all;
use crate::wheel::{Key, Scale, Wheel};

const TICK_BITS: u32 = 16;
/// In nanoseconds.
const TICK: u64 = 1 << TICK_BITS;

/// The timers of one worker.
pub(crate) struct Timers {
    inner: Mutex<Inner>,
    /// Sleeps are armed there as long as that worker lives: these are of a `block_on` call beside it.
    beside: Weak<Timers>,
}

struct Inner {
    wheel: Wheel<Ticks>,
    /// When the worker's block ends by itself. [`Instant::MIN`] while the worker is awake, [`Instant::NEVER`] if only
    /// an event ends the block.
    blocked_until: Instant,
    /// Ends the worker's block, from any thread. `None` once the worker has ended. All timers have fired then, due or
    /// not. The descriptor behind it must not stay open for sleeps that live on.
    unparker: Option<Waker>,
}

/// Ticks of 2^16 ns since the worker's start.
struct Ticks {
    origin: Instant,
}

/// The state of a timer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Pending,
    Fired,
    /// Its worker has ended.
    Closed,
}

impl Timers {
    pub(crate) fn new(unparker: Waker, origin: Instant, beside: Weak<Self>) -> Arc<Self> {
        let mut wheel = Wheel::new(Ticks { origin }, origin);
        if beside.strong_count() > 0 {
            // It takes no timers, and tells every sleep so without a further question: see `Sleep`.
            wheel.fire_all(&mut Vec::new());
        }
        let inner = Inner { wheel, blocked_until: Instant::MIN, unparker: Some(unparker) };
        Arc::new(Self { inner: Mutex::new(inner), beside })
    }

    /// The timers that a thread's sleeps are armed with.
    pub(super) fn current() -> Option<Arc<Self>> {
        Current::get(&CURRENT)
    }

    /// The timers of the worker beside which these are. Once it has ended, these.
    #[cold]
    pub(super) fn in_service(self: Arc<Self>) -> Arc<Self> {
        if let Some(worker) = self.beside.upgrade().filter(|worker| worker.inner.lock().unparker.is_some()) {
            return worker;
        }
        let mut inner = self.inner.lock();
        if inner.wheel.has_ended() {
            let origin = Instant::now();
            inner.wheel = Wheel::new(Ticks { origin }, origin);
        }
        drop(inner);
        self
    }

    /// Arms a timer. `None` if its deadline has passed, as far as the worker knows.
    // Costs a timer 5 instructions otherwise.
    #[inline]
    pub(super) fn arm(&self, deadline: Instant, waker: Waker) -> Option<Key> {
        let mut inner = self.inner.lock();
        // If so, the waker is dropped after the lock: parameters are dropped last.
        if inner.wheel.has_passed(deadline) {
            return None;
        }
        let key = inner.wheel.insert(deadline, waker);
        if deadline < inner.blocked_until {
            self.unpark(inner);
        }
        Some(key)
    }

    /// Ends the block of the worker, for which a deadline has become earlier. The next earlier one need not, until the
    /// worker blocks again.
    #[cold]
    fn unpark(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.blocked_until = Instant::MIN;
        let unparker = inner.unparker.clone();
        drop(inner);
        if let Some(unparker) = unparker {
            unparker.wake();
        }
    }

    /// The state of a timer. While it is pending, it wakes `waker` from now on.
    pub(super) fn poll(&self, key: Key, waker: &Waker) -> Status {
        let mut inner = self.inner.lock();
        let status = inner.status(key);
        if status != Status::Pending || inner.wheel.waker(key).is_some_and(|known| known.will_wake(waker)) {
            return status;
        }
        // Cloning is foreign code, which must not run under the lock. Meanwhile the timer may fire.
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

    /// Whether sleeps that this thread polls are armed here. True, too, if they could be armed nowhere else.
    pub(super) fn are_current(&self) -> bool {
        let is_this = |timers: &Self| std::ptr::eq(timers, self) || std::ptr::eq(timers.beside.as_ptr(), self);
        Self::current().is_none_or(|timers| is_this(&timers))
    }

    /// Moves a pending timer to another deadline. Returns `false` if it is not pending.
    pub(super) fn reset(&self, key: Key, deadline: Instant) -> bool {
        let mut inner = self.inner.lock();
        let is_pending = inner.status(key) == Status::Pending;
        if is_pending {
            inner.wheel.reset(key, deadline);
            if deadline < inner.blocked_until {
                self.unpark(inner);
            }
        }
        is_pending
    }

    /// Removes a timer.
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

    /// The next moment at which a timer may fire.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.inner.lock().wheel.next()
    }

    /// As [`next_deadline`](Timers::next_deadline), for the worker, which is about to block until then. Another thread
    /// that arms an earlier timer unparks it.
    pub(crate) fn prepare_block(&self) -> Option<Instant> {
        let mut inner = self.inner.lock();
        let next = inner.wheel.next();
        inner.blocked_until = next.unwrap_or(Instant::NEVER);
        next
    }

    /// Wakes what is due. The worker is awake. `wakers` is empty, before and after.
    pub(crate) fn fire(&self, wakers: &mut Vec<Waker>) {
        let mut inner = self.inner.lock();
        inner.blocked_until = Instant::MIN;
        if inner.wheel.next().is_none() {
            return;
        }
        inner.wheel.advance(Instant::now(), wakers);
        drop(inner);
        wake_all(wakers);
    }

    /// As [`fire`](Timers::fire), for another worker, while this one is stuck in a task. Returns whether a timer was due.
    pub(crate) fn fire_stuck(&self, wakers: &mut Vec<Waker>) -> bool {
        let mut inner = self.inner.lock();
        // The worker may be about to block after all, so `blocked_until` stays.
        inner.wheel.advance(Instant::now(), wakers);
        drop(inner);
        let is_due = !wakers.is_empty();
        wake_all(wakers);
        is_due
    }

    /// The worker stops: it is a current-thread runtime's, between two calls. Wakes all tasks that wait for its timers, so
    /// that those which other runtimes run move them there.
    pub(crate) fn stop(&self) {
        let mut wakers = Vec::new();
        self.inner.lock().wheel.take_wakers(&mut wakers);
        wake_all(&mut wakers);
    }

    /// Ends the worker's timers, and wakes all tasks that wait for them.
    pub(crate) fn close(&self) {
        // A waker that polls where it is woken must find no timers here any more.
        Current::leave_if(&CURRENT, |timers| std::ptr::eq(&raw const **timers, self));
        let mut wakers = Vec::new();
        let mut inner = self.inner.lock();
        let unparker = inner.unparker.take();
        inner.wheel.fire_all(&mut wakers);
        drop(inner);
        drop(unparker);
        wake_all(&mut wakers);
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
        if self.unparker.is_none() {
            Status::Closed
        } else if self.wheel.has_fired(key) {
            Status::Fired
        } else {
            Status::Pending
        }
    }
}

thread_local! {
    /// The timers with which sleeps that are polled on this thread are armed.
    static CURRENT: Current<Arc<Timers>> = const { Current::none() };
}

/// Whether this thread has timers.
pub(crate) fn is_entered() -> bool {
    Timers::current().is_some()
}

/// A guard. While it lives, sleeps that are polled on this thread go by the timers and the clock that [`enter`] was
/// given.
pub(crate) struct Entered {
    _timers: current::Entered<Arc<Timers>>,
    clock: Clock,
}

/// Makes `timers` and `clock` those of this thread, until the guard is dropped.
pub(crate) fn enter(timers: Arc<Timers>, clock: Clock) -> Entered {
    Entered { _timers: Current::enter(&CURRENT, timers), clock: clock::replace(clock) }
}

impl Drop for Entered {
    fn drop(&mut self) {
        clock::replace(self.clock);
    }
}
