//! The progress on standard error: one line that is overwritten on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};

/// Reports the beginning of a piece of work.
pub(crate) fn say(what: &str) {
    if stderr().is_terminal() {
        step(what);
    } else {
        eprintln!("{what}");
    }
}

/// Reports a step within a piece of work, on a terminal only.
pub(crate) fn step(what: &str) {
    if stderr().is_terminal() {
        // ESC [ K erases the rest of the line.
        eprint!("\r{what}\x1b[K");
    }
}

/// Erases the line.
pub(crate) fn done() {
    step("");
}
