//! Runs trees of tasks, timers and channels. Each node must end when it must, and not wait in vain.
#![no_main]

#[path = "../../tests/fuzz/executor.rs"]
mod executor;
#[path = "../../tests/fuzz/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| executor::run(bytes));
