//! The in-memory jobs on tokio's `current_thread` runtime.

use kittiwake_benches::{MemoryJob, Program, memory_job, program};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, yield_now};
use tokio::time::{sleep, timeout};

fn main() {
    let (job, n) = Program::start().memory();
    let runtime = program::or_fail("no runtime", Builder::new_current_thread().enable_all().build());
    let future = memory_job!(job, n, {
        spawn: [tokio::spawn],
        spawn_local: [tokio::task::spawn_local],
        yield_now: [yield_now],
        value: [.unwrap()],
        sleep: [sleep],
        timeout: [timeout],
    });
    if job == MemoryJob::Two {
        // Local tasks need a set, which adds a cost to each wake-up. The other jobs do without it.
        LocalSet::new().block_on(&runtime, future);
    } else {
        runtime.block_on(future);
    }
}
