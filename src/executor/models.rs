//! Models: tests in which loom tries the ways in which the threads of a runtime can interleave.
//!
//! `RUSTFLAGS='--cfg kittiwake_loom' CARGO_TARGET_DIR=target-loom cargo test --release --lib models`
//!
//! A modelled worker parks until its unparker wakes it, and has no other event to wait for. So a lost wake-up is a
//! deadlock, and loom reports it. Time is a number that moves on with each look at the clock.

use std::cell::Cell;
use std::mem;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use loom::thread;

use super::record::{Attention, Record};
use super::registry::{IdSource, Inserted, Kind, LOCAL, New, SHARED, TaskRegistry};
use super::remote_queue::RemoteQueue;
use super::stealing::{Queues, Stealer};
use crate::stamp::Stamp;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Condvar, Mutex, UnparkTimer, model};
use crate::trace::EarlyId;

/// A parked worker waits until it is unparked, or its timer expires.
#[derive(Default)]
struct Unparker {
    state: Mutex<Parked>,
    condvar: Condvar,
}

#[derive(Default)]
struct Parked {
    is_unparked: bool,
    /// The timer is set. It may expire at any time.
    timer_is_set: bool,
}

impl Unparker {
    fn wait(&self) {
        let mut state = self.state.lock();
        while !mem::take(&mut state.is_unparked) && !mem::take(&mut state.timer_is_set) {
            state = self.condvar.wait(state);
        }
    }
}

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.state.lock().is_unparked = true;
        self.condvar.notify_one();
    }
}

impl UnparkTimer for Unparker {
    fn set(&self, _: Duration) -> bool {
        self.state.lock().timer_is_set = true;
        self.condvar.notify_one();
        true
    }

    fn cancel(&self) {
        self.state.lock().timer_is_set = false;
    }
}

fn unparker() -> (Arc<Unparker>, Waker) {
    let unparker = Arc::new(Unparker::default());
    (unparker.clone(), Waker::from(unparker))
}

/// Parks the worker of `queue`, unless it was notified.
fn park<T>(queue: &RemoteQueue<T>, unparker: &Unparker) {
    if queue.prepare_park() {
        unparker.wait();
    }
}

/// Parks and drains until the worker has `count` entries.
fn drain_all(queue: &RemoteQueue<u32>, unparker: &Unparker, count: usize) -> Vec<u32> {
    let mut drained = Vec::new();
    while drained.len() < count {
        park(queue, unparker);
        queue.drain(&mut drained);
    }
    drained
}

