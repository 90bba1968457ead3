//! The driver: builds the programs, runs them in turns, measures them, and writes what it saw.
//!
//! # How a socket job is measured
//! One server process per runtime lives for the whole job, pinned to one core; the load runs in this process, on another
//! core, as a closed loop: each connection sends its next request when it has the answer to the last. Time is cut into
//! short slices that go round the runtimes, A B C A B C: whatever else the machine does then meets all of them alike. A
//! slice gives the requests answered, the server's own CPU time (`/proc/<pid>/task/*/schedstat`) and the latencies.
//!
//! # Why ratios are taken slice by slice
//! A shared machine is now fast, now slow, for seconds at a time, by more than the runtimes differ. Two slices that
//! stand side by side see the same machine, so their ratio says more than the ratio of two averages. The table gives the
//! median of these ratios with a bootstrap interval, and a second process of the floor against the first: how far
//! that is from 1 is what the machine adds.
//!
//! # Counts
//! System calls (`strace -c -f`) and user-space instructions (callgrind) are the difference of two runs, one of n
//! operations and one of more, so that start and end cancel. Those runs are separate from the timed ones.
//!
//! # Files
//! `args` what was asked for, `plan` the tables of runtimes and jobs, `sockets` and `in_memory` the two kinds of jobs,
//! `load` the load generator, `server` a program as a child process, `tools` strace and callgrind, `stats` medians and
//! intervals, `table`, `chart` and `report` the output, `check` the recorded instruction counts.

mod driver;

use std::process::ExitCode;

fn main() -> ExitCode {
    match driver::run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
