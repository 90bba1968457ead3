//! [`Timeout`]: a future with a limit on the time that it may take.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::{Instant, Sleep, sleep, sleep_until};
use crate::budget;

/// Runs `future` for at most `duration`.
///
/// Each poll polls `future` before it looks at the time. So a `future` that is ready counts as finished, even after
/// `duration`. A `future` that is ready at the first poll costs no timer.
///
/// # Cancel safety
/// As safe as `future`, which is dropped together with the [`Timeout`]. [`Timeout::into_inner`] takes `future` out, so
/// that it survives.
///
/// # Errors
/// Returns [`Elapsed`] if `duration` is over. [`Elapsed`] converts into an [`io::Error`] of the kind
/// [`TimedOut`](io::ErrorKind::TimedOut), so `?` works in functions that return an [`io::Result`].
///
/// # Panics
/// Polling the [`Timeout`] panics if it has to wait outside a runtime.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, timeout};
///
/// kittiwake::block_on(async {
///     assert_eq!(timeout(Duration::from_secs(1), async { 7 }).await, Ok(7));
///     assert!(timeout(Duration::from_millis(1), std::future::pending::<()>()).await.is_err());
/// });
/// ```
pub fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Timeout<F::IntoFuture> {
    Timeout { future: future.into_future(), sleep: sleep(duration) }
}

/// Runs `future` until `deadline` at most.
///
/// Each poll polls `future` before it looks at the time, as for [`timeout`].
///
/// # Cancel safety
/// As safe as `future`, as for [`timeout`].
///
/// # Errors
/// Returns [`Elapsed`] if `deadline` has passed.
///
/// # Panics
/// Polling the [`Timeout`] panics if it has to wait outside a runtime.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, Instant, timeout_at};
///
/// kittiwake::block_on(async {
///     let deadline = Instant::now() + Duration::from_millis(1);
///     assert!(timeout_at(deadline, std::future::pending::<()>()).await.is_err());
/// });
/// ```
pub fn timeout_at<F: IntoFuture>(deadline: Instant, future: F) -> Timeout<F::IntoFuture> {
    Timeout { future: future.into_future(), sleep: sleep_until(deadline) }
}

pin_project! {
    /// The future of [`timeout`] and [`timeout_at`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

impl<F> Timeout<F> {
    /// Returns the inner future, so that it can go on after the time is over.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncReadExt, AsyncWriteExt, duplex};
    /// use kittiwake::time::{Duration, timeout};
    ///
    /// # kittiwake::block_on(async {
    /// let (mut client, mut server) = duplex(16);
    /// let request = Box::pin(async move {
    ///     let mut request = [0; 4];
    ///     server.read_exact(&mut request).await.map(|()| request)
    /// });
    /// let mut slow = timeout(Duration::from_millis(1), request);
    /// assert!((&mut slow).await.is_err());
    /// client.write_all(b"late").await?;
    /// assert_eq!(slow.into_inner().await?, *b"late");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn into_inner(self) -> F {
        self.future
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let had_budget = !budget::has_refused();
        if let Poll::Ready(output) = this.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        if budget::has_refused() {
            return poll_refused(this.future, this.sleep, had_budget, cx);
        }
        Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed(())))
    }
}

/// Looks at the time although the task's budget is used up, by `future` in this poll or by another future of the task
/// before it. Without this, the time would never be over if that happens in each poll. The poll that was refused may
/// have left data unread, so `future` is polled once more.
#[cold]
fn poll_refused<F: Future>(
    future: Pin<&mut F>,
    sleep: &mut Sleep,
    had_budget: bool,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Elapsed>> {
    let sleep = Pin::new(sleep);
    // If the budget was used up before `future`, a task with many timeouts must not get a budget for each of them.
    ready!(if had_budget { budget::with_fresh(|| sleep.poll(cx)) } else { sleep.poll(cx) });
    match budget::with_fresh(|| future.poll(cx)) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => Poll::Ready(Err(Elapsed(()))),
    }
}

/// The error of a [`Timeout`] whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed(());

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time for this operation is over")
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(elapsed: Elapsed) -> Self {
        Self::new(io::ErrorKind::TimedOut, elapsed)
    }
}
