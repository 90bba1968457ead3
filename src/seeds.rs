//! Seeds: the body of a test under many seeds, for the expansion of `#[kittiwake::test(seeds = 20)]`.
//!
//! This module is public for the attribute alone, and may change at any time.

use std::env;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{ExitCode, Termination};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// The variable of the environment that names the only seed to run.
const VARIABLE: &str = "KITTIWAKE_TEST_SEED";

/// A seed that takes longer is reported while it runs: the harness shows nothing of a test that hangs.
const LONG: Duration = Duration::from_secs(60);

/// Calls `test` with each seed from 0 to `count - 1`, or with the one that the environment names, until one fails.
///
/// Returns what the test returns to its harness. If a seed fails, its number is printed. A panic goes on.
pub fn run<T: Termination>(count: u64, name: &str, test: impl Fn(u64) -> T) -> ExitCode {
    let failed = match chosen() {
        Some(seed) => failure(name, seed, &test),
        None => (0..count).find_map(|seed| failure(name, seed, &test)),
    };
    failed.unwrap_or(ExitCode::SUCCESS)
}

/// Calls `test` with one seed. `None` if it succeeds.
fn failure<T: Termination>(name: &str, seed: u64, test: &impl Fn(u64) -> T) -> Option<ExitCode> {
    let alone = format!("To run this seed alone: {VARIABLE}={seed} cargo test {name}");
    let report_long = || {
        // The macros of std write where the harness captures it. Nothing can be done about a closed stderr.
        let _ = writeln!(std::io::stderr(), "{name} has run for {} s with seed {seed}. {alone}", LONG.as_secs());
    };
    let ended = watched(LONG, report_long, || catch_unwind(AssertUnwindSafe(|| test(seed).report())));
    if matches!(ended, Ok(code) if code == ExitCode::SUCCESS) {
        return None;
    }
    eprintln!("{name} failed with seed {seed}. {alone}");
    Some(ended.unwrap_or_else(|panic| resume_unwind(panic)))
}

/// Calls `test`, and meanwhile `report_long` if that takes longer than `limit`.
fn watched<T>(limit: Duration, report_long: impl FnOnce() + Send, test: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (running, ended) = channel::<()>();
        scope.spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                report_long();
            }
        });
        let output = test();
        drop(running);
        output
    })
}

/// The seed that the environment names.
fn chosen() -> Option<u64> {
    let text = env::var_os(VARIABLE)?;
    let seed = text.to_str().and_then(|text| text.parse().ok());
    Some(seed.unwrap_or_else(|| panic!("{VARIABLE} must be a number from 0 to {}, and not {text:?}", u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test that hangs is reported while it does. One that ends in time is not.
    #[test]
    fn hanging_seed_is_reported() {
        let (reported, report) = channel();
        let hangs = || report.recv_timeout(LONG).expect("no report has come while the test ran");
        watched(Duration::from_millis(1), move || reported.send(()).unwrap(), hangs);
        assert_eq!(watched(LONG, || unreachable!("the test has ended"), || 7), 7);
    }
}
