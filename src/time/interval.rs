//! [`Interval`]: ticks at a fixed period.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::Stream;

use super::{Instant, Sleep, sleep_until};

/// Creates an [`Interval`] that ticks every `period`. The first tick is due at once.
///
/// # Panics
/// Panics if `period` is zero.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, interval};
///
/// kittiwake::block_on(async {
///     let mut interval = interval(Duration::from_millis(2));
///     let first = interval.tick().await;
///     let second = interval.tick().await;
///     assert_eq!(second - first, Duration::from_millis(2));
/// });
/// ```
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    interval_at(Instant::now(), period)
}

/// Creates an [`Interval`] that ticks every `period`. The first tick is due at `start`.
///
/// # Panics
/// Panics if `period` is zero.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, Instant, interval_at};
///
/// kittiwake::block_on(async {
///     let start = Instant::now() + Duration::from_millis(2);
///     let mut interval = interval_at(start, Duration::from_millis(2));
///     assert_eq!(interval.tick().await, start);
/// });
/// ```
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval's period must not be zero");
    Interval { sleep: sleep_until(start), period, missed: MissedTickBehavior::Burst }
}

/// Ticks at a fixed period. [`interval`] and [`interval_at`] create it.
///
/// It is also a [`Stream`] of ticks that never ends.
#[derive(Debug)]
pub struct Interval {
    sleep: Sleep,
    period: Duration,
    missed: MissedTickBehavior,
}

/// How late a tick may be before [`MissedTickBehavior::Delay`] counts the next period from its return.
const LATE: Duration = Duration::from_millis(5);

/// How an [`Interval`] goes on after missed ticks.
///
/// A tick is late if [`tick`](Interval::tick) returns it after its due time. If the tick is late by more than a period,
/// the ticks that were due meanwhile are missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTickBehavior {
    /// Returns the missed ticks at once, one after the other, until the interval is on time again.
    #[default]
    Burst,
    /// Drops the missed ticks. After a tick that is late by more than 5 ms, or by more than a period if that is
    /// shorter, the next one is due a whole period after the call that returned it.
    Delay,
    /// Drops the missed ticks. The next tick is due at the first moment after now that is a whole number of periods
    /// after the late tick.
    Skip,
}

impl Interval {
    /// Waits for the next tick, and returns the moment at which it was due.
    ///
    /// # Cancel safety
    /// Safe. A tick is consumed only in the poll that returns it.
    ///
    /// # Panics
    /// Panics if it has to wait outside a runtime.
    ///
    /// # Examples
    /// See [`interval`].
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// Polls for the next tick, and returns the moment at which it was due.
    ///
    /// If the result is `Pending`, the interval wakes the waker of the last poll.
    ///
    /// # Panics
    /// Panics if it has to wait outside a runtime.
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        ready!(Pin::new(&mut self.sleep).poll(cx));
        let due = self.sleep.deadline();
        self.sleep.reset(self.next_after(due, Instant::now()));
        Poll::Ready(due)
    }

    /// When the next tick is due. The tick that was due at `due` is returned now, at `now`.
    fn next_after(&self, due: Instant, now: Instant) -> Instant {
        let on_time = due.later(self.period);
        match self.missed {
            MissedTickBehavior::Delay if now > on_time.min(due.later(LATE)) => now.later(self.period),
            MissedTickBehavior::Skip if now > on_time => {
                let into_period = (now - due).as_nanos() % self.period.as_nanos();
                // The remainder is smaller than the period, which is a `Duration`. So the remainder fits into one too.
                let into_period =
                    Duration::new((into_period / 1_000_000_000) as u64, (into_period % 1_000_000_000) as u32);
                now.later(self.period - into_period)
            }
            _ => on_time,
        }
    }

    /// Makes the next tick due a period from now. The ticks after it follow from there.
    pub fn reset(&mut self) {
        self.reset_after(self.period);
    }

    /// Makes the next tick due now. The ticks after it follow from there.
    pub fn reset_immediately(&mut self) {
        self.reset_at(Instant::now());
    }

    /// Makes the next tick due after `duration`, which need not be the period. The ticks after it follow from there.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::time::{Duration, Instant, interval};
    ///
    /// kittiwake::block_on(async {
    ///     let mut interval = interval(Duration::from_secs(3600));
    ///     let start = Instant::now();
    ///     interval.reset_after(Duration::from_millis(2));
    ///     assert!(interval.tick().await >= start + Duration::from_millis(2));
    ///     assert!(start.elapsed() < Duration::from_secs(3600));
    /// });
    /// ```
    pub fn reset_after(&mut self, duration: Duration) {
        self.reset_at(Instant::now().later(duration));
    }

    /// Makes the next tick due at `deadline`, which may be past. The ticks after it follow from there.
    pub fn reset_at(&mut self, deadline: Instant) {
        self.sleep.reset(deadline);
    }

    /// Returns the time between two ticks.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Returns how the interval goes on after missed ticks. The default is [`Burst`](MissedTickBehavior::Burst).
    pub fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.missed
    }

    /// Sets how the interval goes on after missed ticks.
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.missed = behavior;
    }
}

impl Stream for Interval {
    type Item = Instant;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Instant>> {
        self.poll_tick(cx).map(Some)
    }
}
