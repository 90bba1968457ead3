//! An async runtime for TCP servers: small, fast, and readable in an afternoon.
//!
//! A reactor (epoll or kqueue, through `mio`) maps readiness tokens to stored wakers; the wakers drive
//! sockets with the [`futures-io`](io) traits; a simple executor runs the tasks. One event loop per
//! worker, on one core or on all, sockets that are `Send` and `Sync`, no hidden thread, no global state (signals
//! apart), and no `unsafe`.
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
//! [`serve`](net::serve()) is the loop that accepts; with a [`TcpListener`](net::TcpListener) and [`spawn`] it can be
//! written by hand. [`block_on`] uses one core. For all of them make a [`Runtime`](runtime::Runtime) and call its `block_on`.
//!
//! # What is promised
//! 1. **No lost wake-up.** Once an operation has returned `Pending`, the task is woken when it can go on,
//!    whichever thread polls it and however often it moves between tasks.
//! 2. **Dropping a future cancels it**, and nothing is lost: no byte read and thrown away, no accepted
//!    connection dropped unseen.
//! 3. **One connection cannot starve the others.** A poll of a task does at most 128 socket operations
//!    that it awaits, and the kernel is looked at again after at most 64 tasks.
//! 4. **A panic in a task ends that task alone**, and its `JoinHandle` says so. Not with `panic = "abort"`, and not if a
//!    destructor panics while another panic unwinds: Rust ends the process then.
//! 5. **An idle runtime uses no CPU.** A busy one makes no system call that a loop by hand would not make, but for looking at
//!    the kernel again before it blocks, where that [pays](runtime::Builder::spin), and at a listener after it accepts.
//! 6. **Every error says what failed**; nothing panics on what a peer or the network sends.
//! 7. **When the runtime ends**, its tasks are dropped and their sockets closed. An operation that would have to go on
//!    waiting on a socket that outlives its runtime fails once; the next one binds to the runtime it is polled in.
//!
//! # Rooms
//! Read in this order; each room's module doc states its protocol before the code.
//! * `runtime`: [`block_on`], [`Runtime`](runtime::Runtime), and in `runtime/worker.rs` *the* loop; in `park.rs` when it polls
//!   before it blocks.
//! * `executor`: the queues, the inbox for other threads, how workers share, the task wrapper and list; faces: [`spawn`],
//!   [`task`].
//! * `blocking`: the threads for [`spawn_blocking`], which is also what looks up names.
//! * `reactor`: the table of tokens, a socket's source, and the loop that every operation runs.
//! * `budget`: the cooperative budget, between those two; `metrics`: what a worker counts.
//! * `wheel`, a pure timing wheel, and [`time`] on it: clock, timers, `sleep`, `timeout`, `interval`.
//! * [`net`], [`io`], [`signal`]: what users hold in their hands.
//!
//! # What we do not do
//! Channels, locks and stream combinators work with any runtime and exist: `async-channel`, `async-lock`,
//! `futures`. Files are not asynchronous on any readiness interface. Windows has no readiness interface. `fork`
//! without `exec` is not supported, as in every runtime: both processes would share one epoll.
//!
//! # Platforms
//! Linux with epoll is what the tests run on. They run a second time on mio's poll(2) backend, which keeps the
//! portable parts honest. macOS and the BSDs (kqueue) are written for but not run here. 64-bit atomics are needed.

mod blocking;
mod budget;
mod executor;
mod metrics;
mod reactor;
mod sync;
mod wheel;

pub mod io;
pub mod net;
pub mod runtime;
pub mod signal;
pub mod task;
pub mod time;

/// Doors for the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::reactor::model::run as source;
    pub use crate::wheel::model::run as wheel;
}

pub use blocking::spawn_blocking;
pub use executor::{spawn, spawn_local};
pub use runtime::block_on;
