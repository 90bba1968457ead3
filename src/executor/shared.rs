//! Shared: the half of a runtime's workers that tasks and other threads refer to.
//!
//! [`Workers`] has the registry of tasks and, for each worker, the queues that others push to. A [`WorkerRef`] is one
//! worker of it. A task's [`Metadata`] says which queue it goes to when it is woken.
//!
//! # Queue ids
//! Waking compares numbers: the id of the task's queue, and the two of the queues that this thread's worker takes
//! from. A local queue is known by the address of its worker's [`Remote`]. All stealable queues of a runtime have
//! one id, because any worker may run what is in them: the address of the [`Workers`], plus one. It is odd, so that it
//! equals none of the others. A runtime with one worker uses no stealable queue: its tasks go to the local queue, and
//! the ids are equal.

use std::panic::Location;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;

use super::record::{self, Attention, Step};
use super::registry::{Id, IdSource, Kind, Look, TaskRegistry, TaskSet};
use super::remote_queue::Idleness;
use super::stealing::{Queues, Remote};
use crate::stamp::Stamp;
use crate::sync::UnparkTimer;
use crate::system_clock::monotonic;
use crate::trace::SpanId;

/// The workers of a runtime, or the single one of a `block_on` call.
pub(crate) struct Workers {
    pub(super) tasks: TaskRegistry<Workers>,
    pub(super) queues: Queues<Entry, Runnable>,
    /// Called after each poll of a task, with the number of the worker. `None` if polls are not timed.
    on_poll: Option<OnPoll>,
    /// The servers that know names of tasks.
    names: Mutex<Vec<Weak<dyn TaskNames>>>,
    /// The seed of the order in which entries are run, if the runtime has one.
    pub(super) seed: Option<u64>,
}

pub(crate) type OnPoll = Box<dyn Fn(usize, &TimedPoll<'_>) + Send + Sync>;

/// A poll of a task that has just ended.
pub(crate) struct TimedPoll<'a> {
    pub(crate) nanos: u64,
    record: &'a Record,
}

impl TimedPoll<'_> {
    /// The task.
    pub(crate) fn task(&self) -> Option<RunningTask> {
        let (id, location, name) = self.record.workers().tasks.describe(self.record)?;
        let (polls, duration) = (self.record.look().polls, Duration::from_nanos(self.nanos));
        Some(RunningTask { id, name, location, polls, duration })
    }
}

/// A task that is polled, or was just polled.
pub(crate) struct RunningTask {
    pub(crate) id: Id,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) location: &'static Location<'static>,
    /// How often it was polled, this poll included.
    pub(crate) polls: u64,
    /// How long this poll has taken.
    pub(crate) duration: Duration,
}

/// Knows the names of some tasks, and is asked for them when the tasks are shown.
pub(crate) trait TaskNames: Send + Sync {
    /// Passes on the id and the name of each task. Called outside every lock.
    fn visit(&self, visit: &mut dyn FnMut(Id, Arc<str>));
}

/// The record of a task.
pub(super) type Record = record::Record<Workers>;

/// An entry of a worker's queue.
pub(crate) enum Entry {
    /// The future of the `block_on` call that the worker is in. A late wake of an earlier call's future makes such an
    /// entry too, and polls this one needlessly.
    Main,
    Task(Runnable),
}

/// A task that is to be polled.
pub(crate) type Runnable = async_task::Runnable<Metadata>;

/// The data that async-task keeps beside the future, in the same allocation.
pub(crate) struct Metadata {
    /// Refers to the workers. One of them, or any, may run the task.
    pub(super) record: Record,
    /// The id of the task's span, for a subscriber of `tracing`.
    span: SpanId,
}

/// One worker, as its tasks and other threads refer to it.
#[derive(Clone)]
pub(crate) struct WorkerRef {
    pub(super) workers: Arc<Workers>,
    pub(super) index: usize,
    pub(super) local_queue: usize,
    pub(super) shared_queue: usize,
}

impl Workers {
    /// As many workers as there are `unparkers`. Each ends the block of its worker, from any thread.
    /// `on_poll` is called after each poll of a task, if there is one. `seed` decides the order of the entries.
    pub(crate) fn new(unparkers: Vec<Waker>, on_poll: Option<OnPoll>, seed: Option<u64>) -> Arc<Self> {
        Self::with_ids(unparkers, IdSource::new(), on_poll, seed)
    }

    /// The worker of a `block_on` call beside these. Its tasks draw their ids from the same source.
    pub(crate) fn beside(&self, unparker: Waker) -> Arc<Self> {
        Self::with_ids(vec![unparker], self.tasks.ids().clone(), None, self.seed)
    }

    fn with_ids(unparkers: Vec<Waker>, ids: Arc<IdSource>, on_poll: Option<OnPoll>, seed: Option<u64>) -> Arc<Self> {
        let attention = if on_poll.is_some() { Attention::TIMED } else { Attention::NONE };
        let tasks = TaskRegistry::new(unparkers.len(), ids, attention);
        let queues = Queues::new(unparkers);
        if let Some(seed) = seed {
            queues.seed(seed);
        }
        Arc::new(Self { tasks, queues, on_poll, names: Mutex::default(), seed })
    }

