//! Workers: those of one runtime, as they see each other.
//!
//! A runtime with one worker has no use for most of this: its tasks are in its thread's queue. With several, tasks that may run
//! anywhere are in [`Queue`]s, one for each worker, where the others can take them:
//!
//! * A worker pushes what it wakes to its own queue, so a task runs where its socket is.
//! * A thread that is none of them pushes to the queue of the worker where the task last ran.
//! * A worker that has nothing to do takes half of another's queue, if two or more are there. One is left to its owner,
//!   who is about to come to it.
//! * Unless the owner is stuck: if it has run the same task for a millisecond, all is taken. Idle workers look, and
//!   busy ones now and then.
//! * What was placed on a worker ([`Workers::place`]) begins there, unless that one has been stuck for longer: a connection
//!   belongs to the worker that first waits for it, and placing it would be in vain.
//!
//! Who is called when something is queued behind a running task, and who looks without being called, is in [`idle`](super::idle).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::idle::Idle;
use super::inbox::{Inbox, Rung};
use super::list::TaskLists;
use super::{Entry, Runnable, discard};
use crate::sync::Mutex;

/// The workers of a runtime.
pub(crate) struct Workers {
    pub(super) tasks: TaskLists,
    remotes: Box<[Remote]>,
    pub(super) idle: Idle,
}

/// The half of a worker that others refer to, on cache lines of its own.
#[repr(align(128))]
pub(super) struct Remote {
    pub(super) inbox: Inbox<Entry>,
    /// Empty where there is one worker.
    queue: Mutex<Queue>,
}

/// The tasks that a worker is to run, if no other one takes them.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Runnable>,
    placed: VecDeque<Runnable>,
    /// The worker runs tasks: it is neither idle nor about to wake.
    running: bool,
    /// Moves whenever the worker comes here.
    progress: u64,
    /// How many were pushed by threads that are no workers.
    posts: u64,
    closed: bool,
}

/// How long a worker runs one task before the others take what is queued behind it.
const STUCK: Duration = Duration::from_millis(1);

/// And what was placed there: longer than a thread may have to wait for a core.
const STUCK_FOR_LONG: Duration = Duration::from_millis(50);

/// Taken at a time of what a stuck worker has.
const SOME: usize = 64;

impl Workers {
    /// As many workers as there are `rings`: each is woken to end its worker's block, from any thread.
    pub(crate) fn new(rings: Vec<Waker>) -> Arc<Self> {
        let (tasks, idle) = (TaskLists::new(rings.len()), Idle::new());
        let remotes = rings.into_iter().map(Remote::new).collect();
        Arc::new(Self { tasks, remotes, idle })
    }

    pub(crate) fn len(&self) -> usize {
        self.remotes.len()
    }

    /// Whether tasks may move between workers.
    #[inline]
    pub(super) fn is_several(&self) -> bool {
        self.remotes.len() > 1
    }

    #[inline]
    pub(super) fn remote(&self, index: usize) -> &Remote {
        &self.remotes[index]
    }

    /// What the thread of a worker is known by, to compare with a task's: the addresses of what is that worker's own, and of
    /// what all share. The second is odd, as none of the first is, and 0 if nothing is shared.
    pub(super) fn gates(self: &Arc<Self>, index: usize) -> (usize, usize) {
        let own = (&raw const self.remotes[index]).addr();
        (own, if self.is_several() { Arc::as_ptr(self).addr() | 1 } else { 0 })
    }

    /// The worker with the fewest tasks.
    pub(super) fn least_loaded(&self) -> usize {
        (0..self.len()).min_by_key(|index| self.tasks.alive(*index)).unwrap_or(0)
    }

    /// How many tasks still have their future.
    pub(crate) fn tasks_alive(&self, index: usize) -> usize {
        self.tasks.alive(index)
    }

    /// How often a thread that is not this worker's woke or spawned something here.
    pub(crate) fn posts(&self, index: usize) -> u64 {
        let remote = self.remote(index);
        remote.inbox.posts() + remote.queue.lock().posts
    }

    /// Pushes a task that one of the workers has woken, on its own thread. It is queued behind a running one.
    pub(super) fn push(&self, index: usize, task: Runnable) {
        self.remote(index).queue.lock().ready.push_back(task);
        self.call_if_wanted();
    }

    /// Pushes a task from a thread that is none of the workers; gives it back if they have ended.
    pub(super) fn post(&self, index: usize, task: Runnable) -> Result<(), Runnable> {
        self.push_from_outside(index, task, |queue| &mut queue.ready)
    }

    /// Has a worker begin a task, from any thread.
    pub(super) fn place(&self, index: usize, task: Runnable) {
        if !self.is_several() {
            task.schedule();
        } else if let Err(task) = self.push_from_outside(index, task, |queue| &mut queue.placed) {
            discard(Entry::Task(task));
        }
    }

