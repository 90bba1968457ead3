//! The socket jobs on monoio: `--driver epoll` or `io_uring`.

use std::convert::Infallible;
use std::io;

use kittiwake_benches::{Handler, Program, accept_each, owned_buffer_task, program};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

fn main() {
    let program = Program::start();
    let handler = program.handler();
    let ended = match program.driver.as_deref() {
        Some("epoll") => RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .and_then(|mut runtime| runtime.block_on(serve(handler, true))),
        Some("io_uring") => RuntimeBuilder::<IoUringDriver>::new()
            .enable_timer()
            .build()
            .and_then(|mut runtime| runtime.block_on(serve(handler, false))),
        _ => program.refuse(),
    };
    let Err(error) = ended;
    program::fail("monoio", error);
}

async fn serve(handler: Handler, nonblocking: bool) -> io::Result<Infallible> {
    let listener = program::listen();
    // io_uring waits in the kernel, but not on a socket that is non-blocking.
    listener.set_nonblocking(nonblocking)?;
    accept_each!(TcpListener::from_std(listener)?, stream => monoio::spawn(handle(stream, handler)))
}

owned_buffer_task!(TcpStream);
