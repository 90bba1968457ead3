//! The socket jobs.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

use super::args::Options;
use super::client::External;
use super::load::{BLOCK, Load, PingPong, Stream, histogram};
use super::plan::{Kind, PAUSES, QUICK_PAUSES, Runtime, SocketJob};
use super::progress;
use super::server::{self, Server};
use super::stats::{Estimate, median};
use super::table::{Chart, Panel, Section, Table, fixed, grouped, interval};
use super::tools::{Counter, Tools, count_requests};

/// The usual number of slices for each runtime. The think-time job has many points, and so fewer slices for each.
const SLICES: usize = 60;
const THINK_SLICES: usize = 15;

/// The time between the end of a slice and the reading of the CPU time. The server's work after its last answer is part of
/// the cost.
const SETTLE: Duration = Duration::from_millis(2);

/// Runs a job and returns its sections of the report.
pub(crate) fn run(job: &SocketJob, runtimes: &[Runtime], options: &Options, tools: Tools) -> Result<Vec<Section>> {
    let can_do = |runtime: &Runtime| runtime.server(job.handler).is_some();
    let runtimes: Vec<Runtime> = runtimes.iter().copied().filter(can_do).collect();
    if runtimes.is_empty() {
        return Ok(Vec::new());
    }
    match job.kind {
        Kind::PingPong { .. } | Kind::Churn { .. } | Kind::Stream | Kind::Http(_) => {
            let rows = timed(job, Duration::ZERO, SLICES, &runtimes, options)?;
            let counts = counts(job, &rows, options, tools)?;
            Ok(vec![section(job, &rows, &counts)])
        }
        Kind::Think => think(job, &runtimes, options),
        Kind::IdleMemory { connections } => idle_memory(job, connections, &runtimes, options),
        Kind::IdleCpu { connections } => idle_cpu(job, connections, &runtimes, options),
    }
}

/// A runtime in a job of slices, and the results of its slices.
pub(crate) struct Row {
    pub(crate) name: String,
    runtime: Runtime,
    /// Requests per second, slice by slice.
    rates: Vec<f64>,
    /// CPU nanoseconds per request, slice by slice.
    pub(crate) cpu: Vec<f64>,
    latency: Histogram<u64>,
}

/// Runs the slices of all runtimes in turns. The second row is the floor again, in another process.
pub(crate) fn timed(
    job: &SocketJob,
    pause: Duration,
    slices: usize,
    runtimes: &[Runtime],
    options: &Options,
) -> Result<Vec<Row>> {
    let slices = options.slices(slices);
    let mut named: Vec<_> = runtimes.iter().map(|runtime| (runtime.name.to_owned(), *runtime)).collect();
    named.insert(1, (format!("{} again", runtimes[0].name), runtimes[0]));
    let new = |(name, runtime)| Row { name, runtime, rates: Vec::new(), cpu: Vec::new(), latency: histogram() };
    let mut rows: Vec<Row> = named.into_iter().map(new).collect();
    let start = |row: &Row| Contestant::start(job, pause, &row.runtime, options);
    let mut contestants = rows.iter().map(start).collect::<Result<Vec<_>>>()?;
    for slice in 1..=slices {
        progress::step(&format!("{}: slice {slice} of {slices} for {} servers", job.name, rows.len()));
        for (row, contestant) in rows.iter_mut().zip(&mut contestants) {
            contestant.slice(row, options.slice())?;
        }
    }
    contestants.into_iter().try_for_each(Contestant::end)?;
    Ok(rows)
}

/// A server and its load.
struct Contestant {
    load: Box<dyn Load>,
    server: Server,
}

impl Contestant {
    fn start(job: &SocketJob, pause: Duration, runtime: &Runtime, options: &Options) -> Result<Self> {
        let mut server = Server::start(runtime, job.handler, options, &[])?;
        // A warm-up, because the first requests meet cold caches and growing tables.
        let warm_up = |mut load: Box<dyn Load>| {
            load.slice(Duration::from_millis(50), u64::MAX, &mut histogram())?;
            Ok(load)
        };
        match open(job, pause, &server).and_then(warm_up) {
            Ok(load) => Ok(Self { load, server }),
            Err(error) => Err(server.explain(error)),
        }
    }

    fn slice(&mut self, row: &mut Row, length: Duration) -> Result<()> {
        let before = self.server.cpu()?;
        let outcome = self.load.slice(length, u64::MAX, &mut row.latency);
        let (requests, elapsed) = outcome.map_err(|error| self.server.explain(error))?;
        thread::sleep(SETTLE);
        let cpu = self.server.cpu()?.saturating_sub(before);
        row.rates.push(requests as f64 / elapsed.as_secs_f64());
        row.cpu.push(cpu.as_nanos() as f64 / requests as f64);
        Ok(())
    }

