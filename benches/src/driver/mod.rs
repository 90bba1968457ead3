//! The order of things; see the crate's first page for how it measures.

mod args;
mod build;
mod chart;
mod check;
mod in_memory;
mod load;
mod machine;
mod plan;
mod progress;
mod report;
mod server;
mod sockets;
mod stats;
mod table;
mod tools;

use anyhow::Result;

use args::{Action, Options};
use machine::Machine;
use plan::{Job, Runtime};
use report::Report;
use tools::Tools;

/// Does what the command line asks for. Returns whether all went well.
pub(crate) fn run() -> Result<bool> {
    let options = Options::parse()?;
    match &options.action {
        Action::Help => {
            print!("{}", args::HELP);
            Ok(true)
        }
        Action::List => {
            print!("{}", plan::list());
            Ok(true)
        }
        Action::Check(file) => check::check(file, &Tools::find()),
        Action::Record(file) => check::record(file, &Tools::find()),
        Action::Measure => measure(&options),
    }
}

fn measure(options: &Options) -> Result<bool> {
    server::raise_descriptor_limit()?;
    let jobs = options.jobs()?;
    let mut runtimes = options.runtimes()?;
    build::build(&programs(&jobs, &runtimes))?;
    let tools = Tools::find();
    kittiwake_benches::program::pin(&[options.load_core]);
    let mut report = Report::new(options, Machine::read(), tools.missing());
    if jobs.iter().any(|job| matches!(job, Job::Socket(_))) {
        report.leave_out(&server::without_io_uring(&mut runtimes, options));
    }

    for (done, job) in jobs.iter().enumerate() {
        progress::say(&format!("job {} of {}: {}", done + 1, jobs.len(), job.name()));
        let outcome = match job {
            Job::Memory(job) => in_memory::run(*job, &runtimes, options, &tools),
            Job::Socket(job) => sockets::run(job, &runtimes, options, &tools),
        };
        match outcome {
            Ok(sections) => report.add(job.name(), sections)?,
            Err(error) => report.failed(job.name(), &error),
        }
    }
    progress::done();
    report.finish()
}

/// The programs that the jobs need.
fn programs(jobs: &[Job], runtimes: &[Runtime]) -> Vec<&'static str> {
    let sockets = jobs.iter().any(|job| matches!(job, Job::Socket(_)));
    let memory = jobs.iter().any(|job| matches!(job, Job::Memory(_)));
    let serving = runtimes
        .iter()
        .flat_map(|runtime| [runtime.serve, runtime.idle, runtime.guarded])
        .flatten()
        .filter(|_| sockets);
    let in_memory = runtimes.iter().filter_map(|runtime| runtime.memory).filter(|_| memory);
    serving.chain(in_memory).collect()
}
