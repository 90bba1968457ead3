//! The socket jobs on kittiwake, with `--workers N` and `--spin MICROSECONDS`.

use std::io;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake_benches::{Answer, Handler, Program, Session, program};

fn main() {
    let program = Program::start();
    let runtime = runtime(&program).unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    // In a task: with several workers the future of `block_on` does not run on any of them.
    let server = runtime.block_on(async { kittiwake::spawn(serve(program.handler())).await });
    program::fail(&format!("kittiwake: {server:?}"));
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    if program.driver.is_some() {
        program.refuse();
    }
    let mut builder = match program.workers {
        1 => Builder::new_current_thread(),
        workers => Builder::new_multi_thread().worker_threads(workers),
    };
    if let Some(spin) = program.spin {
        builder = builder.spin(spin);
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
