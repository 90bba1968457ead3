//! JoinSet: a set of tasks, joined as they end.
//!
//! Each task in the set has a waker of its own. That waker notes the task's key and then wakes the task that waits for
//! the set. So joining looks only at tasks that have ended, however many there are.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::panic::{RefUnwindSafe, UnwindSafe, resume_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use parking_lot::Mutex;
use slab::Slab;

use super::join::{AbortHandle, JoinHandle};
use super::outcome::JoinError;
use super::registry::Id;
use super::spawn::{spawn_local_named, spawn_named};
use crate::budget;
use crate::memory::{is_sparse, shrink_queue};

/// How many tasks of a set are shown as those that its owner waits for, at most.
const SHOWN: usize = 8;

/// Tasks that belong together: joined in the order in which they end, and aborted when the
/// set is dropped.
///
/// A set keeps some 100 bytes for each of the most tasks that were in it at once. If they were more than 512, it gives
/// that back when it becomes empty.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let mut set = kittiwake::task::JoinSet::new();
///     for i in 1..=3 {
///         set.spawn(async move { i });
///     }
///     let mut sum = 0;
///     while let Some(result) = set.join_next().await {
///         sum += result.unwrap();
///     }
///     assert_eq!(sum, 6);
/// });
/// ```
pub struct JoinSet<T> {
    members: Slab<Member<T>>,
    ended: Arc<Ended>,
}

struct Member<T> {
    handle: JoinHandle<T>,
    /// The result of a task that had ended when it was added. In a box, so that a member is small.
    result: Option<Box<Result<T, JoinError>>>,
    /// A [`Note`] of this member's key.
    waker: Waker,
}

/// The state that the wakers of the members share with the set.
#[derive(Default)]
struct Ended {
    inner: Mutex<EndedInner>,
}

#[derive(Default)]
struct EndedInner {
    /// Keys of members to look at. One may be there twice, or be stale.
    keys: VecDeque<usize>,
    /// The waker of the task that waits in `join_next`.
    waiter: Option<Waker>,
}

impl Ended {
    /// Takes the key of the next member to look at, or else gives the memory back that a spike of them has left.
    fn next_key(&self) -> Option<usize> {
        let mut inner = self.inner.lock();
        let key = inner.keys.pop_front();
        if key.is_none() {
            shrink_queue(&mut inner.keys);
        }
        key
    }
}

struct Note {
    key: usize,
    ended: Arc<Ended>,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut inner = self.ended.inner.lock();
        inner.keys.push_back(self.key);
        let waiter = inner.waiter.take();
        drop(inner);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

impl<T> JoinSet<T> {
    /// Makes an empty set.
    pub fn new() -> Self {
        Self { members: Slab::new(), ended: Arc::default() }
    }

    /// How many tasks are in the set: those that run, and those that ended and were not
    /// joined yet.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether the set has no tasks.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Ends all tasks of the set. They stay in it and can be joined; most will say that they
    /// were cancelled.
    pub fn abort_all(&mut self) {
        for (_, member) in &self.members {
            member.handle.abort();
        }
    }

    /// Takes all tasks out of the set and lets them go on. A task that waits in a `poll_` function is woken, because
    /// the set is empty.
    pub fn detach_all(&mut self) {
        self.members = Slab::new();
        // The tasks that left go on making their notes in the old state, which is not read any more.
        let ended = std::mem::take(&mut self.ended);
        let waiter = ended.inner.lock().waiter.take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Waits for the next task to end, takes it out of the set and returns what became of it;
    /// `None` if the set is empty.
    ///
    /// # Cancel safety
    /// Safe: a task is taken out only in the poll that returns it.
    ///
    /// # Errors
    /// Inside the `Some`, if the task panicked or was aborted. The others go on.
    ///
    /// # Examples
    /// See [`JoinSet`].
    pub async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        poll_fn(|cx| self.poll_join_next(cx)).await
    }

    /// Like [`join_next`](JoinSet::join_next), and says which task it was.
    ///
    /// # Cancel safety
    /// Safe, like [`join_next`](JoinSet::join_next).
    ///
    /// # Errors
    /// Inside the `Some`, if the task panicked or was aborted; [`JoinError::id`] says which.
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let mut set = kittiwake::task::JoinSet::new();
    ///     let id = set.spawn(async { 1 }).id();
    ///     assert_eq!(set.join_next_with_id().await.unwrap().unwrap(), (id, 1));
    /// });
    /// ```
    pub async fn join_next_with_id(&mut self) -> Option<Result<(Id, T), JoinError>> {
        let (id, result) = poll_fn(|cx| self.poll_joined(cx)).await?;
        Some(result.map(|output| (id, output)))
    }

    /// Takes out a task that has ended already, if there is one, without waiting.
    ///
    /// # Errors
    /// Inside the `Some`, if the task panicked or was aborted.
    pub fn try_join_next(&mut self) -> Option<Result<T, JoinError>> {
        match self.poll_ended() {
            Poll::Ready(joined) => joined.map(|(_, result)| result),
            Poll::Pending => None,
        }
    }

    /// Polls for the next task that has ended, takes it out of the set and returns its result; `None` if the set is
    /// empty.
    ///
    /// If the result is `Pending`, the set wakes the waker of the last poll.
    ///
    /// # Errors
    /// Inside the `Some`, if the task panicked or was aborted. The others go on.
    pub fn poll_join_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, JoinError>>> {
        self.poll_joined(cx).map(|joined| joined.map(|(_, result)| result))
    }

