//! Futures: to wait for two at once, or for the first of two.
//!
//! [`FutureExt`] and most functions are those of `futures-lite`. [`yield_now`](crate::task::yield_now) is in
//! [`task`](crate::task), because it is the executor's.
//!
//! # Which future is polled first
//! [`or`] and [`zip`] poll the first of their futures first, and [`race`] begins with either. If the first always has more
//! to do and uses up the [budget](crate::task::consume_budget) of each poll, then timers, joins and shutdown signals behind
//! it are still found. A socket behind it waits, so give such a future a task of its own, or use [`race`].
//!
//! # Examples
//! ```
//! use kittiwake::future::{or, zip};
//! use kittiwake::time::{Duration, sleep};
//!
//! # kittiwake::block_on(async {
//! let slow = async {
//!     sleep(Duration::from_secs(60)).await;
//!     "slow"
//! };
//! assert_eq!(or(async { "fast" }, slow).await, "fast");
//! assert_eq!(zip(async { 1 }, async { 2 }).await, (1, 2));
//! # });
//! ```

pub use futures_lite::future::{
    Boxed, BoxedLocal, Fuse, FutureExt, Or, PollOnce, Race, TryZip, Zip, fuse, or, poll_once, race, try_zip, zip,
};
pub use std::future::{Future, IntoFuture, Pending, PollFn, Ready, pending, poll_fn, ready};
