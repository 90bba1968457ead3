//! Registry: the tasks of a runtime, so that it can end them and show them.
//!
//! A task that waits is kept by its wakers and its `JoinHandle` alone. But the end of the runtime must reach each task,
//! and have it dropped on a worker. So the registry keeps one waker of each task.
//!
//! To cancel a task is to note it in the task's [`Record`] and to wake the task. A worker then polls the task, and its
//! wrapper looks at the record and drops the future instead of polling it.
//!
//! An entry is made when the task is spawned. When the task's future is dropped, whether it completed, panicked or was
//! cancelled, its place becomes free, and the next task gets the place and the record.
//!
//! When a worker is about to block after a spike of tasks, its list moves the entries that are left together and gives
//! the rest of its memory back ([`TaskRegistry::shrink`]). A record knows the place of its entry. Blocking tasks end on
//! other threads, and one of those does the same for their tables ([`TaskRegistry::shrink_blocking`]).
//!
//! Each worker has a list with a lock of its own, so that workers that spawn do not wait for each other. A task stays
//! in the list of the worker that it was spawned on. Which worker runs it makes no difference. A list has a table for
//! each kind of task, so that the end of a `block_on` call looks at its local tasks only.
//!
//! # Looking at all tasks
//! A thread that looks at the tasks of a runtime takes the lock for some entries at a time ([`TaskRegistry::visit`]).
//! So a worker never waits for a look at all of them.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::panic::Location;
use std::sync::Arc;
use std::task::Waker;

use super::record::{Attention, CancelReason, Record, Seen, TableId, Unused};
use crate::memory;
use crate::stamp::Stamp;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, unlock_fair, wake_all};
use crate::trace::EarlyId;

/// The id of a task. No other task of its runtime has had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u64);

impl Id {
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The tasks that were spawned in one runtime and still have their future. `W` are the runtime's workers, to which each
/// record refers.
pub(crate) struct TaskRegistry<W> {
    /// How many lists are open or have tasks that workers run.
    live_lists: AtomicUsize,
    lists: Box<[List<W>]>,
    ids: Arc<IdSource>,
    /// Of a new task.
    attention: Attention,
}

/// The ids of a runtime's tasks. Each list draws a block of them at a time, so that few spawns write what another
/// worker reads.
pub(crate) struct IdSource(AtomicU64);

/// How many ids a list draws at a time.
const ID_BLOCK: u64 = 1024;

/// The list of one worker, on cache lines of its own.
#[repr(align(128))]
struct List<W>(Mutex<Tasks<W>>);

struct Tasks<W> {
    /// By [`Kind`].
    tables: [Table<W>; 3],
    /// Of the tasks that have one.
    names: HashMap<Id, Arc<str>>,
    /// The last id that was given, and the last of its block.
    last_id: u64,
    last_of_block: u64,
    /// No task may be spawned any more.
    closed: bool,
    /// It is closed, and all tasks that workers run are gone.
    is_dead: bool,
    /// The worker's thread is in a `block_on` call, which runs local tasks. A worker of a multi-thread runtime always
    /// is.
    runs_local: bool,
}

/// The tasks of one kind.
struct Table<W> {
    /// By key, which counts from 1. Emptied once all tasks are gone and none may come: each record has a reference to
    /// the workers, which own this table.
    entries: Vec<Entry<W>>,
    /// The free keys. The last one is used next.
    vacant: Vec<u32>,
    /// The records of the next entries.
    unused: Unused<W>,
    /// How often the entries have been moved together.
    moves: u64,
}

/// A task, or the place for one.
struct Entry<W> {
    record: Record<W>,
    /// Wakes the task, and keeps its memory. `None` without a task. The other fields then belong to the task that was
    /// here last.
    waker: Option<Waker>,
    location: &'static Location<'static>,
}

/// The kind of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Made by `spawn`: any worker of its runtime may run it.
    Shared,
    /// Made by `spawn_local`: run and dropped on its own thread.
    Local,
    /// Made by `spawn_blocking`: no worker runs it or waits for it.
    Blocking,
}

const KINDS: [Kind; 3] = [Kind::Shared, Kind::Local, Kind::Blocking];

impl Kind {
    /// The name of the kind in the span of a task, as `tokio-console` shows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Shared => "task",
            Self::Local => "local",
            Self::Blocking => "blocking",
        }
    }
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

