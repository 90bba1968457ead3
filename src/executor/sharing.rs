//! Sharing: when a worker looks at the queues of the others.
//!
//! 1. It has nothing of its own ([`Sharing::rest`]): it counts itself idle, and looks. If it finds
//!    something, that is its own now, and if more is left there, the next one is called ([`Sharing::begin`]).
//! 2. It is idle. If nobody else does, it watches: it blocks for a millisecond at the most, then for two and for four, and
//!    looks again. Once all are idle nobody watches.
//! 3. It is idle no longer ([`Sharing::rise`]). If it was the one to watch, or may have been called, somebody must look now: it
//!    looks itself, if it has nothing of its own, or calls the next one ([`Sharing::begin`]).
//! 4. While it is busy, it looks each millisecond or so for others that are stuck.
//!
//! The rule is pure: the time is an argument.

use std::mem;
use std::time::{Duration, Instant};

use super::queues::{Queues, STUCK, Victims};

/// What a worker knows that has others beside it.
pub(super) struct Sharing {
    /// The progress of each worker when it was last seen to have moved, with something in its queue, and since when.
    seen: Vec<(u64, Instant)>,
    /// When it last looked for those that are stuck, while it was busy.
    looked: Instant,
    /// The worker is idle and watches the others.
    watching: bool,
    /// How long it watches before it looks.
    watch: Duration,
    /// It counts as idle.
    idle: bool,
    /// It has taken back its watch, or a call, or has found something: somebody must look.
    must_look: bool,
    /// What it has done since it last read the clock: entries run, and batches for as much as some entries.
    work: u64,
}

/// The first watch, and the longest.
const WATCH: Duration = Duration::from_millis(1);
const LONGEST_WATCH: Duration = Duration::from_millis(4);

/// After so much work a busy worker reads the clock, and looks if it is time to.
const WORK: u64 = 64;
const BATCH_WORK: u64 = 8;

impl Sharing {
    pub(super) fn new(workers: usize, now: Instant) -> Self {
        let seen = vec![(u64::MAX, now); workers];
        Self { seen, looked: now, idle: false, watching: false, watch: WATCH, must_look: false, work: 0 }
    }

    /// So many tasks were run.
    #[inline]
    pub(super) fn work(&mut self, ran: u64) {
        self.work += ran;
    }

    /// The worker has nothing but what is in its queue. Whether that is empty, and the worker may block; then comes
    /// [`rise`](Sharing::rise). `gathered` is empty, and is so again.
    pub(super) fn rest<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        index: usize,
        gathered: &mut Vec<T>,
        now: impl Fn() -> Instant,
    ) -> bool {
        // After `poll` it can be called.
        if !queues.rest(index) || !queues.remote(index).inbox.poll() {
            return false;
        }
        queues.idle.enter();
        self.idle = true;
        // Not before: see the first race in `idle`. If something was found, what is left there must not wait for its end.
        self.must_look = self.steal(queues, index, Victims::Any, gathered, &now);
        if self.must_look {
            return false;
        }
        self.watching = queues.idle.watch(queues.len());
        true
    }

    /// How long the idle worker may block at the most.
    #[inline]
    pub(super) fn watch(&self) -> Option<Duration> {
        self.watching.then_some(self.watch)
    }

    /// The worker is idle no longer, if it was. It has been to its inbox, so that it cannot be called any more: a call that
    /// came after this would be answered by nobody.
    #[inline]
    pub(super) fn rise<E, T>(&mut self, queues: &Queues<E, T>) {
        if mem::take(&mut self.idle) {
            self.watch = if self.watching { LONGEST_WATCH.min(2 * self.watch) } else { WATCH };
            self.must_look |= queues.idle.leave(mem::take(&mut self.watching));
        }
    }

    /// The worker begins a batch, with what was `gathered` and has been in its queue. `has_own`: it has something else too.
    pub(super) fn begin<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        index: usize,
        gathered: &mut Vec<T>,
        has_own: bool,
        now: impl Fn() -> Instant,
    ) {
        if queues.publish(index, gathered, has_own) {
            self.watch = WATCH;
            // It does not look itself now.
            if mem::take(&mut self.must_look) && queues.idle.wants_call() && queues.others_have_some(index) {
                queues.call_if_wanted();
            }
        }
        self.work += BATCH_WORK;
        if self.work >= WORK {
            self.work = 0;
            let present = now();
            if present - self.looked >= STUCK {
                self.looked = present;
                self.steal(queues, index, Victims::Stuck, gathered, &now);
            }
        }
    }

    /// Takes something from another worker's queue to that of `index`, by way of `gathered`. `true` if there was some.
    #[inline]
    fn steal<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        index: usize,
        victims: Victims,
        gathered: &mut Vec<T>,
        now: &impl Fn() -> Instant,
    ) -> bool {
        // Most queues are empty, and then that is all.
        queues.others(index).any(|other| {
            queues.has_some(other) && {
                let taken = self.take(queues, other, victims, gathered, now);
                if taken {
                    // Who steals while it is busy has more to do.
                    queues.publish(index, gathered, victims == Victims::Stuck);
                }
                taken
            }
        })
    }

    /// Moves some of the queue of `other` to `gathered`.
    #[inline(never)]
    fn take<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        other: usize,
        victims: Victims,
        gathered: &mut Vec<T>,
        now: &impl Fn() -> Instant,
    ) -> bool {
        let (seen, since) = &mut self.seen[other];
        queues.take(other, victims, gathered, |progress| {
            let now = now();
            if *seen != progress {
                (*seen, *since) = (progress, now);
            }
            now - *since
        })
    }
}

