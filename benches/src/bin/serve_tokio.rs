//! The socket jobs on tokio: `--driver current_thread`, or `multi_thread` with `--workers N`.

use std::convert::Infallible;
use std::io;

use kittiwake_benches::{Handler, Program, accept_each, borrowed_buffer_task, program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

fn main() {
    let program = Program::start();
    let runtime = program::or_fail("no runtime", runtime(&program));
    // The server is a task, as is usual: with several workers the future of `block_on` does not run on any of them.
    let ended = runtime.block_on(async { tokio::spawn(serve(program.handler())).await });
    program::fail("tokio", format!("{ended:?}"));
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    match program.driver.as_deref() {
        Some("current_thread") => Builder::new_current_thread().enable_all().build(),
        Some("multi_thread") => Builder::new_multi_thread().worker_threads(program.workers).enable_all().build(),
        _ => program.refuse(),
    }
}

async fn serve(handler: Handler) -> io::Result<Infallible> {
    accept_each!(TcpListener::from_std(program::listen())?, stream => tokio::spawn(handle(stream, handler)))
}

borrowed_buffer_task!(TcpStream);
