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
    sleep_until(Instant::now().later(duration))
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
    Sleep { deadline, armed: None }
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
    /// The timer, from the first poll that had to wait until it fired.
    armed: Option<Armed>,
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
        if self.armed.as_ref().is_some_and(|armed| !armed.timers.reset(armed.key, deadline)) {
            // It has fired already, or its worker has ended: the next poll arms it anew.
            self.armed = None;
        }
    }

    #[inline]
    fn arm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_elapsed() {
            return Poll::Ready(());
        }
        let Some(timers) = Timers::current() else { no_runtime() };
        // The only worker on this thread is the one that is polling: it has not ended.
        if let Some(key) = timers.arm(self.deadline, cx.waker().clone()) {
            self.armed = Some(Armed { timers, key });
        }
        Poll::Pending
    }
}

impl Future for Sleep {
    type Output = ();

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        match this.armed.as_ref().map(|armed| armed.timers.poll(armed.key, cx.waker())) {
            None => this.arm(cx),
            Some(Status::Pending) => Poll::Pending,
            Some(Status::Fired) => {
                this.armed = None;
                Poll::Ready(())
            }
            Some(Status::Closed) => {
                this.armed = None;
                this.arm(cx)
            }
        }
    }
}

impl Drop for Armed {
    #[inline]
    fn drop(&mut self) {
        self.timers.disarm(self.key);
    }
}

impl std::fmt::Debug for Armed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Armed").finish_non_exhaustive()
    }
}

#[cold]
fn no_runtime() -> ! {
    panic!(
        "a timer has to wait, and no kittiwake runtime is running on this thread; \
         use it inside kittiwake::block_on, or in a task spawned there"
    )
}