    fn end(self) -> Result<()> {
        drop(self.load);
        self.server.stop()
    }
}

fn open(job: &SocketJob, pause: Duration, server: &Server) -> Result<Box<dyn Load>> {
    let ping_pong = |connections, bytes, churn| PingPong::open(server.address, connections, bytes, churn);
    Ok(match job.kind {
        Kind::PingPong { connections, bytes } => Box::new(ping_pong(connections, bytes, false)?),
        Kind::Think => Box::new(ping_pong(1, 64, false)?.with_pause(pause)),
        Kind::Churn { in_flight } => Box::new(ping_pong(in_flight, 64, true)?),
        Kind::Stream => Box::new(Stream::new(server.address)),
        Kind::Http(client) => Box::new(External::new(client, server.address)),
        Kind::IdleMemory { .. } | Kind::IdleCpu { .. } => bail!("{} has no slices", job.name),
    })
}

/// System calls and instructions per request of each row, or NaN if they are not counted.
pub(crate) fn counts(job: &SocketJob, rows: &[Row], options: &Options, tools: Tools) -> Result<Vec<(f64, f64)>> {
    let wanted = !options.no_counts && (!options.quick || job.quick_counts);
    let round = match job.kind {
        Kind::PingPong { connections, .. } => connections as u64,
        Kind::Churn { in_flight } => in_flight as u64,
        _ => 1000,
    };
    let count = |wanted: bool, counter, row: &Row| {
        if !wanted {
            return Ok(f64::NAN);
        }
        let load = |server: &Server| open(job, Duration::ZERO, server);
        let (few, many) = match (counter, job.kind) {
            // Several threads adapt to each other's pace at first. With so many requests that is in both runs.
            (Counter::Instructions, Kind::PingPong { bytes: 64, .. } | Kind::Http(_)) if !options.quick => {
                (8_000_u64, 32_000_u64)
            }
            _ => (1_000, 3_000),
        };
        let requests = (few.next_multiple_of(round), many.next_multiple_of(round));
        count_requests(counter, &row.runtime, job.handler, options, requests, round, &load)
    };
    // A client of its own opens its connections anew in each round of the requests for system calls.
    let calls = tools.strace && !matches!(job.kind, Kind::Http(_));
    rows.iter()
        .map(|row| {
            let instructions = tools.valgrind && job.instructions && !row.runtime.is_on_io_uring();
            Ok((
                count(wanted && calls, Counter::SystemCalls, row)?,
                count(wanted && instructions, Counter::Instructions, row)?,
            ))
        })
        .collect()
}

pub(crate) fn section(job: &SocketJob, rows: &[Row], counts: &[(f64, f64)]) -> Section {
    let floor = &rows[0];
    let mut table = Table::new(
        "runtime|requests/s|× floor|CPU µs|CPU × floor|95 %|p50 µs|p99|p99.9|max|syscalls|instructions".split('|'),
    );
    let mut ratios = Panel::new(format!("CPU per request, times {}", floor.name));
    let mut rates = Panel::new("requests per second");
    for (row, (calls, instructions)) in rows.iter().zip(counts) {
        let rate = Estimate::of_ratios(&row.rates, &floor.rates);
        let cpu = Estimate::of_ratios(&row.cpu, &floor.cpu);
        let at = |quantile| if row.latency.is_empty() { f64::NAN } else { micros(&row.latency, quantile) };
        let cells = [
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
        ];
        table.add(&row.name, cells);
        ratios.bars.push((row.name.clone(), cpu));
        rates.add(&row.name, median(&row.rates));
    }
    let mut notes = vec![format!("{}. {} slices for each.", job.what, floor.rates.len())];
    if counts.iter().any(|(calls, instructions)| calls.is_finite() || instructions.is_finite()) {
        notes.push(format!("{} {}", Counter::SystemCalls.explain(), Counter::Instructions.explain()));
    }
    if matches!(job.kind, Kind::Stream) {
        notes.push(format!("{} requests are one GiB.", (1 << 30) / BLOCK));
    }
    Section { title: job.name.to_owned(), notes, table, chart: Some(Chart::Bars(vec![ratios, rates])) }
}

fn micros(latency: &Histogram<u64>, quantile: f64) -> f64 {
    latency.value_at_quantile(quantile) as f64 / 1000.0
}

