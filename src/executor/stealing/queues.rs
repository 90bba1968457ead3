//! Queues: what the workers of a runtime may run, where others can reach it.
//!
//! Each worker has a [`RemoteQueue`] for what only it may run, and a stealable queue for what any worker may run. In a
//! runtime with one worker the stealable queue stays empty: everything is in the queue of its thread.
//!
//! * A worker pushes what it wakes to its own queue, so a task runs where its socket is.
//! * Another thread pushes to the queue of the worker where the task last ran.
//! * An idle worker steals half of the entries of another worker, rounded down. So it leaves a single entry to the
//!   owner, which is about to run it.
//! * A worker that has made no progress for a millisecond is stuck: it has run the same task, or perhaps two local
//!   ones. Then the last entry is stolen too. Idle workers look for stuck workers, and now and then a busy worker does.
//! * An entry that gives way comes after the ready ones, and after those that gave way before it
//!   ([`overdue`](super::overdue)). It can be stolen, too.
//! * An entry that was spawned on a certain worker ([`Queues::spawn_on`]) begins there. It takes turns with the ready
//!   entries, or with those that give way if none is ready. It is stolen only from a worker that has been stuck for
//!   longer: a connection belongs to the worker that first waits for it, so to steal it early would undo the choice.
//!
//! [`idle`](super::idle) says which worker is woken to look after a busy one, and [`stealer`](super::stealer) when a
//! worker looks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use std::{iter, mem};

use super::idle::Idle;
use crate::budget;
use crate::executor::remote_queue::{Idleness, RemoteQueue};
use crate::executor::shuffle::Shuffle;
use crate::memory::{shrink, shrink_queue};
use crate::random::Random;
use crate::sync::{Mutex, UnparkTimer};

/// The queues of a runtime's workers: of `E` for one of them, of `T` for any.
pub(in crate::executor) struct Queues<E, T> {
    remotes: Box<[Remote<E, T>]>,
    pub(super) idle: Idle,
}

/// The half of a worker that others refer to, on cache lines of its own.
#[repr(align(128))]
pub(in crate::executor) struct Remote<E, T> {
    pub(in crate::executor) queue: RemoteQueue<E>,
    stealable: Mutex<Stealable<T>>,
}

/// The entries that a worker runs, unless another one steals them.
struct Stealable<T> {
    /// The entries that come first, in reverse order: `pop` takes the next one.
    ready: Vec<T>,
    /// The entries behind those, in order. When `ready` is empty, they become `ready`: shuffled, in a runtime with a
    /// seed, and then reversed.
    later: Vec<T>,
    /// The order of `later`, if the runtime has a seed.
    shuffle: Option<Shuffle>,
    /// The entries that give way, in order, with their numbers. The worker says when it takes them.
    gave_way: VecDeque<(u64, T)>,
    /// How many of the ready entries must still run before those that give way: see
    /// [`overdue`](super::overdue).
    counted: usize,
    /// The entries that were spawned on this worker by number ([`Queues::spawn_on`]).
    spawned: VecDeque<T>,
    /// One of `spawned` was taken last. They take turns with the ready entries and, if none is ready, with those that
    /// give way.
    was_spawned: bool,
    /// The worker runs tasks. Set when it begins a batch, cleared when it goes idle.
    running: bool,
    /// Changes whenever the worker looks for a stealable entry or begins a batch.
    progress: u64,
    /// How many entries were pushed by other threads, or spawned on this worker.
    pushes: u64,
    /// How many of them the worker has counted as [work](budget::count_events).
    counted_pushes: u64,
    closed: bool,
}

/// How long a worker runs one task before others steal all entries behind it, and not only half of them.
pub(super) const STUCK: Duration = Duration::from_millis(1);

/// The same for the entries that were spawned on it: longer than a thread may have to wait for a core.
pub(super) const STUCK_FOR_LONG: Duration = Duration::from_millis(50);

/// How many ready entries, and how many spawned ones, are stolen from a stuck worker at a time.
const STEAL_FROM_STUCK: usize = 64;

