//! Remote queue: the queue through which other threads give a worker something to run.
//!
//! # States
//! ```text
//!          prepare_spin         prepare_park
//!   AWAKE ------------> SPINNING -----------> PARKED   (or park at once)
//!     ^  \                 |                    |
//!     |   \ push           | push, wake_idle    | push, wake_idle: and unpark
//!     |    v               v                    v
//!     +-- NOTIFIED <-------+--------------------+
//!   drain, from any state
//! ```
//! * AWAKE: the worker runs tasks, and will come here before it blocks.
//! * SPINNING: it has nothing to run, and will look at this word again before it blocks. It may spin meanwhile.
//! * PARKED: it blocks, or is about to. Another thread ends that by the worker's unparker or its unpark
//!   timer.
//! * NOTIFIED: since it last drained, something was pushed here or to its stealable queue, or it was woken to look at
//!   other workers or because its runtime ends.
//!
//! [`RemoteQueue::push`] pushes under the lock, then swaps the state to NOTIFIED, and unparks only if the state was
//! PARKED. A storm of pushes unparks once, and a worker that is awake is not unparked at all.
//!
//! # The race
//! The worker finds the queue empty, a push comes, and the worker blocks while the entry lies there. So the worker
//! parks by a compare-and-swap from AWAKE or SPINNING. If the push's swap came first, the worker does not block. If it
//! comes after, it sees PARKED and unparks. An unpark that comes before the worker really blocks is kept by the
//! unparker, and ends the block at once.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::memory::shrink;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, UnparkTimer};

const AWAKE: u8 = 0;
const SPINNING: u8 = 1;
const PARKED: u8 = 2;
const NOTIFIED: u8 = 3;

/// Whether a worker has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idleness {
    Awake,
    Spinning,
    Blocked,
}

/// The queue of one worker for other threads.
pub(crate) struct RemoteQueue<T> {
    state: AtomicU8,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    entries: Vec<T>,
    /// How many were pushed.
    pushes: u64,
    /// Ends the worker's block. `None` once the queue is closed: the unparker holds a descriptor, which must not stay
    /// open while tasks and threads still refer to a worker that has ended.
    unparker: Option<Waker>,
    /// Ends the worker's block after a while. `None` also if the worker has none.
    unpark_timer: Option<Arc<dyn UnparkTimer>>,
}

impl<T> RemoteQueue<T> {
    pub(crate) fn new(unparker: Waker) -> Self {
        let inner = Inner { entries: Vec::new(), pushes: 0, unparker: Some(unparker), unpark_timer: None };
        Self { state: AtomicU8::new(AWAKE), inner: Mutex::new(inner) }
    }

    /// Gives the worker a timer that can unpark it.
    pub(super) fn set_unpark_timer(&self, timer: Arc<dyn UnparkTimer>) {
        self.inner.lock().unpark_timer = Some(timer);
    }

    /// Gives the worker an entry. If the worker has ended, the entry is dropped, here.
    pub(crate) fn push(&self, entry: T) {
        let mut inner = self.inner.lock();
        if inner.unparker.is_none() {
            // After the lock: an entry may be a task, whose drop is foreign code.
            drop(inner);
            return drop(entry);
        }
        inner.entries.push(entry);
        inner.pushes += 1;
        drop(inner);
        self.notify();
    }

    /// How many entries were pushed.
    pub(super) fn pushes(&self) -> u64 {
        self.inner.lock().pushes
    }

    /// Makes the worker look here and at its stealable queue. Returns whether it was idle. If it was not, it looks by
    /// itself before it blocks.
    pub(super) fn notify(&self) -> bool {
        match self.state.swap(NOTIFIED, Ordering::AcqRel) {
            PARKED => self.unpark(),
            SPINNING => {}
            _ => return false,
        }
        true
    }

