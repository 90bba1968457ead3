//! Idle: which of a runtime's workers have nothing to do, and which of those looks after the others.
//!
//! An entry that is queued behind a task which runs for long must not wait for it while another worker sleeps. But to wake
//! a worker for each entry costs more than most entries do. So nobody is rung while somebody looks anyway:
//!
//! ```text
//!           call: rings an idle worker
//!   NOBODY ----------------------------> CALLED
//!     ^  \                                 | it wakes
//!     |   \ watch: idles beside a busy one |
//!     |    v                               v
//!     +-- WATCHING ----- release ----------+---> NOBODY, then looks
//! ```
//! * NOBODY: whoever queues something behind a running task, and sees that a worker is idle, calls one.
//! * CALLED: one has been rung and not yet come. Whoever goes idle meanwhile watches all the same.
//! * WATCHING: one sleeps for a millisecond or a few, and then looks.
//!
//! # The races
//! Both sides touch two things, a queue and this word, and each in the other's order:
//! * A goes idle and finds all queues empty; B queues something and finds nobody idle. A counts itself ([`Idle::enter`])
//!   before it looks, and B looks here after it has queued. Both take the queue's lock: if A's look came first, B sees the
//!   count.
//! * The watcher ends its watch, and B, who still sees WATCHING, calls nobody. So whoever takes back WATCHING or CALLED
//!   looks at all queues after that ([`Idle::leave`] says when), or calls the next one.
//! * B calls, and finds nobody who can be rung: the one that was counted is on its way out already. Another one may go idle,
//!   and see CALLED, before B takes that back. So it does not rely on it, and watches.
//! * A counts itself idle, sees WATCHING, and sleeps; the watcher takes that back, sees nobody idle, and looks no
//!   further. No lock orders these. So there is a fence between the two steps of either: one sees what the other did.
//! * A leaves, and does not see yet that B calls; B does not see yet that C is idle, and rings nobody; A, who has something
//!   to run, then sees the call, and relies on it. So there is a fence here too: A sees the call as it leaves, or B sees C.

use crate::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};

const NOBODY: u8 = 0;
const CALLED: u8 = 1;
const WATCHING: u8 = 2;

/// What the workers of a runtime know of each other's idleness.
pub(super) struct Idle {
    /// How many are idle: they wait for events, or are about to.
    count: AtomicUsize,
    helper: AtomicU8,
}

impl Idle {
    pub(super) fn new() -> Self {
        Self { count: AtomicUsize::new(0), helper: AtomicU8::new(NOBODY) }
    }

    /// A worker has nothing to do. It can be rung already, and looks at all queues after this.
    pub(super) fn enter(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// A worker is idle no longer; `watching` if it was the one. Returns whether it must look at all queues, or have another
    /// one do so.
    pub(super) fn leave(&self, watching: bool) -> bool {
        self.count.fetch_sub(1, Ordering::AcqRel);
        // See the fifth race.
        fence(Ordering::SeqCst);
        // Of a call that was meant for another worker it takes the duty too: that costs a look at the most.
        watching && self.release(WATCHING) || self.release(CALLED)
    }

    /// An idle worker, of so many in all, undertakes to look at the queues soon. `false` if it need not: somebody does, or
    /// nobody is busy.
    pub(super) fn watch(&self, workers: usize) -> bool {
        // See the fourth race.
        fence(Ordering::SeqCst);
        self.count.load(Ordering::Acquire) < workers && self.watch_unless_watched()
    }

    /// Whether somebody is to be called who looks after what was just queued.
    #[inline]
    pub(super) fn wants_call(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.helper.load(Ordering::Relaxed) == NOBODY
    }

    /// Rings one of the idle workers by `ring`, which says whether it has found one; not if somebody was called meanwhile.
    #[cold]
    pub(super) fn call(&self, ring: impl FnOnce() -> bool) {
        if self.exchange(NOBODY, CALLED) {
            // See the fifth race.
            fence(Ordering::SeqCst);
            if !ring() {
                self.release(CALLED);
            }
        }
    }

    fn watch_unless_watched(&self) -> bool {
        let watched = |helper| (helper != WATCHING).then_some(WATCHING);
        self.helper.fetch_update(Ordering::AcqRel, Ordering::Acquire, watched).is_ok()
    }

    fn release(&self, helper: u8) -> bool {
        let released = self.helper.load(Ordering::Relaxed) == helper && self.exchange(helper, NOBODY);
        if released {
            // See the fourth race.
            fence(Ordering::SeqCst);
        }
        released
    }

    fn exchange(&self, from: u8, to: u8) -> bool {
        self.helper.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
