//! Models of how a worker waits, how another worker takes its place at its reactor, and how workers shut down.
//!
//! They are run as those of the executor are. The real parts are the remote queue, the unparker, the shared poll and
//! the shutdown request. The kernel is an [`Edge`]: an event that ends one wait.

use std::io;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::Notify;
use loom::thread;

use super::threads::Shutdown;
use crate::executor::RemoteQueue;
use crate::reactor::{EndBlock, SharedPoll, Unparker};
use crate::sync::{Mutex, model};

/// An edge of an epoll set: it is pending until one thread takes it.
struct Edge {
    is_pending: Mutex<bool>,
    wait: Notify,
}

impl Edge {
    fn new() -> Arc<Self> {
        Arc::new(Self { is_pending: Mutex::new(false), wait: Notify::new() })
    }

    /// Returns whether there was an edge, without waiting.
    fn take(&self) -> bool {
        mem::take(&mut *self.is_pending.lock())
    }

    /// Waits for an edge.
    fn wait(&self) {
        while !self.take() {
            self.wait.wait();
        }
    }

    fn notify(&self) {
        *self.is_pending.lock() = true;
        self.wait.notify();
    }
}

impl EndBlock for Arc<Edge> {
    fn end_block(&self) -> io::Result<()> {
        self.notify();
        Ok(())
    }
}

impl Wake for Edge {
    fn wake(self: Arc<Self>) {
        self.notify();
    }
}

/// A thread in `block_on` beside the workers waits on a condition variable. A push ends that wait, and the two do not
/// miss each other.
#[test]
fn push_ends_the_wait_without_a_reactor() {
    model(|| {
        let unparker = Arc::new(Unparker::<Arc<Edge>>::default());
        let queue = Arc::new(RemoteQueue::new(Waker::from(unparker.clone())));
        let pushing = thread::spawn({
            let queue = queue.clone();
            move || queue.push(1)
        });
        let mut drained = Vec::new();
        while drained.is_empty() {
            if queue.prepare_park() {
                unparker.park(None);
            }
            queue.drain(&mut drained);
        }
        pushing.join().unwrap();
        assert_eq!(drained, [1]);
    });
}

/// A push that finds the reactor not open notifies the condition variable, although the worker is about to block in its
/// poll. The worker has opened the reactor before its last look, so that look finds the push.
#[test]
fn opening_the_reactor_loses_no_unpark() {
    model(|| {
        let unparker = Arc::new(Unparker::default());
        let queue = Arc::new(RemoteQueue::new(Waker::from(unparker.clone())));
        let pushing = thread::spawn({
            let queue = queue.clone();
            move || queue.push(1)
        });
        let mut drained = Vec::new();
        if queue.prepare_park() {
            unparker.park(None);
        }
        queue.drain(&mut drained);
        let edge = Edge::new();
        unparker.set_backend(edge.clone());
        while drained.is_empty() {
            if queue.prepare_park() {
                edge.wait();
            }
            queue.drain(&mut drained);
        }
        pushing.join().unwrap();
    });
}

/// As above, with two pushes: one may come before the reactor is opened, and the other one after that.
#[test]
fn each_of_two_pushes_ends_a_wait() {
    model(|| {
        let unparker = Arc::new(Unparker::default());
        let queue = Arc::new(RemoteQueue::new(Waker::from(unparker.clone())));
        let pushing = thread::spawn({
            let queue = queue.clone();
            move || {
                queue.push(1);
                queue.push(2);
            }
        });
        let mut drained = Vec::new();
        let mut opened: Option<Arc<Edge>> = None;
        while drained.len() < 2 {
            if queue.prepare_park() {
                match &opened {
                    None => drop(unparker.park(None)),
                    Some(edge) => edge.wait(),
                }
            }
            queue.drain(&mut drained);
            if opened.is_none() {
                let edge = Edge::new();
                unparker.set_backend(edge.clone());
                opened = Some(edge);
            }
        }
        pushing.join().unwrap();
        assert_eq!(drained, [1, 2]);
    });
}

/// The reactor of a worker that other threads push to.
struct Modelled {
    poll: Mutex<SharedPoll<Arc<Edge>>>,
    queue: RemoteQueue<u32>,
}

impl Modelled {
    fn new() -> Arc<Self> {
        let edge = Edge::new();
        let modelled = Self { poll: Mutex::default(), queue: RemoteQueue::new(Waker::from(edge.clone())) };
        modelled.poll.lock().poll = Some(edge);
        Arc::new(modelled)
    }

    /// The owner waits for events, if it may.
    fn turn(&self) {
        let mut shared = self.poll.lock();
        let (edge, may_only_look) = shared.begin_turn().expect("the reactor is open");
        if may_only_look {
            edge.take();
        } else {
            edge.wait();
        }
    }

    /// A helper takes the events, if the owner is not at its poll. loom may hold up the helper's `try_lock` until the
    /// owner has released the lock, so a helper must not be the thread that pushes.
    fn turn_stuck(&self) {
        let Some(mut shared) = self.poll.try_lock() else { return };
        if shared.poll.as_ref().expect("the reactor is open").take() {
            shared.note_taken_edge();
        }
    }

    fn run_until(&self, count: usize) {
        let mut drained = Vec::new();
        while drained.len() < count {
            if self.queue.prepare_park() {
                self.turn();
            }
            self.queue.drain(&mut drained);
        }
    }
}

/// Lets a thread push `entries` while another one helps the owner `helps` times. The owner must get all entries.
fn push_beside_helper(entries: u32, helps: u32) {
    model(move || {
        let owner = Modelled::new();
        let pushing = thread::spawn({
            let owner = owner.clone();
            move || (0..entries).for_each(|entry| owner.queue.push(entry))
        });
        let helping = thread::spawn({
            let owner = owner.clone();
            move || (0..helps).for_each(|_| owner.turn_stuck())
        });
        owner.run_until(entries as usize);
        pushing.join().unwrap();
        helping.join().unwrap();
    });
}

/// A helper may turn the reactor of a worker that was stuck and comes to it in this moment. It may take the edge of an
/// unpark. The owner finds what was pushed all the same.
#[test]
fn helper_keeps_no_unpark_from_the_owner() {
    push_beside_helper(1, 1);
}

/// The same holds if the helper comes again, and for a second push.
#[test]
fn helper_may_come_twice() {
    push_beside_helper(2, 2);
}

/// A request to shut down reaches each worker, whether it comes before the worker waits for it or after that.
#[test]
fn shutdown_request_reaches_each_worker() {
    model(|| {
        let shutdown = Arc::new(Shutdown::default());
        let wait = |shutdown: Arc<Shutdown>| {
            let edge = Edge::new();
            let waker = Waker::from(edge.clone());
            while shutdown.poll_requested(&mut Context::from_waker(&waker)) == Poll::Pending {
                edge.wait();
            }
        };
        let worker = thread::spawn({
            let shutdown = shutdown.clone();
            move || wait(shutdown)
        });
        let requesting = thread::spawn({
            let shutdown = shutdown.clone();
            move || shutdown.request()
        });
        wait(shutdown);
        worker.join().unwrap();
        requesting.join().unwrap();
    });
}