/// A task that is about to be made.
#[derive(Clone, Copy)]
pub(super) struct New {
    pub(super) kind: Kind,
    pub(super) location: &'static Location<'static>,
    /// The id of the queue that it goes to: the same for all tasks of its kind on one worker.
    pub(super) queue: usize,
    pub(super) now: Stamp,
    /// The id, if it was drawn before ([`TaskRegistry::draw_id`]).
    pub(super) id: EarlyId<Id>,
}

/// A task that was inserted.
pub(super) struct Inserted<W, R> {
    pub(super) id: Id,
    pub(super) record: Record<W>,
    /// Its runtime has ended, or the `block_on` call of a local task. The caller drops it unrun.
    pub(super) is_refused: bool,
    pub(super) made: R,
}

/// A task of the registry, while a thread looks at it.
pub(crate) struct Look<'a> {
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    pub(crate) name: Option<&'a Arc<str>>,
    pub(crate) location: &'static Location<'static>,
    pub(crate) spawned: Stamp,
    /// The address that all its wakers have.
    pub(crate) address: usize,
    pub(crate) seen: Seen,
}

impl<W> TaskRegistry<W> {
    /// An empty registry for `workers` workers. All tasks but blocking ones have this attention.
    pub(super) fn new(workers: usize, ids: Arc<IdSource>, attention: Attention) -> Self {
        let lists = (0..workers).map(|_| List(Mutex::new(Tasks::new()))).collect();
        Self { live_lists: AtomicUsize::new(workers), lists, ids, attention }
    }

    pub(super) fn ids(&self) -> &Arc<IdSource> {
        &self.ids
    }

