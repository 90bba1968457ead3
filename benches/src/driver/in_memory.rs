//! The in-memory jobs: instructions per operation, and wall time per operation in turns.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;
use kittiwake_benches::MemoryJob;

use super::args::Options;
use super::plan::{self, KITTIWAKE, Runtime};
use super::stats::{Estimate, median};
use super::table::{Chart, Panel, Section, Table, fixed, grouped, interval};
use super::tools::{Counter, Tools, count_operations, run_memory};
use super::{machine, progress};

/// Slices for each runtime, usually. One is a run of the program, of some milliseconds.
const SLICES: usize = 60;

/// Operations of the shorter of the two counted runs.
pub(crate) const COUNTED: u64 = 10_000;

/// Operations of a timed run.
fn timed_operations(job: MemoryJob) -> u64 {
    match job {
        // Each goes to another thread and back.
        MemoryJob::Wake => 2_000,
        _ => 50_000,
    }
}

/// Runs a job and returns its section of the report.
pub(crate) fn run(job: MemoryJob, runtimes: &[Runtime], options: &Options, tools: &Tools) -> Result<Vec<Section>> {
    let mut runtimes: Vec<Runtime> =
        runtimes.iter().copied().filter(|runtime| runtime.memory.is_some() && !runtime.lacks.contains(&job)).collect();
    // There is no loop by hand to compare with: kittiwake is what the others are compared with.
    runtimes.sort_by_key(|runtime| runtime.name != KITTIWAKE.name);
    let count = options.counts && tools.valgrind;
    let counts = if count { count_all(&runtimes, job)? } else { vec![f64::NAN; runtimes.len()] };
    // All sleep for the same 100 ms.
    let times = if job == MemoryJob::Fire { Vec::new() } else { time_all(&runtimes, job, options)? };
    Ok(vec![section(job, &runtimes, &counts, &times)])
}

/// Counts several programs at a time: what else runs does not change a count.
pub(crate) fn count_all(runtimes: &[Runtime], job: MemoryJob) -> Result<Vec<f64>> {
    in_parallel(runtimes, |runtime| {
        progress::step(&format!("{}: instructions of {}", job.name(), runtime.name));
        count_operations(runtime, job, COUNTED)
    })
}

/// Calls `work` for each item, on as many threads as there are cores.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<f64> + Sync) -> Result<Vec<f64>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..machine::cores().len() {
            scope.spawn(|| {
                while let Some((at, item)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    items.get(at).map(|item| (at, item))
                } {
                    let result = work(item);
                    results.lock().expect("no thread panics with it").push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panicked with it");
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Nanoseconds per operation, for each runtime slice by slice; the last is the first again.
fn time_all(runtimes: &[Runtime], job: MemoryJob, options: &Options) -> Result<Vec<Vec<f64>>> {
    let n = timed_operations(job);
    let slices = options.slices(SLICES);
    let all: Vec<&Runtime> = runtimes.iter().chain(runtimes.first()).collect();
    let mut times = vec![Vec::new(); all.len()];
    // The other thread gets a core of its own.
    let cores = if job == MemoryJob::Wake { machine::all_cores() } else { options.server_core.to_string() };
    for slice in 0..slices {
        progress::step(&format!("{}: slice {} of {slices}", job.name(), slice + 1));
        for (runtime, times) in all.iter().zip(&mut times) {
            times.push(run_memory(&[], &cores, runtime, job, n)? as f64 / n as f64);
        }
    }
    Ok(times)
}

fn section(job: MemoryJob, runtimes: &[Runtime], counts: &[f64], times: &[Vec<f64>]) -> Section {
    let base = runtimes.first().map_or("", |runtime| runtime.name);
    let factor = format!("× {base}");
    let mut table = Table::new(&["runtime", "instructions", &factor, "ns", &factor, "95 %"]);
    let mut instructions = Panel::new("instructions per operation");
    let mut nanoseconds = Panel::new("ns per operation");
    for at in 0..runtimes.len().max(times.len()) {
        let again = at == runtimes.len();
        let name = if again { format!("{base} again") } else { runtimes[at].name.to_owned() };
        let count = counts.get(at).copied().unwrap_or(f64::NAN);
        let (time, ratio) = match times.get(at) {
            Some(own) => (median(own), Estimate::of_ratios(own, &times[0])),
            None => (f64::NAN, Estimate::of(&[])),
        };
        table.rows.push(vec![
            name.clone(),
            grouped(count),
            fixed(count / counts[0], 2),
            fixed(time, 1),
            fixed(ratio.median, 2),
            interval(ratio),
        ]);
        instructions.add(&name, count);
        nanoseconds.add(&name, time);
    }
    let panels: Vec<Panel> = [instructions, nanoseconds]
        .into_iter()
        .filter(|panel| panel.bars.iter().any(|bar| bar.value.is_finite()))
        .collect();
    let mut notes = vec![format!("{}. Both columns are per operation.", plan::describe(job))];
    if counts.iter().any(|count| count.is_finite()) {
        notes.push(Counter::Instructions.explain());
    }
    if times.is_empty() {
        notes.push("Not timed: all runtimes wait for the same 100 ms.".to_owned());
    }
    Section {
        title: job.name().to_owned(),
        notes,
        table,
        chart: (!panels.is_empty()).then(|| (job.name().to_owned(), Chart::Bars(panels))),
    }
}
