//! Runs scripts of operations on the timing wheel, and compares it with a `BTreeMap`.
//!
//! It finds early, late, lost and doubled timers, at every level and at the edges of levels.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| kittiwake::fuzzing::wheel(script));
