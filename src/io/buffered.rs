//! [`AsyncBufReadExt`]: lines and other pieces of a reader that has a buffer.
//!
//! # Where the bytes are
//! A byte is in one of two places: in the reader, not consumed, or in the caller's buffer. Each poll moves bytes from the
//! first to the second before it consumes them, and no future keeps any. So a future may be dropped, and may fail,
//! between any two polls: the next call goes on. [`Lines`] and [`Split`] keep the beginning of a piece themselves.
//!
//! # Text
//! A `String` holds whole characters only. [`ReadLine`] divides the bytes that the reader shows into three parts:
//!
//! 1. valid text up to the end of the line: it goes to the `String` and is consumed;
//! 2. the first bytes of a character whose other bytes are missing: they stay in the reader, which is asked for more
//!    ([`poll_fill_beyond`]);
//! 3. bytes that are no text: they stay in the reader, and the call fails.
//!
//! Only a [`BufReader`](super::BufReader) can read more behind the bytes that it has. From any other reader the first
//! bytes of the character must be taken before the others can come. They are the one exception to the rule above: the
//! future keeps them, three at most, in [`Held`].
//!
//! # The budget
//! A buffer holds thousands of short lines, and a reader in memory has no socket below that would spend a task's budget. So
//! each look at the reader takes one operation, unless the reader has taken it, and a task that finds one piece after the
//! other gives way to others.

use std::io::{self, BufRead, ErrorKind};
use std::mem;
use std::pin::Pin;
use std::str;
use std::task::{Context, Poll, ready};

use futures_io::AsyncBufRead;
use futures_lite::Stream;
use pin_project_lite::pin_project;

use super::buf_reader::poll_fill_beyond;
use crate::budget::{self, poll_spend_once};

