//! The executor: what a worker is to run, and who may tell it so.
//!
//! It knows no reactor. A worker's half is the [`Executor`], which hands out what is
//! to be run next; the other half is its [`Home`], to which tasks refer: an
//! [inbox] for other threads to post to, and the [list] of tasks.
//!
//! # The way of a task
//! 1. [`spawn`] wraps the future ([`task`]), enters it into the list and schedules it.
//! 2. [`schedule`], which is also what its wakers do, pushes it to the thread-local
//!    queue if this is its worker's thread, and posts it to the inbox if not.
//! 3. The worker takes it ([`Executor::next`]), in order, and runs it.
//! 4. Its future ends, panics or is aborted: the wrapper is dropped and leaves the list.
//!
//! # The queue
//! A thread has one, and no lock: [`QUEUE`]. What is woken while the worker runs a batch
//! gathers there; when the batch is used up the two are swapped, so that taking
//! an entry touches neither the thread-local nor its borrow flag.
//!
//! # The end
//! [`Executor::abort`] aborts what it is told to (the local tasks when a `block_on` call
//! returns, all tasks when the runtime ends) and the worker runs on until
//! they are gone. Only then does the inbox close.

mod inbox;
mod join;
mod join_set;
mod list;
mod task;
mod yield_now;

use std::cell::{Cell, RefCell};
use std::mem::{self, ManuallyDrop};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

pub use join::{AbortHandle, JoinError, JoinHandle};
pub use join_set::JoinSet;
pub use task::Id;
pub use yield_now::{YieldNow, yield_now};

use inbox::Inbox;
pub(crate) use list::Which;
use list::{Kind, TaskList};
pub(crate) use task::{LARGE, Runnable, is_local, refuse, run, spawn_job};

use crate::budget;

/// Runs a future as a task of the current runtime, beside its caller.
///
/// The task starts when the caller next waits, and goes on whether or not the
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
    task::spawn(&Home::expect("spawn"), future, Location::caller())
}

/// Runs a future as a task that stays on this thread, so that it need not be `Send`.
///
/// The task belongs to the [`block_on`](crate::block_on) call it is spawned in, and is dropped, on
/// this thread, before that call returns. In all else it is like [`spawn`]'s.
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
    task::spawn_local(&Home::expect("spawn_local"), future, Location::caller())
}

/// Something for a worker to run.
pub(crate) enum Entry {
    /// The future of the `block_on` call that the worker is in.
    Main,
    Task(Runnable),
}

/// The half of a worker that its tasks and other threads refer to.
pub(crate) struct Home {
    inbox: Inbox<Entry>,
    tasks: TaskList,
}

impl Home {
    /// The home of this thread's worker.
    pub(crate) fn current() -> Option<Arc<Self>> {
        HOME.with(|home| home.borrow().clone())
    }

    #[track_caller]
    fn expect(function: &str) -> Arc<Self> {
        // Not `unwrap_or_else`: the panic is to point to the caller.
        let Some(home) = Self::current() else {
            panic!(
                "kittiwake::{function} was called outside a runtime: call it inside \
                 kittiwake::block_on or Runtime::block_on, or use Handle::spawn from elsewhere"
            );
        };
        home
    }

    /// How many tasks still have their future.
    pub(crate) fn tasks(&self) -> usize {
        self.tasks.len(Which::All)
    }

    /// Runs a future as a task of this worker, from any thread.
    pub(crate) fn spawn<F>(self: &Arc<Self>, future: F, location: &'static Location<'static>) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        task::spawn(self, future, location)
    }
}

/// Makes a task's entry go where it will be run. This is the whole of what waking a task does.
///
/// A plain function, because async-task moves the waker's reference into the
/// entry if nothing has to be captured.
#[inline]
fn schedule(runnable: Runnable) {
    if is_here(&runnable.metadata().home) {
        push(Entry::Task(runnable));
    } else {
        post(runnable);
    }
}

/// Posts an entry to its home's inbox.
#[cold]
fn post(runnable: Runnable) {
    let home = runnable.metadata().home.clone();
    if let Err(entry) = home.inbox.post(Entry::Task(runnable)) {
        discard(entry);
    }
}

/// Whether this thread is the worker's that `home` belongs to.
#[inline]
fn is_here(home: &Arc<Home>) -> bool {
    ADDRESS.get() == Arc::as_ptr(home).addr()
}

