//! An async runtime for TCP servers: small and fast, with a core that is readable in an afternoon.
//!
//! A reactor (epoll or kqueue, through `mio`) maps readiness tokens to stored wakers; the wakers drive sockets with the
//! [`futures-io`](io) traits; a simple executor runs the tasks. One event loop per worker, on one core or on all,
//! sockets that are `Send` and `Sync`, no hidden thread, no global runtime, and no `unsafe`.
//!
//! # An echo server
//! ```no_run
//! use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
//! use kittiwake::net::{TcpListener, TcpStream, serve};
//!
//! fn main() -> std::io::Result<()> {
//!     kittiwake::block_on(async {
//!         let listener = TcpListener::bind("127.0.0.1:7000").await?;
//!         serve(listener, |stream, _peer| echo(stream)).await?;
//!         Ok(())
//!     })
//! }
//!
//! async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
//!     let mut buf = [0; 4096];
//!     loop {
//!         match stream.read(&mut buf).await? {
//!             0 => return Ok(()),
//!             n => stream.write_all(&buf[..n]).await?,
//!         }
//!     }
//! }
//! ```
//! The [guide] begins with this server, and goes on to timeouts, a graceful end, many cores and tests.
//!
//! [`serve`](net::serve()) is the loop that accepts. With a [`TcpListener`](net::TcpListener) and [`spawn`] it can be
//! written by hand. [`block_on`] uses one core. A [`Runtime`](runtime::Runtime) uses all of them, and so does an
//! `async fn main` with the attribute `#[kittiwake::main]`.
//!
//! # What is promised
//! 1. **No lost wake-up.** Once an operation has returned `Pending`, the task is woken when it can go on, whichever
//!    thread polls it and however often it moves between tasks.
//! 2. **Dropping a future cancels it**, and nothing is lost: no byte read and thrown away, no accepted connection
//!    dropped unseen.
//! 3. **One connection cannot starve the others**, nor can any await that is ready at once. A poll of a task does at
//!    most 128 operations that it awaits, and the kernel is looked at again after at most 64 polls. There are fewer of
//!    both if they take long, more than about a millisecond. Tasks that became ready together are run together.
//! 4. **A panic in a task ends that task alone**, and its `JoinHandle` says so. Exceptions are `panic = "abort"`, and a
//!    destructor that panics while another panic unwinds: Rust ends the process then.
//! 5. **An idle runtime uses no CPU.** A busy one makes the system calls of a hand-written loop, and few more: one look
//!    at a listener after it accepts, and one look at the kernel before it blocks. The latter comes where
//!    [spinning](runtime::Builder::spin) pays, or after several tasks have run at once. One of several workers that
//!    begins while all others sleep also sets a timer and cancels it. Beside a busy worker, one idle worker looks after
//!    it every few milliseconds.
//! 6. **Every error says what failed**, and nothing panics on what a peer or the network sends.
//! 7. **When the runtime ends**, its tasks are dropped and their sockets closed. A task that waits for a socket which
//!    outlives its runtime is woken, and goes on where it is polled next. Without a runtime there, it gets an error
//!    that says so.
//! 8. **The meaning of a program does not depend on the machine's cores.** A multi-thread runtime has threads of its
//!    own also on one core.
//!
//! # Modules
//! Read in this order. Each module's doc states its protocol before the code.
//! * `runtime`: [`block_on`], [`Runtime`](runtime::Runtime), *the* loop in `runtime/worker.rs`, and in
//!   `runtime/spin.rs` when a worker spins before it blocks.
//! * `executor`: the queues, the way of a wake, stealing, the task wrapper and the registry of tasks. Its public faces
//!   are [`spawn`] and [`task`].
//! * `blocking`: the threads for [`spawn_blocking`] and for look-ups of names.
//! * `reactor`: the table of tokens, a socket's source, and the loop that every operation runs.
//! * `budget`: the cooperative budget; `metrics`: the counters of a worker; `histogram`: its measured times; `current`:
//!   a thread-local that is entered; `system_clock`: readings of the clocks; `stamp`: the last reading of a worker;
//!   `live_threads`: the threads of a runtime that have not ended; `memory`: when tables give memory back; `trace`: the
//!   spans and events of the feature `tracing`.
//! * `wheel`, a pure timing wheel, and [`time`] on it: clock, timers, `sleep`, `timeout`, `interval`.
//! * `macros/`, a crate of its own: `#[kittiwake::main]` and `#[kittiwake::test]`, with the feature `macros`, which is
//!   on by default.
//! * `hyper`, with the feature of this name: HTTP servers and clients on hyper. It adds the limits of one
//!   connection and its graceful end to [`net::serve`](net::serve()).
//! * [`inspect`]: what each task waits for, which `dump` finds out. With the feature of this name, also a page that
//!   shows it live.
//! * [`guide`]: the chapters of `docs/`, for the documentation and its tests only.
//! * [`net`], [`io`], [`signal`]: the sockets, the traits and the signals that users call; [`stream`] and [`future`]:
//!   combinators of `futures-lite`.
//!
//! # What we do not do
//! Channels, locks and stream combinators work with any runtime and exist: `async-channel`, `async-lock`, `futures`.
//! Files are not asynchronous on any readiness interface. Windows has no readiness interface. `fork` without `exec` is
//! not supported, as in every runtime: both processes would share one epoll.
//!
//! # Platforms
//! Linux with epoll is what the tests run on. They run a second time on mio's poll(2) backend, with the code of systems
//! other than Linux, which keeps the portable parts honest. For macOS, the BSDs (kqueue) and illumos the crate is
//! compiled but not run. 64-bit atomics are needed: 32-bit PowerPC, MIPS and RISC-V have none.

#[cfg(not(target_has_atomic = "64"))]
compile_error!("kittiwake needs 64-bit atomics, and this target has none");

mod blocking;
mod budget;
mod current;
mod dump;
mod executor;
mod histogram;
mod live_threads;
mod memory;
mod metrics;
mod random;
#[cfg(test)]
mod random_scripts;
mod reactor;
mod stamp;
mod sync;
mod system_clock;
mod trace;
mod wheel;

// Only for the documentation and its tests. Other builds do not need the folder `docs/`.
#[cfg(any(doc, doctest))]
pub mod guide;

pub mod future;
#[cfg(feature = "hyper")]
pub mod hyper;
pub mod inspect;
pub mod io;
pub mod net;
pub mod runtime;
pub mod signal;
pub mod stream;
pub mod task;
pub mod time;

/// Doors for the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::executor::model::run as stealing;
    pub use crate::reactor::model::run as source;
    pub use crate::wheel::model::run as wheel;
}

#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod seeds;

pub use blocking::spawn_blocking;
pub use executor::{spawn, spawn_local};
#[cfg(feature = "macros")]
pub use kittiwake_macros::{main, test};
pub use runtime::block_on;
