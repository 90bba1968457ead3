//! The echo as a server in production has it, on kittiwake: `serve` accepts, and each stream has a read timeout.

use std::io;
use std::time::Duration;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, TcpListener, TcpStream};
use kittiwake_benches::{Program, program};

/// Far longer than any job leaves a connection idle.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

fn main() {
    let program = Program::start();
    // `block_on` has one.
    if program.workers != 1 {
        program.refuse();
    }
    let ended = kittiwake::block_on(async {
        let listener = TcpListener::from_std(program::listen())?;
        net::serve(listener, |stream, _| echo(stream)).await
    });
    program::fail(&format!("kittiwake: {ended:?}"));
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}
