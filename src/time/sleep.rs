//! Waiting until a moment.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Instant;
use super::timers::{Status, Timers};
use crate::wheel::Key;

/// Waits for `duration`.
///
/// Never ends early, and late by as little as the system's timers allow: see [the module](super). Zero is ready at
/// once; more than thirty years, `Duration::MAX` say, never (or after thirty years).
///
/// # Cancel safety
/// Safe: dropping it takes the timer away.
///
/// # Panics
/// When it is polled and has to wait, outside a runtime.
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
#[inline]
pub fn sleep(duration: Duration) -> Sleep {
    let state = State::Unarmed { ahead: !duration.is_zero() };
    Sleep { deadline: Instant::now().later(duration), state }
}

/// Waits until `deadline`; one that is past is ready at once.
///
/// # Cancel safety
/// Safe, like [`sleep`].
///
/// # Panics
/// Like [`sleep`].
#[inline]
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, state: State::Unarmed { ahead: false } }
}

/// The future of [`sleep`] and [`sleep_until`].
///
/// It may be polled again after it was ready, and is ready again. It may move from task to task and from thread to
/// thread: its timer stays with the worker that first polled it, and wakes whoever polled it last. If that worker's runtime
/// ends, it goes on in the runtime that it is polled in next.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: Instant,
    state: State,
}

enum State {
    /// It has no timer. `ahead`: the deadline was still to come when it was set. Whether it still is, the timers find out: the
    /// clock is not read a second time for it.
    Unarmed { ahead: bool },
    /// It has a timer.
    Armed(Armed),
}

struct Armed {
    timers: Arc<Timers>,
    key: Key,
}

impl Sleep {
    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether its deadline has passed.
    pub fn is_elapsed(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Sets another deadline, without a new timer if there is one. Whoever waits for it goes on waiting,
    /// until then; if that is past, until the worker's next turn.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
        match &self.state {
            State::Armed(armed) if armed.timers.reset(armed.key, deadline) => {}
            // If there was a timer, it has fired already, or its worker has ended: the next poll arms it anew.
            _ => self.state = State::Unarmed { ahead: false },
        }
    }
}

impl Sleep {
    /// Finds out how it stands, if it can be known without a new timer.
    #[inline(never)]
    fn look(&mut self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        if let State::Armed(armed) = &self.state {
            let status = armed.timers.poll(armed.key, cx.waker());
            if status == Status::Pending {
                return Some(Poll::Pending);
            }
            self.state = State::Unarmed { ahead: false };
            if status == Status::Fired {
                return Some(Poll::Ready(()));
            }
        }
        self.is_elapsed().then_some(Poll::Ready(()))
    }
}

impl Future for Sleep {
    type Output = ();

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !matches!(this.state, State::Unarmed { ahead: true }) {
            if let Some(poll) = this.look(cx) {
                return poll;
            }
        }
        // First: the less there is to keep across a call, the shorter this is.
        let waker = cx.waker().clone();
        let Some(timers) = Timers::current() else { return outside(this) };
        match timers.arm(this.deadline, waker) {
            Some(key) => {
                // It was not armed: there is nothing to drop.
                std::mem::forget(std::mem::replace(&mut this.state, State::Armed(Armed { timers, key })));
                Poll::Pending
            }
            None => {
                this.state = State::Unarmed { ahead: false };
                Poll::Ready(())
            }
        }
    }
}

#[cold]
fn outside(sleep: &Sleep) -> Poll<()> {
    assert!(
        sleep.is_elapsed(),
        "a timer has to wait, and no kittiwake runtime is running on this thread; \
         use it inside kittiwake::block_on, or in a task spawned there"
    );
    Poll::Ready(())
}

impl Drop for Armed {
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
