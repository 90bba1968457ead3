//! Readiness: the word that says which directions of a socket are ready.
//!
//! Every operation reads this word and every event changes it. It holds seven flags and, for each direction, a tick.
//!
//! | bits | name | set when | cleared when |
//! | --- | --- | --- | --- |
//! | 0 | `READABLE` | an event concerns reading; `READ_ENDED` is set; the socket is made, leaves a reactor or cannot be registered | a read meets `WouldBlock` or is short; the socket is registered, unless `READ_ENDED` is set |
//! | 1 | `WRITABLE` | an event concerns writing; `WRITE_ENDED` is set; the socket is made, leaves a reactor or cannot be registered | a write meets `WouldBlock` or is short; the socket is registered, unless `WRITE_ENDED` is set |
//! | 2 | `NO_SHORT_RULE` | an event reports an end, an error or urgent data | never |
//! | 3 | `UNREGISTERED` | the socket is made, leaves a reactor or cannot be registered | the socket is registered |
//! | 4 | `WRITE_ENDED` | this end has shut its writing side down, and the kernel reports no event for that on such a socket | never |
//! | 5 | `LISTENER` | the socket is made, and accepts connections | never |
//! | 6 | `READ_ENDED` | this end has shut its reading side down, and the system call does not say so | never |
//! | 7-31 | read tick | each event that concerns reading adds 1, and so does setting `READ_ENDED` | |
//! | 32-63 | write tick | each event that concerns writing adds 1, and so does setting `WRITE_ENDED` | |
//!
//! # Edges
//! While no reactor watches the socket, the bits stay set, so that operations try without registering. There are two
//! exceptions. A short transfer clears the bit, and the next operation registers the socket first. And an operation
//! that loaded the word while the socket was registered clears the bit on `WouldBlock`, even if the socket has been
//! unregistered since.
//!
//! An event sets a direction's bit, and the system call that follows tells the truth. An error sets both bits, and on
//! epoll and poll(2) a hang-up does too. The end of reading sets `READABLE`. A bit that an event has set stays only
//! until the next `WouldBlock`.
//!
//! While the kernel's buffer is full, no event tells a waiting writer of a Unix stream that its own end has shut the
//! writing side down. So the shutdown itself sets `WRITE_ENDED` and `WRITABLE` ([`Readiness::report_ended`]).
//! `WRITE_ENDED` stays, and makes the direction ready again whenever the socket is registered. That closes a race: A's
//! write meets `WouldBlock`, B shuts the writing side down, A registers the socket and would wait for ever.
//!
//! An event tells a reader of a Unix datagram socket that its own end has shut the reading side down, but the system
//! call still meets `WouldBlock`. So the reader looks at `READ_ENDED` in the word that it saw before the call.
//!
//! # Ticks
//! An operation remembers the word that it saw before its system call. If the call meets `WouldBlock`,
//! [`Readiness::clear`] takes the bit back only while the direction's tick is the same as in that word. Otherwise an
//! event that came between the call and the clear would be lost.
//!
//! Each direction has a tick of its own. With one tick for both, the events of a busy writer would refuse every clear
//! of the reader. A tick has 25 or 32 bits. The comparison is wrong only if exactly 33 million events come between the
//! load of the word and the comparison. Mostly only one system call lies between the two. A closure of the user's in
//! `try_io` or `async_io`, and an `AsyncFdReadyGuard`, may take longer. A read tick that goes round carries into the
//! write tick, which refuses one clear and costs one system call.

use std::sync::atomic::{AtomicU64, Ordering};

/// One half of a socket's traffic. Accepting is reading, connecting is writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    /// The other direction.
    pub(crate) const fn opposite(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }

    const fn bit(self) -> u64 {
        match self {
            Self::Read => Snapshot::READABLE,
            Self::Write => Snapshot::WRITABLE,
        }
    }

    const fn ended_bit(self) -> u64 {
        match self {
            Self::Read => Snapshot::READ_ENDED,
            Self::Write => Snapshot::WRITE_ENDED,
        }
    }

    /// The bits of the direction's tick.
    const fn tick(self) -> u64 {
        match self {
            Self::Read => Snapshot::WRITE_TICK - Snapshot::READ_TICK,
            Self::Write => !(Snapshot::WRITE_TICK - 1),
        }
    }
}

/// The word, as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(u64);

impl Snapshot {
    const READABLE: u64 = 1;
    const WRITABLE: u64 = 1 << 1;
    const NO_SHORT_RULE: u64 = 1 << 2;
    const UNREGISTERED: u64 = 1 << 3;
    const WRITE_ENDED: u64 = 1 << 4;
    const LISTENER: u64 = 1 << 5;
    const READ_ENDED: u64 = 1 << 6;
    const READ_TICK: u64 = 1 << 7;
    const WRITE_TICK: u64 = 1 << 32;

    /// The flags of a socket that no reactor watches. Nothing is known of it, so operations try.
    const UNKNOWN: u64 = Self::UNREGISTERED | Self::READABLE | Self::WRITABLE;

    /// Whether an operation makes its system call before it waits.
    pub(crate) fn should_try(self, direction: Direction) -> bool {
        self.0 & direction.bit() != 0
    }

