//! The `futures-io` traits, and what works on them: lines, copies, pairs in memory, descriptors.
//!
//! [`AsyncRead`] and [`AsyncWrite`] are the traits of the `futures` family of crates. So code that is written for these
//! crates works with kittiwake's sockets. The extension traits [`AsyncWriteExt`] and [`AsyncSeekExt`] are those of
//! `futures-lite`, and so are [`BufWriter`], [`Cursor`] and [`Take`]. A server needs no other crate.
//!
//! The extension traits [`AsyncReadExt`] and [`AsyncBufReadExt`] are our own, and so are [`BufReader`], [`Chain`],
//! [`copy()`], [`copy_bidirectional`], [`duplex()`] and [`split()`].
//!
//! # Cancel safety
//! A future is cancelled when it is dropped before it is ready. [`timeout`](crate::time::timeout()) does so, and
//! [`or`](crate::future::or) with the slower one of two. The streams of this crate move bytes only in a poll that returns
//! their number, so they lose none. But a future that makes several reads or writes may have done a part of its work:
//!
//! | call | lost when its future is dropped |
//! | --- | --- |
//! | [`read`](AsyncReadExt::read), [`read_vectored`](AsyncReadExt::read_vectored), [`fill_buf`](AsyncBufReadExt::fill_buf) | nothing |
//! | [`read_until`](AsyncBufReadExt::read_until), [`read_to_end`](AsyncReadExt::read_to_end) | nothing: the buffer has all that was read, and the next call appends to it |
//! | [`read_line`](AsyncBufReadExt::read_line) | nothing with a [`BufReader`], as above; with a reader of another kind, the first bytes of a character whose other bytes have not come |
//! | [`skip_until`](AsyncBufReadExt::skip_until) | the number of bytes that it has discarded; the next call goes on |
//! | `next` of [`lines`](AsyncBufReadExt::lines), [`split`](AsyncBufReadExt::split) and [`bytes`](AsyncReadExt::bytes) | nothing: the stream keeps the beginning of its item |
//! | [`read_exact`](AsyncReadExt::read_exact) | the number of bytes that it has read; they are in the slice, and no longer in the stream |
//! | [`read_to_string`](AsyncReadExt::read_to_string) | all bytes that it has read |
//! | [`write`](AsyncWriteExt::write), [`write_vectored`](AsyncWriteExt::write_vectored) | nothing, and nothing was written |
//! | [`write_all`](AsyncWriteExt::write_all) | the number of bytes that it has written |
//! | [`flush`](AsyncWriteExt::flush), [`close`](AsyncWriteExt::close) | nothing: the next call goes on |
//! | [`seek`](AsyncSeekExt::seek) | nothing with a [`Cursor`], which never waits; another seeker may have moved |
//! | [`copy()`] | up to 8 KiB that it has read and not written |
//! | [`copy_bidirectional`] | up to 8 KiB in each direction; [`transferred`](CopyBidirectional::transferred) has the numbers while the future is kept |
//! | [`AsyncFd::readable`], [`AsyncFd::writable`], [`AsyncFd::ready`] | nothing |
//! | [`AsyncFd::async_io`] | nothing, because it returns the result in the poll that made the call |
//!
//! [`BufReader`], [`BufWriter`], [`Take`], [`Chain`], [`DuplexStream`] and the halves of [`split()`] keep their bytes when
//! such a future is dropped. Dropping a [`BufWriter`] drops what it has not flushed.
//!
//! If a row names a loss, keep the future and await it by reference, or spawn it as a task of its own. A loop of `read` or
//! of `write` counts its bytes itself, and can be cancelled at any await.
//!
//! # Examples
//! ```
//! use kittiwake::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
//! use kittiwake::net::{TcpListener, TcpStream};
//! use kittiwake::stream::StreamExt;
//!
//! # kittiwake::block_on(async {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! let client = kittiwake::spawn(async move {
//!     let mut stream = TcpStream::connect(address).await?;
//!     stream.write_all(b"one\ntwo\n").await
//! });
//! let (stream, _) = listener.accept().await?;
//! let mut lines = BufReader::new(stream).lines();
//! assert_eq!(lines.next().await.unwrap()?, "one");
//! assert_eq!(lines.next().await.unwrap()?, "two");
//! client.await.unwrap()
//! # }).unwrap();
//! ```

mod async_fd;
mod buf_reader;
mod buffered;
mod copy;
mod duplex;
mod read;
mod split;
mod stdio;

pub use crate::reactor::{Interest, Ready};
pub use async_fd::{AsyncFd, AsyncFdReadyGuard, TryIoError};
pub use buf_reader::BufReader;
pub use buffered::{AsyncBufReadExt, FillBuf, Lines, ReadLine, ReadUntil, SkipUntil, Split};
pub use copy::{CopyBidirectional, CopyError, copy, copy_bidirectional};
pub use duplex::{DuplexStream, duplex};
pub use futures_io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite};
pub use futures_lite::io::{
    AsyncSeekExt, AsyncWriteExt, BufWriter, Cursor, Empty, Repeat, Sink, Take, empty, repeat, sink,
};
pub use read::{AsyncReadExt, Bytes, Chain, ReadExact, ReadFuture, ReadToEnd, ReadToString};
pub use split::{ReadHalf, ReuniteError, WriteHalf, split};
pub use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result, SeekFrom};
pub use stdio::{Stderr, Stdin, Stdout, stderr, stdin, stdout};
