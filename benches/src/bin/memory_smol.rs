//! The in-memory jobs on smol, with a `LocalExecutor`.

use std::io;
use std::time::Duration;

use kittiwake_benches::{Program, memory_job};
use smol::future::{or, yield_now};
use smol::{LocalExecutor, Timer};

fn main() {
    let (job, n) = Program::start().memory();
    let executor = &LocalExecutor::new();
    smol::block_on(executor.run(memory_job!(job, n, {
        spawn: [executor.spawn],
        spawn_local: [executor.spawn],
        yield_now: [yield_now],
        value: [],
        sleep: [Timer::after],
        timeout: [timeout],
    })));
}

/// smol has no `timeout`. Its documentation makes one in this way.
async fn timeout<F: Future>(duration: Duration, future: F) -> io::Result<F::Output> {
    or(async { Ok(future.await) }, async {
        Timer::after(duration).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}
