//! What the benchmark programs share, so that they do the same work.
//!
//! In `src/bin/` each runtime has its programs: `serve_*`, a server for the socket jobs, and `memory_*` for the in-memory
//! jobs; `idle_*`, for idle connections, is a server whose buffer is part of the task, where the runtime's interface
//! allows that; `guarded_*` is an echo with timeouts, behind the runtime's own accept loop. They are apart because a compiler that sees all in one program puts less of each into line. This
//! library has whatever is not the runtime: the arguments, the listening socket, what a server does with the
//! bytes of a connection, the bodies of the in-memory jobs, and the state machine of the two hand-written loops.
//! The driver, which starts the programs and measures them, is `src/main.rs`.

pub mod by_hand;
pub mod jobs;
pub mod memory;
pub mod program;
pub mod session;

pub use jobs::{Handler, MemoryJob};
pub use memory::{Stopwatch, yield_now};
pub use program::Program;
pub use session::{Answer, Session};
