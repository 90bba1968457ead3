//! An echo server on one thread. Ctrl-C or SIGTERM shuts it down gracefully. A second signal ends it at once.
//!
//! `cargo run --release --example serve [ADDRESS]`

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, Report, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::signal;
use kittiwake::time::{Duration, timeout};

const USAGE: &str = "usage: serve [ADDRESS]    ADDRESS is where to listen, 127.0.0.1:7000 if not given";
const GRACE: Duration = Duration::from_secs(1);

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
        Ok(report) => println!("serve: {report}"),
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("serve: {why}");
    std::process::exit(2)
}

async fn serve(address: &str) -> io::Result<Report> {
    let (first, second) = (signals(1), signals(2));
    let (listener, shutdown) = (TcpListener::bind(address).await?, ShutdownSignal::new());
    println!("serve: listening on {}", listener.local_addr()?);
    let server = net::serve(listener, |stream, _| echo(stream, shutdown.clone())).with_shutdown(&shutdown);
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

async fn echo(mut stream: TcpStream, mut shutdown: ShutdownSignal) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buf = [0; 4096];
    // An echo cannot know where a request ends. After the signal it goes on until the client is silent for a second.
    while let Some(read @ 1..) = shutdown.run_with_grace(GRACE, stream.read(&mut buf)).await.transpose()? {
        stream.write_all(&buf[..read]).await?;
    }
    // If the client sends again, a plain close would be a reset, which its last answers may not survive.
    let _ = timeout(GRACE, stream.drain(1 << 20)).await;
    Ok(())
}
