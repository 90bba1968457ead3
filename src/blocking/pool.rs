//! The pool: a queue of jobs, and the threads that take them.
//!
//! # A thread's life
//! ```text
//!  starting --> looks at the queue --job--> runs it --+
//!     |            ^      |  ^                        |
//!     | fails      |      |  +------------------------+
//!     v            |      v nothing there
//!   gone           +--- idle ---10 s, or the pool has ended---> gone
//! ```
//! `threads` counts a thread from before it is started until it is gone, `idle` while it waits. Both change under the lock,
//! together with what they were read for.
//!
//! # When a thread is started
//! [`Pool::submit`] pushes the job, and if there are now more jobs in the queue than idle threads, it starts one. Not: if no
//! thread is idle. A thread that was notified still counts as idle until it has the lock again, and two jobs in quick
//! succession would both count on the same one; the second would then wait for the end of the first.
//!
//! # When a thread is not started
//! The queue is left to the other threads, and one that was started by then will come to the job. If there is none, the jobs
//! are refused: by whoever finds `threads` at 0 after its own failure. Not by whoever failed: of two that
//! fail at the same time, each would leave its job to the other's thread, for ever.
//!
//! # The end
//! [`Pool::close`] refuses what is in the queue, wakes the idle threads, and waits for nobody; jobs that come later are refused
//! too. A thread that runs a job goes when that is over.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::executor::BlockingTask;

/// How long a thread waits for another job before it ends.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// As the system shows it, which may cut it short.
const THREAD_NAME: &str = "kittiwake-blocking";

/// The threads of one runtime for blocking work.
pub(crate) struct Pool {
    state: Mutex<State>,
    /// There is a job for an idle thread, or no more will come.
    job: Condvar,
    /// A thread has gone, after the end.
    gone: Condvar,
    most_threads: usize,
    keep_alive: Duration,
    /// [`start_thread`], but in tests.
    start: fn(Arc<Pool>) -> io::Result<()>,
}

struct State {
    queue: VecDeque<BlockingTask>,
    threads: usize,
    /// How many of them wait for a job; some may have been notified of one.
    idle: usize,
    /// How many of them run one.
    running: usize,
    /// The runtime has ended.
    closed: bool,
    /// Woken when no job is out any more: a worker whose clock stands still until then.
    on_rest: Option<Waker>,
}

impl Pool {
    pub(crate) fn new(most_threads: usize) -> Arc<Self> {
        Self::with(most_threads, KEEP_ALIVE, start_thread)
    }

    fn with(most_threads: usize, keep_alive: Duration, start: fn(Arc<Pool>) -> io::Result<()>) -> Arc<Self> {
        let state = State { queue: VecDeque::new(), threads: 0, idle: 0, running: 0, closed: false, on_rest: None };
        Arc::new(Self {
            state: Mutex::new(state),
            job: Condvar::new(),
            gone: Condvar::new(),
            most_threads,
            keep_alive,
            start,
        })
    }

    /// Has a thread run `job`.
    pub(super) fn submit(self: &Arc<Self>, job: BlockingTask) {
        let mut state = self.state.lock();
        if state.closed {
            // Dropped unrun, after the lock.
            drop(state);
            return drop(job);
        }
        state.queue.push_back(job);
        if state.queue.len() <= state.idle {
            self.job.notify_one();
        } else if state.threads < self.most_threads {
            state.threads += 1;
            drop(state);
            self.start();
        }
    }

    /// Starts a thread, which has been counted already.
    #[cold]
    fn start(self: &Arc<Self>) {
        let Err(error) = (self.start)(self.clone()) else { return };
        let reason = error.raw_os_error().unwrap_or(libc::EAGAIN);
        let mut state = self.state.lock();
        self.leave(&mut state);
        while state.threads == 0 && take(&mut state, |job| job.cancel_without_thread(reason)) {}
    }

