//! The job `http`: hyper on each runtime, under three loads.

use std::time::Duration;

use anyhow::Result;
use kittiwake_benches::Handler;

use super::args::Options;
use super::plan::{CLIENTS, Client, KITTIWAKE, Kind, Runtime, SocketJob};
use super::sockets::{Row, counts, section, timed};
use super::stats::Estimate;
use super::table::{Chart, Section, fixed, interval};
use super::tools::Tools;

/// The usual number of slices for each runtime and load. wrk needs a second for each.
const SLICES: usize = 20;

/// The runtime that the others are compared with, if `--floor` names none that does this job.
const FLOOR: &str = "tokio";

/// The row that is compared with one worker.
const TWO_WORKERS: &str = "kittiwake_2";

/// Runs the job, and returns a section for each load. Leaves out the loads whose program is not installed.
pub(crate) fn run(job: &SocketJob, runtimes: &[Runtime], options: &Options, tools: Tools) -> Result<Vec<Section>> {
    let floor = if runtimes.first().is_some_and(serves) { runtimes[0].name } else { FLOOR };
    let mut runtimes: Vec<Runtime> = runtimes.iter().copied().filter(serves).collect();
    runtimes.sort_by_key(|runtime| runtime.name != floor);
    if runtimes.is_empty() {
        return Ok(Vec::new());
    }
    let clients = CLIENTS.iter().filter(|client| tools.has(**client));
    let mut sections =
        clients.map(|client| load(*client, job, &runtimes, options, tools)).collect::<Result<Vec<_>>>()?;
    draw_together(&mut sections);
    Ok(sections)
}

fn serves(runtime: &Runtime) -> bool {
    runtime.server(Handler::Http1).is_some()
}

fn load(client: Client, job: &SocketJob, runtimes: &[Runtime], options: &Options, tools: Tools) -> Result<Section> {
    let handler = match client {
        Client::Wrk { .. } => Handler::Http1,
        Client::H2load { .. } => Handler::Http2,
    };
    let job = SocketJob { kind: Kind::Http(client), handler, ..*job };
    let rows = timed(&job, Duration::ZERO, SLICES, runtimes, options)?;
    let counts = counts(&job, &rows, options, tools)?;
    let mut section = section(&job, &rows, &counts);
    section.title = format!("{}, {client}", job.name);
    section.notes.extend(compare_workers(&rows));
    Ok(section)
}

/// The cost of two workers, in times that of one.
fn compare_workers(rows: &[Row]) -> Option<String> {
    let row = |name| rows.iter().find(|row| row.name == name);
    let (one, two) = (row(KITTIWAKE.name)?, row(TWO_WORKERS)?);
    let cpu = Estimate::of_ratios(&two.cpu, &one.cpu);
    let (cpu, range) = (fixed(cpu.median, 3), interval(cpu));
    Some(format!("{TWO_WORKERS} takes {cpu} ({range}) times the CPU per request of {}.", one.name))
}

/// Puts the charts of CPU times into one, because a job has one chart.
fn draw_together(sections: &mut [Section]) {
    let mut panels = Vec::new();
    for section in sections.iter_mut() {
        if let Some(Chart::Bars(bars)) = section.chart.take() {
            panels.extend(bars.into_iter().take(1).map(|mut panel| {
                panel.title = format!("{}: {}", section.title, panel.title);
                panel
            }));
        }
    }
    if let Some(last) = sections.last_mut() {
        last.chart = Some(Chart::Bars(panels));
    }
}
