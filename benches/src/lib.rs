//! The code that all benchmark programs share, so that they do the same work.
//!
//! A runtime has up to four programs in `src/bin/`: `serve_*` for the socket jobs, `http_*` for the job `http`, `memory_*`
//! for the in-memory jobs and `latency_*` for the latency jobs. They are separate programs because a compiler inlines less of each runtime when one program holds several.
//!
//! This library holds everything except the runtimes: the command line, the listening socket, a server's treatment of
//! the bytes of a connection, the bodies of the in-memory and the latency jobs, and the state machine of the two hand-written loops.
//! The driver in `src/driver/` starts the programs and measures them.

pub mod by_hand;
#[cfg(feature = "http")]
pub mod http;
pub mod jobs;
pub mod latency;
pub mod memory;
pub mod program;
pub mod session;

pub use jobs::{Handler, LatencyJob, MemoryJob};
pub use memory::yield_now;
pub use program::{Program, Task};
pub use session::{Answer, Session};
