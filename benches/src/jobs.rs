//! The names of the tasks that the driver gives to the programs.

use std::time::Duration;

use clap::ValueEnum;

/// The time for which the slow handler keeps its thread busy for each request.
pub const SLOW: Duration = Duration::from_micros(20);

/// The way a server treats each connection. `session.rs` implements them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Handler {
    /// Sends back every byte, with a buffer of 64 bytes, for idle connections.
    ///
    /// The buffer is part of the task if the runtime can read into such a buffer.
    #[value(name = "echo-64")]
    Echo64,
    /// Sends back every byte, with a buffer of 4 KiB. Each small message then comes in one read.
    #[value(name = "echo-4096")]
    Echo4K,
    /// Sends back every byte, with a buffer of 64 KiB, for large messages.
    #[value(name = "echo-65536")]
    Echo64K,
    /// Reads into 64 KiB until the client has sent all, then answers with the number of bytes: 8 bytes, little endian.
    Discard,
    /// [`Echo4K`](Self::Echo4K) that spins for [`SLOW`] before each answer.
    Slow,
    /// [`Echo4K`](Self::Echo4K) as in production: with a read timeout, behind the runtime's own accept loop.
    ///
    /// Only runtimes that have both can do it.
    Guarded,
    /// Answers requests of HTTP/1 by hyper. Only the programs `http_*` can do it.
    Http1,
    /// Answers requests of HTTP/2 by hyper, on connections that begin with it. Only the programs `http_*` can do it.
    Http2,
}

impl Handler {
    pub fn name(self) -> String {
        name(&self)
    }

    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2)
    }

    /// The size of the handler's buffer. hyper has buffers of its own.
    pub fn buffer(self) -> usize {
        match self {
            Self::Echo64 => 64,
            Self::Http1 | Self::Http2 => 0,
            Self::Echo4K | Self::Slow | Self::Guarded => 4096,
            Self::Echo64K | Self::Discard => 65536,
        }
    }
}

/// A job that needs no socket. `memory.rs` has the jobs' bodies, and `--list` prints the first paragraph of each comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MemoryJob {
    /// A fixed loop of integer arithmetic without any runtime: all rows must be alike.
    ///
    /// Its count measures the machine and the compiler.
    Reference,
    /// Spawn one ready task and join it, n times.
    Spawn,
    /// Spawn n tasks that each yield once, then join all.
    Burst,
    /// The main future yields n times.
    Yield,
    /// 1,000 tasks yield n/1,000 times each.
    Yield1000,
    /// The main future and a local task set a flag and wake each other in turn, n times.
    Two,
    /// Another thread wakes the main future, n times. The count is of both threads, and is not exact: it varies with how they meet.
    Wake,
    /// A sleep of 30 s, polled once and dropped, n times.
    Timer,
    /// n tasks sleep (i * 7919) mod 100,000 µs. The count is not exact: time decides how many timers fire at once.
    Fire,
    /// A timeout of 30 s around a future that is ready, n times.
    Timeout,
}

impl MemoryJob {
    pub fn name(self) -> String {
        name(&self)
    }

    /// One sentence about the job.
    pub fn describe(self) -> String {
        self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// Whether each run takes the same number of instructions.
    ///
    /// That is false where two threads meet and where time decides how many timers fire at once.
    pub fn is_exact(self) -> bool {
        !matches!(self, Self::Wake | Self::Fire)
    }
}

/// A job about latencies beside tasks that take much time. `latency/` has the jobs' bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LatencyJob {
    /// Tasks work for a while, yield, and go on: the lateness of `sleep(1 ms)` beside them.
    YieldPieces,
    /// Tasks whose every await is ready: the lateness of a timer of 10 ms beside them, or of `sleep(1 ms)` and an echo
    /// beside a connection that is always readable.
    ReadyLoop,
    /// Workers that are stuck in a task: the round trips of the other connections, and the lateness of timers.
    Stuck,
}

impl LatencyJob {
    pub fn name(self) -> String {
        name(&self)
    }

    /// One sentence about the job.
    pub fn describe(self) -> String {
        self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }
}

/// The name of a value on the command line.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
