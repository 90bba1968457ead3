//! The names of what a program can be asked to do, for the driver that asks and the programs that do it.

use std::time::Duration;

/// How long the slow handler keeps its thread busy for each request.
pub const SLOW: Duration = Duration::from_micros(20);

/// What a server does with each connection; `session.rs` has how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Sends back what it reads, with a buffer of 64 bytes: for idle connections.
    Echo64,
    /// The same with a buffer of 4 KiB: for small messages, which then come in one read.
    Echo4K,
    /// The same with a buffer of 64 KiB: for large messages.
    Echo64K,
    /// Reads into 64 KiB until the client has sent all, then answers with the number of bytes: 8, little endian.
    Discard,
    /// [`Echo4K`](Self::Echo4K) that spins [`SLOW`] before each answer.
    Slow,
    /// [`Echo4K`](Self::Echo4K) as a server in production has it: with a read timeout on the stream, and the runtime's own accept
    /// loop, if it has such things. In a program of its own.
    Guarded,
}

impl Handler {
    pub const ALL: [Self; 6] = [Self::Echo64, Self::Echo4K, Self::Echo64K, Self::Discard, Self::Slow, Self::Guarded];

    pub fn name(self) -> &'static str {
        match self {
            Self::Echo64 => "echo-64",
            Self::Echo4K => "echo-4096",
            Self::Echo64K => "echo-65536",
            Self::Discard => "discard",
            Self::Slow => "slow",
            Self::Guarded => "guarded",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|handler| handler.name() == name)
    }

    /// The size of its buffer.
    pub fn buffer(self) -> usize {
        match self {
            Self::Echo64 => 64,
            Self::Echo4K | Self::Slow | Self::Guarded => 4096,
            Self::Echo64K | Self::Discard => 65536,
        }
    }
}

/// A job that needs no socket. `memory.rs` has their bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryJob {
    /// A fixed loop of integer arithmetic, the same in every program: a measure of the machine and compiler.
    Reference,
    /// Spawn one ready task and join it.
    Spawn,
    /// Spawn n tasks that each yield once, then join all.
    Burst,
    /// The main future yields.
    Yield,
    /// 1,000 tasks yield n/1,000 times each.
    Yield1000,
    /// The main future and a local task set a flag and wake each other in turn.
    Two,
    /// The main future waits until another thread wakes it.
    Wake,
    /// Arm a timer of 30 s by one poll, and drop it.
    Timer,
    /// n tasks sleep (i * 7919) mod 100,000 µs.
    Fire,
    /// A timeout of 30 s around a future that is ready.
    Timeout,
}

impl MemoryJob {
    pub const ALL: [Self; 10] = [
        Self::Reference,
        Self::Spawn,
        Self::Burst,
        Self::Yield,
        Self::Yield1000,
        Self::Two,
        Self::Wake,
        Self::Timer,
        Self::Fire,
        Self::Timeout,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Spawn => "spawn",
            Self::Burst => "burst",
            Self::Yield => "yield",
            Self::Yield1000 => "yield1000",
            Self::Two => "two",
            Self::Wake => "wake",
            Self::Timer => "timer",
            Self::Fire => "fire",
            Self::Timeout => "timeout",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|job| job.name() == name)
    }

    /// Whether each run takes the same instructions: not where two threads meet as they happen to, nor where time decides
    /// how many timers fire at once.
    pub fn is_exact(self) -> bool {
        !matches!(self, Self::Wake | Self::Fire)
    }

    /// Whether a runtime needs timers for it.
    pub fn needs_timers(self) -> bool {
        matches!(self, Self::Timer | Self::Fire | Self::Timeout)
    }
}
