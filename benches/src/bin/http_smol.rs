//! The job `http` on smol with smol-hyper's `FuturesIo`, with a `LocalExecutor`.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use kittiwake_benches::http::answer;
use kittiwake_benches::{Handler, Program, accept_each, program};
use smol::LocalExecutor;
use smol::net::TcpListener;
use smol_hyper::rt::FuturesIo;

/// hyper's executor. smol-hyper has one for smol's `Executor` alone.
#[derive(Clone)]
struct Local(Rc<LocalExecutor<'static>>);

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        self.0.spawn(future).detach();
    }
}

fn main() {
    let handler = Program::start().http_handler();
    let executor = Local(Rc::new(LocalExecutor::new()));
    let Err(error) = smol::block_on(executor.0.run(serve(&executor, handler)));
    program::fail("smol", error);
}

async fn serve(executor: &Local, handler: Handler) -> io::Result<Infallible> {
    let listener = TcpListener::try_from(program::listen())?;
    let service = service_fn(answer);
    if handler == Handler::Http2 {
        let http2 = http2::Builder::new(executor.clone());
        accept_each!(listener, stream => {
            executor.0.spawn(http2.serve_connection(FuturesIo::new(stream), service)).detach();
        })
    } else {
        let http1 = http1::Builder::new();
        accept_each!(listener, stream => {
            executor.0.spawn(http1.serve_connection(FuturesIo::new(stream), service)).detach();
        })
    }
}
