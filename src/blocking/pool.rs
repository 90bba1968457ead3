//! The pool: the queues of blocking tasks, and the threads that run them.
//!
//! # The life of a thread
//! ```text
//!  coming --> looks at the queues --task--> runs it --+
//!   |  ^             ^      |                         |
//!   |  |             +------|-------------------------+
//!   |  | called             v there is no task for it
//!   |  +----------------- idle --10 s, or the pool is closed--> gone
//!   | fails to start                                              ^
//!   +-------------------------------------------------------------+
//! ```
//! A thread reads the counts of [`State`], decides by them and changes them while it holds the lock.
//!
//! # When a thread is called
//! [`Pool::call_thread`] compares the number of tasks that may run with that of the threads that are coming: they were
//! started or woken, and have not had the lock since. If there are more tasks, it wakes an idle thread, or starts one.
//! To count the idle threads would be wrong here. Two tasks in quick succession would both count on the same thread,
//! and the second would wait for the end of the first.
//!
//! It wakes the thread that went idle last. So a few tasks keep a few threads busy, and the others end.
//!
//! # When a thread cannot be started
//! The task stays in its queue. Each new task tries to start a thread again. A thread that has run a task tries once
//! too, if there are tasks left for which no thread comes.
//! 1. A thread that goes idle meanwhile may have found no task, and a later task may count on the thread that cannot be
//!    started. So a failure wakes an idle thread.
//! 2. If the pool has no thread, the caller whose start has failed cancels all tasks, with the system's error. Such a
//!    caller first takes its own thread from `threads`, and then asks whether `threads` is 0. So of two callers that
//!    fail at the same time, the second one finds 0. Otherwise each would leave its task to the other's thread for
//!    ever.
//!
//! # Look-ups
//! Closures may block for ever, and so may look-ups of names: the resolver may wait for a server that does not answer.
//! So each kind has a [`Queue`] with a limit of its own, and neither can take the threads of the other. The limits are
//! the same, except that at least [`MIN_LOOKUPS`] look-ups may run. Any thread runs both kinds, and takes a closure
//! first.
//!
//! There are never more threads than both limits allow together, besides threads that are ending: they run their hook
//! and the destructors of their thread-locals. A thread is started only if no thread is idle, and if more tasks may run
//! than threads are coming.
//!
//! # Memory
//! Half a second after a spike of tasks an idle thread gives the memory of the queues back, and that of the tasks'
//! entries in the runtime's registry. The workers may sleep all the time.
//!
//! # The end
//! [`Pool::release_threads`] wakes the idle threads, which then end, and waits for no thread. A thread that runs a task
//! drops the tasks in the queues when its own task ends, and ends too. A task that comes later is dropped at once. So
//! no closure begins any more, also if the workers are stuck and do not come to [`Pool::close`]. That one drops the
//! tasks in the queues at once.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::executor::{self, BlockingTask};
use crate::live_threads::{Hooks, LiveThreads};
use crate::memory::{ShrinkTimer, shrink_queue};

/// How long a thread waits for another task before it ends.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How many look-ups may run at a time, however few closures may.
const MIN_LOOKUPS: usize = 4;

/// The name of the pool's threads. The system may cut it short.
const THREAD_NAME: &str = "kittiwake-blocking";

/// The threads of one runtime for blocking work.
pub(crate) struct Pool {
    state: Mutex<State>,
    /// The threads, until the destructors of their thread-locals have run.
    live: LiveThreads,
    keep_alive: Duration,
    /// [`start_thread`], except in tests.
    start: fn(Arc<Pool>) -> io::Result<()>,
    /// Has a thread of the pool enter the runtime. Set when the runtime is made, before the first thread.
    enter: OnceLock<Enter>,
}

/// Has the calling thread enter a runtime until the result is dropped.
pub(crate) type Enter = Box<dyn Fn() -> Box<dyn Any> + Send + Sync>;

/// The kind of a blocking task.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A closure of the user's.
    Closure,
    /// A look-up of a name.
    LookUp,
}

