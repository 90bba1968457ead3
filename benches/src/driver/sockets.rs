//! The socket jobs.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use kittiwake_benches::Handler;

use super::args::Options;
use super::load::{BLOCK, Churn, Load, PingPong, Stream, Until, histogram};
use super::plan::{Kind, Runtime, SocketJob, THINK};
use super::progress;
use super::server::{self, Server};
use super::stats::{Estimate, median};
use super::table::{Chart, Panel, Section, Table, fixed, grouped, interval};
use super::tools::{Counter, Tools, count_requests};

/// Slices for each runtime, usually. A think-time job has many points, and so fewer.
const SLICES: usize = 60;
const THINK_SLICES: usize = 15;

/// How long a server gets to go to sleep after a slice, before its CPU time is read: what it does after the
/// last answer is part of the cost.
const SETTLE: Duration = Duration::from_millis(2);

/// Runs a job and returns its sections of the report.
pub(crate) fn run(job: &SocketJob, runtimes: &[Runtime], options: &Options, tools: &Tools) -> Result<Vec<Section>> {
    let can_do = |runtime: &Runtime| runtime.server(job.handler).is_some();
    let runtimes: Vec<Runtime> = runtimes.iter().copied().filter(can_do).collect();
    if runtimes.is_empty() {
        return Ok(Vec::new());
    }
    match job.kind {
        Kind::PingPong { .. } | Kind::Churn { .. } | Kind::Stream => {
            let rows = timed(job, Duration::ZERO, SLICES, &runtimes, options)?;
            let counts = counts(job, &rows, options, *tools)?;
            Ok(vec![section(job, &rows, &counts)])
        }
        Kind::Think => think(job, &runtimes, options),
        Kind::IdleMemory { connections } => idle_memory(job, connections, &runtimes, options),
        Kind::IdleCpu { connections } => idle_cpu(job, connections, &runtimes, options),
    }
}

/// A runtime in a job of slices, and what its slices gave.
struct Row {
    name: String,
    runtime: Runtime,
    /// Requests per second and CPU nanoseconds per request, slice by slice.
    rates: Vec<f64>,
    cpu: Vec<f64>,
    latency: Histogram<u64>,
}

/// Runs the slices of all runtimes in turns. The second row is the floor again, in a process of its own.
fn timed(job: &SocketJob, pause: Duration, slices: usize, runtimes: &[Runtime], options: &Options) -> Result<Vec<Row>> {
    let slices = options.slices(slices);
    let again = runtimes.iter().take(1).map(|floor| (format!("{} again", floor.name), floor));
    let others = runtimes.iter().skip(1).map(|runtime| (runtime.name.to_owned(), runtime));
    let first = runtimes.iter().take(1).map(|floor| (floor.name.to_owned(), floor));
    let mut rows: Vec<Row> = first.chain(again).chain(others).map(|(name, runtime)| Row::new(name, *runtime)).collect();
    let mut contestants = Vec::new();
    for row in &rows {
        contestants.push(Contestant::start(job, pause, row, options)?);
    }
    for turn in 0..slices {
        progress::step(&format!("{}: slice {} of {slices} for {} servers", job.name, turn + 1, rows.len()));
        for (row, contestant) in rows.iter_mut().zip(&mut contestants) {
            contestant.slice(row, options.slice())?;
        }
    }
    for contestant in contestants {
        contestant.end()?;
    }
    Ok(rows)
}

impl Row {
    fn new(name: String, runtime: Runtime) -> Self {
        Self { name, runtime, rates: Vec::new(), cpu: Vec::new(), latency: histogram() }
    }
}

/// A server and its load.
struct Contestant {
    load: Box<dyn Load>,
    server: Server,
}

impl Contestant {
    fn start(job: &SocketJob, pause: Duration, row: &Row, options: &Options) -> Result<Self> {
        let mut server = Server::start(&row.runtime, job.handler, options, &[])?;
        // The first requests meet cold caches and growing tables.
        let warm_up = |mut load: Box<dyn Load>| {
            load.slice(Until::For(Duration::from_millis(50)), &mut histogram())?;
            Ok(load)
        };
        match open(job, pause, &server).and_then(warm_up) {
            Ok(load) => Ok(Self { load, server }),
            Err(error) => Err(server.explain(error)),
        }
    }

    fn slice(&mut self, row: &mut Row, length: Duration) -> Result<()> {
        let before = self.server.cpu()?;
        let slice = match self.load.slice(Until::For(length), &mut row.latency) {
            Ok(slice) => slice,
            Err(error) => return Err(self.server.explain(error)),
        };
        thread::sleep(SETTLE);
        let cpu = self.server.cpu()?.saturating_sub(before);
        row.rates.push(slice.requests as f64 / slice.elapsed.as_secs_f64());
        row.cpu.push(cpu.as_nanos() as f64 / slice.requests as f64);
        Ok(())
    }

