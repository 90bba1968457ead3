//! A dump as a person reads it.

use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

use super::{SocketInfo, TaskDump, TaskInfo, TaskState, WaitsFor, WorkerState};
use crate::executor::Id;
use crate::time::Instant;

impl fmt::Display for TaskDump {
    /// With `{:#}` each task has a line of its own too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tasks, workers) = (Count(self.tasks.len(), "task"), Count(self.workers.len(), "worker"));
        writeln!(f, "{tasks}, {workers}")?;
        for worker in &self.workers {
            writeln!(f, "  worker {} {}", worker.index, worker.state)?;
        }
        for group in self.groups() {
            writeln!(f, "  {group}")?;
        }
        if f.alternate() {
            for task in by_wait(self.tasks.iter().collect()) {
                writeln!(f, "{task}")?;
            }
        }
        Ok(())
    }
}

impl TaskDump {
    /// The tasks in groups: those of one site that do the same. First those that run, then by the longest wait.
    pub(crate) fn groups(&self) -> Vec<TaskGroup<'_>> {
        let mut groups: HashMap<_, TaskGroup<'_>> = HashMap::new();
        for task in &self.tasks {
            let (location, does) = (task.location, task.does());
            let new = TaskGroup { location, does: does.clone(), count: 0, longest: task };
            let group = groups.entry((location, does)).or_insert(new);
            group.count += 1;
            if task.order() > group.longest.order() {
                group.longest = task;
            }
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.longest.order()));
        groups
    }

    /// The first `count` tasks: those that run, then by the longest wait.
    pub(crate) fn longest(&self, count: usize) -> Vec<&TaskInfo> {
        let mut tasks: Vec<&TaskInfo> = self.tasks.iter().collect();
        if count > 0 && count < tasks.len() {
            tasks.select_nth_unstable_by_key(count - 1, |task| std::cmp::Reverse(task.order()));
            tasks.truncate(count);
        }
        by_wait(tasks)
    }
}

/// The tasks of one site that do the same.
pub(crate) struct TaskGroup<'a> {
    pub(crate) location: &'static Location<'static>,
    /// The words for one of them, and for several.
    pub(crate) does: (String, String),
    pub(crate) count: usize,
    /// The one that has done so for longest.
    pub(crate) longest: &'a TaskInfo,
}

impl fmt::Display for TaskGroup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { location, does: (one, all), count, longest } = self;
        let does = if *count == 1 { one } else { all };
        let (tasks, line) = (Count(*count, "task"), location.line());
        write!(f, "{tasks} of {}:{line} {does}, ", location.file())?;
        if *count > 1 && !longest.is_queued() {
            f.write_str("longest ")?;
        }
        write!(f, "{} {}: task {}", longest.preposition(), Short(longest.since()), longest.id)?;
        if let Some(name) = &longest.name {
            write!(f, " \"{}\"", name.escape_debug())?;
        }
        Ok(())
    }
}

fn by_wait(mut tasks: Vec<&TaskInfo>) -> Vec<&TaskInfo> {
    tasks.sort_by_key(|task| std::cmp::Reverse(task.order()));
    tasks
}

impl TaskInfo {
    /// How long it has been in its state.
    pub(crate) fn since(&self) -> Duration {
        match self.state {
            TaskState::Running { since, .. } | TaskState::Queued { since, .. } | TaskState::Waiting { since } => since,
        }
    }

    /// The greatest comes first: a task that runs, then one that waits, each by how long it does. It is not known since
    /// when a task is queued.
    pub(crate) fn order(&self) -> (bool, Duration) {
        let since = if self.is_queued() { Duration::ZERO } else { self.since() };
        (matches!(self.state, TaskState::Running { .. }), since)
    }

    fn is_queued(&self) -> bool {
        matches!(self.state, TaskState::Queued { .. })
    }

    /// Stands before [`since`](TaskInfo::since).
    fn preposition(&self) -> &'static str {
        match self.state {
            TaskState::Queued { .. } if self.polls == 0 => "spawned before",
            TaskState::Queued { .. } => "last polled before",
            _ => "for",
        }
    }

    /// The words for its state, of one task and of several.
    pub(crate) fn does(&self) -> (String, String) {
        match self.state {
            TaskState::Running { .. } => ("runs".to_owned(), "run".to_owned()),
            TaskState::Queued { gave_way: false, .. } => ("is queued".to_owned(), "are queued".to_owned()),
            TaskState::Queued { .. } => {
                let budget = "queued, as the budget is used up";
                (format!("is {budget}"), format!("are {budget}"))
            }
            TaskState::Waiting { .. } => {
                let mut kinds: Vec<_> = self.waits_for.iter().map(WaitsFor::kind).collect();
                kinds.sort_unstable();
                kinds.dedup();
                let kinds =
                    if kinds.is_empty() { "something that is not known here".to_owned() } else { kinds.join(" or ") };
                (format!("waits for {kinds}"), format!("wait for {kinds}"))
            }
        }
    }
}

