//! Queues: what the workers of a runtime are to run, where others can reach it.
//!
//! Each worker has an [`Inbox`] for what only it may run, and a queue for what any may. Where a runtime has one worker, its
//! queue stays empty: all is in its thread's.
//!
//! * A worker pushes what it wakes to its own queue, so a task runs where its socket is.
//! * A thread that is none of them pushes to the queue of the worker where the task last ran.
//! * A worker that has nothing to do takes half of another's queue, if two or more are there. One is left to its owner,
//!   who is about to come to it.
//! * Unless the owner is stuck: if it has run the same task for a millisecond, the last one is taken too. Idle workers look, and
//!   busy ones now and then.
//! * What was placed on a worker ([`Queues::place`]) begins there, unless that one has been stuck for longer: a connection
//!   belongs to the worker that first waits for it, and placing it would be in vain.
//!
//! Who is called when something is queued behind a running task, and who looks without being called, is in
//! [`idle`](super::idle); when a worker looks, in [`sharing`](super::sharing).

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;
use std::{iter, mem};

use super::idle::Idle;
use super::inbox::{Inbox, Rung};
use crate::sync::Mutex;

/// The queues of a runtime's workers: of `E` for one of them, of `T` for any.
pub(super) struct Queues<E, T> {
    remotes: Box<[Remote<E, T>]>,
    pub(super) idle: Idle,
}

/// The half of a worker that others refer to, on cache lines of its own.
#[repr(align(128))]
pub(super) struct Remote<E, T> {
    pub(super) inbox: Inbox<E>,
    queue: Mutex<Queue<T>>,
}

/// What a worker is to run, if no other one takes it.
struct Queue<T> {
    /// What is ready, the next one last. What comes meanwhile is `later`, the next one first: when `ready` is used up that
    /// is turned over, and the two are swapped.
    ready: Vec<T>,
    later: Vec<T>,
    placed: VecDeque<T>,
    /// The worker runs tasks: it is neither idle nor about to wake.
    running: bool,
    /// Moves whenever the worker comes here.
    progress: u64,
    /// How many were pushed by threads that are no workers.
    posts: u64,
    closed: bool,
}

/// How long a worker runs one task before the others take what is queued behind it.
pub(super) const STUCK: Duration = Duration::from_millis(1);

/// And what was placed there: longer than a thread may have to wait for a core.
const STUCK_FOR_LONG: Duration = Duration::from_millis(50);

/// Taken at a time of what a stuck worker has.
const SOME: usize = 64;

/// From whom is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Victims {
    Any,
    /// From those that are stuck.
    Stuck,
}

impl<E, T> Queues<E, T> {
    /// For as many workers as there are `rings`: each is woken to end its worker's block, from any thread.
    pub(super) fn new(rings: Vec<Waker>) -> Self {
        Self { remotes: rings.into_iter().map(Remote::new).collect(), idle: Idle::new() }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.remotes.len()
    }

    #[inline]
    pub(super) fn remote(&self, index: usize) -> &Remote<E, T> {
        &self.remotes[index]
    }

    /// Pushes what a worker has woken while it runs something: it is queued behind that.
    pub(super) fn push(&self, index: usize, task: T) {
        self.remotes[index].queue.lock().later.push(task);
        self.call_if_wanted();
    }

    /// Pushes something from a thread that is none of the workers; gives it back if they have ended.
    pub(super) fn post(&self, index: usize, task: T) -> Result<(), T> {
        self.push_from_outside(index, task, |queue, task| queue.later.push(task))
    }

    /// Pushes what is to begin on this worker, from any thread; gives it back if it has ended.
    pub(super) fn place(&self, index: usize, task: T) -> Result<(), T> {
        self.push_from_outside(index, task, |queue, task| queue.placed.push_back(task))
    }

    fn push_from_outside(&self, index: usize, task: T, push: impl FnOnce(&mut Queue<T>, T)) -> Result<(), T> {
        let remote = &self.remotes[index];
        let mut queue = remote.queue.lock();
        if queue.closed {
            return Err(task);
        }
        queue.posts += 1;
        push(&mut queue, task);
        drop(queue);
        if remote.inbox.ring() == Rung::Busy {
            self.call_if_wanted();
        }
        Ok(())
    }

    /// The next of a worker's own queue.
    #[cfg(test)]
    pub(super) fn pop(&self, index: usize) -> Option<T> {
        self.remotes[index].pop()
    }