/// The content of a worker's stealable queue when a batch begins.
pub(in crate::executor) struct Content {
    /// How many entries there are that do not give way.
    pub(in crate::executor) stealable: usize,
    /// There are some that give way.
    pub(in crate::executor) give_way: bool,
}

/// The workers to steal from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Victims {
    Any,
    Stuck,
}

impl<E, T> Queues<E, T> {
    /// For as many workers as there are `unparkers`. Each ends the block of its worker, from any thread.
    pub(in crate::executor) fn new(unparkers: Vec<Waker>) -> Self {
        Self { remotes: unparkers.into_iter().map(Remote::new).collect(), idle: Idle::new() }
    }

    /// Has a seed decide the order of the stealable entries.
    pub(in crate::executor) fn seed(&self, seed: u64) {
        for (index, remote) in self.remotes.iter().enumerate() {
            remote.stealable.lock().shuffle = Some(Shuffle::new(Random::new(seed, 3 * index as u64 + 1)));
        }
    }

    /// Gives the workers timers that can unpark them.
    pub(in crate::executor) fn set_unpark_timers(&self, timers: impl Iterator<Item = Arc<dyn UnparkTimer>>) {
        self.remotes.iter().zip(timers).for_each(|(remote, timer)| remote.queue.set_unpark_timer(timer));
    }

    pub(in crate::executor) fn len(&self) -> usize {
        self.remotes.len()
    }

    pub(in crate::executor) fn remote(&self, index: usize) -> &Remote<E, T> {
        &self.remotes[index]
    }

    /// Pushes what a worker has woken while it runs a task. It is queued behind that task.
    pub(in crate::executor) fn push(&self, index: usize, task: T) {
        self.remotes[index].stealable.lock().later.push(task);
        self.wake_idle_if_needed();
    }

    /// Pushes the task that a worker has just run, and that gives way. Its `number` is higher than those before it.
    pub(in crate::executor) fn push_gave_way(&self, index: usize, task: T, number: u64) {
        self.remotes[index].stealable.lock().gave_way.push_back((number, task));
        self.wake_idle_if_needed();
    }

    /// Pushes a task from a thread that is none of the workers, or has entered another runtime.
    pub(in crate::executor) fn push_stealable(&self, index: usize, task: T) {
        self.push_from_outside(index, task, |stealable, task| stealable.later.push(task));
    }

    /// Pushes a task that begins on this worker, from any thread.
    pub(in crate::executor) fn spawn_on(&self, index: usize, task: T) {
        self.push_from_outside(index, task, |stealable, task| stealable.spawned.push_back(task));
    }

    /// If the worker has ended, the task is dropped, here.
    fn push_from_outside(&self, index: usize, task: T, push: impl FnOnce(&mut Stealable<T>, T)) {
        let remote = &self.remotes[index];
        let mut stealable = remote.stealable.lock();
        if stealable.closed {
            // After the lock: to drop a task is foreign code.
            drop(stealable);
            return drop(task);
        }
        stealable.pushes += 1;
        push(&mut stealable, task);
        drop(stealable);
        if !remote.queue.notify() {
            self.wake_idle_if_needed();
        }
    }

    /// Takes what other threads have pushed for this worker alone, inside a batch. Returns how many entries that are.
    pub(in crate::executor) fn drain_in_batch(&self, index: usize, queue: &mut Vec<E>) -> usize {
        let drained = self.remotes[index].queue.drain(queue);
        if drained > 0 {
            // If the batch was empty when it began, no worker was woken to watch this one. It may get stuck in these.
            self.wake_idle_if_needed();
        }
        drained
    }

    /// How many entries wait for a worker, in both queues.
    pub(in crate::executor) fn queued(&self, index: usize) -> usize {
        let remote = &self.remotes[index];
        let stealable = remote.stealable.lock();
        let count = stealable.len();
        drop(stealable);
        count + remote.queue.len()
    }

    /// The next entry of a worker's own queue.
    #[cfg(test)]
    pub(in crate::executor) fn pop(&self, index: usize) -> Option<T> {
        self.remotes[index].pop_stealable(|| false)
    }

