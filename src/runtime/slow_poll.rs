//! Slow polls: the report of tasks that keep their worker from all others.
//!
//! 1. A worker times each poll of a task, and reports it if it took as long as the threshold.
//! 2. A poll may never end. So the worker that looks after a stuck one reports it too, once the threshold has passed
//!    ([`PollWatch::report_running`]).

use std::fmt;
use std::io::{self, Write};
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::executor::{Id, RunningTask, TimedPoll, Workers};
use crate::metrics::Counters;
use crate::sync::contain_all;
use crate::system_clock::monotonic;
use crate::trace;

/// A poll of a task that took long, or takes long.
///
/// The argument of [`Builder::on_slow_poll`](super::Builder::on_slow_poll). It prints itself as one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SlowPoll {
    /// The id of the task.
    pub task: Id,
    /// The name that [`task::Builder`](crate::task::Builder) gave it.
    pub name: Option<Arc<str>>,
    /// Where it was spawned.
    pub location: &'static Location<'static>,
    /// The number of the worker that polls it.
    pub worker: usize,
    /// How long the poll took, or has taken so far.
    pub duration: Duration,
    /// The poll has ended. While it lasts, another worker reports it.
    pub is_over: bool,
}

impl fmt::Display for SlowPoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, name, location, worker, duration, is_over } = self;
        write!(f, "task {task}")?;
        if let Some(name) = name {
            write!(f, " \"{}\"", name.escape_debug())?;
        }
        let blocked = if *is_over { "blocked" } else { "has blocked" };
        let (file, line) = (location.file(), location.line());
        write!(f, " ({file}:{line}) {blocked} worker {worker} for {duration:.1?}")
    }
}

/// The user's wish to hear of slow polls.
#[derive(Clone)]
pub(super) struct OnSlowPoll {
    pub(super) threshold: Duration,
    pub(super) hook: Arc<dyn Fn(&SlowPoll) + Send + Sync>,
}

impl OnSlowPoll {
    /// Without a word of the user: in debug builds, a line on stderr for a poll of a second, at most one a minute.
    pub(super) fn by_default() -> Option<Self> {
        const MINUTE: u64 = 60_000_000_000;
        if !cfg!(debug_assertions) {
            return None;
        }
        let last = Mutex::new(None);
        let hook = move |poll: &SlowPoll| {
            let mut last = last.lock();
            let now = monotonic();
            let is_due = last.is_none_or(|last: u64| now.saturating_sub(last) >= MINUTE);
            if is_due {
                *last = Some(now);
            }
            drop(last);
            if is_due {
                // Not `eprintln`, which panics if stderr is closed.
                let _ = writeln!(
                    io::stderr(),
                    "kittiwake: {poll}; a task must not block its thread: use spawn_blocking, or yield_now"
                );
            }
        };
        Some(Self { threshold: Duration::from_secs(1), hook: Arc::new(hook) })
    }
}

impl OnSlowPoll {
    fn report(&self, poll: &SlowPoll) {
        let SlowPoll { task, name, location, worker, duration, is_over } = poll;
        trace::slow_poll(task.get(), name.as_deref(), location, *worker, *duration, *is_over);
        contain_all(|| (self.hook)(poll));
    }
}

impl fmt::Debug for OnSlowPoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnSlowPoll").field("threshold", &self.threshold).finish_non_exhaustive()
    }
}

/// Counts the polls of a runtime's tasks, and reports the slow ones.
pub(super) struct PollWatch {
    /// Of each worker.
    counters: Vec<Arc<Counters>>,
    on_slow: Option<OnSlowPoll>,
    /// For each worker.
    looked: Mutex<Vec<Looked>>,
}

/// The last look at the running poll of a worker.
#[derive(Clone, Copy, Default)]
struct Looked {
    /// The progress of the worker at the last look, as the workers that look after it see it.
    progress: Option<u64>,
    /// When the next look is due if the progress is the same then. `None` while a worker looks.
    due: Option<u64>,
    /// The task that was reported last, and how often it had been polled.
    reported: Option<(Id, u64)>,
}