struct State {
    closures: Queue,
    lookups: Queue,
    threads: usize,
    /// The threads that wait to be called, in the order in which they went idle.
    idle: Vec<Arc<Condvar>>,
    /// How many threads were started or woken, and have not looked at the queues since.
    coming: usize,
    shrink_timer: ShrinkTimer,
    /// The runtime has ended.
    closed: bool,
    /// Woken when no task waits or runs any more. It is the unparker of a worker whose clock stands still until then.
    on_idle: Option<Waker>,
}

/// The blocking tasks of one kind.
struct Queue {
    waiting: VecDeque<BlockingTask>,
    /// How many run, or are being dropped.
    running: usize,
    /// How many may do so at a time.
    limit: usize,
}

/// The threads of a runtime for blocking work at one moment, and their closures and look-ups of names.
///
/// [`Metrics::blocking`](crate::runtime::Metrics::blocking) returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockingMetrics {
    /// Threads that were started and have not ended.
    pub threads: usize,
    /// Threads of these that wait for work. After 10 seconds an idle thread ends.
    pub idle_threads: usize,
    /// Closures of [`spawn_blocking`](crate::spawn_blocking) that run.
    pub closures_running: usize,
    /// Closures that wait for a thread. While they stay, the runtime has come to
    /// [`max_blocking_threads`](crate::runtime::Builder::max_blocking_threads), or the system starts no more threads.
    pub closures_waiting: usize,
    /// Look-ups of names that run.
    pub lookups_running: usize,
    /// Look-ups of names that wait for a thread.
    pub lookups_waiting: usize,
}

impl Pool {
    /// A pool that runs at most `max_closures` closures at a time. Its threads call `hooks`.
    pub(crate) fn new(max_closures: usize, hooks: Hooks) -> Arc<Self> {
        Self::with_threads(max_closures, KEEP_ALIVE, start_thread, LiveThreads::new(hooks))
    }

    fn with_threads(
        max_closures: usize,
        keep_alive: Duration,
        start: fn(Arc<Pool>) -> io::Result<()>,
        live: LiveThreads,
    ) -> Arc<Self> {
        let state = Mutex::new(State::new(max_closures));
        Arc::new(Self { state, live, keep_alive, start, enter: OnceLock::new() })
    }

    /// Calls `enter` on each thread of the pool, once. Later calls of this function change nothing.
    pub(crate) fn set_enter(&self, enter: Enter) {
        let _ = self.enter.set(enter);
    }

    /// Makes a thread run `task`.
    pub(super) fn submit(self: &Arc<Self>, work: Work, task: BlockingTask) {
        let mut state = self.state.lock();
        if state.closed {
            // Dropped unrun, after the lock.
            drop(state);
            return drop(task);
        }
        state.queue(work).waiting.push_back(task);
        self.call_thread(&mut state);
    }

    /// Wakes or starts a thread, if more tasks may run than threads are coming.
    fn call_thread(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) {
        let may_run = state.closures.may_run() + state.lookups.may_run();
        if may_run <= state.coming || state.closed || state.wake_idle() {
            return;
        }
        state.threads += 1;
        state.coming += 1;
        if let Err(error) = MutexGuard::unlocked(state, || (self.start)(self.clone())) {
            self.not_started(state, &error);
        }
    }

    /// A thread that was called could not be started.
    fn not_started(&self, state: &mut MutexGuard<'_, State>, error: &io::Error) {
        state.threads -= 1;
        state.coming -= 1;
        state.wake_idle();
        let reason = error.raw_os_error().unwrap_or(libc::EAGAIN);
        while state.threads == 0 && self.take(state, |task| task.cancel_without_thread(reason)) {}
    }

