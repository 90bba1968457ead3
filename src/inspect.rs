//! Seeing inside a runtime: what its tasks wait for.
//!
//! [`Handle::tasks`](crate::runtime::Handle::tasks) makes a [`TaskDump`]. [`dump_on`] prints it at a signal, and
//! [`dump_on_panic`] after a panic.

mod print;

pub use crate::dump::{SocketInfo, TaskDump, TaskInfo, TaskKind, TaskState, WaitsFor, WorkerInfo, WorkerState};
pub use print::{DumpOn, dump_on, dump_on_panic};