    fn end(self) -> Result<()> {
        drop(self.load);
        self.server.stop()
    }
}

fn open(job: &SocketJob, pause: Duration, server: &Server) -> Result<Box<dyn Load>> {
    Ok(match job.kind {
        Kind::PingPong { connections, bytes } => Box::new(PingPong::open(server.address, connections, bytes, pause)?),
        Kind::Think => Box::new(PingPong::open(server.address, 1, 64, pause)?),
        Kind::Churn { in_flight } => Box::new(Churn::new(server.address, in_flight)?),
        Kind::Stream => Box::new(Stream::new(server.address)),
        Kind::IdleMemory { .. } | Kind::IdleCpu { .. } => bail!("{} has no slices", job.name),
    })
}

/// System calls and instructions per request of each row; NaN where they are not counted.
fn counts(job: &SocketJob, rows: &[Row], options: &Options, tools: Tools) -> Result<Vec<(f64, f64)>> {
    let wanted = options.counts && (!options.quick || job.quick_counts);
    let round = match job.kind {
        Kind::PingPong { connections, .. } => connections as u64,
        Kind::Churn { in_flight } => in_flight as u64,
        _ => 1000,
    };
    let count = |counter, row: &Row| {
        let load = |server: &Server| open(job, Duration::ZERO, server);
        let (few, many) = match (counter, job.kind) {
            // What several threads do at first, until they know each other's pace, is in both runs then.
            (Counter::Instructions, Kind::PingPong { bytes: 64, .. }) if !options.quick => (8_000_u64, 32_000_u64),
            _ => (1_000, 3_000),
        };
        let requests = (round * few.div_ceil(round), round * many.div_ceil(round));
        count_requests(counter, &row.runtime, job.handler, options, requests, round, &load)
    };
    rows.iter()
        .map(|row| {
            let calls = if wanted && tools.strace { count(Counter::SystemCalls, row)? } else { f64::NAN };
            let instructions = wanted && tools.valgrind && job.instructions && !row.runtime.is_on_io_uring();
            Ok((calls, if instructions { count(Counter::Instructions, row)? } else { f64::NAN }))
        })
        .collect()
}

fn section(job: &SocketJob, rows: &[Row], counts: &[(f64, f64)]) -> Section {
    let floor = &rows[0];
    let mut table = Table::new(&[
        "runtime",
        "requests/s",
        "× floor",
        "CPU µs",
        "CPU × floor",
        "95 %",
        "p50 µs",
        "p99",
        "p99.9",
        "max",
        "syscalls",
        "instructions",
    ]);
    let mut ratios = Panel::new(format!("CPU per request, times {}", floor.name));
    let mut rates = Panel::new("requests per second");
    for (row, (calls, instructions)) in rows.iter().zip(counts) {
        let rate = Estimate::of_ratios(&row.rates, &floor.rates);
        let cpu = Estimate::of_ratios(&row.cpu, &floor.cpu);
        let at = |quantile| if row.latency.is_empty() { f64::NAN } else { micros(&row.latency, quantile) };
        table.rows.push(vec![
            row.name.clone(),
            grouped(median(&row.rates)),
            fixed(rate.median, 2),
            fixed(median(&row.cpu) / 1000.0, 2),
            fixed(cpu.median, 2),
            interval(cpu),
            fixed(at(0.5), 1),
            fixed(at(0.99), 1),
            fixed(at(0.999), 1),
            fixed(at(1.0), 0),
            fixed(*calls, 2),
            grouped(*instructions),
        ]);
        ratios.add_estimate(&row.name, cpu);
        rates.add(&row.name, median(&row.rates));
    }
    let mut notes = vec![format!("{}. {} slices for each.", job.what, floor.rates.len())];
    if counts.iter().any(|(calls, instructions)| calls.is_finite() || instructions.is_finite()) {
        notes.push(format!("{} {}", Counter::SystemCalls.explain(), Counter::Instructions.explain()));
    }
    if matches!(job.kind, Kind::Stream) {
        notes.push(format!("{} requests are one GiB.", (1 << 30) / BLOCK));
    }
    let chart = Some((job.name.to_owned(), Chart::Bars(vec![ratios, rates])));
    Section { title: job.name.to_owned(), notes, table, chart }
}

fn micros(latency: &Histogram<u64>, quantile: f64) -> f64 {
    latency.value_at_quantile(quantile) as f64 / 1000.0
}

