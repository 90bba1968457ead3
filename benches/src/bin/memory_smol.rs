//! The in-memory jobs on smol, with a `LocalExecutor`.

use std::io;
use std::time::Duration;

use kittiwake_benches::{MemoryJob, Program, Stopwatch, executor_jobs, timer_jobs};
use smol::future::{or, yield_now};
use smol::{LocalExecutor, Timer};

fn main() {
    let (job, n) = Program::start().memory();
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(memory(&executor, job, n)));
}

async fn memory(executor: &LocalExecutor<'static>, job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [executor.spawn],
            sleep: [Timer::after],
            timeout: [timeout],
            value: [],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [executor.spawn],
            spawn_local: [executor.spawn],
            yield_now: [yield_now],
            value: [],
        });
    }
    clock.report();
}

/// smol has no `timeout`; this is how its documentation makes one.
async fn timeout<F: Future>(duration: Duration, future: F) -> io::Result<F::Output> {
    or(async { Ok(future.await) }, async {
        Timer::after(duration).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}
