//! Doing something again and again.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::Stream;

use super::{Instant, Sleep, sleep_until};

/// Ticks every `period`, for the first time at once.
///
/// # Panics
/// If `period` is zero.
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

/// Ticks every `period`, for the first time at `start`.
///
/// # Panics
/// If `period` is zero.
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval's period must not be zero");
    Interval { sleep: sleep_until(start), period, missed: MissedTickBehavior::Burst }
}

/// Ticks, made by [`interval`] and [`interval_at`]. Also a [`Stream`] of them that never ends.
#[derive(Debug)]
pub struct Interval {
    sleep: Sleep,
    period: Duration,
    missed: MissedTickBehavior,
}

/// What an [`Interval`] does about ticks that nobody waited for in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTickBehavior {
    /// Makes up for them, one right after the other, until it is on time again.
    #[default]
    Burst,
    /// Leaves them out, and ticks a period after the late one, and so on from there.
    Delay,
    /// Leaves them out, and ticks next when it would have had to anyway.
    Skip,
}

impl Interval {
    /// Waits for the next tick, and returns when it was due.
    ///
    /// # Cancel safety
    /// Safe: a tick is used up only in the poll that returns it.
    ///
    /// # Panics
    /// When it has to wait, outside a runtime.
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// Polls for the next tick.
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        ready!(Pin::new(&mut self.sleep).poll(cx));
        let due = self.sleep.deadline();
        self.sleep.reset(self.next_after(due, Instant::now()));
        Poll::Ready(due)
    }

    fn next_after(&self, due: Instant, now: Instant) -> Instant {
        let on_time = due.later(self.period);
        // As late as this, the next tick would be late too.
        if now <= on_time {
            return on_time;
        }
        match self.missed {
            MissedTickBehavior::Burst => on_time,
            MissedTickBehavior::Delay => now.later(self.period),
            MissedTickBehavior::Skip => {
                let into_period = (now - due).as_nanos() % self.period.as_nanos();
                // Smaller than the period, so it fits wherever that did.
                let into_period =
                    Duration::new((into_period / 1_000_000_000) as u64, (into_period % 1_000_000_000) as u32);
                now.later(self.period - into_period)
            }
        }
    }

    /// Ticks a period from now, and so on from there.
    pub fn reset(&mut self) {
        self.sleep.reset(Instant::now().later(self.period));
    }

    /// The time between two ticks.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// What it does about missed ticks: [`Burst`](MissedTickBehavior::Burst) unless set.
    pub fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.missed
    }

    /// Sets what it does about missed ticks.
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
