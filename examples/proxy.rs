//! A TCP proxy. It passes on the end of each direction, and resets. A connection that is idle for too long is reset.
//! The first Ctrl-C or SIGTERM gives the open connections 25 seconds to end. The second one resets them.
//! `cargo run --release --example proxy [--idle SECONDS] [ADDRESS BACKEND]`, beside the echo example: `nc 127.0.0.1 7001`

use std::{error::Error, mem};

use kittiwake::io::{self, copy_bidirectional};
use kittiwake::net::{self, Report, TcpListener, TcpStream};
use kittiwake::{signal, time::Duration};

const USAGE: &str = "usage: proxy [--idle SECONDS] [ADDRESS BACKEND]    60, 127.0.0.1:7001 and :7000 if not given";

/// Each client takes two descriptors, and many systems allow a process 1,024. More clients wait to be accepted.
const CLIENTS: usize = 500;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (seconds, rest) = if let ["--idle", given, rest @ ..] = &args[..] { (*given, rest) } else { ("60", &args[..]) };
    let idle = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(idle) = idle.filter(|idle| !idle.is_zero()) else { fail(&format!("{seconds:?} seconds? {USAGE}")) };
    let (address, backend) = match *rest {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [option, ..] | [_, option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        [] => ("127.0.0.1:7001", "127.0.0.1:7000"),
        [address, backend] => (address, backend),
        _ => fail(&format!("two addresses or none; {USAGE}")),
    };
    match kittiwake::block_on(serve(address, backend.to_owned(), idle)) {
        Ok(report) => println!("proxy: {report}"),
        Err(error) => fail(&format!("cannot serve on {address} for {backend}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("proxy: {why}");
    std::process::exit(2)
}

async fn serve(address: &str, backend: String, idle: Duration) -> io::Result<Report> {
    let (first, second) = (signals(1), signals(2));
    // A mistake in this address shows now, and not when the first client comes.
    let _ = net::lookup_host(backend.as_str()).await?;
    let listener = TcpListener::bind(address).await?;
    println!("proxy: listening on {}", listener.local_addr()?);
    let server = net::serve(listener, |client, _| proxy(client, backend.clone(), idle)).nodelay(true);
    let server = server.max_connections(CLIENTS).on_error(|error| eprintln!("proxy: {error}"));
    Ok(server.with_graceful_shutdown(first).with_immediate_shutdown(second).await?)
}

/// Waits until `count` signals have arrived from this call on. Ctrl-C and SIGTERM both count.
fn signals(count: u32) -> impl Future<Output = io::Result<()>> + Send {
    let mut asked = signal::terminate();
    async move {
        for _ in 0..count {
            (&mut asked).await?;
        }
        Ok(())
    }
}

/// Resets a connection when it is dropped. To the peer, a cut must not look like the end of the data.
struct Cut<'a>(&'a TcpStream);

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        // This fails if the connection has ended. Then there is nothing to reset.
        let _ = self.0.set_zero_linger();
    }
}

async fn proxy(client: TcpStream, backend: String, idle: Duration) -> Result<(), Box<dyn Error + Send + Sync>> {
    let cut_client = Cut(&client);
    let server = TcpStream::connect_timeout(backend, Duration::from_secs(10)).await?;
    let cut_server = Cut(&server);
    server.set_nodelay(true)?;
    copy_bidirectional(&client, &server).idle_timeout(idle).await?;
    mem::forget((cut_client, cut_server));
    Ok(())
}
