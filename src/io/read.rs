//! [`AsyncReadExt`]: the methods of every reader.
//!
//! `read_vectored` and `take` are those of `futures-lite`. The calls that read again and again are our own, and so are the
//! adapters `chain` and `bytes`.
//!
//! # The size of a read
//! A vector has room beyond its length, but a reader must get initialized memory. So `read_to_end` writes zeros there
//! first. It also truncates the vector before a poll returns, because a future that is dropped must leave exactly what
//! was read. So each poll writes the zeros anew. A peer that sends single bytes to a vector with 8 MiB of room would
//! cost 8 MiB of zeros for each byte.
//!
//! Hence a read gets a piece of the room, and the piece follows the bytes that come ([`Progress`]): it doubles after a
//! read that filled it, and halves after a read that filled less than half of it, and after a poll that read nothing.
//!
//! # The budget
//! A reader in memory has no socket below that would spend a task's budget. So each read takes one operation, unless
//! the reader has taken it. An interrupted read takes one too.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem;
use std::pin::Pin;
use std::slice;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncBufRead, AsyncRead};
use futures_lite::Stream;
use futures_lite::io::{ReadVectoredFuture, Take};
use pin_project_lite::pin_project;

use crate::budget::{self, poll_spend_once};

/// The piece of the first read.
const FIRST_PIECE: usize = 1024;

/// The smallest piece.
const MIN_PIECE: usize = 64;

/// The largest piece.
const MAX_PIECE: usize = 64 * 1024;