    /// Runs tasks, on a thread of the pool.
    fn work(self: &Arc<Self>) {
        THREAD_OF.set(Arc::as_ptr(self));
        // Declared before the lock is taken, and so dropped after it is released.
        let _entered = self.enter.get().map(|enter| enter());
        let call = Arc::new(Condvar::new());
        let mut state = self.state.lock();
        loop {
            // Before this thread takes a task, it is one of those that are coming.
            self.call_thread(&mut state);
            state.coming -= 1;
            let run = if state.closed { drop } else { BlockingTask::run };
            // The closure's panic does not come out of this.
            if self.take(&mut state, run) {
                state.coming += 1;
            } else if state.closed || !self.idle(&mut state, &call) {
                break;
            }
        }
        state.threads -= 1;
    }

    /// Waits until this thread is called by its `call`. Returns `false` if that did not happen for long, and the thread
    /// ends.
    fn idle(&self, state: &mut MutexGuard<'_, State>, call: &Arc<Condvar>) -> bool {
        let until = Instant::now() + self.keep_alive;
        state.idle.push(call.clone());
        let position = |state: &State| state.idle.iter().position(|idle| Arc::ptr_eq(idle, call));
        if let Some(left) = state.shrink_timer.left() {
            let _ = call.wait_while_for(state, |state| position(state).is_some(), left.min(self.keep_alive));
            // Another thread may have done it meanwhile.
            if position(state).is_some() && state.shrink_timer.left() == Some(Duration::ZERO) {
                state.shrink();
                MutexGuard::unlocked(state, executor::shrink_blocking);
            }
        }
        // Its time may be over when it has been called, but has not had the lock. It comes then all the same.
        let _ = call.wait_while_until(state, |state| position(state).is_some(), until);
        match position(state) {
            Some(position) => {
                state.idle.remove(position);
                false
            }
            None => true,
        }
    }

    /// Takes the next task that may run, if there is one, and passes it to `run` outside the lock. A task is foreign
    /// code, run or dropped.
    fn take(&self, state: &mut MutexGuard<'_, State>, run: impl FnOnce(BlockingTask)) -> bool {
        let work = if state.closures.may_run() > 0 { Work::Closure } else { Work::LookUp };
        let Some(task) = state.queue(work).begin() else { return false };
        state.shrink_timer.add(1);
        MutexGuard::unlocked(state, || run(task));
        state.queue(work).running -= 1;
        if state.has_no_task() {
            if let Some(waker) = state.on_idle.take() {
                MutexGuard::unlocked(state, || waker.wake());
            }
        }
        true
    }

    /// Whether a task waits or runs. If so, `waker` is woken when that is over. By then the waiter of the last task has
    /// been woken.
    pub(crate) fn is_busy(&self, waker: impl FnOnce() -> Waker) -> bool {
        let mut state = self.state.lock();
        if state.has_no_task() {
            return false;
        }
        // The worker's own unparker, which runs no foreign code.
        state.on_idle = Some(waker());
        true
    }

    /// The counts of this moment.
    pub(crate) fn metrics(&self) -> BlockingMetrics {
        let state = self.state.lock();
        BlockingMetrics {
            threads: state.threads,
            idle_threads: state.idle.len(),
            closures_running: state.closures.running,
            closures_waiting: state.closures.waiting.len(),
            lookups_running: state.lookups.running,
            lookups_waiting: state.lookups.waiting.len(),
        }
    }

    /// Ends each idle thread at once, and each other thread when its task ends. A thread that ends so drops the tasks
    /// that have not begun.
    pub(crate) fn release_threads(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        while state.wake_idle() {}
    }

    /// Ends the pool, without waiting for its threads. Tasks that have not begun are dropped.
    pub(crate) fn close(&self) {
        self.release_threads();
        let mut state = self.state.lock();
        // It has a descriptor, which a task that goes on must not keep open.
        let on_idle = state.on_idle.take();
        let unrun = [mem::take(&mut state.closures.waiting), mem::take(&mut state.lookups.waiting)];
        drop(state);
        drop(on_idle);
        unrun.into_iter().flatten().for_each(drop);
    }