    /// Whether a worker's queue is empty; if so, the worker is about to be idle.
    pub(super) fn rest(&self, index: usize) -> bool {
        let mut queue = self.remotes[index].queue.lock();
        queue.running = !queue.is_empty();
        !queue.running
    }

    /// Queues what a worker has gathered between two batches, and is about to run the first of all it has; `has_own`: it has
    /// something else too. Returns whether there is something to run.
    pub(super) fn publish(&self, index: usize, gathered: &mut Vec<T>, has_own: bool) -> bool {
        let mut queue = self.remotes[index].queue.lock();
        queue.running = true;
        queue.progress += 1;
        if queue.later.is_empty() {
            mem::swap(&mut queue.later, gathered);
        } else {
            queue.later.append(gathered);
        }
        let shared = queue.ready_len() + queue.placed.len();
        drop(queue);
        // Whichever is run first, it may be for long.
        if shared > 0 && shared + usize::from(has_own) > 1 {
            self.call_if_wanted();
        }
        shared > 0 || has_own
    }

    /// Calls an idle worker, if there is one and none of them looks anyway.
    #[inline]
    pub(super) fn call_if_wanted(&self) {
        if self.idle.wants_call() {
            self.idle.call(|| self.remotes.iter().any(|remote| remote.inbox.call()));
        }
    }

    /// Whether something is queued on a worker other than this one.
    pub(super) fn others_have_some(&self, index: usize) -> bool {
        self.others(index).any(|other| self.has_some(other))
    }

    /// Whether something is queued on a worker.
    #[inline]
    pub(super) fn has_some(&self, index: usize) -> bool {
        !self.remotes[index].queue.lock().is_empty()
    }

    /// The other workers, for each worker in another order.
    #[inline]
    pub(super) fn others(&self, index: usize) -> impl Iterator<Item = usize> + use<E, T> {
        (index + 1..self.len()).chain(0..index)
    }

    /// Moves some of a worker's queue to `taken`, which is empty; `false` if there is nothing to take. `unmoved` is told its
    /// progress, if something is there, and says for how long it has been so.
    pub(super) fn take(
        &self,
        index: usize,
        victims: Victims,
        taken: &mut Vec<T>,
        unmoved: impl FnOnce(u64) -> Duration,
    ) -> bool {
        let mut queue = self.remotes[index].queue.lock();
        if queue.is_empty() {
            return false;
        }
        let unmoved = unmoved(queue.progress);
        queue.take(victims, unmoved, taken);
        !taken.is_empty()
    }

    /// How often something came to a worker from a thread that is none of them, or was placed there.
    pub(super) fn posts(&self, index: usize) -> u64 {
        let remote = &self.remotes[index];
        remote.inbox.posts() + remote.queue.lock().posts
    }

    /// Has all workers look for what has changed.
    pub(super) fn ring_all(&self) {
        for remote in &self.remotes {
            remote.inbox.ring();
        }
    }

    /// Refuses whatever still comes for a worker, and returns what has come.
    pub(super) fn close(&self, index: usize) -> (Vec<E>, Vec<T>) {
        let remote = &self.remotes[index];
        let mut queue = remote.queue.lock();
        queue.closed = true;
        let mut left: Vec<T> = iter::from_fn(|| queue.pop_ready()).collect();
        left.extend(queue.placed.drain(..));
        drop(queue);
        (remote.inbox.close(), left)
    }
}

impl<E, T> Remote<E, T> {
    fn new(ring: Waker) -> Self {
        let (ready, later, placed) = (Vec::new(), Vec::new(), VecDeque::new());
        let queue = Queue { ready, later, placed, running: false, progress: 0, posts: 0, closed: false };
        Self { inbox: Inbox::new(ring), queue: Mutex::new(queue) }
    }

    /// The next of its worker's queue.
    #[inline]
    pub(super) fn pop(&self) -> Option<T> {
        let mut queue = self.queue.lock();
        queue.progress += 1;
        // In turn: those that are new are not to starve those that are there.
        if !queue.placed.is_empty() && (queue.progress % 2 == 0 || queue.ready_len() == 0) {
            return queue.placed.pop_front();
        }
        queue.pop_ready()
    }
}

impl<T> Queue<T> {
    /// How many are ready.
    #[inline]
    fn ready_len(&self) -> usize {
        self.ready.len() + self.later.len()
    }