    /// Waits for all tasks to end, and returns their outputs in the order in which they ended.
    ///
    /// # Cancel safety
    /// Not safe: dropping the future drops the set and the outputs that were collected so far. The tasks that are left
    /// are aborted.
    ///
    /// # Panics
    /// With the panic of the first task that panicked, or if a task was aborted. The other tasks are aborted then. To
    /// handle such a task, loop over [`join_next`](JoinSet::join_next).
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let mut set = kittiwake::task::JoinSet::new();
    ///     for i in 1..=3 {
    ///         set.spawn(async move { i });
    ///     }
    ///     let mut outputs = set.join_all().await;
    ///     outputs.sort();
    ///     assert_eq!(outputs, [1, 2, 3]);
    /// });
    /// ```
    pub async fn join_all(mut self) -> Vec<T> {
        let mut outputs = Vec::with_capacity(self.len());
        while let Some(result) = self.join_next().await {
            match result.map_err(JoinError::try_into_panic) {
                Ok(output) => outputs.push(output),
                Err(Ok(panic)) => resume_unwind(panic),
                Err(Err(error)) => panic!("JoinSet::join_all: {error}"),
            }
        }
        outputs
    }

    /// Ends all tasks of the set and waits until they are gone.
    ///
    /// # Cancel safety
    /// Safe: the tasks are told to end by the first poll, and what is left stays in the set.
    ///
    /// # Examples
    /// ```
    /// kittiwake::block_on(async {
    ///     let mut set = kittiwake::task::JoinSet::new();
    ///     set.spawn(std::future::pending::<()>());
    ///     set.shutdown().await;
    ///     assert!(set.is_empty());
    /// });
    /// ```
    pub async fn shutdown(&mut self) {
        self.abort_all();
        while self.join_next().await.is_some() {}
    }

    /// As [`poll_join_next`](JoinSet::poll_join_next), and says which task it was.
    fn poll_joined(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Id, Result<T, JoinError>)>> {
        ready!(budget::poll_complete(cx, || !self.ended.inner.lock().keys.is_empty()));
        // Before looking: a task that ends meanwhile finds it.
        let waker = cx.waker().clone();
        let replaced = self.ended.inner.lock().waiter.replace(waker);
        drop(replaced);
        let poll = self.poll_ended();
        if poll.is_pending() {
            // For dumps of the tasks. To note it in all of them would take too long.
            let shown = (0..SHOWN).filter_map(|key| self.members.get(key));
            shown.for_each(|member| member.handle.note_joiner(cx.waker()));
        } else {
            budget::spend();
            let unused = self.ended.inner.lock().waiter.take();
            drop(unused);
        }
        poll
    }

    /// Looks at the members that have something to say.
    fn poll_ended(&mut self) -> Poll<Option<(Id, Result<T, JoinError>)>> {
        while let Some(key) = self.ended.next_key() {
            let Some(member) = self.members.get_mut(key) else { continue };
            let poll = member.result.take().map_or_else(|| member.poll(), |result| Poll::Ready(*result));
            if let Poll::Ready(result) = poll {
                let id = self.members.remove(key).handle.id();
                if self.members.is_empty() && is_sparse(0, self.members.capacity()) {
                    self.shrink();
                }
                return Poll::Ready(Some((id, result)));
            }
        }
        if self.members.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Gives the memory back that a spike has left in a set that has become empty.
    #[cold]
    fn shrink(&mut self) {
        // Notes that still come are stale. If a new member has the key, it is looked at in vain.
        self.members = Slab::new();
        self.ended.inner.lock().keys = VecDeque::new();
    }

    /// Adds a task to the set.
    pub(crate) fn insert(&mut self, handle: JoinHandle<T>) -> AbortHandle {
        let abort = handle.abort_handle();
        let vacant = self.members.vacant_entry();
        let note = Arc::new(Note { key: vacant.key(), ended: self.ended.clone() });
        let waker = Waker::from(note.clone());
        let member = vacant.insert(Member { handle, result: None, waker });
        // Leaves the note with the task now, so that notes come in the order in which tasks end.
        if let Poll::Ready(result) = member.poll() {
            member.result = Some(Box::new(result));
            note.wake();
        }
        abort
    }
}

impl<T> Member<T> {
    fn poll(&mut self) -> Poll<Result<T, JoinError>> {
        // Without a budget: a refusal would wake the member and not the task that polls the set.
        self.handle.poll_join(&mut Context::from_waker(&self.waker))
    }
}

impl<T: Send + 'static> JoinSet<T> {
    /// Spawns a task, as [`spawn`](crate::spawn) does, and adds it to the set.
    ///
    /// # Panics
    /// Outside a runtime, like [`spawn`](crate::spawn).
    #[track_caller]
    pub fn spawn<F>(&mut self, future: F) -> AbortHandle
    where
        F: IntoFuture<Output = T, IntoFuture: Send + 'static>,
    {
        self.insert(spawn_named("JoinSet::spawn", future.into_future()))
    }
}

impl<T: 'static> JoinSet<T> {
    /// Spawns a task that stays on this thread, as [`spawn_local`](crate::spawn_local) does, and
    /// adds it to the set.
    ///
    /// # Panics
    /// Outside a runtime, like [`spawn_local`](crate::spawn_local).
    #[track_caller]
    pub fn spawn_local<F>(&mut self, future: F) -> AbortHandle
    where
        F: IntoFuture<Output = T, IntoFuture: 'static>,
    {
        self.insert(spawn_local_named("JoinSet::spawn_local", future.into_future()))
    }
}

// A set shows nothing of a task that a panic could have left half-changed.
impl<T> UnwindSafe for JoinSet<T> {}
impl<T> RefUnwindSafe for JoinSet<T> {}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        self.abort_all();
    }
}

impl<T> Default for JoinSet<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for JoinSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinSet").field("len", &self.len()).finish()
    }
}