/// Lines and other pieces of a reader that has a buffer.
///
/// Every [`AsyncBufRead`] has these methods. They have the names and the results of [`std::io::BufRead`], and they are
/// cancel safe: a call that fails, times out or is dropped leaves what it has read in the caller's buffer, and the next
/// call with the same buffer goes on there.
///
/// # A timeout in the middle of a line
/// ```
/// use kittiwake::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, duplex};
/// use kittiwake::time::{Duration, timeout};
///
/// # kittiwake::block_on(async {
/// let (mut client, server) = duplex(64);
/// let mut reader = BufReader::new(server);
/// let mut line = String::new();
///
/// client.write_all(b"KEEP ").await?;
/// assert!(timeout(Duration::from_millis(1), reader.read_line(&mut line)).await.is_err());
/// client.write_all(b"everything\n").await?;
/// reader.read_line(&mut line).await?;
/// assert_eq!(line, "KEEP everything\n");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
///
/// # A limit for lines
/// A peer that never ends its line would fill the memory. [`take`](super::AsyncReadExt::take) bounds a line. Each call
/// gets a `Take` of its own. It may be dropped at any time, because a `Take` has no buffer. The limit must count the
/// bytes that an earlier, unfinished call has left in `line`:
/// ```
/// use kittiwake::io::{self, AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
///
/// /// The longest line, with its end.
/// const MAX_LINE: u64 = 16;
///
/// /// Reads a line into `line`, which is empty or has the beginning of the line. Returns false at the end.
/// async fn next_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut String) -> io::Result<bool> {
///     reader.take(MAX_LINE - line.len() as u64).read_line(line).await?;
///     if line.len() as u64 == MAX_LINE && !line.ends_with('\n') {
///         return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
///     }
///     Ok(!line.is_empty())
/// }
///
/// # kittiwake::block_on(async {
/// let mut reader = BufReader::new(&b"short\nand one that is much too long\n"[..]);
/// let mut line = String::new();
/// assert!(next_line(&mut reader, &mut line).await?);
/// assert_eq!(line, "short\n");
/// line.clear();
/// assert!(next_line(&mut reader, &mut line).await.is_err());
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub trait AsyncBufReadExt: AsyncBufRead {
    /// Waits until the reader has bytes or has ended, and returns the bytes without consuming them.
    ///
    /// An empty slice is the end. [`consume`](Self::consume) takes the bytes that were used; the others are returned
    /// again.
    ///
    /// # Cancel safety
    /// Safe. Nothing is consumed.
    ///
    /// # Errors
    /// Returns the reader's errors, also `Interrupted`. A reader that reports bytes, and then has none, gives
    /// `Interrupted` too: call again.
    ///
    /// # Panics
    /// Polling the future panics after it was ready.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncBufReadExt, BufReader};
    ///
    /// # kittiwake::block_on(async {
    /// let mut reader = BufReader::with_capacity(5, &b"hello world"[..]);
    /// assert_eq!(reader.fill_buf().await?, b"hello");
    /// reader.consume(2);
    /// assert_eq!(reader.fill_buf().await?, b"llo");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn fill_buf(&mut self) -> FillBuf<'_, Self>
    where
        Self: Unpin,
    {
        FillBuf { reader: Some(self) }
    }

    /// Consumes `amt` of the bytes that [`fill_buf`](Self::fill_buf) has returned.
    fn consume(&mut self, amt: usize)
    where
        Self: Unpin,
    {
        AsyncBufRead::consume(Pin::new(self), amt);
    }

    /// Reads up to and including the first `delimiter`, or to the end, and appends all that to `buf`.
    ///
    /// Returns the number of bytes that this call has appended. 0 is the end.
    ///
    /// # Cancel safety
    /// Safe. What was read is in `buf`. A call that goes on where another was dropped returns only its own bytes, and 0
    /// if the other has read to the end.
    ///
    /// # Errors
    /// Returns the reader's errors, except `Interrupted`: then it reads on. What was read before the error is in `buf`.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncBufReadExt;
    ///
    /// # kittiwake::block_on(async {
    /// let (mut reader, mut piece) = (&b"one,two"[..], Vec::new());
    /// assert_eq!(reader.read_until(b',', &mut piece).await?, 4);
    /// assert_eq!(reader.read_until(b',', &mut piece).await?, 3);
    /// assert_eq!(piece, b"one,two");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn read_until<'a>(&'a mut self, delimiter: u8, buf: &'a mut Vec<u8>) -> ReadUntil<'a, Self>
    where
        Self: Unpin,
    {
        ReadUntil { reader: self, delimiter, buf, read: 0 }
    }

    /// Reads up to and including the first `delimiter`, or to the end, and discards all that.
    ///
    /// Returns the number of bytes that this call has discarded. 0 is the end.
    ///
    /// # Cancel safety
    /// Safe, and the next call goes on. The number of bytes that a dropped call has discarded is not known.
    ///
    /// # Errors
    /// Returns the reader's errors, except `Interrupted`: then it reads on.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::AsyncBufReadExt;
    ///
    /// # kittiwake::block_on(async {
    /// let mut reader = &b"one,two"[..];
    /// assert_eq!(reader.skip_until(b',').await?, 4);
    /// assert_eq!(reader, b"two");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn skip_until(&mut self, delimiter: u8) -> SkipUntil<'_, Self>
    where
        Self: Unpin,
    {
        SkipUntil { reader: self, delimiter, read: 0 }
    }

    /// Reads up to and including the end of the line, or to the end of the reader, and appends all that to `buf`.
    ///
    /// A line ends with a newline, the byte 0xA. Returns the number of bytes that this call has appended. 0 is the end.
    ///
    /// # Cancel safety
    /// Safe. What was read is in `buf`. A call that goes on where another was dropped returns only its own bytes, and 0
    /// if the other has read to the end.
    ///
    /// A character whose bytes come in two pieces stays in the reader until it is whole, if the reader is a
    /// [`BufReader`](super::BufReader), also inside an adapter such as `Take`. Another reader that shows the first bytes
    /// of a character without the others must give them up first: a future that is dropped or fails at this moment
    /// loses them, three bytes at most. The next call then fails with `InvalidData`, because the other bytes are no text.
    /// [`lines`](Self::lines) and [`read_until`](Self::read_until) have no such exception.
    ///
    /// # Errors
    /// Returns the reader's errors, except `Interrupted`: then it reads on. What was read before the error is in `buf`.
    ///
    /// `InvalidData` if the line is no UTF-8. `buf` then has the text before the first byte that is none, and this byte
    /// is the reader's next one: [`read_until`](Self::read_until) reads the rest of the line, and
    /// [`skip_until`](Self::skip_until) skips it. Another `read_line` fails again. If the first bytes of a character had
    /// to be taken, as at the end of the reader, the error has them: its inner error is a
    /// [`FromUtf8Error`](std::string::FromUtf8Error).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncBufReadExt, ErrorKind};
    ///
    /// # kittiwake::block_on(async {
    /// let (mut reader, mut line) = (&b"one\ntw\xFFo\nthree\n"[..], String::from("> "));
    /// assert_eq!(reader.read_line(&mut line).await?, 4);
    /// assert_eq!(line, "> one\n");
    ///
    /// line.clear();
    /// let error = reader.read_line(&mut line).await.unwrap_err();
    /// assert_eq!((error.kind(), line.as_str()), (ErrorKind::InvalidData, "tw"));
    /// reader.skip_until(b'\n').await?;
    /// assert_eq!(reader, b"three\n");
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn read_line<'a>(&'a mut self, buf: &'a mut String) -> ReadLine<'a, Self>
    where
        Self: Unpin,
    {
        ReadLine { reader: self, buf, read: 0, cut: 0, held: Held::default() }
    }

    /// Returns the lines of the reader as a [`Stream`] of strings, without their ends.
    ///
    /// An end is a newline, or a carriage return and a newline.
    ///
    /// # Cancel safety
    /// The future of [`next`](crate::stream::StreamExt::next) may be dropped: [`Lines`] keeps the beginning of the line.
    ///
    /// # Errors
    /// The stream yields the reader's errors, except `Interrupted`, and goes on with the same line when it is polled
    /// again. A reader that fails for ever makes a stream without an end.
    ///
    /// A line that is no UTF-8 yields `InvalidData`, and the stream goes on with the next line. The error has the bytes:
    /// its inner error is a [`FromUtf8Error`](std::string::FromUtf8Error).
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncBufReadExt, Cursor};
    /// use kittiwake::stream::StreamExt;
    ///
    /// # kittiwake::block_on(async {
    /// let mut lines = Cursor::new("one\r\ntwo\n\nthree").lines();
    /// let mut all = Vec::new();
    /// while let Some(line) = lines.next().await {
    ///     all.push(line?);
    /// }
    /// assert_eq!(all, ["one", "two", "", "three"]);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn lines(self) -> Lines<Self>
    where
        Self: Sized,
    {
        Lines { reader: self, line: Vec::new() }
    }

    /// Returns the pieces between the bytes `delimiter` as a [`Stream`] of vectors, without the `delimiter`.
    ///
    /// # Cancel safety
    /// The future of [`next`](crate::stream::StreamExt::next) may be dropped: [`Split`] keeps the beginning of the piece.
    ///
    /// # Errors
    /// The stream yields the reader's errors, except `Interrupted`, and goes on with the same piece when it is polled
    /// again. A reader that fails for ever makes a stream without an end.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::io::{AsyncBufReadExt, Cursor};
    /// use kittiwake::stream::StreamExt;
    ///
    /// # kittiwake::block_on(async {
    /// let pieces: Vec<Vec<u8>> = Cursor::new("one,two").split(b',').try_collect().await?;
    /// assert_eq!(pieces, [b"one", b"two"]);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    fn split(self, delimiter: u8) -> Split<Self>
    where
        Self: Sized,
    {
        Split { reader: self, delimiter, piece: Vec::new() }
    }
}

