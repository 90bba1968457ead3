//! The executor: what a worker is to run, and who may tell it so.
//!
//! It knows no reactor. A worker's half is the [`Executor`], which hands out what is
//! to be run next; the other half is in [`Workers`], to which tasks refer: for each worker of the runtime an
//! [inbox] for other threads to post to, a [queue](queues) and a [list] of tasks.
//!
//! # The way of a task
//! 1. [`spawn`] wraps the future ([`task`]), enters it into the list and schedules it.
//! 2. [`schedule`], which is also what its wakers do, pushes it on this thread if this is a worker that may run
//!    it, and posts it to one if not.
//! 3. A worker takes it ([`Executor::next`], [`Executor::run_until_main`]), in order, and runs it.
//! 4. Its future ends, panics or is aborted: the wrapper is dropped and leaves the list.
//!
//! # The queues
//! A thread has one, and no lock: [`QUEUE`], for what only this worker may run. What is woken while the worker runs a batch
//! gathers there; when the batch is used up the two are swapped, so that taking
//! an entry touches neither the thread-local nor its borrow flag. Where a runtime has one worker that is all.
//!
//! With several, tasks made by [`spawn`] are in the worker's [queue](queues), behind a lock, where [others can take
//! them](sharing). What the reactor and the timers wake, between two batches, is [`GATHERED`] and put there at once
//! ([`Executor::begin_batch`]); what a task wakes is put there as it comes, because the same task may go on for long.
//!
//! # The end
//! [`Executor::abort_local`] ends the local tasks when a `block_on` call returns, [`Workers::abort_all`] all tasks when the
//! runtime ends, and the workers run on until they are gone. Only then do the inboxes close.

mod idle;
mod inbox;
mod join;
mod join_set;
mod list;
#[cfg(all(test, kittiwake_loom))]
mod models;
mod queues;
mod sharing;
mod task;
mod workers;
mod yield_now;

use std::cell::{Cell, RefCell, RefMut};
use std::mem::{self, ManuallyDrop};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread::LocalKey;
use std::time::{Duration, Instant};

pub use join::{AbortHandle, JoinError, JoinHandle};
pub use join_set::JoinSet;
pub use task::Id;
pub use yield_now::{YieldNow, yield_now};

use inbox::Inbox;
use list::Kind;
pub(crate) use list::Which;
pub(crate) use task::{LARGE, Runnable, is_local, job, refuse, run};

use queues::Remote;
use sharing::Sharing;
pub(crate) use workers::Workers;

use crate::budget;

/// Runs a future as a task of the current runtime, beside its caller.
///
/// The task starts when the caller next waits, or on another worker before that, and goes on whether or not the
/// returned handle is kept. It ends with its future; when it is
/// [aborted](JoinHandle::abort); or when its runtime ends. A panic in it ends it alone, and the
/// handle says so.
///
/// # Panics
/// Outside a runtime: on a thread that is not inside [`block_on`](crate::block_on) there is
/// nobody to run the task. Use [`Handle::spawn`](crate::runtime::Handle::spawn) there.
///
/// # Examples
/// ```
/// let sum = kittiwake::block_on(async {
///     let tasks: Vec<_> = (1..=4).map(|i| kittiwake::spawn(async move { i * i })).collect();
///     let mut sum = 0;
///     for task in tasks {
///         sum += task.await?;
///     }
///     Ok::<_, kittiwake::task::JoinError>(sum)
/// });
/// assert_eq!(sum.unwrap(), 30);
/// ```
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if size_of::<F>() > LARGE { spawn_named("spawn", Box::pin(future)) } else { spawn_named("spawn", future) }
}

