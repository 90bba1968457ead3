//! The socket jobs on compio: `--driver epoll` or `io_uring`.

use std::io;

use compio::driver::{DriverType, ProactorBuilder};
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::{Runtime, RuntimeBuilder};
use kittiwake_benches::{Answer, Handler, Program, Session, program};

fn main() {
    let program = Program::start();
    let runtime = runtime(&program).unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    let Err(error) = runtime.block_on(serve(program.handler()));
    program::fail(&format!("compio: {error}"));
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    let driver = match program.driver.as_deref() {
        Some("epoll") => DriverType::Poll,
        Some("io_uring") => DriverType::IoUring,
        _ => program.refuse(),
    };
    let mut proactor = ProactorBuilder::new();
    proactor.driver_type(driver);
    RuntimeBuilder::new().with_proactor(proactor).build()
}

async fn serve(handler: Handler) -> io::Result<std::convert::Infallible> {
    let listener = program::listen();
    // io_uring waits by itself, but not for a socket that says it does not want to; for epoll, `from_std` says it again.
    listener.set_nonblocking(false)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        compio::runtime::spawn(handle(stream, handler)).detach();
    }
}

async fn handle(mut stream: TcpStream, handler: Handler) -> io::Result<()> {
    let mut session = Session::new(handler);
    let mut buffer = Vec::with_capacity(handler.buffer());
    loop {
        let (read, mut filled) = stream.read(buffer).await.into();
        let read = read?;
        if read == 0 {
            // Room for the session's last word.
            filled.resize(8, 0);
        }
        buffer = match session.answer(&mut filled, read) {
            Answer::Send(bytes) => {
                filled.truncate(bytes);
                let (written, returned) = stream.write_all(filled).await.into();
                written?;
                returned
            }
            Answer::ReadOn => filled,
            Answer::End => return Ok(()),
        };
    }
}
