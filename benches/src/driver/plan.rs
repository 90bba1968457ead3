//! What is measured: the table of runtimes and the table of jobs.

use std::fmt::Write;
use std::time::Duration;

use kittiwake_benches::{Handler, MemoryJob};

/// The runtime that the others are compared with in the socket jobs.
pub(crate) const FLOOR: &str = "by_hand_epoll";

/// One row of each table: its programs, and how they are started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    /// The program for the socket jobs, if it does these, and what it is told.
    pub(crate) serve: Option<&'static str>,
    /// The program for idle connections, if it is not that one.
    pub(crate) idle: Option<&'static str>,
    /// The program with timeouts and the runtime's own accept loop, if it has such things.
    pub(crate) guarded: Option<&'static str>,
    pub(crate) arguments: &'static [&'static str],
    /// Threads that serve. One is pinned to the servers' core; several may use all cores, the load's too.
    pub(crate) workers: usize,
    /// Whether several are pinned to the servers' core as well.
    pub(crate) pinned: bool,
    /// The program for the in-memory jobs, if it does these, but for those that it lacks something for.
    pub(crate) memory: Option<&'static str>,
    pub(crate) lacks: &'static [MemoryJob],
    /// Whether it needs another runtime's crates.
    pub(crate) peer: bool,
}

/// All runtimes, in the order of the tables.
pub(crate) const RUNTIMES: [Runtime; 16] = [
    Runtime { name: FLOOR, serve: Some("by_hand_epoll"), ..BY_HAND },
    Runtime { name: "by_hand_mio", serve: Some("by_hand_mio"), ..BY_HAND },
    KITTIWAKE,
    Runtime { name: "kittiwake_blocks", arguments: &["--spin", "0"], ..KITTIWAKE_SET },
    Runtime { name: "kittiwake_2", arguments: &["--workers", "2"], ..KITTIWAKE_2_BLOCKS },
    KITTIWAKE_2_BLOCKS,
    KITTIWAKE_2_PINNED,
    Runtime { name: "tokio", arguments: &["--driver", "current_thread"], memory: Some("memory_tokio"), ..TOKIO },
    Runtime { name: "tokio_mt_1", arguments: &["--driver", "multi_thread", "--workers", "1"], ..TOKIO },
    Runtime { name: "tokio_mt_2", arguments: &["--driver", "multi_thread", "--workers", "2"], workers: 2, ..TOKIO },
    Runtime { name: "smol", serve: Some("serve_smol"), idle: Some("idle_smol"), memory: Some("memory_smol"), ..PEER },
    Runtime { name: "monoio", arguments: &["--driver", "epoll"], memory: Some("memory_monoio"), ..MONOIO },
    Runtime { name: "monoio_uring", arguments: &["--driver", "io_uring"], ..MONOIO },
    Runtime { name: "compio", arguments: &["--driver", "epoll"], memory: Some("memory_compio"), ..COMPIO },
    Runtime { name: "compio_uring", arguments: &["--driver", "io_uring"], ..COMPIO },
    Runtime {
        name: "futures",
        memory: Some("memory_futures"),
        lacks: &[MemoryJob::Timer, MemoryJob::Fire, MemoryJob::Timeout],
        ..PEER
    },
];

pub(crate) const KITTIWAKE: Runtime = Runtime {
    name: "kittiwake",
    serve: Some("serve_kittiwake"),
    idle: Some("idle_kittiwake"),
    guarded: Some("guarded_kittiwake"),
    memory: Some("memory_kittiwake"),
    ..BY_HAND
};

/// With settings, which its other programs do not read.
const KITTIWAKE_SET: Runtime = Runtime { idle: None, guarded: None, memory: None, ..KITTIWAKE };

const KITTIWAKE_2_BLOCKS: Runtime =
    Runtime { name: "kittiwake_2_blocks", arguments: &["--workers", "2", "--spin", "0"], workers: 2, ..KITTIWAKE_SET };

/// What two workers cost where they cannot gain: to be compared with kittiwake_blocks.
const KITTIWAKE_2_PINNED: Runtime = Runtime { name: "kittiwake_2_pinned", pinned: true, ..KITTIWAKE_2_BLOCKS };