/// Reads from any reader, and adapters for readers.
///
/// Every [`AsyncRead`] has these methods. They have the names and the results of [`std::io::Read`].
/// [`AsyncBufReadExt`](super::AsyncBufReadExt) has the methods that read lines. [`io`](super#cancel-safety) lists what
/// each call loses when its future is dropped.
///
/// # A limit for the bytes
/// A peer that never ends its stream would fill the memory. [`take`](Self::take) bounds
/// [`read_to_end`](Self::read_to_end) and [`read_to_string`](Self::read_to_string). The limit counts down to 0:
/// ```
/// use kittiwake::io::AsyncReadExt;
///
/// # kittiwake::block_on(async {
/// let mut text = String::new();
/// let mut limited = (&b"a request that is much too long"[..]).take(9);
/// limited.read_to_string(&mut text).await?;
/// assert_eq!((text.as_str(), limited.limit()), ("a request", 0));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub trait AsyncReadExt: AsyncRead {
    /// Reads what is there into `buf`, and waits only if that is nothing.
    ///
    /// Returns the number of bytes. 0 is the end, or says that `buf` is empty.
    ///
    /// # Cancel safety
    /// Safe. A future that is dropped has read nothing.
    ///
    /// # Errors
    /// Returns the reader's errors, also `Interrupted`.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncReadExt;
    ///
    /// # kittiwake::block_on(async {
    /// let mut buf = [0; 8];
    /// let read = (&b"hello"[..]).read(&mut buf).await?;
    /// assert_eq!(&buf[..read], b"hello");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    // An echo costs 1.0 % more without this and that of its future, and a served one 1.5 %.
    #[inline]
    fn read<'a>(&'a mut self, buf: &'a mut [u8]) -> ReadFuture<'a, Self>
    where
        Self: Unpin,
    {
        ReadFuture { reader: self, buf }
    }

    /// Reads what is there into several slices, one after the other, and waits only if that is nothing.
    ///
    /// Returns the number of bytes. 0 is the end, or says that all slices are empty.
    ///
    /// # Cancel safety
    /// Safe. A future that is dropped has read nothing.
    ///
    /// # Errors
    /// Returns the reader's errors, also `Interrupted`.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncReadExt, IoSliceMut};
    ///
    /// # kittiwake::block_on(async {
    /// let (mut head, mut body) = ([0; 2], [0; 8]);
    /// let mut bufs = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut body)];
    /// assert_eq!((&b"hello"[..]).read_vectored(&mut bufs).await?, 5);
    /// assert_eq!((&head, &body[..3]), (b"he", &b"llo"[..]));
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn read_vectored<'a>(&'a mut self, bufs: &'a mut [IoSliceMut<'a>]) -> ReadVectoredFuture<'a, Self>
    where
        Self: Unpin,
    {
        futures_lite::AsyncReadExt::read_vectored(self, bufs)
    }

    /// Reads to the end, and appends all bytes to `buf`.
    ///
    /// Returns the number of bytes that this call has appended. Its work is in proportion to this number and to the
    /// number of its polls, whatever the capacity of `buf`. A `buf` whose capacity is exactly enough does not grow.
    ///
    /// # Cancel safety
    /// Safe. `buf` has what was read, and nothing else. A call that goes on where another was dropped returns only its
    /// own bytes.
    ///
    /// # Errors
    /// Returns the reader's errors, except `Interrupted`: then it reads on. What was read before the error is in `buf`.
    ///
    /// # Panics
    /// Polling the future panics if the reader reports more bytes than it was asked for.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncReadExt;
    ///
    /// # kittiwake::block_on(async {
    /// let mut bytes = b"> ".to_vec();
    /// assert_eq!((&b"hello"[..]).read_to_end(&mut bytes).await?, 5);
    /// assert_eq!(bytes, b"> hello");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn read_to_end<'a>(&'a mut self, buf: &'a mut Vec<u8>) -> ReadToEnd<'a, Self>
    where
        Self: Unpin,
    {
        ReadToEnd { reader: self, progress: Progress::new(buf.capacity()), buf }
    }

    /// Reads to the end, and appends all bytes as text to `buf`.
    ///
    /// Returns the number of bytes that this call has appended. Nothing is appended before the end or an error.
    ///
    /// # Cancel safety
    /// Not safe. A future that is dropped loses all bytes that it has read, and leaves `buf` as it was.
    /// [`read_to_end`](Self::read_to_end) loses none.
    ///
    /// # Errors
    /// Returns the reader's errors, except `Interrupted`: then it reads on. What was read before the error is appended
    /// to `buf` if it is valid UTF-8, and lost otherwise.
    ///
    /// `InvalidData` if the bytes are no UTF-8. `buf` is then as it was, and the error has the bytes: its inner error
    /// is a [`FromUtf8Error`](std::string::FromUtf8Error).
    ///
    /// # Panics
    /// Polling the future panics if the reader reports more bytes than it was asked for.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncReadExt, ErrorKind};
    ///
    /// # kittiwake::block_on(async {
    /// let mut text = String::from("> ");
    /// assert_eq!((&b"hello"[..]).read_to_string(&mut text).await?, 5);
    /// assert_eq!(text, "> hello");
    ///
    /// let error = (&b"no text: \xFF"[..]).read_to_string(&mut text).await.unwrap_err();
    /// assert_eq!((error.kind(), text.as_str()), (ErrorKind::InvalidData, "> hello"));
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn read_to_string<'a>(&'a mut self, buf: &'a mut String) -> ReadToString<'a, Self>
    where
        Self: Unpin,
    {
        ReadToString { reader: self, buf, bytes: Vec::new(), progress: Progress::new(0) }
    }

    /// Reads until `buf` is full.
    ///
    /// # Cancel safety
    /// Not safe. The bytes that a dropped future has read are at the beginning of `buf`, but their number is not known.
    ///
    /// # Errors
    /// Returns the reader's errors, except `Interrupted`: then it reads on. Returns `UnexpectedEof` if the reader ends
    /// before `buf` is full. The number of bytes that were read before the error is not known.
    ///
    /// # Panics
    /// Polling the future panics if the reader reports more bytes than it was asked for.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncReadExt, ErrorKind};
    ///
    /// # kittiwake::block_on(async {
    /// let (mut reader, mut buf) = (&b"hello"[..], [0; 3]);
    /// reader.read_exact(&mut buf).await?;
    /// assert_eq!(&buf, b"hel");
    /// let error = reader.read_exact(&mut buf).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn read_exact<'a>(&'a mut self, buf: &'a mut [u8]) -> ReadExact<'a, Self>
    where
        Self: Unpin,
    {
        ReadExact { reader: self, buf }
    }

    /// Returns a reader that ends after `limit` bytes, or at the end of this reader.
    ///
    /// Call it on `&mut reader` to read on behind the limit later.
    ///
    /// # Cancel safety
    /// A [`Take`] has no buffer. It counts the bytes that were read, so that it may go on after any read was dropped.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncReadExt;
    ///
    /// # kittiwake::block_on(async {
    /// let (mut reader, mut text) = (&b"hello"[..], String::new());
    /// (&mut reader).take(3).read_to_string(&mut text).await?;
    /// assert_eq!((text.as_str(), reader), ("hel", &b"lo"[..]));
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn take(self, limit: u64) -> Take<Self>
    where
        Self: Sized,
    {
        futures_lite::AsyncReadExt::take(self, limit)
    }

    /// Returns the bytes of the reader as a [`Stream`].
    ///
    /// Each byte is a read of its own. So give it a reader in memory, or a [`BufReader`](super::BufReader).
    ///
    /// # Cancel safety
    /// The future of [`next`](crate::stream::StreamExt::next) may be dropped: it has then read nothing.
    ///
    /// # Errors
    /// The stream yields the reader's errors, except `Interrupted`, and reads on when it is polled again. A reader that
    /// fails for ever makes a stream without an end.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncReadExt;
    /// use kittiwake::stream::StreamExt;
    ///
    /// # kittiwake::block_on(async {
    /// let mut bytes = (&b"hi"[..]).bytes();
    /// assert_eq!(bytes.next().await.transpose()?, Some(b'h'));
    /// assert_eq!(bytes.next().await.transpose()?, Some(b'i'));
    /// assert_eq!(bytes.next().await.transpose()?, None);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn bytes(self) -> Bytes<Self>
    where
        Self: Sized,
    {
        Bytes { reader: self }
    }

    /// Returns a reader that reads this reader to its end, and then `next`.
    ///
    /// # Cancel safety
    /// A [`Chain`] has no buffer, so that it may go on after any read was dropped.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncReadExt;
    ///
    /// # kittiwake::block_on(async {
    /// let mut text = String::new();
    /// (&b"hello "[..]).chain(&b"world"[..]).read_to_string(&mut text).await?;
    /// assert_eq!(text, "hello world");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn chain<R: AsyncRead>(self, next: R) -> Chain<Self, R>
    where
        Self: Sized,
    {
        Chain { first: self, second: next, first_has_ended: false }
    }

    /// Returns the reader in a box, without its type.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncReadExt, empty, repeat};
    ///
    /// # kittiwake::block_on(async {
    /// for is_compressed in [false, true] {
    ///     let mut body = if is_compressed { empty().boxed_reader() } else { repeat(b'x').take(3).boxed_reader() };
    ///     let mut bytes = Vec::new();
    ///     assert_eq!(body.read_to_end(&mut bytes).await?, if is_compressed { 0 } else { 3 });
    /// }
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn boxed_reader<'a>(self) -> Pin<Box<dyn AsyncRead + Send + 'a>>
    where
        Self: Sized + Send + 'a,
    {
        Box::pin(self)
    }
}

