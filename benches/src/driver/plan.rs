//! The table of runtimes and the table of jobs.

use std::fmt::{self, Write};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use kittiwake_benches::{Handler, LatencyJob, MemoryJob};

/// The runtime that the socket jobs compare the others with by default.
pub(crate) const FLOOR: &str = "by_hand_epoll";

/// A runtime as one way to start its programs: one row of each table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    /// The program for the socket jobs, if the runtime has sockets.
    pub(crate) serve: Option<&'static str>,
    /// The program for the job `http`, if the runtime has one.
    pub(crate) http: Option<&'static str>,
    /// The arguments of these programs.
    pub(crate) arguments: &'static [&'static str],
    /// True if the program `serve` has [`Handler::Guarded`].
    pub(crate) guarded: bool,
    /// Threads that serve. A server with one is pinned to the servers' core, one with several may use all cores.
    pub(crate) workers: usize,
    /// True if a server with several workers is pinned to the servers' core as well.
    pub(crate) pinned: bool,
    /// The program for the in-memory jobs, if this way to start the runtime has them.
    pub(crate) memory: Option<&'static str>,
    /// The program for the latency jobs, if this way to start the runtime has them.
    pub(crate) latency: Option<&'static str>,
    /// The in-memory jobs that the runtime cannot do.
    pub(crate) lacks: &'static [MemoryJob],
    /// True if the programs need the feature `peers`.
    pub(crate) peer: bool,
}

/// All runtimes, in the order of the tables.
pub(crate) const RUNTIMES: [Runtime; 16] = [
    Runtime { name: FLOOR, serve: Some("by_hand_epoll"), peer: false, ..PEER },
    Runtime { name: "by_hand_mio", serve: Some("by_hand_mio"), peer: false, ..PEER },
    KITTIWAKE,
    Runtime { name: "kittiwake_no_spin", arguments: &["--spin", "0"], memory: None, latency: None, ..KITTIWAKE },
    Runtime { name: "kittiwake_2", arguments: &["--workers", "2"], latency: KITTIWAKE.latency, ..KITTIWAKE_2_NO_SPIN },
    KITTIWAKE_2_NO_SPIN,
    // The cost of two workers where they cannot gain anything: compare it with kittiwake_no_spin.
    Runtime { name: "kittiwake_2_pinned", pinned: true, ..KITTIWAKE_2_NO_SPIN },
    Runtime {
        name: "tokio",
        arguments: &["--driver", "current_thread"],
        memory: Some("memory_tokio"),
        latency: Some("latency_tokio"),
        ..TOKIO
    },
    Runtime { name: "tokio_mt_1", arguments: &["--driver", "multi_thread", "--workers", "1"], ..TOKIO },
    Runtime {
        name: "tokio_mt_2",
        arguments: &["--driver", "multi_thread", "--workers", "2"],
        workers: 2,
        latency: Some("latency_tokio"),
        ..TOKIO
    },
    Runtime { name: "smol", serve: Some("serve_smol"), http: Some("http_smol"), memory: Some("memory_smol"), ..PEER },
    Runtime { name: "monoio", arguments: &["--driver", "epoll"], memory: Some("memory_monoio"), ..MONOIO },
    Runtime { name: "monoio_uring", arguments: &["--driver", "io_uring"], ..MONOIO },
    Runtime { name: "compio", arguments: &["--driver", "epoll"], memory: Some("memory_compio"), ..COMPIO },
    Runtime { name: "compio_uring", arguments: &["--driver", "io_uring"], ..COMPIO },
    Runtime { name: "futures", memory: Some("memory_futures"), lacks: TIMERS, ..PEER },
];

pub(crate) const KITTIWAKE: Runtime = Runtime {
    name: "kittiwake",
    serve: Some("serve_kittiwake"),
    http: Some("http_kittiwake"),
    guarded: true,
    memory: Some("memory_kittiwake"),
    latency: Some("latency_kittiwake"),
    peer: false,
    ..PEER
};

const KITTIWAKE_2_NO_SPIN: Runtime = Runtime {
    name: "kittiwake_2_no_spin",
    arguments: &["--workers", "2", "--spin", "0"],
    workers: 2,
    memory: None,
    latency: None,
    ..KITTIWAKE
};

const TOKIO: Runtime = Runtime { serve: Some("serve_tokio"), http: Some("http_tokio"), ..PEER };
const MONOIO: Runtime = Runtime { serve: Some("serve_monoio"), lacks: &[MemoryJob::Wake], ..PEER };
const COMPIO: Runtime = Runtime { serve: Some("serve_compio"), ..PEER };
const TIMERS: &[MemoryJob] = &[MemoryJob::Timer, MemoryJob::Fire, MemoryJob::Timeout];

