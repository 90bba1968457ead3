//! Counting with strace and callgrind: their command lines, their output, and the runs that they count.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kittiwake_benches::{Handler, MemoryJob};

use super::args::Options;
use super::load::{Load, histogram};
use super::machine;
use super::plan::{Client, Runtime};
use super::programs::{self, Process};
use super::progress;
use super::server::Server;
use super::stats::per_operation;

/// The time in which an in-memory job must end, under valgrind too.
const PATIENCE: Duration = Duration::from_secs(120);

/// The tools that are installed.
#[derive(Clone, Copy)]
pub(crate) struct Tools {
    pub(crate) strace: bool,
    pub(crate) valgrind: bool,
    wrk: bool,
    h2load: bool,
}

impl Tools {
    pub(crate) fn find() -> Self {
        Self {
            strace: is_installed("strace", "-V"),
            valgrind: is_installed("valgrind", "--version"),
            wrk: is_installed("wrk", "-v"),
            h2load: is_installed("h2load", "--version"),
        }
    }

    /// Whether a client is installed.
    pub(crate) fn has(self, client: Client) -> bool {
        match client {
            Client::Wrk { .. } => self.wrk,
            Client::H2load { .. } => self.h2load,
        }
    }

    /// The measurements that are left out, and why.
    pub(crate) fn missing(self) -> Vec<String> {
        let strace = (!self.strace).then_some("strace is not installed: system calls are not counted");
        let valgrind = (!self.valgrind).then_some("valgrind is not installed: instructions are not counted");
        let wrk = (!self.wrk).then_some("wrk is not installed: the job http leaves out its loads");
        let h2load = (!self.h2load).then_some("h2load is not installed: the job http leaves out its load");
        [strace, valgrind, wrk, h2load].into_iter().flatten().map(str::to_owned).collect()
    }
}

/// A tool that counts events in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    SystemCalls,
    Instructions,
}

impl Counter {
    /// The words before the program's own command. The tool writes to `file`.
    pub(crate) fn command(self, file: &str) -> Vec<String> {
        let line = match self {
            // -I2 lets SIGTERM end strace, which then writes its table.
            Self::SystemCalls => "strace -I2 -f -c -o FILE",
            // --fair-sched makes threads run in turn. Without it one of two workers gets most of the time, by another
            // share in each run.
            Self::Instructions => {
                "valgrind --tool=callgrind --fair-sched=try --dump-instr=no --callgrind-out-file=FILE"
            }
        };
        line.split(' ').map(|word| word.replace("FILE", file)).collect()
    }

    /// The command, for the report.
    pub(crate) fn explain(self) -> String {
        let what = if self == Self::SystemCalls { "System calls" } else { "Instructions" };
        format!("{what}: `{} PROGRAM ARGUMENTS`, the difference of two run lengths.", self.command("FILE").join(" "))
    }

    /// Lets `run` start a program under the tool, and returns the tool's total.
    fn count(self, run: impl FnOnce(&[String]) -> Result<()>) -> Result<u64> {
        // The file is beside the programs, in a folder that this process can write.
        let file = tempfile::NamedTempFile::new_in(programs::folder()?)?;
        run(&self.command(&file.path().display().to_string()))?;
        let text = fs::read_to_string(file.path())?;
        let total = if self == Self::SystemCalls { strace_total(&text) } else { callgrind_total(&text) };
        total.context("the tool wrote no total")
    }
}

