//! [`split()`]: any stream in two halves.
//!
//! # The protocol
//! The halves share the stream. A half takes the stream out of its place, polls it, and puts it back:
//!
//! 1. [`Shared::poll`] takes the stream. If the other half has it, the waker is stored in this half's seat, under the
//!    same lock, and the poll is pending.
//! 2. The stream is polled outside the lock: it is foreign code, and its wakers may run the other half.
//! 3. [`Taken`] puts the stream back, also if the poll has panicked, and wakes the half that waits for it.
//!
//! Without the lock around the look and the waker, a half could store its waker just after the other half has put the
//! stream back, and wait for ever.
//!
//! # The drop of the writing half
//! It closes the stream by one poll. If the other half has the stream at that moment, that half makes the poll when it
//! puts the stream back.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_io::{AsyncRead, AsyncWrite};

use crate::sync::{Mutex, contain_all, wake_each};

/// Splits a stream into a half for reading and one for writing, which can go to different tasks.
///
/// Dropping the writing half closes the stream for writing, so that the peer reads to an end; see [`WriteHalf`].
/// [`reunite`](ReadHalf::reunite) puts the halves together again.
///
/// The stream must keep a waker for each direction, as sockets do. A [`TcpStream`](crate::net::TcpStream) has an
/// `into_split` of its own, which is faster.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
///
/// # kittiwake::block_on(async {
/// let (client, server) = duplex(64);
/// let (mut reader, mut writer) = split(client);
/// let (mut requests, mut replies) = split(server);
/// let echo = kittiwake::spawn(async move {
///     let mut request = String::new();
///     requests.read_to_string(&mut request).await?;
///     replies.write_all(request.as_bytes()).await
/// });
/// writer.write_all(b"ping").await?;
/// drop(writer);
///
/// let mut reply = String::new();
/// reader.read_to_string(&mut reply).await?;
/// assert_eq!(reply, "ping");
/// echo.await.unwrap()
/// # }).unwrap();
/// ```
pub fn split<T: AsyncRead + AsyncWrite + Unpin>(stream: T) -> (ReadHalf<T>, WriteHalf<T>) {
    let place = Place { stream: Some(Box::new(stream)), close: None, reader: None, writer: None };
    let shared = Arc::new(Shared(Mutex::new(place)));
    (ReadHalf(shared.clone()), WriteHalf { shared, close: close_once::<T> })
}

/// The reading half of a stream, made by [`split()`].
///
/// Dropping it does nothing. The stream is dropped when both halves are gone.
///
/// # Cancel safety
/// Reads are as safe as those of the stream.
pub struct ReadHalf<T>(Arc<Shared<T>>);

/// The writing half of a stream, made by [`split()`].
///
/// Dropping it polls the stream's `poll_close` once. That is all a destructor can do: it cannot wait, and it cannot
/// report an error. It is enough for sockets and for [`DuplexStream`](super::DuplexStream), whose close never waits. A
/// stream that must first write something, such as the bytes in a buffer or the end of a TLS session, may not come to an
/// end. Call [`close`](super::AsyncWriteExt::close) for these before the drop.
///
/// # Cancel safety
/// Writes are as safe as those of the stream.
pub struct WriteHalf<T> {
    shared: Arc<Shared<T>>,
    /// The call for the drop, which does not know that `T` is `AsyncWrite`.
    close: fn(&mut T),
}

struct Shared<T>(Mutex<Place<T>>);

struct Place<T> {
    /// `None` while a half polls the stream.
    stream: Option<Box<T>>,
    /// The writing half was dropped while the other half had the stream.
    close: Option<fn(&mut T)>,
    /// The reading half waits for the stream.
    reader: Option<Waker>,
    /// The writing half waits for the stream.
    writer: Option<Waker>,
}

/// The stream, taken out of its place.
struct Taken<'a, T> {
    shared: &'a Shared<T>,
    /// `None` after the drop.
    stream: Option<Box<T>>,
}