impl<R: AsyncRead + ?Sized> AsyncReadExt for R {}

/// The future of [`AsyncReadExt::read`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct ReadFuture<'a, R: ?Sized> {
    reader: &'a mut R,
    buf: &'a mut [u8],
}

impl<R: AsyncRead + Unpin + ?Sized> Future for ReadFuture<'_, R> {
    type Output = io::Result<usize>;

    // Part of `read`.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { reader, buf } = &mut *self;
        Pin::new(&mut **reader).poll_read(cx, buf)
    }
}

/// The future of [`AsyncReadExt::read_to_end`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct ReadToEnd<'a, R: ?Sized> {
    reader: &'a mut R,
    buf: &'a mut Vec<u8>,
    progress: Progress,
}

impl<R: AsyncRead + Unpin + ?Sized> Future for ReadToEnd<'_, R> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { reader, buf, progress } = &mut *self;
        ready!(progress.poll_read_to_end(Pin::new(&mut **reader), cx, buf))?;
        Poll::Ready(Ok(progress.read))
    }
}

/// The future of [`AsyncReadExt::read_to_string`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct ReadToString<'a, R: ?Sized> {
    reader: &'a mut R,
    buf: &'a mut String,
    /// All bytes that were read. A `String` cannot hold them before they are known to be text.
    bytes: Vec<u8>,
    progress: Progress,
}

