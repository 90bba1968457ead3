//! Attempts with pauses between them, where the system reports no event to wait for.
//!
//! Linux reports no event when the queue of a Unix listener has room again, nor when a datagram socket that is not
//! connected to its receiver could send again. So an attempt that meets `EAGAIN` there is made again after a pause.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::Weak;
use std::task::Poll;

use crate::task::consume_budget;
use crate::time::{Duration, sleep};

/// The first pause. Each of the next ones is twice as long, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(1);

const LONGEST: Duration = Duration::from_millis(50);

/// Makes an attempt again and again while it fails with `WouldBlock`. If no runtime runs on this thread, the first failure
/// is the result.
pub(super) async fn retry<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    // The first attempt mostly succeeds, and a task may loop on it.
    consume_budget().await;
    let mut next = FIRST;
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && pause(next).await => next = LONGEST.min(2 * next),
            result => return result,
        }
    }
}

/// Waits. Returns `false` at once if no runtime runs on this thread.
async fn pause(duration: Duration) -> bool {
    let mut sleep = sleep(duration);
    poll_fn(|cx| sleep.poll_anywhere(cx, &mut Weak::new()).map_or(Poll::Ready(false), |poll| poll.map(|()| true))).await
}
