//! The job `http` on kittiwake's `hyper::serve`, with `--workers N` and `--spin MICROSECONDS`.
//!
//! This server finds out the protocol of each connection by itself.

use std::io;

use hyper::service::service_fn;
use kittiwake::net::TcpListener;
use kittiwake_benches::http::answer;
use kittiwake_benches::{Program, program};

#[path = "../runtimes/kittiwake.rs"]
mod runtime;

fn main() {
    let program = Program::start();
    program.http_handler();
    let runtime = program::or_fail("no runtime", runtime::build(&program));
    // The server is a task, because with several workers the future of `block_on` does not run on any of them.
    let ended = runtime.block_on(async { kittiwake::spawn(serve()).await });
    program::fail("kittiwake", format!("{ended:?}"));
}

async fn serve() -> io::Result<()> {
    let listener = TcpListener::from_std(program::listen())?;
    kittiwake::hyper::serve(listener, service_fn(answer)).await?;
    Ok(())
}
