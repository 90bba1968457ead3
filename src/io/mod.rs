//! The `futures-io` traits, and what works on them: lines, copies, pairs in memory, descriptors.
//!
//! [`AsyncRead`] and [`AsyncWrite`] are the traits of the `futures` family of crates. So code that is written for these
//! crates works with kittiwake's sockets. The extension traits [`AsyncReadExt`], [`AsyncWriteExt`] and [`AsyncSeekExt`]
//! are those of `futures-lite`. A server needs no other crate.
//!
//! # Nothing is lost
//! [`AsyncBufReadExt`] and [`BufReader`] are our own: a `read_line` that is dropped, times out or fails keeps what it has
//! read. [`copy()`], [`copy_bidirectional`], [`duplex()`] and [`split()`] are our own, too. A copy that is dropped may have
//! read what it has not written: its docs say so.
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
    AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufWriter, Chain, Cursor, Empty, Repeat, Sink, Take, empty, repeat, sink,
};
pub use split::{ReadHalf, ReuniteError, WriteHalf, split};
pub use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result, SeekFrom};
pub use stdio::{Stderr, Stdin, Stdout, stderr, stdin, stdout};
