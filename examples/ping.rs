//! A client for the echo servers: it sends lines, and prints how long the reply to each line takes.
//!
//! `cargo run --release --example ping [ADDRESS] [COUNT]`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use kittiwake::io::{self, AsyncBufReadExt, AsyncWriteExt, BufReader};
use kittiwake::net::TcpStream;

const USAGE: &str = "usage: ping [ADDRESS [COUNT]]    sends COUNT lines (5) to ADDRESS (127.0.0.1:7000)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["-h" | "--help"] = args[..] {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if let Some(option) = args.iter().find(|arg| arg.starts_with('-')) {
        return fail(&format!("unknown option {option}; {USAGE}"));
    }
    let address = args.first().copied().unwrap_or("127.0.0.1:7000");
    let count = match args.get(1).map_or(Ok(5), |count| count.parse::<u32>()) {
        Ok(count) if args.len() <= 2 => count,
        _ => return fail(USAGE),
    };
    match kittiwake::block_on(ping(address, count)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{address}: {error}")),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("ping: {why}");
    ExitCode::from(2)
}

async fn ping(address: &str, count: u32) -> io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut replies = BufReader::new(&stream);
    let mut reply = String::new();
    let (mut least, mut most, mut total) = (Duration::MAX, Duration::ZERO, Duration::ZERO);
    for number in 1..=count {
        let line = format!("ping {number}\n");
        let start = Instant::now();
        (&stream).write_all(line.as_bytes()).await?;
        reply.clear();
        replies.read_line(&mut reply).await?;
        let took = start.elapsed();
        if reply != line {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("sent {line:?}, got back {reply:?}")));
        }
        println!("{}: {took:.1?}", line.trim_end());
        (least, most, total) = (least.min(took), most.max(took), total + took);
    }
    if count > 0 {
        println!("{count} round trips: least {least:.1?}, mean {:.1?}, most {most:.1?}", total / count);
    }
    Ok(())
}
