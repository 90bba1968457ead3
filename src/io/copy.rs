//! [`copy()`] and [`copy_bidirectional`].
//!
//! # One direction
//! [`Transfer`] has a buffer, and repeats:
//!
//! 1. read into the buffer. If the reader has to wait, flush the writer: a reader that idles must not hold back bytes
//!    that a writer has in a buffer of its own;
//! 2. write the buffer to the writer.
//!
//! At the end of the reader, and after an error of the reader, it flushes the writer too. So all bytes that were read
//! are passed on before an error is reported.
//!
//! # Two directions
//! [`CopyBidirectional`] polls two transfers. When one comes to its end, it closes that writer, and the other goes on.
//! The transfer that was first in one poll is second in the next: a reader that is always ready uses up the budget of
//! its task's poll, and would leave none to the other.
//!
//! # The budget
//! The sockets spend it, and so does a pair in memory. A slice and the like do not. So every [`ROUNDS`] rounds take one
//! operation more.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};

use crate::budget;
use crate::time::{Duration, Instant, Sleep, sleep_until};

/// The buffer of one direction.
const BUFFER: usize = 8 * 1024;

/// The rounds of a transfer that take one operation from the budget.
const ROUNDS: u32 = 8;

/// Copies all bytes of `reader` to `writer`, and returns their number.
///
/// It flushes `writer` at the end, and whenever `reader` has to wait. So bytes for a
/// [`BufWriter`](super::BufWriter) arrive while the reader is idle. It does not close `writer`. References work too:
/// `copy(&mut reader, &mut writer)`. The buffer has 8 KiB.
///
/// # Cancel safety
/// Not safe: a future that is dropped may have read up to 8 KiB that it has not written. In a loop that selects, keep
/// the future and poll it by reference.
///
/// # Errors
/// Returns the errors of `reader` and `writer`, except `Interrupted`: then it goes on. `WriteZero` if `writer` takes no
/// more bytes. All that was read before an error of `reader` is written and flushed first.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, BufWriter, copy, duplex};
///
/// # kittiwake::block_on(async {
/// let (mut near, far) = duplex(64);
/// assert_eq!(copy(&b"hello"[..], BufWriter::new(far)).await?, 5);
/// let mut text = String::new();
/// near.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub async fn copy<R, W>(mut reader: R, mut writer: W) -> io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut transfer = Transfer::new();
    poll_fn(|cx| transfer.poll(cx, Pin::new(&mut reader), Pin::new(&mut writer))).await;
    match transfer.end.take_error() {
        Some((_, error)) => Err(error),
        None => Ok(transfer.written),
    }
}

/// Copies between two streams in both directions, until both have ended.
///
/// When one stream ends, the other is closed for writing, so that its peer reads to an end too. The other direction
/// goes on until its own end. The output is the number of bytes from `a` to `b`, and from `b` to `a`.
///
/// References work too: `copy_bidirectional(&mut a, &mut b)`. Each direction has a buffer of 8 KiB. It never calls
/// splice(2).
///
/// # Cancel safety
/// Not safe: a future that is dropped may have read up to 8 KiB in each direction that it has not written.
/// [`CopyBidirectional::transferred`] still returns the counts of a future that was polled by reference.
///
/// # Errors
/// The first error of a stream ends both directions; see [`CopyError`], which has the counts. After an error of a
/// reader, all that it gave is written and flushed first. `Interrupted` is no error. A stream whose connection has
/// ended need not be closed, so `NotConnected` from closing is no error either. The other direction has one last poll.
/// `TimedOut` comes from [`idle_timeout`](CopyBidirectional::idle_timeout).
///
/// # Panics
/// With an idle timeout, polling panics if it has to wait outside a runtime.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional, duplex};
/// use kittiwake::time::Duration;
///
/// # kittiwake::block_on(async {
/// let ((mut client, a), (mut server, b)) = (duplex(64), duplex(64));
/// let proxy = kittiwake::spawn(copy_bidirectional(a, b).idle_timeout(Duration::from_secs(60)));
///
/// client.write_all(b"request").await?;
/// client.close().await?;
/// let mut request = String::new();
/// server.read_to_string(&mut request).await?;
/// assert_eq!(request, "request");
///
/// server.write_all(b"reply!").await?;
/// server.close().await?;
/// assert_eq!(proxy.await.unwrap().unwrap(), (7, 6));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub fn copy_bidirectional<A, B>(a: A, b: B) -> CopyBidirectional<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    CopyBidirectional { a, b, a_to_b: Transfer::new(), b_to_a: Transfer::new(), b_is_first: false, idle: None }
}

