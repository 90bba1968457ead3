//! The report of a server, the error with which it ends, and the failures that it reports while it runs.

use std::error::Error;
use std::fmt;
use std::io;
use std::iter;
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
    /// Connections that were closed without their handler, because no descriptors were left, or because the server ended
    /// while they waited for others. They are not in `accepted`.
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

impl<A: fmt::Debug> Error for ServeError<A> {
    /// The source of the [`error`](ServeError::error), whose own text is in that of this one.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl<A> From<ServeError<A>> for io::Error {
    fn from(error: ServeError<A>) -> Self {
        error.error
    }
}

/// A failure that [`on_error`](super::Serve::on_error) receives.
///
/// It costs one connection, or some time. Only an [`Accept`](Failure::Accept) error may also end the server.
///
/// `Display` prints the address of the client and the error. [`Error::source`] is the source of that error, so a logger
/// that follows the sources prints each error once.
///
/// # Examples
/// Most failures of a busy server are clients that have gone away. A log without them shows the others:
/// ```
/// use kittiwake::net::Failure;
///
/// fn log(failure: &Failure<'_>) {
///     if !failure.is_disconnect() {
///         eprintln!("{failure}");
///     }
/// }
/// # fn example(listener: kittiwake::net::TcpListener) {
/// # let handler = |_stream, _peer| async {};
/// let server = kittiwake::net::serve(listener, handler).on_error(log);
/// # drop(server);
/// # }
/// ```
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
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A handler panicked. The panic hook has received the message.
    Panic {
        /// The address of the handler's client.
        peer: A,
    },
}

impl<'a, A> Failure<'a, A> {
    /// The error of the listener or of the handler. `None` after a panic.
    ///
    /// The caller can downcast it to the type that the handler has returned.
    pub fn error(&self) -> Option<&'a (dyn Error + Send + Sync + 'static)> {
        match self {
            Self::Accept(error) => Some(*error),
            Self::Handler { error, .. } => Some(*error),
            Self::Panic { .. } => None,
        }
    }

    /// The kind of the first [`io::Error`] among the [error](Failure::error) and its sources.
    /// [`Other`](io::ErrorKind::Other) if none of them is an `io::Error`.
    pub fn kind(&self) -> io::ErrorKind {
        let first = self.error().map(|error| error as &(dyn Error + 'static));
        let mut chain = iter::successors(first, |&error| error.source());
        chain.find_map(|error| error.downcast_ref::<io::Error>()).map_or(io::ErrorKind::Other, io::Error::kind)
    }

    /// The address of the handler's client. `None` for [`Accept`](Failure::Accept).
    pub fn peer(&self) -> Option<&A> {
        match self {
            Self::Accept(_) => None,
            Self::Handler { peer, .. } | Self::Panic { peer } => Some(peer),
        }
    }

    /// Whether a handler has ended with the error of a connection that its peer has closed or reset.
    ///
    /// The [kind](Failure::kind) is then `ConnectionReset`, `ConnectionAborted`, `BrokenPipe`, `NotConnected` or
    /// `UnexpectedEof`. The connection is mostly that of the client. But a handler may also pass on such an error of a
    /// connection that it has made, for example to a database.
    pub fn is_disconnect(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        let is_handlers = matches!(self, Self::Handler { .. });
        let is_end =
            |kind| matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof);
        is_handlers && is_end(self.kind())
    }
}

impl<A: fmt::Debug> fmt::Display for Failure<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept(error) => write!(f, "cannot accept connections: {error}{}", remedy(error)),
            Self::Handler { peer, error } => write!(f, "{peer:?}: {error}"),
            Self::Panic { peer } => write!(f, "{peer:?}: its handler panicked"),
        }
    }
}

/// The remedy for an error of accepting, as the end of its text.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "; raise the limit of open files (ulimit -n), or set max_connections",
        Some(libc::ENFILE) => "; raise the system's limit of open files, or set max_connections",
        _ => "",
    }
}

impl<A: fmt::Debug> fmt::Debug for Failure<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({self})")
    }
}

impl<A: fmt::Debug> Error for Failure<'_, A> {
    /// The source of the [error](Failure::error), whose own text is in that of the failure.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error()?.source()
    }
}