impl<R: AsyncBufRead + ?Sized> AsyncBufReadExt for R {}

/// The future of [`AsyncBufReadExt::fill_buf`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct FillBuf<'a, R: ?Sized> {
    /// `None` after the future was ready.
    reader: Option<&'a mut R>,
}

impl<'a, R: AsyncBufRead + Unpin + ?Sized> Future for FillBuf<'a, R> {
    type Output = io::Result<&'a [u8]>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reader = self.reader.as_mut().expect("FillBuf polled after it was ready");
        let filled = ready!(poll_spend_once(cx, |cx| Pin::new(&mut **reader).poll_fill_buf(cx))).map(<[u8]>::len);
        let reader = self.reader.take().expect("the reader, which was just polled");
        // At an end a second poll could read again, and wait.
        if filled? == 0 {
            return Poll::Ready(Ok(&[]));
        }
        // The bytes of the first poll cannot be returned: the borrow checker would not let the future keep the reader
        // when that poll is pending.
        match Pin::new(reader).poll_fill_buf(cx) {
            Poll::Ready(filled) => Poll::Ready(filled),
            Poll::Pending => {
                let error = "the reader has shown bytes, and then had none";
                Poll::Ready(Err(io::Error::new(ErrorKind::Interrupted, error)))
            }
        }
    }
}

/// The future of [`AsyncBufReadExt::read_until`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct ReadUntil<'a, R: ?Sized> {
    reader: &'a mut R,
    delimiter: u8,
    buf: &'a mut Vec<u8>,
    read: usize,
}

