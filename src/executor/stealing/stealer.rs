//! Stealer: when a worker looks at the others.
//!
//! 1. It has no entries of its own ([`Stealer::prepare_idle`]). It counts itself idle, and steals what it finds.
//! 2. It is idle. If no other worker watches, it becomes the watcher: the one idle worker that looks after the busy
//!    ones. It blocks for a millisecond at most, then for two and for four, and looks again. While all workers are
//!    idle, it blocks for eight. Once no worker has been busy since its last look, it stops watching and blocks without
//!    a limit. It also stops when all busy workers are stuck ([`Stealer::beside_stuck`]). Then an event of their
//!    sockets, the next of their timers, or a thread that queues a task there which can be stolen ends its block. So
//!    does the time after which spawned entries can be stolen.
//! 3. It is idle no longer ([`Stealer::leave_idle`]). If it has entries and no other worker watches, it has an idle one
//!    woken ([`Stealer::begin_batch`]), because it may be stuck in the first entry. If it has no entries, and was the
//!    watcher or was woken to watch, it looks which of the others are stuck. A busy worker does so now and then, at
//!    most once in a millisecond.
//! 4. All others are idle, and it has an entry to run now and then. It wakes none of them, but sets a timer that wakes
//!    one in a millisecond ([`Stealer::have_watched`]). It cancels the timer if it is idle by then.
//! 5. The worker's loop turns the reactors of the stuck workers and fires their timers ([`Stealer::next_stuck`]).
//!
//! It reads no clock: the time is an argument.

use std::mem;
use std::time::{Duration, Instant};

use super::queues::{Content, Queues, STUCK, STUCK_FOR_LONG, Victims};
use crate::random::Random;

/// One worker's stealing state.
pub(in crate::executor) struct Stealer {
    /// For each worker, the progress that it last made, and since when.
    seen: Vec<(u64, Instant)>,
    /// The workers that were stuck at the last look, and their progress.
    stuck: Vec<(usize, u64)>,
    /// How many of `stuck` have not been helped since.
    unhelped: usize,
    /// All of `stuck` have been stuck for [`STUCK_FOR_LONG`].
    are_stuck_for_long: bool,
    /// It has looked in this batch.
    has_just_looked: bool,
    /// It is idle, and all workers that are not are stuck.
    is_beside_stuck: bool,
    /// A worker had made progress at the last look.
    others_moved: bool,
    /// When it last looked while it was busy.
    looked: Instant,
    /// How long it watches before it looks, if it is the watcher.
    watch: Option<Duration>,
    /// How long it watches the next time, if a worker is busy then.
    next_watch: Duration,
    /// It counts as idle.
    is_idle: bool,
    /// It was the watcher, or was woken to look.
    must_look: bool,
    /// The worker whose unpark timer this one has set. That worker may have come since.
    later_wake: Option<usize>,
    /// When this one last had another one woken to look after it.
    wanted: Instant,
    /// Chooses the worker from which this one steals first, if the runtime has a seed. Otherwise it is the next one.
    first_victim: Option<Random>,
    /// Its work since it last asked whether it is time to look: entries that it ran, and batches, which count as some
    /// entries each.
    work: u64,
}

/// The first watch of busy workers, and the longest.
const FIRST_WATCH: Duration = Duration::from_millis(1);
const LONGEST_WATCH: Duration = Duration::from_millis(4);

/// A watch while all workers are idle. A request that comes during this watch finds a watcher, so that no worker has to
/// be woken for it. A worker that gets stuck during the watch is found at most one millisecond after its end.
const IDLE_WATCH: Duration = Duration::from_millis(8);

/// After so much work a busy worker reads the clock, and looks if it is time.
const WORK: u64 = 64;
const BATCH_WORK: u64 = 8;

impl Stealer {
    pub(in crate::executor) fn new(workers: usize, now: Instant) -> Self {
        Self {
            seen: vec![(u64::MAX, now); workers],
            stuck: Vec::new(),
            unhelped: 0,
            are_stuck_for_long: false,
            has_just_looked: false,
            is_beside_stuck: false,
            others_moved: false,
            looked: now,
            watch: None,
            next_watch: FIRST_WATCH,
            is_idle: false,
            must_look: false,
            later_wake: None,
            wanted: now,
            first_victim: None,
            work: 0,
        }
    }

