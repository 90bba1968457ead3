//! The floor: a hand-written loop on epoll. It is level-triggered and reads once for each event.

use std::convert::Infallible;
use std::io;
use std::net::{TcpListener, TcpStream};

use kittiwake_benches::by_hand::{Connection, Next};
use kittiwake_benches::{Handler, Program, program};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{SocketFlags, accept_with};
use slab::Slab;

const EVENTS: usize = 1024;
const LISTENER: u64 = u64::MAX;

fn main() {
    let handler = Program::start().handler();
    let Err(error) = serve(&program::listen(), handler);
    program::fail("by_hand_epoll", error);
}

fn serve(listener: &TcpListener, handler: Handler) -> io::Result<Infallible> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections = Slab::new();
    let mut buffer = vec![0; handler.buffer()];
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            if event.data.u64() == LISTENER {
                let stream = TcpStream::from(accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?);
                stream.set_nodelay(true)?;
                let entry = connections.vacant_entry();
                epoll::add(&epoll, &stream, EventData::new_u64(entry.key() as u64), EventFlags::IN)?;
                entry.insert(Connection::new(stream, handler));
                continue;
            }
            let key = event.data.u64() as usize;
            let flags = event.flags;
            let wrote = flags.contains(EventFlags::OUT);
            let connection = &mut connections[key];
            let next = connection.step(&mut buffer);
            if next == Next::Close {
                connections.remove(key);
            } else if wrote != (next == Next::WaitToWrite) {
                let interest = if wrote { EventFlags::IN } else { EventFlags::OUT };
                epoll::modify(&epoll, &connection.stream, event.data, interest)?;
            }
        }
    }
}