    /// What a thread of the pool does.
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            // The closure's panic does not come out of this.
            while take(&mut state, BlockingTask::run) {}
            if state.closed || !self.idle(&mut state) {
                break;
            }
        }
        self.leave(&mut state);
    }

    /// Waits for a job. `false` if the thread is to go, because there was none for long.
    fn idle(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let until = Instant::now() + self.keep_alive;
        state.idle += 1;
        // A job may come between the end of the time and the lock, and has counted on this thread.
        let mut in_time = true;
        while state.queue.is_empty() && !state.closed && in_time {
            in_time = !self.job.wait_until(state, until).timed_out();
        }
        state.idle -= 1;
        !state.queue.is_empty() || state.closed
    }

    /// Counts a thread out.
    fn leave(&self, state: &mut State) {
        state.threads -= 1;
        if state.closed {
            self.gone.notify_all();
        }
    }

    /// Whether a job waits or runs. If so, `waker` is woken when that is over; and by then the waker of whoever waits for
    /// the last of them has been.
    pub(crate) fn is_busy(&self, waker: impl FnOnce() -> Waker) -> bool {
        let mut state = self.state.lock();
        if state.is_at_rest() {
            return false;
        }
        // The worker's own, which is ours and only rings.
        state.on_rest = Some(waker());
        true
    }

    /// Ends the pool, without waiting for it: jobs that have not begun are refused.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.job.notify_all();
        // It has a descriptor, which a job that goes on is not to keep open.
        let on_rest = state.on_rest.take();
        MutexGuard::unlocked(&mut state, || drop(on_rest));
        while take(&mut state, drop) {}
    }

    /// Waits until the threads of a closed pool are gone, at most until `deadline`. Returns how many jobs run even then.
    pub(crate) fn wait_until_gone(&self, deadline: Option<Instant>) -> usize {
        let mut state = self.state.lock();
        let some_live = |state: &mut State| state.threads > 0;
        match deadline {
            Some(deadline) => {
                // What is left is what is returned, in time or not.
                let _ = self.gone.wait_while_until(&mut state, some_live, deadline);
            }
            None => self.gone.wait_while(&mut state, some_live),
        }
        state.running
    }
}

/// Takes the next job, if there is one, and passes it to `run`, outside the lock: it is foreign code, run or dropped.
fn take(state: &mut MutexGuard<'_, State>, run: impl FnOnce(BlockingTask)) -> bool {
    let Some(job) = state.queue.pop_front() else { return false };
    state.running += 1;
    MutexGuard::unlocked(state, || run(job));
    state.running -= 1;
    if state.is_at_rest() {
        if let Some(waker) = state.on_rest.take() {
            MutexGuard::unlocked(state, || waker.wake());
        }
    }
    true
}

impl State {
    /// No job waits or runs.
    fn is_at_rest(&self) -> bool {
        self.queue.is_empty() && self.running == 0
    }
}

