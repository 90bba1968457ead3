//! The in-memory jobs on monoio, with its epoll driver.

use kittiwake_benches::{MemoryJob, Program, Stopwatch, executor_jobs, program, timer_jobs, yield_now};
use monoio::time::{sleep, timeout};
use monoio::{LegacyDriver, RuntimeBuilder};

fn main() {
    let (job, n) = Program::start().memory();
    if job == MemoryJob::Wake {
        program::fail("monoio takes wake-ups from other threads only with its feature `sync`");
    }
    match RuntimeBuilder::<LegacyDriver>::new().enable_timer().build() {
        Ok(mut runtime) => runtime.block_on(memory(job, n)),
        Err(error) => program::fail(&format!("no runtime: {error}")),
    }
}

async fn memory(job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [monoio::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [monoio::spawn],
            spawn_local: [monoio::spawn],
            yield_now: [yield_now],
            value: [],
        });
    }
    clock.report();
}
