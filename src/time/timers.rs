//! Timers: the wheel of one worker, behind a lock.
//!
//! 1. A [`Sleep`](super::Sleep) that has to wait arms a timer with the timers of the thread that polls it
//!    ([`Timers::arm`]).
//! 2. The worker asks until when it may block ([`Timers::prepare_block`]). After each wait it advances the wheel
//!    ([`Timers::fire`]), which wakes what is due.
//! 3. When the worker ends ([`Timers::close`]), all waiting tasks are woken. Each arms its sleep anew, with the timers
//!    of the thread that then polls it.
//! 4. When a current-thread runtime leaves `block_on`, no thread advances its wheel ([`Timers::stop`]). All waiting
//!    tasks are woken then too. A task that another runtime runs moves its timer to that runtime. The other timers
//!    stay.
//!
//! # Memory
//! A timer keeps its place in the wheel, so the wheel cannot shrink. When a worker, or a call beside it, is about to
//! block and the worker's wheel has far more memory than it needs, the wheel is replaced by an empty one
//! ([`Timers::shrink`]), and all waiting tasks are woken. Each arms its sleep anew, as at 3. A key has the generation
//! of its wheel, so an old key finds no timer.
//!
//! # Beside workers
//! A `block_on` call beside the workers has timers of its own, and forwards its sleeps to those of one worker
//! ([`Timers::forward`]): a foreign executor may block the thread of the call, which could then fire no timer. The
//! call's own timers serve once that worker has ended.
//!
//! # Never early
//! The wheel counts ticks of 2^16 ns from the worker's start ([`Ticks`]). Its deadlines are rounded up to a tick, and
//! the present is rounded down. A timer fires at its deadline or up to 65 µs after.
//!
//! # The race
//! Another thread may arm or reset a timer here while the worker blocks until a later deadline. So the worker notes
//! under the lock until when it blocks. A thread that sets an earlier deadline unparks the worker.

use std::num::NonZeroUsize;
use std::ptr;
use std::sync::{Arc, Weak};
use std::task::Waker;

use parking_lot::{Mutex, MutexGuard};

use super::clock::{self, Clock, Instant};
use crate::budget;
use crate::current::{self, Current};
use crate::sync::wake_all;
use crate::wheel::{Key, Scale, Wheel};

const TICK_BITS: u32 = 16;
/// In nanoseconds.
const TICK: u64 = 1 << TICK_BITS;

/// How many timers are shown under the lock at a time.
const VISITED: usize = 512;

/// The timers of one worker.
pub(crate) struct Timers {
    inner: Mutex<Inner>,
    /// The timers of a worker, to which these forward sleeps while that worker lives. Dangling unless these belong to a
    /// `block_on` call beside the workers.
    worker: Weak<Timers>,
}

struct Inner {
    wheel: Wheel<Ticks>,
    /// Tells this wheel from those that it has replaced.
    generation: u32,
    /// The deadline that ends the worker's block, or its spinning. [`Instant::MIN`] while the worker runs tasks,
    /// [`Instant::NEVER`] if no timer is armed.
    blocked_until: Instant,
    /// Ends the worker's block, from any thread. `None` once the worker has ended: a sleep that lives on keeps these
    /// timers, and must not keep the unparker's descriptor open.
    unparker: Option<Waker>,
}

/// Ticks of 2^16 ns since the worker's start.
struct Ticks {
    origin: Instant,
}

/// A timer of one worker.
#[derive(Clone, Copy)]
pub(super) struct TimerKey {
    key: Key,
    generation: u32,
}

/// The timers that have fired together.
pub(crate) struct Fired {
    /// Never 0, so that an `Option` of this is returned in registers.
    pub(crate) count: NonZeroUsize,
    /// For how many nanoseconds the earliest of them has been due.
    pub(crate) lateness: u64,
}

/// The state of a timer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Pending,
    Fired,
    /// Its wheel has ended.
    Closed,
}

