//! Interest and Ready: sets of directions, as users of the crate see them.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use super::readiness::{Direction, Snapshot};

/// The directions that an operation waits for: reading, writing, or both.
///
/// # Examples
/// ```
/// use kittiwake::io::Interest;
///
/// let both = Interest::READABLE | Interest::WRITABLE;
/// assert!(both.is_readable() && both.is_writable());
/// assert!(!Interest::READABLE.is_writable());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interest(Directions);

/// The directions that were reported ready.
///
/// # Examples
/// ```
/// use kittiwake::io::{Interest, Ready};
/// use kittiwake::net::TcpListener;
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = std::net::TcpStream::connect(listener.local_addr()?)?;
/// let (stream, _) = listener.accept().await?;
/// // The peer sends nothing, and the kernel's buffer is empty.
/// let ready = stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
/// assert!(ready.is_writable() && !ready.is_readable());
/// # drop(client);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ready(Directions);

/// A set of directions.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Directions {
    readable: bool,
    writable: bool,
}

impl Interest {
    /// Interest in reading. Accepting is reading.
    pub const READABLE: Self = Self(Directions { readable: true, writable: false });

    /// Interest in writing. Connecting is writing.
    pub const WRITABLE: Self = Self(Directions { readable: false, writable: true });

    /// The directions of both.
    #[must_use]
    pub const fn add(self, other: Self) -> Self {
        Self(self.0.or(other.0))
    }

    /// Whether reading is among the directions.
    pub const fn is_readable(self) -> bool {
        self.0.readable
    }

    /// Whether writing is among the directions.
    pub const fn is_writable(self) -> bool {
        self.0.writable
    }

    pub(super) const fn is_both(self) -> bool {
        self.0.readable && self.0.writable
    }

    pub(crate) fn directions(self) -> impl Iterator<Item = Direction> {
        let reads = self.0.readable.then_some(Direction::Read);
        reads.into_iter().chain(self.0.writable.then_some(Direction::Write))
    }
}

impl Ready {
    /// Whether reading was reported ready. An end and an error count, because a read then returns at once.
    pub const fn is_readable(self) -> bool {
        self.0.readable
    }

    /// Whether writing was reported ready. An error counts, because a write then returns at once.
    pub const fn is_writable(self) -> bool {
        self.0.writable
    }

    /// The directions of `interest` that are reported ready ([`Snapshot::is_reported`]), if there are any.
    pub(crate) fn reported(interest: Interest, seen: Snapshot) -> Option<Self> {
        let readable = interest.0.readable && seen.is_reported(Direction::Read);
        let writable = interest.0.writable && seen.is_reported(Direction::Write);
        (readable || writable).then_some(Self(Directions { readable, writable }))
    }
}

impl Directions {
    const fn or(self, other: Self) -> Self {
        Self { readable: self.readable || other.readable, writable: self.writable || other.writable }
    }
}

impl From<Direction> for Interest {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Read => Self::READABLE,
            Direction::Write => Self::WRITABLE,
        }
    }
}

impl BitOr for Interest {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.add(other)
    }
}

impl BitOrAssign for Interest {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.add(other);
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interest({:?})", self.0)
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ready({:?})", self.0)
    }
}

impl fmt::Debug for Directions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.readable, self.writable) {
            (true, true) => "READABLE | WRITABLE",
            (true, false) => "READABLE",
            (false, true) => "WRITABLE",
            (false, false) => "none",
        })
    }
}