    /// Whether a worker's queue is empty. If so, the worker is about to be idle.
    pub(super) fn prepare_idle(&self, index: usize) -> bool {
        let mut stealable = self.remotes[index].stealable.lock();
        stealable.running = !stealable.is_empty();
        !stealable.running
    }

    /// Queues the tasks in `deferred`: those woken between two batches, or stolen ones. From now on the worker counts
    /// as running tasks.
    pub(super) fn publish(&self, index: usize, deferred: &mut Vec<T>) -> Content {
        let mut stealable = self.remotes[index].stealable.lock();
        stealable.running = true;
        stealable.progress += 1;
        if stealable.later.is_empty() {
            mem::swap(&mut stealable.later, deferred);
        } else {
            stealable.later.append(deferred);
        }
        let pushes = stealable.pushes;
        budget::count_events((pushes - mem::replace(&mut stealable.counted_pushes, pushes)) as usize);
        Content { stealable: stealable.ready_len() + stealable.spawned.len(), give_way: !stealable.gave_way.is_empty() }
    }

    /// Wakes an idle worker, if there is one, unless an idle worker watches or is about to come.
    pub(super) fn wake_idle_if_needed(&self) {
        if self.idle.should_wake() {
            self.idle.wake_idle(|| self.wake_any());
        }
    }

    fn wake_any(&self) -> bool {
        self.remotes.iter().any(|remote| remote.queue.wake_idle())
    }

    /// As [`wake_idle_if_needed`](Queues::wake_idle_if_needed), but has the worker woken once `after` is over, if the
    /// system can. Returns that worker, for [`cancel_wake`](Queues::cancel_wake).
    pub(super) fn wake_idle_after(&self, after: Duration) -> Option<usize> {
        let mut later = None;
        self.idle.wake_idle(|| {
            let parked = self.remotes.iter().position(|remote| remote.queue.idleness() == Idleness::Blocked);
            later = parked.filter(|index| self.remotes[*index].queue.wake_after(after));
            later.is_some() || self.wake_any()
        });
        later
    }

    /// Cancels the timer of [`wake_idle_after`](Queues::wake_idle_after). Another busy worker may have relied on it. So
    /// the caller then watches if not all are idle, or wakes another worker: see the eighth race in
    /// [`idle`](super::idle).
    pub(super) fn cancel_wake(&self, index: usize) {
        self.remotes[index].queue.cancel_wake();
        self.idle.stop_waking();
    }

    /// The progress of a worker, and whether it runs tasks.
    pub(super) fn progress(&self, index: usize) -> (u64, bool) {
        let stealable = self.remotes[index].stealable.lock();
        (stealable.progress, stealable.running)
    }

    /// The other workers, for each worker in another order.
    pub(super) fn others(&self, index: usize) -> impl Iterator<Item = usize> + use<E, T> {
        (index + 1..self.len()).chain(0..index)
    }

    /// Moves entries of a worker to `stolen`, which is empty. Returns `false` if there is nothing to steal. If the
    /// worker has entries, `unmoved` is called with its progress, and returns for how long that has not changed.
    pub(super) fn steal(
        &self,
        index: usize,
        victims: Victims,
        stolen: &mut Vec<T>,
        unmoved: impl FnOnce(u64) -> Duration,
    ) -> bool {
        let mut stealable = self.remotes[index].stealable.lock();
        if stealable.is_empty() {
            return false;
        }
        let unmoved = unmoved(stealable.progress);
        stealable.steal(victims, unmoved, stolen);
        !stolen.is_empty()
    }

    /// How many entries came to a worker from other threads, or were spawned on it.
    pub(in crate::executor) fn remote_pushes(&self, index: usize) -> u64 {
        let remote = &self.remotes[index];
        remote.queue.pushes() + remote.stealable.lock().pushes
    }

    /// Makes all workers look for what has changed.
    pub(in crate::executor) fn unpark_all(&self) {
        for remote in &self.remotes {
            remote.queue.notify();
        }
    }

    /// Refuses pushes to a worker from now on, and drops the entries that are left.
    pub(in crate::executor) fn close(&self, index: usize) {
        let remote = &self.remotes[index];
        let mut stealable = remote.stealable.lock();
        stealable.closed = true;
        let mut left: Vec<T> = iter::from_fn(|| stealable.pop_ready()).collect();
        left.extend(stealable.spawned.drain(..));
        left.extend(stealable.gave_way.drain(..).map(|(_, task)| task));
        drop(stealable);
        drop(left);
        remote.queue.close();
    }
}