/// Runs a future as a task that stays on this thread, so that it need not be `Send`.
///
/// The task belongs to the [`block_on`](crate::block_on) call it is spawned in, and is dropped, on
/// this thread, before that call returns. Spawned in a task on one of several workers, it belongs to that worker, until the
/// runtime ends. In all else it is like [`spawn`]'s.
///
/// # Panics
/// Outside a runtime, like [`spawn`].
///
/// # Examples
/// ```
/// use std::{cell::Cell, rc::Rc};
///
/// kittiwake::block_on(async {
///     let count = Rc::new(Cell::new(0));
///     let task = kittiwake::spawn_local({
///         let count = count.clone();
///         async move { count.set(count.get() + 1) }
///     });
///     task.await.unwrap();
///     assert_eq!(count.get(), 1);
/// });
/// ```
#[track_caller]
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    if size_of::<F>() > LARGE {
        spawn_local_named("spawn_local", Box::pin(future))
    } else {
        spawn_local_named("spawn_local", future)
    }
}

/// [`spawn`] for whoever calls it by another name.
#[track_caller]
fn spawn_named<F>(function: &str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let location = Location::caller();
    // Not `unwrap_or_else`: the panic is to point to the caller.
    match Current::make(|home| task::shared(home, future, location)) {
        Some(made) => made.start(),
        None => outside(function),
    }
}

/// [`spawn_local`] for whoever calls it by another name.
#[track_caller]
fn spawn_local_named<F>(function: &str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let location = Location::caller();
    match Current::make_here(|home| task::local(home, future, location)) {
        Some(made) => made.start(),
        None => outside(function),
    }
}

/// Something for a worker to run.
pub(crate) enum Entry {
    /// The future of the `block_on` call that the worker is in.
    Main,
    Task(Runnable),
}

/// A worker, as its tasks and other threads refer to it.
#[derive(Clone)]
pub(crate) struct Home {
    workers: Arc<Workers>,
    index: usize,
    /// What is known by these addresses may be run by this worker alone, or by all: [`Workers::gates`].
    own: usize,
    shared: usize,
}

impl Home {
    pub(crate) fn new(workers: Arc<Workers>, index: usize) -> Self {
        let (own, shared) = workers.gates(index);
        Self { workers, index, own, shared }
    }

    /// How many tasks that were spawned here still have their future.
    pub(crate) fn tasks_alive(&self) -> usize {
        self.workers.tasks_alive(self.index)
    }

    /// How often another thread had something run here.
    pub(crate) fn posts(&self) -> u64 {
        self.workers.queues.posts(self.index)
    }

    #[inline]
    fn remote(&self) -> &Remote<Entry, Runnable> {
        self.workers.queues.remote(self.index)
    }

    #[inline]
    fn inbox(&self) -> &Inbox<Entry> {
        &self.remote().inbox
    }

    /// Where a task of these workers is spawned: on the worker of this thread, if it is one of them, or the least loaded.
    pub(crate) fn to_spawn_on(workers: &Arc<Workers>) -> Self {
        let here = Current::get().map(|current| current.home).filter(|home| Arc::ptr_eq(&home.workers, workers));
        here.unwrap_or_else(|| Self::new(workers.clone(), workers.least_loaded()))
    }

    /// Runs a future as a task of these workers, from any thread.
    pub(crate) fn spawn<F>(&self, future: F, location: &'static Location<'static>) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        task::shared(self, future, location).start()
    }
}

/// Who is on a thread.
#[derive(Clone)]
struct Current {
    /// The worker.
    home: Home,
    /// Those who run what is spawned here, if it is others: on a thread that is in `block_on` beside several workers.
    spawns: Option<Arc<Workers>>,
}

impl Current {
    fn get() -> Option<Self> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Passes the home of what is spawned here to `make`, which makes a task and runs no foreign code: the thread-local is
    /// borrowed. `None` outside a runtime.
    #[inline]
    fn make<R>(make: impl FnOnce(&Home) -> R) -> Option<R> {
        CURRENT.with(|current| {
            let current = current.borrow();
            let Current { home, spawns } = current.as_ref()?;
            let elsewhere;
            let home = match spawns {
                None => home,
                Some(workers) => {
                    elsewhere = Home::new(workers.clone(), workers.least_loaded());
                    &elsewhere
                }
            };
            // Called at one place, so that it is inlined, however much it does.
            Some(make(home))
        })
    }

    /// Those who run what is spawned here.
    fn spawns(&self) -> &Arc<Workers> {
        self.spawns.as_ref().unwrap_or(&self.home.workers)
    }