    /// Waits until the threads of a closed pool have ended, at most until `deadline`. Returns how many threads run a
    /// closure or a look-up even then, and how many others have not ended. On one of these threads it does not wait,
    /// because it would wait for itself.
    pub(crate) fn wait_for_threads(&self, deadline: Option<Instant>) -> (usize, usize) {
        let is_of_pool = THREAD_OF.get() == ptr::from_ref(self);
        let left = self.live.wait(if is_of_pool { Some(Instant::now()) } else { deadline });
        // A caller may be cancelling a task for which no thread could be started.
        let running = self.state.lock().running().min(left);
        (running, left - running)
    }
}

impl State {
    fn new(max_closures: usize) -> Self {
        Self {
            closures: Queue::new(max_closures),
            lookups: Queue::new(max_closures.max(MIN_LOOKUPS)),
            threads: 0,
            idle: Vec::new(),
            coming: 0,
            shrink_timer: ShrinkTimer::default(),
            closed: false,
            on_idle: None,
        }
    }

    fn queue(&mut self, work: Work) -> &mut Queue {
        match work {
            Work::Closure => &mut self.closures,
            Work::LookUp => &mut self.lookups,
        }
    }

    /// How many tasks run, or are being dropped.
    fn running(&self) -> usize {
        self.closures.running + self.lookups.running
    }

    /// Wakes the thread that went idle last. Returns `false` if none is idle.
    fn wake_idle(&mut self) -> bool {
        let Some(thread) = self.idle.pop() else { return false };
        self.coming += 1;
        thread.notify_one();
        true
    }

    /// Gives memory back that a spike has left in the queues.
    fn shrink(&mut self) {
        self.shrink_timer.reset();
        shrink_queue(&mut self.closures.waiting);
        shrink_queue(&mut self.lookups.waiting);
    }

    /// Whether no task waits or runs.
    fn has_no_task(&self) -> bool {
        self.closures.waiting.is_empty() && self.lookups.waiting.is_empty() && self.running() == 0
    }
}

impl Queue {
    fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), running: 0, limit }
    }

    /// How many of the tasks that wait may run.
    fn may_run(&self) -> usize {
        self.waiting.len().min(self.limit - self.running)
    }

    /// Takes the next task that may run, if there is one, and counts it as running.
    fn begin(&mut self) -> Option<BlockingTask> {
        if self.may_run() == 0 {
            return None;
        }
        self.running += 1;
        self.waiting.pop_front()
    }
}

fn start_thread(pool: Arc<Pool>) -> io::Result<()> {
    let live = pool.live.clone();
    live.start(THREAD_NAME.to_owned(), move || pool.work()).map(drop)
}