/// The think-time job. Each pause is a series of slices, and a column of two tables.
fn think(job: &SocketJob, runtimes: &[Runtime], options: &Options) -> Result<Vec<Section>> {
    let pauses = if options.quick { QUICK_PAUSES } else { PAUSES };
    let header: Vec<String> = pauses.iter().map(|&pause| format!("{:?}", Duration::from_micros(pause))).collect();
    let header = || std::iter::once("runtime").chain(header.iter().map(String::as_str));
    let (mut cpu, mut latency) = (Table::new(header()), Table::new(header()));
    let mut lines = Vec::new();
    let run = |&pause| timed(job, Duration::from_micros(pause), THINK_SLICES, runtimes, options);
    let columns = pauses.iter().map(run).collect::<Result<Vec<_>>>()?;
    for (at, Row { name, .. }) in columns[0].iter().enumerate() {
        let rows = || columns.iter().map(|rows| &rows[at]);
        let line: Vec<(f64, f64)> =
            pauses.iter().zip(rows()).map(|(&pause, row)| (pause as f64, median(&row.cpu) / 1000.0)).collect();
        cpu.add(name, line.iter().map(|(_, micros)| fixed(*micros, 2)));
        latency.add(name, rows().map(|row| fixed(micros(&row.latency, 0.5), 1)));
        lines.push((name.clone(), line));
    }
    let lines = Chart::Lines { x: "pause of the client, µs".into(), y: "CPU per request, µs".into(), lines };
    let section = |title: &str, what: &str, table, chart| Section {
        title: title.to_owned(),
        notes: vec![format!("{}. {what}.", job.what)],
        table,
        chart,
    };
    Ok(vec![
        section("think, CPU", "The server's CPU time per request in µs", cpu, Some(lines)),
        section("think, latency", "Median time from request to answer in µs", latency, None),
    ])
}

fn idle_memory(job: &SocketJob, connections: usize, runtimes: &[Runtime], options: &Options) -> Result<Vec<Section>> {
    let connections = server::descriptors(if options.quick { connections / 5 } else { connections });
    let mut figures = Vec::new();
    for runtime in runtimes {
        progress::step(&format!("{}: {}", job.name, runtime.name));
        let mut server = Server::start(runtime, job.handler, options, &[])?;
        let bytes = resident_per_connection(&server, connections).map_err(|error| server.explain(error))?;
        server.stop()?;
        figures.push((runtime.name, bytes));
    }
    let note = format!(
        "{}. {connections} connections that had one ping-pong of 32 bytes each; RssAnon before and after. \
         The hand-written loops share one buffer. The kernel's memory is not included, which matters most for io_uring.",
        job.what
    );
    let panel = Panel::new("resident bytes per idle connection");
    Ok(vec![idle_section(job, note, "bytes per connection", panel, &figures, grouped)])
}

fn resident_per_connection(server: &Server, connections: usize) -> Result<f64> {
    // The first few connections make the server allocate everything that it allocates once.
    let _first = busy_once(server, 10)?;
    let before = server.resident()?;
    let _all = busy_once(server, connections)?;
    let after = server.resident()?;
    Ok((after as f64 - before as f64) / connections as f64)
}

/// Connections that had one ping-pong each and are idle now.
fn busy_once(server: &Server, connections: usize) -> Result<PingPong> {
    let mut load = PingPong::open(server.address, connections, 32, false)?;
    load.slice(Duration::MAX, connections as u64, &mut histogram())?;
    thread::sleep(Duration::from_millis(20));
    Ok(load)
}

/// All servers are idle at the same time.
fn idle_cpu(job: &SocketJob, connections: usize, runtimes: &[Runtime], options: &Options) -> Result<Vec<Section>> {
    let connections = server::descriptors(connections * runtimes.len()) / runtimes.len();
    let seconds = if options.quick { 2 } else { 5 };
    let mut idle = Vec::new();
    for runtime in runtimes {
        let mut server = Server::start(runtime, job.handler, options, &[])?;
        let load = busy_once(&server, connections).map_err(|error| server.explain(error))?;
        idle.push((runtime.name, load, server));
    }
    let before = idle.iter().map(|(_, _, server)| server.cpu()).collect::<Result<Vec<_>>>()?;
    progress::step(&format!("{}: {seconds} s", job.name));
    thread::sleep(Duration::from_secs(seconds));
    let mut figures = Vec::new();
    for ((name, _, server), before) in idle.iter().zip(before) {
        figures.push((*name, server.cpu()?.saturating_sub(before).as_secs_f64() * 1e3));
    }
    let note = format!("{}. {connections} connections, over {seconds} s.", job.what);
    let panel = Panel::new(format!("CPU ms in {seconds} idle s"));
    Ok(vec![idle_section(job, note, "CPU ms", panel, &figures, |milliseconds| fixed(milliseconds, 2))])
}

fn idle_section(
    job: &SocketJob,
    note: String,
    column: &str,
    mut panel: Panel,
    figures: &[(&str, f64)],
    show: impl Fn(f64) -> String,
) -> Section {
    let mut table = Table::new(["runtime", column]);
    for (name, figure) in figures {
        table.add(name, [show(*figure)]);
        panel.add(name, *figure);
    }
    Section { title: job.name.to_owned(), notes: vec![note], table, chart: Some(Chart::Bars(vec![panel])) }
}
