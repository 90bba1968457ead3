//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use clap::builder::PossibleValuesParser as OneOf;

use super::machine;
use super::plan::{self, Job, Runtime};

const WHAT: &str = "What to measure";
const HOW: &str = "How";
const COUNTS: &str =
    "Recorded instruction counts of kittiwake (these need valgrind, and of the options above use only the cores)";

/// kittiwake beside other runtimes: the same jobs, the same load, side by side.
#[derive(Debug, Parser)]
#[command(override_usage = "cargo run --release -- [OPTIONS]")]
pub(crate) struct Options {
    /// Take few and short slices and few counts: under two minutes, for a look, not for figures to quote
    #[arg(long, help_heading = WHAT)]
    pub(crate) quick: bool,
    /// Do these jobs only; --list names them
    #[arg(long, help_heading = WHAT, value_name = "A,B", value_delimiter = ',', hide_possible_values = true)]
    #[arg(value_parser = OneOf::new(plan::job_names()))]
    jobs: Vec<String>,
    /// Measure these runtimes and the floor only
    #[arg(long, help_heading = WHAT, value_name = "A,B", value_delimiter = ',', hide_possible_values = true)]
    #[arg(value_parser = OneOf::new(plan::RUNTIMES.map(|runtime| runtime.name)))]
    only_runtimes: Vec<String>,
    /// Do the in-memory jobs only
    #[arg(long, help_heading = WHAT, conflicts_with = "sockets")]
    memory: bool,
    /// Do the socket jobs only
    #[arg(long, help_heading = WHAT)]
    sockets: bool,
    /// Print the names of jobs and runtimes
    #[arg(long, help_heading = WHAT)]
    pub(crate) list: bool,

    /// Slices for each runtime and job [default: 60; 15 for the think-time job]
    #[arg(long, help_heading = HOW, value_name = "N")]
    slices: Option<NonZeroUsize>,
    /// The length of a slice [default: 250]
    #[arg(long, help_heading = HOW, value_name = "N")]
    slice_ms: Option<u64>,
    /// The runtime to compare the others with in the socket jobs
    #[arg(long, help_heading = HOW, value_name = "NAME", hide_possible_values = true, default_value = plan::FLOOR)]
    #[arg(value_parser = OneOf::new(plan::RUNTIMES.iter().filter(|runtime| runtime.serve.is_some()).map(|runtime| runtime.name)))]
    floor: String,
    /// The core for servers with one worker
    #[arg(long, help_heading = HOW, value_name = "N", default_value_t = machine::cores()[0])]
    pub(crate) server_core: usize,
    /// The core for the load
    #[arg(long, help_heading = HOW, value_name = "N", default_value_t = machine::cores()[machine::cores().len() - 1])]
    pub(crate) load_core: usize,
    /// Put the load and all servers on the servers' core, including servers with several workers
    #[arg(long, help_heading = HOW)]
    one_core: bool,
    /// Count no system calls and no instructions: run neither strace nor callgrind
    #[arg(long, help_heading = HOW)]
    pub(crate) no_counts: bool,
    /// The folder for report.md and the charts [default: target/report]
    #[arg(long, help_heading = HOW, value_name = "DIR", hide_default_value = true)]
    #[arg(default_value_os_t = package_folder().join("target/report"))]
    pub(crate) out: PathBuf,

    /// Fail if a count is too far above the recorded one [default file: instructions.json]
    #[arg(long, help_heading = COUNTS, value_name = "FILE", require_equals = true)]
    pub(crate) check: Option<Option<PathBuf>>,
    /// Percent by which a count may be above the recorded one
    #[arg(long, help_heading = COUNTS, value_name = "PERCENT", requires = "check", default_value = "10")]
    #[arg(value_parser = percent, allow_negative_numbers = true)]
    pub(crate) tolerance: f64,
    /// Write the recorded counts anew [default file: instructions.json]
    #[arg(long, help_heading = COUNTS, value_name = "FILE", require_equals = true, conflicts_with = "check")]
    pub(crate) record: Option<Option<PathBuf>>,
}

impl Options {
    /// Reads the command line. Exits after `--help` and after arguments that clap refuses.
    pub(crate) fn read() -> Result<Self> {
        let cores = machine::cores();
        let mut options = Self::parse();
        if options.one_core {
            options.load_core = options.server_core;
        }
        for core in [options.server_core, options.load_core] {
            ensure!(cores.contains(&core), "this process may not use core {core}, only the cores {cores:?}");
        }
        Ok(options)
    }

    /// The jobs to do, in the order of the plan.
    pub(crate) fn jobs(&self) -> Result<Vec<Job>> {
        let wanted = |job: &Job| {
            let left_out = if job.is_on_sockets() { self.memory } else { self.sockets };
            let named = self.jobs.contains(&job.name());
            !left_out && (named || self.jobs.is_empty() && (!self.quick || job.is_quick()))
        };
        let jobs: Vec<Job> = plan::jobs().filter(wanted).collect();
        ensure!(!jobs.is_empty(), "--memory or --sockets leaves out all of these jobs");
        Ok(jobs)
    }

    /// The runtimes to measure, the floor first.
    pub(crate) fn runtimes(&self) -> Result<Vec<Runtime>> {
        let wanted = |runtime: &Runtime| {
            let named = self.only_runtimes.is_empty() || self.only_runtimes.iter().any(|name| name == runtime.name);
            (cfg!(feature = "peers") || !runtime.peer) && (named || runtime.name == self.floor)
        };
        let mut runtimes: Vec<Runtime> = plan::RUNTIMES.into_iter().filter(wanted).collect();
        runtimes.sort_by_key(|runtime| runtime.name != self.floor);
        let is_built = runtimes.first().is_some_and(|runtime| runtime.name == self.floor);
        ensure!(is_built, "--floor {} is not built: leave out --no-default-features", self.floor);
        Ok(runtimes)
    }

    /// The number of slices for each runtime, in a job that normally has `default`.
    pub(crate) fn slices(&self, default: usize) -> usize {
        self.slices.map_or(if self.quick { default.div_ceil(15) } else { default }, NonZeroUsize::get)
    }

    pub(crate) fn slice(&self) -> Duration {
        Duration::from_millis(self.slice_ms.unwrap_or(if self.quick { 50 } else { 250 }))
    }
}

/// The folder of this package.
pub(crate) fn package_folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..f64::INFINITY).contains(&percent) => Ok(percent),
        Ok(_) => Err("a tolerance is a finite number of at least 0".to_owned()),
        Err(_) => Err("a tolerance is a number of percent, such as 10 or 2.5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(line: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("benches").chain(line.split_whitespace()))
    }

    #[test]
    fn command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn check_takes_a_file_and_a_tolerance() {
        let options = parsed("--check").unwrap();
        assert_eq!((options.check, options.tolerance), (Some(None), 10.0));
        let options = parsed("--check=counts.json --tolerance 2.5").unwrap();
        assert_eq!((options.check, options.tolerance), (Some(Some("counts.json".into())), 2.5));
    }

    #[test]
    fn nonsense_is_refused() {
        for tolerance in ["-3", "many", "NaN", "inf", ""] {
            let error = parsed(&format!("--check --tolerance={tolerance}")).unwrap_err().to_string();
            assert!(error.contains("--tolerance <PERCENT>"), "{error}");
        }
        for line in ["--tolerance 3", "--memory --sockets", "--jobs nothing", "--floor futures", "--slices 0"] {
            assert!(parsed(line).is_err(), "{line} was accepted");
        }
    }
}
