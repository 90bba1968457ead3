//! The machine and the compiler that figures come from.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity};

/// What a reader must know to compare figures.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) rustc: String,
    pub(crate) libc: String,
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        Self {
            cpu: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_model(&text)).unwrap_or_else(unknown),
            cores: cores().len(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            rustc: first_line(Command::new(rustc).arg("--version")),
            libc: first_line(Command::new("getconf").arg("GNU_LIBC_VERSION")),
            date: first_line(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
        }
    }
}

/// The cores that this process may use, lowest first: as it was when this was first called, before any pinning.
pub(crate) fn cores() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(|| match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect(),
        Err(_) => vec![0],
    })
}

/// The same, as the programs' option `--cores` wants it.
pub(crate) fn all_cores() -> String {
    cores().iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.as_deref().and_then(|text| text.lines().next()).map_or_else(unknown, |line| line.trim().to_owned())
}

fn unknown() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_cpu_is_named() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: another\n";
        assert_eq!(super::cpu_model(text).as_deref(), Some("A CPU @ 2 GHz"));
    }
}
