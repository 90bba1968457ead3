//! Sends datagrams between sockets in any order. Each must arrive once, and no receiver may wait in vain.
#![no_main]

#[path = "../../tests/fuzz/datagram.rs"]
mod datagram;
#[path = "../../tests/fuzz/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| datagram::run(bytes));
