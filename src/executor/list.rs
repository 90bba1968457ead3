//! List: the tasks of a runtime, so that it can end them.
//!
//! A task that waits is referred to by the wakers it has given away, and by
//! nobody else. At shutdown each must be dropped all the same, by a
//! worker: so the list keeps one waker of each, and a task that was told to end
//! and is woken drops its future the next time a worker runs it.
//!
//! An entry is made when the task is spawned and goes when the task's future is
//! dropped, whether it ended, panicked or was aborted.
//!
//! There is a list for each worker, with a lock of its own, so that workers that spawn do not wait for each other. A
//! task stays in the list of the worker that spawned it, whichever runs it.

use std::cell::Cell;
use std::num::{NonZeroU32, NonZeroU64};
use std::task::Waker;

use super::task::ABORTED;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, wake_all};

/// The tasks that were spawned in one runtime and still have their future.
pub(crate) struct TaskLists {
    /// How many of them were told to end: for not asking, mostly, which.
    told: AtomicUsize,
    /// How many lists may still have tasks: those that are open, or not empty.
    living: AtomicUsize,
    lists: Box<[List]>,
}

/// One worker's, on cache lines of its own.
#[repr(align(128))]
struct List(Mutex<Tasks>);

struct Tasks {
    /// By key. Not a `Slab`: its `insert` is too large to be inlined, mostly with what it does to grow.
    entries: Vec<Option<Entry>>,
    /// The keys that are free, the next one last.
    vacant: Vec<Key>,
    /// How many of the tasks are local.
    local: usize,
    /// How many of them are jobs.
    jobs: usize,
    /// The id of the next task. Each list has the ids that leave its own remainder, so that they are unique in the runtime.
    next_id: NonZeroU64,
    /// From one id of this list to the next.
    id_step: u64,
    /// Nothing may be spawned any more.
    closed: bool,
    /// No local task may be spawned: no `block_on` call is there to run it.
    closed_to_local: bool,
}

struct Entry {
    id: NonZeroU64,
    kind: Kind,
    /// 0 until the task is told to end; then why.
    end: i32,
    /// Wakes the task; it also keeps the task's memory.
    waker: Waker,
}

/// What kind of task one is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Made by `spawn`: it may be run by any worker of its runtime.
    Shared,
    /// Made by `spawn_local`: run and dropped on its own thread.
    Local,
    /// Made by `spawn_blocking`: run by no worker, and waited for by none.
    Job,
}

/// Which tasks of a list are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those made by `spawn_local`.
    Local,
    /// All that workers run. To end them is to end the runtime, so the jobs are told to end as well.
    All,
}

/// Where a task stands in the lists of its runtime.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// By which others know that the entry is still the task's.
    pub(super) id: NonZeroU64,
    pub(super) slot: Slot,
}

/// An entry: all that the task itself needs to find it, for as long as it has one.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// `None` if the list refused the task.
    pub(super) key: Option<Key>,
    /// Which worker's list it is.
    list: u32,
}

/// Which entry of a list: one more than its number.
type Key = NonZeroU32;

thread_local! {
    /// Why the task ends that is polled next on this thread; 0 if it does not for that. The task takes it, before
    /// its future is dropped, which may poll others.
    static ENDS_HERE: Cell<i32> = const { Cell::new(0) };
}

impl TaskLists {
    /// Empty lists for so many workers.
    pub(super) fn new(workers: usize) -> Self {
        let lists = (0..workers).map(|index| List(Mutex::new(Tasks::new(index, workers)))).collect();
        Self { told: AtomicUsize::new(0), living: AtomicUsize::new(workers), lists }
    }

    /// Has `make` build a task and its waker, and enters it in a list. `make` runs under the lock: it
    /// allocates, and calls no foreign code.
    ///
    /// # Panics
    /// With 2^32 tasks.
    pub(super) fn admit<R>(&self, index: usize, kind: Kind, make: impl FnOnce(Place) -> (Waker, R)) -> (Place, R) {
        let mut tasks = self.lists[index].0.lock();
        let id = tasks.next_id;
        tasks.next_id = id.checked_add(tasks.id_step).expect("fewer than 2^64 tasks");
        let is_refused = tasks.closed || (kind == Kind::Local && tasks.closed_to_local);
        let key = (!is_refused).then(|| tasks.vacant_key());
        let place = Place { id, slot: Slot { key, list: index as u32 } };
        // Called at one place, so that it is inlined, however much it does.
        let (waker, made) = make(place);
        if let Some(key) = key {
            *tasks.entry(key) = Some(Entry { id, kind, end: 0, waker });
            tasks.counted(kind, 1);
        }
        (place, made)
    }

    /// Removes a task's entry, if it has one. `true` if it was the last one of all, after they were all told to end.
    pub(super) fn remove(&self, slot: Slot) -> bool {
        let Some(key) = slot.key else { return false };
        let mut tasks = self.list(slot).lock();
        tasks.vacant.push(key);
        let removed = tasks.entry(key).take().expect("a task leaves its list once");
        tasks.counted(removed.kind, -1);
        let is_dead = tasks.closed && removed.kind != Kind::Job && tasks.len(Which::All) == 0;
        if removed.end != 0 {
            self.told.fetch_sub(1, Ordering::Relaxed);
        }
        drop(tasks);
        // Outside the lock: this may free the task, and with it an output.
        drop(removed);
        is_dead && self.has_died()
    }

