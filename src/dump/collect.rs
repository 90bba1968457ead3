//! Filling a dump.
//!
//! 1. The registry shows the tasks, each with the address in its wakers and that in those of the task that waits for its
//!    end.
//! 2. The reactors show their sockets, and the timers their deadlines, each with the wakers that wait there.
//! 3. The addresses join the two.
//!
//! Each table is shown some entries at a time, under its lock. So no worker waits long for a dump. Under a lock, an entry
//! is only added to a list: a hash table with a million entries takes some 20 ms to grow.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getpeername, getsockname};

use super::{SocketInfo, TaskDump, TaskInfo, TaskKind, TaskState, WaitsFor, WorkerInfo, WorkerState};
use crate::executor::{Id, Idleness, Kind, Look, Step, Workers};
use crate::reactor::{Direction, Registry};
use crate::system_clock::monotonic;
use crate::time::Timers;

/// The sockets and timers of a worker. `None` once the worker has ended.
pub(crate) struct Source {
    pub(crate) registry: Option<Arc<Registry>>,
    pub(crate) timers: Option<Arc<Timers>>,
}

/// Looks at a runtime, which goes on meanwhile.
pub(crate) fn collect(workers: &Workers, sources: &[Source]) -> TaskDump {
    let now = monotonic();
    let mut tasks = Tasks::look(workers, now);
    tasks.by_address = tasks.addresses.drain(..).enumerate().map(|(index, address)| (address, index)).collect();
    let mut names = Vec::new();
    workers.visit_names(|id, name| names.push((id, name)));
    let mut names: HashMap<_, _> = names.into_iter().collect();
    if !names.is_empty() {
        tasks.list.iter_mut().for_each(|task| task.name = task.name.take().or_else(|| names.remove(&task.id)));
    }
    let joins = std::mem::take(&mut tasks.joins);
    for (joiner, id) in joins {
        tasks.add_wait(joiner, || WaitsFor::Task(id));
    }
    let (mut sockets, mut timers) = (Vec::new(), Vec::new());
    for registry in sources.iter().filter_map(|source| source.registry.as_ref()) {
        sockets.reserve(registry.sources());
        registry.visit_sockets(|fd, is_listener, waiting| {
            let info = socket(fd);
            for (direction, address) in waiting {
                tasks.add_wait(*address, || match direction {
                    Direction::Read if is_listener => WaitsFor::Accepting(info.clone()),
                    Direction::Read => WaitsFor::Reading(info.clone()),
                    Direction::Write => WaitsFor::Writing(info.clone()),
                });
            }
            sockets.push(info);
        });
    }
    for wheel in sources.iter().filter_map(|source| source.timers.as_ref()) {
        timers.reserve(wheel.pending());
        wheel.visit(|deadline, address| {
            tasks.add_wait(address, || WaitsFor::Timer { deadline });
            timers.push(deadline);
        });
    }
    let mut tasks = tasks.list;
    tasks.sort_unstable_by_key(|task| task.id);
    // In the last attempt an entry may have been shown twice too.
    tasks.dedup_by_key(|task| task.id);
    let mut running = vec![None; workers.len()];
    for task in &tasks {
        if let TaskState::Running { worker: Some(worker), since } = task.state {
            if let Some(running) = running.get_mut(worker) {
                running.get_or_insert((task.id, since));
            }
        }
    }
    let workers =
        (0..).zip(sources).zip(running).map(|((index, source), running)| worker(workers, index, source, running));
    let workers = workers.collect();
    TaskDump { tasks, workers, sockets, timers }
}

/// How often the tasks are looked at, at most, until none is shown twice.
const ATTEMPTS: usize = 4;

/// The tasks so far.
#[derive(Default)]
struct Tasks {
    list: Vec<TaskInfo>,
    /// The addresses in the tasks' wakers, in the order of the list.
    addresses: Vec<usize>,
    /// The indices of the list, by these addresses.
    by_address: HashMap<usize, usize>,
    /// The address of a task that waits for the end of another one, and the id of that.
    joins: Vec<(usize, Id)>,
}

