//! The laws of streams, for TCP, and the tests of what only TCP has.

#[path = "../ends.rs"]
mod ends;
#[path = "../halves.rs"]
mod halves;
#[path = "../methods.rs"]
mod methods;
mod options;
#[path = "../resets.rs"]
mod resets;
mod slow_reader;
#[path = "../timeouts/mod.rs"]
mod timeouts;
#[path = "../transfers.rs"]
mod transfers;

use std::io::ErrorKind;
use std::net::TcpStream as Peer;
use std::os::fd::AsFd;

use kittiwake::net::TcpStream as Stream;
use socket2::SockRef;

use crate::support::*;

/// The kernel reports a reset to the first operation that comes, also to a write.
const RESET_AT_WRITE: ErrorKind = ErrorKind::ConnectionReset;

fn send_at_once(socket: &impl AsFd) {
    SockRef::from(socket).set_tcp_nodelay(true).expect("TCP_NODELAY");
}

fn allow_reset(_: &impl AsFd) {}

fn reset(peer: Peer) {
    crate::support::reset(peer);
}
