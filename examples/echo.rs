//! An echo server: whatever a client sends comes back.
//!
//! `cargo run --release --example echo [ADDRESS]`

use std::process::ExitCode;

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::time::{Duration, sleep};

const USAGE: &str = "usage: echo [ADDRESS]    ADDRESS is where to listen, 127.0.0.1:7000 if not given";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let address = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => "127.0.0.1:7000",
        ["-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [address] if !address.starts_with('-') => address,
        [option, ..] if option.starts_with('-') => return fail(&format!("unknown option {option}; {USAGE}")),
        _ => return fail(&format!("more than one address; {USAGE}")),
    };
    match kittiwake::block_on(serve(address)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("echo: {why}");
    ExitCode::from(2)
}

async fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("echo: listening on {}", listener.local_addr()?);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(kittiwake::spawn(echo(stream))),
            // Mostly out of descriptors, and so would be the next call: let some connections end.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            read => stream.write_all(&buf[..read]).await?,
        }
    }
}