const BY_HAND: Runtime = Runtime { peer: false, ..PEER };
const TOKIO: Runtime = Runtime { serve: Some("serve_tokio"), idle: Some("idle_tokio"), ..PEER };
const MONOIO: Runtime = Runtime { serve: Some("serve_monoio"), lacks: &[MemoryJob::Wake], ..PEER };
const COMPIO: Runtime = Runtime { serve: Some("serve_compio"), ..PEER };

const PEER: Runtime = Runtime {
    name: "",
    serve: None,
    idle: None,
    guarded: None,
    arguments: &[],
    workers: 1,
    pinned: false,
    memory: None,
    lacks: &[],
    peer: true,
};

pub(crate) fn runtime(name: &str) -> Option<Runtime> {
    RUNTIMES.into_iter().find(|runtime| runtime.name == name)
}

impl Runtime {
    /// The program that serves with this handler, if there is one.
    pub(crate) fn server(&self, handler: Handler) -> Option<&'static str> {
        match handler {
            Handler::Echo64 => self.idle.or(self.serve),
            Handler::Guarded => self.guarded,
            _ => self.serve,
        }
    }

    /// Whether it talks to the kernel by io_uring, which a kernel may refuse. valgrind hears no signal while it waits
    /// there, so such a server could not be ended and counted.
    pub(crate) fn is_on_io_uring(&self) -> bool {
        self.arguments.contains(&"io_uring")
    }
}

/// A job: one section of the report.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    Socket(SocketJob),
    Memory(MemoryJob),
}

/// A job on sockets.
#[derive(Clone, Debug)]
pub(crate) struct SocketJob {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) kind: Kind,
    pub(crate) handler: Handler,
    /// Whether callgrind says something about it: not if the handler or the client's pace decides.
    pub(crate) instructions: bool,
    pub(crate) quick: bool,
    /// Whether `--quick` counts system calls and instructions too.
    pub(crate) quick_counts: bool,
}

/// What the load does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    PingPong { connections: usize, bytes: usize },
    Churn { in_flight: usize },
    Stream,
    Think,
    IdleMemory { connections: usize },
    IdleCpu { connections: usize },
}

/// The pauses of the think-time job, and whether `--quick` has them too.
pub(crate) const THINK: [(Duration, bool); 12] = [
    (Duration::from_micros(1), true),
    (Duration::from_micros(5), false),
    (Duration::from_micros(10), false),
    (Duration::from_micros(20), true),
    (Duration::from_micros(30), false),
    (Duration::from_micros(45), true),
    (Duration::from_micros(70), false),
    (Duration::from_micros(100), false),
    (Duration::from_micros(300), true),
    (Duration::from_millis(1), false),
    (Duration::from_millis(10), false),
    (Duration::from_millis(100), false),
];

pub(crate) fn jobs() -> Vec<Job> {
    socket_jobs().into_iter().map(Job::Socket).chain(MemoryJob::ALL.map(Job::Memory)).collect()
}

