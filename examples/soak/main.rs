//! A long random run of servers and clients, in which every byte is checked. Ctrl-C or SIGTERM ends it early.
//!
//! `cargo run --release --example soak -- --minutes 60 --seed 7`
//!
//! Four servers answer thousands of clients: two on one thread each, two on several workers. Two of the servers end
//! under load again and again, each time in another way, and others take their places. The clients connect, ask,
//! pause, flood, half-close, reset and fall silent at random.
//!
//! A round of this ends with a quiet point: all connections are closed, and the servers that change have ended. The
//! resources must then be those of the first quiet point.
//!
//! The run ends with status 1 at the first of these, and names the seed:
//! * a wrong byte, or an end of a connection that its client cannot explain;
//! * a client that makes no step for 30 s, although none of its own pauses is longer than 2 s: a lost wake-up;
//! * a resource that has grown between two quiet points, or that a closed connection keeps.
//!
//! The seed chooses what clients and servers do. The order in which the threads do it differs from run to run.
//!
//! `tests/soak.rs` is another random test: few sockets, which many runtimes use in turn.

mod client;
mod server;
mod traffic;
mod usage;
mod verdict;
mod wire;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::{signal, task};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use server::Running;
use traffic::Traffic;
use usage::Usage;
use verdict::fail;
use wire::Random;

const USAGE: &str = "usage: soak [--minutes M] [--seed S] [--connections N] [--workers W]
M  how long it runs; 1 if not given
S  the seed of the random choices; from the clock if not given
N  how many connections are open at a time; 5000 if not given
W  how many workers the clients and each of two servers have; 2 if not given";

/// No client may be without a step for so long.
const LOST: Duration = Duration::from_secs(30);

/// Connections may take so long to leave their slots and descriptors, once they are closed.
const SETTLE: Duration = Duration::from_secs(30);

struct Options {
    minutes: f64,
    seed: u64,
    connections: usize,
    workers: usize,
}

fn main() {
    let options = options(std::env::args().skip(1)).unwrap_or_else(|why| exit(&why));
    // A connection has two ends here.
    if let Err(why) = allow_descriptors(2 * options.connections as u64 + 200) {
        exit(&why);
    }
    verdict::prepare(options.seed);
    println!("soak: {} connections, {} min, seed {}", options.connections, options.minutes, options.seed);
    let soak = Soak::start(options).unwrap_or_else(|error| fail(&format!("cannot start: {error}")));
    println!("soak: {}", soak.run());
}

fn exit(why: &str) -> ! {
    eprintln!("soak: {why}");
    std::process::exit(2)
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let mut options = Options { minutes: 1.0, seed: clock % 1_000_000, connections: 5_000, workers: 2 };
    while let Some(option) = args.next() {
        if ["-h", "--help"].contains(&&*option) {
            println!("{USAGE}");
            std::process::exit(0);
        }
        let value = args.next().unwrap_or_default();
        let wrong = || format!("{option} {value}? {USAGE}");
        match &*option {
            "--minutes" => options.minutes = value.parse().map_err(|_| wrong())?,
            "--seed" => options.seed = value.parse().map_err(|_| wrong())?,
            "--connections" => options.connections = value.parse().map_err(|_| wrong())?,
            "--workers" => options.workers = value.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        }
    }
    let Options { minutes, connections, workers, .. } = options;
    let is_sound =
        (0.0..1e6).contains(&minutes) && (1..=1_000_000).contains(&connections) && (1..=64).contains(&workers);
    if is_sound { Ok(options) } else { Err(format!("a number is out of range; {USAGE}")) }
}

/// Raises the limit of open descriptors to `count`, if it is lower.
fn allow_descriptors(count: u64) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(count), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|_| {
        let maximum = limit.maximum.unwrap_or_default();
        format!("this takes {count} descriptors, and {maximum} are allowed: try fewer --connections, or ulimit -Hn")
    })
}