impl PollWatch {
    pub(super) fn new(counters: Vec<Arc<Counters>>, on_slow: Option<OnSlowPoll>) -> Self {
        let looked = Mutex::new(vec![Looked::default(); counters.len()]);
        Self { counters, on_slow, looked }
    }

    /// A poll has ended, on the thread of worker `index`.
    pub(super) fn polled(&self, index: usize, poll: &TimedPoll<'_>) {
        self.counters[index].add_poll(poll.nanos);
        let Some(on_slow) = &self.on_slow else { return };
        let duration = Duration::from_nanos(poll.nanos);
        if duration < on_slow.threshold {
            return;
        }
        if let Some(RunningTask { id: task, name, location, .. }) = poll.task() {
            on_slow.report(&SlowPoll { task, name, location, worker: index, duration, is_over: true });
        }
    }

    /// How long a worker that blocks beside worker `index` may do so before that one's poll must be looked at. `None` if
    /// polls are not reported, or while another worker looks.
    pub(super) fn next_look(&self, index: usize, progress: u64, stuck_for: Duration) -> Option<Duration> {
        let left = self.looked.lock()[index].until_look(self.on_slow.as_ref()?.threshold, progress, stuck_for)?;
        // Rounded up to the whole milliseconds of a block.
        Some(left.saturating_add(Duration::from_millis(1)))
    }

    /// Reports the poll that worker `index` is stuck in, once, if that has lasted as long as the threshold. Returns whether
    /// it was reported.
    ///
    /// To find the task takes a look at all tasks. So there are few looks, and the first one comes when the threshold has
    /// passed. One look is not enough: local tasks may run one after the other without progress that other workers see. So
    /// the running poll may have begun long after that progress, and one that was reported may have been followed by
    /// another.
    pub(super) fn report_running(&self, workers: &Workers, index: usize, progress: u64, stuck_for: Duration) -> bool {
        let Some(on_slow) = &self.on_slow else { return false };
        if !self.looked.lock()[index].begin_look(on_slow.threshold, progress, stuck_for) {
            return false;
        }
        let running = workers.running_task(index);
        let wait = match &running {
            Some(young) if young.duration < on_slow.threshold => on_slow.threshold - young.duration,
            // In an hour these are a dozen looks.
            Some(slow) => slow.duration,
            None => stuck_for,
        };
        let slow = running.filter(|running| running.duration >= on_slow.threshold);
        if !self.looked.lock()[index].end_look(progress, wait, slow.as_ref()) {
            return false;
        }
        let Some(RunningTask { id: task, name, location, duration, .. }) = slow else { return false };
        on_slow.report(&SlowPoll { task, name, location, worker: index, duration, is_over: false });
        true
    }
}

impl Looked {
    /// How long it is until the next look at a worker that has made no other progress for so long.
    fn until_look(&self, threshold: Duration, progress: u64, stuck_for: Duration) -> Option<Duration> {
        if self.progress == Some(progress) {
            self.due.map(|due| Duration::from_nanos(due.saturating_sub(monotonic())))
        } else {
            Some(threshold.saturating_sub(stuck_for))
        }
    }

    /// Returns whether a look is due, which the caller then takes.
    fn begin_look(&mut self, threshold: Duration, progress: u64, stuck_for: Duration) -> bool {
        let is_due = self.until_look(threshold, progress, stuck_for).is_some_and(|left| left.is_zero());
        if is_due {
            (self.progress, self.due) = (Some(progress), None);
        }
        is_due
    }

    /// A look at a worker with this progress has found this slow poll, or none. The next look comes after `wait`. Returns
    /// whether the poll was found for the first time.
    fn end_look(&mut self, progress: u64, wait: Duration, slow: Option<&RunningTask>) -> bool {
        if self.progress == Some(progress) {
            let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            self.due = Some(monotonic().saturating_add(wait));
        }
        let Some(RunningTask { id, polls, .. }) = slow else { return false };
        self.reported.replace((*id, *polls)) != Some((*id, *polls))
    }
}