impl Timers {
    /// The timers of a worker. If `worker` is not dangling, the timers of a `block_on` call beside that worker.
    pub(crate) fn new(unparker: Waker, origin: Instant, worker: Weak<Self>) -> Arc<Self> {
        let mut wheel = Wheel::new(Ticks { origin }, origin);
        if worker.strong_count() > 0 {
            // An ended wheel refuses every timer, so that each sleep comes to `forward`. So `arm` needs no check of
            // its own for that.
            wheel.fire_all(&mut Vec::new());
        }
        let inner = Inner { wheel, generation: 0, blocked_until: Instant::MIN, unparker: Some(unparker) };
        Arc::new(Self { inner: Mutex::new(inner), worker })
    }

    /// The timers that a thread's sleeps are armed with.
    pub(super) fn current() -> Option<Arc<Self>> {
        Current::get(&CURRENT)
    }

    /// Returns the timers of the call's worker. If that worker has ended, or there is none, returns these timers, ready
    /// for use.
    pub(super) fn forward(self: Arc<Self>) -> Arc<Self> {
        if let Some(worker) = self.worker.upgrade().filter(|worker| worker.inner.lock().unparker.is_some()) {
            return worker;
        }
        let mut inner = self.inner.lock();
        if inner.wheel.has_ended() {
            debug_assert!(inner.unparker.is_some(), "no worker advances timers that were closed");
            inner.renew();
        }
        drop(inner);
        self
    }

    /// Arms a timer. Returns `None` if the wheel knows that the deadline has passed, or if the wheel has ended.
    // Costs a timer 5 instructions otherwise.
    #[inline]
    pub(super) fn arm(&self, deadline: Instant, waker: Waker) -> Option<TimerKey> {
        let mut inner = self.inner.lock();
        if inner.wheel.has_passed(deadline) {
            // The waker is dropped after the lock: parameters are dropped last.
            return None;
        }
        let key = TimerKey { key: inner.wheel.insert(deadline, waker), generation: inner.generation };
        if deadline < inner.blocked_until {
            self.unpark(inner);
        }
        Some(key)
    }

    /// Ends the block of the worker, which blocks beyond the earliest deadline. Until it blocks again, further early
    /// deadlines do not unpark it.
    fn unpark(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.blocked_until = Instant::MIN;
        let unparker = inner.unparker.clone();
        drop(inner);
        if let Some(unparker) = unparker {
            unparker.wake();
        }
    }

    /// The state of a timer. While it is pending, it wakes `waker` from now on.
    pub(super) fn poll(&self, key: TimerKey, waker: &Waker) -> Status {
        let mut inner = self.inner.lock();
        let status = inner.status(key);
        if status != Status::Pending || inner.wheel.waker(key.key).is_some_and(|known| known.will_wake(waker)) {
            return status;
        }
        // Cloning is foreign code, which must not run under the lock. Meanwhile the timer may fire.
        drop(inner);
        let waker = waker.clone();
        let mut inner = self.inner.lock();
        let status = inner.status(key);
        let replaced = match status {
            Status::Pending => inner.wheel.waker(key.key).map(|known| std::mem::replace(known, waker)),
            _ => Some(waker),
        };
        drop(inner);
        drop(replaced);
        status
    }

    /// Whether a sleep that is armed here stays when this thread polls it: the thread has no other timers to move it
    /// to.
    pub(super) fn are_current(&self) -> bool {
        let is_this = |timers: &Arc<Self>| ptr::eq(&raw const **timers, self) || ptr::eq(timers.worker.as_ptr(), self);
        Current::is_none_or(&CURRENT, is_this)
    }

    /// Moves a pending timer to another deadline. Returns `false` if it is not pending.
    pub(super) fn reset(&self, key: TimerKey, deadline: Instant) -> bool {
        let mut inner = self.inner.lock();
        let is_pending = inner.status(key) == Status::Pending;
        if is_pending {
            inner.wheel.reset(key.key, deadline);
            if deadline < inner.blocked_until {
                self.unpark(inner);
            }
        }
        is_pending
    }

