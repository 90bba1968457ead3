//! A UDP server that sends each datagram back. Ctrl-C or SIGTERM ends it.
//! The sender of a datagram can be forged, so that two such servers answer each other for ever: use it among friends.
//! `cargo run --release --example udp_echo [ADDRESS]`, and as a client: `nc -u 127.0.0.1 7000`

use std::fmt;

use kittiwake::future::or;
use kittiwake::io;
use kittiwake::net::UdpSocket;
use kittiwake::signal;

const USAGE: &str = "usage: udp_echo [ADDRESS]    ADDRESS is where to receive, 127.0.0.1:7000 if not given";

/// UDP has no larger datagrams, so none is truncated.
const LARGEST: usize = 65_535;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let address = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => "127.0.0.1:7000",
        ["-h" | "--help"] => return println!("{USAGE}"),
        [address] if !address.starts_with('-') => address,
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        _ => fail(&format!("more than one address; {USAGE}")),
    };
    match kittiwake::block_on(serve(address)) {
        Ok(report) => println!("udp_echo: {report}"),
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("udp_echo: {why}");
    std::process::exit(2)
}

#[derive(Default)]
struct Report {
    echoed: u64,
    bytes: u64,
    failed: u64,
}

impl Report {
    /// Some senders cannot be answered: the port may be 0, or a firewall may forbid it. The others go on. No line is
    /// printed, because the sender could fill a log.
    fn count(&mut self, length: usize, sent: io::Result<usize>) {
        match sent {
            Ok(_) => (self.echoed, self.bytes) = (self.echoed + 1, self.bytes + length as u64),
            Err(_) => self.failed += 1,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} datagrams echoed, {} bytes; {} replies failed", self.echoed, self.bytes, self.failed)
    }
}

async fn serve(address: &str) -> io::Result<Report> {
    let asked = signal::terminate();
    let socket = UdpSocket::bind(address).await?;
    println!("udp_echo: listening on {}", socket.local_addr()?);
    let mut report = Report::default();
    or(asked, echo(&socket, &mut report)).await?;
    // These datagrams came before the signal. The kernel's queue is shorter than a thousand.
    let mut buf = vec![0; LARGEST];
    for _ in 0..1000 {
        let Ok((length, peer)) = socket.try_recv_from(&mut buf) else { break };
        report.count(length, socket.try_send_to(&buf[..length], peer));
    }
    Ok(report)
}

async fn echo(socket: &UdpSocket, report: &mut Report) -> io::Result<()> {
    let mut buf = vec![0; LARGEST];
    loop {
        let (length, peer) = socket.recv_from(&mut buf).await?;
        report.count(length, socket.send_to(&buf[..length], peer).await);
    }
}
