//! Listeners that were open before the process began: systemd's socket activation, and others of that protocol.
//!
//! Whoever starts the process opens the sockets, as descriptors from 3 on, and says how many in `LISTEN_FDS` and for whom in
//! `LISTEN_PID`. To make a socket of a number is unsafe in Rust: someone else may own it. Here nobody does, if it is done
//! once; [`TAKEN`] sees to that.

use std::env;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use listenfd::ListenFd;

/// The descriptors have an owner. For the whole process, as they are.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes what was passed on, close-on-exec; nothing if that was done before.
pub(super) fn listeners() -> io::Result<Vec<std::net::TcpListener>> {
    let Some(count) = env::var_os("LISTEN_FDS").filter(|count| !count.is_empty()) else { return Ok(Vec::new()) };
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // listenfd takes nonsense for nothing, and allocates what it is told to.
    if count.to_str().and_then(|count| count.parse::<u16>().ok()).is_none() {
        return Err(invalid(format!("LISTEN_FDS is {count:?}, which is not a number of descriptors")));
    }
    let mut passed = ListenFd::from_env();
    (0..passed.len())
        .map(|index| {
            let listener = passed.take_tcp_listener(index);
            let listener = listener.map_err(wrong)?;
            Ok(listener.expect("each index is taken once"))
        })
        .collect()
}

/// One of those that were passed on cannot be used.
pub(super) fn wrong(error: io::Error) -> io::Error {
    invalid(format!("what LISTEN_FDS stands for is wrong: {error}"))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
