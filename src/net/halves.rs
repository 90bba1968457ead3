//! Halves: the reading half and the writing half of a stream.
//!
//! A borrowed half holds a reference to its stream, an owned half an `Arc`. Both halves call the stream's methods, which
//! take `&self`.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::unix;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::stream::impl_io;
use super::tcp::TcpStream;
use super::unix::UnixStream;
use crate::time::Duration;

/// The reading half of a stream, borrowed by [`TcpStream::split`] or [`UnixStream::split`].
#[derive(Debug)]
pub struct ReadHalf<'a, S = TcpStream>(&'a S);

/// The writing half of a stream, borrowed by [`TcpStream::split`] or [`UnixStream::split`].
///
/// Dropping it does nothing; closing it shuts the writing half down.
#[derive(Debug)]
pub struct WriteHalf<'a, S = TcpStream>(&'a S);

/// The reading half of a stream, owned, made by [`TcpStream::into_split`] or [`UnixStream::into_split`].
///
/// Dropping it does nothing to the connection while the other half lives.
#[derive(Debug)]
pub struct OwnedReadHalf<S = TcpStream> {
    stream: Arc<S>,
}

/// The writing half of a stream, owned, made by [`TcpStream::into_split`] or [`UnixStream::into_split`].
///
/// Dropping it shuts the writing half down, so that the peer reads to an end.
#[derive(Debug)]
pub struct OwnedWriteHalf<S = TcpStream> {
    stream: Arc<S>,
    /// Shuts down the stream's writing half when this half is dropped. `reunite` and `forget` clear it.
    shut_down: Option<fn(&S)>,
}

impl<S> OwnedReadHalf<S> {
    /// Puts the two halves of a stream together again.
    ///
    /// # Errors
    /// If they are of different streams; the error gives them back.
    ///
    /// # Examples
    /// ```
    /// # use kittiwake::net::{TcpListener, TcpStream};
    /// # kittiwake::block_on(async {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let stream = TcpStream::connect(listener.local_addr()?).await?;
    /// let address = stream.local_addr()?;
    /// let (read, write) = stream.into_split();
    /// let stream = read.reunite(write).unwrap();
    /// assert_eq!(stream.local_addr()?, address);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub fn reunite(self, other: OwnedWriteHalf<S>) -> Result<S, ReuniteError<S>> {
        if !Arc::ptr_eq(&self.stream, &other.stream) {
            return Err(ReuniteError(self, other));
        }
        other.forget();
        Ok(Arc::into_inner(self.stream).expect("a stream has two owned halves, and one is gone"))
    }
}

impl<S> OwnedWriteHalf<S> {
    /// Puts the two halves of a stream together again.
    ///
    /// # Errors
    /// If they are of different streams; the error gives them back.
    pub fn reunite(self, other: OwnedReadHalf<S>) -> Result<S, ReuniteError<S>> {
        other.reunite(self)
    }

    /// Drops the half without shutting anything down.
    pub fn forget(mut self) {
        self.shut_down = None;
    }
}

impl<S> Drop for OwnedWriteHalf<S> {
    fn drop(&mut self) {
        if let Some(shut_down) = self.shut_down {
            shut_down(&self.stream);
        }
    }
}

