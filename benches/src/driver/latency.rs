//! The latency jobs: each program does all cases of a job, and the samples of all rounds make one row per case.

use std::io::Read;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use kittiwake_benches::LatencyJob;

use super::args::Options;
use super::load::histogram;
use super::plan::Runtime;
use super::programs::Process;
use super::table::{Section, Table, fixed};
use super::{machine, progress};

/// The time in which a program must end. It gives up a case that does not end, and then goes on.
const PATIENCE: Duration = Duration::from_secs(120);

/// A case of a job, on one runtime.
struct Row {
    case: String,
    runtime: &'static str,
    samples: Histogram<u64>,
    note: String,
}

/// Runs a job and returns its section of the report.
pub(crate) fn run(job: LatencyJob, runtimes: &[Runtime], options: &Options) -> Result<Vec<Section>> {
    let is_stuck = job == LatencyJob::Stuck;
    // A single worker that is stuck cannot be helped.
    let can_do = |runtime: &&Runtime| runtime.latency.is_some() && (!is_stuck || runtime.workers > 1);
    let runtimes: Vec<&Runtime> = runtimes.iter().filter(can_do).collect();
    // The cases of `stuck` last long.
    let rounds = options.slices(if is_stuck { 1 } else { 2 });
    let mut rows = Vec::new();
    for round in 1..=rounds {
        for runtime in &runtimes {
            progress::step(&format!("{}: round {round} of {rounds}, {}", job.name(), runtime.name));
            for line in print(job, runtime, options)?.lines() {
                add(&mut rows, runtime.name, line).with_context(|| format!("{} printed {line:?}", runtime.name))?;
            }
        }
    }
    Ok(if rows.is_empty() { Vec::new() } else { vec![section(job, rounds, &rows)] })
}

/// The output of a program.
fn print(job: LatencyJob, runtime: &Runtime, options: &Options) -> Result<String> {
    let program = runtime.latency.with_context(|| format!("{} has no latency jobs", runtime.name))?;
    let (cores, workers, job) = (machine::all_cores(), runtime.workers.to_string(), job.name());
    let millis = options.slice().as_millis().to_string();
    let arguments = ["--cores", &cores, "--workers", &workers, "latency", &job, &millis];
    let mut process = Process::start(&[], program, &arguments)?;
    let mut stdout = process.stdout()?;
    // The output may be longer than a pipe holds.
    let reader = thread::spawn(move || {
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).map(|_| printed)
    });
    let status = process.wait(PATIENCE).with_context(|| format!("{} in job {job}", runtime.name))?;
    ensure!(status.success(), "{} ended ({status}) in job {job}: {}", runtime.name, process.said());
    Ok(reader.join().expect("reading does not panic")?)
}

/// Adds a line of a program's output to the row of its case.
fn add(rows: &mut Vec<Row>, runtime: &'static str, line: &str) -> Result<()> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [case, note, samples] = columns.try_into().map_err(|_| anyhow!("a line has three columns"))?;
    let known = rows.iter().position(|row| row.case == case && row.runtime == runtime);
    let at = known.unwrap_or_else(|| {
        rows.push(Row { case: case.to_owned(), runtime, samples: histogram(), note: String::new() });
        rows.len() - 1
    });
    note.clone_into(&mut rows[at].note);
    for sample in samples.split_whitespace() {
        rows[at].samples.saturating_record(sample.parse()?);
    }
    Ok(())
}

fn section(job: LatencyJob, rounds: usize, rows: &[Row]) -> Section {
    let mut table = Table::new("case|runtime|samples|p50 ms|p99|max|note".split('|'));
    let mut cases: Vec<&str> = Vec::new();
    for row in rows {
        if !cases.contains(&row.case.as_str()) {
            cases.push(&row.case);
        }
    }
    for row in cases.iter().flat_map(|case| rows.iter().filter(move |row| row.case == *case)) {
        let at = |quantile| {
            let nanoseconds = row.samples.value_at_quantile(quantile);
            if row.samples.is_empty() { String::new() } else { fixed(nanoseconds as f64 / 1e6, 2) }
        };
        let (runtime, count) = (row.runtime.to_owned(), row.samples.len().to_string());
        table.add(&row.case, [runtime, count, at(0.5), at(0.99), at(1.0), row.note.clone()]);
    }
    let note = format!("{}. {rounds} rounds; times in ms.", job.describe());
    Section { title: job.name(), notes: vec![note], table, chart: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_add_to_the_same_row() {
        let mut rows = Vec::new();
        for line in ["a\t\t5 7", "b\t3 of 4\t", "a\tnew\t9"] {
            add(&mut rows, "x", line).unwrap();
        }
        let lines: Vec<_> = rows.iter().map(|row| (row.case.as_str(), row.note.as_str(), row.samples.len())).collect();
        assert_eq!(lines, [("a", "new", 3), ("b", "3 of 4", 0)]);
        for line in ["", "a\tb", "a\t\t1\t2", "a\t\tx"] {
            assert!(add(&mut rows, "x", line).is_err(), "{line:?} was accepted");
        }
    }
}
