//! The connections of a listener as a stream.

use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::Stream;

use super::listen::{Accept, Accepts, ListenSocket};
use super::listener::Listener;

/// The connections of a listener that it borrows, as a stream that never ends.
///
/// Each item is a connection, without the address of its peer, or an error as `poll_accept` reports it. After an error
/// the stream can be polled again. [`IncomingWithPeer`] has the addresses too.
///
/// # Cancel safety
/// Safe: a connection is taken only in the poll that returns it.
///
/// # Examples
/// See [`TcpListener::incoming`](crate::net::TcpListener::incoming).
#[must_use = "streams do nothing unless polled"]
pub struct Incoming<'a, L: Accepts> {
    /// Its waker leaves the listener when the stream is dropped.
    accept: Accept<'a, L::Socket>,
}

/// The connections of a listener that it borrows and the addresses of their peers, as a stream that never ends.
///
/// Apart from the addresses it is like [`Incoming`].
///
/// # Examples
/// See [`TcpListener::incoming_with_peer`](crate::net::TcpListener::incoming_with_peer).
#[must_use = "streams do nothing unless polled"]
pub struct IncomingWithPeer<'a, L: Accepts> {
    /// As in [`Incoming`].
    accept: Accept<'a, L::Socket>,
}

/// The connections of a listener that it owns, as a stream that never ends.
///
/// Apart from that it is like [`Incoming`].
///
/// # Examples
/// See [`TcpListener::into_incoming`](crate::net::TcpListener::into_incoming).
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct IntoIncoming<L> {
    listener: L,
}

/// The connections of a listener that it owns and the addresses of their peers, as a stream that never ends.
///
/// Apart from that it is like [`Incoming`].
///
/// # Examples
/// See [`TcpListener::into_incoming_with_peer`](crate::net::TcpListener::into_incoming_with_peer).
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct IntoIncomingWithPeer<L> {
    listener: L,
}

impl<'a, L: Accepts> Incoming<'a, L> {
    pub(super) fn new(listener: &'a L) -> Self {
        Self { accept: listener.listening().accept() }
    }
}

impl<'a, L: Accepts> IncomingWithPeer<'a, L> {
    pub(super) fn new(listener: &'a L) -> Self {
        Self { accept: listener.listening().accept() }
    }
}

impl<L: Listener> IntoIncoming<L> {
    pub(super) fn new(listener: L) -> Self {
        Self { listener }
    }

    /// The listener.
    pub fn get_ref(&self) -> &L {
        &self.listener
    }

    /// Gives the listener back.
    pub fn into_inner(self) -> L {
        self.listener
    }
}

impl<L: Listener> IntoIncomingWithPeer<L> {
    pub(super) fn new(listener: L) -> Self {
        Self { listener }
    }

    /// The listener.
    pub fn get_ref(&self) -> &L {
        &self.listener
    }

    /// Gives the listener back.
    pub fn into_inner(self) -> L {
        self.listener
    }
}

impl<L: Accepts> Stream for Incoming<'_, L> {
    type Item = io::Result<<L::Socket as ListenSocket>::Stream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(ready!(Pin::new(&mut self.accept).poll(cx)).map(|(stream, _)| stream)))
    }
}

impl<L: Accepts> Stream for IncomingWithPeer<'_, L> {
    type Item = io::Result<(<L::Socket as ListenSocket>::Stream, <L::Socket as ListenSocket>::Addr)>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.accept).poll(cx).map(Some)
    }
}

impl<L: Listener + Unpin> Stream for IntoIncoming<L> {
    type Item = io::Result<L::Stream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(ready!(self.listener.poll_accept(cx)).map(|(stream, _)| stream)))
    }
}

impl<L: Listener + Unpin> Stream for IntoIncomingWithPeer<L> {
    type Item = io::Result<(L::Stream, L::Addr)>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.listener.poll_accept(cx).map(Some)
    }
}

impl<L: Accepts> fmt::Debug for Incoming<'_, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl<L: Accepts> fmt::Debug for IncomingWithPeer<'_, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingWithPeer").finish_non_exhaustive()
    }
}

// A panic leaves no state of a listener half changed.
impl<L: Accepts> UnwindSafe for Incoming<'_, L> {}
impl<L: Accepts> RefUnwindSafe for Incoming<'_, L> {}
impl<L: Accepts> UnwindSafe for IncomingWithPeer<'_, L> {}
impl<L: Accepts> RefUnwindSafe for IncomingWithPeer<'_, L> {}
