//! The socket jobs on tokio: `--driver current_thread`, or `multi_thread` with `--workers N`.

use std::convert::Infallible;
use std::io;

use kittiwake_benches::{Handler, Program, accept_each, borrowed_buffer_task, program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[path = "../runtimes/tokio.rs"]
mod runtime;

fn main() {
    let program = Program::start();
    let runtime = program::or_fail("no runtime", runtime::build(&program));
    // The server is a task, as is usual: with several workers the future of `block_on` does not run on any of them.
    let ended = runtime.block_on(async { tokio::spawn(serve(program.handler())).await });
    program::fail("tokio", format!("{ended:?}"));
}

async fn serve(handler: Handler) -> io::Result<Infallible> {
    accept_each!(TcpListener::from_std(program::listen())?, stream => tokio::spawn(handle(stream, handler)))
}

borrowed_buffer_task!(TcpStream);
