//! The descriptors and the threads that a test leaves behind.
//!
//! A test that leaks none ends with those that it began with. This can be seen only in a process that runs no other test
//! at the time: `KITTIWAKE_TESTS_ALONE=1 cargo nextest run --all-features`. Without the variable nothing is compared.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// Set by a caller that lets one test run at a time.
const ALONE: &str = "KITTIWAKE_TESTS_ALONE";

/// The descriptors and the threads of this process, by their numbers, with what they are.
pub struct Baseline {
    descriptors: BTreeMap<u32, String>,
    threads: BTreeMap<u32, String>,
}

impl Baseline {
    /// Looks at this process. Returns `None` if another test may run in it, and on systems without `/proc`.
    pub fn take() -> Option<Self> {
        let is_alone = std::env::var_os(ALONE).is_some();
        (is_alone && cfg!(target_os = "linux")).then(Self::now)
    }

    fn now() -> Self {
        Self {
            descriptors: entries("fd", |path| {
                let target = fs::read_link(path).ok()?;
                // The listing has a descriptor of its own.
                let is_listing = target.starts_with("/proc") && target.ends_with("fd");
                (!is_listing).then(|| target.display().to_string())
            }),
            threads: entries("task", |path| fs::read_to_string(path.join("comm")).ok()),
        }
    }

    /// Fails if this process has more than it had. A thread that the test has not joined may take its time to end.
    #[track_caller]
    pub fn compare(&self) {
        let begun = Instant::now();
        loop {
            let now = Self::now();
            let (descriptors, threads) =
                (added(&now.descriptors, &self.descriptors), added(&now.threads, &self.threads));
            if descriptors.is_empty() && threads.is_empty() {
                return;
            }
            assert!(
                begun.elapsed() < super::PATIENCE / 2,
                "the test has left descriptors open, or threads: {descriptors:?}, {threads:?}"
            );
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

/// The numbers in a folder of `/proc/self`, and what `read` finds there. An entry that is gone by then is not there.
fn entries(folder: &str, read: impl Fn(&std::path::Path) -> Option<String>) -> BTreeMap<u32, String> {
    let folder = fs::read_dir(format!("/proc/self/{folder}")).expect("/proc");
    let entries = folder.filter_map(|entry| {
        let path = entry.ok()?.path();
        let number = path.file_name()?.to_str()?.parse().ok()?;
        Some((number, read(&path)?.trim_end().to_owned()))
    });
    entries.collect()
}

fn added<'a>(now: &'a BTreeMap<u32, String>, before: &BTreeMap<u32, String>) -> Vec<(&'a u32, &'a String)> {
    now.iter().filter(|(number, _)| !before.contains_key(number)).collect()
}
