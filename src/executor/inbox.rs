//! Inbox: how other threads give a worker something to run.
//!
//! # States
//! ```text
//!            poll               park
//!   AWAKE ---------> POLLING ---------> PARKED   (or park at once)
//!     ^  \              |                  |
//!     |   \ post        | post, call       | post, call: and ring
//!     |    v            v                  v
//!     +--- RUNG <-------+------------------+
//!    take
//! ```
//! * AWAKE: the worker runs tasks, and will come here before it blocks.
//! * POLLING: it has nothing to run and looks for it, and at this word as often.
//! * PARKED: it blocks, or is about to, and only the ring ends that.
//! * RUNG: something was posted since it last took everything, here or to its queue; or it was called to look at those of
//!   others.
//!
//! [`Inbox::post`] pushes under the lock, then swaps the state to RUNG, and rings only if
//! that was PARKED: a storm of posts rings once, and a worker that is awake is not
//! rung at all.
//!
//! # The race
//! The worker finds the inbox empty; a post comes; the worker blocks, and the
//! post lies there. So the worker parks by a compare-and-swap from AWAKE: if the post's
//! swap came first, the worker does not block; if it comes after, it sees PARKED and
//! rings. A ring that comes before the worker really blocks is kept by the ring
//! itself (an eventfd, a pipe), and ends the block at once.

use std::task::Waker;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU8, Ordering};

const AWAKE: u8 = 0;
const POLLING: u8 = 1;
const PARKED: u8 = 2;
const RUNG: u8 = 3;

/// In what state a worker was that was rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    /// It was idle, and comes now.
    Idle,
    /// It runs tasks, or is about to, and will come.
    Busy,
}

/// Where other threads post what one worker is to run.
pub(crate) struct Inbox<T> {
    state: AtomicU8,
    posts: Mutex<Posts<T>>,
}

struct Posts<T> {
    queue: Vec<T>,
    /// How many there were.
    count: u64,
    /// Ends the worker's block. `None` once the inbox is closed: it has a descriptor, which is not kept open for those
    /// who still refer to a worker that is gone.
    ring: Option<Waker>,
}

impl<T> Inbox<T> {
    pub(crate) fn new(ring: Waker) -> Self {
        Self { state: AtomicU8::new(AWAKE), posts: Mutex::new(Posts { queue: Vec::new(), count: 0, ring: Some(ring) }) }
    }

    /// Gives the worker `post`, or gives it back if nobody would take it any more.
    pub(crate) fn post(&self, post: T) -> Result<(), T> {
        let mut posts = self.posts.lock();
        if posts.ring.is_none() {
            return Err(post);
        }
        posts.queue.push(post);
        posts.count += 1;
        drop(posts);
        self.ring();
        Ok(())
    }

    /// How many posts there were.
    pub(super) fn posts(&self) -> u64 {
        self.posts.lock().count
    }

    /// Has the worker come here, or to its queue, where something was put for it.
    pub(super) fn ring(&self) -> Rung {
        match self.state.swap(RUNG, Ordering::AcqRel) {
            PARKED => self.end_block(),
            POLLING => {}
            _ => return Rung::Busy,
        }
        Rung::Idle
    }

