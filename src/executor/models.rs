//! Models: what threads do to each other here, tried in all the ways in which they can interleave.
//!
//! `RUSTFLAGS='--cfg kittiwake_loom' CARGO_TARGET_DIR=target-loom cargo test --release --lib models`
//!
//! A worker that blocks waits for its ring and nothing else. So a wake-up that is lost is a deadlock, which loom finds. Time is
//! a number that moves on with each look.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use loom::sync::Notify;
use loom::thread;

use super::inbox::Inbox;
use super::list::{Kind, TaskLists};
use super::queues::Queues;
use super::sharing::Sharing;

/// As tokio has it: with three, most models take hours and find no more.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new_multi_thread();
    builder.preemption_bound = Some(2);
    builder.check(run);
}

/// What a worker blocks on.
struct Ring(Notify);

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

fn ring() -> (Arc<Ring>, Waker) {
    let ring = Arc::new(Ring(Notify::new()));
    (ring.clone(), Waker::from(ring))
}

/// A worker that takes posts until it has `count`.
fn take_all(inbox: &Inbox<u32>, ring: &Ring, count: usize) -> Vec<u32> {
    let mut taken = Vec::new();
    while taken.len() < count {
        if inbox.park() {
            ring.0.wait();
        }
        inbox.take(&mut taken);
    }
    taken
}

#[test]
fn a_post_ends_the_block_whenever_it_comes() {
    model(|| {
        let (ring, waker) = ring();
        let inbox = Arc::new(Inbox::new(waker));
        let posting = [1, 2].map(|post| {
            let inbox = inbox.clone();
            thread::spawn(move || inbox.post(post).unwrap())
        });
        let mut taken = take_all(&inbox, &ring, 2);
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
        posting.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_post_is_seen_by_a_worker_that_polls_before_it_blocks() {
    model(|| {
        let (ring, waker) = ring();
        let inbox = Arc::new(Inbox::new(waker));
        let posting = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.post(1).unwrap()
        });
        let mut taken = Vec::new();
        if inbox.poll() && inbox.park() {
            ring.0.wait();
        }
        inbox.take(&mut taken);
        if taken.is_empty() {
            // It was rung for the state, and the post comes.
            taken = take_all(&inbox, &ring, 1);
        }
        assert_eq!(taken, [1]);
        posting.join().unwrap();
    });
}

#[test]
fn a_closed_inbox_loses_no_post() {
    model(|| {
        let inbox = Arc::new(Inbox::new(Waker::noop().clone()));
        let posting = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.post(1)
        });
        let left = inbox.close();
        let refused = posting.join().unwrap().is_err();
        assert_eq!(left.len() + usize::from(refused), 1, "it is left, or given back");
    });
}

/// A worker beside others, with its ring.
struct Modelled {
    queues: Arc<Queues<u32, u32>>,
    index: usize,
    ring: Arc<Ring>,
    sharing: Sharing,
    clock: Clock,
}

/// Each look at it is two milliseconds later: whoever has not moved between two looks is stuck.
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
    let rings: Vec<_> = (0..COUNT).map(|_| ring()).collect();
    let queues = Arc::new(Queues::new(rings.iter().map(|(_, waker)| waker.clone()).collect()));
    let start = Instant::now();
    std::array::from_fn(|index| Modelled {
        queues: queues.clone(),
        index,
        ring: rings[index].0.clone(),
        sharing: Sharing::new(COUNT, start),
        clock: Clock { start, looks: Cell::new(0) },
    })
}

impl Modelled {
    /// Begins a batch with `gathered` and runs the first for ever, if nobody took it for stuck before.
    fn run_and_be_stuck(&mut self, mut gathered: Vec<u32>) {
        self.begin(&mut gathered);
        self.queues.pop(self.index);
    }

    fn begin(&mut self, gathered: &mut Vec<u32>) {
        self.sharing.begin(&self.queues, self.index, gathered, false, || self.clock.now());
    }

    fn rest(&mut self) -> bool {
        self.sharing.rest(&self.queues, self.index, &mut Vec::new(), || self.clock.now())
    }

    fn rise(&mut self) {
        self.queues.remote(self.index).inbox.take(&mut Vec::new());
        self.sharing.rise(&self.queues);
    }

    /// Rests until there is something to run, and returns the first.
    fn next(&mut self) -> u32 {
        loop {
            if self.rest() {
                if self.sharing.watch().is_some() {
                    // The time it watches for is over.
                    thread::yield_now();
                } else if self.queues.remote(self.index).inbox.park() {
                    self.ring.0.wait();
                }
            }
            self.rise();
            self.begin(&mut Vec::new());
            if let Some(next) = self.queues.pop(self.index) {
                return next;
            }
        }
    }

    /// Runs what there is, and each ends at once, until it comes to `entry`.
    fn run_until(&mut self, entry: u32) {
        while self.next() != entry {}
    }
}

