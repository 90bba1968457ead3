//! A program with tasks of many kinds, and the page that shows them. Ctrl-C or SIGTERM ends it.
//! `cargo run --release --features inspect --example inspect [--tasks N] [ADDRESS]`, then open the printed address in a
//! browser.
//!
//! It is an echo server with clients of its own, all on loopback. One client does not read its answers, one task blocks
//! its worker for 20 ms each second, one waits for a channel, and N of them only sleep.

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{Report, ShutdownSignal, TcpListener, TcpStream, serve};
use kittiwake::runtime::Builder;
use kittiwake::time::{Duration, interval, sleep, timeout};
use kittiwake::{inspect, signal, spawn, spawn_blocking, task};

const USAGE: &str = "usage: inspect [--tasks N] [ADDRESS]
N        how many tasks only sleep; 10 if not given
ADDRESS  where the page is; 127.0.0.1:7001 if not given";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (tasks, rest) = if let ["--tasks", n, rest @ ..] = &args[..] { (n.parse(), rest) } else { (Ok(10), &args[..]) };
    let (tasks, address) = match (tasks, rest) {
        (_, ["-h" | "--help", ..]) => return println!("{USAGE}"),
        (Ok(tasks), []) => (tasks, "127.0.0.1:7001"),
        (Ok(tasks), [address]) if !address.starts_with('-') => (tasks, *address),
        _ => fail(&format!("{args:?}? {USAGE}")),
    };
    let runtime = Builder::new_multi_thread().worker_threads(2).measure_polls(true).build();
    let ended = runtime.and_then(|runtime| runtime.block_on(run(tasks, address)));
    println!("inspect: {}", ended.unwrap_or_else(|error| fail(&error.to_string())));
}

fn fail(why: &str) -> ! {
    eprintln!("inspect: {why}");
    std::process::exit(2)
}

async fn run(tasks: usize, address: &str) -> io::Result<Report> {
    let listener = TcpListener::bind(address).await?;
    println!("inspect: listening on {}", listener.local_addr()?);
    let _client = start_tasks(tasks).await?;
    let shutdown = ShutdownSignal::new();
    let page = inspect::serve(listener).with_shutdown(&shutdown);
    spawn(async move {
        let _ = signal::terminate().await;
        shutdown.trigger();
    });
    page.await
}

/// Starts the tasks. They end with the runtime. The client that does not read lives as long as its stream is kept.
async fn start_tasks(tasks: usize) -> io::Result<TcpStream> {
    let echo = TcpListener::bind("127.0.0.1:0").await?;
    let address = echo.local_addr()?;
    spawn(serve(echo, |stream, _| answer(stream)));
    let client = task::Builder::new().name("client");
    for _ in 0..4 {
        client.spawn(ask(TcpStream::connect(address).await?));
    }
    // Its answers fill the buffers between it and the server.
    let mut deaf = TcpStream::connect(address).await?;
    let _ = timeout(Duration::from_millis(200), deaf.write_all(&vec![0; 64 << 20])).await;
    for n in 0..tasks as u64 {
        spawn(async move {
            loop {
                sleep(Duration::from_millis(20_000 + n * 7919 % 60_000)).await;
            }
        });
    }
    task::Builder::new().name("blocks its worker").spawn(block_a_worker());
    let slow_closure = spawn_blocking(|| std::thread::sleep(Duration::from_secs(3600)));
    spawn(async move { drop(slow_closure.await) });
    let (sender, receiver) = async_channel::bounded::<()>(1);
    spawn(async move {
        let _ = receiver.recv().await;
        // The channel stays open, as this task has its other end too.
        drop(sender);
    });
    Ok(deaf)
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buf = [0; 4096];
    // A client that is silent for a minute is cut off.
    while let Ok(read @ 1..) = timeout(Duration::from_secs(60), stream.read(&mut buf)).await? {
        stream.write_all(&buf[..read]).await?;
    }
    Ok(())
}

/// A client that asks a hundred times a second.
async fn ask(mut stream: TcpStream) -> io::Result<()> {
    let mut ticks = interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        stream.write_all(b"a question").await?;
        stream.read_exact(&mut [0; 10]).await?;
    }
}

/// A task with the error that the page makes visible: it blocks the thread of its worker.
async fn block_a_worker() {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        std::thread::sleep(Duration::from_millis(20));
    }
}
