//! Threads: the workers of a runtime that has several.
//!
//! # A worker's life
//! 1. [`Threads::start`] makes the threads, or none: if the system refuses one, those that there are end, and the caller
//!    gets the error.
//! 2. Each is in a `block_on` call of its own, whose future waits to be told to end ([`Ending`]). So there is one loop, whether
//!    a worker is a thread of ours or the caller's.
//! 3. [`Threads::end`] refuses new tasks and tells the workers. Each runs those that are there until all workers' are gone, and
//!    leaves.
//!
//! A worker whose reactor fails could never end its tasks, and their sockets would hang for ever: it ends the process.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::process;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::worker::Worker;
use crate::executor::Workers;
use crate::sync::{contain, wake_all};

/// The threads of a runtime.
pub(super) struct Threads {
    workers: Arc<Workers>,
    ending: Arc<Ending>,
    /// Empty once they were told to end.
    threads: Vec<thread::JoinHandle<()>>,
}

/// How the threads are told to end, and how they say that they have.
struct Ending {
    state: Mutex<State>,
    gone: Condvar,
}

struct State {
    told: bool,
    /// Whoever waits to be told.
    waiting: Vec<Waker>,
    running: usize,
}

impl Threads {
    /// Starts a thread for each worker.
    pub(super) fn start(runners: Vec<Worker>, workers: Arc<Workers>, name: &str) -> io::Result<Self> {
        let state = State { told: false, waiting: Vec::new(), running: 0 };
        let ending = Arc::new(Ending { state: Mutex::new(state), gone: Condvar::new() });
        let mut threads = Self { workers, ending, threads: Vec::new() };
        for worker in runners {
            threads.start_one(worker, name)?;
        }
        Ok(threads)
    }

    fn start_one(&mut self, worker: Worker, name: &str) -> io::Result<()> {
        let name = format!("{name}-{}", self.threads.len());
        let ending = self.ending.clone();
        ending.state.lock().running += 1;
        let started = thread::Builder::new().name(name).spawn({
            let ending = ending.clone();
            move || work(worker, &ending)
        });
        match started {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                ending.state.lock().running -= 1;
                let number = self.threads.len() + 1;
                let message =
                    format!("no thread for worker {number}: {error}; use fewer workers, or raise the limit on threads");
                return Err(io::Error::new(error.kind(), message));
            }
        }
        Ok(())
    }

    /// Tells them to end and waits until they have, or until `deadline`. Returns how many have not by then. On a thread that
    /// is one of them it waits for none.
    pub(super) fn end(&mut self, deadline: Option<Instant>) -> usize {
        let threads = mem::take(&mut self.threads);
        // Refused from now on, and not only once a worker comes to its end.
        self.workers.abort_all();
        self.ending.tell();
        // By the thread, and not by who is entered on it: that may be another runtime, which is dropped in a task of this one.
        let here = thread::current().id();
        if threads.is_empty() || threads.iter().any(|thread| thread.thread().id() == here) {
            return 0;
        }
        let running = self.ending.wait(deadline);
        if running == 0 {
            // They have nothing to do any more but to return.
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        running
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// What a worker's thread does.
fn work(mut worker: Worker, ending: &Ending) {
    let lived = contain(|| {
        worker.block_on(poll_fn(|cx| ending.poll_told(cx)));
        worker.shut_down();
        drop(worker);
    });
    if lived.is_err() {
        // The panic hook has said why.
        process::abort();
    }
    ending.state.lock().running -= 1;
    ending.gone.notify_all();
}

impl Ending {
    fn tell(&self) {
        let mut state = self.state.lock();
        state.told = true;
        let mut waiting = mem::take(&mut state.waiting);
        drop(state);
        wake_all(&mut waiting);
    }

    fn poll_told(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut state = self.state.lock();
        if state.told {
            drop(state);
            return Poll::Ready(());
        }
        // Nobody else wakes this: it is polled once before it is told.
        state.waiting.push(waker);
        Poll::Pending
    }

    fn wait(&self, deadline: Option<Instant>) -> usize {
        let mut state = self.state.lock();
        let some_run = |state: &mut State| state.running > 0;
        match deadline {
            Some(deadline) => {
                // What is left is what is returned, in time or not.
                let _ = self.gone.wait_while_until(&mut state, some_run, deadline);
            }
            None => self.gone.wait_while(&mut state, some_run),
        }
        state.running
    }
}
