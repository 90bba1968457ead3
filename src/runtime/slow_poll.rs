//! Slow polls: the report of tasks that keep their worker from all others.
//!
//! 1. A worker times each poll of a task, and reports it if it took as long as the threshold.
//! 2. A poll may never end. So the worker that looks after a stuck one reports it too, once the threshold has passed
//!    ([`PollWatch::report_running`]).

use std::fmt;
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
                eprintln!("kittiwake: {poll}; a task must not block its thread: use spawn_blocking, or yield_now");
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
    reported: Mutex<Vec<Reported>>,
}

/// The last running poll of a worker that was reported.
#[derive(Clone, Copy, Default)]
struct Reported {
    /// The progress of the worker, as the workers that look after it see it.
    progress: Option<u64>,
    /// The task, and how often it had been polled.
    task: Option<(Id, u64)>,
}

impl PollWatch {
    pub(super) fn new(counters: Vec<Arc<Counters>>, on_slow: Option<OnSlowPoll>) -> Self {
        let reported = Mutex::new(vec![Reported::default(); counters.len()]);
        Self { counters, on_slow, reported }
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

    /// How long a worker that blocks beside worker `index` may do so, before that one has been stuck for the threshold.
    /// `None` if its poll was reported, or is not to be.
    pub(super) fn next_look(&self, index: usize, progress: u64, stuck_for: Duration) -> Option<Duration> {
        let OnSlowPoll { threshold, .. } = self.on_slow.as_ref()?;
        let is_reported = self.reported.lock()[index].progress == Some(progress);
        // Rounded up to the whole milliseconds of a block.
        (!is_reported).then(|| threshold.saturating_sub(stuck_for).saturating_add(Duration::from_millis(1)))
    }

    /// Reports the poll that worker `index` is stuck in, once, if that has lasted as long as the threshold. Returns whether
    /// it was reported.
    ///
    /// To find the task takes a look at all tasks. So it is done once, when the threshold has passed.
    pub(super) fn report_running(&self, workers: &Workers, index: usize, progress: u64, stuck_for: Duration) -> bool {
        let Some(on_slow) = &self.on_slow else { return false };
        if stuck_for < on_slow.threshold || self.reported.lock()[index].progress.replace(progress) == Some(progress) {
            return false;
        }
        let running = workers.running_task(index).filter(|running| running.duration >= on_slow.threshold);
        let Some(RunningTask { id: task, name, location, polls, duration }) = running else { return false };
        if self.reported.lock()[index].task.replace((task, polls)) == Some((task, polls)) {
            return false;
        }
        on_slow.report(&SlowPoll { task, name, location, worker: index, duration, is_over: false });
        true
    }
}
