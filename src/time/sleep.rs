//! [`Sleep`]: a future that is ready at its deadline.
//!
//! # Life of a `Sleep`
//! 1. A new `Sleep` is *unarmed*: it has a deadline and no timer.
//! 2. The first poll that has to wait arms a timer with the worker of the polling thread.
//! 3. Later polls ask that timer, and give it the waker of the polling task. A poll on the thread of another worker
//!    moves the timer to that worker. The worker that had it may belong to a current-thread runtime that no thread
//!    drives, and would never fire it.
//! 4. When the timer has fired, the `Sleep` is ready and unarmed again. When the timer's worker has ended, or
//!    has given the memory of a spike back, the `Sleep` is unarmed too, and continues at step 2 in the runtime that
//!    polls it next.
//! 5. Dropping the `Sleep` disarms the timer.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use super::Instant;
use super::timers::{Status, TimerKey, Timers, is_entered};
use crate::budget;

/// Waits for `duration`.
///
/// The future is never ready early. [The module](super) says how late it may be. A `duration` of zero is ready at once.
/// A `duration` of more than thirty years, such as `Duration::MAX`, counts as thirty years.
///
/// # Cancel safety
/// Safe. Dropping the future removes its timer.
///
/// # Panics
/// Polling the future panics if it has to wait outside a runtime. A future that has waited in a runtime which is still
/// there goes on waiting there: the next `block_on` call of a current-thread runtime ends that wait.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, Instant, sleep};
///
/// kittiwake::block_on(async {
///     let start = Instant::now();
///     sleep(Duration::from_millis(5)).await;
///     assert!(start.elapsed() >= Duration::from_millis(5));
/// });
/// ```
// A timeout costs 5.1 % more without this.
#[inline]
pub fn sleep(duration: Duration) -> Sleep {
    let state = State::Unarmed { ahead: !duration.is_zero() };
    Sleep { deadline: Instant::now().later(duration), state }
}

/// Waits until `deadline`.
///
/// The future is never ready early. [The module](super) says how late it may be. A `deadline` in the past is ready at
/// once.
///
/// # Cancel safety
/// Safe. Dropping the future removes its timer.
///
/// # Panics
/// Polling the future panics if it has to wait outside a runtime. A future that has waited in a runtime which is still
/// there goes on waiting there: the next `block_on` call of a current-thread runtime ends that wait.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, Instant, sleep_until};
///
/// kittiwake::block_on(async {
///     let deadline = Instant::now() + Duration::from_millis(5);
///     sleep_until(deadline).await;
///     assert!(Instant::now() >= deadline);
/// });
/// ```
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, state: State::Unarmed { ahead: false } }
}

/// The future of [`sleep`] and [`sleep_until`].
///
/// A `Sleep` may be polled again after it was ready. It is then ready again.
///
/// A `Sleep` may move between tasks and threads. Its timer is with the worker that last polled it, and wakes the task
/// that polled it last. If the runtime of that worker ends, the `Sleep` wakes its task, and waits on in the runtime
/// that polls it next.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: Instant,
    state: State,
}

enum State {
    /// The `Sleep` has no timer.
    ///
    /// `ahead` is true if [`sleep`] has just read the clock and the deadline was in the future. The next poll then arms
    /// a timer without reading the clock again. If the deadline has passed meanwhile, the timers find that out.
    Unarmed { ahead: bool },
    /// The `Sleep` has a timer.
    Armed(Armed),
}

/// A timer, which is disarmed when this is dropped.
struct Armed {
    timers: Arc<Timers>,
    key: TimerKey,
}

impl Sleep {
    /// Returns the moment at which the future is ready.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns whether the deadline has passed.
    pub fn is_elapsed(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Sets another deadline.
    ///
    /// A task that waits for this future goes on waiting, until the new deadline. If the new deadline is past, the task
    /// is woken after the worker's next look at its timers. A timer that has not fired is moved and not replaced.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
        match &self.state {
            State::Armed(armed) if armed.timers.reset(armed.key, deadline) => {}
            // There is no timer, or it has fired, or its worker has ended or is being shrunk. The next poll arms a new
            // one.
            _ => self.state = State::Unarmed { ahead: false },
        }
    }
}

impl Sleep {
    /// Has the timer wake `waker`, without reading the clock. Returns `false` if there is no timer, it has fired, or the
    /// next poll would move it: then the next poll is needed.
    #[cfg(feature = "hyper")]
    pub(crate) fn will_wake(&self, waker: &std::task::Waker) -> bool {
        let State::Armed(Armed { timers, key }) = &self.state else { return false };
        timers.poll(*key, waker) == Status::Pending && timers.are_current()
    }