/// The think-time job: each pause is a job of slices, and a column of two tables.
fn think(job: &SocketJob, runtimes: &[Runtime], options: &Options) -> Result<Vec<Section>> {
    let pauses: Vec<Duration> =
        THINK.into_iter().filter(|(_, quick)| *quick || !options.quick).map(|(p, _)| p).collect();
    let header: Vec<String> = pauses.iter().map(|pause| format!("{pause:?}")).collect();
    let header: Vec<&str> = std::iter::once("runtime").chain(header.iter().map(String::as_str)).collect();
    let (mut cpu, mut latency) = (Table::new(&header), Table::new(&header));
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for pause in &pauses {
        let rows = timed(job, *pause, THINK_SLICES, runtimes, options)?;
        for (at, row) in rows.iter().enumerate() {
            if cpu.rows.len() == at {
                cpu.rows.push(vec![row.name.clone()]);
                latency.rows.push(vec![row.name.clone()]);
                lines.push((row.name.clone(), Vec::new()));
            }
            let micros_of_cpu = median(&row.cpu) / 1000.0;
            cpu.rows[at].push(fixed(micros_of_cpu, 2));
            latency.rows[at].push(fixed(micros(&row.latency, 0.5), 1));
            lines[at].1.push((pause.as_secs_f64() * 1e6, micros_of_cpu));
        }
    }
    let lines = Chart::Lines { x: "pause of the client, µs".into(), y: "CPU per request, µs".into(), lines };
    let section = |title: &str, what: &str, table, chart| Section {
        title: title.to_owned(),
        notes: vec![format!("{}. {what}.", job.what)],
        table,
        chart,
    };
    Ok(vec![
        section("think, CPU", "The server's CPU time per request in µs", cpu, Some((job.name.to_owned(), lines))),
        section("think, latency", "Median time from request to answer in µs", latency, None),
    ])
}

fn idle_memory(job: &SocketJob, connections: usize, runtimes: &[Runtime], options: &Options) -> Result<Vec<Section>> {
    let connections = server::descriptors(if options.quick { connections / 5 } else { connections });
    let mut table = Table::new(&["runtime", "bytes per connection"]);
    let mut panel = Panel::new("resident bytes per idle connection");
    for runtime in runtimes {
        progress::step(&format!("{}: {}", job.name, runtime.name));
        let mut server = Server::start(runtime, job.handler, options, &[])?;
        let bytes = resident_per_connection(&server, connections).map_err(|error| server.explain(error))?;
        server.stop()?;
        table.rows.push(vec![runtime.name.to_owned(), grouped(bytes)]);
        panel.add(runtime.name, bytes);
    }
    let notes = vec![format!(
        "{}. {connections} connections that had one ping-pong of 32 bytes each; RssAnon before and after. \
         The hand-written loops share one buffer; what the kernel holds, for io_uring above all, is not in it.",
        job.what
    )];
    let chart = Some((job.name.to_owned(), Chart::Bars(vec![panel])));
    Ok(vec![Section { title: job.name.to_owned(), notes, table, chart }])
}

fn resident_per_connection(server: &Server, connections: usize) -> Result<f64> {
    // A first few, so that what is made once is there.
    let _first = busy_once(server, 10)?;
    let before = server.resident()?;
    let _all = busy_once(server, connections)?;
    let after = server.resident()?;
    Ok((after as f64 - before as f64) / connections as f64)
}

/// Connections that had one ping-pong each and are idle now.
fn busy_once(server: &Server, connections: usize) -> Result<PingPong> {
    let mut load = PingPong::open(server.address, connections, 32, Duration::ZERO)?;
    load.slice(Until::Requests(connections as u64), &mut histogram())?;
    thread::sleep(Duration::from_millis(20));
    Ok(load)
}

/// All servers are idle at the same time.
fn idle_cpu(job: &SocketJob, connections: usize, runtimes: &[Runtime], options: &Options) -> Result<Vec<Section>> {
    let connections = server::descriptors(connections * runtimes.len()) / runtimes.len().max(1);
    let time = Duration::from_secs(if options.quick { 2 } else { 5 });
    let mut idle = Vec::new();
    for runtime in runtimes {
        let mut server = Server::start(runtime, Handler::Echo64, options, &[])?;
        match busy_once(&server, connections) {
            Ok(load) => idle.push((runtime.name, load, server)),
            Err(error) => return Err(server.explain(error)),
        }
    }
    let before = idle.iter().map(|(_, _, server)| server.cpu()).collect::<Result<Vec<_>>>()?;
    progress::step(&format!("{}: {} s", job.name, time.as_secs()));
    thread::sleep(time);
    let mut table = Table::new(&["runtime", "CPU ms"]);
    let mut panel = Panel::new(format!("CPU ms in {} idle s", time.as_secs()));
    for ((name, _load, server), before) in idle.into_iter().zip(before) {
        let cpu = server.cpu().context("while idle")?.saturating_sub(before).as_secs_f64() * 1e3;
        table.rows.push(vec![name.to_owned(), fixed(cpu, 2)]);
        panel.add(name, cpu);
    }
    let notes =
        vec![format!("{} of them, over {} s.", job.what.replace("1,000", &connections.to_string()), time.as_secs())];
    let chart = Some((job.name.to_owned(), Chart::Bars(vec![panel])));
    Ok(vec![Section { title: job.name.to_owned(), notes, table, chart }])
}
