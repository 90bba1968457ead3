//! Stream: what all stream sockets share. It reads and writes for `AsyncRead` and `AsyncWrite`, under the stream's
//! deadlines.
//!
//! # The way of a read
//! ```text
//! TcpStream::poll_read -> Stream::poll_read -> Registration::poll_operation -> sys::recv -> recv(2)
//! ```
//! The registration runs the loop of the call, the readiness and the waker. The closure that makes the call notes its
//! result in the stream's deadlines. A poll that has to wait looks at the deadlines afterwards. If the stream has none,
//! the note and the look cost one load each.
//!
//! When a deadline has passed, the system call is made once more. The same happens before the idle deadline of the
//! other direction fails an operation. `poll_read` and `poll_write` do that by `try_read` and `try_write`. They do not
//! call their first closure again, because the compiler does not inline a closure with two callers, and that costs an
//! echo 54 instructions.
//!
//! # Resets
//! The kernel reports a reset, or another error that ends the connection, to the first operation that comes. If a write
//! or a peek meets it, the next read would report a clean end. So they remember the error, and that read fails with it
//! instead.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::deadline::{Deadlines, Expired, Limit};
use super::sys::{self, MAX_SLICES};
use crate::budget;
use crate::reactor::{Direction, Interest, Registration, Snapshot, WaiterSlot};

/// The type of a stream's socket.
pub(super) trait StreamSocket: AsFd {
    /// Whether a short transfer proves that the kernel's buffer is drained, or full after a write.
    const SHORT_RULE: bool;
    /// Whether the kernel reports a shutdown of the writing side to a writer that waits on the same end.
    const REPORTS_SHUTDOWN: bool;
}

/// A stream socket.
pub(super) struct Stream<S: StreamSocket> {
    registration: Registration<Socket<S>>,
    deadlines: Deadlines,
}

/// The socket, and a flag beside it: apart, they would cost each connection 16 bytes more.
pub(super) struct Socket<S> {
    socket: S,
    /// The code of the error with which a write or a peek has met the end of the connection. The kernel does not report
    /// it to a reader any more. 0 if there is none.
    met: AtomicI32,
}

impl<S: AsFd> AsFd for Socket<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S: StreamSocket> Stream<S> {
    /// Takes a non-blocking socket.
    pub(super) fn new(socket: S) -> Self {
        let registration = Registration::new(Socket { socket, met: AtomicI32::new(0) });
        Self { registration, deadlines: Deadlines::default() }
    }

    pub(super) fn socket(&self) -> &S {
        &self.registration.socket().socket
    }

    pub(super) fn registration(&self) -> &Registration<Socket<S>> {
        &self.registration
    }

    /// Takes the socket out of its reactor.
    pub(super) fn into_socket(self) -> S {
        self.registration.into_socket().socket
    }