struct Soak {
    options: Options,
    traffic: Arc<Traffic>,
    clients: Runtime,
    /// Servers 0 and 1, which stay.
    steady: Vec<Running>,
    /// Servers 2 and 3, which end and are replaced. Between two rounds there are none.
    changing: Vec<Running>,
    random: Random,
    servers_ended: u64,
    is_interrupted: Arc<AtomicBool>,
    begun: Instant,
    last_line: Line,
}

/// The counts at the last printed line.
struct Line {
    at: Instant,
    connections: u64,
    requests: u64,
    bytes: u64,
}

impl Soak {
    fn start(options: Options) -> io::Result<Self> {
        let clients = Builder::new_multi_thread().worker_threads(options.workers).thread_name("clients").build()?;
        let (is_interrupted, begun) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let interrupted = is_interrupted.clone();
        clients.handle().spawn(async move {
            let _ = signal::terminate().await;
            interrupted.store(true, Ordering::SeqCst);
        });
        let mut random = Random::new(options.seed, 0);
        let workers = [None, Some(options.workers)];
        let start = |number: usize| Running::start(number, workers[number % 2], &mut random);
        let steady = (0..2).map(start).collect::<io::Result<_>>()?;
        Ok(Self {
            traffic: Arc::new(Traffic::new(options.connections)),
            clients,
            steady,
            changing: Vec::new(),
            random,
            servers_ended: 0,
            is_interrupted,
            begun,
            last_line: Line { at: begun, connections: 0, requests: 0, bytes: 0 },
            options,
        })
    }

    /// Runs rounds until the time is over. Returns the summary.
    fn run(mut self) -> String {
        let total = Duration::from_secs_f64(self.options.minutes * 60.0);
        let end = self.begun + total;
        // Short runs have several quiet points too.
        let round = (total / 4).clamp(Duration::from_secs(2), Duration::from_secs(60));
        let mut first = None;
        let mut last = Usage::default();
        for number in 0.. {
            self.start_round(number).unwrap_or_else(|error| fail(&format!("round {number} cannot start: {error}")));
            self.run_round(end.min(Instant::now() + round));
            self.end_round();
            last = self.settle(first.as_ref());
            first.get_or_insert(last);
            if Instant::now() >= end || self.is_interrupted() {
                break;
            }
        }
        self.summary(&first.unwrap_or_default(), &last)
    }

    fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::SeqCst)
    }

    /// Starts the servers that change, and the clients.
    fn start_round(&mut self, round: u64) -> io::Result<()> {
        for number in 2..4 {
            let server = self.start_server(number)?;
            self.changing.push(server);
        }
        self.publish_servers();
        self.traffic.set_pause(false);
        let _entered = self.clients.handle().enter();
        for number in 0..self.options.connections {
            let random = Random::new(self.options.seed, 1 + (round << 32 | number as u64));
            let client = client::run(self.traffic.clone(), number, random);
            task::Builder::new().name(format!("client {number}")).spawn(client);
        }
        Ok(())
    }

    /// Servers with odd numbers have several workers.
    fn start_server(&mut self, number: usize) -> io::Result<Running> {
        let workers = (number % 2 == 1).then_some(self.options.workers);
        Running::start(number, workers, &mut self.random)
    }

    fn publish_servers(&self) {
        let all = self.steady.iter().chain(&self.changing);
        self.traffic.set_servers(all.map(|running| running.server.clone()).collect());
    }

    /// Watches the clients until `end`, and replaces servers.
    fn run_round(&mut self, end: Instant) {
        let mut replace = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end && !self.is_interrupted() {
            self.watch();
            if Instant::now() > replace {
                self.replace_server();
                replace = Instant::now() + Duration::from_millis(self.random.range(200, 3_000).into());
            }
        }
    }

    /// Ends one of the servers that change, after its successor has started.
    fn replace_server(&mut self) {
        let index = self.random.range(0, 2) as usize;
        let successor = self.start_server(2 + index);
        let successor = successor.unwrap_or_else(|error| fail(&format!("cannot start another server: {error}")));
        let old = std::mem::replace(&mut self.changing[index], successor);
        self.publish_servers();
        old.end();
        self.servers_ended += 1;
    }

    /// Sleeps for a second, looks for clients that wait too long, and prints a line if it is time.
    fn watch(&mut self) {
        thread::sleep(Duration::from_secs(1));
        self.traffic.tick(LOST);
        if self.last_line.at.elapsed() >= Duration::from_secs(10) {
            self.print_line();
        }
    }

    /// Waits until each client has ended its last connection, and ends the servers that change.
    fn end_round(&mut self) {
        self.traffic.set_pause(true);
        while self.traffic.clients() > 0 {
            self.watch();
        }
        self.traffic.forget_clients();
        self.traffic.set_servers(Vec::new());
        for running in self.changing.drain(..) {
            running.end();
        }
    }

    /// Waits until the closed connections have left nothing, and the resources are those of the first quiet point.
    fn settle(&self, first: Option<&Usage>) -> Usage {
        let begun = Instant::now();
        loop {
            let usage = Usage::now(self.runtimes());
            let open: usize = self.steady.iter().map(|running| running.server.stats.open()).sum();
            let growth = if open > 0 {
                Some(format!("{open} handlers run, and no client is there"))
            } else if let Some(first) = first {
                usage.growth(first)
            } else if begun.elapsed() < Duration::from_secs(1) {
                // Threads of a runtime that was shut down in the background must not count as the first usage.
                Some("the first quiet point is not quiet yet".to_owned())
            } else if usage.tasks + usage.sockets + usage.timers > 16 {
                Some(format!("closed connections have left slots: {usage:?}"))
            } else {
                None
            };
            match growth {
                None => return usage,
                Some(growth) if begun.elapsed() > SETTLE => fail(&format!("{SETTLE:?} after all clients: {growth}")),
                Some(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn runtimes(&self) -> impl Iterator<Item = &Handle> {
        let servers = self.steady.iter().chain(&self.changing).map(|running| &running.server.handle);
        servers.chain([self.clients.handle()])
    }

    fn print_line(&mut self) {
        let usage = Usage::now(self.runtimes());
        let counts = &self.traffic.counts;
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let now = Line {
            at: Instant::now(),
            connections: load(&counts.connections),
            requests: load(&counts.requests),
            bytes: load(&counts.bytes),
        };
        let seconds = (now.at - self.last_line.at).as_secs_f64();
        let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
        println!(
            "{:5.0} s: {} clients, {:.0} connections/s, {:.0} requests/s, {:.1} MB/s, worst {:.0} ms; heap {:.1} MB, \
             resident {:.1} MB, {} descriptors, {} threads; {} tasks, {} sockets, {} timers; {} servers ended",
            self.begun.elapsed().as_secs_f64(),
            self.traffic.clients(),
            rate(now.connections, self.last_line.connections),
            rate(now.requests, self.last_line.requests),
            rate(now.bytes, self.last_line.bytes) / 1e6,
            counts.take_worst_latency().as_secs_f64() * 1e3,
            usage.heap as f64 / 1e6,
            usage.resident as f64 / 1e6,
            usage.descriptors,
            usage.threads,
            usage.tasks,
            usage.sockets,
            usage.timers,
            self.servers_ended,
        );
        self.last_line = now;
    }

    fn summary(self, first: &Usage, last: &Usage) -> String {
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.traffic.counts;
        let summary = format!(
            "{:.0} s, seed {}: {} connections ({} ended with their server), {} requests, {:.1} GB checked, {} servers \
             ended under load; since the first quiet point: heap {:+} B, resident {:+} kB, descriptors {:+}, threads {:+}",
            self.begun.elapsed().as_secs_f64(),
            self.options.seed,
            load(&counts.connections),
            load(&counts.cut_off),
            load(&counts.requests),
            load(&counts.bytes) as f64 / 1e9,
            self.servers_ended,
            last.heap as i64 - first.heap as i64,
            (last.resident as i64 - first.resident as i64) / 1024,
            last.descriptors as i64 - first.descriptors as i64,
            last.threads as i64 - first.threads as i64,
        );
        self.steady.into_iter().for_each(Running::end);
        summary
    }
}