    /// Gives the workers timers that can unpark them. A single one needs none, and none is made.
    pub(crate) fn set_unpark_timers(&self, timers: impl Iterator<Item = Arc<dyn UnparkTimer>>) {
        if self.is_several() {
            self.queues.set_unpark_timers(timers);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Whether tasks may move between workers.
    pub(super) fn is_several(&self) -> bool {
        self.len() > 1
    }

    /// The worker on which the fewest living tasks were spawned.
    pub(super) fn least_loaded(&self) -> usize {
        (0..self.len()).min_by_key(|index| self.tasks_alive(*index)).unwrap_or(0)
    }

    /// How many tasks of a worker still have their future. Blocking tasks do not count.
    pub(super) fn tasks_alive(&self, index: usize) -> usize {
        self.tasks.len(index, TaskSet::All)
    }

    /// Gives memory back that a spike of blocking tasks has left.
    pub(super) fn shrink_blocking(&self) {
        self.tasks.shrink_blocking();
    }

    /// How many tasks there are, of all kinds.
    pub(crate) fn count_tasks(&self) -> usize {
        self.tasks.count()
    }

    /// Shows all tasks, some at a time under a lock. `visit` runs no foreign code. Returns `true` if some were shown
    /// again.
    pub(crate) fn visit_tasks(&self, visit: impl FnMut(Look<'_>)) -> bool {
        self.tasks.visit(visit)
    }

    /// A poll of the task of `record` has ended, on the thread of one of these workers.
    pub(super) fn polled(&self, record: &Record, nanos: u64) {
        record.add_poll(nanos);
        if let (Some(on_poll), Some(worker)) = (&self.on_poll, Stamp::last().worker()) {
            on_poll(worker, &TimedPoll { nanos, record });
        }
    }

    /// The task that a worker polls, if it does.
    pub(crate) fn running_task(&self, index: usize) -> Option<RunningTask> {
        let (now, mut running) = (monotonic(), None);
        let _ = self.visit_tasks(|look| {
            let is_running = look.seen.step == Step::Running && look.kind != Kind::Blocking;
            if is_running && look.seen.since.worker() == Some(index) {
                let duration = look.seen.since.age(now).unwrap_or_default();
                let Look { id, location, .. } = look;
                running =
                    Some(RunningTask { id, name: look.name.cloned(), location, polls: look.seen.polls, duration });
            }
        });
        running
    }

    /// When tasks are shown, `names` is asked for names, as long as it lives.
    pub(crate) fn add_names(&self, names: Weak<dyn TaskNames>) {
        let mut all = self.names.lock();
        all.retain(|names| names.strong_count() > 0);
        all.push(names);
    }

    /// Passes on the ids and names that servers know.
    pub(crate) fn visit_names(&self, mut visit: impl FnMut(Id, Arc<str>)) {
        let all: Vec<_> = self.names.lock().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|names| names.visit(&mut visit));
    }

    /// Whether a worker has something to do.
    pub(crate) fn idleness(&self, index: usize) -> Idleness {
        self.queues.remote(index).queue.idleness()
    }

    /// How many entries wait for a worker where other threads can see them.
    pub(crate) fn queued(&self, index: usize) -> usize {
        self.queues.queued(index)
    }

    /// Refuses new tasks, and cancels all that are there.
    pub(crate) fn cancel_all(&self) {
        if self.tasks.cancel_all() {
            self.unpark_all();
        }
    }

    /// Wakes workers that wait for the last task to end.
    pub(super) fn unpark_all(&self) {
        self.queues.unpark_all();
    }
}

impl Metadata {
    pub(super) fn new(record: Record, span: SpanId) -> Self {
        Self { record, span }
    }

    /// The task was woken, or is new, and is about to be queued. Called outside every borrow: it may call a subscriber
    /// of `tracing`.
    // A yield of 1,000 tasks costs 9.4 % more without this and the others of `current`.
    #[inline]
    pub(super) fn note_queued(&self) {
        // Before the task is queued: its next poll may begin on another worker at any time after that.
        self.span.wake(|| self.record.look().polls > 0);
        self.record.note_queued();
    }
}

impl WorkerRef {
    pub(crate) fn new(workers: Arc<Workers>, index: usize) -> Self {
        let local_queue = std::ptr::from_ref(workers.queues.remote(index)).addr();
        let shared_queue = if workers.is_several() { Arc::as_ptr(&workers).addr() | 1 } else { local_queue };
        Self { workers, index, local_queue, shared_queue }
    }

    /// How many tasks that were spawned here still have their future. Blocking tasks do not count.
    pub(crate) fn tasks_alive(&self) -> usize {
        self.workers.tasks_alive(self.index)
    }

    /// How many entries came here from other threads, or were spawned here by `spawn_on`.
    pub(crate) fn remote_wakes(&self) -> u64 {
        self.workers.queues.remote_pushes(self.index)
    }

    pub(super) fn remote(&self) -> &Remote<Entry, Runnable> {
        self.workers.queues.remote(self.index)
    }
}
