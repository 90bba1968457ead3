//! The in-memory jobs on the `LocalPool` of the futures crate. It has neither sockets nor timers.

use std::future::ready;

use futures::executor::{LocalPool, LocalSpawner};
use futures::future::RemoteHandle;
use futures::task::LocalSpawnExt;
use kittiwake_benches::{Program, memory_job, yield_now};

fn main() {
    let (job, n) = Program::start().memory();
    let mut pool = LocalPool::new();
    let spawner = Spawner(pool.spawner());
    pool.run_until(memory_job!(job, n, {
        spawn: [spawner.spawn],
        spawn_local: [spawner.spawn],
        yield_now: [yield_now],
        value: [],
        // The driver lets no program without timers do a job that needs them.
        sleep: [ready],
        timeout: [(|_, _| ready(Err::<u64, _>("no timers")))],
    }));
}

/// A spawner whose `spawn` cannot fail.
struct Spawner(LocalSpawner);

impl Spawner {
    #[inline]
    fn spawn<F: Future + 'static>(&self, future: F) -> RemoteHandle<F::Output> {
        self.0.spawn_local_with_handle(future).expect("the pool lives as long as its tasks")
    }
}