impl<E, T> Remote<E, T> {
    fn new(unparker: Waker) -> Self {
        let stealable = Stealable {
            ready: Vec::new(),
            later: Vec::new(),
            shuffle: None,
            gave_way: VecDeque::new(),
            counted: 0,
            spawned: VecDeque::new(),
            was_spawned: false,
            running: false,
            progress: 0,
            pushes: 0,
            counted_pushes: 0,
            closed: false,
        };
        Self { queue: RemoteQueue::new(unparker), stealable: Mutex::new(stealable) }
    }

    /// Whether the worker has entries that can be stolen.
    pub(in crate::executor) fn has_stealable(&self) -> bool {
        !self.stealable.lock().is_empty()
    }

    /// Gives memory back that a spike has left.
    pub(in crate::executor) fn shrink(&self) {
        self.queue.shrink();
        let Stealable { ready, later, gave_way, spawned, shuffle, .. } = &mut *self.stealable.lock();
        for queue in [ready, later] {
            shrink(queue);
        }
        if let Some(shuffle) = shuffle {
            shuffle.shrink();
        }
        shrink_queue(gave_way);
        shrink_queue(spawned);
    }

    /// The first of the entries that give way, for the worker, if the number of that entry is below `end`.
    pub(in crate::executor) fn pop_gave_way(&self, end: u64) -> Option<T> {
        let mut stealable = self.stealable.lock();
        stealable.progress += 1;
        let is_before = stealable.gave_way.front().is_some_and(|(number, _)| *number < end);
        if is_before { stealable.gave_way.pop_front().map(|(_, task)| task) } else { None }
    }

    /// The next entry of the stealable queue, for its worker, without those that give way. `None` also if spawned
    /// entries are there and it is the turn of those that give way. `some_local` says whether one of the worker's local
    /// entries gives way.
    pub(in crate::executor) fn pop_stealable(&self, some_local: impl FnOnce() -> bool) -> Option<T> {
        let mut stealable = self.stealable.lock();
        stealable.progress += 1;
        if !stealable.spawned.is_empty() {
            // In turn, so that new tasks do not starve those that are there, nor the other way round. The parity of the
            // progress would not do for that: it grows with each batch too, and a batch may have one entry.
            let others = || stealable.ready_len() > 0 || !stealable.gave_way.is_empty() || some_local();
            stealable.was_spawned = !stealable.was_spawned || !others();
            if stealable.was_spawned {
                return stealable.spawned.pop_front();
            }
        }
        stealable.counted = stealable.counted.saturating_sub(1);
        stealable.pop_ready()
    }

    /// Counts the ready entries. `None` if no entry gives way. `some_local` says whether one of the worker's local
    /// entries does.
    pub(in crate::executor) fn count(&self, some_local: bool) -> Option<usize> {
        let stealable = &mut *self.stealable.lock();
        if !some_local && stealable.gave_way.is_empty() {
            return None;
        }
        stealable.counted = stealable.ready_len();
        if let Some(shuffle) = &mut stealable.shuffle {
            // The entries that come after the count are not mixed with those before it.
            shuffle.begin_segment(stealable.later.len());
        }
        Some(stealable.counted)
    }

    /// How many of the counted entries have neither been run nor stolen.
    pub(in crate::executor) fn counted(&self) -> usize {
        self.stealable.lock().counted
    }
}

impl<T> Stealable<T> {
    fn ready_len(&self) -> usize {
        self.ready.len() + self.later.len()
    }

    fn pop_ready(&mut self) -> Option<T> {
        let next = self.ready.pop();
        if next.is_some() { next } else { self.pop_later() }
    }

    /// As [`pop_ready`](Stealable::pop_ready), once `ready` is used up.
    // A served echo costs 2.1 % more without this.
    #[inline(never)]
    fn pop_later(&mut self) -> Option<T> {
        self.turn_over();
        self.ready.pop()
    }

