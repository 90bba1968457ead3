//! The in-memory jobs on compio, with its epoll driver.

use compio::driver::{DriverType, ProactorBuilder};
use compio::runtime::{RuntimeBuilder, spawn};
use compio::time::{sleep, timeout};
use kittiwake_benches::{Program, memory_job, program, yield_now};

fn main() {
    let (job, n) = Program::start().memory();
    let mut proactor = ProactorBuilder::new();
    proactor.driver_type(DriverType::Poll);
    let runtime = RuntimeBuilder::new().with_proactor(proactor).build();
    program::or_fail("no runtime", runtime).block_on(memory_job!(job, n, {
        spawn: [spawn],
        spawn_local: [spawn],
        yield_now: [yield_now],
        value: [.unwrap()],
        sleep: [sleep],
        timeout: [timeout],
    }));
}
