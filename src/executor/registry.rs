//! Registry: the tasks of a runtime, so that it can end them.
//!
//! Only its wakers refer to a task that waits. But the end of the runtime must reach each task, and have it dropped on
//! a worker. So the registry keeps one waker of each task.
//!
//! To cancel a task is to note it here and to wake the task. A worker then polls the task, and its wrapper asks here
//! ([`TaskRegistry::cancelled`]) and drops the future instead of polling it. While no task is cancelled, a count of
//! them answers the question without a lock. Blocking tasks are not in this count: a closure that runs may stay
//! cancelled for long, and each poll of another task would take a lock meanwhile. Their single poll asks under the
//! lock.
//!
//! An entry is made when the task is spawned. It goes when the task's future is dropped, whether it completed, panicked
//! or was cancelled.
//!
//! When a worker is about to block after a spike of tasks, its list moves the entries that are left together and gives
//! the rest of its memory back ([`TaskRegistry::shrink`]). A map leads a task from the place where its entry was made to
//! that where it is.
//!
//! Each worker has a list with a lock of its own, so that workers that spawn do not wait for each other. A task stays
//! in the list of the worker that it was spawned on. Which worker runs it makes no difference. A list has a table for
//! each kind of task, so that the end of a `block_on` call looks at its local tasks only.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::num::{NonZeroI32, NonZeroU32};
use std::sync::Arc;
use std::task::Waker;

use crate::memory;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, wake_all};

/// The id of a task. No other task of its runtime has had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The tasks that were spawned in one runtime and still have their future.
// Aligned, as each poll of a task reads it: the counts of the `Arc` that it is in change with each spawn.
#[repr(align(128))]
pub(crate) struct TaskRegistry {
    /// How many of them are cancelled, without the blocking ones.
    cancelled: AtomicUsize,
    /// How many lists are open or have tasks.
    live_lists: AtomicUsize,
    lists: Box<[List]>,
    ids: Arc<IdSource>,
}

/// The ids of a runtime's tasks. Each list draws a block of them at a time, so that few spawns write what another
/// worker reads.
pub(crate) struct IdSource(AtomicU64);

/// How many ids a list draws at a time.
const ID_BLOCK: u64 = 1024;

/// The list of one worker, on cache lines of its own.
#[repr(align(128))]
struct List(Mutex<Tasks>);

struct Tasks {
    /// By [`Kind`].
    tables: [Table; 3],
    /// The last id that was given, and the last of its block.
    last_id: u64,
    last_of_block: u64,
    /// No task may be spawned any more.
    closed: bool,
    /// The worker's thread is in a `block_on` call, which runs local tasks. A worker of a multi-thread runtime always
    /// is.
    runs_local: bool,
}

/// The tasks of one kind.
struct Table {
    /// By key. This is no `Slab`: its `insert` is too large to be inlined, mostly for its growth.
    entries: Vec<Option<Entry>>,
    /// The free keys. The next one is the last.
    vacant: Vec<Key>,
    generation: Generation,
    /// The keys of the entries that were made before that.
    moved: HashMap<TaskSlot, Key>,
}

struct Entry {
    id: Id,
    cancelled: Option<CancelReason>,
    /// Wakes the task, and keeps its memory.
    waker: Waker,
}

/// The kind of a task.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Made by `spawn`: any worker of its runtime may run it.
    Shared,
    /// Made by `spawn_local`: run and dropped on its own thread.
    Local,
    /// Made by `spawn_blocking`: no worker runs it or waits for it.
    Blocking,
}

/// The kinds as numbers of tables. A number can be a parameter of a type, so that a poll does not ask for its kind.
pub(super) const SHARED: usize = Kind::Shared as usize;
pub(super) const LOCAL: usize = Kind::Local as usize;
pub(super) const BLOCKING: usize = Kind::Blocking as usize;

/// The tasks that a method acts on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskSet {
    /// The local tasks of one worker.
    Local,
    /// All tasks that workers run: all but the blocking ones.
    All,
}

/// Why a task was cancelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct CancelReason(NonZeroI32);

impl CancelReason {
    /// By a handle, or because the runtime ends.
    pub(crate) const ABORTED: Self = Self(NonZeroI32::new(-1).unwrap());

