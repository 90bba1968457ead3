//! The cooperative budget: how many operations one poll of a task may do.
//!
//! A socket that is always ready never returns `Pending` by itself, nor does a timer whose deadline has passed, a task
//! that has ended, or a signal that is triggered. A task that loops on one of them would keep its worker for ever. So
//! 1. the executor gives each poll of a task 128 operations ([`refill`]);
//! 2. each operation that comes to a result takes one ([`spend`]);
//! 3. once none is left, [`poll_proceed`] wakes the task and returns `Pending`, and the task runs again after all other
//!    ready tasks of its worker.
//!
//! An operation that has to wait spends nothing. Otherwise a task that watches 200 idle sockets would use up its budget
//! by looking, and spin.
//!
//! # Several futures in one task
//! A combinator such as `or` polls its futures in order, and the first may use up the budget in every poll. A timer
//! behind it would be refused for ever. So once in each poll an operation that completes its future, such as a timer
//! that has fired or a task that has ended, goes on although another was refused before it ([`poll_complete`]).
//!
//! # The limit of time
//! A task may work for long between two operations. So the operations come in slices of [`SLICE`], and before each
//! further slice the clock is read. The budget is used up early if [`LONGEST`] has passed since the clock was first
//! read in this batch of polls ([`begin_batch`], [`batch_time`]). A timer that does not have to wait reads the clock
//! anyway, and so it goes by the time at each operation ([`poll_spend_by_time`]).
//!
//! While the clock of the thread's runtime is paused, no time passes for the budget either ([`stop_time`]). Otherwise
//! the order of the tasks would depend on the speed of the machine.
//!
//! # Polls that have no limit
//! A thread that polls neither our tasks nor the future of a `block_on` call has no limit.
//!
//! A task may block its worker's thread in another executor, against all advice. That executor polls again and again
//! without a refill, and operations would be refused for ever. So after [`MAX_REFUSALS`] refusals the budget is
//! refilled.
//!
//! Two thread-locals of other services are here too, because the code that sets them and the code that reads them both
//! know this module: the work that was done on this thread ([`count_moved`], [`count_events`]), and whether operations
//! ask the kernel ([`ask_kernel`]).

use std::cell::Cell;
use std::task::{Context, Poll, ready};

use crate::system_clock::monotonic;
use crate::{metrics, stamp};

/// Operations between two readings of the clock.
const SLICE: i64 = 16;

/// Slices in one poll of a task. They make 128 operations. tokio settled on the same figure.
const SLICES: i64 = 8;

/// The time after which the tasks of a batch get no further slice, in nanoseconds.
const LONGEST: u64 = 750_000;

/// Refusals in one poll of a task before its budget is refilled: more than the sockets that one task is likely to
/// watch.
const MAX_REFUSALS: i64 = 10_000;

/// The bytes that weigh as much as an event of [`count_events`]: those of a small request and its answer.
const EVENT_BYTES: u64 = 128;

/// The budget of a thread that polls none of our tasks. It never runs out in practice.
const UNLIMITED: i64 = i64::MAX;

// Each is a thread-local of its own, so that an operation reaches it by one instruction. In one struct they cost an
// echo 12.
thread_local! {
    /// Operations left in this slice. Below zero, how many were refused since, or let pass by [`poll_complete`].
    static LEFT: Cell<i64> = const { Cell::new(UNLIMITED) };
    /// Slices left after this one. -1 once [`poll_complete`] has let an operation pass in a poll that had none left.
    static SLICES_LEFT: Cell<i64> = const { Cell::new(0) };
    /// When the clock was first read in this batch of polls. 0 if it was not.
    static SINCE: Cell<u64> = const { Cell::new(0) };
    /// No batch lasts: the clock of this thread's runtime is paused.
    static IS_TIMELESS: Cell<bool> = const { Cell::new(false) };
    /// The strongest way in which a task of this batch has given way.
    static GAVE_WAY: Cell<GaveWay> = const { Cell::new(GaveWay::None) };
    /// Work since the last [`take_work`], in bytes.
    static WORK: Cell<u64> = const { Cell::new(0) };
    /// Operations make their system call although no event has come.
    static ASKS_KERNEL: Cell<bool> = const { Cell::new(false) };
}

/// How a task gives way to others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GaveWay {
    None,
    /// It yielded, and [`take_yield`] was called since.
    Noted,
    /// It yielded.
    Yielded,
    /// It has used up its budget.
    UsedUp,
}

/// The budget that [`suspend`] took away, for [`restore`].
#[derive(Clone, Copy)]
pub(crate) struct Saved {
    left: i64,
    slices_left: i64,
}

/// Starts a poll of a task: it has 128 operations.
pub(crate) fn refill() {
    LEFT.set(SLICE);
    SLICES_LEFT.set(SLICES - 1);
}

