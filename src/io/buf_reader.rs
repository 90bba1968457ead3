//! [`BufReader`]: a reader with a buffer.
//!
//! # More bytes behind those that are there
//! [`AsyncBufRead`] has no call for "wait for more". A reader waits only once all of its bytes are consumed. But
//! `read_line` must not consume the first bytes of a character while the others are missing: a `String` cannot hold
//! them, and a future that is dropped loses them. So it asks a reader for more bytes than those that it has seen:
//!
//! 1. [`poll_fill_beyond`] notes in a thread-local how many bytes were seen, and polls the reader;
//! 2. a [`BufReader`] that has exactly these bytes takes the note, keeps them, and reads more bytes behind them;
//! 3. any other reader knows nothing of the note, and returns the bytes that it has.
//!
//! Adapters such as `Take` and `Chain` have no buffer of their own and pass the call on. A reader below a `BufReader`
//! does not see the note, because the `BufReader` takes it first.
//!
//! A `Take` passes the call on also when the first bytes of the character are the last ones of its limit, and hides the
//! bytes that come. So `read_line` waits for a byte beyond the limit before it fails, where std fails at once.
//!
//! # The budget
//! A buffer holds many small pieces. So a read takes one operation from the task's budget, also if it finds its bytes in
//! the buffer. `poll_fill_buf` leaves that to its callers, which may poll it twice for one piece.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite};
use pin_project_lite::pin_project;

use crate::budget::poll_spend_once;

/// The capacity of [`BufReader::new`].
const CAPACITY: usize = 8 * 1024;

/// The length of the longest character.
const MAX_CHAR: usize = 4;

thread_local! {
    /// The bytes that the caller of [`poll_fill_beyond`] has seen. 0 outside it.
    static SEEN: Cell<usize> = const { Cell::new(0) };
}

pin_project! {
    /// Adds a buffer to a reader, so that small reads cost no system call each.
    ///
    /// It reads as much as its buffer holds, and hands that out in pieces. [`AsyncBufReadExt`](super::AsyncBufReadExt)
    /// has the methods that read lines. While the buffer is empty, a read of at least its size goes
    /// directly to the reader below.
    ///
    /// A `BufReader` that is dropped drops what is in its buffer. So use one `BufReader` for the whole life of its
    /// reader. Writes go to the reader below.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncBufReadExt, BufReader};
    ///
    /// # kittiwake::block_on(async {
    /// let mut reader = BufReader::new(&b"one\ntwo\n"[..]);
    /// let mut line = String::new();
    /// reader.read_line(&mut line).await?;
    /// assert_eq!(line, "one\n");
    /// assert_eq!(reader.buffer(), b"two\n");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub struct BufReader<R> {
        #[pin]
        inner: R,
        buf: Vec<u8>,
        // The bytes `start..end` of `buf` were read and not consumed.
        start: usize,
        end: usize,
    }
}

impl<R> BufReader<R> {
    /// Adds a buffer of 8 KiB.
    pub fn new(inner: R) -> Self {
        Self::with_capacity(CAPACITY, inner)
    }

    /// Adds a buffer of `capacity` bytes. A `capacity` of 0 counts as 1.
    pub fn with_capacity(capacity: usize, inner: R) -> Self {
        Self { inner, buf: vec![0; capacity.max(1)], start: 0, end: 0 }
    }

    /// Returns the reader below.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// Returns the reader below. A direct read passes the buffer by.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Returns the reader below, pinned. A direct read passes the buffer by.
    pub fn get_pin_mut(self: Pin<&mut Self>) -> Pin<&mut R> {
        self.project().inner
    }

    /// Returns the reader below. What is in the buffer is lost; [`buffer`](Self::buffer) shows it.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Returns the bytes that were read and not consumed, without reading more.
    pub fn buffer(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }
}

impl<R: AsyncRead> AsyncRead for BufReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.start == self.end && buf.len() >= self.buf.len() {
            return self.project().inner.poll_read(cx, buf);
        }
        let mut filled = ready!(poll_spend_once(cx, |cx| self.as_mut().poll_fill_buf(cx)))?;
        let read = io::Read::read(&mut filled, buf)?;
        self.consume(read);
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted: usize = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        if self.start == self.end && wanted >= self.buf.len() {
            return self.project().inner.poll_read_vectored(cx, bufs);
        }
        let mut filled = ready!(poll_spend_once(cx, |cx| self.as_mut().poll_fill_buf(cx)))?;
        let read = io::Read::read_vectored(&mut filled, bufs)?;
        self.consume(read);
        Poll::Ready(Ok(read))
    }
}

impl<R: AsyncRead> AsyncBufRead for BufReader<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.project();
        let unread = *this.end - *this.start;
        if unread == 0 || SEEN.get() == unread {
            SEEN.set(0);
            if *this.start > 0 {
                this.buf.copy_within(*this.start..*this.end, 0);
                (*this.start, *this.end) = (0, unread);
            }
            if *this.end == this.buf.len() {
                // The buffer is smaller than a character.
                this.buf.resize(unread + MAX_CHAR, 0);
            }
            *this.end += ready!(this.inner.poll_read(cx, &mut this.buf[unread..]))?;
        }
        Poll::Ready(Ok(&this.buf[*this.start..*this.end]))
    }

    fn consume(self: Pin<&mut Self>, amt: usize) {
        let this = self.project();
        *this.start = (*this.start + amt).min(*this.end);
    }
}

/// Polls a reader for more than the `seen` bytes that it has shown last and that were not consumed. With 0 this is
/// `poll_fill_buf`.
///
/// The result may be no longer than `seen`: the reader cannot keep these bytes and read more, or has come to its end.
pub(super) fn poll_fill_beyond<'a, R: AsyncBufRead + ?Sized>(
    reader: Pin<&'a mut R>,
    cx: &mut Context<'_>,
    seen: usize,
) -> Poll<io::Result<&'a [u8]>> {
    /// Takes the note back, also if the reader panics.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            SEEN.set(0);
        }
    }
    if seen == 0 {
        return reader.poll_fill_buf(cx);
    }
    let _reset = Reset;
    SEEN.set(seen);
    reader.poll_fill_buf(cx)
}

impl<R: AsyncWrite> AsyncWrite for BufReader<R> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_close(cx)
    }
}

impl<R: AsyncSeek> AsyncSeek for BufReader<R> {
    /// Seeks, and drops what is in the buffer. A position that is relative to the present one counts from the first
    /// byte that was not consumed.
    fn poll_seek(self: Pin<&mut Self>, cx: &mut Context<'_>, position: io::SeekFrom) -> Poll<io::Result<u64>> {
        let this = self.project();
        let unread = *this.end - *this.start;
        let position = match position {
            io::SeekFrom::Current(offset) => {
                let ahead = i64::try_from(unread).expect("a buffer has fewer than 2^63 bytes");
                let Some(offset) = offset.checked_sub(ahead) else {
                    let error = "a seek to a position before the first that i64 can express";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidInput, error)));
                };
                io::SeekFrom::Current(offset)
            }
            other => other,
        };
        let now = ready!(this.inner.poll_seek(cx, position))?;
        (*this.start, *this.end) = (0, 0);
        Poll::Ready(Ok(now))
    }
}

impl<R: fmt::Debug> fmt::Debug for BufReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufReader")
            .field("reader", &self.inner)
            .field("buffer", &format_args!("{}/{}", self.end - self.start, self.buf.len()))
            .finish()
    }
}
