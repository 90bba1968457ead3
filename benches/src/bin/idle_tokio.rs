//! Idle connections on tokio: `--driver current_thread`, or `multi_thread` with `--workers N`.

use std::io;

use kittiwake_benches::{Program, program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

fn main() {
    let program = Program::start();
    let runtime = runtime(&program).unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    // In a task, as is usual: with several workers the future of `block_on` does not run on any of them.
    let server = runtime.block_on(async { tokio::spawn(serve()).await });
    program::fail(&format!("tokio: {server:?}"));
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    match program.driver.as_deref() {
        Some("current_thread") => Builder::new_current_thread().enable_all().build(),
        Some("multi_thread") => Builder::new_multi_thread().worker_threads(program.workers).enable_all().build(),
        _ => program.refuse(),
    }
}

async fn serve() -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::from_std(program::listen())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(echo(stream));
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
