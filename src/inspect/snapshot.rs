//! The snapshot: a dump and the metrics of one moment, in the order in which the page asks for them.
//!
//! Everything that has to see all tasks happens in [`Snapshot::new`], on a thread that no worker waits for. So a request
//! for a part of the snapshot costs as much as this part.
//!
//! # The order of the tasks
//! `by_wait` has the index of each task, the longest wait first. Each [`Site`] has the indices of its tasks in the same
//! order. A site is a line of the source at which tasks are spawned.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::panic::Location;
use std::ptr;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::dump::{SocketInfo, TaskDump, TaskInfo, TaskState, WaitsFor};
use crate::runtime::{Handle, Metrics};
use crate::time::Instant;

/// The bits of an [`Activity`].
const RUNNING: u8 = 1;
const QUEUED: u8 = 2;
const READING: u8 = 4;
const WRITING: u8 = 8;
const ACCEPTING: u8 = 16;
const TIMER: u8 = 32;
const TASK: u8 = 64;

/// The word for each bit.
const WORDS: [(u8, &str); 7] = [
    (RUNNING, "running"),
    (QUEUED, "queued"),
    (READING, "reading"),
    (WRITING, "writing"),
    (ACCEPTING, "accepting"),
    (TIMER, "timer"),
    (TASK, "task"),
];

/// The bounds of the timers' counts. One more count has the timers that fire later.
pub(super) const TIMER_BOUNDS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

pub(super) struct Snapshot {
    pub(super) dump: TaskDump,
    pub(super) metrics: Metrics,
    /// The moment at which the dump was complete.
    pub(super) at: Instant,
    /// The CPU time of the process at this moment.
    pub(super) cpu: Duration,
    /// The time that it took to make this snapshot.
    pub(super) took: Duration,
    by_wait: Vec<u32>,
    /// The sites, that with the most tasks first.
    pub(super) sites: Vec<Site>,
    by_poll: Vec<u32>,
    sockets: Vec<Socket>,
    /// The number of timers that fire within each of [`TIMER_BOUNDS`] and not within the one before, and of the others.
    pub(super) timers: [usize; TIMER_BOUNDS.len() + 1],
}

/// The tasks that were spawned at one line of the source.
pub(super) struct Site {
    /// Its file and line.
    pub(super) name: String,
    tasks: Vec<u32>,
    /// How many of them do the same, and the longest time for which one of them has done it. The largest group is first.
    pub(super) groups: Vec<Group>,
    pub(super) polls: u64,
    pub(super) busy: Option<Duration>,
    pub(super) longest_poll: Option<Duration>,
}

pub(super) struct Group {
    pub(super) activity: Activity,
    pub(super) tasks: usize,
    pub(super) longest: Duration,
}

/// The set of things that a task waits for. Of a task that does not wait, whether it runs or is queued.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Activity(u8);

/// A socket, by its index in the dump, and the task that has waited for it longest.
struct Socket {
    waiter: Option<Waiter>,
    fd: RawFd,
    index: u32,
}

/// A task that waits for a socket. The one that is shown is the greatest: the fields are in the order of their weight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Waiter {
    writes: bool,
    since: Duration,
    task: u32,
}

impl Snapshot {
    /// Takes a snapshot of the runtime of `handle`.
    pub(super) fn take(handle: &Handle) -> Self {
        let start = std::time::Instant::now();
        let (metrics, dump) = (handle.metrics(), handle.tasks());
        let mut snapshot = Self::new(dump, metrics, Instant::now());
        snapshot.took = start.elapsed();
        snapshot
    }

    fn new(dump: TaskDump, metrics: Metrics, at: Instant) -> Self {
        let by_wait = by_wait(dump.tasks());
        let sites = sites(dump.tasks(), &by_wait);
        let by_poll = by_poll(dump.tasks());
        let sockets = sockets(&dump);
        let timers = timers(dump.timers(), at);
        let (cpu, took) = (cpu_time(), Duration::ZERO);
        Self { dump, metrics, at, cpu, took, by_wait, sites, by_poll, sockets, timers }
    }

    /// The tasks of a site, or all. With an activity, only those that do the same. The longest wait comes first.
    pub(super) fn tasks(&self, site: Option<&str>, activity: Option<Activity>) -> Vec<&TaskInfo> {
        let indices = match site {
            None => &self.by_wait[..],
            Some(name) => self.sites.iter().find(|site| site.name == name).map_or(&[][..], |site| &site.tasks),
        };
        let tasks = self.tasks_at(indices);
        tasks.filter(|task| activity.is_none_or(|activity| activity == Activity::of(task))).collect()
    }

