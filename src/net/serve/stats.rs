//! Stats: the counts of a server, which other threads read while it runs.
//!
//! The server and its handlers change the counts while they hold the lock of the table of connections, so a connection
//! takes no other lock for them. A reader takes no lock at all. So it may see a change in one count and not yet in
//! another.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::report::Report;

/// The live counts of a server, which [`Serve::stats`](super::Serve::stats) returns.
///
/// All clones show the counts of the same server. They can be read on any thread, while the server runs and after it has
/// ended. They keep neither the server nor its listener.
///
/// Each connection in [`accepted`](ServeStats::accepted) is in exactly one of [`open`](ServeStats::open),
/// [`served`](ServeStats::served), [`failed`](ServeStats::failed) and [`panicked`](ServeStats::panicked), except that
/// connections which end while the counts are read may be missing from the sum, or be in it twice. A server that ends
/// leaves the counts of its report. Then [`open`](ServeStats::open) is 0, and the connections that the server has
/// aborted are only in [`Report::open`](crate::net::Report::open).
///
/// # Examples
/// See [`Serve::stats`](super::Serve::stats).
#[derive(Clone)]
pub struct ServeStats {
    counts: Arc<Counts>,
}

impl ServeStats {
    pub(super) fn new(counts: &Arc<Counts>) -> Self {
        Self { counts: counts.clone() }
    }

    /// Connections that are open now: their handlers have not been dropped.
    pub fn open(&self) -> usize {
        self.counts.open()
    }

    /// Connections for which the handler was called.
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.get()
    }

    /// Handlers that ended without an error.
    pub fn served(&self) -> u64 {
        self.counts.served.get()
    }

    /// Handlers that ended with `Err`, or that were dropped before they ended.
    pub fn failed(&self) -> u64 {
        self.counts.failed.get()
    }

    /// Handlers that panicked.
    pub fn panicked(&self) -> u64 {
        self.counts.panicked.get()
    }

    /// Connections that were closed without their handler, because no descriptors were left, or because the server ended
    /// while they waited for others. They are not in `accepted`.
    pub fn refused(&self) -> u64 {
        self.counts.refused.get()
    }
}

impl fmt::Debug for ServeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeStats")
            .field("accepted", &self.accepted())
            .field("served", &self.served())
            .field("failed", &self.failed())
            .field("panicked", &self.panicked())
            .field("refused", &self.refused())
            .field("open", &self.open())
            .finish()
    }
}

/// The counts of one server.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) accepted: Count,
    pub(super) served: Count,
    pub(super) failed: Count,
    pub(super) panicked: Count,
    pub(super) refused: Count,
    open: AtomicUsize,
}

/// A count that only grows.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Counts one more. The caller holds the lock of the table, so that no count is lost between the load and the store.
    pub(super) fn increment(&self) {
        self.0.store(self.get() + 1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counts {
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Notes how many connections are open. The caller holds the lock of the table.
    pub(super) fn set_open(&self, open: usize) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// The report of a server that has ended with these counts, without its open connections.
    pub(super) fn report<A>(&self) -> Report<A> {
        let Self { accepted, served, failed, panicked, refused, .. } = self;
        Report {
            accepted: accepted.get(),
            served: served.get(),
            failed: failed.get(),
            panicked: panicked.get(),
            refused: refused.get(),
            open: Vec::new(),
        }
    }
}
