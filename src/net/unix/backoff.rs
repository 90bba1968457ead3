//! Pauses before a new attempt, where the system reports no event to wait for.
//!
//! Linux reports no event when the queue of a Unix listener has room again, nor when a datagram socket that is not
//! connected to its receiver could send again. So an attempt that meets `EAGAIN` there is made again after a pause.

use std::future::poll_fn;
use std::sync::Weak;
use std::task::Poll;

use crate::time::{Duration, sleep};

/// The longest pause.
const LONGEST: Duration = Duration::from_millis(50);

/// Pauses that grow.
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: Duration::from_millis(1) }
    }

    /// Waits one pause, and doubles the next one. Returns `false` at once if no runtime runs on this thread.
    pub(super) async fn pause(&mut self) -> bool {
        let mut sleep = sleep(self.next);
        self.next = LONGEST.min(2 * self.next);
        poll_fn(|cx| sleep.poll_anywhere(cx, &mut Weak::new()).map_or(Poll::Ready(false), |poll| poll.map(|()| true)))
            .await
    }
}
