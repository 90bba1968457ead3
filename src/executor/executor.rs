//! Executor: the worker's own half, which hands out what is run next.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use super::current::{self, Current, Entered, schedule_main, with_deferred, with_queue, with_yielded};
use super::registry::{LOCAL, TaskSet};
use super::shared::{Entry, Runnable, WorkerRef, Workers};
use super::shuffle::Shuffle;
use super::stealing::{Content, Overdue, Stealer};
use crate::budget::{self, GaveWay};
use crate::memory::{shrink, shrink_queue};
use crate::random::Random;

/// The half of the executor that a worker owns.
pub(crate) struct Executor {
    worker: WorkerRef,
    /// The workers that run what is spawned on this thread, if it is the thread of a `block_on` call beside them.
    spawn_workers: Option<Arc<Workers>>,
    /// The runtime has one worker and no seed. So the next entry is that of the thread's queue, except in rare cases.
    is_direct: bool,
    /// Used if the runtime has one worker and no seed: the entries to run before the worker takes the thread's queue
    /// again. They are in reverse order, so that `pop` takes the next one.
    taken: Vec<Entry>,
    /// Used otherwise: the local entries to run before the worker takes the thread's queue again, also reversed. If
    /// there are several workers, they take turns with the entries of the stealable queue.
    local_taken: Vec<Entry>,
    /// The order of the thread's queue, if the runtime has a seed.
    shuffle: Option<Box<Shuffle>>,
    /// Used if the runtime has one worker and a seed: the entry that runs, or ran last, is the future of a `block_on`
    /// call.
    ran_main: bool,
    /// Used if the runtime has one worker: the entries that have used up their budget. They run after the next look at
    /// the kernel, when nothing else is ready, or after one batch in which something else always was.
    refused: Vec<Entry>,
    /// Some entries were in `refused` already when this batch began.
    has_waiting_refused: bool,
    /// `None` if the runtime has one worker.
    stealer: Option<Box<Stealer>>,
    /// The last entry was a stealable one. Stealable and local entries take turns while there are local ones.
    was_shared: bool,
    /// Used if the runtime has several workers: which tasks that give way run next, although others are ready.
    overdue: Overdue,
}

impl Executor {
    pub(crate) fn new(worker: WorkerRef) -> Self {
        let (workers, seed) = (&worker.workers, worker.workers.seed);
        let mut stealer = workers.is_several().then(|| Box::new(Stealer::new(workers.len(), Instant::now())));
        if let (Some(stealer), Some(seed)) = (&mut stealer, seed) {
            stealer.seed(seed, worker.index);
        }
        let shuffle = seed.map(|seed| Box::new(Shuffle::new(Random::new(seed, 3 * worker.index as u64))));
        Self {
            worker,
            spawn_workers: None,
            is_direct: stealer.is_none() && shuffle.is_none(),
            taken: Vec::new(),
            local_taken: Vec::new(),
            shuffle,
            ran_main: false,
            refused: Vec::new(),
            has_waiting_refused: false,
            stealer,
            was_shared: false,
            overdue: Overdue::default(),
        }
    }

    /// The executor of a `block_on` call beside `workers`, which run what is spawned in it.
    pub(crate) fn beside(workers: &Arc<Workers>, unparker: Waker) -> Self {
        let worker = WorkerRef::new(workers.beside(unparker), 0);
        Self { spawn_workers: Some(workers.clone()), ..Self::new(worker) }
    }

    /// Makes this thread the worker's.
    pub(crate) fn enter(&self) -> Entered {
        current::enter(Current { worker: self.worker.clone(), spawn_workers: self.spawn_workers.clone() })
    }

    /// Begins a `block_on` call, in which local tasks may be spawned.
    pub(crate) fn open_local(&mut self) {
        self.worker.workers.tasks.open_local(self.worker.index);
        self.drain_remote();
    }

