//! The recorded instruction counts of kittiwake: writing them, and holding a build to them.
//!
//! Counts do not depend on how busy a machine is, so a shared machine can hold a change to them. They do depend on the
//! compiler, on libc (which chooses its `memcpy` by CPU) and so on the machine. A fixed loop that no runtime has a part in
//! is therefore counted in the same run: where compiler, libc or CPU differ from the recorded ones, what is compared is
//! the ratio to that loop.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kittiwake_benches::program::pin;
use kittiwake_benches::{Handler, MemoryJob};
use serde_json::{Map, Value, json};

use super::args::Options;
use super::build;
use super::in_memory::{COUNTED, in_parallel};
use super::load::{Load, PingPong};
use super::machine::Machine;
use super::plan::{KITTIWAKE, Runtime};
use super::progress;
use super::server::Server;
use super::stats::median;
use super::table::{Table, fixed};
use super::tools::{Counter, Tools, count_operations, count_requests};

/// A count may be so much above the recorded one.
const MARGIN: f64 = 1.10;

/// The counts of servers, by the names that they have among those of the in-memory jobs. Of one worker only: how two share their
/// work depends on when valgrind lets them run, and their count is another in each run.
const SERVERS: [(&str, Runtime, Handler); 2] =
    [("echo-32", KITTIWAKE, Handler::Echo4K), ("serve-32", KITTIWAKE, Handler::Guarded)];

/// Requests of the shorter and the longer run of a server's count, on 32 connections.
const REQUESTS: (u64, u64) = (3200, 9600);

/// Counts, and where they come from.
#[derive(Clone, Debug, PartialEq)]
struct Counts {
    rustc: String,
    libc: String,
    cpu: String,
    /// Instructions of a step of the reference loop.
    reference: f64,
    /// Instructions per operation, by name of job.
    jobs: Vec<(String, f64)>,
}

/// Measures, and compares with `file`. Returns whether no count is too high.
pub(crate) fn check(file: &Path, tools: &Tools) -> Result<bool> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read {}; --record makes such a file", file.display()))?;
    let recorded =
        Counts::from_json(&text).with_context(|| format!("{} is not what --record writes", file.display()))?;
    let measured = Counts::measure(tools)?;
    let comparison = compare(&recorded, &measured);
    progress::done();
    print!("{}", comparison.text);
    Ok(comparison.too_high.is_empty())
}

/// Measures, and writes `file`.
pub(crate) fn record(file: &Path, tools: &Tools) -> Result<bool> {
    let counts = Counts::measure(tools)?;
    progress::done();
    fs::write(file, counts.to_json()).with_context(|| format!("cannot write {}", file.display()))?;
    print!("{}", counts.to_json());
    Ok(true)
}

impl Counts {
    fn measure(tools: &Tools) -> Result<Self> {
        ensure!(
            tools.valgrind,
            "instructions are counted with valgrind, which is missing: install the package `valgrind`"
        );
        build::build(&[KITTIWAKE.serve, KITTIWAKE.guarded, KITTIWAKE.memory].map(Option::unwrap_or_default))?;
        let jobs: Vec<MemoryJob> = MemoryJob::ALL.into_iter().filter(|job| job.is_exact()).collect();
        let counts = in_parallel(&jobs, |job| {
            progress::say(&format!("counting {}", job.name()));
            count_operations(&KITTIWAKE, *job, COUNTED)
        })?;
        let named = jobs.iter().zip(counts).map(|(job, count)| (job.name().to_owned(), count));
        let (reference, mut jobs): (Vec<_>, Vec<_>) = named.partition(|(name, _)| name == MemoryJob::Reference.name());
        for (name, runtime, handler) in SERVERS {
            progress::say(&format!("counting {name}"));
            jobs.push((name.to_owned(), ping_pong(&runtime, handler)?));
        }
        let machine = Machine::read();
        Ok(Self { rustc: machine.rustc, libc: machine.libc, cpu: machine.cpu, reference: reference[0].1, jobs })
    }

    fn to_json(&self) -> String {
        let jobs: Map<String, Value> =
            self.jobs.iter().map(|(name, count)| (name.clone(), json!(tenths(*count)))).collect();
        let all = json!({
            "rustc": self.rustc,
            "libc": self.libc,
            "cpu": self.cpu,
            "reference": tenths(self.reference),
            "jobs": jobs,
        });
        format!("{all:#}\n")
    }

    fn from_json(text: &str) -> Result<Self> {
        let all: Value = serde_json::from_str(text)?;
        let string = |name: &str| -> Result<String> {
            Ok(all[name].as_str().with_context(|| format!("{name} is not a text"))?.to_owned())
        };
        let number = |value: &Value, name: &str| value.as_f64().with_context(|| format!("{name} is not a number"));
        let jobs = all["jobs"].as_object().context("jobs is not an object")?;
        Ok(Self {
            rustc: string("rustc")?,
            libc: string("libc")?,
            cpu: string("cpu")?,
            reference: number(&all["reference"], "reference")?,
            jobs: jobs.iter().map(|(name, count)| Ok((name.clone(), number(count, name)?))).collect::<Result<_>>()?,
        })
    }

    fn same_origin(&self, other: &Self) -> bool {
        (&self.rustc, &self.libc, &self.cpu) == (&other.rustc, &other.libc, &other.cpu)
    }
}

