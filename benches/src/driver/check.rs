//! The recorded instruction counts of kittiwake: recording them, and comparing a build with them.
//!
//! Counts do not depend on how busy a machine is, so a shared machine can check a change. They do depend on the compiler
//! and on libc, which chooses its `memcpy` by CPU. The same run therefore counts a fixed loop without any runtime. If
//! compiler, libc or CPU differ from the recorded ones, the comparison is of the ratios to that loop.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use kittiwake_benches::program::pin;
use kittiwake_benches::{Handler, MemoryJob};
use serde::{Deserialize, Serialize};

use super::args::{Options, package_folder};
use super::in_memory::{COUNTED, in_parallel};
use super::load::{Load, PingPong};
use super::machine::Machine;
use super::plan::KITTIWAKE;
use super::programs;
use super::progress;
use super::server::Server;
use super::stats::median;
use super::table::{Table, fixed};
use super::tools::{Counter, Tools, count_operations, count_requests};

/// The counts of servers, by their names among those of the in-memory jobs. The servers have one worker: with two, the
/// sharing of work depends on valgrind's scheduling, and the count differs in each run.
const SERVERS: [(&str, Handler); 2] = [("echo-32", Handler::Echo4K), ("serve-32", Handler::Guarded)];

/// The requests of the shorter and of the longer run for a server's count, on 32 connections.
const REQUESTS: (u64, u64) = (3200, 9600);

/// Counts, and their origin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Counts {
    cpu: String,
    /// Instructions per operation, by name of job.
    jobs: BTreeMap<String, f64>,
    libc: String,
    /// Instructions per step of the reference loop.
    reference: f64,
    rustc: String,
}

/// Measures, and compares with the file. Returns true if no count is too high.
pub(crate) fn check(file: Option<&Path>, options: &Options, tools: Tools) -> Result<bool> {
    let file = path(file);
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}; --record makes such a file", file.display()))?;
    let recorded: Counts = serde_json::from_str(&text)
        .with_context(|| format!("--record does not write such a file: {}", file.display()))?;
    let (text, too_high) = compare(&recorded, &Counts::measure(options, tools)?, options.tolerance);
    progress::done();
    print!("{text}");
    Ok(too_high.is_empty())
}

/// Measures, and writes the file.
pub(crate) fn record(file: Option<&Path>, options: &Options, tools: Tools) -> Result<bool> {
    let (file, mut counts) = (path(file), Counts::measure(options, tools)?);
    progress::done();
    counts.jobs.values_mut().chain([&mut counts.reference]).for_each(|count| *count = (*count * 10.0).round() / 10.0);
    let text = format!("{}\n", serde_json::to_string_pretty(&counts)?);
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    print!("{text}");
    Ok(true)
}

fn path(given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| package_folder().join("instructions.json"), PathBuf::from)
}

impl Counts {
    fn measure(options: &Options, tools: Tools) -> Result<Self> {
        ensure!(
            tools.valgrind,
            "valgrind counts the instructions, and is not installed: install the package `valgrind`"
        );
        programs::build(&[KITTIWAKE.serve, KITTIWAKE.memory].map(Option::unwrap_or_default))?;
        let exact: Vec<MemoryJob> = MemoryJob::value_variants().iter().copied().filter(|job| job.is_exact()).collect();
        let counts = in_parallel(&exact, |job| {
            progress::say(&format!("counting {}", job.name()));
            count_operations(&KITTIWAKE, *job, COUNTED)
        })?;
        let mut jobs: BTreeMap<_, _> = exact.iter().map(|job| job.name()).zip(counts).collect();
        let reference = jobs.remove(&MemoryJob::Reference.name()).context("the reference loop is exact")?;
        pin(&[options.load_core]);
        for (name, handler) in SERVERS {
            progress::say(&format!("counting {name}"));
            jobs.insert(name.to_owned(), ping_pong(handler, options)?);
        }
        let Machine { rustc, libc, cpu, .. } = Machine::read();
        Ok(Self { rustc, libc, cpu, reference, jobs })
    }

