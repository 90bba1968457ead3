//! Idle connections on smol, with a `LocalExecutor`.

use std::io;

use kittiwake_benches::{Program, program};
use smol::LocalExecutor;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};

fn main() {
    Program::start();
    let executor = LocalExecutor::new();
    let Err(error) = smol::block_on(executor.run(serve(&executor)));
    program::fail(&format!("smol: {error}"));
}

async fn serve(executor: &LocalExecutor<'static>) -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::try_from(program::listen())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        executor.spawn(echo(stream)).detach();
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