    /// As [`make`](Current::make), for a task that is to stay here.
    #[inline]
    fn make_here<R>(make: impl FnOnce(&Home) -> R) -> Option<R> {
        CURRENT.with(|current| current.borrow().as_ref().map(|current| make(&current.home)))
    }
}

/// Where a blocking closure's task stands in a list: at the home of what is spawned on this thread.
pub(crate) fn current_home() -> Option<Home> {
    Current::make(Home::clone)
}

#[cold]
#[track_caller]
fn outside(function: &str) -> ! {
    panic!(
        "kittiwake::{function} was called outside a runtime: call it inside \
         kittiwake::block_on or Runtime::block_on, or use Handle::spawn from elsewhere"
    );
}

/// How many workers run what is spawned on this thread; 0 outside a runtime.
pub(crate) fn workers_here() -> usize {
    Current::get().map_or(0, |current| current.spawns().len())
}

/// Like [`spawn`], and the task begins on the worker of this number.
#[track_caller]
pub(crate) fn spawn_placed<F>(worker: usize, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Some(current) = Current::get() else { outside("spawn") };
    let home = Home::new(current.spawns().clone(), worker);
    task::shared(&home, future, Location::caller()).start_on(&home)
}

/// Makes a task's entry go where it will be run. This is the whole of what waking a task does.
///
/// A plain function, because async-task moves the waker's reference into the
/// entry if nothing has to be captured.
#[inline]
fn schedule(runnable: Runnable) {
    if runnable.metadata().gate == OWN.get() {
        push(Entry::Task(runnable));
    } else {
        schedule_beside_others(runnable);
    }
}

/// As [`schedule`], if the task is not this worker's own.
// Not inlined: what it would save there, it costs where there is one worker.
#[inline(never)]
fn schedule_beside_others(runnable: Runnable) {
    if runnable.metadata().gate != SHARED.get() {
        post(runnable);
    } else if IN_BATCH.get() {
        push_shared(runnable);
    } else {
        push_to(&GATHERED, runnable);
    }
}

/// Queues a task behind the one that runs here, where others can take it.
#[inline(never)]
fn push_shared(runnable: Runnable) {
    CURRENT.with(|current| {
        if let Some(Current { home, .. }) = &*current.borrow() {
            home.workers.queues.push(home.index, runnable);
        }
    });
}

/// Posts an entry to a worker that may run it.
#[cold]
fn post(runnable: Runnable) {
    let metadata = runnable.metadata();
    let workers = metadata.workers.clone();
    let refused = if workers.is_several() && metadata.kind == Kind::Shared {
        workers.queues.post(metadata.last_worker(), runnable).map_err(Entry::Task)
    } else {
        workers.queues.remote(metadata.last_worker()).inbox.post(Entry::Task(runnable))
    };
    if let Err(entry) = refused {
        discard(entry);
    }
}

#[inline]
fn push(entry: Entry) {
    push_to(&QUEUE, entry);
}

/// Queues something on this thread.
// What is rare is passed what is queued, so that the usual way has nothing to keep for it.
#[inline]
fn push_to<T>(queue: &'static LocalKey<ThreadQueue<T>>, new: T) {
    queue.with(|queue| match queue.try_borrow_mut() {
        Ok(mut queue) if queue.len() < queue.capacity() => queue.push(new),
        Ok(queue) => push_and_grow(queue, new),
        Err(_) => push_while_borrowed(new),
    });
}

#[cold]
#[inline(never)]
fn push_and_grow<T>(mut queue: RefMut<'_, Vec<T>>, new: T) {
    queue.push(new);
}

#[cold]
#[inline(never)]
fn push_while_borrowed<T>(_: T) {
    unreachable!("nothing is woken while a queue is borrowed");
}

/// Gets rid of an entry that no worker will run.
fn discard(entry: Entry) {
    if is_local(&entry) {
        // async-task ends the process when a local task is dropped on another
        // thread. Its memory is the smaller loss.
        mem::forget(entry);
    } else if let Entry::Task(runnable) = entry {
        task::end(runnable);
    }
}

/// A queue of one thread, without a destructor.
type ThreadQueue<T> = ManuallyDrop<RefCell<Vec<T>>>;