    /// The tasks that have waited longest.
    pub(super) fn longest_waits(&self, n: usize) -> impl Iterator<Item = &TaskInfo> {
        self.tasks_at(&self.by_wait).filter(|task| !matches!(task.state, TaskState::Running { .. })).take(n)
    }

    /// The tasks with the longest poll, one that has not returned included.
    pub(super) fn longest_polls(&self) -> impl Iterator<Item = &TaskInfo> {
        self.tasks_at(&self.by_poll)
    }

    /// The sockets, each with the task that has waited for it longest. Those that a task wants to write to are first.
    pub(super) fn sockets(&self) -> impl ExactSizeIterator<Item = (&SocketInfo, Option<&TaskInfo>)> {
        self.sockets.iter().map(|socket| {
            let task = socket.waiter.map(|waiter| &self.dump.tasks()[waiter.task as usize]);
            (&self.dump.sockets()[socket.index as usize], task)
        })
    }

    fn tasks_at(&self, indices: &[u32]) -> impl Iterator<Item = &TaskInfo> {
        indices.iter().map(|index| &self.dump.tasks()[*index as usize])
    }
}

impl Activity {
    pub(super) fn of(task: &TaskInfo) -> Self {
        let waits = task.waits_for.iter().fold(0, |set, waits_for| set | bit(waits_for));
        Self(match task.state {
            TaskState::Running { .. } => RUNNING,
            TaskState::Queued { .. } => QUEUED,
            TaskState::Waiting { .. } => waits,
        })
    }

    /// The inverse of [`name`](Activity::name).
    pub(super) fn from_name(name: &str) -> Option<Self> {
        if name == "other" {
            return Some(Self(0));
        }
        let bit = |word| WORDS.iter().find(|(_, known)| *known == word).map(|(bit, _)| *bit);
        name.split(',').try_fold(0, |set, word| Some(set | bit(word)?)).map(Self)
    }

    /// The words for it, with commas between them. `other` if it is not known.
    pub(super) fn name(self) -> String {
        let words = WORDS.iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, word)| *word);
        let name = words.collect::<Vec<_>>().join(",");
        if name.is_empty() { "other".to_owned() } else { name }
    }
}

/// The word for a thing that a task waits for.
pub(super) fn word(waits_for: &WaitsFor) -> &'static str {
    let bit = bit(waits_for);
    WORDS.iter().find(|(known, _)| *known == bit).map_or("other", |(_, word)| word)
}

fn bit(waits_for: &WaitsFor) -> u8 {
    match waits_for {
        WaitsFor::Reading(_) => READING,
        WaitsFor::Writing(_) => WRITING,
        WaitsFor::Accepting(_) => ACCEPTING,
        WaitsFor::Timer { .. } => TIMER,
        WaitsFor::Task(_) => TASK,
    }
}

/// The longest poll of a task, or the one that has not returned.
pub(super) fn longest_poll(task: &TaskInfo) -> Duration {
    let running = if matches!(task.state, TaskState::Running { .. }) { task.since() } else { Duration::ZERO };
    task.longest_poll.unwrap_or_default().max(running)
}

/// The file and the line of a site.
pub(super) fn site_name(location: &Location<'_>) -> String {
    format!("{}:{}", location.file(), location.line())
}

fn by_wait(tasks: &[TaskInfo]) -> Vec<u32> {
    // The tasks are in the order of their ids, which decides between equal waits.
    let mut keys: Vec<_> = (0..).zip(tasks).map(|(index, task)| (Reverse(task.since()), index)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|(_, index)| index).collect()
}

fn by_poll(tasks: &[TaskInfo]) -> Vec<u32> {
    /// How many tasks are kept.
    const LONGEST: usize = 10;
    let keys = (0..).zip(tasks).map(|(index, task)| (Reverse(longest_poll(task)), index));
    let mut keys: Vec<(Reverse<Duration>, u32)> = keys.filter(|(poll, _)| poll.0 > Duration::ZERO).collect();
    if keys.len() > LONGEST {
        keys.select_nth_unstable(LONGEST);
        keys.truncate(LONGEST);
    }
    keys.sort_unstable();
    keys.into_iter().map(|(_, index)| index).collect()
}

