//! The in-memory jobs: instructions per operation, and wall time per operation in turns.

use std::thread;

use anyhow::Result;
use kittiwake_benches::MemoryJob;

use super::args::Options;
use super::plan::{KITTIWAKE, Runtime};
use super::stats::{Estimate, median};
use super::table::{Chart, Panel, Section, Table, fixed, grouped, interval};
use super::tools::{Counter, Tools, count_operations, run_memory};
use super::{machine, progress};

/// The usual number of slices for each runtime. A slice is one run of the program, of some milliseconds.
const SLICES: usize = 60;

/// Operations of the shorter of the two counted runs.
pub(crate) const COUNTED: u64 = 10_000;

/// Runs a job and returns its section of the report.
pub(crate) fn run(job: MemoryJob, runtimes: &[Runtime], options: &Options, tools: Tools) -> Result<Vec<Section>> {
    let can_do = |runtime: &Runtime| runtime.memory.is_some() && !runtime.lacks.contains(&job);
    let mut runtimes: Vec<Runtime> = runtimes.iter().copied().filter(can_do).collect();
    // There is no hand-written program for these jobs, so kittiwake is the base of the ratios.
    runtimes.sort_by_key(|runtime| runtime.name != KITTIWAKE.name);
    let counts = if options.no_counts || !tools.valgrind {
        vec![f64::NAN; runtimes.len()]
    } else {
        in_parallel(&runtimes, |runtime| {
            progress::step(&format!("{}: instructions of {}", job.name(), runtime.name));
            count_operations(runtime, job, COUNTED)
        })?
    };
    // All runtimes sleep for the same 100 ms in `fire`.
    let times = if job == MemoryJob::Fire { Vec::new() } else { time_all(&runtimes, job, options)? };
    Ok(vec![section(job, &runtimes, &counts, &times)])
}

/// Calls `work` for each item, on as many threads at a time as there are cores. Other programs do not change a count.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<f64> + Sync) -> Result<Vec<f64>> {
    let mut results = Vec::new();
    for items in items.chunks(machine::cores().len()) {
        thread::scope(|scope| {
            let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
            results.extend(threads.into_iter().map(|thread| thread.join().expect("counting does not panic")));
        });
    }
    results.into_iter().collect()
}

/// Nanoseconds per operation, for each runtime slice by slice. The last row is the first runtime again.
fn time_all(runtimes: &[Runtime], job: MemoryJob, options: &Options) -> Result<Vec<Vec<f64>>> {
    let slices = options.slices(SLICES);
    // `wake` has a second thread, which gets a core of its own and makes the operations slow.
    let (cores, n) = match job {
        MemoryJob::Wake => (machine::all_cores(), 2_000),
        _ => (options.server_core.to_string(), 50_000),
    };
    let all: Vec<&Runtime> = runtimes.iter().chain(runtimes.first()).collect();
    let mut times = vec![Vec::new(); all.len()];
    for slice in 1..=slices {
        progress::step(&format!("{}: slice {slice} of {slices}", job.name()));
        for (runtime, times) in all.iter().zip(&mut times) {
            times.push(run_memory(&[], &cores, runtime, job, n)? as f64 / n as f64);
        }
    }
    Ok(times)
}

fn section(job: MemoryJob, runtimes: &[Runtime], counts: &[f64], times: &[Vec<f64>]) -> Section {
    let base = runtimes.first().map_or("", |runtime| runtime.name);
    let factor = format!("× {base}");
    let mut table = Table::new(["runtime", "instructions", &factor, "ns", &factor, "95 %"]);
    let mut instructions = Panel::new("instructions per operation");
    let mut nanoseconds = Panel::new("ns per operation");
    for at in 0..runtimes.len().max(times.len()) {
        let name = runtimes.get(at).map_or_else(|| format!("{base} again"), |runtime| runtime.name.to_owned());
        let count = counts.get(at).copied().unwrap_or(f64::NAN);
        let own = times.get(at).map_or(&[][..], Vec::as_slice);
        let ratio = Estimate::of_ratios(own, times.first().map_or(&[], Vec::as_slice));
        instructions.add(&name, count);
        nanoseconds.add(&name, median(own));
        let (instructions, instructions_ratio) = (grouped(count), fixed(count / counts[0], 2));
        let (time, time_ratio) = (fixed(median(own), 1), fixed(ratio.median, 2));
        table.add(&name, [instructions, instructions_ratio, time, time_ratio, interval(ratio)]);
    }
    let mut panels = vec![instructions, nanoseconds];
    panels.retain(|panel| panel.bars.iter().any(|(_, figure)| figure.median.is_finite()));
    let mut notes = vec![format!("{}. Both columns are per operation.", job.describe())];
    if counts.iter().any(|count| count.is_finite()) {
        notes.push(Counter::Instructions.explain());
    }
    if times.is_empty() {
        notes.push("Not timed: all runtimes wait for the same 100 ms.".to_owned());
    }
    let chart = (!panels.is_empty()).then_some(Chart::Bars(panels));
    Section { title: job.name(), notes, table, chart }
}