    /// Removes a timer.
    pub(super) fn disarm(&self, key: TimerKey) {
        let mut inner = self.inner.lock();
        let removed = if key.generation == inner.generation { inner.wheel.remove(key.key) } else { None };
        drop(inner);
        drop(removed);
    }

    /// How many timers have not fired.
    pub(crate) fn pending(&self) -> usize {
        self.inner.lock().wheel.pending()
    }

    /// Shows the deadlines of the timers that have not fired, with the addresses in their wakers, some at a time. Those
    /// that come meanwhile may be left out. So this ends, however many come.
    pub(crate) fn visit(&self, mut visit: impl FnMut(Instant, usize)) {
        let end = self.inner.lock().wheel.entries();
        for from in (0..end).step_by(VISITED) {
            let inner = self.inner.lock();
            inner.wheel.visit(from..end.min(from + VISITED), |deadline, waker| visit(deadline, waker.data().addr()));
            // A worker that waits for the lock gets it before this thread takes it again.
            MutexGuard::unlock_fair(inner);
        }
    }

    /// The next moment at which a timer may fire.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.inner.lock().wheel.next()
    }

    /// As [`next_deadline`](Timers::next_deadline), for the worker, which is about to block until then. Another thread
    /// that arms an earlier timer unparks it. If the worker is stuck, the one that watches its reactor calls this: the
    /// unpark is an event of the watched reactor, and so ends the block of the watcher.
    pub(crate) fn prepare_block(&self) -> Option<Instant> {
        let mut inner = self.inner.lock();
        let next = inner.wheel.next();
        inner.blocked_until = next.unwrap_or(Instant::NEVER);
        next
    }

    /// Gives memory back that a spike has left, from a thread that is about to block. The timers of a `block_on` call
    /// beside the workers are armed at a worker. This does so for that worker's timers too: the worker may do little
    /// itself, and then comes to it late. The tasks of the timers that are left are to be woken: their wakers are
    /// appended to `wakers`.
    #[cold]
    pub(crate) fn shrink(&self, wakers: &mut Vec<Waker>) {
        let worker = self.worker.upgrade();
        for timers in worker.as_deref().into_iter().chain([self]) {
            let mut inner = timers.inner.lock();
            // The worker may have ended. Its wheel must not be renewed then.
            if inner.unparker.is_some() && inner.wheel.is_sparse() {
                inner.wheel.fire_all(wakers);
                inner.renew();
            }
        }
    }

    /// Wakes what is due. The worker is awake. `wakers` is empty, before and after.
    ///
    /// Returns what has fired, or `None` if no timer was due.
    pub(crate) fn fire(&self, wakers: &mut Vec<Waker>) -> Option<Fired> {
        let mut inner = self.inner.lock();
        inner.blocked_until = Instant::MIN;
        inner.wheel.next()?;
        let fired = inner.advance(wakers);
        drop(inner);
        budget::count_events(wakers.len());
        wake_all(wakers);
        fired
    }

    /// Wakes also what is due but is rounded up to a later tick. For a paused clock, which does not reach that tick by
    /// itself. It follows [`advance_to`](super::advance_to). `wakers` is empty, before and after.
    pub(super) fn fire_exact(&self, wakers: &mut Vec<Waker>) {
        let mut inner = self.inner.lock();
        inner.wheel.advance_exact(Instant::now(), wakers);
        drop(inner);
        budget::count_events(wakers.len());
        wake_all(wakers);
    }

    /// Fires the timers of a stuck worker, from the thread of another worker. Returns the same as
    /// [`fire`](Timers::fire).
    pub(crate) fn fire_stuck(&self, wakers: &mut Vec<Waker>) -> Option<Fired> {
        let mut inner = self.inner.lock();
        inner.wheel.next()?;
        // `blocked_until` stays: the stuck worker may have just finished its task, and be about to block.
        let fired = inner.advance(wakers);
        drop(inner);
        wake_all(wakers);
        fired
    }

    /// Wakes all tasks that wait for these timers, because the thread that advances the wheel leaves its `block_on`
    /// call. A task that another runtime runs moves its timer to that runtime.
    pub(crate) fn stop(&self) {
        let mut wakers = Vec::new();
        self.inner.lock().wheel.take_wakers(&mut wakers);
        wake_all(&mut wakers);
    }

    /// Ends the worker's timers, and wakes all tasks that wait for them.
    pub(crate) fn close(&self) {
        // A foreign waker may poll a sleep while it is woken below. That sleep must not be armed here.
        if Current::is_none_or(&CURRENT, |timers| ptr::eq(&raw const **timers, self)) {
            Current::clear(&CURRENT);
        }
        let mut wakers = Vec::new();
        let mut inner = self.inner.lock();
        let unparker = inner.unparker.take();
        inner.wheel.fire_all(&mut wakers);
        inner.generation = inner.generation.wrapping_add(1);
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
    /// Advances the wheel to the present. `wakers` is empty before.
    fn advance(&mut self, wakers: &mut Vec<Waker>) -> Option<Fired> {
        let now = clock::now_noted();
        let earliest = self.wheel.advance(now, wakers)?;
        // A timer whose waker was taken ([`Timers::stop`]) wakes no task.
        let count = NonZeroUsize::new(wakers.len()).unwrap_or(NonZeroUsize::MIN);
        Some(Fired { count, lateness: now.nanos_since(earliest) })
    }

    fn status(&self, TimerKey { key, generation }: TimerKey) -> Status {
        if generation != self.generation {
            Status::Closed
        } else if self.wheel.has_fired(key) {
            Status::Fired
        } else {
            Status::Pending
        }
    }

    /// Replaces a wheel that has ended by an empty one.
    #[cold]
    fn renew(&mut self) {
        let origin = Instant::now();
        self.wheel = Wheel::new(Ticks { origin }, origin);
        self.generation = self.generation.wrapping_add(1);
    }
}