    #[inline]
    fn pop_ready(&mut self) -> Option<T> {
        let next = self.ready.pop();
        if next.is_some() { next } else { self.pop_later() }
    }

    /// As [`pop_ready`](Queue::pop_ready), once what was `ready` is used up.
    #[inline(never)]
    fn pop_later(&mut self) -> Option<T> {
        self.turn_over();
        self.ready.pop()
    }

    /// `ready` is used up.
    #[inline]
    fn turn_over(&mut self) {
        debug_assert!(self.ready.is_empty(), "what is there comes before what came later");
        if !self.later.is_empty() {
            mem::swap(&mut self.ready, &mut self.later);
            self.ready.reverse();
        }
    }

    /// Takes some of what is there, if the worker has not come here for that long.
    fn take(&mut self, victims: Victims, unmoved: Duration, taken: &mut Vec<T>) {
        let stuck_for = if self.running { unmoved } else { Duration::ZERO };
        let (ready, placed) = if stuck_for < STUCK {
            (if victims == Victims::Any { self.ready_len() / 2 } else { 0 }, 0)
        } else {
            let placed = if stuck_for < STUCK_FOR_LONG { 0 } else { self.placed.len().min(SOME) };
            (self.ready_len().min(SOME), placed)
        };
        while taken.len() < ready {
            if self.ready.is_empty() {
                self.turn_over();
            }
            let left = self.ready.len().saturating_sub(ready - taken.len());
            taken.extend(self.ready.drain(left..).rev());
        }
        for _ in 0..placed {
            taken.extend(self.placed.pop_front());
        }
    }

    fn is_empty(&self) -> bool {
        self.ready_len() + self.placed.len() == 0
    }
}

#[cfg(all(test, not(kittiwake_loom)))]
mod tests {
    use super::*;

    /// A server that accepts faster than it serves would never come to those that it has accepted.
    #[test]
    fn what_is_placed_and_what_is_ready_do_not_starve_each_other() {
        let queues = Queues::<(), &str>::new(vec![Waker::noop().clone(), Waker::noop().clone()]);
        for _ in 0..3 {
            queues.place(0, "placed").unwrap();
            queues.post(0, "ready").unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| queues.pop(0)).collect();
        assert_eq!(order.len(), 6);
        assert!(order.chunks(2).all(|two| two[0] != two[1]), "in turn, and not {order:?}");
    }

    /// What comes later is behind what is there, for the worker and for whoever takes half of it.
    #[test]
    fn what_is_ready_is_run_and_taken_in_the_order_in_which_it_came() {
        let queues = Queues::<(), u32>::new(vec![Waker::noop().clone(), Waker::noop().clone()]);
        queues.publish(0, &mut vec![1, 2, 3, 4], false);
        queues.push(0, 5);
        assert_eq!(queues.pop(0), Some(1));
        queues.publish(0, &mut vec![6, 7], false);
        let mut taken = Vec::new();
        assert!(queues.take(0, Victims::Any, &mut taken, |_| Duration::ZERO));
        queues.publish(1, &mut taken, false);
        let rest = |index| iter::from_fn(|| queues.pop(index)).collect::<Vec<_>>();
        assert_eq!((rest(0), rest(1)), (vec![5, 6, 7], vec![2, 3, 4]));
    }

    /// Placing is in vain if the next idle worker may take it; and one that is stuck for long must not keep it.
    #[test]
    fn what_is_placed_is_taken_from_a_worker_that_is_stuck_for_long_only() {
        let queues = Queues::<(), u32>::new(vec![Waker::noop().clone(), Waker::noop().clone()]);
        queues.publish(0, &mut vec![1, 2], false);
        queues.place(0, 3).unwrap();
        let take = |victims, stuck_for| {
            let mut taken = Vec::new();
            assert_eq!(queues.take(0, victims, &mut taken, |_| stuck_for), !taken.is_empty());
            taken
        };
        assert!(take(Victims::Stuck, Duration::ZERO).is_empty(), "it is not stuck");
        assert_eq!(take(Victims::Any, Duration::ZERO), [1], "half of two");
        queues.push(0, 5);
        assert_eq!(take(Victims::Stuck, STUCK), [2, 5], "what was there, and what came later");
        assert_eq!(take(Victims::Stuck, STUCK_FOR_LONG), [3]);
        queues.place(0, 4).unwrap();
        assert!(queues.rest(1), "it has nothing");
        assert!(!queues.rest(0), "it has something");
    }
}