    /// The next entry to run.
    // A yield costs 10.0 % more without this.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Entry> {
        let next = self.taken.pop();
        if next.is_some() { next } else { self.next_of_queues() }
    }

    /// The next entry, once those that were taken are used up.
    // A yield costs 12.2 % more without this.
    #[inline]
    fn next_of_queues(&mut self) -> Option<Entry> {
        let may_be_direct = self.is_direct
            && match budget::gave_way() {
                GaveWay::None | GaveWay::Noted => true,
                GaveWay::Yielded => !self.is_notified(),
                GaveWay::UsedUp => false,
            };
        if !may_be_direct {
            return self.next_otherwise();
        }
        // A yield costs 2.9 % more without the first case, and a spawn 1.2 %.
        let next = if with_queue(|queue| queue.len() <= 1) {
            with_queue(Vec::pop)
        } else {
            with_queue(|queue| mem::swap(&mut self.taken, queue));
            self.taken.reverse();
            self.taken.pop()
        };
        if next.is_some() || self.refused.is_empty() { next } else { self.next_refused() }
    }

    /// The next of the entries that had used up their budget. Nothing else is ready, and the worker has looked at the
    /// kernel since.
    #[cold]
    fn next_refused(&mut self) -> Option<Entry> {
        self.has_waiting_refused = false;
        mem::swap(&mut self.taken, &mut self.refused);
        self.taken.reverse();
        self.taken.pop()
    }

    /// As `next_of_queues`, with several workers, with a seed, or after a task has given way. `None` also if a task has
    /// used up its budget: then the worker looks at the kernel before that task runs again.
    #[inline(never)]
    fn next_otherwise(&mut self) -> Option<Entry> {
        if self.stealer.is_some() {
            return if budget::gave_way() == GaveWay::UsedUp { None } else { self.next_of_both() };
        }
        if self.shuffle.is_some() {
            return self.next_shuffled();
        }
        if budget::gave_way() == GaveWay::UsedUp {
            return None;
        }
        // A task that yields is in the thread's queue. The entries that other threads have pushed come first.
        budget::count_events(self.worker.remote().queue.drain(&mut self.taken));
        with_queue(|queue| self.taken.append(queue));
        self.taken.reverse();
        self.taken.pop()
    }

    /// The next entry, if the runtime has one worker and a seed.
    fn next_shuffled(&mut self) -> Option<Entry> {
        self.note_yield();
        // Once a budget is used up, nothing more is taken from the thread's queue in this batch: the task that used it
        // up may be in there.
        let has_refused = budget::gave_way() == GaveWay::UsedUp;
        if self.local_taken.is_empty() {
            if has_refused {
                return None;
            }
            if self.shuffle.as_ref().is_some_and(|shuffle| shuffle.has_segments()) {
                self.put_remote_first();
            }
            self.take_queue();
        } else if let (Some(shuffle), false) = (&mut self.shuffle, has_refused) {
            with_queue(|queue| shuffle.mix(&mut self.local_taken, queue));
        }
        if self.local_taken.is_empty() {
            // As in `next_refused`.
            self.has_waiting_refused = false;
            mem::swap(&mut self.local_taken, &mut self.refused);
            self.local_taken.reverse();
        }
        let next = self.local_taken.pop();
        self.ran_main = matches!(next, Some(Entry::Main));
        next
    }

    /// In a runtime with one worker and a seed: if the entry that ran last has yielded, keeps it behind all that were
    /// ready when it did.
    fn note_yield(&mut self) {
        let (Some(shuffle), None) = (&mut self.shuffle, &self.stealer) else { return };
        if budget::take_yield() {
            with_queue(|queue| {
                // A task is queued after its poll. The future of a `block_on` call may have woken others since it
                // yielded.
                let is_main = |entry: &Entry| matches!(entry, Entry::Main);
                let main = if self.ran_main { queue.iter().rposition(is_main) } else { None };
                let last = main.or(queue.len().checked_sub(1));
                shuffle.begin_segment(last.unwrap_or(0));
            });
        }
    }

    /// Ends a batch in which a task may have yielded, and may be in the thread's queue. What other threads have pushed
    /// comes first, as in [`next_otherwise`](Executor::next_otherwise).
    pub(crate) fn end_yielding_batch(&mut self) {
        if self.stealer.is_none() {
            self.note_yield();
            self.put_remote_first();
        }
    }

    /// Puts what other threads have pushed in front of the thread's queue.
    fn put_remote_first(&mut self) {
        if self.is_notified() {
            let mut posted = Vec::new();
            budget::count_events(self.worker.remote().queue.drain(&mut posted));
            if let Some(shuffle) = &mut self.shuffle {
                shuffle.move_back(posted.len());
            }
            with_queue(|queue| {
                posted.append(queue);
                *queue = posted;
            });
        }
    }

    /// The next of the entries that only this worker may run and of those that can be stolen, in turn. Those that give
    /// way come when nothing else is ready, or once all has run that was ready when they were counted.
    fn next_of_both(&mut self) -> Option<Entry> {
        if !self.overdue.is_idle() {
            let next = self.next_overdue();
            if next.is_some() {
                return next;
            }
        }
        if !self.local_taken.is_empty() {
            self.was_shared = !self.was_shared;
            if !self.was_shared {
                return self.pop_local();
            }
        }
        if let Some(task) = self.worker.remote().pop_stealable(some_local_gives_way) {
            return Some(Entry::Task(task));
        }
        if self.local_taken.is_empty() {
            self.take_local();
        }
        let next = self.pop_local();
        if next.is_some() {
            return next;
        }
        self.overdue.stop();
        self.pop_yielded(u64::MAX)
    }

    /// The next of the local entries that were taken.
    fn pop_local(&mut self) -> Option<Entry> {
        self.overdue.count_local();
        self.local_taken.pop()
    }

    /// The next of the tasks that give way, if they are overdue and it is their turn.
    #[cold]
    fn next_overdue(&mut self) -> Option<Entry> {
        let remote = self.worker.remote();
        let end = self.overdue.take_turn(|| remote.counted())?;
        let next = self.pop_yielded(end);
        if next.is_none() {
            self.overdue.stop();
            self.begin_count();
        }
        next
    }

    /// Counts the ready entries, which run before the tasks that give way. Does nothing if one of the two kinds is
    /// missing, or while an earlier count goes on.
    #[cold]
    fn begin_count(&mut self) {
        if !self.overdue.is_idle() {
            return;
        }
        let Some(stealable) = self.worker.remote().count(some_local_gives_way()) else { return };
        // Takes the local entries that are counted, also those that other threads have pushed. What is queued from now
        // on runs behind them.
        self.take_local();
        let local = self.local_len();
        if local + stealable > 0 {
            self.overdue.begin_count(local, current::next_to_give_way());
        }
    }

    /// The task with the lowest number of those that give way, if that is below `end`.
    fn pop_yielded(&self, end: u64) -> Option<Entry> {
        let first_local = with_yielded(|yielded| yielded.front().map_or(end, |(number, _)| *number));
        let shared = self.worker.remote().pop_gave_way(first_local.min(end));
        let next = shared.or_else(|| {
            let local = with_yielded(|yielded| if first_local < end { yielded.pop_front() } else { None });
            local.map(|(_, task)| task)
        });
        next.map(Entry::Task)
    }

    /// Takes the entries of the thread's queue, and those that other threads have pushed.
    fn take_local(&mut self) {
        if self.is_notified() {
            let WorkerRef { workers, index, .. } = &self.worker;
            budget::count_events(with_queue(|queue| workers.queues.drain_in_batch(*index, queue)));
        }
        self.take_queue();
    }

    /// Takes the entries of the thread's queue. They come behind those that were taken before.
    fn take_queue(&mut self) {
        with_queue(|queue| {
            match &mut self.shuffle {
                Some(shuffle) => shuffle.shuffle(queue),
                None => queue.reverse(),
            }
            queue.append(&mut self.local_taken);
            mem::swap(queue, &mut self.local_taken);
        });
    }

    /// Runs a task, with the budget of a poll.
    pub(crate) fn run(&mut self, task: Runnable) {
        self.move_if_refused();
        budget::refill();
        task.run();
    }

    /// The next entry is about to run, or the batch is over. If the last one has used up its budget, moves it from the
    /// thread's queue to those that come last.
    // An echo takes fewer instructions if this is asked here and not right after a task has run.
    #[inline]
    pub(crate) fn move_if_refused(&mut self) {
        if budget::has_refused() {
            self.move_refused();
        }
    }

    #[cold]
    fn move_refused(&mut self) {
        if self.stealer.is_none() {
            // A task is queued after its poll, so it is the last entry. There are three exceptions, in which another
            // entry comes last instead, and is shown as one that gave way: the task has ended in spite of the refusal,
            // it has polled the operation with another waker, or it is the future of a `block_on` call, which may have
            // others behind it.
            let last = with_queue(Vec::pop);
            if let Some(Entry::Task(task)) = &last {
                task.metadata().record.note_gave_way();
            }
            self.refused.extend(last);
        }
    }

    /// Whether the worker has entries that only it may run.
    fn has_local(&self) -> bool {
        self.local_len() > 0 || !self.refused.is_empty() || some_local_gives_way()
    }

    /// How many entries only this worker may run, without those that give way.
    fn local_len(&self) -> usize {
        self.taken.len() + self.local_taken.len() + with_queue(|queue| queue.len())
    }

    /// Whether there is something to run.
    #[inline]
    pub(crate) fn has_ready(&self) -> bool {
        self.has_local() || (self.stealer.is_some() && self.worker.remote().has_stealable())
    }

    /// Begins a batch: the entries that the worker has waited for may be run, here or elsewhere. Returns how many are
    /// ready, without those that have used up their budget.
    // A yield costs 1.3 % more without this.
    #[inline]
    pub(crate) fn begin_batch(&mut self) -> usize {
        if self.stealer.is_some() {
            return self.begin_shared_batch();
        }
        let ready = self.local_len();
        if self.has_waiting_refused {
            // They have waited for a whole batch, in which something else was always ready.
            append_in_order(&mut self.refused, self.shuffle.as_deref_mut());
        }
        self.has_waiting_refused = !self.refused.is_empty();
        ready
    }

    fn begin_shared_batch(&mut self) -> usize {
        // The worker takes its local entries now. The stealable queue may never be empty, and to wait for that would
        // starve them.
        if self.local_taken.is_empty() {
            self.take_queue();
        }
        let (has_local, local) = (self.has_local(), self.local_len());
        let Some(stealer) = &mut self.stealer else { return local };
        let WorkerRef { workers, index, .. } = &self.worker;
        let Content { stealable, give_way } =
            with_deferred(|deferred| stealer.begin_batch(&workers.queues, *index, deferred, has_local, Instant::now));
        current::set_in_batch(true);
        if give_way || some_local_gives_way() {
            self.begin_count();
        }
        local + stealable
    }

    /// Ends a batch, in which `ran` entries were run.
    pub(crate) fn end_batch(&mut self, ran: u64) {
        if let Some(stealer) = &mut self.stealer {
            stealer.add_work(ran);
            current::set_in_batch(false);
        }
    }

    /// Whether there is nothing left to run, and the worker may block.
    pub(crate) fn prepare_idle(&mut self) -> bool {
        !self.has_local() && self.stealer.as_mut().is_none_or(|stealer| prepare_idle(stealer, &self.worker))
    }

    /// How long the idle worker may block at most, before it looks at the others' queues.
    pub(crate) fn watch_timeout(&self) -> Option<Duration> {
        self.stealer.as_ref().and_then(|stealer| stealer.watch_timeout())
    }

    /// The workers that were stuck when this one last looked.
    pub(crate) fn stuck(&self) -> impl Iterator<Item = usize> {
        self.stealer.iter().flat_map(|stealer| stealer.stuck())
    }

    /// The stuck workers whose events and timers must end the block of this idle worker.
    pub(crate) fn beside_stuck(&self) -> impl Iterator<Item = usize> {
        self.stealer.iter().flat_map(|stealer| stealer.beside_stuck())
    }

    /// The next worker that was found stuck in a task.
    pub(crate) fn next_stuck(&mut self) -> Option<usize> {
        self.stealer.as_mut().and_then(|stealer| stealer.next_stuck())
    }

    /// The progress of a worker that was stuck at the last look, and since when that has not changed.
    pub(crate) fn stuck_poll(&self, index: usize) -> Option<(u64, Instant)> {
        self.stealer.as_ref()?.stuck_poll(index)
    }

    /// Ends an idle period, if the worker was in one, and takes the entries that other threads have pushed. The worker
    /// calls this after each wait, so that those entries come after what the events have woken.
    // A served echo costs 0.7 % more without this.
    #[inline]
    pub(crate) fn leave_idle(&mut self) {
        self.drain_remote();
        if let Some(stealer) = &mut self.stealer {
            stealer.leave_idle(&self.worker.workers.queues);
        }
    }

    /// Gives memory back that a spike has left.
    pub(crate) fn shrink(&mut self) {
        for queue in [&mut self.taken, &mut self.local_taken, &mut self.refused] {
            shrink(queue);
        }
        if let Some(shuffle) = &mut self.shuffle {
            shuffle.shrink();
        }
        with_queue(shrink);
        with_yielded(shrink_queue);
        with_deferred(shrink);
        self.worker.remote().shrink();
        self.worker.workers.tasks.shrink(self.worker.index);
    }

    /// The worker is about to block. `false` if it must not, because it was notified.
    pub(crate) fn prepare_park(&self) -> bool {
        self.worker.remote().queue.prepare_park()
    }

    /// The worker is about to spin. `false` if it need not, because it was notified.
    pub(crate) fn prepare_spin(&self) -> bool {
        self.worker.remote().queue.prepare_spin()
    }

    /// Whether another thread has pushed something, or wants the worker to look.
    pub(crate) fn is_notified(&self) -> bool {
        self.worker.remote().queue.is_notified()
    }

    /// Takes the entries that other threads have pushed. They come after those that are queued here.
    pub(crate) fn drain_remote(&mut self) {
        let drained = with_queue(|queue| self.worker.remote().queue.drain(queue));
        budget::count_events(drained);
    }

    /// Cancels this worker's local tasks, and accepts no new ones. They end when they are run.
    pub(crate) fn cancel_local(&self) {
        self.worker.workers.tasks.cancel_local(self.worker.index);
    }

    /// Whether the worker still has to wait for tasks of `set` to end. They have been cancelled.
    pub(crate) fn has_tasks(&self, set: TaskSet) -> bool {
        match set {
            TaskSet::Local => self.worker.workers.tasks.len(self.worker.index, set) > 0,
            TaskSet::All => !self.worker.workers.tasks.is_dead(),
        }
    }

    /// Ends a `block_on` call. `unrun` and all other tasks that are queued are kept for the next call.
    pub(crate) fn leave(&mut self, mut unrun: Vec<Entry>) {
        unrun.extend(self.taken.drain(..).rev());
        unrun.extend(self.local_taken.drain(..).rev());
        with_queue(|queue| unrun.append(queue));
        if let Some(shuffle) = &mut self.shuffle {
            shuffle.clear();
        }
        with_yielded(|yielded| unrun.extend(yielded.drain(..).map(|(_, task)| Entry::Task(task))));
        unrun.append(&mut self.refused);
        with_deferred(|deferred| unrun.extend(deferred.drain(..).map(Entry::Task)));
        unrun.retain(|entry| matches!(entry, Entry::Task(_)));
        self.worker.remote().queue.push_front(unrun);
    }

    /// Refuses all entries from now on. The caller has waited until all tasks have ended.
    pub(crate) fn close(&mut self) {
        self.worker.workers.queues.close(self.worker.index);
        self.worker.workers.tasks.forget_records(self.worker.index);
    }

    /// Makes the waker of the future that this worker's `block_on` call runs.
    pub(crate) fn main_waker(&self) -> MainWaker {
        MainWaker(Arc::new(Main { worker: self.worker.clone(), is_queued: AtomicBool::new(false) }))
    }
}