/// A server's count for each request: the difference of two runs, of `few` and of `many` requests.
///
/// strace slows a server down so much that the next request is usually there before the server looks for it, and the
/// server never has to wait. So the load makes requests for system calls in rounds: `round` requests at once, and the next
/// round after the last answer.
pub(crate) fn count_requests(
    counter: Counter,
    runtime: &Runtime,
    handler: Handler,
    options: &Options,
    (few, many): (u64, u64),
    round: u64,
    open: &dyn Fn(&Server) -> Result<Box<dyn Load>>,
) -> Result<f64> {
    let run = |requests: u64| {
        progress::step(&format!("{}: {counter:?} of {requests} requests", runtime.name));
        let round = if counter == Counter::SystemCalls { round } else { requests };
        counter.count(|tool| {
            let mut server = Server::start(runtime, handler, options, tool)?;
            let outcome = open(&server).and_then(|mut load| {
                let mut latency = histogram();
                (0..requests / round).try_for_each(|_| load.slice(Duration::MAX, round, &mut latency).map(drop))
            });
            outcome.map_err(|error| server.explain(error))?;
            // The connections are closed now. The pause lets the server notice it, in both runs.
            thread::sleep(Duration::from_millis(100));
            server.stop()
        })
    };
    Ok(per_operation((few, run(few)?), (many, run(many)?)))
}

/// The instructions of one operation of an in-memory job: the difference of n and 2n operations.
pub(crate) fn count_operations(runtime: &Runtime, job: MemoryJob, n: u64) -> Result<f64> {
    let cores = machine::all_cores();
    let run = |n| Counter::Instructions.count(|tool| run_memory(tool, &cores, runtime, job, n).map(drop));
    Ok(per_operation((n, run(n)?), (2 * n, run(2 * n)?)))
}

/// Runs an in-memory job, under `tool` if there is one. Returns the nanoseconds that the program printed.
pub(crate) fn run_memory(tool: &[String], cores: &str, runtime: &Runtime, job: MemoryJob, n: u64) -> Result<u64> {
    let program = runtime.memory.with_context(|| format!("{} has no in-memory jobs", runtime.name))?;
    let mut process = Process::start(tool, program, &["--cores", cores, "memory", &job.name(), &n.to_string()])?;
    let status = process.wait(PATIENCE).with_context(|| format!("{} in job {}", runtime.name, job.name()))?;
    ensure!(status.success(), "{} ended ({status}) in job {}: {}", runtime.name, job.name(), process.said());
    let mut printed = String::new();
    process.stdout()?.read_to_string(&mut printed)?;
    printed.trim().parse().with_context(|| format!("{} printed no time but {:?}", runtime.name, printed.trim()))
}

/// The sum of the column `calls` of strace's table. The line of totals differs between versions.
fn strace_total(text: &str) -> Option<u64> {
    let header = text.lines().find(|line| line.trim_start().starts_with("% time"))?;
    // "% time" is two words, but one column.
    let column = header.split_whitespace().skip(1).position(|word| word == "calls")?;
    let calls = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_row = words.first().is_some_and(|word| word.parse::<f64>().is_ok());
        if is_row && words.last() != Some(&"total") { words.get(column)?.parse::<u64>().ok() } else { None }
    });
    Some(calls.sum())
}

/// callgrind's total of instructions over all threads.
fn callgrind_total(text: &str) -> Option<u64> {
    let totals = text.lines().rev().find_map(|line| line.strip_prefix("totals:"))?;
    totals.split_whitespace().next()?.parse().ok()
}

fn is_installed(program: &str, version: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(version).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // wrk prints its version and then ends with a failure.
    command.status().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strace_calls_are_summed() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.93    0.000131           4        32           sendto
 39.07    0.000084           1        65        33 recvfrom
  0.00    0.000000           0         3           epoll_wait
------ ----------- ----------- --------- --------- ----------------
100.00    0.000215           2       100        33 total
";
        assert_eq!(strace_total(text), Some(100));
        assert_eq!(strace_total("strace: cannot trace"), None);
    }

    #[test]
    fn callgrind_total_is_the_first_event() {
        assert_eq!(callgrind_total("events: Ir\nsummary: 12\n\ntotals: 3456\n"), Some(3456));
        assert_eq!(callgrind_total("totals: 7 8 9\n"), Some(7));
        assert_eq!(callgrind_total("events: Ir\n"), None);
    }
}