/// Takes the limit away and returns what was left.
pub(crate) fn suspend() -> Saved {
    Saved { left: LEFT.replace(UNLIMITED), slices_left: SLICES_LEFT.get() }
}

/// Puts back what [`suspend`] took away.
pub(crate) fn restore(saved: Saved) {
    LEFT.set(saved.left);
    SLICES_LEFT.set(saved.slices_left);
}

/// `Ready` while there is budget. Otherwise wakes the task and returns `Pending`.
pub(crate) fn poll_proceed(cx: &mut Context<'_>) -> Poll<()> {
    if LEFT.get() > 0 { Poll::Ready(()) } else { next_slice(cx) }
}

/// Takes one operation from the budget. If there is none, wakes the task and returns `Pending`.
pub(crate) fn poll_spend(cx: &mut Context<'_>) -> Poll<()> {
    ready!(poll_proceed(cx));
    spend();
    Poll::Ready(())
}

/// As [`poll_proceed`], for an operation that may complete its future. If `is_complete` says that it does, it goes on
/// once in each poll of a task although another operation was refused before it.
pub(crate) fn poll_complete(cx: &mut Context<'_>, is_complete: impl FnOnce() -> bool) -> Poll<()> {
    if LEFT.get() > 0 { Poll::Ready(()) } else { pass_or_refuse(cx, is_complete) }
}

/// Lets an operation pass that [`poll_complete`] asks for, or goes on as [`poll_proceed`].
#[cold]
fn pass_or_refuse(cx: &mut Context<'_>, is_complete: impl FnOnce() -> bool) -> Poll<()> {
    if has_refused() && SLICES_LEFT.get() == 0 && is_complete() {
        SLICES_LEFT.set(-1);
        return Poll::Ready(());
    }
    next_slice(cx)
}

/// As [`poll_complete`] and [`spend`], for a future that is complete.
pub(crate) fn poll_spend_complete(cx: &mut Context<'_>) -> Poll<()> {
    ready!(poll_complete(cx, || true));
    spend();
    Poll::Ready(())
}

/// As [`poll_spend_complete`], and goes by the time too. For an operation that has just read the clock, so that a
/// second reading is no matter.
pub(crate) fn poll_spend_by_time(cx: &mut Context<'_>) -> Poll<()> {
    if LEFT.get() > 0 && LEFT.get() <= SLICE && is_late() {
        use_up();
    }
    poll_spend_complete(cx)
}

/// Runs `operation`. If it comes to a result and has spent nothing itself, takes one operation from the budget.
pub(crate) fn poll_spend_once<T>(cx: &mut Context<'_>, operation: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    ready!(poll_proceed(cx));
    let left = LEFT.get();
    let result = ready!(operation(cx));
    if LEFT.get() == left {
        spend();
    }
    Poll::Ready(result)
}

/// Takes one operation from the budget, which [`poll_proceed`] has allowed or refused.
pub(crate) fn spend() {
    LEFT.set(LEFT.get() - 1);
}

/// Takes one operation, unless it is the last of the slice. For work that the caller can leave to another task.
#[cfg(feature = "hyper")]
pub(crate) fn try_spend() -> bool {
    let has_more = LEFT.get() > 1;
    if has_more {
        spend();
    }
    has_more
}

