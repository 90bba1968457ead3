//! A model of workers that steal from each other: for the unit test below and the fuzz target `stealing`.
//!
//! The workers are simulated. Each goes through the steps of the loop of `runtime/worker.rs`, on the real queues and
//! with the real [`Stealer`], and a script says which worker makes its next step and when time passes. Some entries
//! keep their worker for long, or for ever, and some yield again and again. In the end all workers that can make steps
//! make them. Then each entry that any worker may run must have been run, as long as one worker is not stuck for ever.
//! Before an entry that is not stolen and does not give way, at most about four times as many others run as were queued
//! when it came. The script may also choose a seed, which shuffles the entries. Each script is run without timers that
//! wake a worker later, and with them.
//!
//! A batch ends early if its entries take long, and the next one has one entry. The sizes between that and the most are
//! not those of `runtime/batch.rs`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use super::overdue::Overdue;
use super::queues::Queues;
use super::stealer::Stealer;
use crate::sync::UnparkTimer;

/// The entries of a batch, at most.
const BATCH: usize = 64;

/// How long a batch lasts at most, but for the last entry.
const LONGEST: Duration = Duration::from_micros(1500);

/// How often an entry that yields does so.
const YIELDS: u32 = 40;

/// How long it keeps its worker each time.
const PIECE: Duration = Duration::from_millis(3);

/// How long an entry may wait at most: a stuck worker is noticed, and what was spawned on it is left to it for a while.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long the sockets of a stuck worker may wait at most.
const HELPED: Duration = Duration::from_millis(20);

/// Runs `script`, two bytes a step. The time begins at `start`.
///
/// # Panics
/// Panics if an entry is lost, or waits beside a worker that could run it, or if no worker helps one that is stuck.
#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "public to the fuzz targets"))]
pub fn run(script: &[u8], start: Instant) {
    let Some((first, script)) = script.split_first() else { return };
    let seed = first / 3;
    for has_timers in [false, true] {
        let mut world = World::new(usize::from(first % 3) + 2, (seed > 0).then_some(seed.into()), start);
        if has_timers {
            let timers = world.workers.iter().map(|worker| worker.unparked.clone() as Arc<dyn UnparkTimer>);
            world.queues.set_unpark_timers(timers);
        }
        for step in script.chunks_exact(2) {
            world.apply(Op::from_bytes(step[0], step[1]));
        }
        world.finish();
    }
}

/// One step of a script, for the worker of a number.
enum Op {
    /// The worker goes on with its loop, so many steps.
    Step(usize, usize),
    /// Another thread queues an entry that any worker may run.
    Push(usize, Kind),
    /// An entry is spawned on the worker.
    Spawn(usize, Kind),
    /// Another thread queues an entry that only this worker may run.
    PushRemote(usize, Kind),
    /// The worker wakes an entry while it looks at the kernel.
    Wake(usize, Kind),
    /// Time passes, and no worker makes a step.
    Advance(Duration),
    /// Time passes, and all workers go on.
    GoOn(Duration),
}

impl Op {
    fn from_bytes(choice: u8, argument: u8) -> Self {
        let (worker, kind) = (usize::from(choice >> 4), Kind::from_byte(argument));
        match choice % 16 {
            0..=6 => Self::Step(worker, usize::from(argument % 32) + 1),
            7..=9 => Self::Push(worker, kind),
            10 | 11 => Self::Spawn(worker, kind),
            12 => Self::PushRemote(worker, kind),
            13 => Self::Wake(worker, kind),
            14 => Self::Advance(Duration::from_micros(100) * u32::from(argument)),
            _ => Self::GoOn(Duration::from_millis(1) * u32::from(argument % 32)),
        }
    }
}

/// An entry's behaviour: how long it keeps its worker, and what it wakes.
#[derive(Clone, Copy)]
struct Kind {
    /// `None`: for ever.
    time: Option<Duration>,
    wakes: u8,
    /// The entries that it wakes give way, as a task that has used up its budget.
    gives_way: bool,
    /// It yields so often.
    yields: u32,
}