// None of these has a destructor, so that they can be used at any time in a thread's life: a runtime may be dropped, and a
// task woken, by another thread-local's destructor. They are empty by then, since [`Entered`] restores what was there.
thread_local! {
    /// What only the worker on this thread may run is known by this address, or 0: for comparing, which is all that waking
    /// needs.
    static OWN: Cell<usize> = const { Cell::new(0) };
    /// What this worker may run as well as others is known by this, or 0 is there if nothing is.
    static SHARED: Cell<usize> = const { Cell::new(0) };
    /// The worker runs tasks; else it waits, or deals with what it has waited for.
    static IN_BATCH: Cell<bool> = const { Cell::new(false) };
    /// What was woken on this thread, is its worker's own, and is in no batch yet.
    static QUEUE: ThreadQueue<Entry> = const { ThreadQueue::new(RefCell::new(Vec::new())) };
    /// What was woken on this thread between two batches and is to be shared.
    static GATHERED: ThreadQueue<Runnable> = const { ThreadQueue::new(RefCell::new(Vec::new())) };
    /// The worker on this thread.
    static CURRENT: ManuallyDrop<RefCell<Option<Current>>> = const { ManuallyDrop::new(RefCell::new(None)) };
}

/// While this lives, `spawn` and the wakers of its tasks find the worker on this thread.
pub(crate) struct Entered {
    /// The worker that was on this thread before, and its queue.
    previous: Option<Current>,
    queue: Vec<Entry>,
    gathered: Vec<Runnable>,
    in_batch: bool,
    budget: budget::Saved,
}

/// Whether this thread is inside a worker already.
pub(crate) fn is_entered() -> bool {
    OWN.get() != 0
}

/// Puts a worker on this thread, or none, and returns who was there.
fn replace(current: Option<Current>) -> Option<Current> {
    let (own, shared) = current.as_ref().map_or((0, 0), |current| (current.home.own, current.home.shared));
    OWN.set(own);
    SHARED.set(shared);
    CURRENT.with(|here| here.replace(current))
}

impl Drop for Entered {
    fn drop(&mut self) {
        let ours = replace(self.previous.take());
        let left = QUEUE.with(|queue| queue.replace(mem::take(&mut self.queue)));
        let gathered = GATHERED.with(|gathered| gathered.replace(mem::take(&mut self.gathered)));
        debug_assert!(left.is_empty() && gathered.is_empty(), "Executor::leave takes what is left");
        IN_BATCH.set(self.in_batch);
        drop(ours);
        budget::restore(self.budget);
    }
}

/// The worker's own half.
pub(crate) struct Executor {
    home: Home,
    /// Those who run what is spawned on this worker's thread, if it is others.
    spawns: Option<Arc<Workers>>,
    /// What is being run, the next one last; what is woken meanwhile gathers in [`QUEUE`].
    batch: Vec<Entry>,
    /// What a worker knows that has others beside it.
    sharing: Option<Sharing>,
    /// The next entry is one of the shared ones, if there is one.
    shared_next: bool,
}

impl Executor {
    pub(crate) fn new(home: Home) -> Self {
        let workers = &home.workers;
        let sharing = workers.is_several().then(|| Sharing::new(workers.len(), Instant::now()));
        Self { home, spawns: None, batch: Vec::new(), sharing, shared_next: false }
    }

    /// As [`new`](Executor::new), for a thread whose spawned tasks `spawns` are to run.
    pub(crate) fn beside(home: Home, spawns: Arc<Workers>) -> Self {
        Self { spawns: Some(spawns), ..Self::new(home) }
    }

    /// Makes this thread the worker's.
    pub(crate) fn enter(&self) -> Entered {
        let previous = replace(Some(Current { home: self.home.clone(), spawns: self.spawns.clone() }));
        Entered {
            previous,
            queue: QUEUE.with(|queue| queue.take()),
            gathered: GATHERED.with(|gathered| gathered.take()),
            in_batch: IN_BATCH.replace(false),
            budget: budget::suspend(),
        }
    }