fn start_thread(pool: Arc<Pool>) -> io::Result<()> {
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || pool.work()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{JoinHandle, WorkerRef, Workers};
    use futures_lite::future::block_on;
    use std::panic::Location;
    use std::sync::{Barrier, mpsc};

    fn worker() -> WorkerRef {
        WorkerRef::new(Workers::new(vec![Waker::noop().clone()]), 0)
    }

    fn spawn<T: Send + 'static>(pool: &Arc<Pool>, closure: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        pool.spawn(&worker(), closure, Location::caller())
    }

    /// Waits until the pool's state is as it should become.
    #[track_caller]
    fn until(pool: &Pool, condition: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition(&pool.state.lock()) {
            assert!(Instant::now() < deadline, "the pool does not get there");
            thread::yield_now();
        }
    }

    /// Without it the pool starts a thread for each job, or keeps none.
    #[test]
    fn an_idle_thread_takes_the_next_job() {
        let pool = Pool::new(8);
        let first = block_on(spawn(&pool, || thread::current().id())).unwrap();
        for _ in 0..100 {
            until(&pool, |state| state.idle == 1);
            assert_eq!(block_on(spawn(&pool, || thread::current().id())).unwrap(), first);
        }
        pool.close();
    }

    /// The race in the module's doc: both count on the one idle thread, and the first waits for the second.
    #[test]
    fn two_jobs_do_not_count_on_the_same_idle_thread() {
        for _ in 0..200 {
            let pool = Pool::new(8);
            block_on(spawn(&pool, || ())).unwrap();
            until(&pool, |state| state.idle == 1);
            let barrier = Arc::new(Barrier::new(2));
            let jobs = [(); 2].map(|()| {
                let barrier = barrier.clone();
                spawn(&pool, move || barrier.wait().is_leader())
            });
            for job in jobs {
                block_on(job).unwrap();
            }
            pool.close();
        }
    }

    /// Without it a pool that was busy once keeps its threads for ever.
    #[test]
    fn a_thread_that_is_idle_for_long_ends() {
        let pool = Pool::with(8, Duration::from_millis(1), start_thread);
        block_on(spawn(&pool, || ())).unwrap();
        until(&pool, |state| state.threads == 0);
        assert_eq!(block_on(spawn(&pool, || 1)).unwrap(), 1, "and the next job gets a new one");
    }

    /// A thread whose time is over at the moment when a job counts on it must take it.
    #[test]
    fn no_job_is_lost_to_a_thread_that_is_about_to_end() {
        let pool = Pool::with(1, Duration::from_micros(50), start_thread);
        for round in 0..4_000 {
            assert_eq!(block_on(spawn(&pool, move || round)).unwrap(), round);
            // Around the end of the thread's time, before and after.
            let until = Instant::now() + Duration::from_micros(30 + round % 100);
            while Instant::now() < until {}
        }
        until(&pool, |state| state.threads == 0 && state.idle == 0 && state.running == 0);
    }

    fn no_thread<T>() -> io::Result<T> {
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Without it a machine without threads hangs whoever waits for the job.
    #[test]
    fn a_job_without_any_thread_is_refused_with_the_reason() {
        let pool = Pool::with(8, KEEP_ALIVE, |_| no_thread());
        let (kept, dropped) = mpsc::channel::<()>();
        let job = spawn(&pool, move || drop(kept));
        assert!(dropped.try_recv() == Err(mpsc::TryRecvError::Disconnected), "the closure must be gone");
        let error = block_on(job).unwrap_err();
        assert!(error.is_cancelled() && error.to_string().contains("os error"), "{error}");
        assert_eq!(pool.state.lock().threads, 0);
        assert!(!pool.is_busy(|| Waker::noop().clone()), "a paused clock would stand still for ever");
    }

    /// Without it a job is refused though it has only to wait.
    #[test]
    fn a_job_waits_for_a_thread_that_lives() {
        let pool =
            Pool::with(
                8,
                KEEP_ALIVE,
                |pool| if pool.state.lock().threads == 1 { start_thread(pool) } else { no_thread() },
            );
        let (end, ended) = mpsc::channel::<()>();
        let first = spawn(&pool, move || ended.recv().is_err());
        let second = spawn(&pool, || 2);
        assert!(!second.is_finished(), "it waits");
        drop(end);
        assert!(block_on(first).unwrap());
        assert_eq!(block_on(second).unwrap(), 2);
        pool.close();
    }

    /// The other race in the module's doc: each of two that fail leaves its job to the other's thread.
    #[test]
    fn two_starts_that_fail_at_once_refuse_both_jobs() {
        static BOTH: Barrier = Barrier::new(2);
        let pool = Pool::with(8, KEEP_ALIVE, |_| {
            BOTH.wait();
            no_thread()
        });
        let jobs = [(); 2].map(|()| {
            let pool = pool.clone();
            thread::spawn(move || spawn(&pool, || ()))
        });
        for job in jobs {
            let job = job.join().unwrap();
            assert!(block_on(job).unwrap_err().is_cancelled());
        }
    }

    /// Without it a paused clock stands still for ever, or jumps while a job is out.
    #[test]
    fn whoever_waits_for_rest_is_woken_by_the_end_of_the_last_job() {
        let pool = Pool::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let first = spawn(&pool, move || ended.recv().is_err());
        let last = spawn(&pool, || ());
        let (rest, rested) = mpsc::channel();
        struct Tell(mpsc::Sender<bool>, JoinHandle<()>);
        impl std::task::Wake for Tell {
            fn wake(self: Arc<Self>) {
                self.0.send(self.1.is_finished()).unwrap();
            }
        }
        let waker = Waker::from(Arc::new(Tell(rest, last)));
        assert!(pool.is_busy(|| waker));
        assert!(rested.try_recv().is_err(), "a job runs");
        drop(end);
        assert!(block_on(first).unwrap());
        assert_eq!(rested.recv_timeout(Duration::from_secs(60)), Ok(true), "after the last job, and then only");
        assert!(!pool.is_busy(|| unreachable!("nothing is out")));
        pool.close();
    }

    /// Without it the end of a runtime is not the end of its threads.
    #[test]
    fn the_end_refuses_what_waits_and_lets_idle_threads_go() {
        let pool = Pool::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let running = spawn(&pool, move || ended.recv().is_err());
        until(&pool, |state| state.running == 1);
        let waiting = spawn(&pool, || ());
        pool.close();
        assert!(block_on(waiting).unwrap_err().is_cancelled());
        assert!(block_on(spawn(&pool, || ())).unwrap_err().is_cancelled(), "too late");
        assert_eq!(pool.wait_until_gone(Some(Instant::now())), 1, "one runs");
        drop(end);
        assert_eq!(pool.wait_until_gone(None), 0);
        assert!(block_on(running).unwrap(), "what runs gives its output");
        assert_eq!(pool.state.lock().threads, 0);
    }
}