    /// Polls on any thread. Outside a runtime, a timer is armed with the `last` timers that this sleep has used.
    /// Returns `None` if the sleep has to wait and no such timers live.
    pub(crate) fn poll_anywhere(&mut self, cx: &mut Context<'_>, last: &mut Weak<Timers>) -> Option<Poll<()>> {
        let poll = if is_entered() {
            Pin::new(&mut *self).poll(cx)
        } else if let Some(poll) = self.poll_known(cx) {
            poll
        } else {
            let timers = last.upgrade()?;
            match timers.arm(self.deadline, cx.waker().clone()) {
                Some(key) => {
                    self.state = State::Armed(Armed { timers, key });
                    Poll::Pending
                }
                None if self.is_elapsed() => Poll::Ready(()),
                // Their worker has ended.
                None => return None,
            }
        };
        if let State::Armed(armed) = &self.state {
            *last = Arc::downgrade(&armed.timers);
        }
        Some(poll)
    }

    /// Polls without arming a timer. Returns `None` if the future has to wait and has no timer that can wake its task.
    ///
    /// This function is not inlined, because the first poll of [`sleep`] does not need it.
    // A timer costs 0.5 % more without this.
    #[inline(never)]
    fn poll_known(&mut self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        if let State::Armed(armed) = &self.state {
            let status = armed.timers.poll(armed.key, cx.waker());
            let stays = status == Status::Pending && armed.timers.are_current();
            // A pending timer may be due already: its worker has not looked at it yet.
            if stays && !self.is_elapsed() {
                return Some(Poll::Pending);
            }
            self.state = State::Unarmed { ahead: false };
            if status == Status::Fired {
                return Some(budget::poll_spend_complete(cx));
            }
        }
        // Pending if there is no budget. The next poll comes here again: the state has no timer any more.
        self.is_elapsed().then(|| budget::poll_spend_by_time(cx))
    }
}

impl Future for Sleep {
    type Output = ();

    // A timer costs 12.9 % more without this.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !matches!(this.state, State::Unarmed { ahead: true }) {
            if let Some(poll) = this.poll_known(cx) {
                return poll;
            }
        }
        // The waker is cloned first. Then fewer values live across the calls below, and the code is shorter.
        let waker = cx.waker().clone();
        let Some(timers) = Timers::current() else { return poll_outside_runtime(this) };
        match timers.arm(this.deadline, waker) {
            Some(key) => {
                // The old state is `Unarmed` and has nothing to drop. `forget` saves the check.
                std::mem::forget(std::mem::replace(&mut this.state, State::Armed(Armed { timers, key })));
                Poll::Pending
            }
            None => poll_passed(this, timers, cx),
        }
    }
}

/// Goes on with a poll after `own`, the timers of this thread, refused to arm the sleep. Either the deadline has
/// passed, or this thread is in a `block_on` call beside the workers, whose timers forward each sleep to those of a
/// worker.
// A timer costs 0.5 % more without this.
#[inline(never)]
fn poll_passed(sleep: &mut Sleep, own: Arc<Timers>, cx: &mut Context<'_>) -> Poll<()> {
    sleep.state = State::Unarmed { ahead: false };
    while !sleep.is_elapsed() {
        // Each round asks `own` for the worker's timers anew: that worker may end before its timers have armed the
        // sleep.
        let timers = own.clone().forward();
        if let Some(key) = timers.arm(sleep.deadline, cx.waker().clone()) {
            sleep.state = State::Armed(Armed { timers, key });
            return Poll::Pending;
        }
    }
    budget::poll_spend_by_time(cx)
}

/// Polls on a thread that is in no runtime. Panics if the future has to wait.
fn poll_outside_runtime(sleep: &Sleep) -> Poll<()> {
    assert!(
        sleep.is_elapsed(),
        "a timer has to wait, and no kittiwake runtime is running on this thread; \
         use it inside kittiwake::block_on, or in a task spawned there"
    );
    Poll::Ready(())
}

impl Drop for Armed {
    // A timer costs 0.5 % more without this.
    #[inline]
    fn drop(&mut self) {
        self.timers.disarm(self.key);
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unarmed { .. } => "Unarmed",
            Self::Armed(_) => "Armed",
        })
    }
}
