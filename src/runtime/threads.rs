//! Threads: the workers of a multi-thread runtime.
//!
//! # A worker's life
//! 1. *Start*: [`Threads::start`] starts a thread for each worker. If the system refuses one, the others shut down and
//!    the caller gets the error.
//! 2. *Run*: each thread is in a `block_on` call, whose future waits for the shutdown request ([`Shutdown`]). So there
//!    is one loop, for the runtime's own threads and for a caller's.
//! 3. *Shut down*: [`Threads::shut_down`] cancels all tasks, refuses new ones and requests the shutdown. Each worker
//!    runs its tasks until no worker has any left; then its thread exits.
//!
//! A panic that leaves a worker's loop aborts the process, for example if the reactor fails. The worker could never end
//! its tasks, and their sockets would hang for ever.

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

/// The worker threads of a runtime. Dropping it shuts them down.
pub(super) struct Threads {
    workers: Arc<Workers>,
    shutdown: Arc<Shutdown>,
    /// Empty after the first [`shut_down`](Threads::shut_down).
    threads: Vec<thread::JoinHandle<()>>,
}

/// The shutdown request, and the count of threads that still run.
struct Shutdown {
    state: Mutex<State>,
    /// Notified when a worker has shut down.
    exited: Condvar,
}

struct State {
    requested: bool,
    /// The wakers of the workers' `block_on` calls.
    waiters: Vec<Waker>,
    /// Workers that have not shut down yet.
    running: usize,
}

impl Threads {
    /// Starts a thread for each worker.
    pub(super) fn start(runners: Vec<Worker>, workers: Arc<Workers>, name: &str) -> io::Result<Self> {
        let state = State { requested: false, waiters: Vec::new(), running: 0 };
        let shutdown = Arc::new(Shutdown { state: Mutex::new(state), exited: Condvar::new() });
        let mut threads = Self { workers, shutdown, threads: Vec::new() };
        for worker in runners {
            threads.start_one(worker, name)?;
        }
        Ok(threads)
    }

    fn start_one(&mut self, worker: Worker, name: &str) -> io::Result<()> {
        let name = format!("{name}-{}", self.threads.len());
        let shutdown = self.shutdown.clone();
        shutdown.state.lock().running += 1;
        let started = thread::Builder::new().name(name).spawn({
            let shutdown = shutdown.clone();
            move || run(worker, &shutdown)
        });
        match started {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                shutdown.state.lock().running -= 1;
                let number = self.threads.len() + 1;
                let message =
                    format!("no thread for worker {number}: {error}; use fewer workers, or raise the limit on threads");
                return Err(io::Error::new(error.kind(), message));
            }
        }
        Ok(())
    }

    /// Shuts the workers down and waits until their threads have exited, or until `deadline`.
    ///
    /// Returns the number of workers that still run then; their threads are detached. On one of its workers'
    /// threads it does not wait and returns 0.
    pub(super) fn shut_down(&mut self, deadline: Option<Instant>) -> usize {
        let threads = mem::take(&mut self.threads);
        // Refuses new tasks at once, before the first worker takes notice of the request.
        self.workers.cancel_all();
        self.shutdown.request();
        // Compares threads: a task of this runtime may be dropping another runtime, which is entered then.
        let here = thread::current().id();
        if threads.is_empty() || threads.iter().any(|thread| thread.thread().id() == here) {
            return 0;
        }
        let running = self.shutdown.wait(deadline);
        if running == 0 {
            // Each thread only has to return.
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        running
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shut_down(None);
    }
}

/// Runs `worker` on its thread until the shutdown.
fn run(mut worker: Worker, shutdown: &Shutdown) {
    let result = contain(|| {
        worker.block_on(poll_fn(|cx| shutdown.poll_requested(cx)));
        worker.shut_down();
        drop(worker);
    });
    if result.is_err() {
        // The panic hook has reported the reason.
        process::abort();
    }
    shutdown.state.lock().running -= 1;
    shutdown.exited.notify_all();
}

impl Shutdown {
    fn request(&self) {
        let mut state = self.state.lock();
        state.requested = true;
        let mut waiters = mem::take(&mut state.waiters);
        drop(state);
        wake_all(&mut waiters);
    }

    fn poll_requested(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut state = self.state.lock();
        if state.requested {
            drop(state);
            return Poll::Ready(());
        }
        // One waker per worker: only the request wakes this future, so each worker polls it once before the request.
        state.waiters.push(waker);
        Poll::Pending
    }

    /// Waits until no worker runs, or until `deadline`. Returns the number that still run.
    fn wait(&self, deadline: Option<Instant>) -> usize {
        let mut state = self.state.lock();
        let is_running = |state: &mut State| state.running > 0;
        match deadline {
            Some(deadline) => {
                // On a timeout, too, the count below is the result.
                let _ = self.exited.wait_while_until(&mut state, is_running, deadline);
            }
            None => self.exited.wait_while(&mut state, is_running),
        }
        state.running
    }
}