#[inline]
fn push(entry: Entry) {
    QUEUE.with(|queue| queue.borrow_mut().push(entry));
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

// None of these has a destructor, so that they can be used at any time in a thread's life: a runtime may be dropped, and a
// task woken, by another thread-local's destructor. They are empty by then, since [`Entered`] restores what was there.
thread_local! {
    /// Where the [`Home`] of the worker on this thread is, or 0: for comparing, which is all that waking needs.
    static ADDRESS: Cell<usize> = const { Cell::new(0) };
    /// What was woken on this thread and not yet taken by [`Executor::next`].
    static QUEUE: ManuallyDrop<RefCell<Vec<Entry>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
    /// The worker on this thread.
    static HOME: ManuallyDrop<RefCell<Option<Arc<Home>>>> = const { ManuallyDrop::new(RefCell::new(None)) };
}

/// While this lives, `spawn` and the wakers of its tasks find the worker on this thread.
pub(crate) struct Entered {
    previous: Option<Arc<Home>>,
    /// The queue of the worker that was on this thread before.
    queue: Vec<Entry>,
    budget: budget::Saved,
}

/// Whether this thread is inside a worker already.
pub(crate) fn is_entered() -> bool {
    ADDRESS.get() != 0
}

impl Drop for Entered {
    fn drop(&mut self) {
        let previous = self.previous.take();
        ADDRESS.set(previous.as_ref().map_or(0, |home| Arc::as_ptr(home).addr()));
        let left = QUEUE.with(|queue| queue.replace(mem::take(&mut self.queue)));
        debug_assert!(left.is_empty(), "Executor::leave takes what is left");
        drop(HOME.with(|home| home.replace(previous)));
        budget::restore(self.budget);
    }
}

/// The worker's own half.
pub(crate) struct Executor {
    home: Arc<Home>,
    /// What is being run, the next one last; what is woken meanwhile gathers in [`QUEUE`].
    batch: Vec<Entry>,
}

impl Executor {
    /// `ring` is woken to end the worker's block, from any thread.
    pub(crate) fn new(ring: Waker) -> Self {
        let home = Arc::new(Home { inbox: Inbox::new(ring), tasks: TaskList::new() });
        Self { home, batch: Vec::new() }
    }

    pub(crate) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Makes this thread the worker's.
    pub(crate) fn enter(&self) -> Entered {
        let previous = HOME.with(|home| home.replace(Some(self.home.clone())));
        ADDRESS.set(Arc::as_ptr(&self.home).addr());
        Entered { previous, queue: QUEUE.with(|queue| queue.take()), budget: budget::suspend() }
    }

    /// Begins a `block_on` call: local tasks may be spawned in it.
    pub(crate) fn open(&mut self) {
        self.home.tasks.open_to_local();
        self.take_posts();
    }

    /// The next entry to run.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Entry> {
        if self.batch.is_empty() {
            QUEUE.with(|queue| mem::swap(&mut self.batch, &mut queue.borrow_mut()));
            self.batch.reverse();
        }
        self.batch.pop()
    }

    /// Whether [`next`](Executor::next) would return something.
    #[inline]
    pub(crate) fn has_next(&self) -> bool {
        !self.batch.is_empty() || QUEUE.with(|queue| !queue.borrow().is_empty())
    }

    /// Runs one entry of the queue that is not the main future.
    #[inline]
    pub(crate) fn run(&self, task: Runnable) {
        budget::refill();
        run(task);
    }

    /// Says that the worker is about to block; `false` if it must not.
    #[inline]
    pub(crate) fn park(&self) -> bool {
        self.home.inbox.park()
    }

    /// Says that the worker looks for posts by itself; `false` if there are some.
    pub(crate) fn poll(&self) -> bool {
        self.home.inbox.poll()
    }

    pub(crate) fn has_posts(&self) -> bool {
        self.home.inbox.is_rung()
    }

    /// The worker is awake: what other threads posted comes after what is queued here.
    #[inline]
    pub(crate) fn take_posts(&mut self) {
        QUEUE.with(|queue| self.home.inbox.take(&mut queue.borrow_mut()));
    }

    /// Tells tasks to end; they do when they are run. No new ones are let in.
    pub(crate) fn abort(&self, which: Which) {
        self.home.tasks.abort(which);
    }

    /// How many tasks still have their future.
    pub(crate) fn tasks(&self, which: Which) -> usize {
        self.home.tasks.len(which)
    }

    /// Ends a `block_on` call: `deferred` and whatever else is left stays for the next one.
    pub(crate) fn leave(&mut self, mut deferred: Vec<Entry>) {
        deferred.extend(self.batch.drain(..).rev());
        deferred.append(&mut QUEUE.with(|queue| queue.take()));
        deferred.retain(|entry| matches!(entry, Entry::Task(_)));
        self.home.inbox.put_back(deferred);
    }

    /// Refuses everything from now on. All tasks are gone.
    pub(crate) fn close(&mut self) {
        let left = self.home.inbox.close();
        left.into_iter().for_each(discard);
    }

    /// Makes the waker of the future that this worker's `block_on` call runs.
    pub(crate) fn main_waker(&self) -> MainWaker {
        MainWaker(Arc::new(Main { home: self.home.clone(), queued: AtomicBool::new(false) }))
    }
}

/// Wakes the future of a `block_on` call: it is queued like any task.
pub(crate) struct MainWaker(Arc<Main>);

struct Main {
    home: Arc<Home>,
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
        if is_here(&self.home) {
            return push(Entry::Main);
        }
        // Refused: the runtime has ended, and the future with it.
        let _ = self.home.inbox.post(Entry::Main);
    }
}
