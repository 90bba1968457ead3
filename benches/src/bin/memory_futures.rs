//! The in-memory jobs on the `LocalPool` of the futures crate. It has neither sockets nor timers.

use futures::executor::{LocalPool, LocalSpawner};
use futures::future::RemoteHandle;
use futures::task::LocalSpawnExt;
use kittiwake_benches::{MemoryJob, Program, Stopwatch, executor_jobs, yield_now};

fn main() {
    let (job, n) = Program::start().memory();
    let mut pool = LocalPool::new();
    let spawner = Spawner(pool.spawner());
    pool.run_until(memory(spawner, job, n));
}

async fn memory(spawner: Spawner, job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    executor_jobs!(job, n, {
        spawn: [spawner.spawn],
        spawn_local: [spawner.spawn],
        yield_now: [yield_now],
        value: [],
    });
    clock.report();
}

/// A spawner whose `spawn` cannot fail.
struct Spawner(LocalSpawner);

impl Spawner {
    #[inline]
    fn spawn<F: Future + 'static>(&self, future: F) -> RemoteHandle<F::Output> {
        self.0.spawn_local_with_handle(future).expect("the pool lives as long as what runs in it")
    }
}
