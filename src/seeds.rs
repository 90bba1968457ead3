//! Seeds: the body of a test under many seeds, for the expansion of `#[kittiwake::test(seeds = 20)]`.
//!
//! This module is public for the attribute alone, and may change at any time.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{ExitCode, Termination};

/// The variable of the environment that names the only seed to run.
const VARIABLE: &str = "KITTIWAKE_TEST_SEED";

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
    let ended = catch_unwind(AssertUnwindSafe(|| test(seed).report()));
    if matches!(ended, Ok(code) if code == ExitCode::SUCCESS) {
        return None;
    }
    eprintln!("{name} failed with seed {seed}. To run this seed alone: {VARIABLE}={seed} cargo test {name}");
    Some(ended.unwrap_or_else(|panic| resume_unwind(panic)))
}

/// The seed that the environment names.
fn chosen() -> Option<u64> {
    let text = env::var_os(VARIABLE)?;
    let seed = text.to_str().and_then(|text| text.parse().ok());
    Some(seed.unwrap_or_else(|| panic!("{VARIABLE} must be a number from 0 to {}, and not {text:?}", u64::MAX)))
}