const PEER: Runtime = Runtime {
    name: "",
    serve: None,
    http: None,
    arguments: &[],
    guarded: false,
    workers: 1,
    pinned: false,
    memory: None,
    latency: None,
    lacks: &[],
    peer: true,
};

impl Runtime {
    /// The program that serves with this handler, if there is one.
    pub(crate) fn server(&self, handler: Handler) -> Option<&'static str> {
        match handler {
            Handler::Http1 | Handler::Http2 => self.http.filter(|_| cfg!(feature = "http")),
            Handler::Guarded => self.serve.filter(|_| self.guarded),
            _ => self.serve,
        }
    }

    /// True if the runtime uses io_uring, which a kernel may refuse. callgrind cannot count such a server: valgrind
    /// delivers no signal while the server waits in io_uring, so the driver could not stop it.
    pub(crate) fn is_on_io_uring(&self) -> bool {
        self.arguments.contains(&"io_uring")
    }
}

/// A job: one section of the report.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    Socket(SocketJob),
    Memory(MemoryJob),
    Latency(LatencyJob),
}

/// A job on sockets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketJob {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) handler: Handler,
    /// One sentence about the job.
    pub(crate) what: &'static str,
    /// False if the handler or the client's pace decides the number of instructions.
    pub(crate) instructions: bool,
    /// True if `--quick` includes the job.
    pub(crate) quick: bool,
    /// True if `--quick` counts the job's system calls and instructions too.
    pub(crate) quick_counts: bool,
}

/// The load of a socket job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    PingPong { connections: usize, bytes: usize },
    Churn { in_flight: usize },
    Stream,
    Think,
    IdleMemory { connections: usize },
    IdleCpu { connections: usize },
    Http(Client),
}

/// A client that is a program of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// wrk, for HTTP/1.
    Wrk { connections: usize },
    /// h2load, for HTTP/2.
    H2load { connections: usize, streams: usize },
}

/// The clients of the job `http`, in the order of its sections.
pub(crate) const CLIENTS: &[Client] =
    &[Client::Wrk { connections: 1 }, Client::Wrk { connections: 64 }, Client::H2load { connections: 16, streams: 10 }];

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrk { connections } => write!(f, "wrk -c{connections}"),
            Self::H2load { connections, streams } => write!(f, "h2load -c{connections} -m{streams}"),
        }
    }
}

/// The pauses of the think-time job, in microseconds.
pub(crate) const PAUSES: &[u64] = &[1, 5, 10, 20, 30, 45, 70, 100, 300, 1_000, 10_000, 100_000];

/// The pauses that `--quick` takes.
pub(crate) const QUICK_PAUSES: &[u64] = &[1, 20, 45, 300];

#[rustfmt::skip] // One job is one or two lines.
const SOCKET_JOBS: [SocketJob; 17] = [
    ping("ping-1", 1, "Ping-pong of 64 bytes on 1 connection"),
    SocketJob { quick: false, ..ping("ping-2", 2, "Ping-pong of 64 bytes on 2 connections") },
    SocketJob { quick: false, ..ping("ping-4", 4, "Ping-pong of 64 bytes on 4 connections") },
    SocketJob { quick: false, ..ping("ping-8", 8, "Ping-pong of 64 bytes on 8 connections") },
    SocketJob { quick_counts: true, ..ping("ping-32", 32, "Ping-pong of 64 bytes on 32 connections") },
    SocketJob { handler: Handler::Guarded, quick: false, ..ping("serve-32", 32,
        "Ping-pong of 64 bytes on 32 connections with a read timeout, accepted by the runtime's own loop") },
    ping("ping-64", 64, "Ping-pong of 64 bytes on 64 connections"),
    ping("ping-1000", 1000, "Ping-pong of 64 bytes on 1,000 connections"),
    SocketJob { instructions: true, quick: false,
        ..job("big-8", Kind::PingPong { connections: 8, bytes: 65536 }, Handler::Echo64K,
        "Ping-pong of 64 KiB on 8 connections, buffer of 64 KiB") },
    churn("churn-16", 16, "Connect, one ping-pong of 64 bytes, close; 16 at a time. A request is one connection"),
    SocketJob { quick: false,
        ..churn("churn-200", 200, "Connect, one ping-pong of 64 bytes, close; 200 at a time. A request is one connection") },
    job("stream", Kind::Stream, Handler::Discard,
        "The client sends as fast as it can; the server discards all and sends the total at the end. A request is 64 KiB"),
    job("slow", Kind::PingPong { connections: 64, bytes: 64 }, Handler::Slow,
        "Ping-pong of 64 bytes on 64 connections; each request keeps the server's thread busy for 20 µs"),
    job("think", Kind::Think, Handler::Echo4K,
        "Ping-pong of 64 bytes on 1 connection; the client pauses between an answer and its next request"),
    job("idle-memory", Kind::IdleMemory { connections: 10_000 }, Handler::Echo64,
        "Resident bytes of the server per idle connection, with a buffer of 64 bytes"),
    job("idle-cpu", Kind::IdleCpu { connections: 1000 }, Handler::Echo64,
        "CPU time of a server whose connections are idle"),
    SocketJob { instructions: true, quick: false, ..job("http", Kind::Http(CLIENTS[0]), Handler::Http1,
        "Requests of wrk and h2load to a hyper server whose response has 13 bytes") },
];

