//! The cooperative budget: how many socket operations one poll of a task may do.
//!
//! A socket that is always ready never returns `Pending` by itself, and a task
//! that loops on it would keep its worker for ever. So the executor gives each
//! poll of a task [`PER_POLL`] operations ([`refill`]), each operation that came
//! to a result takes one ([`spend`]), and once none is left [`poll_proceed`]
//! wakes the task and returns `Pending`: the task goes to the back of the queue.
//!
//! An operation that has to wait spends nothing. Otherwise a task that watches
//! 200 idle sockets would use up its budget by looking, and spin.
//!
//! A thread that is not polling one of our tasks has no limit. A task that, against all advice, blocks its thread in another
//! executor would be refused there for ever, since nobody refills it; so after [`PATIENCE`] refusals it gets its
//! operations all the same.
//!
//! What the operations move is counted here too ([`count_moved`]), for the worker to know how much it has done.

use std::cell::Cell;
use std::task::{Context, Poll};

use crate::metrics;

/// Socket operations in one poll of a task. tokio settled on the same figure.
pub(crate) const PER_POLL: i64 = 128;

/// Refusals in one poll of a task before its budget is refilled: more than the sockets that one task is likely to watch.
const PATIENCE: i64 = 10_000;

/// The thread is not inside a poll of one of our tasks. Nobody lives to use this up.
const UNLIMITED: i64 = i64::MAX;

thread_local! {
    /// Operations left; below zero, how often some were refused.
    static LEFT: Cell<i64> = const { Cell::new(UNLIMITED) };
    /// Bytes that were moved here since somebody asked.
    static MOVED: Cell<u64> = const { Cell::new(0) };
}

/// What was left before, to be given to [`restore`].
#[derive(Clone, Copy)]
pub(crate) struct Saved(i64);

/// Starts a poll of a task: it has [`PER_POLL`] operations.
#[inline]
pub(crate) fn refill() {
    LEFT.set(PER_POLL);
}

/// Takes the limit away and returns what it was.
pub(crate) fn suspend() -> Saved {
    Saved(LEFT.replace(UNLIMITED))
}

/// Puts back what [`suspend`] took away.
pub(crate) fn restore(saved: Saved) {
    LEFT.set(saved.0);
}

/// `Ready` while there is budget; else wakes the task and returns `Pending`.
#[inline]
pub(crate) fn poll_proceed(cx: &mut Context<'_>) -> Poll<()> {
    if LEFT.get() > 0 { Poll::Ready(()) } else { refuse(cx) }
}

#[cold]
fn refuse(cx: &mut Context<'_>) -> Poll<()> {
    if LEFT.get() == -PATIENCE {
        LEFT.set(PER_POLL);
        return Poll::Ready(());
    }
    if LEFT.get() == 0 {
        metrics::count_budget_yield();
    }
    LEFT.set(LEFT.get() - 1);
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Takes one operation from the budget. Only after [`poll_proceed`] returned `Ready`.
#[inline]
pub(crate) fn spend() {
    LEFT.set(LEFT.get() - 1);
}

/// An operation has moved so many bytes.
#[inline]
pub(crate) fn count_moved(bytes: usize) {
    MOVED.set(MOVED.get().wrapping_add(bytes as u64));
}

/// How many bytes the operations on this thread have moved since the last call.
#[inline]
pub(crate) fn take_moved() -> u64 {
    MOVED.replace(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_poll_has_exactly_its_budget() {
        let mut cx = Context::from_waker(Waker::noop());
        refill();
        for spent in 0..PER_POLL {
            assert!(poll_proceed(&mut cx).is_ready(), "stopped after {spent} operations");
            spend();
        }
        assert!(poll_proceed(&mut cx).is_pending(), "the budget did not run out");
        refill();
        assert!(poll_proceed(&mut cx).is_ready(), "a refill gives it back");
    }

    /// A task that blocks its thread in another executor is refilled by nobody.
    #[test]
    fn whoever_is_refused_for_ever_is_let_through() {
        let mut cx = Context::from_waker(Waker::noop());
        refill();
        (0..PER_POLL).for_each(|_| spend());
        let refusals = (0..=PATIENCE).take_while(|_| poll_proceed(&mut cx).is_pending()).count();
        assert_eq!(refusals as i64, PATIENCE);
        assert!(poll_proceed(&mut cx).is_ready());
    }

    #[test]
    fn a_foreign_thread_has_no_limit() {
        let mut cx = Context::from_waker(Waker::noop());
        let saved = suspend();
        for _ in 0..10 * PER_POLL {
            spend();
        }
        assert!(poll_proceed(&mut cx).is_ready());
        restore(saved);
    }
}
