//! The metrics of a runtime in the text format of Prometheus.
//!
//! 1. Each family has a line `# HELP`, a line `# TYPE`, and its samples: one for each worker, or one for the runtime.
//! 2. Times are in seconds. The name of a counter ends with `_total`.
//! 3. A histogram has a bucket for each power of two of [`BOUNDS`]. Each bucket counts all durations up to its bound
//!    `le`. These counts are exact: our own buckets end at each power of two. The histograms are those of all workers
//!    together. With a label for the worker, each family would have 28 samples for each worker.

use std::fmt::{self, Write};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::handle::{Metrics, WorkerMetrics};
use crate::histogram::Histogram;

/// The bounds of the buckets: from 1 µs to 17 s.
const BOUNDS: RangeInclusive<Duration> = Duration::from_nanos(1 << 10)..=Duration::from_nanos(1 << 34);

/// A family with a sample for each worker: its name, type and help, and the value for a worker.
type WorkerFamily = (&'static str, &'static str, &'static str, fn(&WorkerMetrics) -> Option<Value>);

const WORKER_FAMILIES: &[WorkerFamily] = &[
    ("tasks_alive", GAUGE, "Tasks that were spawned on the worker and have not ended.", |worker| {
        count(worker.tasks_alive as u64)
    }),
    ("timers_armed", GAUGE, "Timers of the worker that have not fired.", |worker| count(worker.timers_armed as u64)),
    ("sources_registered", GAUGE, "Sockets that the reactor of the worker watches.", |worker| {
        count(worker.sources_registered as u64)
    }),
    ("polls_total", COUNTER, "Polls of tasks.", |worker| count(worker.polls)),
    ("remote_wakes_total", COUNTER, "Entries that other threads have pushed to the worker.", |worker| {
        count(worker.remote_wakes)
    }),
    ("turns_total", COUNTER, "Looks for events, with or without waiting.", |worker| count(worker.turns)),
    ("events_total", COUNTER, "Events that the turns have reported.", |worker| count(worker.events)),
    ("parked_seconds_total", COUNTER, "Time for which the worker has slept.", |worker| {
        Some(Value::Seconds(worker.parked))
    }),
    ("budget_yields_total", COUNTER, "Polls that ended because the task had used up its budget.", |worker| {
        count(worker.budget_yields)
    }),
    ("accepts_total", COUNTER, "Connections that were accepted.", |worker| count(worker.accepts)),
    ("busy_seconds_total", COUNTER, "Time for which the worker has polled tasks.", |worker| {
        worker.busy.map(Value::Seconds)
    }),
];

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// The value of a sample.
enum Value {
    Count(u64),
    Seconds(Duration),
}

fn count(count: u64) -> Option<Value> {
    Some(Value::Count(count))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Seconds(time) => time.as_secs_f64().fmt(f),
        }
    }
}

impl Metrics {
    /// The metrics in the text format of Prometheus, for the answer to its server.
    ///
    /// The media type is `text/plain; version=0.0.4`. All names begin with `kittiwake_`. The names and the fields of
    /// [`WorkerMetrics`] and [`BlockingMetrics`](super::BlockingMetrics) have the same words.
    ///
    /// | metrics | type | label |
    /// | --- | --- | --- |
    /// | `tasks_alive`, `timers_armed`, `sources_registered` | gauge | `worker` |
    /// | `polls_total`, `remote_wakes_total`, `turns_total`, `events_total`, `budget_yields_total`, `accepts_total`, `parked_seconds_total` | counter | `worker` |
    /// | `busy_seconds_total`, if the runtime [measures](super::Builder::measure_polls) | counter | `worker` |
    /// | `blocking_threads`, `blocking_idle_threads` | gauge | |
    /// | `blocking_running`, `blocking_waiting` | gauge | `work`: `closure` or `lookup` |
    /// | `poll_duration_seconds`, `timer_lateness_seconds`, if the runtime measures | histogram | |
    ///
    /// The workers have numbers from 0 on. The histograms are [`poll_times`](Metrics::poll_times) and
    /// [`lateness`](Metrics::lateness). Each has 25 bounds, from 1 µs to 17 s, and each bound is twice the one before it.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::runtime::Runtime;
    ///
    /// let runtime = Runtime::new()?;
    /// let text = runtime.handle().metrics().prometheus();
    /// assert!(text.contains("# TYPE kittiwake_polls_total counter\n"));
    /// assert!(text.contains("kittiwake_tasks_alive{worker=\"0\"} 0\n"));
    /// # std::io::Result::Ok(())
    /// ```
    pub fn prometheus(&self) -> String {
        let mut text = Text(String::new());
        for (name, kind, help, value) in WORKER_FAMILIES {
            let values = self.workers().iter().map(value);
            let samples = (0..).zip(values).filter_map(|(worker, value)| Some((worker, value?)));
            text.family(name, kind, help, samples.map(|(worker, value)| (format!("{{worker=\"{worker}\"}}"), value)));
        }
        self.blocking_families(&mut text);
        let polls = "How long each poll of a task took.";
        text.histogram("poll_duration_seconds", polls, self.poll_times().as_ref());
        let lateness = "How late a worker was each time that it fired timers.";
        text.histogram("timer_lateness_seconds", lateness, self.lateness().as_ref());
        text.0
    }

    fn blocking_families(&self, text: &mut Text) {
        let blocking = self.blocking();
        let mut gauge = |name, help, samples: &[(&str, usize)]| {
            let samples = samples.iter().map(|(labels, value)| (*labels, Value::Count(*value as u64)));
            text.family(name, GAUGE, help, samples);
        };
        let by_work = |closures, lookups| [("{work=\"closure\"}", closures), ("{work=\"lookup\"}", lookups)];
        gauge("blocking_threads", "Threads for blocking work.", &[("", blocking.threads)]);
        gauge("blocking_idle_threads", "Threads for blocking work that wait for some.", &[("", blocking.idle_threads)]);
        let running = by_work(blocking.closures_running, blocking.lookups_running);
        gauge("blocking_running", "Closures, or look-ups of names, that run.", &running);
        let waiting = by_work(blocking.closures_waiting, blocking.lookups_waiting);
        gauge("blocking_waiting", "Closures, or look-ups of names, that wait for a thread.", &waiting);
    }
}

/// The text of the families so far.
struct Text(String);

impl Text {
    /// Adds a family, unless it has no sample. The labels of a sample include their braces.
    fn family<L: fmt::Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl Iterator<Item = (L, Value)>,
    ) {
        let mut samples = samples.peekable();
        if samples.peek().is_some() {
            self.head(name, kind, help);
        }
        for (labels, value) in samples {
            self.line(format_args!("kittiwake_{name}{labels} {value}"));
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: Option<&Histogram>) {
        let Some(histogram) = histogram else { return };
        self.head(name, "histogram", help);
        let mut counted = 0;
        for (longest, count) in histogram.buckets() {
            counted += count;
            if BOUNDS.contains(&longest) && longest.as_nanos().is_power_of_two() {
                let le = Value::Seconds(longest);
                self.line(format_args!("kittiwake_{name}_bucket{{le=\"{le}\"}} {counted}"));
            }
        }
        self.line(format_args!("kittiwake_{name}_bucket{{le=\"+Inf\"}} {counted}"));
        self.line(format_args!("kittiwake_{name}_sum {}", Value::Seconds(histogram.sum())));
        self.line(format_args!("kittiwake_{name}_count {counted}"));
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP kittiwake_{name} {help}"));
        self.line(format_args!("# TYPE kittiwake_{name} {kind}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes all text");
    }
}
