//! The socket jobs on smol, with a `LocalExecutor`.

use std::io;

use kittiwake_benches::{Answer, Handler, Program, Session, program};
use smol::LocalExecutor;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};

fn main() {
    let program = Program::start();
    let executor = LocalExecutor::new();
    let Err(error) = smol::block_on(executor.run(serve(&executor, program.handler())));
    program::fail(&format!("smol: {error}"));
}

async fn serve(executor: &LocalExecutor<'static>, handler: Handler) -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::try_from(program::listen())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        executor.spawn(handle(stream, handler)).detach();
    }
}

async fn handle(mut stream: TcpStream, handler: Handler) -> io::Result<()> {
    let mut session = Session::new(handler);
    let mut buffer = vec![0; handler.buffer()];
    loop {
        let read = stream.read(&mut buffer).await?;
        match session.answer(&mut buffer, read) {
            Answer::Send(bytes) => stream.write_all(&buffer[..bytes]).await?,
            Answer::ReadOn => {}
            Answer::End => return Ok(()),
        }
    }
}
