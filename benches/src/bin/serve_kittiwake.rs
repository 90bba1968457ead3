//! The socket jobs on kittiwake.

use std::io;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake_benches::{Answer, Handler, Program, Session, program};

fn main() {
    let program = Program::start();
    let runtime = runtime(&program).unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    let Err(error) = runtime.block_on(serve(program.handler()));
    program::fail(&format!("kittiwake: {error}"));
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    let mut builder = Builder::new();
    if let Some(spin) = program.spin {
        builder = builder.spin(spin);
    }
    // One worker is all there is so far. With several, `program.workers` goes to the builder, and for more than one
    // `serve` below becomes a task, as in serve_tokio.rs.
    if program.workers != 1 || program.driver.is_some() {
        program.refuse();
    }
    builder.build()
}

async fn serve(handler: Handler) -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::from_std(program::listen())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        kittiwake::spawn(handle(stream, handler));
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
