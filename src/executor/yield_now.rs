//! Giving way to others.

use std::pin::Pin;
use std::task::{Context, Poll};

/// Lets every task that is ready run once before this one goes on.
///
/// A long computation in a task calls this now and then, because nothing else
/// runs on its worker meanwhile. The kernel is looked at after at most 64 tasks.
///
/// # Cancel safety
/// Safe.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let task = kittiwake::spawn(async { 1 });
///     kittiwake::task::yield_now().await;
///     assert!(task.is_finished());
/// });
/// ```
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// The future of [`yield_now`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
