//! The in-memory jobs on tokio's current_thread runtime.

use kittiwake_benches::{MemoryJob, Program, Stopwatch, executor_jobs, program, timer_jobs};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, yield_now};
use tokio::time::{sleep, timeout};

fn main() {
    let (job, n) = Program::start().memory();
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    if job == MemoryJob::Two {
        // Local tasks need a set of their own, which costs each wake-up something: only where there are some.
        LocalSet::new().block_on(&runtime, memory(job, n));
    } else {
        runtime.block_on(memory(job, n));
    }
}

async fn memory(job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [tokio::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [.unwrap()],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [tokio::spawn],
            spawn_local: [tokio::task::spawn_local],
            yield_now: [yield_now],
            value: [.unwrap()],
        });
    }
    clock.report();
}