impl<R: AsyncBufRead + Unpin + ?Sized> Future for ReadUntil<'_, R> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { reader, delimiter, buf, read } = &mut *self;
        ready!(poll_read_until(Pin::new(&mut **reader), cx, *delimiter, buf, read))?;
        Poll::Ready(Ok(*read))
    }
}

/// The future of [`AsyncBufReadExt::skip_until`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct SkipUntil<'a, R: ?Sized> {
    reader: &'a mut R,
    delimiter: u8,
    read: usize,
}

impl<R: AsyncBufRead + Unpin + ?Sized> Future for SkipUntil<'_, R> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { reader, delimiter, read } = &mut *self;
        let skip = |mut filled: &[u8]| BufRead::skip_until(&mut filled, *delimiter);
        ready!(poll_pieces(Pin::new(&mut **reader), cx, *delimiter, read, skip))?;
        Poll::Ready(Ok(*read))
    }
}

/// Reads up to and including `delimiter`, or to the end, into `buf`. Adds the number of bytes to `read`.
fn poll_read_until<R: AsyncBufRead + ?Sized>(
    reader: Pin<&mut R>,
    cx: &mut Context<'_>,
    delimiter: u8,
    buf: &mut Vec<u8>,
    read: &mut usize,
) -> Poll<io::Result<()>> {
    // std searches a slice faster than a loop over its bytes would.
    poll_pieces(reader, cx, delimiter, read, |mut filled| BufRead::read_until(&mut filled, delimiter, buf))
}

/// Passes what the reader shows to `use_piece`, which takes all of it, or the bytes up to and including `delimiter`,
/// and returns their number. Ends after `delimiter` and at the end of the reader.
fn poll_pieces<R: AsyncBufRead + ?Sized>(
    mut reader: Pin<&mut R>,
    cx: &mut Context<'_>,
    delimiter: u8,
    read: &mut usize,
    mut use_piece: impl FnMut(&[u8]) -> io::Result<usize>,
) -> Poll<io::Result<()>> {
    loop {
        let filled = match ready!(poll_spend_once(cx, |cx| reader.as_mut().poll_fill_buf(cx))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            filled => filled?,
        };
        let used = use_piece(filled)?;
        let is_end = used == 0 || filled[used - 1] == delimiter;
        reader.as_mut().consume(used);
        *read += used;
        if is_end {
            return Poll::Ready(Ok(()));
        }
    }
}

/// The future of [`AsyncBufReadExt::read_line`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct ReadLine<'a, R: ?Sized> {
    reader: &'a mut R,
    buf: &'a mut String,
    read: usize,
    /// The reader's next bytes are the first of a character whose others are missing. Their number, or 0.
    cut: usize,
    held: Held,
}

/// The first bytes of a character, taken from a reader that would not show the others otherwise. Often none.
#[derive(Debug, Default)]
struct Held {
    bytes: [u8; 4],
    length: usize,
}

/// The result of a look at the reader's bytes.
enum Look {
    /// The line is complete.
    Line,
    /// More bytes are needed.
    More,
    /// The next byte is no text.
    Invalid,
}

impl<R: AsyncBufRead + Unpin + ?Sized> Future for ReadLine<'_, R> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let filling = poll_spend_once(cx, |cx| poll_fill_beyond(Pin::new(&mut *this.reader), cx, this.cut));
            let filled = match ready!(filling) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                filled => filled?,
            };
            let is_end = filled.is_empty();
            let (look, used) = match this.held.length {
                0 => take_text(filled, &mut this.cut, this.buf, &mut this.held),
                _ => this.held.complete(filled, this.buf),
            };
            Pin::new(&mut *this.reader).consume(used);
            this.read += used;
            match look {
                Look::More if !is_end => {}
                Look::Line | Look::More if this.held.length == 0 => return Poll::Ready(Ok(this.read)),
                // A task that repeats the call finds the same error at once, so that it must give way some time.
                _ => {
                    ready!(budget::poll_spend(cx));
                    return Poll::Ready(Err(this.held.invalid()));
                }
            }
        }
    }
}

