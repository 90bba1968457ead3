//! The socket jobs on kittiwake, with `--workers N` and `--spin MICROSECONDS`.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, TcpListener, TcpStream};
use kittiwake_benches::{Handler, Program, Task, accept_each, borrowed_buffer_task, program};

/// Far longer than any job leaves a connection idle.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

#[path = "../runtimes/kittiwake.rs"]
mod runtime;

fn main() {
    let program = Program::start();
    let Task::Serve { handler } = program.task else { program.refuse() };
    let runtime = program::or_fail("no runtime", runtime::build(&program));
    // The server is a task, because with several workers the future of `block_on` does not run on any of them.
    let ended = runtime.block_on(async { kittiwake::spawn(serve(handler)).await });
    program::fail("kittiwake", format!("{ended:?}"));
}

async fn serve(handler: Handler) -> io::Result<Infallible> {
    let listener = TcpListener::from_std(program::listen())?;
    if handler == Handler::Guarded {
        let report = net::serve(listener, |stream, _| guarded(stream)).await?;
        program::fail("kittiwake", format!("{report:?}"));
    }
    accept_each!(listener, stream => kittiwake::spawn(handle(stream, handler)))
}

async fn guarded(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    handle(stream, Handler::Guarded).await
}

borrowed_buffer_task!(TcpStream);