    /// Has a seed choose the worker from which this one, of this number, steals first.
    pub(in crate::executor) fn seed(&mut self, seed: u64, index: usize) {
        self.first_victim = Some(Random::new(seed, 3 * index as u64 + 2));
    }

    /// The worker has run `entries` entries.
    pub(in crate::executor) fn add_work(&mut self, entries: u64) {
        self.work += entries;
    }

    /// The next worker that was stuck at the last look.
    pub(in crate::executor) fn next_stuck(&mut self) -> Option<usize> {
        self.unhelped = self.unhelped.checked_sub(1)?;
        Some(self.stuck[self.unhelped].0)
    }

    /// The workers that were stuck at the last look.
    pub(in crate::executor) fn stuck(&self) -> impl Iterator<Item = usize> {
        self.stuck.iter().map(|(other, _)| *other)
    }

    /// The progress of a worker that was stuck at the last look, and since when that has not changed.
    pub(in crate::executor) fn stuck_poll(&self, index: usize) -> Option<(u64, Instant)> {
        let (_, progress) = self.stuck.iter().find(|(other, _)| *other == index)?;
        Some((*progress, self.seen[index].1))
    }

    /// The stuck workers, if this one is idle and all others are idle or stuck. It does not watch then, and is woken
    /// for what is queued. The events and timers of the stuck workers must end its block.
    pub(in crate::executor) fn beside_stuck(&self) -> impl Iterator<Item = usize> {
        self.stuck().filter(|_| self.is_beside_stuck)
    }

