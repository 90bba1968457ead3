//! Shared poll: the poll of a worker, which another worker turns while the owner is stuck in a task.
//!
//! # Protocol
//! * The owner holds the lock while it waits for events, and stores them before it releases the lock.
//! * A helper only tries the lock. If the owner has come to its poll after all, the helper does nothing. A helper never
//!   waits for events under the lock.
//!
//! # The race
//! An unpark or an expiry of the timerfd is an edge that must end the owner's next wait. A helper may take that edge
//! after the owner has looked at its queue and before the owner waits. The owner would then wait for an edge that never
//! comes. So a helper that has taken one notes this under the lock, and the owner's next turn only looks.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The poll of one worker.
pub(crate) struct SharedPoll<P> {
    /// `None` until the reactor is opened, and once its worker has ended.
    poll: Mutex<Option<P>>,
    /// A helper has taken an edge of the owner. Used under the lock of `poll`.
    misses_edge: AtomicBool,
}

/// How the owner may turn its poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It may wait for events.
    MayWait,
    /// A helper has taken an edge: the owner may only look.
    LookOnly,
}

impl<P> SharedPoll<P> {
    /// The lock, for the owner.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<P>> {
        self.poll.lock()
    }

    /// The lock, for a helper. `None` if another worker has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Option<P>>> {
        self.poll.try_lock()
    }

    /// Says, to the owner that holds the lock, how it may turn the poll this time.
    pub(crate) fn next_turn(&self, _locked: &mut P) -> Turn {
        if !self.misses_edge.load(Ordering::Relaxed) {
            return Turn::MayWait;
        }
        self.misses_edge.store(false, Ordering::Relaxed);
        Turn::LookOnly
    }

    /// Notes that a helper, which holds the lock, has taken an edge of the owner.
    pub(crate) fn note_taken_edge(&self, _locked: &mut P) {
        self.misses_edge.store(true, Ordering::Relaxed);
    }
}

impl<P> Default for SharedPoll<P> {
    fn default() -> Self {
        Self { poll: Mutex::new(None), misses_edge: AtomicBool::new(false) }
    }
}
