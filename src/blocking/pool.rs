//! The pool: a queue of blocking tasks, and the threads that run them.
//!
//! # The life of a thread
//! ```text
//!  starting --> looks at the queue --task--> runs it --+
//!     |            ^      |  ^                         |
//!     | fails      |      |  +-------------------------+
//!     v            |      v the queue is empty
//!   gone           +--- idle ---10 s, or the pool is closed---> gone
//! ```
//! `threads` counts a thread from before it is started until it is gone, and `idle` while it waits. A thread reads
//! these counts, decides by them and changes them while it holds the lock.
//!
//! # When a thread is started
//! [`Pool::submit`] pushes the task. If there are now more tasks in the queue than idle threads, it starts one. Testing
//! `idle == 0` would be wrong here. A thread that was notified counts as idle until it has the lock again, so two tasks
//! in quick succession would both count on the same thread. The second task would wait for the end of the first.
//!
//! # When a thread cannot be started
//! The task stays in the queue for the other threads. If there is none, the submitter whose start has failed cancels
//! all tasks in the queue, with the system's error. It finds that out by `threads`, which it has counted down before:
//! of two submitters that fail at the same time, the second one finds 0. Otherwise each would leave its task to the
//! thread of the other for ever.
//!
//! # The end
//! [`Pool::release_threads`] wakes the idle threads, which then end, and waits for no thread. A thread that runs a task
//! drops the tasks in the queue when its own task ends, and ends too. A task that comes later is dropped at once.
//! [`Pool::close`] also drops the tasks in the queue itself. So a runtime whose workers are stuck, and do not get to
//! close the pool, starts no more closures either.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::executor::BlockingTask;
use crate::live_threads::LiveThreads;

/// How long a thread waits for another task before it ends.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The name of the pool's threads. The system may cut it short.
const THREAD_NAME: &str = "kittiwake-blocking";

/// The threads of one runtime for blocking work.
pub(crate) struct Pool {
    state: Mutex<State>,
    /// There is a task for an idle thread, or no more will come.
    task: Condvar,
    /// The threads, until the destructors of their thread-locals have run.
    live: LiveThreads,
    most_threads: usize,
    keep_alive: Duration,
    /// [`start_thread`], except in tests.
    start: fn(Arc<Pool>) -> io::Result<()>,
}

struct State {
    queue: VecDeque<BlockingTask>,
    threads: usize,
    /// How many of them wait for a task. Some may have been notified of one.
    idle: usize,
    /// How many tasks run, or are being dropped.
    running: usize,
    /// The runtime has ended.
    closed: bool,
    /// Woken when no task waits or runs any more. It is the unparker of a worker whose clock stands still until then.
    on_idle: Option<Waker>,
}

impl Pool {
    pub(crate) fn new(most_threads: usize) -> Arc<Self> {
        Self::with(most_threads, KEEP_ALIVE, start_thread)
    }

    fn with(most_threads: usize, keep_alive: Duration, start: fn(Arc<Pool>) -> io::Result<()>) -> Arc<Self> {
        let state = State { queue: VecDeque::new(), threads: 0, idle: 0, running: 0, closed: false, on_idle: None };
        Arc::new(Self {
            state: Mutex::new(state),
            task: Condvar::new(),
            live: LiveThreads::default(),
            most_threads,
            keep_alive,
            start,
        })
    }

    /// Makes a thread run `task`.
    pub(super) fn submit(self: &Arc<Self>, task: BlockingTask) {
        let mut state = self.state.lock();
        if state.closed {
            // Dropped unrun, after the lock.
            drop(state);
            return drop(task);
        }
        state.queue.push_back(task);
        if state.queue.len() <= state.idle {
            self.task.notify_one();
        } else if state.threads < self.most_threads {
            state.threads += 1;
            drop(state);
            self.start();
        }
    }

    /// Starts a thread, which has been counted already.
    fn start(self: &Arc<Self>) {
        let Err(error) = (self.start)(self.clone()) else { return };
        let reason = error.raw_os_error().unwrap_or(libc::EAGAIN);
        let mut state = self.state.lock();
        state.threads -= 1;
        while state.threads == 0 && take(&mut state, |task| task.cancel_without_thread(reason)) {}
    }

