//! Runs scripts of operations on the reactor's slots and sources, and compares them with a model.
//!
//! It finds lost, spurious and doubled wake-ups, stale tokens and leaked wakers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| kittiwake::fuzzing::source(script));