#[test]
fn what_is_pushed_behind_a_stuck_task_is_run_by_a_worker_that_goes_idle() {
    model(|| {
        let [mut stuck, mut other] = workers();
        let running = thread::spawn(move || {
            stuck.run_and_be_stuck(vec![1]);
            stuck.queues.push(stuck.index, 2);
        });
        other.run_until(2);
        running.join().unwrap();
    });
}

#[test]
fn what_is_gathered_behind_a_stuck_task_is_run_by_one_of_those_that_all_were_idle() {
    model(|| {
        let [mut stuck, mut other] = workers();
        let running = thread::spawn(move || {
            // Both are idle for a moment, so that perhaps nobody watches.
            stuck.rest();
            stuck.rise();
            stuck.run_and_be_stuck(vec![1, 2]);
        });
        other.next();
        running.join().unwrap();
    });
}

#[test]
fn a_post_to_a_stuck_worker_is_run_by_another() {
    model(|| {
        let [mut stuck, mut other] = workers();
        stuck.run_and_be_stuck(vec![1]);
        let posting = thread::spawn({
            let queues = stuck.queues.clone();
            move || queues.post(0, 2).unwrap()
        });
        other.run_until(2);
        posting.join().unwrap();
    });
}

#[test]
fn a_watcher_that_gets_work_of_its_own_has_another_look() {
    model(|| {
        let [mut stuck, mut watcher, mut third] = workers();
        // It watches, as one is busy.
        stuck.run_and_be_stuck(vec![1]);
        assert!(watcher.rest() && watcher.sharing.watch().is_some());
        let pushing = thread::spawn({
            let queues = stuck.queues.clone();
            move || queues.push(0, 2)
        });
        let watching = thread::spawn(move || {
            // Something comes for it, which it runs for ever.
            watcher.rise();
            watcher.run_and_be_stuck(vec![3]);
        });
        third.run_until(2);
        pushing.join().unwrap();
        watching.join().unwrap();
    });
}

/// Both are idle, and nobody watches.
fn all_idle(first: &mut Modelled, second: &mut Modelled) {
    assert!(first.rest() && second.rest());
    first.rise();
    assert!(first.rest());
    assert!(first.sharing.watch().is_none() && second.sharing.watch().is_none());
}

#[test]
fn what_is_posted_beside_something_placed_does_not_wait_for_it() {
    model(|| {
        let [mut stuck, mut other] = workers();
        all_idle(&mut stuck, &mut other);
        let posting = thread::spawn({
            let queues = stuck.queues.clone();
            move || {
                queues.place(0, 1).unwrap();
                queues.post(0, 2).unwrap();
            }
        });
        let running = thread::spawn(move || {
            if stuck.queues.remote(0).inbox.park() {
                stuck.ring.0.wait();
            }
            stuck.rise();
            // It runs one of them for ever.
            stuck.run_and_be_stuck(Vec::new());
        });
        if other.queues.remote(1).inbox.park() {
            other.ring.0.wait();
        }
        other.rise();
        other.begin(&mut Vec::new());
        if other.queues.pop(1).is_none() {
            other.next();
        }
        posting.join().unwrap();
        running.join().unwrap();
    });
}

#[test]
fn what_is_gathered_beside_an_entry_of_the_workers_own_does_not_wait_for_it() {
    model(|| {
        let [mut stuck, mut other] = workers();
        all_idle(&mut stuck, &mut other);
        let running = thread::spawn(move || {
            stuck.rise();
            // It runs its own entry for ever.
            stuck.sharing.begin(&stuck.queues, 0, &mut vec![1], true, || stuck.clock.now());
        });
        if other.queues.remote(1).inbox.park() {
            other.ring.0.wait();
        }
        other.rise();
        other.run_until(1);
        running.join().unwrap();
    });
}

#[test]
fn whoever_waits_for_the_last_task_hears_of_it() {
    model(|| {
        let (ring, waker) = ring();
        let queues = Arc::new(Queues::<u32, u32>::new(vec![waker, Waker::noop().clone()]));
        let lists = Arc::new(TaskLists::new(2));
        let admit = |list| lists.admit(list, Kind::Shared, |_| (Waker::noop().clone(), ())).0;
        let ending = [admit(0), admit(1)].map(|place| {
            let (queues, lists) = (queues.clone(), lists.clone());
            thread::spawn(move || {
                if lists.remove(place.slot) {
                    queues.ring_all();
                }
            })
        });
        let aborting = thread::spawn({
            let (queues, lists) = (queues.clone(), lists.clone());
            move || {
                if lists.abort_all() {
                    queues.ring_all();
                }
            }
        });
        // Each worker does that.
        if lists.abort_all() {
            queues.ring_all();
        }
        let inbox = &queues.remote(0).inbox;
        while !lists.are_dead() {
            if inbox.park() {
                ring.0.wait();
            }
            inbox.take(&mut Vec::new());
        }
        ending.into_iter().chain([aborting]).for_each(|thread| thread.join().unwrap());
        assert!(
            lists.admit(0, Kind::Shared, |_| (Waker::noop().clone(), ())).0.slot.key.is_none(),
            "it lets nobody in"
        );
    });
}
