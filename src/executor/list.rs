//! List: the tasks a worker has, so that it can end them.
//!
//! A task that waits is referred to by the wakers it has given away, and by
//! nobody else. At shutdown each must be dropped all the same, on its own
//! worker: so the list keeps one waker of each, and a task that was told to end
//! and is woken drops its future the next time its worker runs it.
//!
//! An entry is made when the task is spawned and goes when the task's future is
//! dropped, whether it ended, panicked or was aborted.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use slab::Slab;

use super::task::ABORTED;
use crate::sync::wake_all;

/// The tasks that were spawned on one worker and still have their future.
pub(crate) struct TaskList {
    /// How many of them were told to end: for not asking, mostly, which.
    told: AtomicUsize,
    tasks: Mutex<Tasks>,
}

struct Tasks {
    entries: Slab<Entry>,
    /// How many of `entries` are local tasks.
    local: usize,
    /// How many of them are jobs.
    jobs: usize,
    /// The id of the last task, or 0.
    last_id: u64,
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
    /// Made by `spawn`: it may be run by any worker.
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
    /// All that a worker runs. To end them is to end the runtime, so the jobs are told to end as well.
    All,
}

/// Where a task stands in the list of its home.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) id: NonZeroU64,
    /// One more than the number of its entry; `None` if the list refused it.
    pub(super) key: Option<NonZeroU32>,
}

impl TaskList {
    pub(super) fn new() -> Self {
        Self {
            told: AtomicUsize::new(0),
            tasks: Mutex::new(Tasks {
                entries: Slab::new(),
                local: 0,
                jobs: 0,
                last_id: 0,
                closed: false,
                closed_to_local: true,
            }),
        }
    }

    /// Has `make` build a task and its waker, and enters it. `make` runs under the lock: it
    /// allocates, and calls no foreign code.
    ///
    /// # Panics
    /// With 2^32 tasks.
    pub(super) fn admit<R>(&self, kind: Kind, make: impl FnOnce(Place) -> (Waker, R)) -> R {
        let mut tasks = self.tasks.lock();
        let tasks = &mut *tasks;
        tasks.last_id += 1;
        let id = NonZeroU64::new(tasks.last_id).expect("ids count from 1");
        if tasks.closed || (kind == Kind::Local && tasks.closed_to_local) {
            let (_unused, made) = make(Place { id, key: None });
            return made;
        }
        let vacant = tasks.entries.vacant_entry();
        let key = u32::try_from(vacant.key() + 1).ok().and_then(NonZeroU32::new);
        let (waker, made) = make(Place { id, key: Some(key.expect("fewer than 2^32 tasks")) });
        vacant.insert(Entry { id, kind, end: 0, waker });
        tasks.count(kind, 1);
        made
    }

    /// Removes the entry of a task.
    pub(super) fn remove(&self, key: NonZeroU32) {
        let mut tasks = self.tasks.lock();
        let removed = tasks.entries.remove(index(key));
        tasks.count(removed.kind, -1);
        if removed.end != 0 {
            self.told.fetch_sub(1, Ordering::Relaxed);
        }
        drop(tasks);
        // Outside the lock: this may free the task, and with it an output.
        drop(removed);
    }

    /// Tells a task to end, if it is still there.
    pub(super) fn abort_one(&self, place: Place) {
        let mut tasks = self.tasks.lock();
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

    /// Why a task is to end; 0 if it is not.
    #[cold]
    pub(super) fn end(&self, place: Place) -> i32 {
        if place.key.is_none() {
            return ABORTED;
        }
        self.tasks.lock().find(place).map_or(0, |entry| entry.end)
    }

    /// Runs a task that is to end because of `end`, unless it was told so before. The list has told one meanwhile, so that the
    /// task asks: one that the list refused is in no entry.
    pub(super) fn while_told(&self, place: Place, end: i32, run: impl FnOnce() -> bool) {
        if let Some(entry) = self.tasks.lock().find(place) {
            self.tell(entry, end);
        }
        self.told.fetch_add(1, Ordering::Release);
        run();
        self.told.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn contains(&self, place: Place) -> bool {
        self.tasks.lock().find(place).is_some()
    }

    /// Lets local tasks in: a `block_on` call has begun.
    pub(super) fn open_to_local(&self) {
        self.tasks.lock().closed_to_local = false;
    }

    /// Refuses new tasks, and tells those that are there to end.
    pub(super) fn abort(&self, which: Which) {
        let mut tasks = self.tasks.lock();
        tasks.closed_to_local = true;
        tasks.closed |= which == Which::All;
        let count = if which == Which::All { tasks.entries.len() } else { tasks.local };
        let mut wakers = Vec::with_capacity(count);
        let is_meant = |entry: &Entry| which == Which::All || entry.kind == Kind::Local;
        let meant = tasks.entries.iter_mut().filter(|(_, entry)| is_meant(entry));
        // At the end of most calls there is none, and then the others are not looked through.
        for (_, entry) in meant.take(count) {
            self.tell(entry, ABORTED);
            wakers.push(entry.waker.clone());
        }
        drop(tasks);
        wake_all(&mut wakers);
    }

    /// How many tasks still have their future.
    pub(crate) fn len(&self, which: Which) -> usize {
        self.tasks.lock().len(which)
    }
}

impl Tasks {
    fn find(&mut self, place: Place) -> Option<&mut Entry> {
        self.entries.get_mut(index(place.key?)).filter(|entry| entry.id == place.id)
    }

    fn count(&mut self, kind: Kind, change: isize) {
        match kind {
            Kind::Shared => {}
            Kind::Local => self.local = self.local.wrapping_add_signed(change),
            Kind::Job => self.jobs = self.jobs.wrapping_add_signed(change),
        }
    }

    fn len(&self, which: Which) -> usize {
        match which {
            Which::Local => self.local,
            Which::All => self.entries.len() - self.jobs,
        }
    }
}

fn index(key: NonZeroU32) -> usize {
    key.get() as usize - 1
}
