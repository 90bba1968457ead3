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
            let listener =
                listener.map_err(|error| invalid(format!("what LISTEN_FDS stands for is wrong: {error}")))?;
            let listener = listener.expect("each index is taken once");
            check(&listener)?;
            Ok(listener)
        })
        .collect()
}

/// Fails if the socket does not listen, where the system says so; elsewhere the first `accept` fails.
fn check(listener: &std::net::TcpListener) -> io::Result<()> {
    #[cfg(any(target_os = "android", target_os = "freebsd", target_os = "linux"))]
    if !socket2::SockRef::from(listener).is_listener()? {
        let why = format!("what LISTEN_FDS stands for is wrong: {listener:?} does not listen");
        return Err(invalid(why));
    }
    let _ = listener;
    Ok(())
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