    /// Has the worker come if it is idle; `false` if it is not.
    pub(super) fn call(&self) -> bool {
        let is_idle = |state| matches!(state, PARKED | POLLING).then_some(RUNG);
        let was = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, is_idle);
        if was == Ok(PARKED) {
            self.end_block();
        }
        was.is_ok()
    }

    #[cold]
    fn end_block(&self) {
        let ring = self.posts.lock().ring.clone();
        if let Some(ring) = ring {
            ring.wake();
        }
    }

    /// Whether something was posted since the last [`take`](Inbox::take).
    #[inline]
    pub(crate) fn is_rung(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNG
    }

    /// Says that the worker will look here every now and then, without blocking. `false` if
    /// there is something now.
    pub(crate) fn poll(&self) -> bool {
        self.idle(POLLING)
    }

    /// Says that the worker is about to block. `false` if there is something here,
    /// so that it must not.
    #[inline]
    pub(crate) fn park(&self) -> bool {
        self.idle(PARKED)
    }

    #[inline]
    fn idle(&self, state: u8) -> bool {
        match self.state.compare_exchange(AWAKE, state, Ordering::AcqRel, Ordering::Acquire) {
            // From polling to blocking, or to polling in another way.
            Err(POLLING) => self.state.compare_exchange(POLLING, state, Ordering::AcqRel, Ordering::Acquire).is_ok(),
            awake => awake.is_ok(),
        }
    }

    /// The worker is awake again. Appends what was posted to `queue`.
    #[inline]
    pub(crate) fn take(&self, queue: &mut Vec<T>) {
        // Before the queue is emptied: a post that comes in between is taken now
        // and rings once more than it need, instead of never.
        if self.state.swap(AWAKE, Ordering::AcqRel) == RUNG {
            queue.append(&mut self.posts.lock().queue);
        }
    }

    /// Puts `left`, which the worker leaves unrun, before everything else.
    pub(crate) fn put_back(&self, left: Vec<T>) {
        if left.is_empty() {
            return;
        }
        let mut posts = self.posts.lock();
        let mut newer = std::mem::replace(&mut posts.queue, left);
        posts.queue.append(&mut newer);
        drop(posts);
        self.state.store(RUNG, Ordering::Release);
    }

    /// Refuses posts from now on and returns what nobody has taken.
    pub(crate) fn close(&self) -> Vec<T> {
        let mut posts = self.posts.lock();
        let ring = posts.ring.take();
        let left = std::mem::take(&mut posts.queue);
        drop(posts);
        drop(ring);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Rings(AtomicUsize);
    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn inbox() -> (Inbox<u32>, Arc<Rings>) {
        let rings = Arc::new(Rings(AtomicUsize::new(0)));
        (Inbox::new(Waker::from(rings.clone())), rings)
    }

    fn taken(inbox: &Inbox<u32>) -> Vec<u32> {
        let mut queue = Vec::new();
        inbox.take(&mut queue);
        queue
    }

    #[test]
    fn a_post_rings_only_a_parked_worker_and_only_once() {
        let (inbox, rings) = inbox();
        inbox.post(1).unwrap();
        assert_eq!(rings.0.load(Ordering::SeqCst), 0, "an awake worker was rung");
        assert_eq!(taken(&inbox), [1]);
        assert!(inbox.park());
        for post in 2..100 {
            inbox.post(post).unwrap();
        }
        assert_eq!(rings.0.load(Ordering::SeqCst), 1, "a storm of posts must ring once");
        assert_eq!(taken(&inbox).len(), 98);
    }

    /// A polling worker looks by itself: ringing it would be a system call for nothing.
    #[test]
    fn a_post_does_not_ring_a_polling_worker() {
        let (inbox, rings) = inbox();
        assert!(inbox.poll());
        inbox.post(1).unwrap();
        assert!(inbox.is_rung(), "the polling worker must see the post");
        assert_eq!(rings.0.load(Ordering::SeqCst), 0);
        assert_eq!(taken(&inbox), [1]);
    }

    /// The race in the module's doc: the post that comes before the block.
    #[test]
    fn a_worker_does_not_park_on_a_post() {
        let (inbox, _) = inbox();
        inbox.post(1).unwrap();
        assert!(!inbox.park(), "the worker would block on a full inbox");
        assert!(!inbox.poll());
        assert_eq!(taken(&inbox), [1]);
        assert!(inbox.park(), "the inbox is empty now");
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let (inbox, _) = inbox();
        inbox.post(3).unwrap();
        inbox.put_back(vec![1, 2]);
        assert!(!inbox.park());
        assert_eq!(taken(&inbox), [1, 2, 3]);
    }

    #[test]
    fn a_closed_inbox_gives_posts_back() {
        let (inbox, _) = inbox();
        inbox.post(1).unwrap();
        assert_eq!(inbox.close(), [1]);
        assert_eq!(inbox.post(2), Err(2));
    }

    /// Two threads post while a third parks and takes: nothing is lost, and each time the
    /// worker parks on an empty inbox the next post rings.
    #[test]
    fn no_post_is_lost_between_threads() {
        const EACH: u32 = 20_000;
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let inbox = Arc::new(Inbox::new(Waker::from(Arc::new(Unpark(std::thread::current())))));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for post in 0..EACH {
                        inbox.post(post).unwrap();
                    }
                });
            }
            let mut queue = Vec::new();
            while queue.len() < 2 * EACH as usize {
                if inbox.park() {
                    let before = std::time::Instant::now();
                    while !inbox.is_rung() {
                        std::thread::park_timeout(std::time::Duration::from_secs(10));
                        assert!(before.elapsed().as_secs() < 10, "a post did not ring the parked worker");
                    }
                }
                inbox.take(&mut queue);
            }
            assert_eq!(queue.len(), 2 * EACH as usize);
        });
    }
}
