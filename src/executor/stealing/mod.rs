//! Stealing: how the workers of a runtime share what is ready to run.
//!
//! [`queues`] has what each worker may run and others may take. [`idle`] says which idle worker looks after the busy
//! ones. [`stealer`] says when a worker looks at the queues of the others. [`overdue`] says when entries that give way
//! run although others are ready.

mod idle;
#[cfg(any(fuzzing, all(test, not(kittiwake_loom))))]
pub(crate) mod model;
mod overdue;
mod queues;
mod stealer;

pub(super) use overdue::Overdue;
pub(super) use queues::{Content, Queues, Remote};
pub(super) use stealer::Stealer;