impl<T> Shared<T> {
    /// Takes the stream and polls it.
    fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        seat: fn(&mut Place<T>) -> &mut Option<Waker>,
        poll: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R>
    where
        T: Unpin,
    {
        let mut waker = None;
        loop {
            let mut place = self.0.lock();
            if let Some(stream) = place.stream.take() {
                drop(place);
                let mut taken = Taken { shared: self, stream: Some(stream) };
                return poll(Pin::new(taken.stream.as_mut().expect("the stream, until the drop")), cx);
            }
            if waker.is_some() {
                let replaced = mem::replace(seat(&mut place), waker);
                drop(place);
                drop(replaced);
                return Poll::Pending;
            }
            // To clone a waker is foreign code, so it comes outside the lock.
            drop(place);
            waker = Some(cx.waker().clone());
        }
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        let mut place = self.shared.0.lock();
        // The writing half may have been dropped meanwhile. The close is foreign code, so it comes outside the lock.
        if let Some(close) = place.close.take() {
            drop(place);
            contain_all(|| close(&mut stream));
            place = self.shared.0.lock();
        }
        place.stream = Some(stream);
        let waiting = [place.reader.take(), place.writer.take()];
        drop(place);
        // A panic of a waker would take the result of this half's poll. While the stream's own panic unwinds, it would
        // end the process.
        wake_each(waiting.into_iter().flatten());
    }
}

fn close_once<T: AsyncWrite + Unpin>(stream: &mut T) {
    // A drop cannot wait and reports no error.
    let _ = Pin::new(stream).poll_close(&mut Context::from_waker(Waker::noop()));
}

impl<T> Drop for WriteHalf<T> {
    fn drop(&mut self) {
        let mut place = self.shared.0.lock();
        // The other half has the stream, or `reunite` has taken it away and drops this half last.
        let Some(stream) = place.stream.take() else {
            place.close = Some(self.close);
            return;
        };
        drop(place);
        let mut taken = Taken { shared: &self.shared, stream: Some(stream) };
        contain_all(|| (self.close)(taken.stream.as_mut().expect("the stream, until the drop")));
    }
}

impl<T> ReadHalf<T> {
    /// Puts the two halves of a stream together again, without closing anything.
    ///
    /// # Errors
    /// If they are of different streams. The error gives them back.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncWriteExt, duplex, split};
    ///
    /// # kittiwake::block_on(async {
    /// let (reader, writer) = split(duplex(8).0);
    /// let (_, other) = split(duplex(8).0);
    /// let reader = reader.reunite(other).unwrap_err().0;
    /// let _stream = reader.reunite(writer).unwrap();
    /// # });
    /// ```
    pub fn reunite(self, other: WriteHalf<T>) -> Result<T, ReuniteError<T>> {
        if !Arc::ptr_eq(&self.0, &other.shared) {
            return Err(ReuniteError(self, other));
        }
        // A half has the stream only while it is polled, and this call owns both.
        let stream = self.0.0.lock().stream.take().expect("the stream of two halves that are not polled");
        Ok(*stream)
    }
}

impl<T> WriteHalf<T> {
    /// Puts the two halves of a stream together again, without closing anything.
    ///
    /// # Errors
    /// If they are of different streams. The error gives them back.
    pub fn reunite(self, other: ReadHalf<T>) -> Result<T, ReuniteError<T>> {
        other.reunite(self)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadHalf<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll(cx, |place| &mut place.reader, |stream, cx| stream.poll_read(cx, buf))
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll(cx, |place| &mut place.reader, |stream, cx| stream.poll_read_vectored(cx, bufs))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WriteHalf<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.poll(cx, |place| &mut place.writer, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.poll(cx, |place| &mut place.writer, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.poll(cx, |place| &mut place.writer, T::poll_flush)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.poll(cx, |place| &mut place.writer, T::poll_close)
    }
}

impl<T> fmt::Debug for ReadHalf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for WriteHalf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf").finish_non_exhaustive()
    }
}

/// The error of [`ReadHalf::reunite`]: the halves are of different streams. It gives them back.
pub struct ReuniteError<T>(pub ReadHalf<T>, pub WriteHalf<T>);

impl<T> fmt::Debug for ReuniteError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReuniteError").finish_non_exhaustive()
    }
}

impl<T> fmt::Display for ReuniteError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the two halves belong to different streams")
    }
}

impl<T> Error for ReuniteError<T> {}

// A panic leaves no state of a half that is its own half changed.
impl<T: UnwindSafe> UnwindSafe for ReadHalf<T> {}
impl<T: RefUnwindSafe> RefUnwindSafe for ReadHalf<T> {}
impl<T: UnwindSafe> UnwindSafe for WriteHalf<T> {}
impl<T: RefUnwindSafe> RefUnwindSafe for WriteHalf<T> {}