impl Kind {
    fn from_byte(byte: u8) -> Self {
        let time = match byte & 15 {
            0..=9 => Some(Duration::ZERO),
            10 | 11 => Some(Duration::from_micros(300)),
            12 | 13 => Some(PIECE),
            14 => Some(Duration::from_millis(70)),
            _ => None,
        };
        let yields = if time == Some(PIECE) && byte & 48 == 32 { YIELDS } else { 0 };
        Self { time, wakes: byte >> 6, gives_way: byte & 48 == 48, yields }
    }
}

/// An entry of a queue. It must be run before it is dropped, or be dropped by a queue that closes.
struct Entry {
    kind: Kind,
    /// The worker that alone may run it.
    only: Option<usize>,
    turn: Turn,
    was_run: Cell<bool>,
    counts: Rc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// The entries that are in a queue.
    queued: Cell<usize>,
    /// How often they will yield.
    yields: Cell<u32>,
    /// The queues are being closed.
    is_closing: Cell<bool>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.counts.queued.set(self.counts.queued.get() - 1);
        self.counts.yields.set(self.counts.yields.get() - self.kind.yields);
        if !self.was_run.get() && !self.counts.is_closing.get() && !std::thread::panicking() {
            panic!("an entry was dropped and not run");
        }
    }
}

/// A worker's place in its loop.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Place {
    Begin,
    /// So many entries of the batch are left.
    Run(usize),
    EndBatch,
    /// It has found nothing, and is about to block.
    Idle,
    Blocked(Option<Instant>),
    Drain,
    Leave,
}

struct Worker {
    stealer: Stealer,
    place: Place,
    /// The entries that only this worker may run.
    local: Vec<Entry>,
    deferred: Vec<Entry>,
    /// The entry that it is in, to be queued after that.
    yielding: Option<Entry>,
    was_local: bool,
    /// The number of the entry that gives way next.
    gave_way: u64,
    overdue: Overdue,
    ran: u64,
    /// The entries that it has run in all.
    ran_in_all: u64,
    /// The most entries of this batch.
    batch: usize,
    batch_start: Instant,
    /// It is in an entry until then. `None`: for ever.
    busy: Option<Instant>,
    unparked: Arc<Unparked>,
}

/// A worker's block ends when it is unparked or its timer expires.
struct Unparked {
    is_unparked: AtomicBool,
    /// When its timer expires. `NEVER` if it is not set.
    expires: AtomicU64,
    /// The nanoseconds since the model's start.
    clock: Arc<AtomicU64>,
}

const NEVER: u64 = u64::MAX;

impl Unparked {
    fn new(clock: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { is_unparked: AtomicBool::new(false), expires: AtomicU64::new(NEVER), clock: clock.clone() })
    }

    /// Whether the worker was unparked, or its timer has expired, since the last call.
    fn take(&self) -> bool {
        let has_expired = self.expires.load(Ordering::Relaxed) <= self.clock.load(Ordering::Relaxed);
        if has_expired {
            self.cancel();
        }
        self.is_unparked.swap(false, Ordering::Relaxed) || has_expired
    }
}

impl Wake for Unparked {
    fn wake(self: Arc<Self>) {
        self.is_unparked.store(true, Ordering::Relaxed);
    }
}

impl UnparkTimer for Unparked {
    fn set(&self, after: Duration) -> bool {
        let expires = self.clock.load(Ordering::Relaxed) + after.as_nanos() as u64;
        self.expires.store(expires, Ordering::Relaxed);
        true
    }

    fn cancel(&self) {
        self.expires.store(NEVER, Ordering::Relaxed);
    }
}

/// When an entry must run at the latest, unless it is stolen.
struct Turn {
    /// The worker to which it was pushed.
    worker: usize,
    /// How many entries that may have run in all before this one.
    latest: u64,
    /// How often others had stolen from it.
    thefts: u64,
}

struct World {
    queues: Queues<Entry, Entry>,
    workers: Vec<Worker>,
    /// When another worker last turned the reactor of this one.
    helped: Vec<Instant>,
    /// How often others have stolen from this one.
    thefts: Vec<u64>,
    now: Instant,
    /// The same, for the timers.
    clock: Arc<AtomicU64>,
    is_seeded: bool,
    counts: Rc<Counts>,
}

