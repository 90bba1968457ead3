//! Idle connections on kittiwake.

use std::io;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake_benches::{Program, program};

fn main() {
    let program = Program::start();
    // `block_on` has one.
    if program.workers != 1 {
        program.refuse();
    }
    let Err(error) = kittiwake::block_on(serve());
    program::fail(&format!("kittiwake: {error}"));
}

async fn serve() -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::from_std(program::listen())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        kittiwake::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}
