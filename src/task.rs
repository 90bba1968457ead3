//! Tasks: handles on them, sets of them, and giving way.

pub use crate::blocking::spawn_blocking;
pub(crate) use crate::blocking::{Work, try_spawn};
#[cfg(feature = "hyper")]
pub(crate) use crate::executor::is_alone;
pub use crate::executor::{
    AbortHandle, Id, JoinError, JoinHandle, JoinSet, YieldNow, consume_budget, spawn, spawn_local, yield_now,
};
pub(crate) use crate::executor::{spawn_on, workers_here};