impl World {
    fn new(count: usize, seed: Option<u64>, now: Instant) -> Self {
        let clock = Arc::default();
        let unparked: Vec<_> = (0..count).map(|_| Unparked::new(&clock)).collect();
        let queues = Queues::new(unparked.iter().map(|unparked| Waker::from(unparked.clone())).collect());
        let worker = |unparked| Worker {
            stealer: Stealer::new(count, now),
            place: Place::Begin,
            local: Vec::new(),
            deferred: Vec::new(),
            yielding: None,
            was_local: false,
            gave_way: 0,
            overdue: Overdue::default(),
            ran: 0,
            ran_in_all: 0,
            batch: BATCH,
            batch_start: now,
            busy: Some(now),
            unparked,
        };
        let mut workers: Vec<Worker> = unparked.into_iter().map(worker).collect();
        if let Some(seed) = seed {
            queues.seed(seed);
            workers.iter_mut().enumerate().for_each(|(index, worker)| worker.stealer.seed(seed, index));
        }
        let is_seeded = seed.is_some();
        Self {
            queues,
            workers,
            helped: vec![now; count],
            thefts: vec![0; count],
            now,
            clock,
            is_seeded,
            counts: Rc::default(),
        }
    }

    /// An entry that is pushed to worker `index`.
    fn entry(&self, kind: Kind, index: usize) -> Entry {
        self.counts.queued.set(self.counts.queued.get() + 1);
        self.counts.yields.set(self.counts.yields.get() + kind.yields);
        let turn = self.turn(index);
        Entry { kind, only: None, turn, was_run: Cell::new(false), counts: self.counts.clone() }
    }

    /// The turn of the last entry that is pushed to worker `index`.
    fn turn(&self, index: usize) -> Turn {
        // Local entries take turns with others, and so do spawned ones with those that are ready. What is pushed later
        // comes first in its turn only. A seed changes the order.
        let most = 4 * self.counts.queued.get() as u64 + 8;
        let latest = if self.is_seeded { u64::MAX } else { self.workers[index].ran_in_all + most };
        Turn { worker: index, latest, thefts: self.thefts[index] }
    }

    fn apply(&mut self, op: Op) {
        let count = self.workers.len();
        match op {
            Op::Step(worker, steps) => {
                for _ in 0..steps {
                    self.step(worker % count);
                }
            }
            Op::Push(worker, kind) => self.queues.push_stealable(worker % count, self.entry(kind, worker % count)),
            Op::Spawn(worker, kind) => self.queues.spawn_on(worker % count, self.entry(kind, worker % count)),
            Op::PushRemote(worker, kind) => {
                let worker = worker % count;
                let mut entry = self.entry(kind, worker);
                entry.only = Some(worker);
                // The worker takes it after the batch, unless nothing else is left in the batch.
                entry.turn.latest = entry.turn.latest.saturating_add(BATCH as u64);
                self.queues.remote(worker).queue.push(entry);
            }
            Op::Wake(worker, kind) => {
                let entry = self.entry(kind, worker % count);
                let worker = &mut self.workers[worker % count];
                // The place between two batches, where the worker looks at the kernel.
                if worker.place == Place::Drain {
                    worker.deferred.push(entry);
                } else {
                    entry.was_run.set(true);
                }
            }
            Op::Advance(time) => self.advance(time),
            Op::GoOn(time) => {
                let end = self.now + time;
                while self.now < end {
                    self.go_on();
                }
            }
        }
    }