    /// The system starts no thread for a blocking closure, with this error number.
    pub(crate) fn no_thread(errno: i32) -> Self {
        NonZeroI32::new(errno).filter(|errno| errno.get() > 0).map_or(Self::ABORTED, Self)
    }

    /// The system's error number, if there is one.
    pub(super) fn errno(self) -> Option<i32> {
        Some(self.0.get()).filter(|errno| *errno > 0)
    }
}

/// A task in the registry of its runtime.
#[derive(Clone, Copy)]
pub(crate) struct TaskKey {
    /// Tells whether the entry is still this task's.
    pub(super) id: Id,
    pub(super) slot: TaskSlot,
}

/// The place in the table of its kind where a task's entry was made. While the task has its entry, it finds the entry by
/// this alone, without the id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TaskSlot {
    /// `None` if the registry refused the task.
    key: Option<Key>,
    /// The table as it was then.
    generation: Generation,
}

/// A table in one of its generations: the number of the worker whose list it is in, in 14 bits; the kind of its tasks, in
/// two; how often its entries have [moved together](Table::shrink), in 16.
// One number, because a spawn that copies three takes 15 instructions more.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Generation(u32);

impl Generation {
    fn new(list: usize, kind: usize) -> Self {
        Self(list as u32 | (kind as u32) << 14)
    }

    fn list(self) -> usize {
        self.0 as usize & 0x3fff
    }

    fn kind(self) -> usize {
        self.0 as usize >> 14 & 3
    }

    fn next(self) -> Option<Self> {
        self.0.checked_add(1 << 16).map(Self)
    }
}

/// The number of an entry, plus one.
type Key = NonZeroU32;

impl TaskKey {
    /// Whether the registry refused the task, because its runtime has ended, or the `block_on` call of a local task.
    pub(super) fn is_refused(self) -> bool {
        self.slot.key.is_none()
    }
}

impl TaskRegistry {
    /// An empty registry for `workers` workers.
    pub(super) fn new(workers: usize, ids: Arc<IdSource>) -> Self {
        let lists = (0..workers).map(|index| List(Mutex::new(Tasks::new(index)))).collect();
        Self { cancelled: AtomicUsize::new(0), live_lists: AtomicUsize::new(workers), lists, ids }
    }

    pub(super) fn ids(&self) -> &Arc<IdSource> {
        &self.ids
    }

    /// Has `make` build a task and its waker, and inserts it in the list of worker `index`. `make` runs under the lock:
    /// it allocates, and calls no foreign code.
    ///
    /// # Panics
    /// With 2^32 tasks in one table.
    pub(super) fn insert<R>(&self, index: usize, kind: Kind, make: impl FnOnce(TaskKey) -> (Waker, R)) -> (TaskKey, R) {
        let mut tasks = self.lists[index].0.lock();
        let id = tasks.next_id(&self.ids);
        let is_refused = tasks.closed || (kind == Kind::Local && !tasks.runs_local);
        let table = &mut tasks.tables[kind as usize];
        let key = (!is_refused).then(|| table.vacant_key());
        let slot = TaskSlot { key, generation: table.generation };
        let task = TaskKey { id, slot };
        // Called in one place, so that it is inlined, however large it is.
        let (waker, made) = make(task);
        if let Some(key) = key {
            table.put(key, Entry { id, cancelled: None, waker });
        }
        (task, made)
    }

    /// Removes the entry of a task, if it has one. Returns `true` if it was the last of all, after all were cancelled.
    pub(super) fn remove<const KIND: usize>(&self, slot: TaskSlot) -> bool {
        let Some(key) = slot.key else { return false };
        let mut tasks = self.list(slot).lock();
        let table = &mut tasks.tables[KIND];
        let key = if slot.generation == table.generation { key } else { table.take_moved(slot) };
        table.vacant.push(key);
        let removed = table.entry(key).take().expect("a task leaves the registry once");
        let is_last = tasks.closed && KIND != BLOCKING && tasks.len(TaskSet::All) == 0;
        if removed.cancelled.is_some() && KIND != BLOCKING {
            self.cancelled.fetch_sub(1, Ordering::Relaxed);
        }
        drop(tasks);
        // After the lock: this may free the task, and with it an output.
        drop(removed);
        is_last && self.close_list()
    }

