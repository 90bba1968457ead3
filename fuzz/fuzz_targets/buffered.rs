//! Reads from a reader that delays, fails and is interrupted, by futures that are dropped, and compares with std.
#![no_main]

#[path = "../../tests/io_buffered/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| script::run(bytes));