    /// Lets a worker make one step, unless it is in an entry or blocked. Returns whether it made one.
    fn step(&mut self, index: usize) -> bool {
        if self.workers[index].busy.is_none_or(|end| end > self.now) {
            return false;
        }
        if let Some(entry) = self.workers[index].yielding.take() {
            self.push_yielded(index, entry);
        }
        if let Place::Run(left @ 1..) = self.workers[index].place {
            self.run_next(index, left);
            return true;
        }
        let (queues, now) = (&self.queues, self.now);
        let worker = &mut self.workers[index];
        let queue = &queues.remote(index).queue;
        let may_steal = matches!(worker.place, Place::Begin | Place::Run(_) | Place::EndBatch);
        let victims = queues.others(index).filter(|_| may_steal);
        let queued: Vec<_> = victims.map(|other| (other, queues.queued(other))).collect();
        worker.place = match worker.place {
            Place::Begin => {
                let has_local = !worker.local.is_empty();
                let content = worker.stealer.begin_batch(queues, index, &mut worker.deferred, has_local, || now);
                if content.give_way {
                    worker.begin_count(queues, index);
                }
                worker.batch_start = now;
                Place::Run(worker.batch)
            }
            Place::Run(_) | Place::EndBatch => {
                let is_late = now - worker.batch_start >= LONGEST;
                worker.batch = if is_late { 1 } else { BATCH.min(2 * worker.batch) };
                worker.stealer.add_work(std::mem::take(&mut worker.ran));
                while let Some(stuck) = worker.stealer.next_stuck() {
                    self.helped[stuck] = now;
                }
                let is_idle =
                    worker.local.is_empty() && worker.stealer.prepare_idle(queues, index, &mut worker.deferred, || now);
                if is_idle { Place::Idle } else { Place::Drain }
            }
            Place::Idle if queue.prepare_park() => {
                Place::Blocked(worker.stealer.watch_timeout().map(|timeout| now + timeout))
            }
            Place::Idle => Place::Drain,
            Place::Blocked(until) => {
                if !worker.unparked.take() && until.is_none_or(|until| until > now) {
                    return false;
                }
                Place::Drain
            }
            Place::Drain => {
                queue.drain(&mut worker.local);
                Place::Leave
            }
            Place::Leave => {
                worker.stealer.leave_idle(queues);
                Place::Begin
            }
        };
        for (other, before) in queued {
            self.thefts[other] += u64::from(queues.queued(other) < before);
        }
        true
    }

    /// Queues an entry that has yielded. Others may have been pushed while it ran.
    fn push_yielded(&mut self, index: usize, mut entry: Entry) {
        entry.turn = self.turn(index);
        if entry.only.is_some() {
            self.workers[index].local.push(entry);
        } else {
            self.push_gave_way(index, entry);
        }
    }

    /// Queues an entry that comes after all others.
    fn push_gave_way(&mut self, index: usize, mut entry: Entry) {
        entry.turn.latest = u64::MAX;
        let number = self.workers[index].gave_way;
        self.workers[index].gave_way += 1;
        self.queues.push_gave_way(index, entry, number);
    }

    /// Runs the next entry of a batch of which so many are left, or ends it.
    fn run_next(&mut self, index: usize, left: usize) {
        let (queues, worker) = (&self.queues, &mut self.workers[index]);
        let has_ready = !worker.local.is_empty() || queues.remote(index).has_stealable();
        let is_cut = left < worker.batch && has_ready && self.now - worker.batch_start >= LONGEST;
        let next = if is_cut { None } else { worker.next(queues, index) };
        worker.place = if next.is_some() { Place::Run(left - 1) } else { Place::EndBatch };
        if let Some(entry) = next {
            self.run(index, &entry);
        }
    }

    /// Runs an entry on a worker.
    fn run(&mut self, index: usize, entry: &Entry) {
        assert!(!entry.was_run.replace(true), "an entry was run twice");
        assert!(entry.only.is_none_or(|only| only == index), "an entry was run by another worker than its own");
        let Turn { worker, latest, thefts } = entry.turn;
        let was_stolen = worker != index || thefts != self.thefts[index];
        let is_late = !was_stolen && self.workers[index].ran_in_all > latest;
        assert!(!is_late, "worker {index} has run others again and again before an entry");
        let Kind { time, wakes, gives_way, yields } = entry.kind;
        for _ in 0..wakes {
            let kind = Kind { time: Some(Duration::ZERO), wakes: 0, gives_way: false, yields: 0 };
            let woken = self.entry(kind, index);
            if gives_way {
                self.push_gave_way(index, woken);
            } else {
                self.queues.push(index, woken);
            }
        }
        if let Some(yields) = yields.checked_sub(1) {
            let kind = Kind { yields, wakes: 0, ..entry.kind };
            let mut again = self.entry(kind, index);
            again.only = entry.only;
            self.workers[index].yielding = Some(again);
        }
        let worker = &mut self.workers[index];
        worker.ran += 1;
        worker.ran_in_all += 1;
        worker.busy = time.map(|time| self.now + time);
    }