    /// Draws an id for a task that is shown to foreign code before it is inserted.
    pub(super) fn draw_id(&self) -> Id {
        Id(self.ids.0.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Has `make` build a task and its waker, and inserts it in the list of worker `index` of `workers`. `make` runs
    /// under the lock: it allocates, and calls no foreign code.
    ///
    /// # Panics
    /// With 2^32 tasks in one table.
    pub(super) fn insert<R>(
        &self,
        workers: &Arc<W>,
        index: usize,
        new: New,
        make: impl FnOnce(&Record<W>) -> (Waker, R),
    ) -> Inserted<W, R> {
        let New { kind, location, now, id, .. } = new;
        // A closure may take as long as it likes.
        let attention = if kind == Kind::Blocking { Attention::NONE } else { self.attention };
        let mut tasks = self.lists[index].0.lock();
        let id = id.get().unwrap_or_else(|| tasks.next_id(&self.ids));
        let is_refused = tasks.closed || (kind == Kind::Local && !tasks.runs_local);
        let table = &mut tasks.tables[kind as usize];
        let key = table.vacant.pop().unwrap_or_else(|| table.grow(workers, index, new, attention));
        let entry = &mut table.entries[key as usize - 1];
        entry.record.begin(id.0, now, attention);
        // Called in one place, so that it is inlined, however large it is.
        let (waker, made) = make(&entry.record);
        entry.location = location;
        // The place had no waker. To drop the old `Option` would check that.
        mem::forget(entry.waker.replace(waker));
        Inserted { id, record: entry.record.clone(), is_refused, made }
    }

    /// Removes a task. Returns `true` if it was the last of all, after all were cancelled.
    pub(super) fn remove<const KIND: usize>(&self, record: &Record<W>) -> bool {
        let mut tasks = self.list(record).lock();
        let key = record.key();
        let table = &mut tasks.tables[KIND];
        let entry = &mut table.entries[key as usize - 1];
        let waker = entry.waker.take();
        table.vacant.push(key);
        let is_last = (tasks.closed || !tasks.names.is_empty()) && self.after_remove::<KIND>(&mut tasks, record);
        drop(tasks);
        // After the lock, as any waker.
        drop(waker);
        is_last
    }

    /// Goes on after a task was removed from a list that is closed, or that has names.
    #[cold]
    fn after_remove<const KIND: usize>(&self, tasks: &mut Tasks<W>, record: &Record<W>) -> bool {
        tasks.names.remove(&Id(record.id()));
        if !tasks.closed {
            return false;
        }
        tasks.tables[KIND].close();
        KIND != BLOCKING && tasks.len(TaskSet::All) == 0 && self.close_list(tasks)
    }

    /// A list is closed and empty. Returns `true` once, for the last of all lists.
    fn close_list(&self, tasks: &mut Tasks<W>) -> bool {
        // A task that is refused is inserted and removed too.
        !mem::replace(&mut tasks.is_dead, true) && self.live_lists.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether all tasks that workers run are gone, and no new one will come.
    pub(super) fn is_dead(&self) -> bool {
        self.live_lists.load(Ordering::Acquire) == 0
    }

    /// Gives memory back that a spike of tasks has left in a list.
    pub(super) fn shrink(&self, index: usize) {
        self.lists[index].shrink(&KINDS);
    }

    /// Gives memory back that a spike of blocking tasks has left in all lists.
    pub(super) fn shrink_blocking(&self) {
        self.lists.iter().for_each(|list| list.shrink(&[Kind::Blocking]));
    }

    /// Gives a task a name, if it is still there.
    pub(super) fn set_name(&self, record: &Record<W>, id: Id, name: Arc<str>) {
        let mut tasks = self.list(record).lock();
        if tasks.find(record, Some(id)).is_some() {
            tasks.names.insert(id, name);
        }
    }

    /// Cancels a task, if it is still there. Without an `id` it is the task that has this record now.
    pub(super) fn cancel(&self, record: &Record<W>, id: Option<Id>, reason: CancelReason) {
        let mut tasks = self.list(record).lock();
        let waker = tasks.find(record, id).map(|entry| {
            entry.record.cancel(reason);
            // A clone of our own task's waker runs no foreign code.
            entry.waker.clone()
        });
        drop(tasks);
        if let Some(waker) = waker.flatten() {
            waker.wake();
        }
    }

    pub(super) fn contains(&self, record: &Record<W>, id: Id) -> bool {
        self.list(record).lock().find(record, Some(id)).is_some()
    }

    /// Accepts local tasks in a list, because a `block_on` call begins.
    pub(super) fn open_local(&self, index: usize) {
        let mut tasks = self.lists[index].0.lock();
        tasks.runs_local = true;
        // Those of earlier calls are gone. Their places must not be looked at when this call ends.
        tasks.tables[LOCAL] = Table::new();
    }

    /// Refuses new local tasks in one list, and cancels those that are there.
    pub(super) fn cancel_local(&self, index: usize) {
        let mut tasks = self.lists[index].0.lock();
        tasks.runs_local = false;
        let mut wakers = tasks.cancel_kind(Kind::Local);
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
            let mut wakers: Vec<Waker> = KINDS.into_iter().flat_map(|kind| tasks.cancel_kind(kind)).collect();
            tasks.tables.iter_mut().for_each(Table::close);
            was_empty = tasks.len(TaskSet::All) == 0 && self.close_list(&mut tasks);
            drop(tasks);
            wake_all(&mut wakers);
        }
        was_empty
    }

    /// The task of a record, if it is there.
    pub(super) fn describe(&self, record: &Record<W>) -> Option<(Id, &'static Location<'static>, Option<Arc<str>>)> {
        let mut tasks = self.list(record).lock();
        let (id, location) = tasks.find(record, None).map(|entry| (Id(record.id()), entry.location))?;
        Some((id, location, tasks.names.get(&id).cloned()))
    }

    /// How many tasks there are, of all kinds.
    pub(super) fn count(&self) -> usize {
        self.lists.iter().map(|list| list.0.lock().tables.iter().map(Table::occupied).sum::<usize>()).sum()
    }

    /// How many tasks of a list, of those in `set`, still have their future.
    pub(super) fn len(&self, index: usize, set: TaskSet) -> usize {
        self.lists[index].0.lock().len(set)
    }

    /// Forgets the records that the tasks of a list have left, which refer to the workers. The list's last tasks are
    /// gone.
    pub(super) fn forget_records(&self, index: usize) {
        self.lists[index].0.lock().tables.iter_mut().for_each(Table::close);
    }

    fn list(&self, record: &Record<W>) -> &Mutex<Tasks<W>> {
        &self.lists[record.table().list()].0
    }

    /// Shows all tasks that are there to `visit`, some at a time. Those that come or go meanwhile may be left out. So
    /// this ends, however many come. If entries are moved together meanwhile, tasks are shown again, and this returns
    /// `true`. `visit` runs under a lock.
    pub(super) fn visit(&self, mut visit: impl FnMut(Look<'_>)) -> bool {
        let mut is_repeated = false;
        for list in &self.lists {
            for kind in KINDS {
                let mut next = Some(Visited::NONE);
                while let Some(visited) = next {
                    let tasks = list.0.lock();
                    is_repeated |= visited.entries > 0 && visited.moves != tasks.tables[kind as usize].moves;
                    next = tasks.visit(kind, visited, &mut visit);
                    // A worker that waits for the lock gets it before this thread takes it again.
                    unlock_fair(tasks);
                }
            }
        }
        is_repeated
    }
}

/// How far a look at a table has come.
#[derive(Clone, Copy)]
struct Visited {
    /// How many places of the table have been looked at.
    entries: usize,
    /// How often the entries had been moved together when the look began.
    moves: u64,
    /// The number of entries when the look began, where it ends. To move entries together only lowers their places.
    end: usize,
}

impl Visited {
    const NONE: Self = Self { entries: 0, moves: 0, end: usize::MAX };
}

/// How many entries are shown under the lock at a time.
const VISITED: usize = 256;

impl IdSource {
    /// The ids from 1 on.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(0)))
    }
}

impl<W> List<W> {
    /// Gives memory back that a spike of tasks of these kinds has left.
    fn shrink(&self, kinds: &[Kind]) {
        let mut tasks = self.0.lock();
        let named = tasks.names.len();
        tasks.names.shrink_to(memory::KEPT.max(2 * named));
        let unused: Vec<_> = kinds.iter().map(|kind| tasks.tables[*kind as usize].shrink()).collect();
        // After the lock, for which the worker may wait.
        drop(tasks);
        drop(unused);
    }
}

impl<W> Tasks<W> {
    fn new() -> Self {
        let tables = std::array::from_fn(|_| Table::new());
        Self {
            tables,
            names: HashMap::new(),
            last_id: 0,
            last_of_block: 0,
            closed: false,
            is_dead: false,
            runs_local: false,
        }
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

    /// The entry of a record, if the task has this id. Another task may have the record by now, or its place.
    fn find(&mut self, record: &Record<W>, id: Option<Id>) -> Option<&mut Entry<W>> {
        let index = (record.key() as usize).checked_sub(1)?;
        let entry = self.tables[record.table().kind()].entries.get_mut(index)?;
        (entry.waker.is_some() && id.is_none_or(|id| id.0 == entry.record.id())).then_some(entry)
    }

    /// Cancels all tasks of this kind, and returns their wakers.
    fn cancel_kind(&mut self, kind: Kind) -> Vec<Waker> {
        let table = &self.tables[kind as usize];
        // Most calls end without local tasks, and then no entry is looked at.
        let cancelled = table.entries.iter().filter_map(|entry| {
            let waker = entry.waker.clone()?;
            entry.record.cancel(CancelReason::ABORTED);
            Some(waker)
        });
        cancelled.take(table.occupied()).collect()
    }

    fn len(&self, set: TaskSet) -> usize {
        match set {
            TaskSet::Local => self.tables[LOCAL].occupied(),
            TaskSet::All => self.tables[SHARED].occupied() + self.tables[LOCAL].occupied(),
        }
    }

    /// Shows some more entries, or begins anew if those that were shown have moved. Returns how far it has come, if
    /// there are more.
    fn visit(&self, kind: Kind, visited: Visited, visit: &mut impl FnMut(Look<'_>)) -> Option<Visited> {
        let Table { entries, moves, .. } = &self.tables[kind as usize];
        let from = if visited.moves == *moves { visited.entries } else { 0 };
        let last = entries.len().min(visited.end);
        let end = last.min(from + VISITED);
        for entry in entries.get(from..end)? {
            let Entry { record, waker: Some(waker), location } = entry else { continue };
            let id = Id(record.id());
            visit(Look {
                id,
                kind,
                name: if self.names.is_empty() { None } else { self.names.get(&id) },
                location,
                spawned: record.made(),
                address: waker.data().addr(),
                seen: record.look(),
            });
        }
        (end < last).then_some(Visited { entries: end, moves: *moves, end: last })
    }
}

impl<W> Table<W> {
    fn new() -> Self {
        Self { entries: Vec::new(), vacant: Vec::new(), unused: Unused::default(), moves: 0 }
    }

    /// Makes another place for a task, and returns its key.
    #[inline(never)]
    fn grow(
        &mut self,
        workers: &Arc<W>,
        list: usize,
        New { kind, location, queue, .. }: New,
        attention: Attention,
    ) -> u32 {
        let key = u32::try_from(self.entries.len() + 1).expect("fewer than 2^32 tasks");
        let record = self.unused.next().unwrap_or_else(|| {
            self.unused = Record::new_chunk(workers.clone(), TableId::new(list, kind as usize), queue, attention);
            self.unused.next().expect("a chunk has records")
        });
        record.set_key(key);
        self.entries.push(Entry { record, waker: None, location });
        key
    }

    /// Forgets all places if none has a task. If it did not, their records would keep the workers alive.
    fn close(&mut self) {
        if self.occupied() == 0 {
            *self = Self::new();
        }
    }

    /// If the table has far more memory than its tasks need, moves them together. Returns the other places, which the
    /// caller drops after the lock: that takes as long as the spike was high.
    fn shrink(&mut self) -> Vec<Entry<W>> {
        if !memory::is_sparse(self.occupied(), self.entries.capacity()) {
            return Vec::new();
        }
        (self.vacant, self.unused) = (Vec::new(), Unused::default());
        self.moves += 1;
        // The tasks come last, in their order, and are split off.
        let mut first = self.entries.len();
        for place in (0..first).rev() {
            if self.entries[place].waker.is_some() {
                first -= 1;
                self.entries.swap(place, first);
            }
        }
        let tasks = self.entries.split_off(first);
        // Fewer than there were, so the numbers fit.
        (1..).zip(&tasks).for_each(|(key, entry)| entry.record.set_key(key));
        mem::replace(&mut self.entries, tasks)
    }

    fn occupied(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }
}

#[cfg(all(test, not(kittiwake_loom)))]
mod tests {
    use super::*;

    /// The workers have nothing to do with these tests.
    type Registry = TaskRegistry<()>;

    fn registry(workers: usize) -> Registry {
        TaskRegistry::new(workers, IdSource::new(), Attention::NONE)
    }

    fn insert(tasks: &Registry, kind: Kind) -> (Id, Record<()>) {
        let new = New { kind, location: Location::caller(), queue: 0, now: Stamp::from_bits(0), id: EarlyId::NONE };
        let inserted = tasks.insert(&Arc::new(()), 0, new, |_| (Waker::noop().clone(), ()));
        assert!(!inserted.is_refused, "the registry must accept the task");
        (inserted.id, inserted.record)
    }

    /// Spikes of tasks leave little memory. Tasks that outlive them are found where their entries are now, and no other
    /// task is.
    #[test]
    fn spikes_of_tasks_leave_little_memory() {
        let registry = registry(2);
        let table = |what: fn(&Table<()>) -> usize| what(&registry.lists[0].0.lock().tables[SHARED]);
        let mut left = Vec::new();
        for round in 1..4 {
            let spike: Vec<_> = (0..50_000).map(|_| insert(&registry, Kind::Shared)).collect();
            registry.shrink(0);
            assert!(table(|table| table.entries.len()) >= 50_000, "tasks that are there were forgotten");
            for (number, (id, record)) in spike.into_iter().enumerate() {
                if number % 5_000 == 0 {
                    left.push((id, record));
                } else {
                    registry.remove::<SHARED>(&record);
                    assert!(!registry.contains(&record, id), "a task was found that is gone");
                }
            }
            registry.shrink(0);
            assert_eq!(table(Table::occupied), 10 * round);
            assert!(table(|table| table.entries.capacity()) <= memory::KEPT, "the table has too much memory");
        }
        // Other tasks come to the places where the entries of these were made.
        let new: Vec<_> = (0..50_000).map(|_| insert(&registry, Kind::Shared)).collect();
        left.iter().for_each(|(id, record)| registry.cancel(record, Some(*id), CancelReason::ABORTED));
        let is_cancelled = |(_, record): &(Id, Record<()>)| record.attention().cancelled().is_some();
        assert!(!new.iter().any(is_cancelled), "another task was cancelled");
        assert!(left.iter().all(is_cancelled));
        for (_, record) in left.iter().chain(&new) {
            registry.remove::<SHARED>(record);
        }
        assert_eq!(table(Table::occupied), 0);
    }

    /// The end of a `block_on` call looks at each entry of this table. If those of other tasks or of earlier calls were
    /// among them, a call would pay for them.
    #[test]
    fn local_table_has_one_calls_tasks() {
        let tasks = registry(1);
        let local_entries = || tasks.lists[0].0.lock().tables[LOCAL].entries.len();
        tasks.open_local(0);
        let earlier = [(); 100].map(|()| insert(&tasks, Kind::Local));
        let _others = [Kind::Shared, Kind::Blocking].map(|kind| [(); 100].map(|()| insert(&tasks, kind)));
        assert_eq!(local_entries(), 100);
        tasks.cancel_local(0);
        assert!(earlier.iter().all(|(_, record)| record.attention().cancelled().is_some()));
        assert!(!earlier.iter().any(|(_, record)| tasks.remove::<LOCAL>(record)), "the runtime goes on");
        tasks.open_local(0);
        let (id, record) = insert(&tasks, Kind::Local);
        assert_eq!(local_entries(), 1, "the call would look at more than its own task");
        assert!(tasks.contains(&record, id) && !earlier.iter().any(|(id, record)| tasks.contains(record, *id)));
        for (id, record) in &earlier {
            tasks.cancel(record, Some(*id), CancelReason::ABORTED);
        }
        assert!(record.attention().cancelled().is_none(), "a task was cancelled for one of an earlier call");
    }

    /// A handle of a task that has ended must not cancel the task that has its record now.
    #[test]
    fn old_handle_cancels_no_new_task() {
        let tasks = registry(1);
        let (old, record) = insert(&tasks, Kind::Shared);
        tasks.remove::<SHARED>(&record);
        let (new, same) = insert(&tasks, Kind::Shared);
        assert_eq!(record.key(), same.key(), "the test needs the record to be used again");
        tasks.cancel(&record, Some(old), CancelReason::ABORTED);
        assert!(same.attention().cancelled().is_none(), "a task was cancelled for an old one");
        assert!(!tasks.contains(&record, old) && tasks.contains(&same, new));
    }

    /// A record keeps the workers, and the workers keep the records. Once the last task is gone after the end, nothing
    /// of that is left, also if tasks are refused after it.
    #[test]
    fn ended_registry_keeps_no_workers() {
        let (workers, tasks) = (Arc::new(()), registry(1));
        let insert = |kind| {
            let new = New { kind, location: Location::caller(), queue: 0, now: Stamp::from_bits(0), id: EarlyId::NONE };
            tasks.insert(&workers, 0, new, |_| (Waker::noop().clone(), ()))
        };
        let (first, last) = (insert(Kind::Shared), insert(Kind::Shared));
        assert!(!tasks.remove::<SHARED>(&first.record));
        assert!(!tasks.cancel_all(), "a task is left");
        assert!(tasks.remove::<SHARED>(&last.record), "this is the last one");
        let refused = insert(Kind::Shared);
        assert!(refused.is_refused, "an ended registry must refuse tasks");
        assert!(!tasks.remove::<SHARED>(&refused.record), "a refused task is not the last one");
        drop((first, last, refused));
        assert_eq!(Arc::strong_count(&workers), 1, "the registry keeps the workers");
    }

    /// All tasks are shown, each once while none comes or goes.
    #[test]
    fn each_task_is_shown() {
        let tasks = registry(2);
        let mut made: Vec<Id> = (0..1_000).map(|_| insert(&tasks, Kind::Shared).0).collect();
        made.extend((0..300).map(|_| insert(&tasks, Kind::Blocking).0));
        let mut shown = Vec::new();
        tasks.visit(|look| shown.push(look.id));
        shown.sort_unstable();
        assert_eq!(shown, made);
    }

    /// A look at all tasks ends, although more tasks are spawned in each of its gaps than it shows before the next.
    /// Tasks that were there at its begin are shown all the same, also if they are moved together meanwhile.
    #[test]
    fn look_ends_while_tasks_are_spawned() {
        for moves in [false, true] {
            let tasks = registry(1);
            let spawn = |count: usize| (0..count).map(|_| insert(&tasks, Kind::Shared)).collect::<Vec<_>>();
            let (gone, first) = (spawn(16 * VISITED), spawn(2 * VISITED));
            let (mut next, mut shown) = (Some(Visited::NONE), Vec::new());
            for turn in 0.. {
                let Some(visited) = next else { break };
                assert!(turn < 40, "the look chases the table: {} tasks were shown", shown.len());
                next = tasks.lists[0].0.lock().visit(Kind::Shared, visited, &mut |look| shown.push(look.id));
                if moves && turn == 2 {
                    gone.iter().for_each(|(_, record)| assert!(!tasks.remove::<SHARED>(record)));
                    tasks.shrink(0);
                    assert_eq!(tasks.lists[0].0.lock().tables[SHARED].moves, 1, "the test needs tasks to be moved");
                }
                spawn(2 * VISITED);
            }
            assert!(first.iter().all(|(id, _)| shown.contains(id)), "a task was left out");
        }
    }
}