const fn ping(name: &'static str, connections: usize, what: &'static str) -> SocketJob {
    let ping = job(name, Kind::PingPong { connections, bytes: 64 }, Handler::Echo4K, what);
    SocketJob { instructions: true, ..ping }
}

const fn churn(name: &'static str, in_flight: usize, what: &'static str) -> SocketJob {
    SocketJob { instructions: true, ..job(name, Kind::Churn { in_flight }, Handler::Echo4K, what) }
}

const fn job(name: &'static str, kind: Kind, handler: Handler, what: &'static str) -> SocketJob {
    SocketJob { name, kind, handler, what, instructions: false, quick: true, quick_counts: false }
}

pub(crate) fn jobs() -> impl Iterator<Item = Job> {
    let memory = MemoryJob::value_variants().iter().copied().map(Job::Memory);
    let latency = LatencyJob::value_variants().iter().copied().map(Job::Latency);
    SOCKET_JOBS.into_iter().map(Job::Socket).chain(latency).chain(memory)
}

/// The names that `--jobs` takes.
pub(crate) fn job_names() -> Vec<PossibleValue> {
    let memory = MemoryJob::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let latency = LatencyJob::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    SOCKET_JOBS.iter().map(|job| PossibleValue::new(job.name)).chain(latency).chain(memory).collect()
}

impl Job {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Socket(job) => job.name.to_owned(),
            Self::Memory(job) => job.name(),
            Self::Latency(job) => job.name(),
        }
    }

    /// The program that does the job on a runtime, if there is one.
    pub(crate) fn program(&self, runtime: &Runtime) -> Option<&'static str> {
        match self {
            Self::Socket(job) => runtime.server(job.handler),
            Self::Memory(_) => runtime.memory,
            Self::Latency(_) => runtime.latency,
        }
    }

    pub(crate) fn is_on_sockets(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }

    pub(crate) fn is_quick(&self) -> bool {
        !matches!(self, Self::Socket(SocketJob { quick: false, .. }) | Self::Latency(_))
    }

    fn describe(&self) -> String {
        match self {
            Self::Socket(job) => job.what.to_owned(),
            Self::Memory(job) => job.describe(),
            Self::Latency(job) => job.describe(),
        }
    }
}

/// The names of runtimes and jobs, for `--list`.
pub(crate) fn list() -> String {
    let mut text = String::from("runtimes\n");
    for runtime in RUNTIMES {
        let serve = [&[runtime.serve.unwrap_or_default()], runtime.arguments].concat().join(" ");
        let [memory, latency] = [runtime.memory, runtime.latency].map(Option::unwrap_or_default);
        let _ = writeln!(text, "  {:<19} {serve:<45} {memory:<17} {latency}", runtime.name);
    }
    let (sockets, memory): (Vec<Job>, Vec<Job>) = jobs().partition(Job::is_on_sockets);
    for (title, jobs) in [("socket jobs", sockets), ("in-memory jobs", memory)] {
        let _ = writeln!(text, "{title}");
        jobs.iter().for_each(|job| text += &format!("  {:<19} {}\n", job.name(), job.describe()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = jobs().map(|job| job.name()).collect();
        assert_eq!(names.len(), jobs().count(), "two jobs have the same name");
        let runtimes: HashSet<_> = RUNTIMES.iter().map(|runtime| runtime.name).collect();
        assert_eq!(runtimes.len(), RUNTIMES.len(), "two runtimes have the same name");
    }
}