impl Tasks {
    /// Looks at all tasks. If some were shown twice, because a worker has given memory back meanwhile, looks again.
    fn look(workers: &Workers, now: u64) -> Self {
        let mut attempts = 0;
        loop {
            let mut tasks = Self::with_capacity(workers.count_tasks());
            let is_complete = !workers.visit_tasks(|look| tasks.add(&look, now));
            attempts += 1;
            if is_complete || attempts == ATTEMPTS {
                return tasks;
            }
        }
    }

    /// With room for so many and some that come meanwhile: a list that grows under a lock may move 100 MB.
    fn with_capacity(count: usize) -> Self {
        let capacity = count + count / 8 + 64;
        Self { list: Vec::with_capacity(capacity), addresses: Vec::with_capacity(capacity), ..Self::default() }
    }

    fn add(&mut self, look: &Look<'_>, now: u64) {
        let age = look.spawned.age(now).unwrap_or_default();
        let since = look.seen.since.age(now).unwrap_or(age);
        let state = match look.seen.step {
            Step::Running => {
                TaskState::Running { worker: look.seen.since.worker().filter(|_| look.kind != Kind::Blocking), since }
            }
            Step::Queued { gave_way } => TaskState::Queued { since, gave_way },
            Step::Waiting => TaskState::Waiting { since },
        };
        if look.seen.joiner != 0 {
            self.joins.push((look.seen.joiner, look.id));
        }
        self.addresses.push(look.address);
        self.list.push(TaskInfo {
            id: look.id,
            name: look.name.cloned(),
            location: look.location,
            kind: match look.kind {
                Kind::Shared => TaskKind::Shared,
                Kind::Local => TaskKind::Local,
                Kind::Blocking => TaskKind::Blocking,
            },
            age,
            state,
            polls: look.seen.polls,
            busy: look.seen.measured.map(|measured| Duration::from_nanos(measured.busy)),
            longest_poll: look.seen.measured.map(|measured| Duration::from_nanos(measured.longest)),
            waits_for: Vec::new(),
        });
    }

    /// Notes what a task waits for, if one has this address and waits.
    fn add_wait(&mut self, address: usize, wait: impl FnOnce() -> WaitsFor) {
        let task = self.by_address.get(&address).and_then(|index| self.list.get_mut(*index));
        if let Some(task) = task.filter(|task| matches!(task.state, TaskState::Waiting { .. })) {
            task.waits_for.push(wait());
        }
    }
}

/// `running` is the task that the worker runs, and for how long.
fn worker(workers: &Workers, index: usize, source: &Source, running: Option<(Id, Duration)>) -> WorkerInfo {
    let is_turned = source.registry.as_ref().is_some_and(|registry| registry.is_turned());
    let state = match workers.idleness(index) {
        _ if !is_turned => WorkerState::Stopped,
        Idleness::Blocked => WorkerState::Blocked,
        Idleness::Spinning => WorkerState::Spinning,
        Idleness::Awake => {
            let (task, since) = running.unzip();
            WorkerState::Running { task, since: since.unwrap_or_default() }
        }
    };
    WorkerInfo { index, state, queued: workers.queued(index) }
}

/// A socket with its addresses. The descriptor is open, and the socket's.
fn socket(fd: RawFd) -> SocketInfo {
    SocketInfo { fd, local: getsockname(fd).ok().and_then(address), peer: getpeername(fd).ok().and_then(address) }
}

fn address(address: SockaddrStorage) -> Option<Arc<str>> {
    if address.family() == Some(AddressFamily::Unix) {
        // nix knows no address whose path fills the whole structure: Linux reports a longer one then, and to print it
        // would read beyond the path.
        let unix = address.as_unix_addr()?;
        let is_unnamed = unix.path().is_none() && unix.len() <= 2;
        return (!is_unnamed).then(|| unix.to_string().into());
    }
    Some(address.to_string().into())
}
