//! The timing wheel against a `BTreeMap`: early, late, lost and doubled timers, at every level and across their edges.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| kittiwake::fuzzing::wheel(script));
