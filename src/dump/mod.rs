//! The dump: what the tasks and workers of a runtime did at one moment, and what they waited for.
//!
//! The types are here. [`TaskDump`] prints itself as a table, each [`TaskInfo`] as a line. `collect` fills them.

pub(crate) mod collect;
mod display;

pub(crate) use display::Count;

use std::os::fd::RawFd;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::executor::Id;
use crate::time::Instant;

/// The tasks of a runtime at one moment.
///
/// Made by [`Handle::tasks`](crate::runtime::Handle::tasks). It prints itself as a table, in which tasks that were
/// spawned at the same place and wait for the same kind of thing are one line, and those that have waited longest come
/// first. [`tasks`](TaskDump::tasks) has each of them.
///
/// The runtime goes on while it is made. First the states of the tasks are read, then the sockets and the timers. A
/// task that has moved on in between may wait for nothing known, or for something newer than its state. If it has
/// ended, and a new task has its memory, it is shown with what the new one waits for.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let _task = kittiwake::spawn(std::future::pending::<()>());
///     kittiwake::task::yield_now().await;
///     let dump = kittiwake::runtime::Handle::current().tasks();
///     assert_eq!(dump.tasks().len(), 1);
///     assert_eq!(dump.tasks()[0].polls, 1);
///     println!("{dump}");
/// });
/// ```
#[derive(Clone, Debug)]
pub struct TaskDump {
    pub(crate) tasks: Vec<TaskInfo>,
    pub(crate) workers: Vec<WorkerInfo>,
    pub(crate) sockets: Vec<SocketInfo>,
    pub(crate) timers: Vec<Instant>,
}

impl TaskDump {
    /// The tasks, in the order of their ids.
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.tasks
    }

    /// The workers, by their numbers.
    pub fn workers(&self) -> &[WorkerInfo] {
        &self.workers
    }

    /// The sockets that the workers' reactors watch: those that have waited since they were made.
    pub fn sockets(&self) -> &[SocketInfo] {
        &self.sockets
    }

    /// The deadlines of the timers that have not fired, in no order.
    pub fn timers(&self) -> &[Instant] {
        &self.timers
    }
}

/// A task of a [`TaskDump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Its id, as its [`JoinHandle`](crate::task::JoinHandle) has it.
    pub id: Id,
    /// The name that [`task::Builder`](crate::task::Builder) gave it.
    pub name: Option<Arc<str>>,
    /// Where it was spawned.
    pub location: &'static Location<'static>,
    /// The kind of the task.
    pub kind: TaskKind,
    /// How long ago it was spawned.
    pub age: Duration,
    /// Whether it runs, and since when.
    pub state: TaskState,
    /// How often it was polled.
    pub polls: u64,
    /// How long all its polls took together. `None` unless polls are timed, for
    /// [`measure_polls`](crate::runtime::Builder::measure_polls) or
    /// [`on_slow_poll`](crate::runtime::Builder::on_slow_poll).
    pub busy: Option<Duration>,
    /// How long the longest poll took. `None` as [`busy`](TaskInfo::busy) is.
    pub longest_poll: Option<Duration>,
    /// The things that will wake it, as far as they are known. If it waits and this is empty, it waits for something
    /// that is not this crate's, such as a channel, or behind a combinator with wakers of its own, such as
    /// `FuturesUnordered`. Of a [`JoinSet`](crate::task::JoinSet), a few tasks are here, if the first ones have not
    /// ended.
    pub waits_for: Vec<WaitsFor>,
}

/// The kind of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// Any worker may run it: [`spawn`](crate::spawn).
    Shared,
    /// It stays on its thread: [`spawn_local`](crate::spawn_local).
    Local,
    /// It is a closure on a thread that may block: [`spawn_blocking`](crate::spawn_blocking).
    Blocking,
}

/// The state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskState {
    /// It is being polled.
    Running {
        /// The number of the worker. `None` for a closure on a thread that may block.
        worker: Option<usize>,
        /// How long it has been polled.
        since: Duration,
    },
    /// It has been woken, and has not been polled since.
    Queued {
        /// How long ago it was last polled, or spawned.
        since: Duration,
        /// It had used up its budget, and gives way to others.
        gave_way: bool,
    },
    /// It waits to be woken.
    Waiting {
        /// How long ago it was last polled.
        since: Duration,
    },
}

/// A thing that wakes a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitsFor {
    /// Bytes, or the end of the stream, from a socket.
    Reading(SocketInfo),
    /// Room for bytes in a socket.
    Writing(SocketInfo),
    /// A connection, at a listener.
    Accepting(SocketInfo),
    /// A timer.
    Timer {
        /// When it fires.
        deadline: Instant,
    },
    /// The end of a task. If that is a closure of [`spawn_blocking`](crate::spawn_blocking) or a look-up of a name, the
    /// dump has it as a task of the kind [`Blocking`](TaskKind::Blocking).
    Task(Id),
}

/// A socket, as far as the system tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SocketInfo {
    /// Its descriptor.
    pub fd: RawFd,
    /// The address that it is bound to. `None` if it has none, such as a pipe. On Linux also `None` for a Unix socket
    /// whose path has 108 bytes, the most that the system allows.
    pub local: Option<Arc<str>>,
    /// The address that it is connected to. `None` as above.
    pub peer: Option<Arc<str>>,
}

/// A worker of a [`TaskDump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its number.
    pub index: usize,
    /// Its state.
    pub state: WorkerState,
    /// How many entries wait for it, as far as they can be seen from outside: what other threads have queued for it,
    /// and in a runtime of several workers also its own tasks that others may take.
    pub queued: usize,
}

/// The state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// It runs this task.
    Running {
        /// The task. `None` between two tasks, and while it runs the future of a `block_on` call.
        task: Option<Id>,
        /// How long, as far as that is known. More than some milliseconds mean that the task blocks the worker.
        since: Duration,
    },
    /// It has nothing to do, and looks for events again and again.
    Spinning,
    /// It has nothing to do, and sleeps in the kernel.
    Blocked,
    /// It is the worker of a current-thread runtime, and no thread is in `block_on`; or its runtime has ended.
    Stopped,
}
