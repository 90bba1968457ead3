//! A hand-written loop on mio. It is edge-triggered and reads until a read is short.

use std::convert::Infallible;
use std::io;

use kittiwake_benches::by_hand::{Connection, Next, ready};
use kittiwake_benches::{Handler, Program, program};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const EVENTS: usize = 1024;
const LISTENER: Token = Token(usize::MAX);

fn main() {
    let handler = Program::start().handler();
    let Err(error) = serve(TcpListener::from_std(program::listen()), handler);
    program::fail("by_hand_mio", error);
}

fn serve(mut listener: TcpListener, handler: Handler) -> io::Result<Infallible> {
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections = Slab::new();
    let mut buffer = vec![0; handler.buffer()];
    let mut events = Events::with_capacity(EVENTS);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Some((mut stream, _)) = ready(listener.accept())? {
                    stream.set_nodelay(true)?;
                    let entry = connections.vacant_entry();
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(entry.key()), interest)?;
                    entry.insert(Connection::new(stream, handler));
                }
                continue;
            }
            let key = event.token().0;
            let Some(connection) = connections.get_mut(key) else { continue };
            // No edge follows the client's last byte, so this reads to the end.
            let to_the_end = event.is_read_closed();
            let next = loop {
                match connection.step(&mut buffer) {
                    Next::More => {}
                    Next::Wait if to_the_end => {}
                    next => break next,
                }
            };
            if next == Next::Close {
                connections.remove(key);
            }
        }
    }
}
