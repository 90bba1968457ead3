//! Workers: those of one runtime, with their tasks.

use std::sync::Arc;
use std::task::Waker;

use super::list::{TaskLists, Which};
use super::queues::Queues;
use super::{Entry, Runnable, discard};

/// The workers of a runtime.
pub(crate) struct Workers {
    pub(super) tasks: TaskLists,
    pub(super) queues: Queues<Entry, Runnable>,
}

impl Workers {
    /// As many workers as there are `rings`: each is woken to end its worker's block, from any thread.
    pub(crate) fn new(rings: Vec<Waker>) -> Arc<Self> {
        Arc::new(Self { tasks: TaskLists::new(rings.len()), queues: Queues::new(rings) })
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Whether tasks may move between workers.
    #[inline]
    pub(super) fn is_several(&self) -> bool {
        self.len() > 1
    }

    /// What a worker's thread is known by, to compare with a task's gate: the addresses of what is that worker's own, and of
    /// what all share. The second is odd, as none of the first is, and 0 if nothing is shared.
    #[inline]
    pub(super) fn gates(self: &Arc<Self>, index: usize) -> (usize, usize) {
        let own = std::ptr::from_ref(self.queues.remote(index)).addr();
        (own, if self.is_several() { Arc::as_ptr(self).addr() | 1 } else { 0 })
    }

    /// The worker with the fewest tasks.
    pub(super) fn least_loaded(&self) -> usize {
        (0..self.len()).min_by_key(|index| self.tasks_alive(*index)).unwrap_or(0)
    }

    /// How many tasks of a worker still have their future.
    pub(super) fn tasks_alive(&self, index: usize) -> usize {
        self.tasks.len(index, Which::All)
    }

    /// Has a worker begin a task, from any thread.
    pub(super) fn place(&self, index: usize, task: Runnable) {
        if !self.is_several() {
            task.schedule();
        } else if let Err(task) = self.queues.place(index, task) {
            discard(Entry::Task(task));
        }
    }

    /// Refuses new tasks and tells all that are there to end.
    pub(crate) fn abort_all(&self) {
        if self.tasks.abort_all() {
            self.all_gone();
        }
    }

    /// The last task has ended after they were told to: workers that wait for that go on.
    pub(super) fn all_gone(&self) {
        self.queues.ring_all();
    }

    /// Refuses whatever still comes for a worker. All tasks are gone.
    pub(super) fn close(&self, index: usize) {
        let (own, shared) = self.queues.close(index);
        own.into_iter().chain(shared.into_iter().map(Entry::Task)).for_each(discard);
    }
}
