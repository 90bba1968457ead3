//! Moves bytes through copies, halves and pairs in memory. None may be lost, and none may wait in vain.
#![no_main]

#[path = "../../tests/fuzz/adapters.rs"]
mod adapters;
#[path = "../../tests/fuzz/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| adapters::run(bytes));
