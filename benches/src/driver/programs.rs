//! The programs: how the driver builds, finds, starts and ends them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::args::package_folder;
use super::progress;

/// Builds these programs with the profile and the features of this driver.
pub(crate) fn build(programs: &[&str]) -> Result<()> {
    ensure!(!cfg!(debug_assertions), "figures of a debug build mean nothing: use `cargo run --release`");
    progress::say("building the programs");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(&cargo);
    command.current_dir(package_folder()).args(["build", "--release", "--quiet"]);
    // Without this condition, the same programs would be built a second time under another set of features.
    if !cfg!(all(feature = "http", feature = "peers")) {
        let features = [("http", cfg!(feature = "http")), ("peers", cfg!(feature = "peers"))];
        let features: Vec<&str> = features.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name).collect();
        command.args(["--no-default-features", "--features", &features.join(",")]);
    }
    command.args(programs.iter().flat_map(|program| ["--bin", program]));
    let status = command.status().with_context(|| format!("cannot start {}", cargo.display()))?;
    ensure!(status.success(), "the programs do not build; cargo's message is above");
    Ok(())
}

/// The folder of the programs, which is this driver's.
pub(crate) fn folder() -> Result<PathBuf> {
    let driver = std::env::current_exe()?;
    Ok(driver.parent().context("the driver has a folder")?.to_owned())
}

/// A program as a child process. Dropping it kills the process.
pub(crate) struct Process {
    pub(crate) child: Child,
    stderr: File,
}

impl Process {
    /// Starts a program, or starts `tool` with the program and its arguments as the tool's last arguments.
    pub(crate) fn start(tool: &[String], program: &str, arguments: &[&str]) -> Result<Self> {
        let path = folder()?.join(program);
        ensure!(path.exists(), "{} is missing; use `cargo run --release` in benches/", path.display());
        let words: Vec<OsString> = tool.iter().map(OsString::from).chain([path.into()]).collect();
        let stderr = tempfile::tempfile()?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr.try_clone()?);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, stderr })
    }

    /// The standard output, at the first call.
    pub(crate) fn stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().context("the standard output is a pipe")
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it did not end within {patience:?}");
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// The standard error so far, or its first 64 KiB.
    pub(crate) fn said(&mut self) -> String {
        let mut text = Vec::new();
        let _ = self.stderr.rewind();
        let _ = (&self.stderr).take(1 << 16).read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