    /// `ready` is used up: what came later is ready now.
    fn turn_over(&mut self) {
        debug_assert!(self.ready.is_empty(), "entries that are ready come before those that came later");
        if !self.later.is_empty() {
            mem::swap(&mut self.ready, &mut self.later);
            match &mut self.shuffle {
                Some(shuffle) => shuffle.shuffle(&mut self.ready),
                None => self.ready.reverse(),
            }
        }
    }

    /// Moves entries to `stolen`. The worker has not come here for `unmoved`.
    fn steal(&mut self, victims: Victims, unmoved: Duration, stolen: &mut Vec<T>) {
        let all = self.ready_len() + self.gave_way.len();
        let stuck_for = if self.running { unmoved } else { Duration::ZERO };
        let (most, spawned) = if stuck_for < STUCK {
            (if victims == Victims::Any { all / 2 } else { 0 }, 0)
        } else {
            let spawned = if stuck_for < STUCK_FOR_LONG { 0 } else { self.spawned.len().min(STEAL_FROM_STUCK) };
            (all.min(STEAL_FROM_STUCK), spawned)
        };
        let ready = most.min(self.ready_len());
        self.counted = self.counted.saturating_sub(ready);
        while stolen.len() < ready {
            if self.ready.is_empty() {
                self.turn_over();
            }
            let left = self.ready.len().saturating_sub(ready - stolen.len());
            stolen.extend(self.ready.drain(left..).rev());
        }
        stolen.extend(self.gave_way.drain(..most - ready).map(|(_, task)| task));
        for _ in 0..spawned {
            stolen.extend(self.spawned.pop_front());
        }
    }

    fn len(&self) -> usize {
        self.ready_len() + self.gave_way.len() + self.spawned.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(all(test, not(kittiwake_loom)))]
mod tests {
    use super::*;

    fn two_workers<T>() -> Queues<(), T> {
        Queues::new(vec![Waker::noop().clone(), Waker::noop().clone()])
    }

    /// Tasks that other threads have woken are work for the spin policy, once.
    #[test]
    fn pushes_are_counted_as_work() {
        let queues = Queues::<u32, u32>::new(vec![std::task::Waker::noop().clone(); 2]);
        budget::count_events(3);
        let three = budget::take_work();
        (0..3).for_each(|entry| queues.push_stealable(0, entry));
        queues.publish(0, &mut Vec::new());
        assert_eq!(budget::take_work(), three);
        queues.publish(0, &mut Vec::new());
        assert_eq!(budget::take_work(), 0, "they were counted twice");
    }

    /// A server that accepts faster than it serves would never come to the connections that it has accepted. A worker
    /// whose entries take long would never come to new ones. So they take turns in batches of one entry too, whatever
    /// the worker did before.
    #[test]
    fn spawned_and_ready_take_turns() {
        for (is_cut, pops_before) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let queues = two_workers::<&str>();
            (0..pops_before).for_each(|_| assert_eq!(queues.pop(0), None));
            for _ in 0..3 {
                queues.spawn_on(0, "spawned");
                queues.push_stealable(0, "ready");
            }
            let next = || {
                if is_cut {
                    queues.publish(0, &mut Vec::new());
                }
                queues.pop(0)
            };
            let order: Vec<_> = iter::from_fn(next).collect();
            assert_eq!(order.len(), 6);
            assert!(order.chunks(2).all(|two| two[0] != two[1]), "in turn, and not {order:?}");
        }
    }

    /// An entry that comes later is behind those that are there, for the worker and for one that steals half of them.
    #[test]
    fn entries_keep_their_order() {
        let queues = two_workers::<u32>();
        queues.publish(0, &mut vec![1, 2, 3, 4]);
        queues.push(0, 5);
        assert_eq!(queues.pop(0), Some(1));
        queues.publish(0, &mut vec![6, 7]);
        let mut stolen = Vec::new();
        assert!(queues.steal(0, Victims::Any, &mut stolen, |_| Duration::ZERO));
        queues.publish(1, &mut stolen);
        let rest = |index| iter::from_fn(|| queues.pop(index)).collect::<Vec<_>>();
        assert_eq!((rest(0), rest(1)), (vec![5, 6, 7], vec![2, 3, 4]));
    }

