//! List: the tasks a worker has, so that it can end them.
//!
//! A task that waits is referred to by the wakers it has given away, and by
//! nobody else. At shutdown each must be dropped all the same, on its own
//! worker: so the list keeps one waker of each, and a task that was told to end
//! and is woken drops its future the next time its worker runs it.
//!
//! An entry is made when the task is spawned and goes when the task's future is
//! dropped, whether it ended, panicked or was aborted.

use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use slab::Slab;

use super::task::Header;
use crate::sync::wake_all;

/// The tasks that were spawned on one worker and still have their future.
pub(crate) struct TaskList {
    tasks: Mutex<Tasks>,
}

struct Tasks {
    entries: Slab<Entry>,
    /// How many of `entries` are local tasks.
    local: usize,
    /// How many of them are jobs.
    jobs: usize,
    /// The id of the next task.
    next_id: u64,
    /// Nothing may be spawned any more.
    closed: bool,
    /// No local task may be spawned: no `block_on` call is there to run it.
    closed_to_local: bool,
}

struct Entry {
    header: Arc<Header>,
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

/// What the list gives a task that is being made.
pub(super) struct Admission {
    pub(super) id: u64,
    /// Where its entry is, or `None` if the list takes no more tasks.
    pub(super) key: Option<usize>,
}

impl TaskList {
    pub(super) fn new() -> Self {
        Self {
            tasks: Mutex::new(Tasks {
                entries: Slab::new(),
                local: 0,
                jobs: 0,
                next_id: 1,
                closed: false,
                closed_to_local: true,
            }),
        }
    }

    /// Has `make` build a task, and enters it. `make` runs under the lock: it
    /// allocates, and calls no foreign code.
    pub(super) fn admit<R>(&self, kind: Kind, make: impl FnOnce(Admission) -> (Arc<Header>, Waker, R)) -> R {
        let mut tasks = self.tasks.lock();
        let tasks = &mut *tasks;
        let id = tasks.next_id;
        tasks.next_id += 1;
        if tasks.closed || (kind == Kind::Local && tasks.closed_to_local) {
            let (_, _unused, made) = make(Admission { id, key: None });
            return made;
        }
        let vacant = tasks.entries.vacant_entry();
        let (header, waker, made) = make(Admission { id, key: Some(vacant.key()) });
        vacant.insert(Entry { header, waker });
        tasks.local += usize::from(kind == Kind::Local);
        tasks.jobs += usize::from(kind == Kind::Job);
        made
    }

    /// Removes the entry at `key`.
    pub(super) fn remove(&self, key: usize) {
        let mut tasks = self.tasks.lock();
        let removed = tasks.entries.remove(key);
        tasks.local -= usize::from(removed.header.kind() == Kind::Local);
        tasks.jobs -= usize::from(removed.header.kind() == Kind::Job);
        drop(tasks);
        // Outside the lock: this may free the task, and with it an output.
        drop(removed);
    }

    /// Wakes the task at `key`, if it is still the one with this id.
    pub(super) fn wake(&self, key: usize, id: u64) {
        let tasks = self.tasks.lock();
        let entry = tasks.entries.get(key).filter(|entry| entry.header.id() == id);
        let waker = entry.map(|entry| entry.waker.clone());
        drop(tasks);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn contains(&self, key: usize, id: u64) -> bool {
        self.tasks.lock().entries.get(key).is_some_and(|entry| entry.header.id() == id)
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
        let is_meant = |entry: &Entry| which == Which::All || entry.header.kind() == Kind::Local;
        let meant = tasks.entries.iter().filter(|(_, entry)| is_meant(entry));
        // At the end of most calls there is none, and then the others are not looked through.
        for (_, entry) in meant.take(count) {
            entry.header.abort();
            // A clone of our own task's waker: this counts, and no more.
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
    fn len(&self, which: Which) -> usize {
        match which {
            Which::Local => self.local,
            Which::All => self.entries.len() - self.jobs,
        }
    }
}