/// The future of [`copy_bidirectional`].
#[must_use = "futures do nothing unless awaited"]
pub struct CopyBidirectional<A, B> {
    a: A,
    b: B,
    a_to_b: Transfer,
    b_to_a: Transfer,
    /// The next poll begins with the direction from `b` to `a`.
    b_is_first: bool,
    idle: Option<Idle>,
}

impl<A, B> CopyBidirectional<A, B> {
    /// Ends with `TimedOut` when no byte has moved in either direction for `duration`.
    ///
    /// A byte moves when a stream takes it. The end of a direction counts as a move too. The time begins at the first
    /// poll.
    pub fn idle_timeout(mut self, duration: Duration) -> Self {
        self.idle = Some(Idle { duration, timer: None });
        self
    }

    /// Returns the number of bytes that were written so far from `a` to `b`, and from `b` to `a`.
    pub fn transferred(&self) -> (u64, u64) {
        (self.a_to_b.written, self.b_to_a.written)
    }

    /// Returns the two streams.
    pub fn into_inner(self) -> (A, B) {
        (self.a, self.b)
    }
}

impl<A, B> Future for CopyBidirectional<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(u64, u64), CopyError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let before = this.progress();
        if let Poll::Ready(output) = this.poll_transfers(cx) {
            return Poll::Ready(output);
        }
        ready!(this.poll_idle(cx, before));
        // The time is over. The kernel may have bytes, or room, that no event has reported: Linux reports room in a
        // full socket only once its reader has taken a third of what is there, and a slow reader needs long for that.
        if let Poll::Ready(output) = budget::ask_kernel(|| this.poll_transfers(cx)) {
            return Poll::Ready(output);
        }
        // The copy goes on if a byte has moved. A poll whose budget is used up lets one more operation complete, and the
        // timer was that one above.
        let error = ready!(budget::with_fresh(|| this.poll_idle(cx, before)));
        let transferred = this.transferred();
        Poll::Ready(Err(CopyError { error, failed: "copying between two streams", transferred }))
    }
}

impl<A, B> CopyBidirectional<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    /// Polls both directions. Ready once both are over, or one has failed.
    fn poll_transfers(&mut self, cx: &mut Context<'_>) -> Poll<Result<(u64, u64), CopyError>> {
        // Both are polled, also after one has failed: the other passes on what its reader still has.
        let b_is_first = self.b_is_first;
        self.b_is_first = !b_is_first;
        let mut forth = Poll::Pending;
        if !b_is_first {
            forth = self.a_to_b.poll_and_close(cx, Pin::new(&mut self.a), Pin::new(&mut self.b));
        }
        let back = self.b_to_a.poll_and_close(cx, Pin::new(&mut self.b), Pin::new(&mut self.a));
        if b_is_first {
            forth = self.a_to_b.poll_and_close(cx, Pin::new(&mut self.a), Pin::new(&mut self.b));
        }
        // A direction whose reader has failed is pending until its writer is flushed.
        if let Some(error) = self.take_error(forth.is_ready(), back.is_ready()) {
            return Poll::Ready(Err(error));
        }
        if forth.is_ready() && back.is_ready() { Poll::Ready(Ok(self.transferred())) } else { Poll::Pending }
    }
}

impl<A, B> CopyBidirectional<A, B> {
    /// Ready with the error once no byte has moved for the idle timeout, if there is one. `before` is the progress
    /// before this poll.
    fn poll_idle(&mut self, cx: &mut Context<'_>, before: [(u64, bool); 2]) -> Poll<io::Error> {
        let has_moved = before != self.progress();
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        ready!(idle.poll_expired(cx, has_moved));
        Poll::Ready(idle.error())
    }

    /// A value that changes when a byte moves, and when a stream is closed.
    fn progress(&self) -> [(u64, bool); 2] {
        [self.a_to_b.progress(), self.b_to_a.progress()]
    }

