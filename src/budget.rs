//! The cooperative budget: how many socket operations one poll of a task may do.
//!
//! A socket that is always ready never returns `Pending` by itself. A task that loops on it would keep its worker for
//! ever. So
//! 1. the executor gives each poll of a task [`PER_POLL`] operations ([`refill`]);
//! 2. each operation that comes to a result takes one ([`spend`]);
//! 3. once none is left, [`poll_proceed`] wakes the task and returns `Pending`, and the task goes to the back of the
//!    queue.
//!
//! An operation that has to wait spends nothing. Otherwise a task that watches 200 idle sockets would use up its budget
//! by looking, and spin.
//!
//! A thread that polls neither our tasks nor the future of a `block_on` call has no limit.
//!
//! A task may block its worker's thread in another executor, against all advice. That executor polls again and again
//! without a refill, and operations would be refused for ever. So after [`MAX_REFUSALS`] refusals the budget is
//! refilled.
//!
//! Two thread-locals of other services are here too, because the code that sets them and the code that reads them both
//! know this module: the bytes that operations have moved ([`count_moved`]), and whether operations ask the kernel
//! ([`ask_kernel`]).

use std::cell::Cell;
use std::task::{Context, Poll};

use crate::metrics;

/// Socket operations in one poll of a task. tokio settled on the same figure.
pub(crate) const PER_POLL: i64 = 128;

/// Refusals in one poll of a task before its budget is refilled: more than the sockets that one task is likely to
/// watch.
const MAX_REFUSALS: i64 = 10_000;

/// The budget of a thread that polls none of our tasks. It never runs out in practice.
const UNLIMITED: i64 = i64::MAX;

// Each is a thread-local of its own, so that an operation reaches it by one instruction. In one struct they cost an
// echo 12.
thread_local! {
    /// Operations left. Below zero, the number of refusals.
    static LEFT: Cell<i64> = const { Cell::new(UNLIMITED) };
    /// Bytes that operations have moved since the last [`take_moved`].
    static MOVED: Cell<u64> = const { Cell::new(0) };
    /// Operations make their system call although no event has come.
    static ASKS_KERNEL: Cell<bool> = const { Cell::new(false) };
}

/// The budget that [`suspend`] took away, for [`restore`].
#[derive(Clone, Copy)]
pub(crate) struct Saved(i64);

/// Starts a poll of a task: it has [`PER_POLL`] operations.
pub(crate) fn refill() {
    LEFT.set(PER_POLL);
}

/// Takes the limit away and returns what was left.
pub(crate) fn suspend() -> Saved {
    Saved(LEFT.replace(UNLIMITED))
}

/// Puts back what [`suspend`] took away.
pub(crate) fn restore(saved: Saved) {
    LEFT.set(saved.0);
}

/// `Ready` while there is budget. Otherwise wakes the task and returns `Pending`.
pub(crate) fn poll_proceed(cx: &mut Context<'_>) -> Poll<()> {
    if LEFT.get() > 0 { Poll::Ready(()) } else { refuse(cx) }
}

// An echo costs 0.7 % more without this.
#[cold]
fn refuse(cx: &mut Context<'_>) -> Poll<()> {
    let left = LEFT.get();
    if left == -MAX_REFUSALS {
        refill();
        return Poll::Ready(());
    }
    if left == 0 {
        metrics::count_budget_yield();
    }
    spend();
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Takes one operation from the budget, which [`poll_proceed`] has allowed or refused.
pub(crate) fn spend() {
    LEFT.set(LEFT.get() - 1);
}

/// Counts the bytes that an operation has moved.
pub(crate) fn count_moved(bytes: usize) {
    MOVED.set(MOVED.get().wrapping_add(bytes as u64));
}

/// The bytes that the operations on this thread have moved since the last call.
pub(crate) fn take_moved() -> u64 {
    MOVED.replace(0)
}

/// Runs `poll`, in which each socket operation makes its system call, whatever its reactor has reported. `poll` has the
/// budget of a task's poll.
///
/// A task calls this for its last poll before it gives up, for instance because of a shutdown. The kernel may have a
/// request that no reactor has reported yet: a short read cleared the socket's readiness just before the request came.
pub(crate) fn ask_kernel<T>(poll: impl FnOnce() -> T) -> T {
    /// Restores what was there, also if `poll` panics.
    struct Restore(bool, Saved);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASKS_KERNEL.set(self.0);
            restore(self.1);
        }
    }
    let _restore = Restore(ASKS_KERNEL.replace(true), suspend());
    refill();
    poll()
}

/// Whether the code that polls here is inside [`ask_kernel`].
pub(crate) fn asks_kernel() -> bool {
    ASKS_KERNEL.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// A poll gets exactly its budget, and a refill gives it back.
    #[test]
    fn poll_has_exactly_its_budget() {
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

    /// No refill comes to a task that blocks its thread in another executor. It would be refused for ever.
    #[test]
    fn refusals_end_at_their_limit() {
        let mut cx = Context::from_waker(Waker::noop());
        refill();
        (0..PER_POLL).for_each(|_| spend());
        let refusals = (0..=MAX_REFUSALS).take_while(|_| poll_proceed(&mut cx).is_pending()).count();
        assert_eq!(refusals as i64, MAX_REFUSALS);
        assert!(poll_proceed(&mut cx).is_ready());
    }

    /// A thread that is no worker has no limit.
    #[test]
    fn foreign_thread_has_no_limit() {
        let mut cx = Context::from_waker(Waker::noop());
        let saved = suspend();
        for _ in 0..10 * PER_POLL {
            spend();
        }
        assert!(poll_proceed(&mut cx).is_ready());
        restore(saved);
    }
}