fn sites(tasks: &[TaskInfo], by_wait: &[u32]) -> Vec<Site> {
    let (mut sites, mut lines, mut locations) = (Vec::new(), HashMap::new(), HashMap::new());
    let site_of = |task: &TaskInfo| {
        // Each call has one location mostly. To look it up by its address is faster than by its text.
        let site = *locations.entry(ptr::from_ref(task.location)).or_insert_with(|| {
            let line = (task.location.file(), task.location.line());
            *lines.entry(line).or_insert_with(|| {
                sites.push(Site::new(site_name(task.location)));
                sites.len() - 1
            })
        });
        sites[site].add(task);
        site
    };
    // In the order of the memory, which is three times as fast as that of the waits.
    let site_of: Vec<usize> = tasks.iter().map(site_of).collect();
    for &index in by_wait {
        sites[site_of[index as usize]].tasks.push(index);
    }
    for site in &mut sites {
        site.groups.sort_by_key(|group| Reverse(group.tasks));
    }
    sites.sort_by(|a, b| b.tasks.len().cmp(&a.tasks.len()).then_with(|| a.name.cmp(&b.name)));
    sites
}

impl Site {
    fn new(name: String) -> Self {
        Self { name, tasks: Vec::new(), groups: Vec::new(), polls: 0, busy: None, longest_poll: None }
    }

    fn add(&mut self, task: &TaskInfo) {
        self.polls += task.polls;
        self.busy = self.busy.into_iter().chain(task.busy).reduce(|sum, more| sum + more);
        self.longest_poll = self.longest_poll.max(task.longest_poll);
        let activity = Activity::of(task);
        match self.groups.iter_mut().find(|group| group.activity == activity) {
            Some(group) => {
                group.tasks += 1;
                group.longest = group.longest.max(task.since());
            }
            None => self.groups.push(Group { activity, tasks: 1, longest: task.since() }),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }
}

fn sockets(dump: &TaskDump) -> Vec<Socket> {
    let waiters = waiters(dump.tasks());
    let sockets = (0..).zip(dump.sockets());
    let mut sockets: Vec<_> = sockets
        .map(|(index, socket)| Socket { waiter: waiters.get(place(socket)).copied().flatten(), fd: socket.fd, index })
        .collect();
    sockets.sort_unstable_by_key(|socket| (Reverse(socket.waiter), socket.fd));
    sockets
}

/// The task that has waited longest for each descriptor, and one that wants to write before one that reads. Descriptors are
/// small numbers.
fn waiters(tasks: &[TaskInfo]) -> Vec<Option<Waiter>> {
    let mut waiters = Vec::new();
    for (index, task) in (0..).zip(tasks) {
        for waits_for in &task.waits_for {
            let (socket, writes) = match waits_for {
                WaitsFor::Reading(socket) | WaitsFor::Accepting(socket) => (socket, false),
                WaitsFor::Writing(socket) => (socket, true),
                WaitsFor::Timer { .. } | WaitsFor::Task(_) => continue,
            };
            let place = place(socket);
            waiters.resize(waiters.len().max(place + 1), None);
            waiters[place] = waiters[place].max(Some(Waiter { writes, since: task.since(), task: index }));
        }
    }
    waiters
}

fn place(socket: &SocketInfo) -> usize {
    usize::try_from(socket.fd).unwrap_or(0)
}

fn timers(deadlines: &[Instant], at: Instant) -> [usize; TIMER_BOUNDS.len() + 1] {
    let mut counts = [0; TIMER_BOUNDS.len() + 1];
    for deadline in deadlines {
        let left = deadline.saturating_duration_since(at);
        counts[TIMER_BOUNDS.partition_point(|bound| *bound < left)] += 1;
    }
    counts
}

/// The CPU time that this process has used: `RUSAGE_SELF` of getrusage(2). rustix has no clock for it on NetBSD and illumos.
fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = |time: TimeVal| time.num_microseconds().try_into().map_or(Duration::ZERO, Duration::from_micros);
    micros(usage.user_time()) + micros(usage.system_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU time of the process grows while another thread computes.
    #[test]
    fn cpu_time_counts_threads() {
        const COMPUTES: Duration = Duration::from_millis(50);
        let compute = || {
            let (before, start) = (cpu_time(), std::time::Instant::now());
            while cpu_time() - before < COMPUTES {
                assert!(start.elapsed() < Duration::from_secs(60), "the CPU time stays at {before:?}");
            }
        };
        let before = cpu_time();
        std::thread::spawn(compute).join().expect("the CPU time grows");
        assert!(cpu_time() - before >= COMPUTES, "the time of the other thread does not count");
    }
}
