//! Giving way to other tasks: always, or when the budget is used up.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::budget;

/// Lets other ready tasks of this worker run before this one goes on.
///
/// Everything that is ready on this worker runs first, and also what other threads have spawned or woken there. Only new
/// connections of a server may take turns with it. A long computation in a task calls this now and then, because its
/// worker runs no other task meanwhile. The worker looks at the kernel and at its timers after at most 64 polls of tasks,
/// and sooner if they take long: a timer waits for about two pieces of such a computation, or for little more than a
/// millisecond.
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

    // A burst costs 4.2 % more without this.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        budget::poll_yield(cx, &mut self.yielded)
    }
}

/// Takes one operation from the task's budget, and lets other tasks run when the budget is used up.
///
/// A poll of a task may do 128 operations, or fewer if they take long. Sockets, timers,
/// [`JoinHandle`](super::JoinHandle) and all else that waits for something in this crate spend this budget by
/// themselves. A loop of one's own that awaits nothing of this crate calls this once for each piece of work, and so
/// does not keep other tasks waiting. A call costs a few instructions, and mostly does not wait.
///
/// # Cancel safety
/// Safe.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let task = kittiwake::spawn(async { 1 });
///     for _ in 0..200 {
///         kittiwake::task::consume_budget().await;
///     }
///     assert!(task.is_finished());
/// });
/// ```
pub async fn consume_budget() {
    poll_fn(budget::poll_spend).await;
}
