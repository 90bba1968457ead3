//! A server program as a child process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use kittiwake_benches::Handler;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use super::args::Options;
use super::machine;
use super::plan::Runtime;
use super::programs::Process;

/// The time in which a server must print its address, and in which it must end. valgrind takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. Dropping it kills the process.
pub(crate) struct Server {
    process: Process,
    pub(crate) address: SocketAddr,
    name: &'static str,
}

impl Server {
    /// Starts a runtime's server, or starts `tool` with the server as its last arguments.
    pub(crate) fn start(runtime: &Runtime, handler: Handler, options: &Options, tool: &[String]) -> Result<Self> {
        let program = runtime.server(handler).with_context(|| format!("{} cannot do {handler:?}", runtime.name))?;
        let (cores, handler) = (cores(runtime, options), handler.name());
        let arguments = [&["--cores", cores.as_str()], runtime.arguments, &["serve", handler.as_str()]].concat();
        let process = Process::start(tool, program, &arguments)?;
        let mut server = Self { process, address: SocketAddr::from(([127, 0, 0, 1], 0)), name: runtime.name };
        server.address = server.read_address().map_err(|error| server.explain(error))?;
        Ok(server)
    }

    fn read_address(&mut self) -> Result<SocketAddr> {
        let stdout = self.process.stdout()?;
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&patience))?;
        ensure!(ready > 0, "it printed no address within {PATIENCE:?}");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        line.trim().parse().map_err(|_| anyhow!("it printed no address but {:?}", line.trim()))
    }

    /// The CPU time that all threads of the server have used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let folder = format!("/proc/{}/task", self.process.child.id());
        let mut nanoseconds = 0;
        for thread in fs::read_dir(&folder).with_context(|| format!("{}: cannot read {folder}", self.name))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))
                .context("this kernel reports no CPU times of threads in nanoseconds (CONFIG_SCHED_INFO)")?;
            let first = text.split_whitespace().next().unwrap_or_default();
            nanoseconds += first.parse::<u64>().with_context(|| format!("schedstat begins with {first:?}"))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The resident anonymous memory of the server in bytes: its allocations, without its code.
    pub(crate) fn resident(&self) -> Result<u64> {
        let file = format!("/proc/{}/status", self.process.child.id());
        let text = fs::read_to_string(&file).with_context(|| format!("{}: cannot read {file}", self.name))?;
        resident(&text).with_context(|| format!("{file} has no line RssAnon"))
    }

    /// Ends the server and the tool around it, which then writes its counts.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.process.child), Signal::TERM)?;
        self.process.wait(PATIENCE).with_context(|| format!("{} after SIGTERM", self.name))?;
        Ok(())
    }

    /// Adds to an error the server's exit status and its standard error, if the server has ended.
    pub(crate) fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        // A server that has caused the error may need a moment to end.
        thread::sleep(Duration::from_millis(50));
        match self.process.child.try_wait() {
            Ok(Some(status)) => {
                error.context(format!("{} ended ({status}) and said {:?}", self.name, self.process.said()))
            }
            _ => error.context(format!("with {}, which still runs", self.name)),
        }
    }
}

/// The cores of a runtime's server, as its option `--cores` takes them.
///
/// A server with one worker, a pinned one, and one that shares its core with the load get the servers' core. Any other
/// server gets all cores.
fn cores(runtime: &Runtime, options: &Options) -> String {
    if runtime.workers == 1 || runtime.pinned || options.server_core == options.load_core {
        return options.server_core.to_string();
    }
    machine::all_cores()
}

/// Removes the runtimes on io_uring if the kernel refuses it, and reports which.
pub(crate) fn without_io_uring(runtimes: &mut Vec<Runtime>, options: &Options) -> Vec<String> {
    let refuses = |runtime: &mut Runtime| {
        runtime.is_on_io_uring() && Server::start(runtime, Handler::Echo4K, options, &[]).is_err()
    };
    let refused = runtimes.extract_if(.., refuses);
    refused.map(|runtime| format!("{}: this kernel refuses io_uring to this process", runtime.name)).collect()
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Raises the limit of open files of this process, and of the servers that it starts, to the system's maximum.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("cannot raise the limit of open files")
}

/// The number of connections that fit into the limit of open files, at most `wanted`.
pub(crate) fn descriptors(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.map_or(wanted, |limit| limit as usize);
    wanted.min(limit.saturating_sub(200))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_in_bytes() {
        assert_eq!(resident("VmRSS:\t    1340 kB\nRssAnon:\t      96 kB\nRssFile:\t 12 kB\n"), Some(96 * 1024));
        assert_eq!(resident("VmRSS:\t    1340 kB\n"), None);
    }
}
