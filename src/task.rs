//! Tasks: handles on them, sets of them, and giving way.

use std::sync::Arc;

pub use crate::blocking::spawn_blocking;
pub(crate) use crate::blocking::{Work, try_spawn};
#[cfg(feature = "hyper")]
pub(crate) use crate::executor::is_alone;
pub use crate::executor::{
    AbortHandle, Id, JoinError, JoinHandle, JoinSet, YieldNow, consume_budget, spawn, spawn_local, yield_now,
};
pub(crate) use crate::executor::{TaskNames, add_names, spawn_local_at, spawn_on, workers_here};
use crate::trace::{self, NextName};

/// Spawns tasks with a name, which [`Handle::tasks`](crate::runtime::Handle::tasks) shows.
///
/// # Examples
/// ```
/// use kittiwake::task::Builder;
///
/// kittiwake::block_on(async {
///     let task = Builder::new().name("answer").spawn(async { 42 });
///     let dump = kittiwake::runtime::Handle::current().tasks();
///     assert_eq!(dump.tasks()[0].name.as_deref(), Some("answer"));
///     assert_eq!(task.await.unwrap(), 42);
/// });
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder spawns nothing by itself"]
pub struct Builder {
    name: Option<Arc<str>>,
}

impl Builder {
    /// No name yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The name of the tasks. Several tasks may have the same one.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// As [`spawn`].
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: IntoFuture<IntoFuture: Send + 'static>,
        F::Output: Send + 'static,
    {
        let future = future.into_future();
        let _named = self.name_next();
        self.named(spawn(future))
    }

    /// As [`spawn_local`].
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn spawn_local<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: IntoFuture<IntoFuture: 'static>,
        F::Output: 'static,
    {
        let future = future.into_future();
        let _named = self.name_next();
        self.named(spawn_local(future))
    }

    /// As [`spawn_blocking`].
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn spawn_blocking<C, T>(&self, closure: C) -> JoinHandle<T>
    where
        C: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let _named = self.name_next();
        self.named(spawn_blocking(closure))
    }

    /// Names the span of the next task.
    fn name_next(&self) -> NextName {
        trace::TaskName::new(|| Some(self.name.as_ref()?.to_string())).for_next_task()
    }

    fn named<T>(&self, task: JoinHandle<T>) -> JoinHandle<T> {
        if let Some(name) = &self.name {
            task.set_name(name.clone());
        }
        task
    }
}
