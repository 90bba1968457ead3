//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lexopt::Arg::Long;
use lexopt::ValueExt;

use super::machine;
use super::plan::{self, Job, Runtime};

pub(crate) const HELP: &str = "\
kittiwake beside other runtimes: the same jobs, the same load, side by side.

usage: cargo run --release -- [OPTIONS]

what to measure
  --quick                few and short slices, few counts: under two minutes, for a look, not for figures to quote
  --jobs a,b             these jobs only; --list names them
  --only-runtimes a,b    these runtimes only; the floor is always there
  --memory               the in-memory jobs only
  --sockets              the socket jobs only
  --list                 print the names of jobs and runtimes

how
  --slices N             slices for each runtime and job (60; 15 for the think-time jobs)
  --slice-ms N           length of a slice (250)
  --floor NAME           the runtime that the others are compared with in the socket jobs (by_hand_epoll)
  --server-core N        the core for servers with one worker (the first)
  --load-core N          the core for the load (the last)
  --one-core             server and load on the same core, servers with several workers too
  --no-counts            no system calls and instructions: no strace, no callgrind
  --out DIR              where report.md and the charts go (target/report)

recorded instruction counts of kittiwake (needs valgrind; the other options are ignored)
  --check[=FILE]         fail if a count is more than 10 % above the recorded one (instructions.json)
  --record[=FILE]        write the file anew
  with `cargo run --release --no-default-features -- --check` the other runtimes are not even built
";

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) action: Action,
    pub(crate) quick: bool,
    names: Option<Vec<String>>,
    only_runtimes: Option<Vec<String>>,
    memory_only: bool,
    sockets_only: bool,
    slices: Option<usize>,
    slice: Option<Duration>,
    pub(crate) floor: String,
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
    pub(crate) counts: bool,
    pub(crate) out: PathBuf,
    /// The command line, for the report.
    pub(crate) command: String,
}

#[derive(Debug)]
pub(crate) enum Action {
    Help,
    List,
    Measure,
    Check(PathBuf),
    Record(PathBuf),
}

impl Options {
    pub(crate) fn parse() -> Result<Self> {
        let cores = machine::cores();
        let (first, last) = (cores[0], cores[cores.len() - 1]);
        let mut parser = lexopt::Parser::from_env();
        let mut options = Self::new(first, last);
        let mut one_core = false;
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | lexopt::Arg::Short('h') => options.action = Action::Help,
                Long("list") => options.action = Action::List,
                Long("check") => options.action = Action::Check(file(parser.optional_value())),
                Long("record") => options.action = Action::Record(file(parser.optional_value())),
                Long("quick") => options.quick = true,
                Long("jobs") => options.names = Some(names(parser.value()?.string()?)),
                Long("only-runtimes") => options.only_runtimes = Some(names(parser.value()?.string()?)),
                Long("memory") => options.memory_only = true,
                Long("sockets") => options.sockets_only = true,
                Long("slices") => options.slices = Some(parser.value()?.parse()?),
                Long("slice-ms") => options.slice = Some(Duration::from_millis(parser.value()?.parse()?)),
                Long("floor") => options.floor = parser.value()?.string()?,
                Long("server-core") => options.server_core = parser.value()?.parse()?,
                Long("load-core") => options.load_core = parser.value()?.parse()?,
                Long("one-core") => one_core = true,
                Long("no-counts") => options.counts = false,
                Long("out") => options.out = parser.value()?.into(),
                other => return Err(other.unexpected()).context("see --help"),
            }
        }
        if one_core {
            options.load_core = options.server_core;
        }
        options.validate(cores)?;
        Ok(options)
    }

    fn new(first_core: usize, last_core: usize) -> Self {
        Self {
            action: Action::Measure,
            quick: false,
            names: None,
            only_runtimes: None,
            memory_only: false,
            sockets_only: false,
            slices: None,
            slice: None,
            floor: plan::FLOOR.to_owned(),
            server_core: first_core,
            load_core: last_core,
            counts: true,
            out: package_folder().join("target/report"),
            command: std::iter::once("cargo run --release --".to_owned())
                .chain(std::env::args().skip(1))
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    fn validate(&self, cores: &[usize]) -> Result<()> {
        ensure!(!(self.memory_only && self.sockets_only), "--memory and --sockets leave nothing: give one of them");
        ensure!(self.slices.is_none_or(|slices| slices > 0), "--slices must be at least 1");
        for core in [self.server_core, self.load_core] {
            ensure!(cores.contains(&core), "core {core} is not among those this process may use: {cores:?}");
        }
        let floor = plan::runtime(&self.floor);
        ensure!(
            floor.is_some_and(|floor| floor.serve.is_some()),
            "--floor {}: no such runtime with sockets; see --list",
            self.floor
        );
        Ok(())
    }

    /// The jobs to do, in the order of the plan.
    pub(crate) fn jobs(&self) -> Result<Vec<Job>> {
        let all = plan::jobs();
        for name in self.names.iter().flatten() {
            ensure!(all.iter().any(|job| job.name() == name), "--jobs: there is no job {name}; see --list");
        }
        let wanted = |job: &Job| match &self.names {
            Some(names) => names.iter().any(|name| name == job.name()),
            None => !self.quick || job.is_quick(),
        };
        let kind = |job: &Job| match job {
            Job::Memory(_) => !self.sockets_only,
            Job::Socket(_) => !self.memory_only,
        };
        let jobs: Vec<Job> = all.into_iter().filter(|job| wanted(job) && kind(job)).collect();
        if jobs.is_empty() {
            bail!("nothing to do: the jobs named are not of the kind asked for");
        }
        Ok(jobs)
    }

    /// The runtimes to measure, the floor first.
    pub(crate) fn runtimes(&self) -> Result<Vec<Runtime>> {
        for name in self.only_runtimes.iter().flatten() {
            ensure!(plan::runtime(name).is_some(), "--only-runtimes: there is no runtime {name}; see --list");
        }
        let mut runtimes: Vec<Runtime> = plan::RUNTIMES
            .into_iter()
            .filter(|runtime| cfg!(feature = "peers") || !runtime.peer)
            .filter(|runtime| {
                let named =
                    self.only_runtimes.as_ref().is_none_or(|names| names.iter().any(|name| name == runtime.name));
                named || runtime.name == self.floor
            })
            .collect();
        runtimes.sort_by_key(|runtime| runtime.name != self.floor);
        ensure!(
            runtimes.first().is_some_and(|runtime| runtime.name == self.floor),
            "--floor {} was not built: leave out --no-default-features",
            self.floor
        );
        Ok(runtimes)
    }

    /// Slices for each runtime in a job of which `default` are usual.
    pub(crate) fn slices(&self, default: usize) -> usize {
        self.slices.unwrap_or(if self.quick { default.div_ceil(15) } else { default })
    }

    pub(crate) fn slice(&self) -> Duration {
        self.slice.unwrap_or(Duration::from_millis(if self.quick { 50 } else { 250 }))
    }
}

/// The folder of this package.
pub(crate) fn package_folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn file(given: Option<std::ffi::OsString>) -> PathBuf {
    given.map_or_else(|| package_folder().join("instructions.json"), PathBuf::from)
}

fn names(list: String) -> Vec<String> {
    list.split(',').map(str::to_owned).collect()
}
