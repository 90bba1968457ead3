//! The runtime of the socket jobs and of the job `http` on tokio.

use std::io;

use kittiwake_benches::Program;
use tokio::runtime::{Builder, Runtime};

/// The runtime that the command line asks for.
pub(crate) fn build(program: &Program) -> io::Result<Runtime> {
    match program.driver.as_deref() {
        Some("current_thread") => Builder::new_current_thread().enable_all().build(),
        Some("multi_thread") => Builder::new_multi_thread().worker_threads(program.workers).enable_all().build(),
        _ => program.refuse(),
    }
}
