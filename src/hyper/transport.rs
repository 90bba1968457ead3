//! The transport: the stream of one connection, between hyper and the socket.
//!
//! It reports reads and writes to the [`Activity`]. It also does two things that hyper does not.
//!
//! # A client that leaves
//! On HTTP/1 hyper reads while a handler runs, to notice a client that closes its connection. Such a read looks like
//! one for a body. So hyper is told that clients may close their side (`half_close`), and then it reads only what it
//! needs. It flushes in each of its polls, and [`Transport::poll_flush`] looks for the end of the connection. Bytes
//! that it finds go to the next read. It does not look if hyper has tried to read in the same poll, and waits for bytes
//! itself: the look would take the bytes, and with them the event that wakes hyper.
//!
//! # A client that still sends
//! A server may answer before it has read the whole request, and then close the connection. If it closes the socket,
//! the kernel answers the rest of the request with a reset, and a client that is still sending may never see the
//! response. So [`Transport::poll_shutdown`] ends its own side. If bytes are there, if the last request has a body, or
//! if the connection ends in the middle of a head, it reads and discards what comes, until the client closes its side
//! too. hyper does not tell whether that body was read to its end. The connection's task limits how long. Otherwise the
//! client has sent all.
//!
//! A client of HTTP/2 sends windows and pings as long as it reads a response. So a connection of HTTP/2 that ends
//! gracefully discards them, also if the client does not acknowledge the end in time: it may still read what the kernel
//! has for it.
//!
//! An upgraded stream reads on: its user closes one side only.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::hyper::rt::{Read, ReadBufCursor, Write};
use futures_io::{AsyncRead, AsyncWrite};

use super::activity::{Activity, Protocol};
use super::io::{poll_read, poll_read_scratch, poll_write_copied};
use crate::budget::poll_spend;

/// The bytes that are read ahead while a handler runs, at most.
const READ_AHEAD: usize = 1024;

/// The bytes of one read while the rest of a request is discarded.
const DISCARDED: usize = 16 * 1024;

pub(super) struct Transport<T> {
    stream: T,
    /// Bytes that were read before hyper asked for them.
    ahead: Vec<u8>,
    activity: Arc<Activity>,
    /// Whether the stream writes several buffers by one call.
    writev: bool,
    /// The client has closed its side.
    at_end: bool,
    /// This side is closed.
    is_shut_down: bool,
}

impl<T> Transport<T> {
    pub(super) fn new(stream: T, ahead: Vec<u8>, activity: Arc<Activity>, writev: bool) -> Self {
        Self { stream, ahead, activity, writev, at_end: false, is_shut_down: false }
    }

    fn is_http1(&self) -> bool {
        self.activity.protocol() == Protocol::Http1
    }
}

impl<T: AsyncRead + Unpin> Transport<T> {
    /// Looks whether the client has closed the connection, while a handler runs. That is an error: the response has no
    /// reader.
    fn look_for_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.ahead.is_empty() {
            return Ok(());
        }
        let ahead = &mut self.ahead;
        match poll_read_scratch(&mut self.stream, cx, READ_AHEAD, |bytes| ahead.extend_from_slice(bytes)) {
            Poll::Ready(Ok(0)) => {
                self.at_end = true;
                let gone = "the client has closed the connection before it got its response";
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, gone))
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(_)) | Poll::Pending => Ok(()),
        }
    }

    /// Reads and discards what the client still sends.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.at_end && !self.activity.has_lingered() {
            // Not each stream spends the budget by itself.
            ready!(poll_spend(cx));
            match poll_read_scratch(&mut self.stream, cx, DISCARDED, |_| ()) {
                Poll::Ready(Ok(0) | Err(_)) => self.at_end = true,
                // Noted at once: a client that always has more uses up the budget, and this function then ends above.
                Poll::Ready(Ok(_)) => self.activity.discard(),
                Poll::Pending if self.activity.lingers() || self.activity.more_may_come() => {
                    self.activity.linger();
                    return Poll::Pending;
                }
                Poll::Pending => break,
            }
        }
        Poll::Ready(())
    }
}

impl<T: AsyncRead + Unpin> Read for Transport<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.activity.gives_up() {
            // hyper takes this for the client's end.
            return Poll::Ready(Ok(()));
        }
        let read = if this.ahead.is_empty() {
            poll_read(&mut this.stream, cx, buf)
        } else {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..n]);
            this.ahead.drain(..n);
            if this.ahead.is_empty() {
                this.ahead = Vec::new();
            }
            Poll::Ready(Ok(n))
        };
        this.at_end |= matches!(read, Poll::Ready(Ok(0)));
        // On HTTP/2 hyper always reads. Requests and the pieces of their responses show what the client owes.
        if this.is_http1() {
            this.activity.read(&read);
        }
        read.map_ok(drop)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Write for Transport<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.activity.write(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.activity.flush(&flushed);
        if self.is_http1() && self.activity.has_requests() && !self.activity.read_waits() {
            self.look_for_end(cx)?;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_shut_down {
            let closed = Pin::new(&mut this.stream).poll_close(cx);
            this.activity.flush(&closed);
            ready!(closed)?;
            this.is_shut_down = true;
        }
        if this.activity.may_linger() {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.writev
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = poll_write_copied(&mut self.stream, cx, bufs);
        self.activity.write(&written);
        written
    }
}

impl<T> Drop for Transport<T> {
    fn drop(&mut self) {
        self.activity.close();
    }
}
