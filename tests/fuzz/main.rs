//! The scripts of the fuzz targets, replayed: those in `corpus/`, which reach most of the code or have failed once, and
//! random ones.
//!
//! Each target of `fuzz/` that works on the public interface has its operations and its laws in a module here.

#[path = "../support/mod.rs"]
mod support;

mod adapters;
mod addr;
mod datagram;
mod executor;
#[cfg(feature = "hyper")]
mod http;
mod script;

use support::within;

/// Bytes arrive through copies, halves and pairs in memory: each once, and none of them waits in vain.
#[test]
fn adapters_lose_no_byte() {
    within(|| replay("adapters", adapters::run, 1000));
}

/// Any text is the address that std sees in it, a name, or an error that shows the text.
#[test]
fn any_text_is_understood() {
    within(|| replay("addr", addr::run, 1000));
}

/// Datagrams arrive once and in order, whichever methods send and receive them.
#[test]
fn datagrams_arrive_once() {
    within(|| replay("datagram", datagram::run, 200));
}

/// In a tree of joins, selects, tasks, timers and channels, each node ends when it must.
#[test]
fn trees_of_tasks_end_in_time() {
    within(|| replay("executor", executor::run, 5000));
}

/// A connection of HTTP ends in time, whatever its client sends and however little it reads.
#[cfg(feature = "hyper")]
#[test]
fn http_connections_end() {
    // A panic of h2 leaves bytes on the heap: see tests/proof/leaks.supp.
    support::within_once(|| replay("http", http::run, 2000));
}

/// Runs the scripts in the folder `target` of the corpus, and then `count` random ones of up to 255 bytes.
fn replay(target: &str, run: fn(&[u8]), count: usize) {
    let corpus = format!("{}/tests/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut scripts = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus") {
        let file = file.expect("an entry of the corpus").path();
        // If the test fails, the last line shows its script.
        println!("{}", file.display());
        run(&std::fs::read(file).expect("a script"));
        scripts += 1;
    }
    assert!(scripts > 0, "{corpus} has no scripts");
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 32) as u8
    };
    for _ in 0..count {
        let length = next();
        let script: Vec<u8> = (0..length).map(|_| next()).collect();
        println!("random: {script:?}");
        run(&script);
    }
}
