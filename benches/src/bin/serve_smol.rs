//! The socket jobs on smol, with a `LocalExecutor`.

use std::convert::Infallible;
use std::io;

use kittiwake_benches::{Handler, Program, accept_each, borrowed_buffer_task, program};
use smol::LocalExecutor;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};

fn main() {
    let handler = Program::start().handler();
    let executor = LocalExecutor::new();
    let Err(error) = smol::block_on(executor.run(serve(&executor, handler)));
    program::fail("smol", error);
}

async fn serve(executor: &LocalExecutor<'static>, handler: Handler) -> io::Result<Infallible> {
    accept_each!(TcpListener::try_from(program::listen())?, stream => executor.spawn(handle(stream, handler)).detach())
}

borrowed_buffer_task!(TcpStream);
