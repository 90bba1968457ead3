//! The in-memory jobs on monoio, with its epoll driver.

use kittiwake_benches::{MemoryJob, Program, memory_job, program, yield_now};
use monoio::time::{sleep, timeout};
use monoio::{LegacyDriver, RuntimeBuilder};

fn main() {
    let (job, n) = Program::start().memory();
    if job == MemoryJob::Wake {
        program::fail("monoio", "only its feature `sync` lets other threads wake a task");
    }
    let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build();
    program::or_fail("no runtime", runtime).block_on(memory_job!(job, n, {
        spawn: [monoio::spawn],
        spawn_local: [monoio::spawn],
        yield_now: [yield_now],
        value: [],
        sleep: [sleep],
        timeout: [timeout],
    }));
}
