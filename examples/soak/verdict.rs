//! The end of the run at the first failure.

use std::panic;
use std::process;
use std::sync::OnceLock;

static SEED: OnceLock<u64> = OnceLock::new();

/// Makes each failure name the seed, and each panic a failure.
pub(crate) fn prepare(seed: u64) {
    SEED.set(seed).expect("a run has one seed");
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        print(panic);
        fail("a panic");
    }));
}

/// Prints the failure and ends the program with status 1.
///
/// Other threads go on until then. The first failure is printed first, and is the one to look at.
pub(crate) fn fail(what: &str) -> ! {
    let seed = SEED.get().copied().unwrap_or_default();
    eprintln!("soak: failed, seed {seed}: {what}");
    process::exit(1)
}