    /// The worker has no entries but those in its stealable queue. Returns whether that is empty, and the worker may
    /// block. The caller calls [`leave_idle`](Stealer::leave_idle) afterwards in any
    /// case. `deferred` is empty, before and after.
    pub(in crate::executor) fn prepare_idle<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        index: usize,
        deferred: &mut Vec<T>,
        now: impl Fn() -> Instant,
    ) -> bool {
        // After `prepare_spin` it can be woken.
        if !queues.prepare_idle(index) || !queues.remote(index).queue.prepare_spin() {
            return false;
        }
        queues.idle.enter();
        self.is_idle = true;
        if let Some(other) = self.later_wake.take() {
            // Before the looks that follow: see the eighth race in `idle`.
            queues.cancel_wake(other);
        }
        // After `enter`: see the first race in `idle`.
        if self.steal(queues, index, Victims::Any, deferred, &now) {
            return false;
        }
        self.is_beside_stuck = mem::take(&mut self.has_just_looked) && self.are_others_stuck(queues);
        let all_idle = queues.idle.is_everywhere(queues.len());
        if !self.is_beside_stuck && (self.others_moved || !all_idle) && queues.idle.watch() {
            self.watch = Some(if all_idle { IDLE_WATCH } else { self.next_watch });
            self.next_watch = if all_idle { FIRST_WATCH } else { LONGEST_WATCH.min(2 * self.next_watch) };
        }
        true
    }

    /// Whether all workers that are not idle are stuck, in the same tasks as at the last look. The worker counts as
    /// idle before this: see the seventh race in `idle`.
    fn are_others_stuck<E, T>(&self, queues: &Queues<E, T>) -> bool {
        // The progress alone does not tell: it stays as it is when a worker goes idle after its one task.
        let is_in_same_task = |(other, progress): &(usize, u64)| queues.progress(*other) == (*progress, true);
        !self.stuck.is_empty()
            && queues.idle.is_everywhere(queues.len() - self.stuck.len())
            && self.stuck.iter().all(is_in_same_task)
    }

    /// How long the idle worker may block at most.
    pub(in crate::executor) fn watch_timeout(&self) -> Option<Duration> {
        // After this time, entries that were spawned on a stuck worker can be stolen.
        if self.is_beside_stuck && !self.are_stuck_for_long { Some(STUCK_FOR_LONG) } else { self.watch }
    }

    /// Ends the worker's idle period, if it is in one. The worker has drained its remote queue before this. That has
    /// set the queue's state to AWAKE, and no thread that wants an idle worker chooses this one any more.
    pub(in crate::executor) fn leave_idle<E, T>(&mut self, queues: &Queues<E, T>) {
        if mem::take(&mut self.is_idle) {
            let was_watcher = self.watch.take().is_some();
            if !was_watcher {
                self.next_watch = FIRST_WATCH;
            }
            let was_beside_stuck = mem::take(&mut self.is_beside_stuck);
            self.must_look = queues.idle.leave(was_watcher) || was_beside_stuck;
        }
    }

    /// The worker begins a batch, with the tasks that it has `deferred` and those in its queue. `has_local`: it has
    /// entries that no other worker may run.
    pub(in crate::executor) fn begin_batch<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        index: usize,
        deferred: &mut Vec<T>,
        has_local: bool,
        now: impl Fn() -> Instant,
    ) -> Content {
        let must_look = mem::take(&mut self.must_look);
        self.has_just_looked = false;
        let content = queues.publish(index, deferred);
        if has_local || content.stealable > 0 || content.give_way {
            self.next_watch = FIRST_WATCH;
            self.have_watched(queues, &content, &now);
        } else if must_look {
            self.look(queues, index, now());
        }
        self.work += BATCH_WORK;
        if self.work >= WORK {
            self.work = 0;
            let present = now();
            if present - self.looked >= STUCK {
                self.looked = present;
                self.look(queues, index, present);
                // The worker may get stuck in the first of these, so an idle one must look after it.
                if self.steal(queues, index, Victims::Stuck, deferred, &now) {
                    queues.wake_idle_if_needed();
                }
            }
        }
        content
    }

    /// Has an idle worker look after this one, if none does. This one is about to run its first entry, and may get
    /// stuck in it. On Linux a timer wakes the idle worker later, if that worker would find nothing to steal now: if
    /// all others are idle, and nothing comes behind the first entry.
    fn have_watched<E, T>(&mut self, queues: &Queues<E, T>, content: &Content, now: &impl Fn() -> Instant) {
        if content.stealable > 1 {
            if let Some(other) = self.later_wake.take() {
                // That worker can steal some of them at once.
                queues.cancel_wake(other);
            }
        }
        if !queues.idle.should_wake() {
            return;
        }
        let since = mem::replace(&mut self.wanted, now());
        let is_lone = content.stealable <= 1 && !content.give_way && queues.idle.is_everywhere(queues.len() - 1);
        // The two system calls that set and cancel the timer cost less than a watch, unless this worker begins more
        // than 250 batches a second: then a watch serves several of them.
        if is_lone && self.wanted - since >= LONGEST_WATCH {
            self.later_wake = queues.wake_idle_after(FIRST_WATCH);
        } else {
            queues.wake_idle_if_needed();
        }
    }

    /// Finds the workers that are stuck: they have made no progress for a while.
    fn look<E, T>(&mut self, queues: &Queues<E, T>, index: usize, now: Instant) {
        self.stuck.clear();
        self.others_moved = false;
        self.are_stuck_for_long = true;
        for other in queues.others(index) {
            let (progress, running) = queues.progress(other);
            let (seen, since) = &mut self.seen[other];
            if *seen != progress {
                (*seen, *since) = (progress, now);
                self.others_moved = true;
            } else if running && now - *since >= STUCK {
                self.stuck.push((other, progress));
                self.are_stuck_for_long &= now - *since >= STUCK_FOR_LONG;
            }
        }
        self.unhelped = self.stuck.len();
        self.has_just_looked = true;
    }

    /// Moves entries from another worker's queue to that of `index`, by way of `deferred`. Returns `true` if there were
    /// some.
    fn steal<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        index: usize,
        victims: Victims,
        deferred: &mut Vec<T>,
        now: &impl Fn() -> Instant,
    ) -> bool {
        let skipped = self.first_victim.as_mut().map_or(0, |random| random.below(queues.len() - 1));
        let mut victims_in_turn = queues.others(index).skip(skipped).chain(queues.others(index).take(skipped));
        // Most queues are empty, and then this is all.
        victims_in_turn.any(|other| {
            queues.remote(other).has_stealable() && {
                let stolen = self.steal_from(queues, other, victims, deferred, now);
                if stolen {
                    queues.publish(index, deferred);
                }
                stolen
            }
        })
    }

    fn steal_from<E, T>(
        &mut self,
        queues: &Queues<E, T>,
        other: usize,
        victims: Victims,
        stolen: &mut Vec<T>,
        now: &impl Fn() -> Instant,
    ) -> bool {
        let (seen, since) = &mut self.seen[other];
        queues.steal(other, victims, stolen, |progress| {
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

    fn queues() -> Queues<(), u32> {
        Queues::new(vec![Waker::noop().clone(); 3])
    }

    fn wake(queues: &Queues<(), u32>, index: usize, stealer: &mut Stealer, deferred: &mut Vec<u32>, now: Instant) {
        queues.remote(index).queue.drain(&mut Vec::new());
        stealer.leave_idle(queues);
        stealer.begin_batch(queues, index, deferred, false, || now);
    }

    /// Three long tasks come to one of three idle workers. No worker watches, and one that is woken steals one task.
    /// The third task would wait for the first or the second if that worker did not have another one woken.
    #[test]
    fn thief_wakes_another_for_rest() {
        let now = Instant::now();
        let queues = queues();
        let mut workers = [0, 1, 2].map(|_| Stealer::new(3, now));
        for (index, worker) in workers.iter_mut().enumerate() {
            assert!(worker.prepare_idle(&queues, index, &mut Vec::new(), || now));
        }
        assert!(workers[2].watch_timeout().is_none(), "all are idle");
        wake(&queues, 0, &mut workers[0], &mut vec![1, 2, 3], now);
        assert_eq!(queues.pop(0), Some(1), "and it is stuck in it");
        assert!(queues.remote(1).queue.is_notified());
        wake(&queues, 1, &mut workers[1], &mut Vec::new(), now);
        assert!(!workers[1].prepare_idle(&queues, 1, &mut Vec::new(), || now), "it steals one");
        assert!(!queues.remote(2).queue.is_notified());
        wake(&queues, 1, &mut workers[1], &mut Vec::new(), now);
        assert_eq!(queues.pop(1), Some(2), "and is stuck in it");
        assert!(queues.remote(2).queue.is_notified(), "the third task would wait for the first or the second");
    }

    /// A worker steals two entries that were spawned on a stuck one, and gets stuck in the first. The second would wait
    /// if the third worker slept on.
    #[test]
    fn thief_of_spawned_wakes_another() {
        let queues = queues();
        let start = Instant::now();
        let mut thief = Stealer::new(3, start);
        queues.publish(0, &mut vec![1]);
        assert_eq!(queues.pop(0), Some(1), "and it is stuck in it");
        queues.spawn_on(0, 2);
        queues.spawn_on(0, 3);
        queues.idle.enter();
        assert!(queues.remote(2).queue.prepare_park(), "the third worker sleeps, and does not watch");
        for millis in [1, 60] {
            assert!(!queues.remote(2).queue.is_notified());
            thief.add_work(WORK);
            thief.begin_batch(&queues, 1, &mut Vec::new(), false, || start + Duration::from_millis(millis));
        }
        assert_eq!(queues.pop(1), Some(2), "the thief is stuck in it");
        assert!(queues.remote(2).queue.is_notified(), "the last entry would wait for the one before it");
    }

    /// Three workers: one is stuck, one is idle, and the one between them has the stealer. It begins now.
    fn beside_stuck_worker() -> (Queues<(), u32>, Stealer, Instant) {
        let (queues, start) = (queues(), Instant::now());
        queues.idle.enter();
        queues.publish(0, &mut vec![1]);
        assert_eq!(queues.pop(0), Some(1), "and it is stuck in it");
        (queues, Stealer::new(3, start), start)
    }

    /// A worker that has found the only busy one stuck looks no more until it is woken, and looks then. It blocks
    /// without a limit once it may steal whatever is queued there. If the other one is in another task by then, it
    /// watches.
    #[test]
    fn worker_beside_stuck_one_rests() {
        let (queues, mut stealer, start) = beside_stuck_worker();
        // It does not know before its second look that the other one makes no progress.
        let limits = [(0, Some(FIRST_WATCH)), (1, Some(2 * FIRST_WATCH)), (3, Some(STUCK_FOR_LONG)), (53, None)];
        for (millis, limit) in limits {
            let now = start + Duration::from_millis(millis);
            wake(&queues, 1, &mut stealer, &mut Vec::new(), now);
            assert!(stealer.prepare_idle(&queues, 1, &mut Vec::new(), || now));
            assert_eq!(stealer.watch_timeout(), limit, "after {millis} ms");
            assert_eq!(stealer.beside_stuck().count(), usize::from(millis >= 3), "after {millis} ms");
        }
        let now = start + Duration::from_millis(60);
        wake(&queues, 1, &mut stealer, &mut Vec::new(), now);
        assert_eq!(stealer.next_stuck(), Some(0), "woken, it helps the stuck worker");
        queues.publish(0, &mut vec![2]);
        assert_eq!(queues.pop(0), Some(2), "the worker was not stuck for ever");
        assert!(stealer.prepare_idle(&queues, 1, &mut Vec::new(), || now));
        assert!(stealer.beside_stuck().count() == 0 && stealer.watch_timeout().is_some(), "it must watch");
    }

    /// A worker finds another one stuck. Before it is idle itself, the other one ends its task and goes idle, and a
    /// third one begins to run. So the first one is not beside a stuck worker, and watches the third.
    #[test]
    fn idle_worker_is_not_stuck() {
        let (queues, mut stealer, start) = beside_stuck_worker();
        for millis in [0, 1, 3] {
            let now = start + Duration::from_millis(millis);
            wake(&queues, 1, &mut stealer, &mut Vec::new(), now);
            assert!(millis == 3 || stealer.prepare_idle(&queues, 1, &mut Vec::new(), || now));
        }
        assert_eq!(stealer.stuck().collect::<Vec<_>>(), [0]);
        assert!(queues.prepare_idle(0), "it has ended its task");
        queues.idle.enter();
        queues.idle.leave(false);
        assert!(stealer.prepare_idle(&queues, 1, &mut Vec::new(), || start + Duration::from_millis(3)));
        assert!(stealer.beside_stuck().count() == 0 && stealer.watch_timeout().is_some(), "it must watch the third");
    }

    /// A watcher gets an entry before it has looked. Entries behind a stuck task would wait until it has run its own.
    #[test]
    fn busy_watcher_passes_its_duty_on() {
        let now = Instant::now();
        let queues = queues();
        let (mut watcher, mut idle) = (Stealer::new(3, now), Stealer::new(3, now));
        queues.publish(0, &mut vec![1, 2]);
        assert_eq!(queues.pop(0), Some(1), "and it is stuck in it");
        assert!(watcher.prepare_idle(&queues, 1, &mut Vec::new(), || now) && watcher.watch_timeout().is_some());
        assert!(idle.prepare_idle(&queues, 2, &mut Vec::new(), || now) && idle.watch_timeout().is_none());

        wake(&queues, 1, &mut watcher, &mut Vec::new(), now);
        queues.remote(1).queue.push(());
        assert!(!watcher.prepare_idle(&queues, 1, &mut Vec::new(), || now), "there is an entry in its remote queue");
        queues.remote(1).queue.drain(&mut Vec::new());
        watcher.leave_idle(&queues);
        assert!(!queues.remote(2).queue.is_notified(), "no worker has been woken yet");
        watcher.begin_batch(&queues, 1, &mut Vec::new(), true, || now);
        assert!(queues.remote(2).queue.is_notified(), "the other idle worker must look instead");
    }

    /// The watcher is woken for nothing. Then a thread pushes an entry for it alone, in which it gets stuck. Its
    /// sockets and timers would wait if no other worker looked after it.
    #[test]
    fn entry_of_empty_batch_wakes_a_watcher() {
        let now = Instant::now();
        let queues = queues();
        let (mut watcher, mut idle) = (Stealer::new(3, now), Stealer::new(3, now));
        assert!(watcher.prepare_idle(&queues, 1, &mut Vec::new(), || now) && watcher.watch_timeout().is_some());
        assert!(idle.prepare_idle(&queues, 2, &mut Vec::new(), || now) && idle.watch_timeout().is_none());
        wake(&queues, 1, &mut watcher, &mut Vec::new(), now);
        queues.remote(1).queue.push(());
        assert!(queues.pop(1).is_none() && !queues.remote(2).queue.is_notified());
        assert_eq!(queues.drain_in_batch(1, &mut Vec::new()), 1, "and it is stuck in it");
        assert!(queues.remote(2).queue.is_notified(), "the other idle worker must watch");
    }
}