    /// Wakes the worker if it is idle. Returns whether it was.
    pub(super) fn wake_idle(&self) -> bool {
        let if_idle = |state| matches!(state, PARKED | SPINNING).then_some(NOTIFIED);
        let previous = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, if_idle);
        if previous == Ok(PARKED) {
            self.unpark();
        }
        previous.is_ok()
    }

    /// Sets a timer that wakes the worker, which is parked, after this time. Returns `false` if the system cannot.
    pub(super) fn wake_after(&self, after: Duration) -> bool {
        self.unpark_timer().is_some_and(|timer| timer.set(after))
    }

    /// Cancels the timer of [`wake_after`](RemoteQueue::wake_after).
    pub(super) fn cancel_wake(&self) {
        if let Some(timer) = self.unpark_timer() {
            timer.cancel();
        }
    }

    fn unpark_timer(&self) -> Option<Arc<dyn UnparkTimer>> {
        self.inner.lock().unpark_timer.clone()
    }

    /// Whether the worker has something to do, as far as this state tells.
    pub(super) fn idleness(&self) -> Idleness {
        match self.state.load(Ordering::Acquire) {
            SPINNING => Idleness::Spinning,
            PARKED => Idleness::Blocked,
            _ => Idleness::Awake,
        }
    }

    /// How many entries wait here.
    pub(super) fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }

    fn unpark(&self) {
        let unparker = self.inner.lock().unparker.clone();
        if let Some(unparker) = unparker {
            unparker.wake();
        }
    }

    /// Whether the worker was notified since it last [drained](RemoteQueue::drain).
    pub(crate) fn is_notified(&self) -> bool {
        self.state.load(Ordering::Acquire) == NOTIFIED
    }

    /// The worker has nothing to run, and will look here again before it blocks. `false` if it was notified.
    pub(crate) fn prepare_spin(&self) -> bool {
        self.prepare(SPINNING)
    }

    /// The worker is about to block. `false` if it was notified, and must not.
    pub(crate) fn prepare_park(&self) -> bool {
        self.prepare(PARKED)
    }

    fn prepare(&self, state: u8) -> bool {
        match self.state.compare_exchange(AWAKE, state, Ordering::AcqRel, Ordering::Acquire) {
            // From spinning to blocking, or to spinning once more.
            Err(SPINNING) => self.state.compare_exchange(SPINNING, state, Ordering::AcqRel, Ordering::Acquire).is_ok(),
            awake => awake.is_ok(),
        }
    }

    /// The worker is awake again. Appends what was pushed to `queue`, and returns how many entries that are.
    pub(crate) fn drain(&self, queue: &mut Vec<T>) -> usize {
        // The state is reset first. In the other order, this swap could erase the NOTIFIED of a push that came after
        // the entries were taken.
        if self.state.swap(AWAKE, Ordering::AcqRel) != NOTIFIED {
            return 0;
        }
        let entries = &mut self.inner.lock().entries;
        let count = entries.len();
        queue.append(entries);
        count
    }

    /// Gives memory back that a spike has left.
    pub(super) fn shrink(&self) {
        shrink(&mut self.inner.lock().entries);
    }

    /// Puts `entries`, which the worker leaves unrun, before all others.
    pub(crate) fn push_front(&self, entries: Vec<T>) {
        if entries.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        let mut newer = std::mem::replace(&mut inner.entries, entries);
        inner.entries.append(&mut newer);
        drop(inner);
        self.state.store(NOTIFIED, Ordering::Release);
    }

    /// Refuses pushes from now on, and drops the entries that are left.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        let unparker = (inner.unparker.take(), inner.unpark_timer.take());
        let left = std::mem::take(&mut inner.entries);
        drop(inner);
        drop((unparker, left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Unparks(AtomicUsize);
    impl Wake for Unparks {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn queue() -> (RemoteQueue<u32>, Arc<Unparks>) {
        let unparks = Arc::new(Unparks(AtomicUsize::new(0)));
        (RemoteQueue::new(Waker::from(unparks.clone())), unparks)
    }

    fn drained(queue: &RemoteQueue<u32>) -> Vec<u32> {
        let mut drained = Vec::new();
        queue.drain(&mut drained);
        drained
    }

    /// An unpark is a system call. A worker that is awake needs none, and a storm of pushes needs one.
    #[test]
    fn only_first_push_unparks() {
        let (queue, unparks) = queue();
        queue.push(1);
        assert_eq!(unparks.0.load(Ordering::SeqCst), 0, "an awake worker was unparked");
        assert_eq!(drained(&queue), [1]);
        assert!(queue.prepare_park());
        for entry in 2..100 {
            queue.push(entry);
        }
        assert_eq!(unparks.0.load(Ordering::SeqCst), 1, "a storm of pushes must unpark once");
        assert_eq!(drained(&queue).len(), 98);
    }

    /// A spinning worker looks at the queue itself: to unpark it would be a system call for nothing.
    #[test]
    fn push_does_not_unpark_spinning_worker() {
        let (queue, unparks) = queue();
        assert!(queue.prepare_spin());
        queue.push(1);
        assert!(queue.is_notified(), "the spinning worker must see the push");
        assert_eq!(unparks.0.load(Ordering::SeqCst), 0);
        assert_eq!(drained(&queue), [1]);
    }

    /// The race in the module's doc: the push that comes before the block.
    #[test]
    fn worker_does_not_park_beside_push() {
        let (queue, _) = queue();
        queue.push(1);
        assert!(!queue.prepare_park(), "the worker would block beside an entry");
        assert!(!queue.prepare_spin());
        assert_eq!(drained(&queue), [1]);
        assert!(queue.prepare_park(), "the queue is empty now");
    }

    /// Entries that a call leaves unrun are older than all others.
    #[test]
    fn unrun_entries_come_first() {
        let (queue, _) = queue();
        queue.push(3);
        queue.push_front(vec![1, 2]);
        assert!(!queue.prepare_park());
        assert_eq!(drained(&queue), [1, 2, 3]);
    }

    /// No worker would ever run an entry of a closed queue.
    #[test]
    fn closed_queue_drops_its_entries() {
        let queue = RemoteQueue::new(Waker::noop().clone());
        let entry = Arc::new(());
        queue.push(entry.clone());
        queue.close();
        queue.push(entry.clone());
        assert_eq!(Arc::strong_count(&entry), 1, "an entry was kept");
    }

    /// Two threads push while a third parks and drains. Each time that the worker parks on an empty queue, the next
    /// push unparks it.
    #[test]
    fn threads_lose_no_push() {
        const EACH: u32 = 20_000;
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let queue = Arc::new(RemoteQueue::new(Waker::from(Arc::new(Unpark(std::thread::current())))));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..EACH).for_each(|entry| queue.push(entry)));
            }
            let mut drained = Vec::new();
            while drained.len() < 2 * EACH as usize {
                if queue.prepare_park() {
                    let before = std::time::Instant::now();
                    while !queue.is_notified() {
                        std::thread::park_timeout(std::time::Duration::from_secs(60));
                        assert!(before.elapsed().as_secs() < 60, "a push did not unpark the worker");
                    }
                }
                queue.drain(&mut drained);
            }
            assert_eq!(drained.len(), 2 * EACH as usize);
        });
    }
}
