//! The command line of a benchmark program, its listening socket, and its exit.
//!
//! A server prints its address on standard output and serves until a signal ends it, normally SIGTERM. The driver sends
//! SIGTERM at the end of a job, and the kernel sends it if the driver dies earlier. No thread of the server waits for the
//! signal, because a second thread would change the figures: libc has shorter paths for processes with one thread.

use std::fmt::Display;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::exit;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, Socket, Type};

use crate::jobs::{Handler, LatencyJob, MemoryJob};
use crate::memory;

/// The length of the accept queue: more connections than any job opens at once.
const BACKLOG: i32 = 4096;

/// A benchmark program. The driver starts it: use `cargo run --release` in benches/.
#[derive(Debug, Parser)]
pub struct Program {
    /// The cores to pin this process to.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Worker threads, for runtimes that can have several.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// The interface to the kernel or the kind of runtime, for runtimes that have several.
    #[arg(long)]
    pub driver: Option<String>,
    /// Microseconds to spin before blocking, for runtimes with such a setting.
    #[arg(long)]
    pub spin: Option<u64>,
    #[command(subcommand)]
    pub task: Task,
}

/// The kinds of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Task {
    /// Serve connections until a signal comes.
    Serve { handler: Handler },
    /// Do an in-memory job n times and print the nanoseconds.
    Memory { job: MemoryJob, n: u64 },
    /// Do a latency job whose cases last so many milliseconds, and print the samples.
    Latency { job: LatencyJob, millis: u64 },
}

impl Program {
    /// Reads the arguments and pins this process to the cores that they name. Does the reference loop itself, and exits,
    /// if that is the job. Exits if the arguments are wrong.
    pub fn start() -> Self {
        let program = Self::parse();
        if !program.cores.is_empty() {
            pin(&program.cores);
        }
        if let Task::Memory { job: MemoryJob::Reference, n } = program.task {
            let start = Instant::now();
            memory::reference(n);
            println!("{}", start.elapsed().as_nanos());
            exit(0);
        }
        program
    }

    /// The handler to serve with. Exits if the task is an in-memory job, needs the runtime's own accept loop, or is HTTP.
    pub fn handler(&self) -> Handler {
        match self.task {
            Task::Serve { handler } if handler != Handler::Guarded && !handler.is_http() => handler,
            _ => self.refuse(),
        }
    }

    /// The version of HTTP to serve. Exits if the task is another.
    pub fn http_handler(&self) -> Handler {
        match self.task {
            Task::Serve { handler } if handler.is_http() => handler,
            _ => self.refuse(),
        }
    }

    /// The in-memory job, and how often to do it. Exits if the task is to serve.
    pub fn memory(&self) -> (MemoryJob, u64) {
        let Task::Memory { job, n } = self.task else { self.refuse() };
        (job, n)
    }

    /// Exits: this program has no such task or driver.
    pub fn refuse(&self) -> ! {
        fail("this program cannot do this", format!("{self:?}"))
    }
}

/// Opens a non-blocking listening socket on a port that the system picks, and prints its address on standard output. From
/// then on this process ends when its parent does.
pub fn listen() -> TcpListener {
    or_fail("cannot tie this process to its parent", set_parent_process_death_signal(Some(Signal::TERM)));
    or_fail("cannot listen on 127.0.0.1", open())
}

fn open() -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from(socket);
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(listener)
}

/// Takes the value, or prints `what` failed with which error and exits.
pub fn or_fail<T, E: Display>(what: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| fail(what, error))
}

/// Prints `what` failed and why, and exits.
pub fn fail(what: &str, why: impl Display) -> ! {
    eprintln!("{what}: {why}");
    exit(2);
}

/// Keeps this thread busy for `duration`.
pub fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Pins the calling thread, and the threads that it starts later, to these cores.
pub fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    or_fail(&format!("cannot pin to cores {cores:?}; see --server-core"), sched_setaffinity(None, &set));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Program, clap::Error> {
        Program::try_parse_from(std::iter::once("program").chain(line.split_whitespace()))
    }

    #[test]
    fn options_come_before_the_task() {
        let program = parsed("--cores 0,1 --workers 2 --driver epoll --spin 7 serve echo-64").unwrap();
        assert_eq!(program.task, Task::Serve { handler: Handler::Echo64 });
        assert_eq!((program.cores, program.workers, program.spin), (vec![0, 1], 2, Some(7)));
        assert_eq!(program.driver.as_deref(), Some("epoll"));
    }

    #[test]
    fn job_names_are_understood() {
        let program = parsed(&format!("memory {} 10", MemoryJob::Yield1000.name())).unwrap();
        assert_eq!(program.task, Task::Memory { job: MemoryJob::Yield1000, n: 10 });
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for line in ["", "serve", "serve nothing", "memory spawn", "memory spawn x", "--cores a serve slow"] {
            assert!(parsed(line).is_err(), "{line:?} was accepted");
        }
    }
}
