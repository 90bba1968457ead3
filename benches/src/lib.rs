//! What the benchmark programs share, so that they do the same work.
//!
//! Each file in `src/bin/` is one runtime's program: a server for the socket jobs, and the bodies of the
//! in-memory jobs. This library has whatever is not the runtime: the arguments, the listening socket, how
//! a server is told to stop, the names of the jobs, the bodies of the in-memory jobs, and the state machine
//! of the two hand-written loops. The driver, which starts the programs and measures them, is `src/main.rs`.

pub mod by_hand;
pub mod jobs;
pub mod memory;
pub mod program;

pub use jobs::{Handler, MemoryJob};
pub use memory::{Stopwatch, yield_now};
pub use program::{Program, Task, spin};
