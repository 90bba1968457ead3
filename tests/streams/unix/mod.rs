//! The laws of streams, for Unix streams, and the tests of what only they have.
//!
//! On Linux, where these tests run, they differ from TCP:
//! * A close with unread input is the only reset. The kernel keeps it for a reader, so the first write after it fails
//!   with `BrokenPipe`.
//! * A short read does not prove that nothing is left. So the next read makes a system call.
//! * The kernel reports room for writing once at most a quarter of the send buffer is in use.
//! * The kernel does not report a shutdown of the writing side while the send buffer is full. kittiwake does.

mod addresses;
#[path = "../ends.rs"]
mod ends;
#[path = "../halves.rs"]
mod halves;
#[path = "../methods.rs"]
mod methods;
#[path = "../resets.rs"]
mod resets;
#[path = "../timeouts/mod.rs"]
mod timeouts;
#[path = "../transfers.rs"]
mod transfers;

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Peer;

use kittiwake::net::UnixStream as Stream;
use socket2::SockRef;

use crate::support::*;

/// The kernel keeps the reset for a reader.
const RESET_AT_WRITE: ErrorKind = ErrorKind::BrokenPipe;

async fn pair() -> (Stream, Stream) {
    Stream::pair().expect("a pair")
}

fn pair_with_std() -> (Stream, Peer) {
    let (ours, peer) = Peer::pair().expect("a pair");
    peer.set_read_timeout(Some(PATIENCE)).expect("a bound on the peer's reads");
    peer.set_write_timeout(Some(PATIENCE)).expect("a bound on the peer's writes");
    (Stream::from_std(ours).expect("from_std"), peer)
}

/// A Unix stream sends each write at once anyway.
fn send_at_once(_: &impl AsFd) {}

/// Gives the peer input that it never reads.
fn allow_reset(socket: &impl AsFd) {
    match SockRef::from(socket).send(b"unread") {
        // Then the peer has input already.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        sent => assert_eq!(sent.expect("send"), 6),
    }
}

#[track_caller]
fn reset(peer: Peer) {
    let unread = SockRef::from(&peer).peek(&mut [MaybeUninit::uninit()]);
    assert!(unread.is_ok_and(|length| length > 0), "without unread input the close is no reset");
}
