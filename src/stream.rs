//! Streams: asynchronous iterators, such as [`lines`](crate::io::AsyncBufReadExt::lines) and
//! [`incoming`](crate::net::TcpListener::incoming).
//!
//! [`Stream`] is the trait of the `futures` family of crates. [`StreamExt`] and the functions are those of
//! `futures-lite`.
//!
//! # Examples
//! ```
//! use kittiwake::stream::{self, StreamExt};
//!
//! # kittiwake::block_on(async {
//! let mut even = stream::iter(1..5).filter(|number| number % 2 == 0);
//! assert_eq!(even.next().await, Some(2));
//! assert_eq!(even.next().await, Some(4));
//! assert_eq!(even.next().await, None);
//! # });
//! ```

pub use futures_lite::stream::{
    Boxed, BoxedLocal, Empty, Iter, Once, OnceFuture, Or, Pending, PollFn, Race, Repeat, RepeatWith, StopAfterFuture,
    Stream, StreamExt, TryUnfold, Unfold, empty, iter, once, once_future, or, pending, poll_fn, race, repeat,
    repeat_with, stop_after_future, try_unfold, unfold,
};
