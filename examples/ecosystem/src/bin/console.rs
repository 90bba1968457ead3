//! An echo server whose tasks `tokio-console` shows. Ctrl-C or SIGTERM ends it.
//! `cargo run --release --bin console [ADDRESS [CONSOLE]]`, then `tokio-console` in another terminal
//!
//! `console-subscriber` brings tokio, in which it runs its own server, on a thread of its own. Our tasks do not.

use std::{env, net::SocketAddr, process};

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, Report, TcpListener, TcpStream};
use kittiwake::time::{Duration, interval};
use kittiwake::{signal::terminate, task};

const USAGE: &str = "usage: console [ADDRESS [CONSOLE]]
ADDRESS  where to listen; 127.0.0.1:7000 if not given
CONSOLE  where tokio-console may connect; 127.0.0.1:6669 if not given";

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (address, console) = match args[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        [] => ("127.0.0.1:7000", "127.0.0.1:6669"),
        [address] => (address, "127.0.0.1:6669"),
        [address, console] => (address, console),
        _ => fail(USAGE),
    };
    let Ok(console) = console.parse::<SocketAddr>() else { fail(&format!("{console:?} is no address; {USAGE}")) };
    if !cfg!(console_without_tokio_unstable) {
        // `.cargo/config.toml` has it, unless the variable is set to something else.
        fail("built without RUSTFLAGS='--cfg console_without_tokio_unstable', which console-subscriber demands");
    }
    // Before the first task is spawned: a task that was there before has no span.
    console_subscriber::ConsoleLayer::builder().server_addr(console).init();
    match kittiwake::block_on(serve(address)) {
        Ok(report) => println!("console: {report}"),
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("console: {why}");
    process::exit(2)
}

async fn serve(address: &str) -> io::Result<Report> {
    let ending = terminate();
    let listener = TcpListener::bind(address).await?;
    println!("console: listening on {}", listener.local_addr()?);
    task::Builder::new().name("clock").spawn(tick());
    // In a task, because the future of `block_on` has no span.
    let server = net::serve(listener, |stream, _| echo(stream)).with_graceful_shutdown(ending);
    Ok(task::Builder::new().name("server").spawn(server).await??)
}

/// A task that waits for a timer, and for closures that block.
async fn tick() {
    let mut ticks = interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let blocked = task::Builder::new().name("nap").spawn_blocking(|| std::thread::sleep(Duration::from_millis(5)));
        blocked.await.expect("a nap does not panic");
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            n => stream.write_all(&buf[..n]).await?,
        }
    }
}