    // An echo costs 7.9 % more without this.
    #[inline]
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        // The kernel would report `WouldBlock` while nothing is there, and 0 would look like an end.
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match self.registration.poll_operation(cx, Direction::Read, WaiterSlot::Seat, |socket, seen| {
            self.received(seen, buf.len(), sys::recv(socket, buf))
        }) {
            Poll::Pending if !self.deadlines.is_empty() => {
                self.poll_deadline(cx, Direction::Read, || self.try_read(buf))
            }
            polled => polled,
        }
    }

    pub(super) fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let passed = passed_slices(bufs);
        let bufs = &mut bufs[passed];
        let capacity = bufs.iter().map(|buf| buf.len()).sum();
        if capacity == 0 {
            return Poll::Ready(Ok(0));
        }
        match self.registration.poll_operation(cx, Direction::Read, WaiterSlot::Seat, |socket, seen| {
            self.received(seen, capacity, sys::recv_vectored(socket, bufs))
        }) {
            Poll::Pending if !self.deadlines.is_empty() => {
                self.poll_deadline(cx, Direction::Read, || self.try_read_vectored(bufs))
            }
            polled => polled,
        }
    }

    // An echo costs 8.2 % more without this.
    #[inline]
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match self.registration.poll_operation(cx, Direction::Write, WaiterSlot::Seat, |socket, seen| {
            self.sent(seen, buf.len(), sys::send(socket, buf))
        }) {
            Poll::Pending if !self.deadlines.is_empty() => {
                self.poll_deadline(cx, Direction::Write, || self.try_write(buf))
            }
            polled => polled,
        }
    }

    pub(super) fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bufs = &bufs[passed_slices(bufs)];
        let capacity = bufs.iter().map(|buf| buf.len()).sum();
        if capacity == 0 {
            return Poll::Ready(Ok(0));
        }
        match self.registration.poll_operation(cx, Direction::Write, WaiterSlot::Seat, |socket, seen| {
            self.sent(seen, capacity, sys::send_vectored(socket, bufs))
        }) {
            Poll::Pending if !self.deadlines.is_empty() => {
                self.poll_deadline(cx, Direction::Write, || self.try_write_vectored(bufs))
            }
            polled => polled,
        }
    }

    /// Reads what is there, without waiting.
    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.registration
            .try_operation(Direction::Read, |socket, seen| self.received(seen, buf.len(), sys::recv(socket, buf)))
    }

    /// Writes what can be written, without waiting.
    pub(super) fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.registration
            .try_operation(Direction::Write, |socket, seen| self.sent(seen, buf.len(), sys::send(socket, buf)))
    }

    /// Reads what is there into several buffers, without waiting.
    pub(super) fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let passed = passed_slices(bufs);
        let bufs = &mut bufs[passed];
        let capacity = bufs.iter().map(|buf| buf.len()).sum();
        if capacity == 0 {
            return Ok(0);
        }
        self.registration.try_operation(Direction::Read, |socket, seen| {
            self.received(seen, capacity, sys::recv_vectored(socket, bufs))
        })
    }

    /// Writes what can be written of several buffers, without waiting.
    pub(super) fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let bufs = &bufs[passed_slices(bufs)];
        let capacity = bufs.iter().map(|buf| buf.len()).sum();
        if capacity == 0 {
            return Ok(0);
        }
        self.registration
            .try_operation(Direction::Write, |socket, seen| self.sent(seen, capacity, sys::send_vectored(socket, bufs)))
    }

    /// Reads without taking the bytes away.
    pub(super) async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut wait = self.registration.waiter(Direction::Read);
        poll_fn(|cx| self.poll_peek(cx, wait.slot(), buf)).await
    }

    /// As [`peek`](Self::peek), for a caller that says where its waker is kept.
    pub(super) fn poll_peek(
        &self,
        cx: &mut Context<'_>,
        slot: WaiterSlot<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.registration.poll_peek(cx, slot, |socket, _| self.peeked(sys::peek(socket, buf)))
    }

    /// Waits until the reading side has ended, or the connection has failed.
    pub(super) async fn closed(&self) -> io::Result<()> {
        let mut wait = self.registration.waiter(Direction::Read);
        poll_fn(|cx| {
            loop {
                // Before poll(2): an event that comes after it is not missed.
                let seen = self.registration.load();
                if sys::has_ended(self.socket())? {
                    return budget::poll_spend_complete(cx).map(Ok);
                }
                ready!(budget::poll_proceed(cx));
                // The poll(2) backend reports bytes that stay unread in each turn, and each turn asks once more.
                ready!(self.registration.poll_event(cx, Direction::Read, &mut wait.slot(), seen))?;
            }
        })
        .await
    }

    /// Shuts down the writing half, and reads at most `limit` bytes. Returns `false` if the peer's end was not among
    /// them.
    pub(super) async fn drain(&self, limit: u64) -> io::Result<bool> {
        self.shutdown(Shutdown::Write)?;
        let mut buf = [0; 4096];
        let mut left = limit;
        while left > 0 {
            let want = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
            match poll_fn(|cx| self.poll_read(cx, &mut buf[..want])).await? {
                0 => return Ok(true),
                read => left -= read as u64,
            }
        }
        Ok(false)
    }

    /// Shuts down one half of the stream, or both.
    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        sys::shutdown(self.socket(), how)?;
        if !S::REPORTS_SHUTDOWN && how != Shutdown::Read {
            self.registration.note_ended(Direction::Write);
        }
        Ok(())
    }

    /// Makes a system call of the caller's own, as [`Registration::try_io`] does. If it succeeds, it counts as a
    /// transfer.
    pub(super) fn try_io<R>(
        &self,
        interest: Interest,
        call: impl FnOnce(&Socket<S>, Snapshot) -> io::Result<R>,
    ) -> io::Result<R> {
        self.registration.try_io(interest, |socket, seen| self.deadlines.called(interest, call(socket, seen)))
    }

    /// Makes a system call of the caller's own, as [`Registration::async_io`] does. If it succeeds, it counts as a
    /// transfer. While it waits, it tries again before the idle end of the other direction.
    pub(super) async fn async_io<R>(
        &self,
        interest: Interest,
        mut call: impl FnMut(&Socket<S>) -> io::Result<R>,
    ) -> io::Result<io::Result<R>> {
        let mut waiting = self.deadlines.call(interest);
        let call = |socket: &Socket<S>| self.deadlines.called(interest, call(socket));
        let mut calling = pin!(self.registration.async_io(interest, call));
        poll_fn(|cx| {
            let polled = calling.as_mut().poll(cx);
            if polled.is_pending() {
                waiting.begin();
            }
            polled
        })
        .await
    }

    pub(super) fn limit(&self, direction: Direction, which: Limit) -> Option<Duration> {
        self.deadlines.limit(direction, which)
    }

    /// Sets a limit for `directions`.
    pub(super) fn set_limit(&self, which: Limit, directions: &[Direction], limit: Option<Duration>) -> io::Result<()> {
        if limit.is_some_and(|limit| limit.is_zero()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a timeout of zero would let no operation wait; use None for no timeout",
            ));
        }
        for &direction in directions {
            self.deadlines.set_limit(direction, which, limit, |direction| self.registration.waker(direction));
        }
        Ok(())
    }

    /// Notes what a read has brought, of at most `capacity` bytes.
    // An echo costs 7.6 % more without this.
    #[inline]
    fn received(&self, seen: Snapshot, capacity: usize, received: io::Result<usize>) -> io::Result<usize> {
        match received {
            Ok(0) => self.ended(),
            Ok(received) => Ok(self.transferred(Direction::Read, seen, capacity, received)),
            Err(error) => self.failed(Direction::Read, error),
        }
    }

    /// A read has brought nothing: an end, or the error that a write or a peek has met.
    // Apart, so that `failed` and `transferred` have one caller for reads. An echo costs 4 % more otherwise.
    #[cold]
    #[inline(never)]
    fn ended(&self) -> io::Result<usize> {
        self.deadlines.operation_ended(Direction::Read, false);
        match self.registration.socket().met.swap(0, Ordering::Relaxed) {
            0 => Ok(0),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Notes the result of a peek, which leaves an error to the next read.
    fn peeked(&self, peeked: io::Result<usize>) -> io::Result<usize> {
        match peeked {
            // Loaded once: a reader may take it at any time.
            Ok(0) => match self.registration.socket().met.load(Ordering::Relaxed) {
                0 => Ok(0),
                code => Err(io::Error::from_raw_os_error(code)),
            },
            peeked => peeked.map_err(|error| self.remember(error)),
        }
    }

    /// Notes what a write has taken, of `capacity` bytes.
    fn sent(&self, seen: Snapshot, capacity: usize, sent: io::Result<usize>) -> io::Result<usize> {
        match sent {
            Ok(sent) => Ok(self.transferred(Direction::Write, seen, capacity, sent)),
            Err(error) => self.failed(Direction::Write, self.remember(waits_to_connect(error))),
        }
    }

    /// Remembers an error that has ended the connection, for the next read.
    // An echo costs 3.9 % more without these two.
    #[cold]
    #[inline(never)]
    fn remember(&self, error: io::Error) -> io::Error {
        // The errors of connections in tcp(7), ip(7) and their BSD counterparts. A write after the end gets EPIPE,
        // which says nothing to a reader.
        const ENDS: &[i32] = &[
            libc::ECONNABORTED,
            libc::ECONNREFUSED,
            libc::ECONNRESET,
            libc::EHOSTDOWN,
            libc::EHOSTUNREACH,
            libc::ENETDOWN,
            libc::ENETRESET,
            libc::ENETUNREACH,
            libc::ETIMEDOUT,
        ];
        if let Some(code) = error.raw_os_error().filter(|code| ENDS.contains(code)) {
            self.registration.socket().met.store(code, Ordering::Relaxed);
        }
        error
    }

    /// An operation that would block or was interrupted goes on. Any other error ends it.
    fn failed(&self, direction: Direction, error: io::Error) -> io::Result<usize> {
        use io::ErrorKind::{Interrupted, WouldBlock};
        if !self.deadlines.is_empty() && !matches!(error.kind(), WouldBlock | Interrupted) {
            self.deadlines.operation_ended(direction, false);
        }
        Err(error)
    }

    fn transferred(&self, direction: Direction, seen: Snapshot, capacity: usize, transferred: usize) -> usize {
        if !self.deadlines.is_empty() {
            self.deadlines.operation_ended(direction, transferred > 0);
        }
        let capacity = if S::SHORT_RULE { capacity } else { transferred };
        self.registration.transferred(direction, seen, capacity, transferred);
        transferred
    }

    /// Applies the stream's deadlines to an operation that has to wait. This comes after its waker was stored, so that
    /// setting a limit wakes it. `retry` makes the system call once more.
    fn poll_deadline(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        retry: impl FnOnce() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let expired = ready!(self.deadlines.poll_expired(cx, direction));
        self.retry_expired(direction, retry, expired)
    }

    /// Tries once more, because bytes that the kernel has go before the deadline. The reactor may not have reported
    /// them yet.
    // An echo costs 2.7 % more without this.
    #[cold]
    fn retry_expired(
        &self,
        direction: Direction,
        retry: impl FnOnce() -> io::Result<usize>,
        expired: Expired,
    ) -> Poll<io::Result<usize>> {
        let result = match (retry(), expired) {
            (Err(error), Expired::Retry) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            (Err(error), Expired::Fail(expired)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.deadlines.operation_ended(direction, false);
                Poll::Ready(Err(expired))
            }
            (result, _) => Poll::Ready(result),
        };
        // Last, because the other direction then looks for bytes that the attempt has moved.
        self.deadlines.retried(direction);
        result
    }
}

/// Takes the error of a send that has to wait until the stream is connected for `WouldBlock`. With
/// `TCP_FASTOPEN_CONNECT` the first send may connect. If it cannot send its bytes with the first packet, Linux says
/// `EINPROGRESS`, and reports the socket writable once it is connected.
// As for `remember`.
#[cold]
#[inline(never)]
fn waits_to_connect(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EINPROGRESS) { io::ErrorKind::WouldBlock.into() } else { error }
}