    fn push_from_outside(
        &self,
        index: usize,
        task: Runnable,
        place: impl FnOnce(&mut Queue) -> &mut VecDeque<Runnable>,
    ) -> Result<(), Runnable> {
        let remote = self.remote(index);
        let mut queue = remote.queue.lock();
        if queue.closed {
            return Err(task);
        }
        queue.posts += 1;
        place(&mut queue).push_back(task);
        drop(queue);
        if remote.inbox.ring() == Rung::Busy {
            self.call_if_wanted();
        }
        Ok(())
    }

    /// The next task of a worker's own queue.
    #[inline]
    pub(super) fn pop(&self, index: usize) -> Option<Runnable> {
        let mut queue = self.remote(index).queue.lock();
        queue.progress += 1;
        if !queue.placed.is_empty() {
            return queue.placed.pop_front();
        }
        queue.ready.pop_front()
    }

    /// Whether a worker has nothing to run; if so, it is about to be idle.
    pub(super) fn rest(&self, index: usize) -> bool {
        let mut queue = self.remote(index).queue.lock();
        queue.running = !queue.is_empty();
        !queue.running
    }

    /// Queues what a worker has woken between two batches, the first of which it is about to begin. Returns whether it has
    /// something to run.
    pub(super) fn publish(&self, index: usize, gathered: &mut Vec<Runnable>) -> bool {
        let mut queue = self.remote(index).queue.lock();
        queue.running = true;
        queue.progress += 1;
        queue.ready.extend(gathered.drain(..));
        let (has_some, are_behind) = (!queue.is_empty(), queue.ready.len() > 1);
        drop(queue);
        if are_behind {
            self.call_if_wanted();
        }
        has_some
    }

    #[inline]
    pub(super) fn call_if_wanted(&self) {
        if self.idle.wants_call() {
            self.idle.call(|| self.remotes.iter().any(|remote| remote.inbox.call()));
        }
    }

    /// Whether something is queued on a worker other than this one.
    pub(super) fn others_have_some(&self, index: usize) -> bool {
        self.others(index).any(|other| !self.remote(other).queue.lock().is_empty())
    }

    /// The other workers, each thief beginning with another one.
    fn others(&self, index: usize) -> impl Iterator<Item = usize> {
        let count = self.len();
        (1..count).map(move |offset| (index + offset) % count)
    }

    /// Refuses new tasks and tells all that are there to end.
    pub(crate) fn abort_all(&self) {
        if self.tasks.abort_all() {
            self.all_gone();
        }
    }

    /// The last task has ended after they were told to: whoever waits for that goes on.
    pub(super) fn all_gone(&self) {
        for remote in &self.remotes {
            remote.inbox.ring();
        }
    }

    /// Refuses whatever still comes for a worker, and returns what has come.
    pub(super) fn close(&self, index: usize) -> Vec<Entry> {
        let remote = self.remote(index);
        let mut queue = remote.queue.lock();
        queue.closed = true;
        let (ready, placed) = (std::mem::take(&mut queue.ready), std::mem::take(&mut queue.placed));
        drop(queue);
        let mut left = remote.inbox.close();
        left.extend(ready.into_iter().chain(placed).map(Entry::Task));
        left
    }
}

impl Remote {
    fn new(ring: Waker) -> Self {
        Self { inbox: Inbox::new(ring), queue: Mutex::new(Queue::default()) }
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.placed.is_empty()
    }

    /// What a thief takes who has last seen the worker move so long ago.
    fn take(&mut self, since: Duration, victims: Victims) -> Vec<Runnable> {
        let stuck_for = if self.running { since } else { Duration::ZERO };
        if stuck_for >= STUCK {
            let placed = if stuck_for >= STUCK_FOR_LONG { self.placed.len().min(SOME) } else { 0 };
            let ready = self.ready.len().min(SOME);
            return self.ready.drain(..ready).chain(self.placed.drain(..placed)).collect();
        }
        let half = if victims == Victims::Any { self.ready.len() / 2 } else { 0 };
        self.ready.drain(..half).collect()
    }
}

/// From whom tasks are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Victims {
    Any,
    /// From those that are stuck. Not if it was looked for them a moment ago.
    Stuck,
}

/// What one worker knows of the others' queues.
pub(super) struct Thief {
    /// The progress of each when it was last seen to have moved, and since when.
    seen: Vec<(u64, Instant)>,
    /// When it last looked.
    looked: Instant,
}

impl Thief {
    pub(super) fn new(workers: usize) -> Self {
        let now = Instant::now();
        Self { seen: vec![(u64::MAX, now); workers], looked: now }
    }

    /// Takes tasks from another worker's queue to that of `index`. `true` if there were some.
    pub(super) fn steal(&mut self, workers: &Workers, index: usize, victims: Victims) -> bool {
        let now = Instant::now();
        if victims == Victims::Stuck && now - self.looked < STUCK {
            return false;
        }
        self.looked = now;
        for other in workers.others(index) {
            let mut queue = workers.remote(other).queue.lock();
            let (progress, since) = &mut self.seen[other];
            if *progress != queue.progress {
                (*progress, *since) = (queue.progress, now);
            }
            let mut taken = queue.take(now - *since, victims);
            drop(queue);
            if !taken.is_empty() {
                workers.publish(index, &mut taken);
                return true;
            }
        }
        false
    }
}
