//! Sends any bytes to `hyper::serve`. The connection must end in time, and nothing may panic.
#![no_main]

#[path = "../../tests/fuzz/http.rs"]
mod http;
#[path = "../../tests/fuzz/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| http::run(bytes));