    /// Runs tasks, on a thread of the pool.
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            // The closure's panic does not come out of this.
            while state.closed && take(&mut state, drop) || take(&mut state, BlockingTask::run) {}
            if state.closed || !self.idle(&mut state) {
                break;
            }
        }
        state.threads -= 1;
    }

    /// Waits for a task. Returns `false` if none came for long, and the thread ends.
    fn idle(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let until = Instant::now() + self.keep_alive;
        state.idle += 1;
        // A task may come between the end of the time and the lock, and has counted on this thread.
        let mut in_time = true;
        while state.queue.is_empty() && !state.closed && in_time {
            in_time = !self.task.wait_until(state, until).timed_out();
        }
        state.idle -= 1;
        !state.queue.is_empty() || state.closed
    }

    /// Whether a task waits or runs. If so, `waker` is woken when that is over. By then the waiter of the last task has
    /// been woken.
    pub(crate) fn is_busy(&self, waker: impl FnOnce() -> Waker) -> bool {
        let mut state = self.state.lock();
        if state.is_idle() {
            return false;
        }
        // The worker's own unparker, which runs no foreign code.
        state.on_idle = Some(waker());
        true
    }

    /// Ends the idle threads, and those that run a task when that ends. Tasks that have not begun are dropped there.
    pub(crate) fn release_threads(&self) {
        self.state.lock().closed = true;
        self.task.notify_all();
    }

    /// Ends the pool, without waiting for its threads. Tasks that have not begun are dropped.
    pub(crate) fn close(&self) {
        self.release_threads();
        let mut state = self.state.lock();
        // It has a descriptor, which a task that goes on must not keep open.
        let on_idle = state.on_idle.take();
        MutexGuard::unlocked(&mut state, || drop(on_idle));
        while take(&mut state, drop) {}
    }

    /// Waits until the threads of a closed pool have ended, at most until `deadline`. Returns how many threads run a
    /// task even then, and how many others have not ended.
    pub(crate) fn wait_for_threads(&self, deadline: Option<Instant>) -> (usize, usize) {
        let left = self.live.wait(deadline);
        // Without those tasks that another thread drops.
        let running = self.state.lock().running.min(left);
        (running, left - running)
    }
}

/// Takes the next task, if there is one, and passes it to `run` outside the lock. A task is foreign code, run or
/// dropped.
fn take(state: &mut MutexGuard<'_, State>, run: impl FnOnce(BlockingTask)) -> bool {
    let Some(task) = state.queue.pop_front() else { return false };
    state.running += 1;
    MutexGuard::unlocked(state, || run(task));
    state.running -= 1;
    if state.is_idle() {
        if let Some(waker) = state.on_idle.take() {
            MutexGuard::unlocked(state, || waker.wake());
        }
    }
    true
}

impl State {
    /// Whether no task waits or runs.
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running == 0
    }
}

fn start_thread(pool: Arc<Pool>) -> io::Result<()> {
    let live = pool.live.clone();
    live.start(THREAD_NAME.to_owned(), move || pool.work()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{JoinHandle, WorkerRef, Workers};
    use futures_lite::future::block_on;
    use std::panic::Location;
    use std::sync::{Barrier, mpsc};
    use std::thread;

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

    /// A pool that starts a thread for each task, or keeps none, pays a thread's start for each task.
    #[test]
    fn idle_thread_takes_next_task() {
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
    fn two_tasks_get_two_threads() {
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

    /// A pool that was busy once would otherwise keep its threads for ever.
    #[test]
    fn idle_thread_ends() {
        let pool = Pool::with(8, Duration::from_millis(1), start_thread);
        block_on(spawn(&pool, || ())).unwrap();
        until(&pool, |state| state.threads == 0);
        assert_eq!(block_on(spawn(&pool, || 1)).unwrap(), 1, "and the next job gets a new one");
    }

    /// A thread whose time is over at the moment when a task counts on it must take the task.
    #[test]
    fn ending_thread_loses_no_task() {
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

    /// On a system that starts no thread, a task that stays in the queue would hang its waiter.
    #[test]
    fn task_without_thread_names_the_reason() {
        let pool = Pool::with(8, KEEP_ALIVE, |_| no_thread());
        let (kept, dropped) = mpsc::channel::<()>();
        let job = spawn(&pool, move || drop(kept));
        assert!(dropped.try_recv() == Err(mpsc::TryRecvError::Disconnected), "the closure must be gone");
        let error = block_on(job).unwrap_err();
        assert!(error.is_cancelled() && error.to_string().contains("os error"), "{error}");
        assert_eq!(pool.state.lock().threads, 0);
        assert!(!pool.is_busy(|| Waker::noop().clone()), "a paused clock would stand still for ever");
    }

    /// A task that only has to wait for a running thread must not be cancelled.
    #[test]
    fn task_waits_for_running_thread() {
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

    /// The other race in the module's doc: each of two that fail leaves its task to the other's thread.
    #[test]
    fn simultaneous_failures_cancel_both_tasks() {
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

    /// A paused clock would otherwise stand still for ever, or jump while a task is out.
    #[test]
    fn last_task_wakes_idle_waiter() {
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

    /// The end of a runtime must be the end of its threads.
    #[test]
    fn close_drops_tasks_and_ends_threads() {
        let pool = Pool::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let running = spawn(&pool, move || ended.recv().is_err());
        until(&pool, |state| state.running == 1);
        let waiting = spawn(&pool, || ());
        pool.close();
        assert!(block_on(waiting).unwrap_err().is_cancelled());
        assert!(block_on(spawn(&pool, || ())).unwrap_err().is_cancelled(), "too late");
        assert_eq!(pool.wait_for_threads(Some(Instant::now())), (1, 0), "one runs");
        drop(end);
        assert_eq!(pool.wait_for_threads(None), (0, 0));
        assert!(block_on(running).unwrap(), "what runs gives its output");
        assert_eq!(pool.state.lock().threads, 0);
    }
}
