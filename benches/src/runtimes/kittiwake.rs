//! The runtime of the socket jobs and of the job `http` on kittiwake.

use std::io;
use std::time::Duration;

use kittiwake::runtime::{Builder, Runtime};
use kittiwake_benches::Program;

/// The runtime that the command line asks for.
pub(crate) fn build(program: &Program) -> io::Result<Runtime> {
    if program.driver.is_some() {
        program.refuse();
    }
    let builder = match program.workers {
        1 => Builder::new_current_thread(),
        workers => Builder::new_multi_thread().worker_threads(workers),
    };
    match program.spin {
        Some(spin) => builder.spin(Duration::from_micros(spin)).build(),
        None => builder.build(),
    }
}
