//! Runs simulated workers on the real queues, in any order. No entry may be lost, or wait beside a worker that is idle.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| kittiwake::fuzzing::stealing(script, Instant::now()));
