//! Listeners that the parent process opened before this process started, as in systemd's socket activation.
//!
//! # The protocol (sd_listen_fds(3))
//! 1. The parent process opens the sockets as consecutive descriptors, from 3 on. The `listenfd` crate reads
//!    `LISTEN_FDS_FIRST_FD` for another first descriptor.
//! 2. It sets `LISTEN_FDS` to the number of sockets, and `LISTEN_PID` to the id of the process that should take them.
//! 3. [`listeners`] takes the sockets and removes both variables. It takes none if `LISTEN_PID` names another process.
//!    An empty or missing `LISTEN_PID` names every process.
//!
//! # Why only once
//! Making a socket from a descriptor number is unsafe in Rust, because another owner may close the descriptor. Here the
//! descriptors have no other owner, as long as they are taken only once. [`TAKEN`] ensures that.

use std::env;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use listenfd::ListenFd;

/// True once a call has tried to take the descriptors. It is global because descriptors belong to the whole process.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the inherited listeners, and sets close-on-exec on their descriptors.
///
/// Returns no listeners if they were taken before, and if `LISTEN_FDS` is empty or not set.
///
/// # Errors
/// Returns `InvalidInput` if `LISTEN_FDS` is not a number up to 65,535, and if a descriptor is not a TCP socket.
pub(super) fn listeners() -> io::Result<Vec<std::net::TcpListener>> {
    let Some(count) = env::var_os("LISTEN_FDS").filter(|count| !count.is_empty()) else { return Ok(Vec::new()) };
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // listenfd would ignore a value that is no number, and would allocate memory for any number.
    if count.to_str().and_then(|count| count.parse::<u16>().ok()).is_none() {
        return Err(invalid(format!("LISTEN_FDS is {count:?}, which is not a number of descriptors")));
    }
    let mut passed = ListenFd::from_env();
    (0..passed.len())
        .map(|index| {
            let listener = passed.take_tcp_listener(index).map_err(wrong)?;
            Ok(listener.expect("each index is taken once"))
        })
        .collect()
}

/// The error for an inherited descriptor that cannot be used.
pub(super) fn wrong(error: io::Error) -> io::Error {
    invalid(format!("a descriptor that LISTEN_FDS passes on cannot be used: {error}"))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