fn socket_jobs() -> Vec<SocketJob> {
    let ping = |name, what, connections| SocketJob {
        name,
        what,
        kind: Kind::PingPong { connections, bytes: 64 },
        handler: Handler::Echo4K,
        instructions: true,
        quick: true,
        quick_counts: false,
    };
    let other = |name, what, kind, handler| SocketJob {
        name,
        what,
        kind,
        handler,
        instructions: false,
        quick: true,
        quick_counts: false,
    };
    vec![
        ping("ping-1", "Ping-pong of 64 bytes on 1 connection", 1),
        SocketJob { quick: false, ..ping("ping-2", "Ping-pong of 64 bytes on 2 connections", 2) },
        SocketJob { quick: false, ..ping("ping-4", "Ping-pong of 64 bytes on 4 connections", 4) },
        SocketJob { quick: false, ..ping("ping-8", "Ping-pong of 64 bytes on 8 connections", 8) },
        SocketJob { quick_counts: true, ..ping("ping-32", "Ping-pong of 64 bytes on 32 connections", 32) },
        SocketJob {
            handler: Handler::Guarded,
            quick: false,
            ..ping(
                "serve-32",
                "Ping-pong of 64 bytes on 32 connections with a read timeout, accepted by the runtime's own loop",
                32,
            )
        },
        ping("ping-64", "Ping-pong of 64 bytes on 64 connections", 64),
        ping("ping-1000", "Ping-pong of 64 bytes on 1,000 connections", 1000),
        SocketJob {
            kind: Kind::PingPong { connections: 8, bytes: 65536 },
            handler: Handler::Echo64K,
            quick: false,
            ..ping("big-8", "Ping-pong of 64 KiB on 8 connections, buffer of 64 KiB", 8)
        },
        SocketJob {
            instructions: true,
            ..other(
                "churn",
                "Connect, one ping-pong of 64 bytes, close; 16 at a time. A request is one connection",
                Kind::Churn { in_flight: 16 },
                Handler::Echo4K,
            )
        },
        other(
            "stream",
            "The client sends as fast as it can, the server discards and acknowledges the total at the end. A request is 64 KiB",
            Kind::Stream,
            Handler::Discard,
        ),
        other(
            "slow",
            "Ping-pong of 64 bytes on 64 connections; each request keeps the server's thread busy for 20 µs",
            Kind::PingPong { connections: 64, bytes: 64 },
            Handler::Slow,
        ),
        other(
            "think",
            "Ping-pong of 64 bytes on 1 connection, whose client pauses between answer and next request",
            Kind::Think,
            Handler::Echo4K,
        ),
        other(
            "idle-memory",
            "Resident bytes of the server per idle connection, with a buffer of 64 bytes",
            Kind::IdleMemory { connections: 10_000 },
            Handler::Echo64,
        ),
        other(
            "idle-cpu",
            "CPU time of a server whose connections are idle",
            Kind::IdleCpu { connections: 1000 },
            Handler::Echo64,
        ),
    ]
}

impl Job {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Socket(job) => job.name,
            Self::Memory(job) => job.name(),
        }
    }

    pub(crate) fn is_quick(&self) -> bool {
        match self {
            Self::Socket(job) => job.quick,
            Self::Memory(_) => true,
        }
    }
}

/// What an in-memory job does, for people.
pub(crate) fn describe(job: MemoryJob) -> &'static str {
    match job {
        MemoryJob::Reference => {
            "A fixed loop of integer arithmetic that no runtime has a part in: all rows must be alike"
        }
        MemoryJob::Spawn => "Spawn one ready task and join it, n times",
        MemoryJob::Burst => "Spawn n tasks that each yield once, then join all",
        MemoryJob::Yield => "The main future yields n times",
        MemoryJob::Yield1000 => "1,000 tasks yield n/1,000 times each",
        MemoryJob::Two => "The main future and a local task set a flag and wake each other in turn, n times",
        MemoryJob::Wake => {
            "The main future is woken by another thread, n times. Both threads' instructions; how they meet varies, so not exact"
        }
        MemoryJob::Timer => "A sleep of 30 s, polled once and dropped, n times",
        MemoryJob::Fire => {
            "n tasks sleep (i * 7919) mod 100,000 µs. How many fire at once depends on time, so not exact"
        }
        MemoryJob::Timeout => "A timeout of 30 s around a future that is ready, n times",
    }
}

/// The names, for `--list`.
pub(crate) fn list() -> String {
    let mut text = String::from("runtimes\n");
    for runtime in RUNTIMES {
        let serve = [&[runtime.serve.unwrap_or_default()], runtime.arguments].concat().join(" ");
        let _ = writeln!(text, "  {:<19} {serve:<45} {}", runtime.name, runtime.memory.unwrap_or_default());
    }
    text.push_str("socket jobs\n");
    for job in socket_jobs() {
        let _ = writeln!(text, "  {:<19} {}", job.name, job.what);
    }
    text.push_str("in-memory jobs\n");
    for job in MemoryJob::ALL {
        let _ = writeln!(text, "  {:<19} {}", job.name(), describe(job));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let jobs: HashSet<_> = jobs().iter().map(Job::name).collect();
        assert_eq!(jobs.len(), super::jobs().len(), "two jobs have the same name");
        let runtimes: HashSet<_> = RUNTIMES.iter().map(|runtime| runtime.name).collect();
        assert_eq!(runtimes.len(), RUNTIMES.len(), "two runtimes have the same name");
    }
}