/// The slices that the system call gets: at most [`MAX_SLICES`], and the first is not empty. If the first
/// [`MAX_SLICES`] were all empty, the call would move nothing, which looks like an end.
fn passed_slices<B: Deref<Target = [u8]>>(bufs: &[B]) -> Range<usize> {
    let start = bufs.iter().take_while(|buf| buf.is_empty()).count();
    start..bufs.len().min(start + MAX_SLICES)
}

/// Implements `AsyncRead` or `AsyncWrite` for a type that has a [`Stream`] in the field `$field`.
macro_rules! impl_io {
    (read for $type:ty, $($field:tt).+) => {
        impl futures_io::AsyncRead for $type {
            // An echo costs 7.9 % more without this.
            #[inline]
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                self.$($field).+.poll_read(cx, buf)
            }

            fn poll_read_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                self.$($field).+.poll_read_vectored(cx, bufs)
            }
        }
    };
    (write for $type:ty, $($field:tt).+) => {
        impl futures_io::AsyncWrite for $type {
            // An echo costs 8.2 % more without this.
            #[inline]
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                self.$($field).+.poll_write(cx, buf)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.$($field).+.poll_write_vectored(cx, bufs)
            }

            /// Does nothing: what was written is the kernel's.
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            /// Shuts down the writing half.
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(self.$($field).+.shutdown(Shutdown::Write))
            }
        }
    };
}
pub(super) use impl_io;

#[cfg(test)]
mod tests {
    use super::*;

    /// A send that has begun to connect waits, as one to a full buffer does. Other errors keep their code.
    #[test]
    fn connecting_send_would_block() {
        let after = |code| waits_to_connect(io::Error::from_raw_os_error(code));
        assert_eq!(after(libc::EINPROGRESS).kind(), io::ErrorKind::WouldBlock);
        assert_eq!(after(libc::EPIPE).raw_os_error(), Some(libc::EPIPE));
    }
}