    /// The recorded facts on which counts depend.
    fn origin(&self) -> [(&'static str, &str); 3] {
        [("rustc", &self.rustc), ("libc", &self.libc), ("CPU", &self.cpu)]
    }
}

/// The count of a server with 32 connections and messages of 64 bytes: the median of three, because a busy machine can
/// disturb one. It is exact to a percent if server and load have a core each.
fn ping_pong(handler: Handler, options: &Options) -> Result<f64> {
    let open =
        |server: &Server| -> Result<Box<dyn Load>> { Ok(Box::new(PingPong::open(server.address, 32, 64, false)?)) };
    let count = || count_requests(Counter::Instructions, &KITTIWAKE, handler, options, REQUESTS, 32, &open);
    Ok(median(&[count()?, count()?, count()?]))
}

/// Compares counts. Returns a text and the names of the jobs whose count is more than `tolerance` percent above the
/// recorded one.
fn compare(recorded: &Counts, measured: &Counts, tolerance: f64) -> (String, Vec<String>) {
    let same = recorded.origin() == measured.origin();
    let scale = if same { 1.0 } else { measured.reference / recorded.reference };
    let mut table = Table::new(["job", "recorded", "measured", "change", ""]);
    let mut too_high = Vec::new();
    for (name, count) in &measured.jobs {
        let (before, change, verdict) = match recorded.jobs.get(name) {
            None => ("none".to_owned(), String::new(), "not recorded"),
            Some(before) => {
                let change = (count / (before * scale) - 1.0) * 100.0;
                let is_too_high = change > tolerance;
                too_high.extend(is_too_high.then(|| name.clone()));
                (fixed(*before, 1), format!("{change:+.1} %"), if is_too_high { "TOO HIGH" } else { "" })
            }
        };
        table.add(name, [before, fixed(*count, 1), change, verdict.to_owned()]);
    }
    let conclusion = match too_high.as_slice() {
        [] => format!("No count is more than {tolerance} % above the recorded one."),
        jobs => format!(
            "More than {tolerance} % above the recorded count: {}. If the change intends this, \
             write the file anew with --record and give the reason.",
            jobs.join(", ")
        ),
    };
    let text = format!(
        "Instructions per operation of kittiwake, compared with the recorded ones.\n\n{}\n{}{conclusion}\n",
        table.to_markdown(),
        origins(recorded, measured, same)
    );
    (text, too_high)
}

/// Names the origins of the counts. Adds the reference loop if the comparison is of ratios to it.
fn origins(recorded: &Counts, measured: &Counts, same: bool) -> String {
    let mut text = String::new();
    for ((name, before), (_, now)) in recorded.origin().into_iter().zip(measured.origin()) {
        let differs = if before == now { String::new() } else { format!(", recorded with {before}") };
        text += &format!("{name}: {now}{differs}.\n");
    }
    if !same {
        let (before, now) = (recorded.reference, measured.reference);
        text += "The origins differ, so a change is that of the ratio to the reference loop. ";
        text += &format!("A step of the loop: {now:.1} instructions, recorded {before:.1}.\n");
    }
    text
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
            jobs: BTreeMap::from([("spawn".into(), spawn), ("two".into(), 100.0 * reference)]),
        }
    }

    fn too_high(recorded: &Counts, measured: &Counts, tolerance: f64) -> Vec<String> {
        compare(recorded, measured, tolerance).1
    }

    /// The tolerance limits direct counts. The reference loop does not matter on the same machine.
    #[test]
    fn tolerance_limits_counts() {
        let recorded = counts("a", 38.0, 1000.0);
        for (tolerance, highest) in [(0.0, 1000.0), (3.0, 1030.0), (10.0, 1100.0)] {
            assert!(too_high(&recorded, &counts("a", 38.0, highest - 1.0), tolerance).is_empty());
            assert_eq!(too_high(&recorded, &counts("a", 38.0, highest + 1.0), tolerance), ["spawn"]);
        }
        assert_eq!(too_high(&recorded, &counts("a", 50.0, 1200.0), 10.0), ["spawn", "two"]);
    }

    /// On another machine the tolerance limits the ratio to the reference loop.
    #[test]
    fn tolerance_limits_ratios() {
        let recorded = counts("a", 38.0, 1000.0);
        for (tolerance, highest) in [(0.0, 2000.0), (3.0, 2060.0), (10.0, 2200.0)] {
            assert!(too_high(&recorded, &counts("b", 76.0, highest - 1.0), tolerance).is_empty());
            assert_eq!(too_high(&recorded, &counts("b", 76.0, highest + 1.0), tolerance), ["spawn"]);
        }
        let (text, _) = compare(&recorded, &counts("b", 76.0, 2000.0), 10.0);
        assert!(text.contains("CPU: b, recorded with a."), "{text}");
    }

    #[test]
    fn unrecorded_job_is_named_and_passes() {
        let mut measured = counts("a", 38.0, 1000.0);
        measured.jobs.insert("new".into(), 5.0);
        let (text, too_high) = compare(&counts("a", 38.0, 1000.0), &measured, 10.0);
        assert!(too_high.is_empty() && text.contains("not recorded"), "{text}");
    }

    /// The recorded file stays as it is written.
    #[test]
    fn recorded_file_keeps_its_format() {
        let text = include_str!("../../instructions.json");
        let counts: Counts = serde_json::from_str(text).unwrap();
        assert_eq!(format!("{}\n", serde_json::to_string_pretty(&counts).unwrap()), text);
        assert!(serde_json::from_str::<Counts>("{}").is_err());
    }
}