impl<R: AsyncRead + Unpin + ?Sized> Future for ReadToString<'_, R> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { reader, buf, bytes, progress } = &mut *self;
        let result = ready!(progress.poll_read_to_end(Pin::new(&mut **reader), cx, bytes));
        match String::from_utf8(mem::take(bytes)) {
            // The string is empty and too small. To take `text` saves an allocation and a copy.
            Ok(text) if buf.is_empty() && buf.capacity() < text.len() => **buf = text,
            Ok(text) => buf.push_str(&text),
            // The reader's error comes first, as in std. It may have cut the last character.
            Err(error) => return Poll::Ready(result.and(Err(io::Error::new(ErrorKind::InvalidData, error)))),
        }
        Poll::Ready(result.map(|()| progress.read))
    }
}

/// The future of [`AsyncReadExt::read_exact`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct ReadExact<'a, R: ?Sized> {
    reader: &'a mut R,
    /// The part of the slice that is not filled.
    buf: &'a mut [u8],
}

impl<R: AsyncRead + Unpin + ?Sized> Future for ReadExact<'_, R> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { reader, buf } = &mut *self;
        while !buf.is_empty() {
            match ready!(Pin::new(&mut **reader).poll_read(cx, buf)) {
                Ok(0) => return Poll::Ready(Err(ErrorKind::UnexpectedEof.into())),
                Ok(read) => *buf = &mut mem::take(buf)[read..],
                // Only these reads could go on for ever.
                Err(error) if error.kind() == ErrorKind::Interrupted => ready!(budget::poll_spend(cx)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The reads of one call that reads to the end.
#[derive(Debug)]
struct Progress {
    /// The number of bytes that were read.
    read: usize,
    /// The number of bytes that the next read asks for, if there is room.
    piece: usize,
    /// The capacity of the vector before the first read.
    capacity: usize,
}

impl Progress {
    fn new(capacity: usize) -> Self {
        Self { read: 0, piece: FIRST_PIECE, capacity }
    }

    /// Reads to the end, and appends to `buf`. After each poll `buf` has exactly what was read.
    fn poll_read_to_end<R: AsyncRead + ?Sized>(
        &mut self,
        mut reader: Pin<&mut R>,
        cx: &mut Context<'_>,
        buf: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        let read_before = self.read;
        loop {
            // The caller may have known the number of bytes, so that the end comes next. The vector must not double its
            // memory only to find the end.
            let result = if buf.len() == self.capacity && !buf.is_empty() {
                poll_probe(reader.as_mut(), cx, buf)
            } else {
                self.poll_piece(reader.as_mut(), cx, buf)
            };
            match result {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(read)) => self.read += read,
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // A task may be woken again and again for something else.
                    if self.read == read_before {
                        self.shrink();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads a piece, and appends it to `buf`. Sets the size of the next piece.
    fn poll_piece<R: AsyncRead + ?Sized>(
        &mut self,
        reader: Pin<&mut R>,
        cx: &mut Context<'_>,
        buf: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        /// Takes the zeros away that no read has replaced, also if the reader panics.
        struct Truncate<'a> {
            buf: &'a mut Vec<u8>,
            length: usize,
        }
        impl Drop for Truncate<'_> {
            fn drop(&mut self) {
                self.buf.truncate(self.length);
            }
        }

        let length = buf.len();
        let size = match buf.capacity() - length {
            0 => self.piece,
            room => room.min(self.piece),
        };
        buf.resize(length + size, 0);
        let mut filling = Truncate { buf, length };
        let read = ready!(poll_spend_once(cx, |cx| reader.poll_read(cx, &mut filling.buf[length..])))?;
        assert!(read <= size, "the reader was asked for {size} bytes and reports {read}");
        filling.length += read;
        if read == size {
            self.piece = (self.piece * 2).min(MAX_PIECE);
        } else if read < size / 2 {
            self.shrink();
        }
        Poll::Ready(Ok(read))
    }

    fn shrink(&mut self) {
        self.piece = (self.piece / 2).max(MIN_PIECE);
    }
}

/// Reads a few bytes without growing `buf` first, and appends them.
fn poll_probe<R: AsyncRead + ?Sized>(
    reader: Pin<&mut R>,
    cx: &mut Context<'_>,
    buf: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    let mut probe = [0; MIN_PIECE];
    let read = ready!(poll_spend_once(cx, |cx| reader.poll_read(cx, &mut probe)))?;
    buf.extend_from_slice(&probe[..read]);
    Poll::Ready(Ok(read))
}

pin_project! {
    /// The stream of [`AsyncReadExt::bytes`].
    #[derive(Debug)]
    #[must_use = "streams do nothing unless polled"]
    pub struct Bytes<R> {
        #[pin]
        reader: R,
    }
}

impl<R: AsyncRead> Stream for Bytes<R> {
    type Item = io::Result<u8>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (mut reader, mut byte) = (self.project().reader, 0);
        loop {
            let reading = poll_spend_once(cx, |cx| reader.as_mut().poll_read(cx, slice::from_mut(&mut byte)));
            match ready!(reading) {
                Ok(0) => return Poll::Ready(None),
                Ok(_) => return Poll::Ready(Some(Ok(byte))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

/// The bytes that the stream has not yielded.
impl<R: AsyncRead> AsyncRead for Bytes<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.project().reader.poll_read(cx, buf)
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().reader.poll_read_vectored(cx, bufs)
    }
}

pin_project! {
    /// The reader of [`AsyncReadExt::chain`].
    #[derive(Debug)]
    pub struct Chain<R1, R2> {
        #[pin]
        first: R1,
        #[pin]
        second: R2,
        first_has_ended: bool,
    }
}

impl<R1, R2> Chain<R1, R2> {
    /// Returns the two readers.
    pub fn get_ref(&self) -> (&R1, &R2) {
        (&self.first, &self.second)
    }

    /// Returns the two readers, for instance to set the limit of a `Take`.
    pub fn get_mut(&mut self) -> (&mut R1, &mut R2) {
        (&mut self.first, &mut self.second)
    }

    /// Returns the two readers. A `Chain` has no buffer, so that nothing is lost.
    pub fn into_inner(self) -> (R1, R2) {
        (self.first, self.second)
    }
}

impl<R1: AsyncRead, R2: AsyncRead> AsyncRead for Chain<R1, R2> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.project();
        if !*this.first_has_ended {
            let read = ready!(this.first.poll_read(cx, buf))?;
            if read > 0 || buf.is_empty() {
                return Poll::Ready(Ok(read));
            }
            *this.first_has_ended = true;
        }
        this.second.poll_read(cx, buf)
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        if !*this.first_has_ended {
            let read = ready!(this.first.poll_read_vectored(cx, bufs))?;
            if read > 0 || bufs.iter().all(|buf| buf.is_empty()) {
                return Poll::Ready(Ok(read));
            }
            *this.first_has_ended = true;
        }
        this.second.poll_read_vectored(cx, bufs)
    }
}

impl<R1: AsyncBufRead, R2: AsyncBufRead> AsyncBufRead for Chain<R1, R2> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.project();
        if !*this.first_has_ended {
            let filled = ready!(this.first.poll_fill_buf(cx))?;
            if !filled.is_empty() {
                return Poll::Ready(Ok(filled));
            }
            *this.first_has_ended = true;
        }
        this.second.poll_fill_buf(cx)
    }

    fn consume(self: Pin<&mut Self>, amt: usize) {
        let this = self.project();
        if *this.first_has_ended { this.second.consume(amt) } else { this.first.consume(amt) }
    }
}
