//! A server program as a child process: started, measured, and ended on every path.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use kittiwake_benches::Handler;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use super::args::Options;
use super::build;
use super::machine;
use super::plan::Runtime;

/// How long a server may take to print its address or to end. valgrind takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much of what a child says is kept.
const STDERR: u64 = 1 << 16;

/// A running server. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    stderr: Option<JoinHandle<String>>,
    name: &'static str,
}

impl Server {
    /// Starts a runtime's server, or `tool` with the server as its last arguments.
    pub(crate) fn start(runtime: &Runtime, handler: Handler, options: &Options, tool: &[String]) -> Result<Self> {
        let program =
            build::path(runtime.server(handler).with_context(|| format!("{} cannot do {handler:?}", runtime.name))?)?;
        let mut command = build::under(tool, &program);
        command.arg("--cores").arg(cores(runtime, options)).args(runtime.arguments).args(["serve", handler.name()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stderr = child.stderr.take().map(|stderr| {
            thread::spawn(move || {
                let mut text = String::new();
                let _ = stderr.take(STDERR).read_to_string(&mut text);
                text
            })
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, address, stderr, name: runtime.name };
        server.address = server.read_address().map_err(|error| server.explain(error))?;
        Ok(server)
    }

    fn read_address(&mut self) -> Result<SocketAddr> {
        let stdout = self.child.stdout.take().context("the standard output is a pipe")?;
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(PATIENCE).map_err(|_| anyhow!("it printed no address within {PATIENCE:?}"))?;
        line.trim().parse().map_err(|_| anyhow!("it printed no address but {:?}", line.trim()))
    }

    /// The CPU time that all threads of the server have used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let folder = format!("/proc/{}/task", self.child.id());
        let mut nanoseconds = 0;
        for thread in fs::read_dir(&folder).with_context(|| format!("{}: cannot read {folder}", self.name))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))
                .context("this kernel tells no CPU times of threads in nanoseconds (CONFIG_SCHED_INFO)")?;
            let first = text.split_whitespace().next().unwrap_or_default();
            nanoseconds += first.parse::<u64>().with_context(|| format!("schedstat begins with {first:?}"))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The resident anonymous memory of the server, in bytes: what it allocated, not its code.
    pub(crate) fn resident(&self) -> Result<u64> {
        let file = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&file).with_context(|| format!("{}: cannot read {file}", self.name))?;
        resident(&text).with_context(|| format!("{file} has no line RssAnon"))
    }

    /// Ends the server, and the tool around it, which then writes what it counted.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("{} did not end within {PATIENCE:?} after SIGTERM", self.name);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Adds to an error what the server said, if it is dead.
    pub(crate) fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        // It may be just about to end.
        thread::sleep(Duration::from_millis(50));
        match self.child.try_wait() {
            Ok(Some(status)) => {
                let said = match self.said().trim() {
                    "" => "nothing".to_owned(),
                    said => format!("{said:?}"),
                };
                error.context(format!("{} ended ({status}) and said {said}", self.name))
            }
            _ => error.context(format!("with {}, which still runs", self.name)),
        }
    }

    fn said(&mut self) -> String {
        self.stderr.take().and_then(|stderr| stderr.join().ok()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cores of a runtime's server: one for one worker or where all are pinned, else all that there are, unless the load
/// is to share one with it.
fn cores(runtime: &Runtime, options: &Options) -> String {
    if runtime.workers == 1 || runtime.pinned || options.server_core == options.load_core {
        return options.server_core.to_string();
    }
    machine::all_cores()
}

/// Takes out the runtimes on io_uring where the kernel refuses it, and says which.
pub(crate) fn without_io_uring(runtimes: &mut Vec<Runtime>, options: &Options) -> Vec<String> {
    let mut refused = Vec::new();
    runtimes.retain(|runtime| {
        let works = !runtime.is_on_io_uring() || Server::start(runtime, Handler::Echo4K, options, &[]).is_ok();
        if !works {
            refused.push(format!("{}: this kernel refuses io_uring to this process", runtime.name));
        }
        works
    });
    refused
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Lets this process, and the servers it starts, have as many descriptors as the system allows.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the limit of open files")
}

/// How many connections fit into the limit of open files, `wanted` at most.
pub(crate) fn descriptors(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.map_or(wanted, |limit| limit as usize);
    wanted.min(limit.saturating_sub(200))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident("VmRSS:\t    1340 kB\nRssAnon:\t      96 kB\nRssFile:\t 12 kB\n"), Some(96 * 1024));
        assert_eq!(resident("VmRSS:\t    1340 kB\n"), None);
    }
}
