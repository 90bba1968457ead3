//! Turns any bytes into addresses, and binds and connects sockets to them. Nothing may panic, and each error names its address.
#![no_main]

#[path = "../../tests/fuzz/addr.rs"]
mod addr;
#[path = "../../tests/fuzz/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| addr::run(bytes));