    /// Begins a `block_on` call: local tasks may be spawned in it.
    pub(crate) fn open(&mut self) {
        self.home.workers.tasks.open_to_local(self.home.index);
        self.take_posts();
    }

    /// The next entry to run.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Entry> {
        if self.sharing.is_some() { self.next_beside_others() } else { next_own(&mut self.batch) }
    }

    #[inline(never)]
    fn next_beside_others(&mut self) -> Option<Entry> {
        next_of_both(&mut self.batch, self.home.remote(), self.home.index, &mut self.shared_next)
    }

    /// Whether the entry that was just taken is the last of its batch, as far as is known here.
    #[inline]
    pub(crate) fn is_last(&self) -> bool {
        self.batch.is_empty() && self.sharing.is_none()
    }

    /// Runs a task, with the budget of a poll.
    #[inline]
    pub(crate) fn run(task: Runnable) {
        budget::refill();
        run(task);
    }

    /// Runs a task and those that come next, `most` of them in all, until none is left, or it is the turn of the main future.
    /// Returns how many it ran, and whether it is.
    // Not inlined: the loop has the registers to itself.
    #[inline(never)]
    pub(crate) fn run_until_main(&mut self, first: Runnable, most: u64) -> (u64, bool) {
        let Self { home, batch, sharing, shared_next, .. } = self;
        let Some(sharing) = sharing else { return run_all(first, most, || next_own(batch)) };
        let remote = home.remote();
        let (ran, is_main_next) = run_all(first, most, || next_of_both(batch, remote, home.index, shared_next));
        sharing.work(ran);
        (ran, is_main_next)
    }

    /// Whether [`next`](Executor::next) would return something.
    #[inline]
    pub(crate) fn has_next(&self) -> bool {
        !self.batch.is_empty() || QUEUE.with(|queue| !queue.borrow().is_empty())
    }

    /// Begins a batch: what the worker has waited for may be run, here or elsewhere.
    #[inline]
    pub(crate) fn begin_batch(&mut self) {
        if self.sharing.is_some() {
            self.begin_shared_batch();
        }
    }

    fn begin_shared_batch(&mut self) {
        let has_own = self.has_next();
        // Now, and not when the shared queue is empty, which it need never be.
        if has_own && self.batch.is_empty() {
            swap(&mut self.batch);
        }
        if let Some(sharing) = &mut self.sharing {
            let Home { workers, index, .. } = &self.home;
            GATHERED.with(|gathered| {
                sharing.begin(&workers.queues, *index, &mut gathered.borrow_mut(), has_own, Instant::now);
            });
            IN_BATCH.set(true);
        }
    }

    /// Ends a batch.
    #[inline]
    pub(crate) fn end_batch(&self) {
        IN_BATCH.set(false);
    }

    /// Whether there is nothing left to run, and the worker may block.
    #[inline]
    pub(crate) fn rest(&mut self) -> bool {
        !self.has_next() && self.sharing.as_mut().is_none_or(|sharing| rest_shared(sharing, &self.home))
    }

    /// How long the idle worker may block at the most, before it looks at the others' queues.
    #[inline]
    pub(crate) fn watch(&self) -> Option<Duration> {
        self.sharing.as_ref().and_then(Sharing::watch)
    }

    /// The worker has looked at the kernel. What other threads posted comes after what is queued here.
    #[inline]
    pub(crate) fn rise(&mut self) {
        self.take_posts();
        if let Some(sharing) = &mut self.sharing {
            sharing.rise(&self.home.workers.queues);
        }
    }

    /// Says that the worker is about to block; `false` if it must not.
    #[inline]
    pub(crate) fn park(&self) -> bool {
        self.home.inbox().park()
    }

    /// Says that the worker looks for posts by itself; `false` if there are some.
    pub(crate) fn poll(&self) -> bool {
        self.home.inbox().poll()
    }

    pub(crate) fn has_posts(&self) -> bool {
        self.home.inbox().is_rung()
    }

    /// The worker is awake: what other threads posted comes after what is queued here.
    #[inline]
    pub(crate) fn take_posts(&mut self) {
        QUEUE.with(|queue| self.home.inbox().take(&mut queue.borrow_mut()));
    }

    /// Tells this worker's local tasks to end; they do when they are run. No new ones are let in.
    pub(crate) fn abort_local(&self) {
        self.home.workers.tasks.abort_local(self.home.index);
    }

    /// Whether tasks that were told to end have not: this worker's local ones, or all of the runtime's.
    pub(crate) fn has_tasks(&self, which: Which) -> bool {
        match which {
            Which::Local => self.home.workers.tasks.len(self.home.index, which) > 0,
            Which::All => !self.home.workers.tasks.are_dead(),
        }
    }

    /// Ends a `block_on` call: `deferred` and whatever else is left stays for the next one.
    pub(crate) fn leave(&mut self, mut deferred: Vec<Entry>) {
        deferred.extend(self.batch.drain(..).rev());
        deferred.append(&mut QUEUE.with(|queue| queue.take()));
        deferred.extend(GATHERED.with(|gathered| gathered.take()).into_iter().map(Entry::Task));
        deferred.retain(|entry| matches!(entry, Entry::Task(_)));
        self.home.inbox().put_back(deferred);
    }

    /// Refuses everything from now on. All tasks are gone.
    pub(crate) fn close(&mut self) {
        self.home.workers.close(self.home.index);
    }

    /// Makes the waker of the future that this worker's `block_on` call runs.
    pub(crate) fn main_waker(&self) -> MainWaker {
        MainWaker(Arc::new(Main { home: self.home.clone(), queued: AtomicBool::new(false) }))
    }
}

