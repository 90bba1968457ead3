//! The descriptors, the threads and the bytes on the heap that a test leaves behind.
//!
//! A test that leaks none ends with those that it began with. This can be seen only in a process that runs no other test
//! at the time: `tests/proof/alone.sh` runs each test so. Without its variable nothing is compared.

use std::alloc::System;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Set by a caller that lets one test run at a time.
const ALONE: &str = "KITTIWAKE_TESTS_ALONE";

/// Set by a test for its child, if a second run of the body would meet something else there.
pub const ONCE: &str = "KITTIWAKE_TESTS_ONCE";

/// Printed after a test that was compared. `tests/proof/alone.sh` counts these lines.
const NOTHING_LEFT: [&str; 2] = ["alone: nothing is left", "alone: no descriptor and no thread is left"];

/// Counts the bytes on the heap. It adds a few atomic additions to each allocation.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The number of bytes that live on the heap.
pub fn heap_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// Waits until at most so many bytes live on the heap. Fails if that takes too long.
#[track_caller]
pub fn wait_for_heap(most: usize) {
    let end = Instant::now() + super::PATIENCE / 2;
    loop {
        let bytes = heap_bytes();
        if bytes <= most {
            return;
        }
        assert!(Instant::now() < end, "{bytes} bytes are on the heap, and at most {most} should be left");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Runs a test that leaves no descriptor, no thread and no byte on the heap, and fails if it does. Where other tests may
/// run in this process, it runs once and is not compared. Alone it may run several times.
///
/// The first run makes globals, and a table of the process may grow in a later one. A leak adds bytes in each run.
/// A run that adds none therefore shows that there is no leak.
#[track_caller]
pub fn leaves_nothing<T>(mut run: impl FnMut() -> T) -> T {
    const RUNS: usize = 5;
    if !is_alone() || std::env::var_os(ONCE).is_some() {
        return leaves_nothing_open(run);
    }
    let mut added = Vec::with_capacity(RUNS);
    while added.len() < RUNS {
        let heap = heap_bytes();
        let before = Baseline::now();
        let value = run();
        before.compare();
        drop(before);
        match heap_bytes().saturating_sub(heap) {
            0 => {
                eprintln!("{}", NOTHING_LEFT[0]);
                return value;
            }
            bytes => added.push(bytes),
        }
    }
    panic!("each run of the test has left bytes on the heap: {added:?}");
}

/// Like [`leaves_nothing`], but runs once and does not look at the heap.
#[track_caller]
pub fn leaves_nothing_open<T>(run: impl FnOnce() -> T) -> T {
    if !is_alone() {
        return run();
    }
    let before = Baseline::now();
    let value = run();
    before.compare();
    eprintln!("{}", NOTHING_LEFT[1]);
    value
}

/// Whether no other test may run in this process, so that it can be looked at. Systems without `/proc` cannot be.
fn is_alone() -> bool {
    cfg!(target_os = "linux") && std::env::var_os(ALONE).is_some()
}

/// Says what a child with this output has said about its test.
pub fn pass_on(output: &str) {
    if let Some(said) = NOTHING_LEFT.into_iter().find(|said| output.contains(said)) {
        eprintln!("{said}");
    }
}

/// The descriptors and the threads of this process, by their numbers, with what they are.
struct Baseline {
    descriptors: BTreeMap<u32, String>,
    threads: BTreeMap<u32, String>,
}

impl Baseline {
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
    fn compare(&self) {
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