    /// Lets all workers go on, and time pass. Then no entry may be left that a worker could run.
    fn finish(&mut self) {
        // The time of all entries that are queued comes on top.
        let Counts { queued, yields, .. } = &*self.counts;
        let longest = Duration::from_millis(70) * queued.get() as u32 + PIECE * yields.get() + PATIENCE;
        let end = self.now + longest;
        while self.now < end && self.counts.queued.get() > 0 {
            self.go_on();
        }
        let may_run = self.workers.iter().any(|worker| worker.busy.is_some());
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let place = worker.place;
            if may_run {
                assert!(!self.queues.remote(index).has_stealable(), "worker {index}, at {place:?}, keeps an entry");
                assert!(worker.deferred.is_empty(), "worker {index}, at {place:?}, keeps a deferred entry");
            }
            if worker.busy.is_some() {
                self.queues.remote(index).queue.drain(&mut worker.local);
                assert!(worker.local.is_empty(), "worker {index}, at {place:?}, keeps an entry of its own");
            }
        }
        self.check_help();
        // A worker that is stuck for ever keeps what only it may run.
        self.counts.is_closing.set(true);
        (0..self.workers.len()).for_each(|index| self.queues.close(index));
        self.workers.clear();
        assert_eq!(self.counts.queued.get(), 0, "a closed queue keeps entries");
    }

    /// Checks that the sockets and timers of workers that are stuck for ever do not wait: an idle worker looks after
    /// them again and again, or sleeps until they have an event.
    fn check_help(&mut self) {
        let end = self.now + PATIENCE;
        while self.now < end {
            self.go_on();
        }
        if self.workers.iter().all(|worker| worker.busy.is_none()) {
            return;
        }
        for (index, worker) in self.workers.iter().enumerate() {
            let is_helped = self.now - self.helped[index] < HELPED;
            let is_watched = self.workers.iter().any(|other| other.stealer.beside_stuck().any(|stuck| stuck == index));
            assert!(worker.busy.is_some() || is_helped || is_watched, "worker {index} is stuck, and no other helps it");
        }
    }

    /// Lets all workers go on until each is in an entry or blocked, and a millisecond pass.
    fn go_on(&mut self) {
        while (0..self.workers.len()).filter(|index| self.step(*index)).count() > 0 {}
        self.advance(Duration::from_millis(1));
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.clock.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Worker {
    /// Counts the entries that run before those that give way, as the executor does.
    fn begin_count(&mut self, queues: &Queues<Entry, Entry>, index: usize) {
        if !self.overdue.is_idle() {
            return;
        }
        let Some(stealable) = queues.remote(index).count(false) else { return };
        queues.drain_in_batch(index, &mut self.local);
        if self.local.len() + stealable > 0 {
            self.overdue.begin_count(self.local.len(), self.gave_way);
        }
    }

    /// The next of the local entries and of those that can be stolen, in turn. Those that give way come last.
    fn next(&mut self, queues: &Queues<Entry, Entry>, index: usize) -> Option<Entry> {
        if let Some(end) = self.overdue.take_turn(|| queues.remote(index).counted()) {
            let next = queues.remote(index).pop_gave_way(end);
            if next.is_some() {
                return next;
            }
            self.overdue.stop();
            self.begin_count(queues, index);
        }
        self.was_local = !self.was_local && !self.local.is_empty();
        if self.was_local {
            self.overdue.count_local();
            return Some(self.local.remove(0));
        }
        let stealable = queues.remote(index).pop_stealable(|| false);
        if stealable.is_some() {
            return stealable;
        }
        if self.local.is_empty() {
            queues.drain_in_batch(index, &mut self.local);
        }
        if self.local.is_empty() {
            self.overdue.stop();
            return queues.remote(index).pop_gave_way(u64::MAX);
        }
        self.overdue.count_local();
        Some(self.local.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;
    use std::time::Instant;

    use crate::random_scripts::random_scripts;

    /// An entry that any worker may run does not wait for one that is stuck, in scripts that the fuzz target has found
    /// and in random ones.
    #[test]
    fn workers_leave_no_entry() {
        let start = Instant::now();
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus/stealing");
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            let file = file.expect("an entry of the corpus").path();
            // If the test fails, the last line shows its script.
            println!("{}", file.display());
            super::run(&std::fs::read(file).expect("a script"), start);
        }
        random_scripts(repeat_n(201, 2_000)).for_each(|script| super::run(&script, start));
    }
}
