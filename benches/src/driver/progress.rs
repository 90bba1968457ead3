//! What is going on, on standard error: one line that is written over on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Characters of the line that is on the terminal.
static WIDTH: AtomicUsize = AtomicUsize::new(0);

/// Says what begins now.
pub(crate) fn say(what: &str) {
    if stderr().is_terminal() {
        overwrite(what);
    } else {
        eprintln!("{what}");
    }
}

/// Says how far it is, on a terminal only.
pub(crate) fn step(what: &str) {
    if stderr().is_terminal() {
        overwrite(what);
    }
}

/// Takes the line away.
pub(crate) fn done() {
    if stderr().is_terminal() {
        overwrite("");
        eprint!("\r");
    }
}

fn overwrite(what: &str) {
    let width = what.chars().count();
    let before = WIDTH.swap(width, Ordering::Relaxed);
    eprint!("\r{what}{}", " ".repeat(before.saturating_sub(width)));
    let _ = stderr().flush();
}
