//! Seeing inside a runtime: what its tasks wait for.
//!
//! [`Handle::tasks`](crate::runtime::Handle::tasks) makes a [`TaskDump`].

pub use crate::dump::{SocketInfo, TaskDump, TaskInfo, TaskKind, TaskState, WaitsFor, WorkerInfo, WorkerState};
