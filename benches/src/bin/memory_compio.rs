//! The in-memory jobs on compio, with its epoll driver.

use compio::driver::{DriverType, ProactorBuilder};
use compio::runtime::RuntimeBuilder;
use compio::time::{sleep, timeout};
use kittiwake_benches::{MemoryJob, Program, Stopwatch, executor_jobs, program, timer_jobs, yield_now};

fn main() {
    let (job, n) = Program::start().memory();
    let mut proactor = ProactorBuilder::new();
    proactor.driver_type(DriverType::Poll);
    match RuntimeBuilder::new().with_proactor(proactor).build() {
        Ok(runtime) => runtime.block_on(memory(job, n)),
        Err(error) => program::fail(&format!("no runtime: {error}")),
    }
}

async fn memory(job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [compio::runtime::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [.unwrap()],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [compio::runtime::spawn],
            spawn_local: [compio::runtime::spawn],
            yield_now: [yield_now],
            value: [.unwrap()],
        });
    }
    clock.report();
}