    /// The error of a direction that is over.
    fn take_error(&mut self, forth_is_over: bool, back_is_over: bool) -> Option<CopyError> {
        let forth = if forth_is_over { self.a_to_b.end.take_error() } else { None };
        let back = if back_is_over { self.b_to_a.end.take_error() } else { None };
        let (failed, error) = match (forth, back) {
            (Some((Operation::Read, error)), _) => ("reading from the first stream", error),
            (Some((Operation::Write, error)), _) => ("writing to the second stream", error),
            (None, Some((Operation::Read, error))) => ("reading from the second stream", error),
            (None, Some((Operation::Write, error))) => ("writing to the first stream", error),
            (None, None) => return None,
        };
        Some(CopyError { error, failed, transferred: self.transferred() })
    }
}

impl<A, B> fmt::Debug for CopyBidirectional<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyBidirectional").field("transferred", &self.transferred()).finish_non_exhaustive()
    }
}

/// The limit of [`CopyBidirectional::idle_timeout`].
struct Idle {
    duration: Duration,
    /// When a byte last moved, and a timer for `duration` after that or earlier. `None` before the first poll.
    timer: Option<(Instant, Sleep)>,
}

impl Idle {
    /// Ready once no byte has moved for the duration.
    fn poll_expired(&mut self, cx: &mut Context<'_>, has_moved: bool) -> Poll<()> {
        let (since, timer) = self.timer.get_or_insert_with(|| {
            let now = Instant::now();
            (now, sleep_until(now.later(self.duration)))
        });
        if has_moved {
            *since = Instant::now();
        }
        // A byte that moves does not move the timer. It fires early, and is set anew.
        while Pin::new(&mut *timer).poll(cx).is_ready() {
            let deadline = since.later(self.duration);
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.reset(deadline);
        }
        Poll::Pending
    }

    fn error(&self) -> io::Error {
        io::Error::new(ErrorKind::TimedOut, format!("no byte has moved for {:?}", self.duration))
    }
}

/// The error of [`copy_bidirectional`].
///
/// It says which stream failed, and has the byte counts. It converts into the stream's [`io::Error`], so `?` works in
/// functions that return an [`io::Result`].
#[derive(Debug)]
pub struct CopyError {
    error: io::Error,
    failed: &'static str,
    transferred: (u64, u64),
}

impl CopyError {
    /// Returns the number of bytes that were written from `a` to `b`, and from `b` to `a`.
    pub fn transferred(&self) -> (u64, u64) {
        self.transferred
    }

    /// Returns the kind of the stream's error. `TimedOut` if the idle timeout is over.
    pub fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// Returns the stream's error.
    pub fn get_ref(&self) -> &io::Error {
        &self.error
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { error, failed, transferred: (forth, back) } = self;
        write!(f, "{failed} failed after {forth} bytes forth and {back} bytes back: {error}")
    }
}

impl Error for CopyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl From<CopyError> for io::Error {
    fn from(error: CopyError) -> Self {
        error.error
    }
}

/// One direction.
struct Transfer {
    buf: Box<[u8]>,
    /// The bytes `from..to` of `buf` were read and not written.
    from: usize,
    to: usize,
    written: u64,
    needs_flush: bool,
    is_closed: bool,
    end: End,
}

/// The end of the reader, or an error.
enum End {
    /// There may be more bytes.
    None,
    Reader,
    /// An error of the reader is reported once all bytes are passed on.
    Failed(Operation, io::Error),
}

#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
}

impl End {
    /// Takes the error, if the copy has failed. It counts as ended after that: the error is reported once.
    fn take_error(&mut self) -> Option<(Operation, io::Error)> {
        if !matches!(self, Self::Failed(..)) {
            return None;
        }
        match mem::replace(self, Self::Reader) {
            Self::Failed(operation, error) => Some((operation, error)),
            _ => None,
        }
    }
}

impl Transfer {
    fn new() -> Self {
        let buf = vec![0; BUFFER].into_boxed_slice();
        Self { buf, from: 0, to: 0, written: 0, needs_flush: false, is_closed: false, end: End::None }
    }

    /// A value that changes when a byte moves, and when the writer is closed.
    fn progress(&self) -> (u64, bool) {
        (self.written, self.is_closed)
    }

