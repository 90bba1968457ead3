//! Shared poll: the poll of a worker, which another worker turns while the owner is stuck in a task. It is behind a
//! lock.
//!
//! # Protocol
//! * The owner holds the lock while it waits for events, and stores them before it releases the lock.
//! * A helper only tries the lock. If the owner has come to its poll after all, the helper does nothing. A helper never
//!   waits for events under the lock.
//!
//! # The race
//! An unpark, an expiry of a timerfd, and an event of a reactor that the owner watches: each is an edge that must end
//! the owner's next wait. A helper may take that edge after the owner has looked at its queue and before the owner
//! waits. The owner would then wait for an edge that never comes. So a helper that has taken one notes this, and the
//! owner's next turn only looks.

use std::mem;

/// The poll of one worker.
pub(crate) struct SharedPoll<P> {
    /// `None` until the reactor is opened, and once its worker has ended.
    pub(crate) poll: Option<P>,
    /// A helper has taken an edge of the owner.
    misses_edge: bool,
}

impl<P> SharedPoll<P> {
    /// The poll for the owner's next turn, and whether the owner may only look, because a helper has taken an edge.
    pub(crate) fn begin_turn(&mut self) -> Option<(&mut P, bool)> {
        let poll = self.poll.as_mut()?;
        Some((poll, mem::take(&mut self.misses_edge)))
    }

    /// Notes that a helper has taken an edge of the owner.
    pub(crate) fn note_taken_edge(&mut self) {
        self.misses_edge = true;
    }
}

impl<P> Default for SharedPoll<P> {
    fn default() -> Self {
        Self { poll: None, misses_edge: false }
    }
}