#[cfg(all(test, not(kittiwake_loom)))]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Three long tasks for three workers: where all were idle nobody watches, and a call brings one.
    #[test]
    fn whoever_takes_some_has_another_one_look_after_what_is_left() {
        let start = Instant::now();
        let now = || start;
        let queues = Queues::<(), u32>::new(vec![Waker::noop().clone(); 3]);
        let mut workers = [0, 1, 2].map(|_| Sharing::new(3, start));
        let wake = |index: usize, worker: &mut Sharing, gathered: &mut Vec<u32>| {
            queues.remote(index).inbox.take(&mut Vec::new());
            worker.rise(&queues);
            worker.begin(&queues, index, gathered, false, now);
        };
        for (index, worker) in workers.iter_mut().enumerate() {
            assert!(worker.rest(&queues, index, &mut Vec::new(), now));
        }
        assert!(workers[2].watch().is_none(), "all are idle");
        wake(0, &mut workers[0], &mut vec![1, 2, 3]);
        assert_eq!(queues.pop(0), Some(1), "and it is stuck in it");
        assert!(queues.remote(1).inbox.is_rung());
        wake(1, &mut workers[1], &mut Vec::new());
        assert!(!workers[1].rest(&queues, 1, &mut Vec::new(), now), "it takes one");
        assert!(!queues.remote(2).inbox.is_rung());
        wake(1, &mut workers[1], &mut Vec::new());
        assert_eq!(queues.pop(1), Some(2), "and is stuck in it");
        assert!(queues.remote(2).inbox.is_rung(), "the third would wait for the first or the second");
    }

    /// What is queued behind a stuck task would wait until whoever watched has run what it was given itself.
    #[test]
    fn a_watcher_that_is_given_something_before_it_looks_has_another_look() {
        let start = Instant::now();
        let now = || start;
        let queues = Queues::<(), u32>::new(vec![Waker::noop().clone(); 3]);
        let (mut watcher, mut idle) = (Sharing::new(3, start), Sharing::new(3, start));
        queues.publish(0, &mut vec![1, 2], false);
        assert_eq!(queues.pop(0), Some(1), "and it is stuck in it");
        assert!(watcher.rest(&queues, 1, &mut Vec::new(), now) && watcher.watch().is_some());
        assert!(idle.rest(&queues, 2, &mut Vec::new(), now) && idle.watch().is_none());

        queues.remote(1).inbox.take(&mut Vec::new());
        watcher.rise(&queues);
        watcher.begin(&queues, 1, &mut Vec::new(), false, now);
        queues.remote(1).inbox.post(()).unwrap();
        assert!(!watcher.rest(&queues, 1, &mut Vec::new(), now), "there is something in its inbox");
        queues.remote(1).inbox.take(&mut Vec::new());
        watcher.rise(&queues);
        assert!(!queues.remote(2).inbox.is_rung(), "nobody has been called yet");
        watcher.begin(&queues, 1, &mut Vec::new(), true, now);
        assert!(queues.remote(2).inbox.is_rung(), "the other one must look instead");
    }
}
