//! Building the programs, and finding them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::args::package_folder;
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

/// The command for a program, or for a tool that is given the program as its last argument.
pub(crate) fn under(tool: &[String], program: &Path) -> Command {
    match tool {
        [] => Command::new(program),
        [tool, arguments @ ..] => {
            let mut command = Command::new(tool);
            command.args(arguments).arg(program);
            command
        }
    }
}
