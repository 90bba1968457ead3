//! The socket jobs on compio: `--driver epoll` or `io_uring`.

use std::convert::Infallible;
use std::io;

use compio::driver::{DriverType, ProactorBuilder};
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::RuntimeBuilder;
use kittiwake_benches::{Handler, Program, accept_each, owned_buffer_task, program};

fn main() {
    let program = Program::start();
    let driver = match program.driver.as_deref() {
        Some("epoll") => DriverType::Poll,
        Some("io_uring") => DriverType::IoUring,
        _ => program.refuse(),
    };
    let mut proactor = ProactorBuilder::new();
    proactor.driver_type(driver);
    let runtime = program::or_fail("no runtime", RuntimeBuilder::new().with_proactor(proactor).build());
    let Err(error) = runtime.block_on(serve(program.handler()));
    program::fail("compio", error);
}

async fn serve(handler: Handler) -> io::Result<Infallible> {
    let listener = program::listen();
    // io_uring waits in the kernel, but not on a socket that is non-blocking. `from_std` makes it non-blocking for epoll.
    listener.set_nonblocking(false)?;
    accept_each!(TcpListener::from_std(listener)?, stream => compio::runtime::spawn(handle(stream, handler)).detach())
}

owned_buffer_task!(TcpStream);
