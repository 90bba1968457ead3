//! The in-memory jobs on kittiwake.

use kittiwake::task::yield_now;
use kittiwake::time::{sleep, timeout};
use kittiwake_benches::{Program, memory_job};

fn main() {
    let (job, n) = Program::start().memory();
    kittiwake::block_on(memory_job!(job, n, {
        spawn: [kittiwake::spawn],
        spawn_local: [kittiwake::spawn_local],
        yield_now: [yield_now],
        value: [.unwrap()],
        sleep: [sleep],
        timeout: [timeout],
    }));
}