/// Takes the next slice, if there is one and the batch is not late. Otherwise refuses.
// An echo costs 0.7 % more without this.
#[cold]
fn next_slice(cx: &mut Context<'_>) -> Poll<()> {
    let left = LEFT.get();
    if left == 0 && SLICES_LEFT.get() > 0 && !is_late() {
        SLICES_LEFT.set(SLICES_LEFT.get() - 1);
        LEFT.set(SLICE);
        return Poll::Ready(());
    }
    // Less than that if the last operation was not refused but let pass.
    if left <= -MAX_REFUSALS {
        refill();
        SINCE.set(0);
        return Poll::Ready(());
    }
    if left == 0 {
        GAVE_WAY.set(GaveWay::UsedUp);
        metrics::count_budget_yield();
    }
    use_up();
    spend();
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Takes away what is left.
fn use_up() {
    LEFT.set(LEFT.get().min(0));
    SLICES_LEFT.set(SLICES_LEFT.get().min(0));
}

/// Whether an operation of this poll was refused.
pub(crate) fn has_refused() -> bool {
    LEFT.get() < 0
}

/// Begins a batch of polls, at `now`. A caller that has not read the clock passes 0.
pub(crate) fn begin_batch(now: u64) {
    SINCE.set(now);
    GAVE_WAY.set(GaveWay::None);
}

/// Yields once: is pending in the first poll, and ready in the next. `has_yielded` belongs to this yield.
#[inline]
pub(crate) fn poll_yield(cx: &mut Context<'_>, has_yielded: &mut bool) -> Poll<()> {
    if *has_yielded {
        return Poll::Ready(());
    }
    *has_yielded = true;
    if GAVE_WAY.get() != GaveWay::UsedUp {
        GAVE_WAY.set(GaveWay::Yielded);
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Whether a task of this batch may have yielded since the last call. Once a budget is used up, this is not known.
pub(crate) fn take_yield() -> bool {
    match gave_way() {
        GaveWay::None | GaveWay::Noted => false,
        GaveWay::Yielded => {
            GAVE_WAY.set(GaveWay::Noted);
            true
        }
        GaveWay::UsedUp => true,
    }
}

/// The strongest way in which a task of this batch has given way.
pub(crate) fn gave_way() -> GaveWay {
    GAVE_WAY.get()
}

/// The clock of this thread's runtime is paused, or goes on.
pub(crate) fn stop_time(is_stopped: bool) {
    IS_TIMELESS.set(is_stopped);
}

/// How long this batch of polls has lasted, at `now`. The first reading of the clock in a batch counts as its begin. 0
/// while the clock is paused.
pub(crate) fn batch_time(now: u64) -> u64 {
    stamp::note(now);
    if IS_TIMELESS.get() {
        return 0;
    }
    if SINCE.get() == 0 {
        SINCE.set(now);
    }
    now.saturating_sub(SINCE.get())
}

fn is_late() -> bool {
    batch_time(monotonic()) >= LONGEST
}

/// Counts the bytes that an operation has moved, as work.
pub(crate) fn count_moved(bytes: usize) {
    WORK.set(WORK.get().wrapping_add(bytes as u64));
}

/// Counts accepted connections, fired timers, or entries that other threads have pushed, as work.
pub(crate) fn count_events(events: usize) {
    WORK.set(WORK.get().wrapping_add((events as u64).wrapping_mul(EVENT_BYTES)));
}

/// The work that was done on this thread since the last call, in bytes.
pub(crate) fn take_work() -> u64 {
    WORK.replace(0)
}

/// Runs `poll` with the budget of a task's poll, whatever is left of the present one.
pub(crate) fn with_fresh<T>(poll: impl FnOnce() -> T) -> T {
    /// Restores what was there, also if `poll` panics.
    struct Restore(Saved, u64);
    impl Drop for Restore {
        fn drop(&mut self) {
            restore(self.0);
            SINCE.set(self.1);
        }
    }
    let _restore = Restore(suspend(), SINCE.take());
    refill();
    poll()
}

/// Runs `poll`, in which each socket operation makes its system call, whatever its reactor has reported. `poll` has the
/// budget of a task's poll.
///
/// A task calls this for its last poll before it gives up, for instance because of a shutdown. The kernel may have a
/// request that no reactor has reported yet: a short read cleared the socket's readiness just before the request came.
pub(crate) fn ask_kernel<T>(poll: impl FnOnce() -> T) -> T {
    /// Restores what was there, also if `poll` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASKS_KERNEL.set(self.0);
        }
    }
    let _restore = Restore(ASKS_KERNEL.replace(true));
    with_fresh(poll)
}

/// Whether the code that polls here is inside [`ask_kernel`].
pub(crate) fn asks_kernel() -> bool {
    ASKS_KERNEL.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    const PER_POLL: i64 = SLICE * SLICES;

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
        (0..PER_POLL).for_each(|_| assert!(poll_spend(&mut cx).is_ready()));
        let refusals = (0..=MAX_REFUSALS).take_while(|_| poll_proceed(&mut cx).is_pending()).count();
        assert_eq!(refusals as i64, MAX_REFUSALS);
        assert!(poll_proceed(&mut cx).is_ready());
    }

    /// The refusals end also if the last operation before the limit is one that completes its future, and passes.
    #[test]
    fn passed_operation_skips_no_limit() {
        let mut cx = Context::from_waker(Waker::noop());
        refill();
        (0..PER_POLL).for_each(|_| assert!(poll_spend(&mut cx).is_ready()));
        (0..MAX_REFUSALS).for_each(|_| assert!(poll_proceed(&mut cx).is_pending()));
        assert!(poll_spend_complete(&mut cx).is_ready(), "one passes in each poll");
        assert!(poll_proceed(&mut cx).is_ready(), "all that come are refused for ever");
    }

    /// A complete future passes once in a poll, and only after another was refused.
    #[test]
    fn complete_future_passes_once_after_refusal() {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            refill();
            (0..PER_POLL).for_each(|_| assert!(poll_spend_complete(&mut cx).is_ready()));
            assert!(poll_spend_complete(&mut cx).is_pending(), "its own refusal lets it pass");
            assert!(poll_complete(&mut cx, || false).is_pending(), "one that waits has passed");
            assert!(poll_complete(&mut cx, || true).is_ready(), "none passes");
            assert!(poll_complete(&mut cx, || true).is_pending(), "a second one passes");
        }
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
