//! A benchmark program's arguments, its listening socket, and its end.
//!
//! A server prints its address on standard output and serves until a signal ends it, SIGTERM as a rule: from the driver
//! when a job is over, or from the kernel if the driver dies before. No thread waits for that, because a second thread
//! would change what is measured: libc has shorter paths for processes with one.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::exit;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, Socket, Type};

use crate::jobs::{Handler, MemoryJob};
use crate::memory;

/// Connections that may wait to be accepted: more than any job opens at once.
const BACKLOG: i32 = 4096;

const USAGE: &str = "arguments: [--cores LIST] [--workers N] [--driver NAME] [--spin MICROSECONDS] serve HANDLER
   or:      [the same options] memory JOB N
The driver starts these programs: `cargo run --release` in benches/";

/// What a program was asked to do, and how.
#[derive(Debug)]
pub struct Program {
    pub task: Task,
    /// Worker threads, for runtimes that have several.
    pub workers: usize,
    /// The interface to the kernel, for runtimes that have several.
    pub driver: Option<String>,
    /// How long to look for events before blocking, for runtimes that can be told.
    pub spin: Option<Duration>,
}

/// The two kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Serve(Handler),
    Memory(MemoryJob, u64),
}

impl Program {
    /// Reads the arguments, pins this process to the cores that they name, and does the reference loop itself if
    /// that is the job. Ends the process if the arguments are wrong.
    pub fn start() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let (program, cores) = parse(&arguments).unwrap_or_else(|| fail(USAGE));
        if !cores.is_empty() {
            pin(&cores);
        }
        if let Task::Memory(MemoryJob::Reference, n) = program.task {
            let clock = memory::Stopwatch::start();
            memory::reference(n);
            clock.report();
            exit(0);
        }
        program
    }

    /// The handler to serve with. Ends the process if it was asked for something else, or for what has its own programs.
    pub fn handler(&self) -> Handler {
        match self.task {
            Task::Serve(handler) if handler != Handler::Guarded => handler,
            _ => self.refuse(),
        }
    }

    /// The in-memory job, and how often to do it. Ends the process if it was asked for something else.
    pub fn memory(&self) -> (MemoryJob, u64) {
        let Task::Memory(job, n) = self.task else { self.refuse() };
        (job, n)
    }

    /// Ends the process: this program has no such task or driver.
    pub fn refuse(&self) -> ! {
        fail(&format!("this program cannot do what was asked of it: {self:?}"))
    }
}

/// A listening socket, non-blocking, on a port that the system picks; its address goes to standard output. From now
/// on the process ends when the one that started it does.
pub fn listen() -> TcpListener {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        fail(&format!("cannot bind this process to the life of its parent: {error}"));
    }
    let listener = open().unwrap_or_else(|error| fail(&format!("cannot listen on 127.0.0.1: {error}")));
    let address = listener.local_addr().unwrap_or_else(|error| fail(&format!("cannot read the address: {error}")));
    println!("{address}");
    std::io::stdout().flush().unwrap_or_else(|error| fail(&format!("cannot print the address: {error}")));
    listener
}

/// Says why and ends the process.
pub fn fail(why: &str) -> ! {
    eprintln!("{why}");
    exit(2);
}

/// Keeps this thread busy for `duration`.
pub fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Binds the calling thread, and those it will start, to these cores.
pub fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    if let Err(error) = sched_setaffinity(None, &set) {
        fail(&format!("cannot pin to cores {cores:?}: {error}; name cores that this machine has with --server-core"));
    }
}

fn open() -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn parse(arguments: &[String]) -> Option<(Program, Vec<usize>)> {
    let mut cores = Vec::new();
    let mut program = Program { task: Task::Serve(Handler::Echo4K), workers: 1, driver: None, spin: None };
    let mut rest = arguments.iter().map(String::as_str);
    loop {
        match rest.next()? {
            "--cores" => cores = rest.next()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?,
            "--workers" => program.workers = rest.next()?.parse().ok()?,
            "--driver" => program.driver = Some(rest.next()?.to_owned()),
            "--spin" => program.spin = Some(Duration::from_micros(rest.next()?.parse().ok()?)),
            "serve" => program.task = Task::Serve(Handler::from_name(rest.next()?)?),
            "memory" => program.task = Task::Memory(MemoryJob::from_name(rest.next()?)?, rest.next()?.parse().ok()?),
            _ => return None,
        }
        if rest.len() == 0 {
            return Some((program, cores));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<(Program, Vec<usize>)> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_come_before_the_task() {
        let (program, cores) = parsed("--cores 0,1 --workers 2 --driver epoll serve echo-64").unwrap();
        assert_eq!((program.task, program.workers, cores), (Task::Serve(Handler::Echo64), 2, vec![0, 1]));
        assert_eq!(program.driver.as_deref(), Some("epoll"));
    }

    #[test]
    fn every_job_has_a_name_that_is_understood() {
        for job in MemoryJob::ALL {
            let (program, _) = parsed(&format!("memory {} 10", job.name())).unwrap();
            assert_eq!(program.task, Task::Memory(job, 10));
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for line in ["", "serve", "serve nothing", "memory spawn", "memory spawn x", "--cores a serve slow", "help"] {
            assert!(parsed(line).is_none(), "{line:?} was taken");
        }
    }
}