    /// A list has closed and lost its last task. Whether all have.
    #[cold]
    fn has_died(&self) -> bool {
        self.living.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether all tasks are gone, and no new one will come.
    pub(super) fn are_dead(&self) -> bool {
        self.living.load(Ordering::Acquire) == 0
    }

    /// Tells a task to end, if it is still there.
    pub(super) fn abort_one(&self, place: Place) {
        let mut tasks = self.list(place.slot).lock();
        let waker = tasks.find(place).map(|entry| {
            self.tell(entry, ABORTED);
            // A clone of our own task's waker: this counts, and no more.
            entry.waker.clone()
        });
        drop(tasks);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Notes that a task is to end. It is woken after that: async-task's state orders this before the poll that follows.
    fn tell(&self, entry: &mut Entry, end: i32) {
        if entry.end == 0 {
            entry.end = end;
            self.told.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether any task was told to end and is still there.
    #[inline]
    pub(super) fn has_told(&self) -> bool {
        self.told.load(Ordering::Acquire) != 0
    }

    /// Why the task of this entry is to end, which is being polled; 0 if it is not.
    #[cold]
    pub(super) fn end(&self, slot: Slot) -> i32 {
        let here = ENDS_HERE.replace(0);
        let mut tasks = self.list(slot).lock();
        let told = slot.key.and_then(|key| tasks.entry(key).as_ref()).map_or(0, |entry| entry.end);
        if told != 0 { told } else { here }
    }

    /// Runs a task that is to end because of `end`, unless it was told so before. The list has told one meanwhile, so that the
    /// task asks.
    pub(super) fn while_told(&self, end: i32, run: impl FnOnce() -> bool) {
        ENDS_HERE.set(end);
        self.told.fetch_add(1, Ordering::Release);
        run();
        self.told.fetch_sub(1, Ordering::Relaxed);
        ENDS_HERE.set(0);
    }

    pub(super) fn contains(&self, place: Place) -> bool {
        self.list(place.slot).lock().find(place).is_some()
    }

    /// Lets local tasks into a list: a `block_on` call has begun.
    pub(super) fn open_to_local(&self, index: usize) {
        self.lists[index].0.lock().closed_to_local = false;
    }

    /// Refuses local tasks in one list, and tells those that are there to end.
    pub(super) fn abort_local(&self, index: usize) {
        let mut tasks = self.lists[index].0.lock();
        tasks.closed_to_local = true;
        // At the end of most calls there is none, and then the others are not looked through.
        let count = tasks.local;
        let mut wakers = self.tell_all(&mut tasks, count, |entry| entry.kind == Kind::Local);
        drop(tasks);
        wake_all(&mut wakers);
    }

    /// Refuses new tasks in all lists, and tells those that are there to end. `true` if there was none at all.
    pub(super) fn abort_all(&self) -> bool {
        let mut all_dead = false;
        for list in &self.lists {
            let mut tasks = list.0.lock();
            if std::mem::replace(&mut tasks.closed, true) {
                continue;
            }
            tasks.closed_to_local = true;
            let count = tasks.all();
            let mut wakers = self.tell_all(&mut tasks, count, |_| true);
            let is_dead = tasks.len(Which::All) == 0;
            drop(tasks);
            wake_all(&mut wakers);
            all_dead = is_dead && self.has_died();
        }
        all_dead
    }

    /// Tells those to end that are meant, `count` of them, and returns their wakers.
    fn tell_all(&self, tasks: &mut Tasks, count: usize, is_meant: impl Fn(&Entry) -> bool) -> Vec<Waker> {
        let meant = tasks.entries.iter_mut().flatten().filter(|entry| is_meant(entry)).take(count);
        let told = meant.map(|entry| {
            self.tell(entry, ABORTED);
            entry.waker.clone()
        });
        told.collect()
    }

    /// How many tasks still have their future, in a list.
    pub(super) fn len(&self, index: usize, which: Which) -> usize {
        self.lists[index].0.lock().len(which)
    }

    fn list(&self, slot: Slot) -> &Mutex<Tasks> {
        &self.lists[slot.list as usize].0
    }
}

impl Tasks {
    fn new(index: usize, lists: usize) -> Self {
        Self {
            entries: Vec::new(),
            vacant: Vec::new(),
            local: 0,
            jobs: 0,
            next_id: NonZeroU64::MIN.saturating_add(index as u64),
            id_step: lists as u64,
            closed: false,
            closed_to_local: true,
        }
    }

    /// The key of the next entry.
    fn vacant_key(&mut self) -> Key {
        self.vacant.pop().unwrap_or_else(|| self.grow())
    }

    /// Makes another entry, and returns its key.
    #[cold]
    fn grow(&mut self) -> Key {
        self.entries.push(None);
        u32::try_from(self.entries.len()).ok().and_then(Key::new).expect("fewer than 2^32 tasks")
    }

    /// `None` if the key is vacant, and until the task that has it is made.
    fn entry(&mut self, key: Key) -> &mut Option<Entry> {
        &mut self.entries[key.get() as usize - 1]
    }

    fn find(&mut self, place: Place) -> Option<&mut Entry> {
        self.entry(place.slot.key?).as_mut().filter(|entry| entry.id == place.id)
    }

    fn counted(&mut self, kind: Kind, change: isize) {
        match kind {
            Kind::Shared => {}
            Kind::Local => self.local = self.local.wrapping_add_signed(change),
            Kind::Job => self.jobs = self.jobs.wrapping_add_signed(change),
        }
    }

    /// How many of the entries are not vacant.
    fn all(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    fn len(&self, which: Which) -> usize {
        match which {
            Which::Local => self.local,
            Which::All => self.all() - self.jobs,
        }
    }
}
