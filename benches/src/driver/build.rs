//! Building the programs, and leaving out what this kernel refuses.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::args::package_folder;
use super::plan::Runtime;
use super::progress;

/// Builds these programs as this driver was built: the release profile, and the same features.
pub(crate) fn build(programs: &[&str]) -> Result<()> {
    ensure!(!cfg!(debug_assertions), "figures of a debug build say nothing: use `cargo run --release`");
    let mut programs = programs.to_vec();
    programs.sort_unstable();
    programs.dedup();
    progress::say(&format!("building {} programs", programs.len()));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(&cargo);
    command.current_dir(package_folder()).args(["build", "--release", "--quiet"]);
    if !cfg!(feature = "peers") {
        command.arg("--no-default-features");
    }
    for program in &programs {
        command.args(["--bin", program]);
    }
    let status = command.status().with_context(|| format!("cannot start {}", cargo.to_string_lossy()))?;
    if !status.success() {
        bail!("the programs do not build; cargo says why above");
    }
    Ok(())
}

/// The path of a program: they lie beside this one.
pub(crate) fn path(program: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(program);
    ensure!(path.exists(), "{} is missing; use `cargo run --release` in benches/", path.display());
    Ok(path)
}

/// Takes out the runtimes on io_uring where the kernel refuses it, and says which.
pub(crate) fn without_io_uring(runtimes: &mut Vec<Runtime>) -> Vec<String> {
    let mut refused = Vec::new();
    runtimes.retain(|runtime| {
        let works = !runtime.is_on_io_uring() || starts(runtime);
        if !works {
            refused.push(format!("{}: this kernel refuses io_uring to this process", runtime.name));
        }
        works
    });
    refused
}

fn starts(runtime: &Runtime) -> bool {
    let Ok(path) = path(runtime.program) else { return false };
    let mut command = Command::new(path);
    command.args(runtime.arguments).args(["memory", "yield", "1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
