//! Slots and sources against their model: lost, stray and doubled wake-ups, stale tokens, leaked wakers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| kittiwake::fuzzing::source(script));
