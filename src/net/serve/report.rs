//! What a server says: how it went, and what failed meanwhile.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// What became of a [server](super::serve())'s connections.
///
/// Each of the `accepted` is in exactly one of `served`, `failed`, `panicked` and `open`. Shown as text it is a line, and
/// one for each that was open, ten at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report<P = SocketAddr> {
    /// Connections that a handler was called for.
    pub accepted: u64,
    /// Handlers that ended with `()` or `Ok`.
    pub served: u64,
    /// Handlers that ended with `Err`.
    pub failed: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Connections that were closed at once, for lack of descriptors.
    pub refused: u64,
    /// Handlers that had not ended when the time was over, and were aborted; the oldest first.
    pub open: Vec<Open<P>>,
}

/// A connection that was still open when its server ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Open<P = SocketAddr> {
    /// The client.
    pub peer: P,
    /// How long ago it was accepted.
    pub age: Duration,
}

impl<P: fmt::Debug> fmt::Display for Report<P> {
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

/// What [`on_error`](super::Serve::on_error) is told of. It costs one connection, or some time, and not the server.
#[non_exhaustive]
pub enum ServeError<'a, P = SocketAddr> {
    /// Connections cannot be accepted, mostly for lack of descriptors or memory. The server tries again by itself; if
    /// it cannot go on, it ends with this error.
    Accept(&'a io::Error),
    /// A handler ended with an error.
    Handler {
        /// Whose handler.
        peer: P,
        /// What it ended with.
        error: &'a dyn fmt::Display,
    },
    /// A handler panicked. The panic hook has reported what it says.
    Panic {
        /// Whose handler.
        peer: P,
    },
}

impl<P: fmt::Debug> fmt::Display for ServeError<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept(error) => write!(f, "cannot accept connections: {error}"),
            Self::Handler { peer, error } => write!(f, "{peer:?}: {error}"),
            Self::Panic { peer } => write!(f, "{peer:?}: its handler panicked"),
        }
    }
}

impl<P: fmt::Debug> fmt::Debug for ServeError<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServeError({self})")
    }
}

impl<P: fmt::Debug> Error for ServeError<'_, P> {}