/// A server with 32 connections and messages of 64 bytes. Exact to a percent where server and load have a core each;
/// the median of three, because a machine that is busy otherwise can disturb one.
fn ping_pong(runtime: &Runtime, handler: Handler) -> Result<f64> {
    let options = Options::parse()?;
    pin(&[options.load_core]);
    let open = |server: &Server| -> Result<Box<dyn Load>> {
        Ok(Box::new(PingPong::open(server.address, 32, 64, Duration::ZERO)?))
    };
    let count = || count_requests(Counter::Instructions, runtime, handler, &options, REQUESTS, 32, &open);
    Ok(median(&[count()?, count()?, count()?]))
}

/// What a comparison says, and the names of the jobs that are too high.
struct Comparison {
    text: String,
    too_high: Vec<String>,
}

fn compare(recorded: &Counts, measured: &Counts) -> Comparison {
    let same = recorded.same_origin(measured);
    let scale = if same { 1.0 } else { measured.reference / recorded.reference };
    let mut table = Table::new(&["job", "recorded", "measured", "change", ""]);
    let mut too_high = Vec::new();
    for (name, count) in &measured.jobs {
        let Some((_, before)) = recorded.jobs.iter().find(|(other, _)| other == name) else {
            table.rows.push(vec![name.clone(), "none".into(), fixed(*count, 1), String::new(), "not recorded".into()]);
            continue;
        };
        let change = count / (before * scale);
        let verdict = if change > MARGIN { "TOO HIGH" } else { "" };
        if change > MARGIN {
            too_high.push(name.clone());
        }
        let percent = format!("{:+.1} %", (change - 1.0) * 100.0);
        table.rows.push(vec![name.clone(), fixed(*before, 1), fixed(*count, 1), percent, verdict.to_owned()]);
    }
    let mut text = String::from("Instructions per operation of kittiwake, against the recorded ones.\n\n");
    text += &table.to_markdown();
    text += &origin(recorded, measured, same);
    text += &conclusion(&too_high);
    Comparison { text, too_high }
}

fn origin(recorded: &Counts, measured: &Counts, same: bool) -> String {
    if same {
        return format!(
            "\nSame rustc, libc and CPU as recorded: {}, {}, {}.\n",
            recorded.rustc, recorded.libc, recorded.cpu
        );
    }
    let mut text =
        String::from("\nNot the same machine or compiler: the change is that of the ratio to the reference loop.\n");
    let pairs = [
        ("rustc", &recorded.rustc, &measured.rustc),
        ("libc", &recorded.libc, &measured.libc),
        ("CPU", &recorded.cpu, &measured.cpu),
    ];
    for (name, before, now) in pairs.into_iter().filter(|(_, before, now)| before != now) {
        text += &format!("{name}: recorded with {before}, now {now}.\n");
    }
    text + &format!(
        "A step of the loop: recorded {:.1}, now {:.1} instructions.\n",
        recorded.reference, measured.reference
    )
}

fn conclusion(too_high: &[String]) -> String {
    if too_high.is_empty() {
        return "No count is more than 10 % above the recorded one.\n".to_owned();
    }
    format!(
        "More than 10 % above the recorded count: {}. If that is meant to be, write the file anew with --record and say why.\n",
        too_high.join(", ")
    )
}

fn tenths(count: f64) -> f64 {
    (count * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(cpu: &str, reference: f64, spawn: f64) -> Counts {
        Counts {
            rustc: "rustc 1".into(),
            libc: "glibc 2".into(),
            cpu: cpu.into(),
            reference,
            jobs: vec![("spawn".into(), spawn), ("two".into(), 100.0)],
        }
    }

    #[test]
    fn ten_percent_more_is_allowed_and_no_more() {
        let recorded = counts("a", 38.0, 1000.0);
        assert!(compare(&recorded, &counts("a", 38.0, 1099.0)).too_high.is_empty());
        assert_eq!(compare(&recorded, &counts("a", 38.0, 1101.0)).too_high, ["spawn"]);
        assert!(compare(&recorded, &counts("a", 38.0, 500.0)).too_high.is_empty());
    }

    #[test]
    fn on_the_same_machine_the_reference_does_not_count() {
        assert_eq!(compare(&counts("a", 38.0, 1000.0), &counts("a", 50.0, 1200.0)).too_high, ["spawn"]);
    }

    #[test]
    fn on_another_machine_the_ratio_to_the_reference_counts() {
        let recorded = counts("a", 38.0, 1000.0);
        let twice = |spawn| Counts { jobs: vec![("spawn".into(), spawn)], ..counts("b", 76.0, 0.0) };
        let comparison = compare(&recorded, &twice(2190.0));
        assert!(comparison.too_high.is_empty(), "{}", comparison.text);
        assert!(comparison.text.contains("CPU: recorded with a, now b"), "{}", comparison.text);
        assert_eq!(compare(&recorded, &twice(2210.0)).too_high, ["spawn"]);
    }

    #[test]
    fn a_job_that_was_not_recorded_is_named_and_passes() {
        let mut measured = counts("a", 38.0, 1000.0);
        measured.jobs.push(("new".into(), 5.0));
        let comparison = compare(&counts("a", 38.0, 1000.0), &measured);
        assert!(comparison.too_high.is_empty() && comparison.text.contains("not recorded"), "{}", comparison.text);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written = counts("a", 38.5, 1043.3);
        assert_eq!(Counts::from_json(&written.to_json()).unwrap(), written);
        assert!(Counts::from_json("{}").is_err());
    }
}
