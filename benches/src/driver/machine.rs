//! The machine and the compiler that figures come from.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity};

/// The facts that a reader needs in order to compare figures.
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) rustc: String,
    pub(crate) libc: String,
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        let known = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
        Self {
            cpu: known(fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_model(&text))),
            kernel: known(first_line(Command::new("uname").arg("-r"))),
            rustc: known(first_line(Command::new(rustc).arg("--version"))),
            libc: known(first_line(Command::new("getconf").arg("GNU_LIBC_VERSION"))),
            date: known(first_line(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))),
        }
    }
}

/// The cores that this process may use, lowest first. The first call reads them, so it must come before any pinning.
pub(crate) fn cores() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(|| match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect(),
        Err(_) => vec![0],
    })
}

/// The same cores, as the programs' option `--cores` takes them.
pub(crate) fn all_cores() -> String {
    cores().iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn first_cpu_is_named() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: another\n";
        assert_eq!(super::cpu_model(text).as_deref(), Some("A CPU @ 2 GHz"));
    }
}
