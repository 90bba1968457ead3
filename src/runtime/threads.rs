//! Threads: the workers of a multi-thread runtime.
//!
//! # A worker's life
//! 1. *Start*: [`Threads::start`] starts a thread for each worker. If the system refuses one, the others shut down and
//!    the caller gets the error.
//! 2. *Run*: each thread is in a `block_on` call, whose future waits for the shutdown request ([`Shutdown`]). So there
//!    is one loop, for the runtime's own threads and for a caller's.
//! 3. *Shut down*: [`Threads::shut_down`] cancels all tasks, refuses new ones and requests the shutdown. Each worker
//!    runs its tasks until no worker has any left; then its thread exits. A caller with a deadline does not join the
//!    threads, because the destructors of their thread-locals may block.
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

use super::worker::Worker;
use crate::executor::Workers;
use crate::live_threads::{Hooks, LiveThreads};
use crate::sync::{Mutex, contain, wake_all};
use crate::trace;

/// The worker threads of a runtime. Dropping it shuts them down.
pub(super) struct Threads {
    workers: Arc<Workers>,
    shutdown: Arc<Shutdown>,
    live: LiveThreads,
    /// Empty after the first [`shut_down`](Threads::shut_down).
    threads: Vec<thread::JoinHandle<()>>,
}

/// The shutdown request.
#[derive(Default)]
pub(super) struct Shutdown(Mutex<State>);

#[derive(Default)]
struct State {
    requested: bool,
    /// The wakers of the workers' `block_on` calls.
    waiters: Vec<Waker>,
    /// How many workers have shut down.
    finished: usize,
}

impl Threads {
    /// Starts a thread for each worker. Each calls `hooks`.
    pub(super) fn start(runners: Vec<Worker>, workers: Arc<Workers>, name: &str, hooks: Hooks) -> io::Result<Self> {
        let live = LiveThreads::new(hooks);
        let mut threads = Self { workers, shutdown: Arc::default(), live, threads: Vec::new() };
        for worker in runners {
            threads.start_one(worker, name)?;
        }
        Ok(threads)
    }

    fn start_one(&mut self, worker: Worker, name: &str) -> io::Result<()> {
        let index = self.threads.len();
        let shutdown = self.shutdown.clone();
        let thread = self.live.start(format!("{name}-{index}"), move || run(worker, &shutdown)).map_err(|error| {
            let number = index + 1;
            let message =
                format!("no thread for worker {number}: {error}; use fewer workers, or raise the limit on threads");
            io::Error::new(error.kind(), message)
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Shuts the workers down and waits until their threads have exited, or until `deadline`.
    ///
    /// Returns how many workers still run then, and how many other threads have not exited. All of these are detached.
    /// On one of its workers' threads it does not wait.
    pub(super) fn shut_down(&mut self, deadline: Option<Instant>) -> (usize, usize) {
        let threads = mem::take(&mut self.threads);
        // Refuses new tasks at once, before the first worker takes notice of the request.
        self.workers.cancel_all();
        self.shutdown.request();
        // Compares threads: a task of this runtime may be dropping another runtime, which is entered then.
        let here = thread::current().id();
        if threads.is_empty() || threads.iter().any(|thread| thread.thread().id() == here) {
            return (0, 0);
        }
        let count = threads.len();
        if deadline.is_none() {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        // In this order: a worker that is counted as running afterwards had a live thread before.
        let live = self.live.wait(deadline);
        let running = count - self.shutdown.0.lock().finished;
        if live == 0 {
            trace::threads_ended(count);
        }
        (running, live - running)
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
    shutdown.0.lock().finished += 1;
}

impl Shutdown {
    pub(super) fn request(&self) {
        let mut state = self.0.lock();
        state.requested = true;
        let mut waiters = mem::take(&mut state.waiters);
        drop(state);
        wake_all(&mut waiters);
    }

    pub(super) fn poll_requested(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut state = self.0.lock();
        if state.requested {
            drop(state);
            return Poll::Ready(());
        }
        // One waker per worker: only the request wakes this future, so each worker polls it once before the request.
        state.waiters.push(waker);
        Poll::Pending
    }
}
