//! The `futures-io` traits, and the adapters that work on them.
//!
//! [`AsyncRead`] and [`AsyncWrite`] are the traits of the `futures` family of crates. The extension traits and adapters
//! are those of `futures-lite`. So code that is written for these crates works with kittiwake's sockets. This module
//! re-exports them, so that a server needs no other crate.
//!
//! # Examples
//! ```
//! use kittiwake::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
//! use kittiwake::net::{TcpListener, TcpStream};
//!
//! # kittiwake::block_on(async {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! let client = kittiwake::spawn(async move {
//!     let mut stream = TcpStream::connect(address).await?;
//!     stream.write_all(b"one\ntwo\n").await
//! });
//! let (stream, _) = listener.accept().await?;
//! let mut line = String::new();
//! BufReader::new(stream).read_line(&mut line).await?;
//! assert_eq!(line, "one\n");
//! client.await.unwrap()
//! # }).unwrap();
//! ```

mod async_fd;
mod stdio;

pub use crate::reactor::{Interest, Ready};
pub use async_fd::{AsyncFd, AsyncFdReadyGuard, TryIoError};
mod duplex;
mod split;

pub use duplex::{DuplexStream, duplex};
pub use futures_lite::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt, AsyncWrite, AsyncWriteExt,
    BufReader, BufWriter, Cursor, Empty, Repeat, Sink, copy, empty, repeat, sink,
};
pub use split::{ReadHalf, ReuniteError, WriteHalf, split};
pub use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result, SeekFrom};
pub use stdio::{Stderr, Stdin, Stdout, stderr, stdin, stdout};
