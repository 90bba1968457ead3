//! The socket jobs on monoio: `--driver epoll` or `io_uring`.

use std::io;

use kittiwake_benches::{Answer, Handler, Program, Session, program};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

fn main() {
    let program = Program::start();
    let ended = match program.driver.as_deref() {
        Some("epoll") => RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .and_then(|mut runtime| runtime.block_on(serve(program.handler(), true))),
        Some("io_uring") => RuntimeBuilder::<IoUringDriver>::new()
            .enable_timer()
            .build()
            .and_then(|mut runtime| runtime.block_on(serve(program.handler(), false))),
        _ => program.refuse(),
    };
    let Err(error) = ended;
    program::fail(&format!("monoio: {error}"));
}

async fn serve(handler: Handler, nonblocking: bool) -> io::Result<std::convert::Infallible> {
    let listener = program::listen();
    // io_uring waits by itself, but not for a socket that says it does not want to.
    listener.set_nonblocking(nonblocking)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        monoio::spawn(handle(stream, handler));
    }
}

async fn handle(mut stream: TcpStream, handler: Handler) -> io::Result<()> {
    let mut session = Session::new(handler);
    let mut buffer = Vec::with_capacity(handler.buffer());
    loop {
        let (read, mut filled) = stream.read(buffer).await;
        let read = read?;
        if read == 0 {
            // Room for the session's last word.
            filled.resize(8, 0);
        }
        buffer = match session.answer(&mut filled, read) {
            Answer::Send(bytes) => {
                filled.truncate(bytes);
                let (written, returned) = stream.write_all(filled).await;
                written?;
                returned
            }
            Answer::ReadOn => filled,
            Answer::End => return Ok(()),
        };
    }
}
