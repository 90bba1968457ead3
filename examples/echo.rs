//! An echo server with a choice of worker threads. Ctrl-C or SIGTERM shuts it down; a second signal ends it at once.
//! `cargo run --release --example echo [--workers N] [ADDRESS]`

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, Report, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::time::{Duration, timeout};
use kittiwake::{runtime::Builder, signal};

const USAGE: &str = "usage: echo [--workers N] [ADDRESS]    on 1 thread, at 127.0.0.1:7000 if not given";
const GRACE: Duration = Duration::from_secs(1);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (number, rest) =
        if let ["--workers", number, rest @ ..] = &args[..] { (*number, rest) } else { ("1", &args[..]) };
    let Ok(workers @ 1..=1024) = number.parse() else { fail(&format!("{number:?} workers? From 1 to 1024; {USAGE}")) };
    let address = match *rest {
        [] => "127.0.0.1:7000",
        ["-h" | "--help"] => return println!("{USAGE}"),
        [address] if !address.starts_with('-') => address,
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        _ => fail(&format!("more than one address; {USAGE}")),
    };
    let runtime = if workers == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    let report = runtime.worker_threads(workers).build().and_then(|runtime| runtime.block_on(serve(address)));
    println!("echo: {}", report.unwrap_or_else(|error| fail(&format!("cannot serve on {address}: {error}"))));
}

fn fail(why: &str) -> ! {
    eprintln!("echo: {why}");
    std::process::exit(2)
}

async fn serve(address: &str) -> io::Result<Report> {
    let mut asked = signal::terminate();
    let (listener, shutdown) = (TcpListener::bind(address).await?, ShutdownSignal::new());
    println!("echo: listening on {}", listener.local_addr()?);
    let server = net::serve(listener, |stream, _| echo(stream, shutdown.clone())).with_shutdown(&shutdown);
    let ending = shutdown.clone();
    let signals = async move {
        (&mut asked).await?;
        ending.trigger();
        asked.await
    };
    Ok(server.with_immediate_shutdown(signals).await?)
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