    /// A list is closed and empty. Returns whether all are.
    fn close_list(&self) -> bool {
        self.live_lists.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether all tasks that workers run are gone, and no new one will come.
    pub(super) fn is_dead(&self) -> bool {
        self.live_lists.load(Ordering::Acquire) == 0
    }

    /// Gives memory back that a spike of tasks has left in a list.
    pub(super) fn shrink(&self, index: usize) {
        self.lists[index].0.lock().tables.iter_mut().for_each(Table::shrink);
    }

    /// Cancels a task, if it is still there.
    pub(super) fn cancel(&self, key: TaskKey, reason: CancelReason) {
        let mut tasks = self.list(key.slot).lock();
        let waker = tasks.find(key).map(|entry| {
            self.note_cancelled(entry, key.slot.generation.kind(), reason);
            // A clone of our own task's waker runs no foreign code.
            entry.waker.clone()
        });
        drop(tasks);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Notes that a task is cancelled. The caller wakes it after that. async-task's state orders this before the poll
    /// that follows.
    fn note_cancelled(&self, entry: &mut Entry, kind: usize, reason: CancelReason) {
        if entry.cancelled.is_none() {
            entry.cancelled = Some(reason);
            if kind != BLOCKING {
                self.cancelled.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Whether the task with this entry, which is being polled, is cancelled, and why.
    // A burst costs 1.1 % more without this.
    #[inline]
    pub(super) fn cancelled<const KIND: usize>(&self, slot: TaskSlot) -> Option<CancelReason> {
        let is_counted = KIND != BLOCKING;
        if is_counted && self.cancelled.load(Ordering::Acquire) == 0 {
            None
        } else {
            self.look_up_cancelled::<KIND>(slot)
        }
    }

    // A yield of 1,000 tasks costs 0.6 % more without this.
    #[cold]
    fn look_up_cancelled<const KIND: usize>(&self, slot: TaskSlot) -> Option<CancelReason> {
        self.list(slot).lock().tables[KIND].find(slot)?.cancelled
    }

    pub(super) fn contains(&self, key: TaskKey) -> bool {
        self.list(key.slot).lock().find(key).is_some()
    }

    /// Accepts local tasks in a list, because a `block_on` call begins.
    pub(super) fn open_local(&self, index: usize) {
        let mut tasks = self.lists[index].0.lock();
        tasks.runs_local = true;
        // Those of earlier calls are gone. Their places must not be looked at when this call ends.
        tasks.tables[LOCAL] = Table::new(Generation::new(index, LOCAL));
    }

    /// Refuses new local tasks in one list, and cancels those that are there.
    pub(super) fn cancel_local(&self, index: usize) {
        let mut tasks = self.lists[index].0.lock();
        tasks.runs_local = false;
        let mut wakers = self.cancel_kind(&mut tasks, Kind::Local);
        drop(tasks);
        wake_all(&mut wakers);
    }

    /// Refuses new tasks in all lists, and cancels those that are there. Returns `true` if this call has
    /// closed the last list that was alive, so that no [`remove`](TaskRegistry::remove) will report it.
    pub(super) fn cancel_all(&self) -> bool {
        let mut was_empty = false;
        for list in &self.lists {
            let mut tasks = list.0.lock();
            if mem::replace(&mut tasks.closed, true) {
                continue;
            }
            tasks.runs_local = false;
            let kinds = [Kind::Shared, Kind::Local, Kind::Blocking];
            let mut wakers: Vec<Waker> =
                kinds.into_iter().flat_map(|kind| self.cancel_kind(&mut tasks, kind)).collect();
            let is_empty = tasks.len(TaskSet::All) == 0;
            drop(tasks);
            wake_all(&mut wakers);
            was_empty = is_empty && self.close_list();
        }
        was_empty
    }

    /// Cancels all tasks of a list that have this kind, and returns their wakers.
    fn cancel_kind(&self, tasks: &mut Tasks, kind: Kind) -> Vec<Waker> {
        let table = &mut tasks.tables[kind as usize];
        // Most calls end without local tasks, and then no entry is looked at.
        let count = table.occupied();
        let cancelled = table.entries.iter_mut().flatten().take(count).map(|entry| {
            self.note_cancelled(entry, kind as usize, CancelReason::ABORTED);
            entry.waker.clone()
        });
        cancelled.collect()
    }

    /// How many tasks of a list, of those in `set`, still have their future.
    pub(super) fn len(&self, index: usize, set: TaskSet) -> usize {
        self.lists[index].0.lock().len(set)
    }

    fn list(&self, slot: TaskSlot) -> &Mutex<Tasks> {
        &self.lists[slot.generation.list()].0
    }
}

impl IdSource {
    /// The ids from 1 on.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(0)))
    }
}

impl Tasks {
    fn new(list: usize) -> Self {
        let tables = std::array::from_fn(|kind| Table::new(Generation::new(list, kind)));
        Self { tables, last_id: 0, last_of_block: 0, closed: false, runs_local: false }
    }

    fn next_id(&mut self, ids: &IdSource) -> Id {
        if self.last_id == self.last_of_block {
            self.draw_ids(ids);
        }
        // The ids of 64 bits never run out in practice.
        self.last_id += 1;
        Id(self.last_id)
    }

    // A yield costs 4.6 % more without this.
    #[cold]
    fn draw_ids(&mut self, ids: &IdSource) {
        self.last_id = ids.0.fetch_add(ID_BLOCK, Ordering::Relaxed);
        self.last_of_block = self.last_id + ID_BLOCK;
    }

    fn find(&mut self, key: TaskKey) -> Option<&mut Entry> {
        self.tables[key.slot.generation.kind()].find(key.slot).filter(|entry| entry.id == key.id)
    }

    fn len(&self, set: TaskSet) -> usize {
        match set {
            TaskSet::Local => self.tables[LOCAL].occupied(),
            TaskSet::All => self.tables[SHARED].occupied() + self.tables[LOCAL].occupied(),
        }
    }
}

impl Table {
    fn new(generation: Generation) -> Self {
        Self { entries: Vec::new(), vacant: Vec::new(), generation, moved: HashMap::new() }
    }

    fn vacant_key(&mut self) -> Key {
        self.vacant.pop().unwrap_or_else(|| self.next_key())
    }

    /// The key of another entry, which is yet to be [put](Table::put) there.
    fn next_key(&self) -> Key {
        u32::try_from(self.entries.len() + 1).ok().and_then(Key::new).expect("fewer than 2^32 tasks")
    }

    /// Stores an entry at a vacant key, or at the next one.
    fn put(&mut self, key: Key, new: Entry) {
        match self.entries.get_mut(key.get() as usize - 1) {
            Some(entry) => *entry = Some(new),
            None => self.entries.push(Some(new)),
        }
    }

    /// `None` if the key is vacant, and until its task is made.
    fn entry(&mut self, key: Key) -> &mut Option<Entry> {
        &mut self.entries[key.get() as usize - 1]
    }

    /// The entry that is at this place now. It may be another task's.
    fn find(&mut self, slot: TaskSlot) -> Option<&mut Entry> {
        let key = if slot.generation == self.generation { slot.key? } else { *self.moved.get(&slot)? };
        // A key of an earlier call may be beyond the end.
        self.entries.get_mut(key.get() as usize - 1)?.as_mut()
    }

    /// The key of a task that leaves, and whose entry has moved.
    #[cold]
    fn take_moved(&mut self, slot: TaskSlot) -> Key {
        self.moved.remove(&slot).expect("each entry that moved is in the map")
    }

    /// If the table has far more memory than its entries need, moves them together and gives the rest back.
    fn shrink(&mut self) {
        let Some(next) = self.generation.next() else { return };
        if !memory::is_sparse(self.occupied(), self.entries.capacity()) {
            return;
        }
        let made_at: HashMap<Key, TaskSlot> = self.moved.drain().map(|(slot, key)| (key, slot)).collect();
        self.moved.shrink_to_fit();
        self.vacant = Vec::new();
        for (key, entry) in (1..).zip(mem::take(&mut self.entries)).filter(|(_, entry)| entry.is_some()) {
            let key = Key::new(key);
            let here = TaskSlot { key, generation: self.generation };
            let slot = key.and_then(|key| made_at.get(&key)).copied().unwrap_or(here);
            self.moved.insert(slot, self.next_key());
            self.entries.push(entry);
        }
        self.generation = next;
    }

    fn occupied(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }
}

#[cfg(all(test, not(kittiwake_loom)))]
mod tests {
    use super::*;

    fn insert(tasks: &TaskRegistry, kind: Kind) -> TaskKey {
        let (key, ()) = tasks.insert(0, kind, |_| (Waker::noop().clone(), ()));
        assert!(!key.is_refused(), "the registry must accept the task");
        key
    }

    /// Spikes of tasks leave little memory. Tasks that outlive them are found where their entries are now, and no other
    /// task is.
    #[test]
    fn spikes_of_tasks_leave_little_memory() {
        let registry = TaskRegistry::new(2, IdSource::new());
        let table = |what: fn(&Table) -> usize| what(&registry.lists[0].0.lock().tables[SHARED]);
        let mut left: Vec<TaskKey> = Vec::new();
        for round in 1..4 {
            let spike: Vec<_> = (0..50_000).map(|_| insert(&registry, Kind::Shared)).collect();
            registry.shrink(0);
            assert!(table(|table| table.entries.len()) >= 50_000, "tasks that are there were forgotten");
            for (number, task) in spike.into_iter().enumerate() {
                if number % 5_000 == 0 {
                    left.push(task);
                } else {
                    registry.remove::<SHARED>(task.slot);
                    assert!(!registry.contains(task), "a task was found that is gone");
                }
            }
            registry.shrink(0);
            assert_eq!(table(Table::occupied), 10 * round);
            assert!(table(|table| table.entries.capacity()) <= memory::KEPT, "the table has too much memory");
        }
        // Other tasks come to the places where the entries of these were made.
        let new: Vec<_> = (0..50_000).map(|_| insert(&registry, Kind::Shared)).collect();
        left.iter().for_each(|task| registry.cancel(*task, CancelReason::ABORTED));
        assert!(new.iter().all(|task| registry.cancelled::<SHARED>(task.slot).is_none()), "another task was cancelled");
        assert!(left.iter().all(|task| registry.cancelled::<SHARED>(task.slot).is_some()));
        for task in left.iter().chain(&new) {
            registry.remove::<SHARED>(task.slot);
        }
        assert_eq!((table(Table::occupied), table(|table| table.moved.len())), (0, 0));
    }

    /// An aborted closure that runs may stay for long. Each poll of another task must still be answered by the count,
    /// without a lock.
    #[test]
    fn cancelled_closure_is_not_counted() {
        let tasks = TaskRegistry::new(1, IdSource::new());
        let (closure, task) = (insert(&tasks, Kind::Blocking), insert(&tasks, Kind::Shared));
        let count = || tasks.cancelled.load(Ordering::Relaxed);
        tasks.cancel(closure, CancelReason::ABORTED);
        assert_eq!(count(), 0, "the closure was counted");
        assert!(tasks.cancelled::<BLOCKING>(closure.slot).is_some(), "its own poll must see that it is cancelled");
        tasks.cancel_all();
        assert_eq!(count(), 1, "the task was not counted");
        assert!(tasks.cancelled::<SHARED>(task.slot).is_some());
        assert!(
            !tasks.remove::<BLOCKING>(closure.slot) && tasks.remove::<SHARED>(task.slot),
            "the task is the last one"
        );
        assert_eq!(count(), 0);
    }

    /// The end of a `block_on` call looks at each entry of this table. If those of other tasks or of earlier calls were
    /// among them, a call would pay for them.
    #[test]
    fn local_table_has_one_calls_tasks() {
        let tasks = TaskRegistry::new(1, IdSource::new());
        let local_entries = || tasks.lists[0].0.lock().tables[LOCAL].entries.len();
        tasks.open_local(0);
        let earlier = [(); 100].map(|()| insert(&tasks, Kind::Local));
        let _others = [Kind::Shared, Kind::Blocking].map(|kind| [(); 100].map(|()| insert(&tasks, kind)));
        assert_eq!(local_entries(), 100);
        tasks.cancel_local(0);
        assert!(earlier.iter().all(|key| tasks.cancelled::<LOCAL>(key.slot).is_some()));
        assert!(!earlier.iter().any(|key| tasks.remove::<LOCAL>(key.slot)), "the runtime goes on");
        tasks.open_local(0);
        let own = insert(&tasks, Kind::Local);
        assert_eq!(local_entries(), 1, "the call would look at more than its own task");
        assert!(tasks.contains(own) && !earlier.iter().any(|key| tasks.contains(*key)));
        tasks.cancel(earlier[99], CancelReason::ABORTED);
        assert_eq!(tasks.cancelled.load(Ordering::Relaxed), 0, "a task of an earlier call was cancelled");
    }
}