    /// Entries that give way come in their order, and only when the worker asks for them. Another worker steals the
    /// other ones first.
    #[test]
    fn entries_that_give_way_come_last() {
        let queues = two_workers::<u32>();
        (10..14).for_each(|number| queues.push_gave_way(0, 10 * number as u32, number));
        queues.push(0, 1);
        let content = queues.publish(0, &mut vec![2]);
        assert_eq!((content.stealable, content.give_way), (2, true));
        let mut stolen = Vec::new();
        assert!(queues.steal(0, Victims::Any, &mut stolen, |_| Duration::ZERO));
        assert_eq!(stolen, [1, 2, 100], "half of six");
        assert_eq!(queues.pop(0), None, "the other ones were stolen");
        assert_eq!(queues.queued(0), 3);
        assert!(!queues.prepare_idle(0), "it has those that give way");
        let pop = |end| queues.remote(0).pop_gave_way(end);
        assert_eq!([pop(11), pop(13), pop(13), pop(13), pop(u64::MAX)], [None, Some(110), Some(120), None, Some(130)]);
        assert!(queues.prepare_idle(0), "it has no more");
    }

    /// A counted entry counts until the worker has taken it or another one has stolen it, and none that came later
    /// counts.
    #[test]
    fn stolen_entries_count_no_longer() {
        let queues = two_workers::<u32>();
        let remote = queues.remote(0);
        queues.publish(0, &mut vec![1, 2, 3, 4]);
        queues.spawn_on(0, 10);
        assert_eq!((remote.count(false), remote.count(true)), (None, Some(4)));
        queues.push(0, 5);
        assert_eq!((queues.pop(0), queues.pop(0)), (Some(10), Some(1)));
        assert_eq!(remote.counted(), 3, "2, 3 and 4");
        let mut stolen = Vec::new();
        assert!(queues.steal(0, Victims::Any, &mut stolen, |_| Duration::ZERO));
        assert_eq!((stolen, remote.counted()), (vec![2, 3], 1));
        assert_eq!((queues.pop(0), remote.counted()), (Some(4), 0), "5 came later");
    }

    /// New entries and those that give way take turns, if nothing else is ready: neither starves the other.
    #[test]
    fn spawned_and_those_that_give_way_take_turns() {
        for some_local in [false, true] {
            let queues = two_workers::<u32>();
            (0..3).for_each(|entry| queues.spawn_on(0, entry));
            if !some_local {
                queues.push_gave_way(0, 10, 0);
            }
            let pops = [0; 4].map(|_| queues.remote(0).pop_stealable(|| some_local));
            assert_eq!(pops, [Some(0), None, Some(1), None]);
            assert_eq!(queues.remote(0).pop_gave_way(u64::MAX), (!some_local).then_some(10));
            assert_eq!(queues.pop(0), Some(2));
        }
    }

    /// To spawn on a certain worker would be in vain if the next idle worker stole the task. But a worker that is stuck
    /// for long must not keep it.
    #[test]
    fn long_stuck_worker_loses_spawned_tasks() {
        let queues = two_workers::<u32>();
        queues.publish(0, &mut vec![1, 2]);
        queues.spawn_on(0, 3);
        let steal = |victims, stuck_for| {
            let mut stolen = Vec::new();
            assert_eq!(queues.steal(0, victims, &mut stolen, |_| stuck_for), !stolen.is_empty());
            stolen
        };
        assert!(steal(Victims::Stuck, Duration::ZERO).is_empty(), "it is not stuck");
        assert_eq!(steal(Victims::Any, Duration::ZERO), [1], "half of two");
        queues.push(0, 5);
        assert_eq!(steal(Victims::Stuck, STUCK), [2, 5], "the entry that was there, and the one that came later");
        assert_eq!(steal(Victims::Stuck, STUCK_FOR_LONG), [3]);
        queues.spawn_on(0, 4);
        assert!(queues.prepare_idle(1), "it has no entries");
        assert!(!queues.prepare_idle(0), "it has an entry");
    }
}