fn some_local_gives_way() -> bool {
    with_yielded(|yielded| !yielded.is_empty())
}

/// Appends `entries` to the thread's queue. In a runtime with a seed too, they stay in order, behind those that are
/// there.
fn append_in_order(entries: &mut Vec<Entry>, shuffle: Option<&mut Shuffle>) {
    with_queue(|queue| {
        if let Some(shuffle) = shuffle {
            shuffle.begin_segments(queue.len(), entries.len());
        }
        queue.append(entries);
    });
}

/// As [`Executor::prepare_idle`], for a worker that has others beside it and no entries of its own.
fn prepare_idle(stealer: &mut Stealer, WorkerRef { workers, index, .. }: &WorkerRef) -> bool {
    with_deferred(|deferred| stealer.prepare_idle(&workers.queues, *index, deferred, Instant::now))
}

impl Entry {
    /// Whether this entry must be run or dropped on the thread that made it.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Task(task) if task.metadata().record.table().kind() == LOCAL)
    }
}

/// Wakes the future of a `block_on` call. It is queued as a task is.
pub(crate) struct MainWaker(Arc<Main>);

struct Main {
    worker: WorkerRef,
    /// An entry for it is queued, or was taken and its future has not been polled yet.
    is_queued: AtomicBool,
}

impl MainWaker {
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    /// The entry was taken, and the future is about to be polled. A wake from now on queues another entry. Acquires
    /// what the waking thread did before.
    pub(crate) fn begin_poll(&self) {
        self.0.is_queued.swap(false, Ordering::AcqRel);
        budget::refill();
    }
}

impl Wake for Main {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            schedule_main(&self.worker);
        }
    }
}