/// Takes the text of the line from `filled` into `buf`. Returns the number of bytes that were taken.
///
/// `cut` is the number of bytes that a look before has left because the other bytes of their character were missing.
/// If nothing has come behind them, they go to `held`.
fn take_text(filled: &[u8], cut: &mut usize, buf: &mut String, held: &mut Held) -> (Look, usize) {
    let mut rest = filled;
    // A slice is a reader without errors.
    let length = BufRead::skip_until(&mut rest, b'\n').unwrap_or(filled.len());
    let line = &filled[..length];
    let error = match str::from_utf8(line) {
        Ok(text) => {
            *cut = 0;
            buf.push_str(text);
            return (if line.ends_with(b"\n") { Look::Line } else { Look::More }, length);
        }
        Err(error) => error,
    };
    let (text, rest) = line.split_at(error.valid_up_to());
    buf.push_str(str::from_utf8(text).expect("the bytes up to the first that is no text"));
    if error.error_len().is_some() {
        *cut = 0;
        return (Look::Invalid, text.len());
    }
    if rest.len() > *cut || !text.is_empty() {
        *cut = rest.len();
        return (Look::More, text.len());
    }
    // The reader was asked for more bytes and has none: it is no `BufReader`, or has ended.
    *cut = 0;
    held.bytes[..rest.len()].copy_from_slice(rest);
    held.length = rest.len();
    (Look::More, rest.len())
}

impl Held {
    /// Adds bytes until the character is whole, and moves it to `buf`. Returns the number of bytes that were taken.
    fn complete(&mut self, filled: &[u8], buf: &mut String) -> (Look, usize) {
        for (used, byte) in filled.iter().enumerate() {
            self.bytes[self.length] = *byte;
            match str::from_utf8(&self.bytes[..=self.length]) {
                Ok(text) => {
                    buf.push_str(text);
                    self.length = 0;
                    return (Look::More, used + 1);
                }
                Err(error) if error.error_len().is_some() => return (Look::Invalid, used),
                Err(_) => self.length += 1,
            }
        }
        (Look::More, filled.len())
    }

    /// The error of a line that is no text, with the bytes that were taken and are no text.
    fn invalid(&mut self) -> io::Error {
        let taken = self.bytes[..mem::take(&mut self.length)].to_vec();
        match String::from_utf8(taken) {
            Err(error) => io::Error::new(ErrorKind::InvalidData, error),
            Ok(_) => io::Error::new(ErrorKind::InvalidData, "the line is not valid UTF-8"),
        }
    }
}

pin_project! {
    /// The stream of [`AsyncBufReadExt::lines`].
    #[derive(Debug)]
    #[must_use = "streams do nothing unless polled"]
    pub struct Lines<R> {
        #[pin]
        reader: R,
        // The beginning of the next line.
        line: Vec<u8>,
    }
}

impl<R> Lines<R> {
    /// Returns the reader.
    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    /// Returns the reader, for instance to set the limit of a `Take`.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Returns the reader, and the beginning of a line that was read and not yielded.
    pub fn into_parts(self) -> (R, Vec<u8>) {
        (self.reader, self.line)
    }
}

impl<R: AsyncBufRead> Stream for Lines<R> {
    type Item = io::Result<String>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        ready!(poll_read_until(this.reader, cx, b'\n', this.line, &mut 0))?;
        let mut line = mem::take(this.line);
        if line.is_empty() {
            return Poll::Ready(None);
        }
        if line.ends_with(b"\n") {
            line.pop();
            if line.ends_with(b"\r") {
                line.pop();
            }
        }
        let line = String::from_utf8(line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error));
        Poll::Ready(Some(line))
    }
}

pin_project! {
    /// The stream of [`AsyncBufReadExt::split`].
    #[derive(Debug)]
    #[must_use = "streams do nothing unless polled"]
    pub struct Split<R> {
        #[pin]
        reader: R,
        delimiter: u8,
        // The beginning of the next piece.
        piece: Vec<u8>,
    }
}

impl<R> Split<R> {
    /// Returns the reader.
    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    /// Returns the reader, for instance to set the limit of a `Take`.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Returns the reader, and the beginning of a piece that was read and not yielded.
    pub fn into_parts(self) -> (R, Vec<u8>) {
        (self.reader, self.piece)
    }
}

impl<R: AsyncBufRead> Stream for Split<R> {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        ready!(poll_read_until(this.reader, cx, *this.delimiter, this.piece, &mut 0))?;
        let mut piece = mem::take(this.piece);
        if piece.is_empty() {
            return Poll::Ready(None);
        }
        if piece.ends_with(&[*this.delimiter]) {
            piece.pop();
        }
        Poll::Ready(Some(Ok(piece)))
    }
}
