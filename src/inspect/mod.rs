//! Seeing inside: who waits for what, and who is slow, in a running program.
//!
//! [`Handle::tasks`](crate::runtime::Handle::tasks) returns a [`TaskDump`]: each task, what it waits for, and for how
//! long. This module has the types of the dump. [`dump_on`] prints it at a signal, and [`dump_on_panic`] after a panic.
//! With the feature `inspect` it also has a page for a browser, which shows the same live:
//!
//! ```no_run
//! # #[cfg(feature = "inspect")]
//! # async fn example() -> std::io::Result<()> {
//! let listener = kittiwake::net::TcpListener::bind("127.0.0.1:7001").await?;
//! kittiwake::spawn(kittiwake::inspect::serve(listener));
//! # Ok(())
//! # }
//! ```
//!
//! `serve` is a server for the page. `service` and `service_for` return a service to mount in a server of your own.
//!
//! # The page
//! It shows what each worker does, the tasks by the place where they were spawned and by what they wait for, the
//! longest waits and polls, the sockets with the sizes of their queues, the timers ahead, and the rates of the last
//! minute. A click on a place lists its tasks. It loads nothing from elsewhere.
//!
//! Busy times and longest polls are there if [`measure_polls`](crate::runtime::Builder::measure_polls) is on.
//!
//! # How it is protected
//! * Nothing can be changed through it. Only GET and HEAD are answered.
//! * `serve` refuses a listener that is not bound to loopback, unless `allow_remote` is set.
//! * The `Host` of each request must be `localhost` or a loopback address, unless `allow_remote` is set. So the page of
//!   another site cannot read it by a name that it has made point to this machine (DNS rebinding).
//! * Each user of this machine can see it, as each can connect to a loopback address.
//!
//! # What it costs
//! Without a request, nothing: there is no thread, no timer and no snapshot. While pages are open, one thread makes a
//! snapshot when a request wants one and the last is older than 1.9 s, or than 25 times as long as it took. So the
//! snapshots take less than 5 % of a core, however many tasks and pages there are. All requests share the snapshot. It
//! is dropped, and the thread ends, 10 s after the last request.
//!
//! # JSON
//! All durations are seconds. Each response has the moment of its snapshot as `at`, seconds since the page began,
//! its `age`, and how long it `took` to make. A field that is not known is `null`.
//!
//! `api/summary`:
//!
//! | field | |
//! | --- | --- |
//! | `program`, `pid`, `cpu` | the name of the program, the number of its process, the CPU time that it has used |
//! | `tasks`, `sockets`, `timers` | how many there are |
//! | `workers` | for each: `index`; `state`, one of `busy`, `stuck` (busy with one task for more than 10 ms), `spinning`, `blocked` (it sleeps in the kernel), `stopped` (no thread runs it); the `task` that it runs (`id`, `name`, `site`), and since when; how many tasks other threads have `queued` for it; the figures of [`WorkerMetrics`](crate::runtime::WorkerMetrics) |
//! | `sites` | the places where tasks were spawned, 200 at most, those with the most tasks first: `site` (file and line), `tasks`, `groups`, `longest_wait`, `polls`, `busy`, `longest_poll` |
//! | `groups` | of a site: the tasks that do the same, with `activity`, `tasks`, and the `longest` time that one of them has done it |
//! | `more_sites` | how many sites are not in `sites` |
//! | `longest_waits`, `longest_polls` | ten tasks, with the fields of `api/tasks` |
//!
//! An activity is `running`, `queued`, or the things that the task waits for, with commas between them: `reading`,
//! `writing`, `accepting`, `timer`, `task`. It is `other` if nothing is known, for example for a channel.
//!
//! `api/tasks?site=..&activity=..&offset=..&limit=..`: the tasks of a site and with an activity, or all, the longest
//! wait first. `limit` is 100 if not given, and 500 at most. `total` is their number. Each of `tasks` has
//!
//! | field | |
//! | --- | --- |
//! | `id`, `name`, `site`, `kind` | `id` is a string; `kind` is `shared`, `local` or `blocking` |
//! | `state`, `since` | `running`, with `worker`; `queued`, with `gave_way`; or `waiting`; and for how long. Of a queued task, since it was last polled |
//! | `age`, `polls`, `busy`, `longest_poll` | see [`TaskInfo`] |
//! | `waits_for` | for each thing, its `kind`: `reading`, `writing` and `accepting` with `fd`, `local` and `peer`; `timer` with the time `in` which it fires; `task` with `id`, `name` and `site` |
//!
//! `api/sockets?offset=..&limit=..`: the `total` and the `sockets`. Those that a task wants to write to are first, then
//! those that a task wants to read from, the longest wait first.
//!
//! | field | |
//! | --- | --- |
//! | `fd`, `local`, `peer` | the descriptor and the addresses |
//! | `tcp` | the state of a TCP connection, such as `established` or `close_wait` |
//! | `receive_queue` | bytes that have arrived and were not read; at a listener, connections that were not accepted |
//! | `send_queue` | bytes that the peer has not acknowledged; at a listener, the limit of its queue |
//! | `task`, `waits`, `since` | the task that has waited longest for the socket, what for, and for how long |
//!
//! `api/timers`: the `total`, the time until the `next`, and `timers`, how many fire when. Each row counts the timers
//! that fire `within` so many seconds (0.01, 0.1, 1, 10, 60, or `null` for later) and that no row before it counts.
//!
//! # Platform notes
//! The state and the queues of TCP sockets are known on Linux only.

mod print;
#[cfg(feature = "inspect")]
mod serve;

#[cfg(feature = "inspect")]
mod json;
#[cfg(feature = "inspect")]
mod queues;
#[cfg(feature = "inspect")]
mod service;
#[cfg(feature = "inspect")]
mod shared;
#[cfg(feature = "inspect")]
mod snapshot;

pub use crate::dump::{SocketInfo, TaskDump, TaskInfo, TaskKind, TaskState, WaitsFor, WorkerInfo, WorkerState};
pub use print::{DumpOn, dump_on, dump_on_panic};

#[cfg(feature = "inspect")]
pub use serve::{Serve, Serving, serve};
#[cfg(feature = "inspect")]
pub use service::{ResponseFuture, Service, service, service_for};