/// Each push reaches the worker, whether it comes before the worker parks, while it parks or after.
#[test]
fn push_always_ends_the_park() {
    model(|| {
        let (unparker, waker) = unparker();
        let queue = Arc::new(RemoteQueue::new(waker));
        let pushing = [1, 2].map(|entry| {
            let queue = queue.clone();
            thread::spawn(move || queue.push(entry))
        });
        let mut drained = drain_all(&queue, &unparker, 2);
        drained.sort_unstable();
        assert_eq!(drained, [1, 2], "the worker must get each entry once");
        pushing.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// A push reaches a worker that spins before it parks, although a push does not unpark a worker that spins.
#[test]
fn push_reaches_a_spinning_worker() {
    model(|| {
        let (unparker, waker) = unparker();
        let queue = Arc::new(RemoteQueue::new(waker));
        let pushing = thread::spawn({
            let queue = queue.clone();
            move || queue.push(1)
        });
        let mut drained = Vec::new();
        if queue.prepare_spin() {
            park(&queue, &unparker);
        }
        queue.drain(&mut drained);
        if drained.is_empty() {
            // The park ended for no reason, as a park may, and the push is still to come.
            drained = drain_all(&queue, &unparker, 1);
        }
        assert_eq!(drained, [1], "the worker must get the entry once");
        pushing.join().unwrap();
    });
}

/// A push beside the close leaves no entry in the queue: the close or the push drops it.
#[test]
fn closed_queue_keeps_no_entry() {
    model(|| {
        let queue = Arc::new(RemoteQueue::new(Waker::noop().clone()));
        let entry = Arc::new(());
        let pushing = thread::spawn({
            let (queue, entry) = (queue.clone(), entry.clone());
            move || queue.push(entry)
        });
        queue.close();
        pushing.join().unwrap();
        assert_eq!(Arc::strong_count(&entry), 1, "the closed queue kept an entry");
    });
}

/// One worker of several, with its unparker.
struct Modelled {
    queues: Arc<Queues<u32, u32>>,
    index: usize,
    unparker: Arc<Unparker>,
    stealer: Stealer,
    clock: Clock,
}

/// A clock that each look moves on by two milliseconds: a worker that makes no progress between two looks is stuck.
struct Clock {
    start: Instant,
    looks: Cell<u64>,
}

impl Clock {
    fn now(&self) -> Instant {
        self.looks.set(self.looks.get() + 1);
        self.start + Duration::from_millis(2 * self.looks.get())
    }
}

fn workers<const COUNT: usize>() -> [Modelled; COUNT] {
    let unparkers: Vec<_> = (0..COUNT).map(|_| unparker()).collect();
    let queues = Arc::new(Queues::new(unparkers.iter().map(|(_, waker)| waker.clone()).collect()));
    let start = Instant::now();
    std::array::from_fn(|index| Modelled {
        queues: queues.clone(),
        index,
        unparker: unparkers[index].0.clone(),
        stealer: Stealer::new(COUNT, start),
        // Late enough for a worker to set a timer when it first begins.
        clock: Clock { start, looks: Cell::new(2) },
    })
}

impl Modelled {
    /// Begins a batch with `deferred`, and runs the first entry for ever, unless another worker has stolen all of them.
    fn begin_and_be_stuck(&mut self, mut deferred: Vec<u32>) {
        self.begin_batch(&mut deferred, false);
        self.queues.pop(self.index);
    }

    fn begin_batch(&mut self, deferred: &mut Vec<u32>, has_local: bool) {
        self.stealer.begin_batch(&self.queues, self.index, deferred, has_local, || self.clock.now());
    }

    fn prepare_idle(&mut self) -> bool {
        self.stealer.prepare_idle(&self.queues, self.index, &mut Vec::new(), || self.clock.now())
    }

    /// Begins a batch with nothing. Then another thread pushes an entry for this worker alone, and it runs that for
    /// ever.
    fn begin_empty_and_be_stuck(&mut self) {
        self.begin_batch(&mut Vec::new(), false);
        self.queues.remote(self.index).queue.push(1);
        self.queues.drain_in_batch(self.index, &mut Vec::new());
    }

    /// Whether it blocks for a while only. A worker beside a stuck one does so too at first, but must not need to.
    fn is_watcher(&self) -> bool {
        self.stealer.watch_timeout().is_some() && self.stealer.beside_stuck().next().is_none()
    }

    fn park(&self) {
        park(&self.queues.remote(self.index).queue, &self.unparker);
    }

    fn leave_idle(&mut self) {
        self.queues.remote(self.index).queue.drain(&mut Vec::new());
        self.stealer.leave_idle(&self.queues);
    }

    /// Idles until there is an entry to run, and returns the first.
    fn next(&mut self) -> u32 {
        loop {
            self.idle();
            if let Some(next) = self.leave_and_pop() {
                return next;
            }
        }
    }

    /// Idles until another worker is found stuck, or there is an entry to run.
    fn find_stuck(&mut self) {
        while self.leave_and_pop().is_none() && self.stealer.next_stuck().is_none() {
            self.idle();
        }
    }

    /// Idles until this worker or another one has found a stuck worker, or an entry to run.
    fn idle_until_found(&mut self, found: &AtomicBool) {
        while !found.load(Ordering::SeqCst) {
            self.idle();
            if self.leave_and_pop().is_some() || self.stealer.next_stuck().is_some() {
                found.store(true, Ordering::SeqCst);
                self.queues.unpark_all();
            }
        }
    }

    /// Waits until it is woken, or until its watch is over.
    fn idle(&mut self) {
        if self.prepare_idle() {
            if self.is_watcher() {
                thread::yield_now();
            } else {
                self.park();
            }
        }
    }

    /// Begins a batch after the worker was idle, and returns the first entry of its queue.
    fn leave_and_pop(&mut self) -> Option<u32> {
        self.leave_idle();
        self.begin_batch(&mut Vec::new(), false);
        self.queues.pop(self.index)
    }

    /// Runs entries, each of which ends at once, until it comes to `entry`.
    fn run_until(&mut self, entry: u32) {
        while self.next() != entry {}
    }
}

/// An entry that a task pushes before it gets stuck is run by a worker that goes idle meanwhile.
#[test]
fn idle_worker_steals_pushed_entry() {
    model(|| {
        let [mut stuck, mut other] = workers();
        let running = thread::spawn(move || {
            stuck.begin_and_be_stuck(vec![1]);
            stuck.queues.push(stuck.index, 2);
        });
        other.run_until(2);
        running.join().unwrap();
    });
}

/// All workers are idle, and perhaps none of them watches. One gets two entries and is stuck in the first: the other
/// worker runs the second.
#[test]
fn idle_worker_steals_deferred_entry() {
    model(|| {
        let [mut stuck, mut other] = workers();
        let running = thread::spawn(move || {
            stuck.prepare_idle();
            stuck.leave_idle();
            stuck.begin_and_be_stuck(vec![1, 2]);
        });
        other.next();
        running.join().unwrap();
    });
}

/// A worker finds another one stuck, and sleeps without a limit. The other one ends its task, gets two entries and is
/// stuck in the first: the worker is woken, and runs the second.
#[test]
fn worker_beside_stuck_one_misses_no_entry() {
    model(|| {
        let [mut stuck, mut other] = workers();
        stuck.begin_and_be_stuck(vec![1]);
        for _ in 0..2 {
            other.idle();
            other.leave_and_pop();
        }
        assert_eq!(other.stealer.next_stuck(), Some(0), "it made no progress between two looks");
        let running = thread::spawn(move || stuck.begin_and_be_stuck(vec![2, 3]));
        other.next();
        running.join().unwrap();
    });
}

/// An entry that another thread pushes to a stuck worker is run by another worker.
#[test]
fn stuck_worker_loses_remote_push() {
    model(|| {
        let [mut stuck, mut other] = workers();
        stuck.begin_and_be_stuck(vec![1]);
        let pushing = thread::spawn({
            let queues = stuck.queues.clone();
            move || queues.push_stealable(0, 2)
        });
        other.run_until(2);
        pushing.join().unwrap();
    });
}

/// A watcher that gets an entry of its own has another worker look after the stuck one.
#[test]
fn busy_watcher_has_another_look() {
    model(|| {
        let [mut stuck, mut watcher, mut third] = workers();
        stuck.begin_and_be_stuck(vec![1]);
        assert!(watcher.prepare_idle() && watcher.is_watcher(), "one worker is busy, so an idle one must watch");
        let pushing = thread::spawn({
            let queues = stuck.queues.clone();
            move || queues.push(0, 2)
        });
        let watching = thread::spawn(move || {
            watcher.leave_idle();
            watcher.begin_and_be_stuck(vec![3]);
        });
        third.run_until(2);
        pushing.join().unwrap();
        watching.join().unwrap();
    });
}

/// Makes both workers idle, without a watcher.
fn make_all_idle(first: &mut Modelled, second: &mut Modelled) {
    assert!(first.prepare_idle() && second.prepare_idle());
    first.leave_idle();
    assert!(first.prepare_idle());
    assert!(!first.is_watcher() && !second.is_watcher(), "all are idle, so none may watch");
}

/// All workers are idle, and none of them watches. One leaves its idle period, and is stuck by `be_stuck`. The other
/// one finds that, or has stolen the entry.
fn idle_worker_finds(be_stuck: fn(&mut Modelled)) {
    model(move || {
        let [mut stuck, mut other] = workers();
        make_all_idle(&mut stuck, &mut other);
        let running = thread::spawn(move || {
            stuck.leave_idle();
            be_stuck(&mut stuck);
        });
        other.park();
        other.find_stuck();
        running.join().unwrap();
    });
}

/// The same if the other one watches at first, and its watch ends meanwhile.
fn ending_watch_finds(be_stuck: fn(&mut Modelled)) {
    model(move || {
        let [mut stuck, mut other] = workers();
        stuck.begin_batch(&mut Vec::new(), false);
        assert!(other.prepare_idle() && other.is_watcher(), "one worker is busy, so the idle one must watch");
        assert!(stuck.prepare_idle() && !stuck.is_watcher(), "one watcher is enough");
        let running = thread::spawn(move || {
            stuck.leave_idle();
            be_stuck(&mut stuck);
        });
        other.find_stuck();
        running.join().unwrap();
    });
}

/// A worker that begins to run an entry and is stuck in it is found.
#[test]
fn idle_worker_finds_stuck_one() {
    idle_worker_finds(|stuck| stuck.begin_and_be_stuck(vec![1]));
}

#[test]
fn ending_watch_misses_no_stuck_worker() {
    ending_watch_finds(|stuck| stuck.begin_and_be_stuck(vec![1]));
}

/// A worker that has nothing to run, takes an entry inside its batch, and is stuck in it is found.
#[test]
fn stuck_worker_of_empty_batch_is_found() {
    idle_worker_finds(Modelled::begin_empty_and_be_stuck);
}

#[test]
fn ending_watch_misses_no_empty_batch() {
    ending_watch_finds(Modelled::begin_empty_and_be_stuck);
}

/// A thread spawns an entry on an idle worker and then pushes another one to it. If the worker is stuck in the
/// first, the other worker is woken and runs the second.
#[test]
fn push_does_not_wait_for_spawned() {
    model(|| {
        let [mut stuck, mut other] = workers();
        make_all_idle(&mut stuck, &mut other);
        let pushing = thread::spawn({
            let queues = stuck.queues.clone();
            move || {
                queues.spawn_on(0, 1);
                queues.push_stealable(0, 2);
            }
        });
        let running = thread::spawn(move || {
            stuck.park();
            stuck.leave_idle();
            stuck.begin_and_be_stuck(Vec::new());
        });
        other.park();
        if other.leave_and_pop().is_none() {
            other.next();
        }
        pushing.join().unwrap();
        running.join().unwrap();
    });
}

/// All workers were idle. Then the first has begun to run one entry. It has set the timer of the third, which is
/// parked.
fn workers_after_lone_begin() -> [Modelled; 3] {
    let [mut first, mut second, mut parked] = workers();
    let queues = first.queues.clone();
    queues.set_unpark_timers([&first, &second, &parked].map(|worker| worker.unparker.clone() as _).into_iter());
    assert!(first.prepare_idle() && second.prepare_idle() && parked.prepare_idle());
    first.leave_idle();
    assert!(first.prepare_idle() && !first.is_watcher(), "all are idle, so none may watch");
    assert!(queues.remote(2).queue.prepare_park());
    first.leave_idle();
    first.begin_and_be_stuck(vec![1]);
    assert!(parked.unparker.state.lock().timer_is_set, "the parked worker is to look soon");
    [first, second, parked]
}

/// A worker sets the timer of a parked one, runs its only entry, and cancels the timer because all are idle. A third
/// one that begins to run meanwhile, and is stuck, is found.
#[test]
fn cancelled_wake_hides_no_stuck_worker() {
    model(|| {
        let [mut quick, mut stuck, mut parked] = workers_after_lone_begin();
        let found = Arc::new(AtomicBool::new(false));
        let running = thread::spawn(move || {
            stuck.leave_idle();
            stuck.begin_and_be_stuck(vec![2]);
        });
        let idling = thread::spawn({
            let found = found.clone();
            move || quick.idle_until_found(&found)
        });
        parked.unparker.wait();
        parked.leave_idle();
        parked.idle_until_found(&found);
        running.join().unwrap();
        idling.join().unwrap();
    });
}

/// A worker sets the timer of a parked one. Then it has two entries, has a worker woken at once, and is stuck. A third
/// one begins to run meanwhile, and is stuck too. Both are found, and what lies behind them is run.
#[test]
fn cancelled_timer_was_no_other_workers() {
    model(|| {
        let [mut busy, mut stuck, mut parked] = workers_after_lone_begin();
        let running = thread::spawn(move || busy.begin_and_be_stuck(vec![2, 3]));
        let also_running = thread::spawn(move || {
            stuck.leave_idle();
            stuck.begin_and_be_stuck(vec![4]);
        });
        parked.unparker.wait();
        parked.leave_idle();
        // It is in `busy`'s queue, and that worker is stuck in the entry before it.
        parked.run_until(3);
        running.join().unwrap();
        also_running.join().unwrap();
    });
}

/// A worker begins a batch with a deferred entry and a local one, and is stuck in the local one. The other worker,
/// which was idle as well, runs the deferred entry.
#[test]
fn deferred_does_not_wait_for_local() {
    model(|| {
        let [mut stuck, mut other] = workers();
        make_all_idle(&mut stuck, &mut other);
        let running = thread::spawn(move || {
            stuck.leave_idle();
            stuck.begin_batch(&mut vec![1], true);
        });
        other.park();
        other.leave_idle();
        other.run_until(1);
        running.join().unwrap();
    });
}

/// A worker that waits for the last task is unparked when that task ends, on whichever thread it ends and whichever
/// thread cancels the tasks. After that the registry refuses tasks.
#[test]
fn last_task_unparks_waiting_worker() {
    model(|| {
        let (unparker, waker) = unparker();
        let queues = Arc::new(Queues::<u32, u32>::new(vec![waker, Waker::noop().clone()]));
        let tasks = Arc::new(TaskRegistry::new(2, IdSource::new(), Attention::NONE));
        let insert = |index| tasks.insert(&Arc::new(()), index, new(Kind::Shared), |_| (Waker::noop().clone(), ()));
        let ending = [insert(0), insert(1)].map(|Inserted { record, .. }| {
            let (queues, tasks) = (queues.clone(), tasks.clone());
            thread::spawn(move || {
                if tasks.remove::<SHARED>(&record) {
                    queues.unpark_all();
                }
            })
        });
        let cancel_all = |queues: &Queues<u32, u32>, tasks: &TaskRegistry<()>| {
            if tasks.cancel_all() {
                queues.unpark_all();
            }
        };
        let cancelling = thread::spawn({
            let (queues, tasks) = (queues.clone(), tasks.clone());
            move || cancel_all(&queues, &tasks)
        });
        // Each worker does that at its end.
        cancel_all(&queues, &tasks);
        let queue = &queues.remote(0).queue;
        while !tasks.is_dead() {
            // A worker looks for its next entry, which takes the notice of the last task's end too. So it looks once
            // more before it blocks.
            queue.drain(&mut Vec::new());
            if !tasks.is_dead() {
                park(queue, &unparker);
            }
        }
        ending.into_iter().chain([cancelling]).for_each(|thread| thread.join().unwrap());
        assert!(insert(0).is_refused, "a dead registry must refuse tasks");
    });
}

fn new(kind: Kind) -> New {
    New { kind, location: Location::caller(), queue: 0, now: Stamp::from_bits(0), id: EarlyId::NONE }
}

/// The states of a local task, as async-task has them.
const WAITING: u8 = 0;
const SCHEDULED: u8 = 1;
const RUNNING: u8 = 2;
/// The task was woken while it runs. The worker schedules it again, unless it is done.
const RUNNING_WOKEN: u8 = 3;
const DONE: u8 = 4;

/// A local task that waits until it is cancelled.
struct LocalTask {
    state: AtomicU8,
    /// The queue of the only worker that may run or drop the task.
    queue: Arc<RemoteQueue<LocalEntry>>,
    /// An entry was dropped without being run. Not a panic, because a wake runs where panics are contained.
    was_dropped: AtomicBool,
}

/// The entry of a local task that is scheduled.
struct LocalEntry {
    task: Arc<LocalTask>,
    was_run: bool,
}

impl LocalTask {
    fn push(self: Arc<Self>) {
        let queue = self.queue.clone();
        queue.push(LocalEntry { task: self, was_run: false });
    }
}

impl Wake for LocalTask {
    fn wake(self: Arc<Self>) {
        let woken = |state| match state {
            WAITING => Some(SCHEDULED),
            RUNNING => Some(RUNNING_WOKEN),
            DONE => None,
            // Written once more, so that the poll sees what came before this wake.
            scheduled => Some(scheduled),
        };
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, woken) == Ok(WAITING) {
            self.push();
        }
    }
}

impl LocalEntry {
    /// Polls the task. A task that is cancelled leaves the registry first, and is done after that.
    fn run(mut self, tasks: &TaskRegistry<()>, record: &Record<()>) {
        self.was_run = true;
        let task = self.task.clone();
        assert_eq!(task.state.swap(RUNNING, Ordering::AcqRel), SCHEDULED, "only a scheduled task has an entry");
        if record.attention().cancelled().is_some() {
            tasks.remove::<LOCAL>(record);
            task.state.swap(DONE, Ordering::AcqRel);
            return;
        }
        let polled = |state| Some(if state == RUNNING { WAITING } else { SCHEDULED });
        if task.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, polled) == Ok(RUNNING_WOKEN) {
            task.push();
        }
    }
}

impl Drop for LocalEntry {
    fn drop(&mut self) {
        if !self.was_run {
            self.task.was_dropped.store(true, Ordering::Relaxed);
        }
    }
}

/// A local task is never dropped on another thread. A push to a closed queue would drop it there, so no push may come
/// after the worker has cancelled the tasks, run until none is left, and closed its queue.
#[test]
fn local_task_stays_on_its_thread() {
    model(|| {
        let (unparker, waker) = unparker();
        let queue = Arc::new(RemoteQueue::new(waker));
        let tasks = TaskRegistry::new(1, IdSource::new(), Attention::NONE);
        tasks.open_local(0);
        let Inserted { record, is_refused, made: task, .. } = tasks.insert(&Arc::new(()), 0, new(Kind::Local), |_| {
            let (state, was_dropped) = (AtomicU8::new(WAITING), AtomicBool::new(false));
            let task = Arc::new(LocalTask { state, queue: queue.clone(), was_dropped });
            (Waker::from(task.clone()), task)
        });
        assert!(!is_refused);
        let waking = thread::spawn({
            let task = task.clone();
            move || task.wake()
        });
        tasks.cancel_all();
        let mut entries = Vec::new();
        while !tasks.is_dead() {
            park(&queue, &unparker);
            queue.drain(&mut entries);
            entries.drain(..).for_each(|entry: LocalEntry| entry.run(&tasks, &record));
        }
        queue.close();
        waking.join().unwrap();
        assert!(!task.was_dropped.load(Ordering::Relaxed), "an entry was dropped instead of run");
        assert_eq!(task.state.load(Ordering::Relaxed), DONE, "the task must have ended");
    });
}
