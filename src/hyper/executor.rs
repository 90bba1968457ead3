//! [`Executor`] and [`LocalExecutor`]: hyper's tasks on this runtime.

use ::hyper::rt;

use super::tunnel;
use crate::task::{spawn, spawn_local};

/// Spawns hyper's futures as tasks of the runtime, as [`spawn`] does. HTTP/2 needs it.
///
/// A panic in such a future ends its task alone. The panic hook reports it.
///
/// # Panics
/// Outside a runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct Executor;

/// Spawns hyper's futures as tasks of this thread, as [`spawn_local`] does. They need not be `Send`.
///
/// # Panics
/// Outside a runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalExecutor;

impl<F> rt::Executor<F> for Executor
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        // Dropping the handle detaches the task.
        match tunnel::take() {
            None => drop(spawn(future)),
            Some(running) => drop(spawn(async move {
                let _running = running;
                future.await
            })),
        }
    }
}

impl<F> rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        drop(spawn_local(future));
    }
}
