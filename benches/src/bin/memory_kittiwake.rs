//! The in-memory jobs on kittiwake.

use kittiwake::task::yield_now;
use kittiwake::time::{sleep, timeout};
use kittiwake_benches::{MemoryJob, Program, Stopwatch, executor_jobs, timer_jobs};

fn main() {
    let (job, n) = Program::start().memory();
    kittiwake::block_on(memory(job, n));
}

async fn memory(job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [kittiwake::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [.unwrap()],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [kittiwake::spawn],
            spawn_local: [kittiwake::spawn_local],
            yield_now: [yield_now],
            value: [.unwrap()],
        });
    }
    clock.report();
}