impl WaitsFor {
    fn kind(&self) -> &'static str {
        match self {
            Self::Reading(_) => "reading",
            Self::Writing(_) => "writing",
            Self::Accepting(_) => "a connection",
            Self::Timer { .. } => "a timer",
            Self::Task(_) => "a task",
        }
    }
}

/// The most waits in the line of a task. A task may poll thousands of timers or sockets by itself.
const WAITS: usize = 10;

impl fmt::Display for TaskInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, location, age, polls, waits_for, .. } = self;
        write!(f, "task {id}")?;
        if let Some(name) = name {
            write!(f, " \"{}\"", name.escape_debug())?;
        }
        let (does, _) = self.does();
        write!(f, " of {}:{} {does}", location.file(), location.line())?;
        if let TaskState::Running { worker: Some(worker), .. } = self.state {
            write!(f, " on worker {worker}")?;
        }
        write!(f, " {} {}", self.preposition(), Short(self.since()))?;
        for wait in waits_for.iter().take(WAITS) {
            write!(f, ", {wait}")?;
        }
        if let more @ 1.. = waits_for.len().saturating_sub(WAITS) {
            write!(f, ", and {more} more")?;
        }
        write!(f, "; {}, {} old", Count(usize::try_from(*polls).unwrap_or(usize::MAX), "poll"), Short(*age))?;
        if let (Some(busy), Some(longest)) = (self.busy, self.longest_poll) {
            write!(f, ", busy for {}, at most {}", Short(busy), Short(longest))?;
        }
        Ok(())
    }
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reading(socket) => write!(f, "reading from {socket}"),
            Self::Writing(socket) => write!(f, "writing to {socket}"),
            Self::Accepting(socket) => write!(f, "accepting at {socket}"),
            Self::Timer { deadline } => {
                let now = Instant::now();
                match deadline.checked_duration_since(now) {
                    Some(left) => write!(f, "a timer in {}", Short(left)),
                    None => write!(f, "a timer, {} late", Short(now.saturating_duration_since(*deadline))),
                }
            }
            Self::Task(id) => write!(f, "task {id}"),
        }
    }
}

impl fmt::Display for SocketInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fd, local, peer } = self;
        write!(f, "descriptor {fd}")?;
        // The path of a Unix socket may have any character.
        match (local, peer) {
            (Some(local), Some(peer)) => write!(f, " ({} to {})", local.escape_debug(), peer.escape_debug()),
            (Some(address), None) | (None, Some(address)) => write!(f, " ({})", address.escape_debug()),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { task: Some(task), since } => write!(f, "runs {} for {}", TaskId(*task), Short(*since)),
            Self::Running { task: None, .. } => f.write_str("runs no task"),
            Self::Spinning => f.write_str("spins"),
            Self::Blocked => f.write_str("sleeps"),
            Self::Stopped => f.write_str("is stopped: no thread is in block_on, or the runtime has ended"),
        }
    }
}

struct TaskId(Id);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}", self.0)
    }
}

/// A number of things: `1 task`, `1,024 tasks`.
pub(crate) struct Count(pub(crate) usize, pub(crate) &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index) % 3 == 0 {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        write!(f, " {}{}", self.1, if self.0 == 1 { "" } else { "s" })
    }
}

/// A duration in the unit that suits it: `350 µs`, `1.2 s`, `3 h 20 min`.
pub(crate) struct Short(pub(crate) Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, micros) = (self.0.as_secs(), self.0.as_micros());
        match micros {
            0..1_000 => write!(f, "{micros} µs"),
            1_000..1_000_000 => write!(f, "{} ms", micros / 1_000),
            _ if secs < 60 => write!(f, "{secs}.{} s", self.0.subsec_millis() / 100),
            _ if secs < 3_600 => write!(f, "{} min {} s", secs / 60, secs % 60),
            _ => write!(f, "{} h {} min", secs / 3_600, secs / 60 % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers and durations read as a person writes them.
    #[test]
    fn figures_are_short() {
        let counts = [0, 1, 999, 1_024, 1_000_000].map(|count| Count(count, "task").to_string());
        assert_eq!(counts, ["0 tasks", "1 task", "999 tasks", "1,024 tasks", "1,000,000 tasks"]);
        let micros = [0, 350, 1_000, 999_999, 1_250_000, 61_000_000, 12_000_000_000];
        let short = micros.map(|micros| Short(Duration::from_micros(micros)).to_string());
        assert_eq!(short, ["0 µs", "350 µs", "1 ms", "999 ms", "1.2 s", "1 min 1 s", "3 h 20 min"]);
    }
}
