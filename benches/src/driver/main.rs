//! The driver: builds the programs, runs them in turns, measures them, and writes a report.
//!
//! # A socket job
//! One server process per runtime lives for the whole job, pinned to one core. The load runs in this process, on another
//! core, as a closed loop: each connection sends its next request when it has the answer to the last. Time is cut into
//! short slices that go round the runtimes, A B C A B C, so other work of the machine affects all of them alike. A slice
//! gives the number of answers, the server's own CPU time (`/proc/<pid>/task/*/schedstat`) and the latencies.
//!
//! In the job `http` the load is a program of its own, which this process starts for each slice.
//!
//! # A latency job
//! A program does all cases of the job once and prints its samples. It is not pinned, and its clients are its own threads.
//! The runtimes take turns.
//!
//! # Ratios slice by slice
//! A shared machine is fast for some seconds and slow for others, by more than the runtimes differ. Two neighbouring
//! slices meet the same machine, so their ratio is more reliable than the ratio of two averages. The table gives the
//! median of these ratios with a bootstrap interval. It also compares a second process of the floor with the first: the
//! distance from 1 is the machine's noise.
//!
//! # Counts
//! System calls (`strace -c -f`) and user-space instructions (callgrind) are the difference of two runs, of n operations
//! and of more, so that start and end cancel. The timed runs are separate.
//!
//! # Files
//! `args` is the command line, and `plan` has the tables of runtimes and jobs. `sockets`, `in_memory` and
//! `latency` do the three kinds of jobs, and `http` does the job of that name. `load` is the load generator, `client` starts
//! wrk and h2load, `programs` and `server` are the child processes, and `tools` is strace and
//! callgrind. `stats` has medians and intervals. `table`, `chart` and `report` are the output, and `check` compares the
//! recorded instruction counts.

mod args;
mod chart;
mod check;
mod client;
mod http;
mod in_memory;
mod latency;
mod load;
mod machine;
mod plan;
mod programs;
mod progress;
mod report;
mod server;
mod sockets;
mod stats;
mod table;
mod tools;

use std::process::ExitCode;

use anyhow::Result;

use args::Options;
use machine::Machine;
use plan::{Job, Kind, Runtime, SocketJob};
use report::Report;
use tools::Tools;

fn main() -> ExitCode {
    let outcome = run();
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}");
    }
    if outcome.is_ok_and(|all_is_well| all_is_well) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Executes the command line. Returns false if a job failed or a count is too high.
fn run() -> Result<bool> {
    let options = Options::read()?;
    if options.list {
        print!("{}", plan::list());
        Ok(true)
    } else if let Some(file) = &options.check {
        check::check(file.as_deref(), &options, Tools::find())
    } else if let Some(file) = &options.record {
        check::record(file.as_deref(), &options, Tools::find())
    } else {
        measure(&options)
    }
}

/// Does the jobs and writes the report. Returns true if no job failed.
fn measure(options: &Options) -> Result<bool> {
    server::raise_descriptor_limit()?;
    let jobs = options.jobs()?;
    let mut runtimes = options.runtimes()?;
    programs::build(&programs(&jobs, &runtimes))?;
    let tools = Tools::find();
    kittiwake_benches::program::pin(&[options.load_core]);
    let mut report = Report::new(options, Machine::read(), &tools.missing())?;
    let needs_io_uring = |job: &Job| runtimes.iter().any(|on| on.is_on_io_uring() && job.program(on).is_some());
    if jobs.iter().any(needs_io_uring) {
        report.leave_out(&server::without_io_uring(&mut runtimes, options));
    }

    for (done, job) in jobs.iter().enumerate() {
        progress::say(&format!("job {} of {}: {}", done + 1, jobs.len(), job.name()));
        let outcome = match job {
            Job::Memory(job) => in_memory::run(*job, &runtimes, options, tools),
            Job::Socket(job @ SocketJob { kind: Kind::Http(_), .. }) => http::run(job, &runtimes, options, tools),
            Job::Socket(job) => sockets::run(job, &runtimes, options, tools),
            Job::Latency(job) => latency::run(*job, &runtimes, options),
        };
        match outcome {
            Ok(sections) => report.add(&job.name(), sections)?,
            Err(error) => report.add_failure(&job.name(), &error),
        }
    }
    progress::done();
    report.finish()
}

/// The programs that the jobs need.
fn programs(jobs: &[Job], runtimes: &[Runtime]) -> Vec<&'static str> {
    let needed = |job: &Job| runtimes.iter().filter_map(|runtime| job.program(runtime)).collect::<Vec<_>>();
    let mut programs: Vec<&str> = jobs.iter().flat_map(needed).collect();
    programs.sort_unstable();
    programs.dedup();
    programs
}
