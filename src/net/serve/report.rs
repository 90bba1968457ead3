//! The report of a server, the error with which it ends, and the failures that it reports while it runs.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// The numbers of a [server](super::serve()) that has ended.
///
/// Each of the `accepted` connections is counted in exactly one of `served`, `failed`, `panicked` and `open`.
///
/// `Display` prints one line, and one more for each open connection, ten at most, and then the number of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report<A = SocketAddr> {
    /// Connections for which the handler was called.
    pub accepted: u64,
    /// Handlers that ended without an error.
    pub served: u64,
    /// Handlers that ended with `Err`, or that were dropped before they ended.
    pub failed: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Connections that were closed at once because no descriptors were left. They are not in `accepted`.
    pub refused: u64,
    /// Connections whose handlers were aborted at the end of the drain or by an immediate shutdown, the oldest first.
    pub open: Vec<Open<A>>,
}

/// A connection that was still open when its server ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Open<A = SocketAddr> {
    /// The address of the client.
    pub peer: A,
    /// The time since it was accepted.
    pub age: Duration,
}

impl<A: fmt::Debug> fmt::Display for Report<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        let Self { accepted, served, failed, panicked, refused, open } = self;
        write!(f, "{accepted} accepted: {served} served, {failed} failed, {panicked} panicked, {} open", open.len())?;
        write!(f, "; {refused} refused")?;
        for Open { peer, age } in open.iter().take(SHOWN) {
            write!(f, "\n{peer:?} was open for {age:.1?}")?;
        }
        match open.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// The fatal error with which a [server](super::serve()) has ended, and its report.
///
/// `?` converts it into the [`io::Error`], and drops the report.
#[derive(Debug)]
#[non_exhaustive]
pub struct ServeError<A = SocketAddr> {
    /// The error of the listener, or of the future that was to stop the server.
    pub error: io::Error,
    /// The numbers of the server, as it would have returned them without the error.
    pub report: Report<A>,
}

impl<A> fmt::Display for ServeError<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server has ended by an error: {}", self.error)
    }
}

impl<A: fmt::Debug> Error for ServeError<A> {}

impl<A> From<ServeError<A>> for io::Error {
    fn from(error: ServeError<A>) -> Self {
        error.error
    }
}

/// A failure that [`on_error`](super::Serve::on_error) receives.
///
/// It costs one connection, or some time. Only an [`Accept`](Failure::Accept) error may also end the server.
#[non_exhaustive]
pub enum Failure<'a, A = SocketAddr> {
    /// Accepting failed, mostly for lack of descriptors or memory. The server tries again by itself. If the error is
    /// fatal, the server also ends with it, as a [`ServeError`].
    Accept(&'a io::Error),
    /// A handler ended with an error.
    Handler {
        /// The address of the handler's client.
        peer: A,
        /// The handler's error.
        error: &'a dyn fmt::Display,
    },
    /// A handler panicked. The panic hook has received the message.
    Panic {
        /// The address of the handler's client.
        peer: A,
    },
}

impl<A: fmt::Debug> fmt::Display for Failure<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept(error) => write!(f, "cannot accept connections: {error}"),
            Self::Handler { peer, error } => write!(f, "{peer:?}: {error}"),
            Self::Panic { peer } => write!(f, "{peer:?}: its handler panicked"),
        }
    }
}

impl<A: fmt::Debug> fmt::Debug for Failure<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({self})")
    }
}

impl<A: fmt::Debug> Error for Failure<'_, A> {}
