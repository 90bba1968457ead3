//! [`duplex()`]: a connection in memory.
//!
//! # The protocol
//! A [`DuplexStream`] has the reading end of one [`Pipe`] and the writing end of the other.
//!
//! 1. A write takes the bytes that the capacity allows, and wakes the reader. Without room it waits.
//! 2. A read takes the bytes that are there, and wakes the writer. Without bytes it waits, or returns 0 if the writing
//!    end is closed.
//! 3. Closing a stream ends its outgoing pipe and wakes the reader of that pipe. Dropping a stream also breaks its
//!    incoming pipe and wakes the writer of that pipe, whose next write fails.
//!
//! # Wakers
//! Each end of a pipe has one seat for a waker, since both traits take `&mut`: a later poll replaces the waker of an
//! earlier one. Wakers are cloned, woken and dropped outside the lock. A waker of the other end that panics does not
//! end the operation of this end: only the panic hook reports it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::mem;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use futures_io::{AsyncRead, AsyncWrite};

use crate::budget;
use crate::sync::{Mutex, wake_each};

/// Makes a connection in memory: what is written to one stream is read from the other.
///
/// Each direction holds at most `capacity` bytes. A write waits while its direction is full. A stream behaves as a
/// socket does: closing or dropping it ends what the other stream reads, after the bytes that were written, and a write
/// to a stream whose other end was dropped fails. It also spends the budget of a task, as a socket does.
///
/// The streams need no runtime and no descriptor. They are for tests, and for protocols inside a process.
///
/// # Panics
/// Panics if `capacity` is 0: no byte could ever pass.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt, duplex};
///
/// # kittiwake::block_on(async {
/// let (mut client, mut server) = duplex(64);
/// client.write_all(b"ping").await?;
/// client.close().await?;
///
/// let mut request = String::new();
/// server.read_to_string(&mut request).await?;
/// assert_eq!(request, "ping");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub fn duplex(capacity: usize) -> (DuplexStream, DuplexStream) {
    assert!(capacity > 0, "duplex needs a capacity of at least one byte");
    let (one, two) = (Arc::new(Pipe::new(capacity)), Arc::new(Pipe::new(capacity)));
    (DuplexStream { incoming: one.clone(), outgoing: two.clone() }, DuplexStream { incoming: two, outgoing: one })
}

/// One end of a connection in memory, made by [`duplex`].
///
/// Dropping it closes it in both directions.
///
/// # Cancel safety
/// Reads and writes are safe: bytes move only in a poll that is ready.
pub struct DuplexStream {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
}

/// One direction of a connection.
struct Pipe {
    state: Mutex<State>,
    capacity: usize,
}

struct State {
    bytes: VecDeque<u8>,
    /// The writing end is closed: after `bytes` comes the end.
    is_ended: bool,
    /// The reading end was dropped: writes fail.
    is_broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn new(capacity: usize) -> Self {
        let state = State { bytes: VecDeque::new(), is_ended: false, is_broken: false, reader: None, writer: None };
        Self { state: Mutex::new(state), capacity }
    }

    /// Runs `operation`, and wakes the waker in the seat `to_wake` if it came to a result. Otherwise the task waits in
    /// the seat `to_wait`.
    fn poll_operation(
        &self,
        cx: &mut Context<'_>,
        to_wait: fn(&mut State) -> &mut Option<Waker>,
        to_wake: fn(&mut State) -> &mut Option<Waker>,
        mut operation: impl FnMut(&mut State) -> Option<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(budget::poll_proceed(cx));
        let mut clone = None;
        loop {
            let mut state = self.state.lock();
            if let Some(result) = operation(&mut state) {
                let woken = to_wake(&mut state).take();
                drop(state);
                budget::spend();
                wake_each(woken);
                return Poll::Ready(result);
            }
            let seat = to_wait(&mut state);
            if seat.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            if clone.is_some() {
                let replaced = mem::replace(seat, clone);
                drop(state);
                drop(replaced);
                return Poll::Pending;
            }
            // To clone a waker is foreign code, so it comes outside the lock. The other end may have acted meanwhile:
            // the operation looks again under the lock that stores the waker.
            drop(state);
            clone = Some(cx.waker().clone());
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_operation(
            cx,
            |state| &mut state.reader,
            |state| &mut state.writer,
            |state| match state.bytes.read(buf) {
                Ok(0) if !state.is_ended && !buf.is_empty() => None,
                result => Some(result),
            },
        )
    }

    fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_operation(
            cx,
            |state| &mut state.writer,
            |state| &mut state.reader,
            |state| {
                if state.is_ended || state.is_broken {
                    let error = if state.is_ended { "this stream was closed" } else { "the other end was dropped" };
                    return Some(Err(io::Error::new(io::ErrorKind::BrokenPipe, error)));
                }
                let room = self.capacity - state.bytes.len();
                if room == 0 && !buf.is_empty() {
                    return None;
                }
                Some(state.bytes.write(&buf[..buf.len().min(room)]))
            },
        )
    }

    /// Closes the writing end, and with `breaks` the reading end too, whose bytes are dropped.
    fn close(&self, ends: bool, breaks: bool) {
        let mut state = self.state.lock();
        state.is_ended |= ends;
        state.is_broken |= breaks;
        let bytes = if breaks { mem::take(&mut state.bytes) } else { VecDeque::new() };
        let woken = [state.reader.take(), state.writer.take()];
        drop(state);
        drop(bytes);
        wake_each(woken.into_iter().flatten());
    }
}

impl AsyncRead for DuplexStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.incoming.poll_read(cx, buf)
    }
}

impl AsyncWrite for DuplexStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.outgoing.poll_write(cx, buf)
    }

    /// Does nothing: the other end can read what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends what the other end reads. This end can go on reading.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close(true, false);
        Poll::Ready(Ok(()))
    }
}

impl Drop for DuplexStream {
    fn drop(&mut self) {
        self.outgoing.close(true, false);
        self.incoming.close(false, true);
    }
}

impl fmt::Debug for DuplexStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |pipe: &Pipe| pipe.state.lock().bytes.len();
        f.debug_struct("DuplexStream")
            .field("capacity", &self.outgoing.capacity)
            .field("to_read", &length(&self.incoming))
            .field("written", &length(&self.outgoing))
            .finish()
    }
}

// A panic leaves no state of a stream half changed.
impl UnwindSafe for DuplexStream {}
impl RefUnwindSafe for DuplexStream {}