thread_local! {
    /// The timers of this thread: they arm the sleeps that it polls, or forward them.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A spike of timers leaves little memory. The tasks of those that are left are woken, and their keys name no timer
    /// of the new wheel.
    #[test]
    fn spike_of_timers_leaves_little_memory() {
        let timers = Timers::new(Waker::noop().clone(), Instant::now(), Weak::new());
        let arm = || timers.arm(Instant::NEVER, Waker::noop().clone()).expect("a deadline in the future");
        let mut keys: Vec<_> = (0..100_000).map(|_| arm()).collect();
        let mut wakers = Vec::new();
        timers.shrink(&mut wakers);
        assert_eq!((wakers.len(), timers.pending()), (0, 100_000), "timers in use were given back");
        keys.drain(10..).for_each(|key| timers.disarm(key));
        timers.shrink(&mut wakers);
        assert_eq!((wakers.len(), timers.pending()), (10, 0), "the tasks of all timers that are left are woken");
        assert!(!timers.inner.lock().wheel.is_sparse(), "the new wheel has too much memory");
        let new = arm();
        for old in keys {
            assert!(timers.poll(old, Waker::noop()) == Status::Closed, "an old key found a timer");
            assert!(!timers.reset(old, Instant::now()), "an old key moved a timer");
            timers.disarm(old);
        }
        assert!(timers.poll(new, Waker::noop()) == Status::Pending, "an old key disarmed a timer");
    }

    /// A `block_on` call may give the memory of its worker's timers back after the worker has ended. The wheel must
    /// stay ended, or a timer that is armed there would never fire.
    #[test]
    fn ended_timers_are_never_renewed() {
        let worker = Timers::new(Waker::noop().clone(), Instant::now(), Weak::new());
        let call = Timers::new(Waker::noop().clone(), Instant::now(), Arc::downgrade(&worker));
        (0..10_000).for_each(|_| assert!(worker.arm(Instant::NEVER, Waker::noop().clone()).is_some()));
        worker.close();
        assert!(worker.inner.lock().wheel.is_sparse(), "the test needs memory to give back");
        let mut wakers = Vec::new();
        call.shrink(&mut wakers);
        assert!(wakers.is_empty() && worker.inner.lock().wheel.has_ended(), "no worker advances the new wheel");
    }
}