/// Implements a half of a `$whole` by its field `$stream`. Each method calls the stream's method of the same name.
macro_rules! half {
    (read for $type:ty, $stream:tt, $whole:ident, $addr:ty) => {
        impl_io!(read for $type, $stream.stream);
        half!(both for $type, $stream, $whole, $addr);

        impl $type {
            /// Reads without taking the bytes away; see the stream's `peek`.
            ///
            /// # Cancel safety
            /// Safe: nothing is taken.
            ///
            /// # Errors
            /// As for reading.
            pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.$stream.peek(buf).await
            }

            /// Waits until there is something to read; see the stream's `readable`.
            ///
            /// # Cancel safety
            /// Safe.
            ///
            /// # Errors
            /// If the socket cannot be registered.
            pub async fn readable(&self) -> io::Result<()> {
                self.$stream.readable().await
            }

            /// Reads what is there, without waiting; see the stream's `try_read`.
            ///
            /// # Errors
            /// `WouldBlock` if nothing is there; else as for reading.
            pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.$stream.try_read(buf)
            }

            /// How long a read may wait; see the stream's `read_timeout`.
            pub fn read_timeout(&self) -> Option<Duration> {
                self.$stream.read_timeout()
            }

            /// Sets how long a read may wait; see the stream's `set_read_timeout`.
            ///
            /// # Errors
            /// `InvalidInput` for zero.
            pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.$stream.set_read_timeout(timeout)
            }
        }
    };
    (write for $type:ty, $stream:tt, $whole:ident, $addr:ty) => {
        impl_io!(write for $type, $stream.stream);
        half!(both for $type, $stream, $whole, $addr);

        impl $type {
            /// Waits until something can be written; see the stream's `writable`.
            ///
            /// # Cancel safety
            /// Safe.
            ///
            /// # Errors
            /// If the socket cannot be registered.
            pub async fn writable(&self) -> io::Result<()> {
                self.$stream.writable().await
            }

            /// Writes what can be written, without waiting; see the stream's `try_write`.
            ///
            /// # Errors
            /// `WouldBlock` if nothing can; else as for writing.
            pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
                self.$stream.try_write(buf)
            }

            /// How long a write may wait; see the stream's `write_timeout`.
            pub fn write_timeout(&self) -> Option<Duration> {
                self.$stream.write_timeout()
            }

            /// Sets how long a write may wait; see the stream's `set_write_timeout`.
            ///
            /// # Errors
            /// `InvalidInput` for zero.
            pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.$stream.set_write_timeout(timeout)
            }
        }
    };
    (both for $type:ty, $stream:tt, $whole:ident, $addr:ty) => {
        impl $type {
            /// How long the whole stream may be idle; see the stream's `idle_timeout`.
            pub fn idle_timeout(&self) -> Option<Duration> {
                self.$stream.idle_timeout()
            }

            /// Sets how long the whole stream may be idle; see the stream's `set_idle_timeout`.
            ///
            /// # Errors
            /// `InvalidInput` for zero.
            pub fn set_idle_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.$stream.set_idle_timeout(timeout)
            }

            /// The peer's address.
            ///
            /// # Errors
            /// `NotConnected` once the connection has ended.
            pub fn peer_addr(&self) -> io::Result<$addr> {
                self.$stream.peer_addr()
            }

            /// The address of this end.
            ///
            /// # Errors
            /// See getsockname(2).
            pub fn local_addr(&self) -> io::Result<$addr> {
                self.$stream.local_addr()
            }
        }

        impl AsRef<$whole> for $type {
            /// The whole stream.
            fn as_ref(&self) -> &$whole {
                &self.$stream
            }
        }
    };
}

/// Implements `split` and `into_split` of a stream, and its halves.
macro_rules! halves {
    ($whole:ident, $addr:ty) => {
        impl $whole {
            /// Splits the stream into a half for reading and one for writing, which borrow it.
            pub fn split(&mut self) -> (ReadHalf<'_, Self>, WriteHalf<'_, Self>) {
                (ReadHalf(self), WriteHalf(self))
            }

            /// Splits the stream into a half for reading and one for writing, which can go to different tasks.
            ///
            /// Dropping the writing half shuts it down, so that the peer reads to an end. The connection is closed when
            /// both are gone. [`reunite`](OwnedReadHalf::reunite) puts them together again.
            pub fn into_split(self) -> (OwnedReadHalf<Self>, OwnedWriteHalf<Self>) {
                let stream = Arc::new(self);
                // The connection may have ended by itself, and a drop reports no error.
                let shut_down = |stream: &Self| drop(stream.shutdown(Shutdown::Write));
                (OwnedReadHalf { stream: stream.clone() }, OwnedWriteHalf { stream, shut_down: Some(shut_down) })
            }
        }

        half!(read for ReadHalf<'_, $whole>, 0, $whole, $addr);
        half!(read for OwnedReadHalf<$whole>, stream, $whole, $addr);
        half!(write for WriteHalf<'_, $whole>, 0, $whole, $addr);
        half!(write for OwnedWriteHalf<$whole>, stream, $whole, $addr);
    };
}

halves!(TcpStream, SocketAddr);
halves!(UnixStream, unix::net::SocketAddr);

/// The halves given to `reunite` are of different streams. Holds them both.
pub struct ReuniteError<S = TcpStream>(pub OwnedReadHalf<S>, pub OwnedWriteHalf<S>);

impl<S> fmt::Debug for ReuniteError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReuniteError").finish_non_exhaustive()
    }
}

impl<S> fmt::Display for ReuniteError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the two halves are of different streams")
    }
}

impl<S> Error for ReuniteError<S> {}