    /// Copies until the reader has ended, and flushes the writer. Also ready if `end` has an error.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, mut reader: Pin<&mut R>, mut writer: Pin<&mut W>) -> Poll<()>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        if self.from < self.to {
            let written = writer.as_mut().poll_write(cx, &self.buf[self.from..self.to]);
            ready!(self.poll_rest(cx, writer.as_mut(), written));
        }
        let mut rounds = 0;
        while matches!(self.end, End::None) {
            if rounds == ROUNDS {
                ready!(budget::poll_spend(cx));
                rounds = 0;
            }
            rounds += 1;
            match reader.as_mut().poll_read(cx, &mut self.buf) {
                Poll::Ready(Ok(0)) => self.end = End::Reader,
                Poll::Ready(Ok(read)) => {
                    let written = writer.as_mut().poll_write(cx, &self.buf[..read]);
                    self.needs_flush = true;
                    if matches!(written, Poll::Ready(Ok(written)) if written == read) {
                        self.written += read as u64;
                    } else {
                        (self.from, self.to) = (0, read);
                        ready!(self.poll_rest(cx, writer.as_mut(), written));
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.note_error(Operation::Read, error);
                }
                Poll::Pending if self.needs_flush => {
                    ready!(self.poll_flush(cx, writer.as_mut()));
                    // A flush that has failed ends the copy. The reader may never wake the task.
                    if matches!(self.end, End::None) {
                        return Poll::Pending;
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        self.poll_flush(cx, writer)
    }

    /// Goes on after a write that has come to `written`, until all that was read is written.
    ///
    /// It is apart because most writes take all bytes at once.
    fn poll_rest<W: AsyncWrite + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        mut writer: Pin<&mut W>,
        mut written: Poll<io::Result<usize>>,
    ) -> Poll<()> {
        loop {
            match ready!(written) {
                Ok(0) => {
                    let error = io::Error::new(ErrorKind::WriteZero, "the writer takes no more bytes");
                    self.note_error(Operation::Write, error);
                }
                Ok(written) => {
                    self.from += written;
                    self.written += written as u64;
                }
                Err(error) => {
                    if !self.note_error(Operation::Write, error) {
                        ready!(budget::poll_spend(cx));
                    }
                }
            }
            if self.from >= self.to || matches!(self.end, End::Failed(..)) {
                return Poll::Ready(());
            }
            written = writer.as_mut().poll_write(cx, &self.buf[self.from..self.to]);
        }
    }

    /// Flushes the writer if bytes were written since the last flush.
    fn poll_flush<W: AsyncWrite + ?Sized>(&mut self, cx: &mut Context<'_>, mut writer: Pin<&mut W>) -> Poll<()> {
        while self.needs_flush && !matches!(self.end, End::Failed(Operation::Write, _)) {
            match ready!(writer.as_mut().poll_flush(cx)) {
                Ok(()) => self.needs_flush = false,
                Err(error) => {
                    if self.note_error(Operation::Write, error) {
                        // After an error of the reader, `end` does not show this one, and the loop would not end.
                        self.needs_flush = false;
                    } else {
                        ready!(budget::poll_spend(cx));
                    }
                }
            }
        }
        Poll::Ready(())
    }

    /// Notes an error, unless the call was only interrupted: then it returns false. The first error stays.
    fn note_error(&mut self, operation: Operation, error: io::Error) -> bool {
        let ends = error.kind() != ErrorKind::Interrupted;
        if ends && !matches!(self.end, End::Failed(..)) {
            self.end = End::Failed(operation, error);
        }
        ends
    }

    /// Copies until the reader has ended, and closes the writer. Also ready if `end` has an error.
    fn poll_and_close<R, W>(&mut self, cx: &mut Context<'_>, reader: Pin<&mut R>, mut writer: Pin<&mut W>) -> Poll<()>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        if self.is_closed {
            return Poll::Ready(());
        }
        ready!(self.poll(cx, reader, writer.as_mut()));
        while !self.is_closed && !matches!(self.end, End::Failed(..)) {
            match ready!(writer.as_mut().poll_close(cx)) {
                Err(error) if error.kind() != ErrorKind::NotConnected => {
                    if !self.note_error(Operation::Write, error) {
                        ready!(budget::poll_spend(cx));
                    }
                }
                _ => self.is_closed = true,
            }
        }
        Poll::Ready(())
    }
}

// A panic leaves no state of a copy half changed that is not its streams'.
impl<A: UnwindSafe, B: UnwindSafe> UnwindSafe for CopyBidirectional<A, B> {}
impl<A: RefUnwindSafe, B: RefUnwindSafe> RefUnwindSafe for CopyBidirectional<A, B> {}
