//! The driver's top level. The comment of `main.rs` describes how it measures.

mod args;
mod chart;
mod check;
mod in_memory;
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

use anyhow::Result;

use args::Options;
use machine::Machine;
use plan::{Job, Runtime};
use report::Report;
use tools::Tools;

/// Executes the command line. Returns true if all went well.
pub(crate) fn run() -> Result<bool> {
    let options = Options::read()?;
    if options.list {
        print!("{}", plan::list());
        return Ok(true);
    }
    if let Some(file) = &options.check {
        return check::check(file.as_deref(), &options, Tools::find());
    }
    if let Some(file) = &options.record {
        return check::record(file.as_deref(), &options, Tools::find());
    }
    measure(&options)
}

fn measure(options: &Options) -> Result<bool> {
    server::raise_descriptor_limit()?;
    let jobs = options.jobs()?;
    let mut runtimes = options.runtimes()?;
    programs::build(&programs(&jobs, &runtimes))?;
    let tools = Tools::find();
    kittiwake_benches::program::pin(&[options.load_core]);
    let mut report = Report::new(options, Machine::read(), &tools.missing());
    if jobs.iter().any(Job::is_on_sockets) {
        report.leave_out(&server::without_io_uring(&mut runtimes, options));
    }

    for (done, job) in jobs.iter().enumerate() {
        progress::say(&format!("job {} of {}: {}", done + 1, jobs.len(), job.name()));
        let outcome = match job {
            Job::Memory(job) => in_memory::run(*job, &runtimes, options, tools),
            Job::Socket(job) => sockets::run(job, &runtimes, options, tools),
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
    let needed = |job: &Job| {
        let on_sockets = job.is_on_sockets();
        runtimes.iter().filter_map(move |runtime| if on_sockets { runtime.serve } else { runtime.memory })
    };
    let mut programs: Vec<&str> = jobs.iter().flat_map(needed).collect();
    programs.sort_unstable();
    programs.dedup();
    programs
}
