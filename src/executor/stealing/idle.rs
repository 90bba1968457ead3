//! Idle: which workers of a runtime have nothing to do, and which of them looks after the others.
//!
//! A worker may be stuck in a task that runs for long. The entries behind that task, and the sockets and timers of the
//! worker, must not wait while another worker sleeps. But to wake a worker for each entry costs more than most entries
//! do. So no worker is woken while one is about to look anyway:
//!
//! ```text
//!                     wake_idle: wakes an idle worker
//!   UNWATCHED ----------------------------------------> WAKING
//!    ^  |  ^             leave: a woken worker comes     |  |
//!    |  |  +-- stop_waking: no worker need come ---------+  |
//!    |  | watch                                       watch |
//!    |  v                                                   v
//!    |  WATCHED <-------------------------------------------+
//!    |  |
//!    +--+ leave: the watcher ends its watch
//! ```
//! * UNWATCHED: a worker that begins to run tasks, or a thread that queues something behind a running task, wakes an
//!   idle worker if it sees one.
//! * WAKING: one was woken, or has a timer that wakes it soon, and has not come yet. A worker that goes idle meanwhile
//!   does not rely on it: it watches if another worker is busy. A thread that found no worker to wake takes WAKING
//!   back.
//! * WATCHED: one idle worker is the watcher. It sleeps for some milliseconds, and then looks.
//!
//! # The races
//! One side changes a queue and then looks at the idle word. The other changes the idle word and then looks at the
//! queues.
//! 1. A goes idle and finds all queues empty. B queues something and finds no worker idle. So A counts itself
//!    ([`Idle::enter`]) before it looks, and B looks here after it has queued. Both take the queue's lock: if A looked
//!    first, B sees the count.
//! 2. The watcher ends its watch. B still sees WATCHED and wakes no worker. So a worker that takes back WATCHED or
//!    WAKING looks at all others after that ([`Idle::leave`] returns `true` then). If it has entries instead, it begins
//!    to run them, and has another one woken. It does the same if it began a batch without entries and takes some
//!    inside it ([`drain_in_batch`](super::queues::Queues::drain_in_batch)).
//! 3. B sets WAKING and finds no worker that it can wake: the one that was counted is leaving already. C may
//!    go idle and see WAKING before B takes that back. So a worker that goes idle does not rely on WAKING: it watches.
//! 4. A begins to run tasks, sees WATCHED, and is stuck. The watcher takes WATCHED back, sees that all workers are
//!    idle, and sleeps. No lock orders these. So each of the two has a fence between its two steps, and one of them
//!    sees what the other did.
//! 5. A counts itself idle, sees WATCHED, and sleeps. The watcher takes WATCHED back and begins to run a task. It sees
//!    no idle worker, and has none woken. The fences of the fourth race prevent this too: A watches, or the watcher
//!    sees A.
//! 6. B sets WAKING and finds no idle worker. After that C announces itself as idle in its remote queue. Before B takes
//!    WAKING back, A leaves with something to run. If A misses WAKING in `leave` but sees it in `should_wake`, it
//!    relies on B, and no worker watches A. The fences exclude that: A sees WAKING in `leave`, or B finds C, or C sees
//!    that A is not idle and watches.
//! 7. A looks and finds B stuck, the only busy worker. B ends its task, begins a batch of two entries and is stuck in
//!    the first, while A goes idle without a watch. So A counts itself idle and then asks, under the lock of B's queue,
//!    whether B is still in the same task. If B begins the batch after that, it sees A and wakes it.
//! 8. A has set B's timer, has run its one entry, and is idle. It cancels the timer and takes WAKING back. Meanwhile C
//!    begins to run tasks, or a thread pushes behind C. C and that thread have seen WAKING, or C has set the timer
//!    anew, and they rely on B. So A steals after that, and looks whether all workers are idle, and otherwise watches.
//!    It sees C and the entry, by the fences of the fourth race, by the queue's lock, or by the kernel's lock of the
//!    timer. If A is not idle but has more to run, it wakes an idle worker at once, which need not be B. It cancels the
//!    timer first. If C has set the timer anew before that, A sees C's WAKING, or a later idle word, when it takes
//!    WAKING back.

use crate::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};

const UNWATCHED: u8 = 0;
const WAKING: u8 = 1;
const WATCHED: u8 = 2;

/// The idleness of a runtime's workers, as they know it of each other. On cache lines of its own: each poll of a task
/// reads its neighbours.
#[repr(align(128))]
pub(super) struct Idle {
    /// How many are idle: they wait for events, or are about to.
    count: AtomicUsize,
    state: AtomicU8,
}

impl Idle {
    pub(super) fn new() -> Self {
        Self { count: AtomicUsize::new(0), state: AtomicU8::new(UNWATCHED) }
    }

    /// A worker has nothing to do. It can be woken already, and looks at all queues after this.
    pub(super) fn enter(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// A worker is idle no longer. `is_watcher`: it was the watcher. Returns whether it must look at all queues, or
    /// have another worker do so.
    pub(super) fn leave(&self, is_watcher: bool) -> bool {
        self.count.fetch_sub(1, Ordering::AcqRel);
        // See the fourth, the fifth and the sixth race.
        fence(Ordering::SeqCst);
        // The worker may take over a wake-up that was meant for another one. That costs a look at most.
        is_watcher && self.release(WATCHED) || self.release(WAKING)
    }

    /// Whether exactly so many `workers` are idle.
    pub(super) fn is_everywhere(&self, workers: usize) -> bool {
        // See the fourth race.
        fence(Ordering::SeqCst);
        self.count.load(Ordering::Acquire) == workers
    }

    /// An idle worker becomes the watcher. `false` if there is one.
    pub(super) fn watch(&self) -> bool {
        let unless_watched = |state| (state != WATCHED).then_some(WATCHED);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_watched).is_ok()
    }

    /// Whether a worker should be woken to watch this one, which is busy.
    pub(super) fn should_wake(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.state.load(Ordering::Relaxed) == UNWATCHED
    }

    /// Wakes an idle worker by `wake`, which says whether it has found one. Does nothing if a worker watches or is
    /// being woken already.
    pub(super) fn wake_idle(&self, wake: impl FnOnce() -> bool) {
        if self.exchange(UNWATCHED, WAKING) {
            // See the sixth race.
            fence(Ordering::SeqCst);
            if !wake() {
                self.release(WAKING);
            }
        }
    }

    /// No worker need come to look after this one. See the eighth race.
    pub(super) fn stop_waking(&self) {
        self.release(WAKING);
    }

    fn release(&self, state: u8) -> bool {
        let released = self.state.load(Ordering::Relaxed) == state && self.exchange(state, UNWATCHED);
        if released {
            // See the fourth race.
            fence(Ordering::SeqCst);
        }
        released
    }

    fn exchange(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