/// As [`Executor::run_until_main`].
#[inline]
fn run_all(first: Runnable, most: u64, mut next: impl FnMut() -> Option<Entry>) -> (u64, bool) {
    Executor::run(first);
    let mut ran = 1;
    while ran < most {
        match next() {
            Some(Entry::Task(task)) => Executor::run(task),
            Some(Entry::Main) => return (ran, true),
            None => break,
        }
        ran += 1;
    }
    (ran, false)
}

/// As [`Executor::rest`], for a worker that has others beside it and nothing of its own.
fn rest_shared(sharing: &mut Sharing, Home { workers, index, .. }: &Home) -> bool {
    GATHERED.with(|gathered| sharing.rest(&workers.queues, *index, &mut gathered.borrow_mut(), Instant::now))
}

/// The next of a worker's own entries.
#[inline]
fn next_own(batch: &mut Vec<Entry>) -> Option<Entry> {
    let next = batch.pop();
    if next.is_some() {
        return next;
    }
    swap(batch);
    batch.pop()
}

/// The next of a worker's own entries and of the shared ones, in turn.
// Always: in a loop, most of it is done once.
#[inline(always)]
fn next_of_both(
    batch: &mut Vec<Entry>,
    remote: &Remote<Entry, Runnable>,
    index: usize,
    shared_next: &mut bool,
) -> Option<Entry> {
    if !batch.is_empty() {
        *shared_next = !*shared_next;
        if !*shared_next {
            return batch.pop();
        }
    }
    let Some(task) = remote.pop() else { return next_own(batch) };
    task.metadata().note_worker(index);
    Some(Entry::Task(task))
}

/// The batch is used up: what has gathered meanwhile is the next.
#[inline]
fn swap(batch: &mut Vec<Entry>) {
    QUEUE.with(|queue| mem::swap(batch, &mut queue.borrow_mut()));
    batch.reverse();
}

/// Wakes the future of a `block_on` call: it is queued like any task.
pub(crate) struct MainWaker(Arc<Main>);

struct Main {
    home: Home,
    /// An entry for it is in some queue.
    queued: AtomicBool,
}

impl MainWaker {
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    /// The entry has been taken, and the future is about to be polled: a wake from now on queues
    /// another one. Acquires what the waking thread did before.
    #[inline]
    pub(crate) fn taken(&self) {
        self.0.queued.swap(false, Ordering::AcqRel);
        budget::refill();
    }
}

impl Wake for Main {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if OWN.get() == self.home.own {
            return push(Entry::Main);
        }
        // Refused: the runtime has ended, and the future with it.
        let _ = self.home.inbox().post(Entry::Main);
    }
}
