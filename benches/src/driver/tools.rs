//! What strace and callgrind count: the outside of both, and the reading of what they print.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kittiwake_benches::{Handler, MemoryJob};

use super::args::Options;
use super::load::{Load, Until, histogram};
use super::machine;
use super::plan::Runtime;
use super::server::Server;
use super::stats::per_operation;
use super::{build, progress};

/// The tools that are installed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tools {
    pub(crate) strace: bool,
    pub(crate) valgrind: bool,
}

impl Tools {
    pub(crate) fn find() -> Self {
        Self { strace: is_installed("strace", "-V"), valgrind: is_installed("valgrind", "--version") }
    }

    /// What is not there, and what is left out for it.
    pub(crate) fn missing(self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.strace {
            missing.push("strace is not installed: system calls are not counted".to_owned());
        }
        if !self.valgrind {
            missing.push("valgrind is not installed: instructions are not counted".to_owned());
        }
        missing
    }
}

/// A tool that counts what a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    SystemCalls,
    Instructions,
}

impl Counter {
    /// The command before the program's own, writing to `file`.
    pub(crate) fn command(self, file: &str) -> Vec<String> {
        let words: &[&str] = match self {
            // -I2: it ends, with its table written, when it is told to.
            Self::SystemCalls => &["strace", "-I2", "-f", "-c", "-o", file],
            // --fair-sched: threads run in turn. Without it one of two workers gets most of the time, and how much that is
            // another thing in each run.
            Self::Instructions => &[
                "valgrind",
                "--tool=callgrind",
                "--fair-sched=try",
                "--dump-instr=no",
                &format!("--callgrind-out-file={file}"),
            ],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// The command, for the report.
    pub(crate) fn explain(self) -> String {
        let what = match self {
            Self::SystemCalls => "System calls",
            Self::Instructions => "Instructions",
        };
        format!("{what}: `{} PROGRAM ARGUMENTS`, the difference of two run lengths.", self.command("FILE").join(" "))
    }

    fn total(self, text: &str) -> Option<u64> {
        match self {
            Self::SystemCalls => strace_total(text),
            Self::Instructions => callgrind_total(text),
        }
    }

    fn read(self, file: &Path) -> Result<u64> {
        let text = fs::read_to_string(file).with_context(|| format!("the tool wrote no {}", file.display()))?;
        self.total(&text).with_context(|| format!("{} has no total", file.display()))
    }
}

/// What a server does for each request: the difference of two runs, of `few` and of `many` requests.
///
/// strace makes a server so slow that the next request would mostly be there before it looks for it, and it would
/// never have to wait. So system calls are counted in rounds: `round` requests at once, and the next when all are answered.
pub(crate) fn count_requests(
    counter: Counter,
    runtime: &Runtime,
    handler: Handler,
    options: &Options,
    (few, many): (u64, u64),
    round: u64,
    open: &dyn Fn(&Server) -> Result<Box<dyn Load>>,
) -> Result<f64> {
    let mut totals = [0; 2];
    for (total, requests) in totals.iter_mut().zip([few, many]) {
        progress::step(&format!("{}: {counter:?} of {requests} requests", runtime.name));
        let file = Scratch::new()?;
        let mut server = Server::start(runtime, handler, options, &counter.command(&file.name()))?;
        let round = if counter == Counter::SystemCalls { round } else { requests };
        let outcome = open(&server).and_then(|mut load| {
            let mut latency = histogram();
            (0..requests / round).try_for_each(|_| load.slice(Until::Requests(round), &mut latency).map(drop))
        });
        outcome.map_err(|error| server.explain(error))?;
        // The connections are closed now; let the server see it, in both runs.
        thread::sleep(Duration::from_millis(100));
        server.stop()?;
        *total = counter.read(&file.path)?;
    }
    Ok(per_operation((few, totals[0]), (many, totals[1])))
}

/// What a program's in-memory job takes for each operation: the difference of n and 2n.
pub(crate) fn count_operations(runtime: &Runtime, job: MemoryJob, n: u64) -> Result<f64> {
    let mut totals = [0; 2];
    for (total, n) in totals.iter_mut().zip([n, 2 * n]) {
        let file = Scratch::new()?;
        let tool = Counter::Instructions.command(&file.name());
        run_memory(&tool, &machine::all_cores(), runtime, job, n)?;
        *total = Counter::Instructions.read(&file.path)?;
    }
    Ok(per_operation((n, totals[0]), (2 * n, totals[1])))
}

/// Runs an in-memory job, as the last arguments of `tool` if there is one. Returns the nanoseconds that the program printed.
pub(crate) fn run_memory(tool: &[String], cores: &str, runtime: &Runtime, job: MemoryJob, n: u64) -> Result<u64> {
    let program = build::path(runtime.memory.with_context(|| format!("{} has no in-memory jobs", runtime.name))?)?;
    let mut command = build::under(tool, &program);
    command.args(["--cores", cores, "memory", job.name(), &n.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let (status, printed, said) =
        Ending(child).wait().with_context(|| format!("{} in job {}", runtime.name, job.name()))?;
    ensure!(status.success(), "{} ended ({status}) in job {}: {}", runtime.name, job.name(), said.trim());
    printed.trim().parse().with_context(|| format!("{} printed no time but {:?}", runtime.name, printed.trim()))
}

/// A child that ends by itself, soon, or is ended.
struct Ending(Child);

impl Ending {
    /// Waits for the end. Returns the status, the standard output and the standard error; both are short.
    fn wait(mut self) -> Result<(ExitStatus, String, String)> {
        const PATIENCE: Duration = Duration::from_secs(120);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "it did not end within {PATIENCE:?}");
            thread::sleep(Duration::from_micros(500));
        };
        let (mut printed, mut said) = (String::new(), String::new());
        self.0.stdout.take().context("a pipe")?.read_to_string(&mut printed)?;
        self.0.stderr.take().context("a pipe")?.read_to_string(&mut said)?;
        Ok((status, printed, said))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file for a tool's output, removed in the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Beside the programs, wherever these are built.
    fn new() -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("counts.{}.{number}", std::process::id());
        Ok(Self { path: std::env::current_exe()?.with_file_name(name) })
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The column `calls` of strace's table, summed: its line of totals differs between versions.
fn strace_total(text: &str) -> Option<u64> {
    let header = text.lines().find(|line| line.trim_start().starts_with("% time"))?;
    // "% time" is two words and one column.
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
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_strace_are_summed_with_and_without_errors() {
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
    fn the_total_of_callgrind_is_its_first_event() {
        assert_eq!(callgrind_total("events: Ir\nsummary: 12\n\ntotals: 3456\n"), Some(3456));
        assert_eq!(callgrind_total("totals: 7 8 9\n"), Some(7));
        assert_eq!(callgrind_total("events: Ir\n"), None);
    }
}