thread_local! {
    /// The address of the pool that started this thread. The thread keeps the pool as long as it runs tasks. Null on
    /// other threads.
    static THREAD_OF: Cell<*const Pool> = const { Cell::new(ptr::null()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{JoinHandle, WorkerRef, Workers};
    use futures_lite::future::block_on;
    use std::panic::Location;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Barrier, mpsc};
    use std::thread;

    fn worker() -> WorkerRef {
        WorkerRef::new(Workers::new(vec![Waker::noop().clone()], None, None), 0)
    }

    fn spawn<T: Send + 'static>(pool: &Arc<Pool>, closure: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        pool.spawn(&worker(), Work::Closure, closure, Location::caller())
    }

    fn pool_with(max: usize, keep_alive: Duration, start: fn(Arc<Pool>) -> io::Result<()>) -> Arc<Pool> {
        Pool::with_threads(max, keep_alive, start, LiveThreads::default())
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
        let pool = Pool::new(8, Hooks::default());
        let first = block_on(spawn(&pool, || thread::current().id())).unwrap();
        for _ in 0..100 {
            until(&pool, |state| state.idle.len() == 1);
            assert_eq!(block_on(spawn(&pool, || thread::current().id())).unwrap(), first);
        }
        pool.close();
    }

    /// The race of the module's doc: both count on the one idle thread, and the first waits for the second.
    #[test]
    fn two_tasks_get_two_threads() {
        for _ in 0..200 {
            let pool = Pool::new(8, Hooks::default());
            block_on(spawn(&pool, || ())).unwrap();
            until(&pool, |state| state.idle.len() == 1);
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
        let pool = pool_with(8, Duration::from_millis(1), start_thread);
        block_on(spawn(&pool, || ())).unwrap();
        until(&pool, |state| state.threads == 0);
        assert_eq!(block_on(spawn(&pool, || 1)).unwrap(), 1, "and the next job gets a new one");
    }

    /// Runs `count` closures at the same time, each on a thread of its own.
    fn burst(pool: &Arc<Pool>, count: usize) {
        let barrier = Arc::new(Barrier::new(count));
        let jobs: Vec<_> = (0..count)
            .map(|_| {
                let barrier = barrier.clone();
                spawn(pool, move || _ = barrier.wait())
            })
            .collect();
        jobs.into_iter().for_each(|job| block_on(job).unwrap());
    }

    /// Like [`burst`], and waits until all these threads are idle. Their time must not end before.
    fn burst_until_idle(pool: &Arc<Pool>, count: usize) {
        burst(pool, count);
        until(pool, |state| state.idle.len() == count);
    }

    /// A few tasks must keep few threads. If the tasks went around, no thread would ever be idle for long.
    #[test]
    fn newest_idle_thread_is_called() {
        let pool = pool_with(8, Duration::from_secs(3600), start_thread);
        burst_until_idle(&pool, 4);
        let mut ids = Vec::new();
        for _ in 0..100 {
            ids.push(block_on(spawn(&pool, || thread::current().id())).unwrap());
            until(&pool, |state| state.idle.len() == 4);
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "one thread must run them all");
        pool.close();
    }

    /// A pool that was busy once must shrink although tasks come more often than its threads' time ends.
    #[test]
    fn pool_shrinks_under_trickle() {
        let pool = pool_with(8, Duration::from_millis(100), start_thread);
        burst(&pool, 4);
        let deadline = Instant::now() + Duration::from_secs(60);
        while pool.state.lock().threads > 1 {
            block_on(spawn(&pool, || ())).unwrap();
            assert!(Instant::now() < deadline, "the pool keeps {} threads", pool.state.lock().threads);
        }
        pool.close();
    }

    /// A thread whose time is over at the moment when a task counts on it must take the task.
    #[test]
    fn ending_thread_loses_no_task() {
        let pool = pool_with(1, Duration::from_micros(50), start_thread);
        for round in 0..4_000 {
            assert_eq!(block_on(spawn(&pool, move || round)).unwrap(), round);
            // Around the end of the thread's time, before and after.
            let until = Instant::now() + Duration::from_micros(30 + round % 100);
            while Instant::now() < until {}
        }
        until(&pool, |state| state.threads == 0 && state.idle.is_empty() && state.running() == 0);
    }

    fn no_thread<T>() -> io::Result<T> {
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// On a system that starts no thread, a task that stays in the queue would hang its waiter.
    #[test]
    fn task_without_thread_names_the_reason() {
        let pool = pool_with(8, KEEP_ALIVE, |_| no_thread());
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
            pool_with(
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

    /// A system that starts no thread for a moment must not leave the tasks to one thread for ever. But a start that is
    /// tried again and again would spin.
    #[test]
    fn failed_start_is_tried_after_each_task() {
        static STARTS: AtomicUsize = AtomicUsize::new(0);
        let pool = pool_with(8, KEEP_ALIVE, |pool| match STARTS.fetch_add(1, Relaxed) {
            1 | 2 => no_thread(),
            _ => start_thread(pool),
        });
        let (end, ended) = mpsc::channel::<()>();
        let first = spawn(&pool, move || ended.recv().is_err());
        until(&pool, |state| state.running() == 1);
        let barrier = Arc::new(Barrier::new(2));
        let both = [(); 2].map(|()| {
            let barrier = barrier.clone();
            spawn(&pool, move || _ = barrier.wait())
        });
        assert_eq!(STARTS.load(Relaxed), 3, "each task tries to start a thread");
        drop(end);
        until(&pool, |state| state.threads == 2);
        assert!(block_on(first).unwrap());
        both.into_iter().for_each(|job| block_on(job).unwrap());
        assert_eq!(STARTS.load(Relaxed), 4, "the thread that ran the first task tries once");
        pool.close();
    }

    /// A thread that goes idle while another is being started may have been passed over. It must be called if that
    /// start fails.
    #[test]
    fn failed_start_wakes_idle_thread() {
        static START: Barrier = Barrier::new(2);
        static STARTS: AtomicUsize = AtomicUsize::new(0);
        let pool = pool_with(8, KEEP_ALIVE, |pool| {
            if STARTS.fetch_add(1, Relaxed) == 0 {
                return start_thread(pool);
            }
            START.wait();
            START.wait();
            no_thread()
        });
        let (end, ended) = mpsc::channel::<()>();
        let first = spawn(&pool, move || ended.recv().is_err());
        let second = thread::spawn({
            let pool = pool.clone();
            move || spawn(&pool, || 2)
        });
        START.wait();
        drop(end);
        assert!(block_on(first).unwrap());
        until(&pool, |state| state.idle.len() == 1);
        let third = spawn(&pool, || 3);
        assert_eq!(pool.state.lock().idle.len(), 1, "the task counts on the thread that is being started");
        START.wait();
        assert_eq!(block_on(second.join().unwrap()).unwrap(), 2);
        assert_eq!(block_on(third).unwrap(), 3);
        pool.close();
    }

    fn look_up<T: Send + 'static>(pool: &Arc<Pool>, closure: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        pool.spawn(&worker(), Work::LookUp, closure, Location::caller())
    }

    /// Closures that block must hold up no look-up, and look-ups must not let more closures run than the limit.
    #[test]
    fn closures_hold_up_no_lookup() {
        let pool = Pool::new(1, Hooks::default());
        let (end, ended) = mpsc::channel::<()>();
        let first = spawn(&pool, move || ended.recv().is_err());
        let second = spawn(&pool, || 2);
        let barrier = Arc::new(Barrier::new(MIN_LOOKUPS));
        let lookups = [(); MIN_LOOKUPS].map(|()| {
            let barrier = barrier.clone();
            look_up(&pool, move || _ = barrier.wait())
        });
        lookups.into_iter().for_each(|lookup| block_on(lookup).unwrap());
        until(&pool, |state| state.idle.len() == MIN_LOOKUPS);
        assert!(!second.is_finished(), "only one closure may run");
        drop(end);
        assert!(block_on(first).unwrap());
        assert_eq!(block_on(second).unwrap(), 2);
        pool.close();
    }

    /// Look-ups that wait for a silent server must hold up no closure, and have a limit too.
    #[test]
    fn lookups_hold_up_no_closure() {
        for (max, limit) in [(1, MIN_LOOKUPS), (6, 6)] {
            let pool = Pool::new(max, Hooks::default());
            let end = Arc::new(Barrier::new(limit + 1));
            let lookups: Vec<_> = (0..2 * limit)
                .map(|_| {
                    let end = end.clone();
                    look_up(&pool, move || _ = end.wait())
                })
                .collect();
            until(&pool, |state| state.threads == limit && state.running() == limit);
            burst_until_idle(&pool, max);
            until(&pool, |state| state.threads == max + limit && state.running() == limit);
            end.wait();
            end.wait();
            lookups.into_iter().for_each(|lookup| block_on(lookup).unwrap());
            pool.close();
        }
    }

    /// The other race in the module's doc: each of two that fail leaves its task to the other's thread.
    #[test]
    fn simultaneous_failures_cancel_both_tasks() {
        static BOTH: Barrier = Barrier::new(2);
        let pool = pool_with(8, KEEP_ALIVE, |_| {
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
        let pool = Pool::new(1, Hooks::default());
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
        let pool = Pool::new(1, Hooks::default());
        let (end, ended) = mpsc::channel::<()>();
        let running = spawn(&pool, move || ended.recv().is_err());
        until(&pool, |state| state.running() == 1);
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