    /// Whether the socket is registered and this direction is ready, by an event or because this end has shut the
    /// direction down.
    pub(crate) fn is_reported(self, direction: Direction) -> bool {
        self.is_registered() && self.should_try(direction)
    }

    pub(crate) fn is_registered(self) -> bool {
        self.0 & Self::UNREGISTERED == 0
    }

    /// Whether this end has shut this direction down, and [`Readiness::report_ended`] was called.
    pub(crate) fn has_ended(self, direction: Direction) -> bool {
        self.0 & direction.ended_bit() != 0
    }

    /// Whether the socket accepts connections.
    pub(crate) fn is_listener(self) -> bool {
        self.0 & Self::LISTENER != 0
    }

    /// Whether a short transfer proves that the next one would block. A stream that has an end, an error or an urgent
    /// mark in it proves nothing.
    pub(crate) fn allows_short_rule(self) -> bool {
        self.0 & Self::NO_SHORT_RULE == 0
    }

    fn has_same_tick(self, other: Self, direction: Direction) -> bool {
        (self.0 ^ other.0) & direction.tick() == 0
    }
}

/// The flags and ticks that one event adds to the word.
#[derive(Clone, Copy)]
pub(crate) struct Report {
    flags: u64,
    ticks: u64,
}

impl Report {
    /// This end has shut the direction down. That makes it ready, and its ended flag stays.
    const fn ended(direction: Direction) -> Self {
        let reads = matches!(direction, Direction::Read);
        let ready = Self::new(reads, !reads, false);
        Self { flags: ready.flags | direction.ended_bit(), ticks: ready.ticks }
    }

    /// `special`: the event tells of an end, an error or urgent data.
    pub(crate) const fn new(readable: bool, writable: bool, special: bool) -> Self {
        let mut flags = if special { Snapshot::NO_SHORT_RULE } else { 0 };
        let mut ticks = 0;
        if readable {
            flags |= Snapshot::READABLE;
            ticks += Snapshot::READ_TICK;
        }
        if writable {
            flags |= Snapshot::WRITABLE;
            ticks += Snapshot::WRITE_TICK;
        }
        Self { flags, ticks }
    }

    pub(crate) fn concerns(self, direction: Direction) -> bool {
        self.flags & direction.bit() != 0
    }
}

/// The word of one socket.
pub(crate) struct Readiness(AtomicU64);

impl Readiness {
    /// The word of a socket that no reactor watches.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(Snapshot::UNKNOWN))
    }

    /// As [`new`](Readiness::new), for a socket that accepts connections.
    pub(crate) fn of_listener() -> Self {
        Self(AtomicU64::new(Snapshot::UNKNOWN | Snapshot::LISTENER))
    }

    /// The word now. Acquires what the last event published.
    pub(crate) fn load(&self) -> Snapshot {
        Snapshot(self.0.load(Ordering::Acquire))
    }

    /// Whether no event has concerned `direction` since `seen`.
    pub(crate) fn is_unchanged(&self, direction: Direction, seen: Snapshot) -> bool {
        self.load().has_same_tick(seen, direction)
    }

    /// Adds what an event reports.
    // For the usual event the report is a constant. An echo costs 13 instructions more without this.
    #[inline(always)]
    pub(crate) fn apply(&self, report: Report) {
        let mut now = self.0.load(Ordering::Relaxed);
        let applied = |now: u64| (now | report.flags).wrapping_add(report.ticks);
        // Release: a thread that sees the tick also sees what came before the event.
        while let Err(actual) = self.0.compare_exchange_weak(now, applied(now), Ordering::AcqRel, Ordering::Relaxed) {
            now = actual;
        }
    }

    /// Takes a direction's bit back. Returns `false`, and leaves it, if an event has come since `seen`.
    pub(crate) fn clear(&self, direction: Direction, seen: Snapshot) -> bool {
        // The first exchange succeeds only if the word is still `seen`. So the tick is compared after a failure only.
        let mut now = seen;
        while let Err(actual) =
            self.0.compare_exchange_weak(now.0, now.0 & !direction.bit(), Ordering::AcqRel, Ordering::Acquire)
        {
            now = Snapshot(actual);
            if !now.has_same_tick(seen, direction) {
                return false;
            }
        }
        true
    }

    /// Marks the socket as registered and clears both ready bits, except for directions that have ended. Called before
    /// the socket enters the kernel's set: the kernel reports at once what is already so, and clearing the bits after
    /// that would lose the event.
    pub(crate) fn set_registered(&self) {
        let before = Snapshot(self.0.fetch_and(!Snapshot::UNKNOWN, Ordering::AcqRel));
        for direction in [Direction::Read, Direction::Write] {
            if before.has_ended(direction) {
                self.report_ended(direction);
            }
        }
    }

    /// Reports that a direction has ended, as an event does. An operation that has looked before the report sees the
    /// tick.
    #[cold]
    pub(crate) fn report_ended(&self, direction: Direction) {
        self.apply(Report::ended(direction));
    }

    /// Marks the socket as unregistered and sets both ready bits: every operation tries.
    pub(crate) fn set_unregistered(&self) {
        self.0.fetch_or(Snapshot::UNKNOWN, Ordering::AcqRel);
    }

    /// Sets a direction's bit although no event has come.
    pub(crate) fn assume_ready(&self, direction: Direction) {
        self.0.fetch_or(direction.bit(), Ordering::AcqRel);
    }
}
