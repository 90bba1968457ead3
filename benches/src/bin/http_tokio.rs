//! The job `http` on tokio with hyper-util's `TokioIo`: `--driver current_thread`, or `multi_thread` with `--workers N`.

use std::convert::Infallible;
use std::io;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kittiwake_benches::http::answer;
use kittiwake_benches::{Handler, Program, accept_each, program};
use tokio::net::TcpListener;

#[path = "../runtimes/tokio.rs"]
mod runtime;

fn main() {
    let program = Program::start();
    let runtime = program::or_fail("no runtime", runtime::build(&program));
    // The server is a task, as is usual: with several workers the future of `block_on` does not run on any of them.
    let ended = runtime.block_on(async { tokio::spawn(serve(program.http_handler())).await });
    program::fail("tokio", format!("{ended:?}"));
}

async fn serve(handler: Handler) -> io::Result<Infallible> {
    let listener = TcpListener::from_std(program::listen())?;
    let service = service_fn(answer);
    if handler == Handler::Http2 {
        let http2 = http2::Builder::new(TokioExecutor::new());
        accept_each!(listener, stream => {
            tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
        })
    } else {
        let http1 = http1::Builder::new();
        accept_each!(listener, stream => {
            tokio::spawn(http1.serve_connection(TokioIo::new(stream), service));
        })
    }
}
