//! A server that shares nothing between its threads. Each thread has a runtime, a listener and a state of its own, which
//! need not be `Send`. The kernel shares the clients among the listeners. Ctrl-C or SIGTERM ends all of them.
//! `cargo run --release --example one_per_core [--workers N] [ADDRESS]`, then `nc 127.0.0.1 7000`, and type lines

use std::{cell::Cell, net::SocketAddr, rc::Rc, thread};

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{Report, ShutdownSignal, TcpListener, TcpSocket, TcpStream, serve_local};
use kittiwake::signal::{Terminate, terminate};
use kittiwake::time::{Duration, timeout};

const USAGE: &str = "usage: one_per_core [--workers N] [ADDRESS]    on all cores, at 127.0.0.1:7000 if not given";
const GRACE: Duration = Duration::from_secs(1);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let cores = thread::available_parallelism().map_or(1, usize::from).to_string();
    let (number, rest) =
        if let ["--workers", number, rest @ ..] = &args[..] { (*number, rest) } else { (&*cores, &args[..]) };
    let Ok(workers @ 1..=1024) = number.parse() else { fail(&format!("{number:?} workers? From 1 to 1024; {USAGE}")) };
    let address = match *rest {
        [] => "127.0.0.1:7000",
        ["-h" | "--help"] => return println!("{USAGE}"),
        [address] if !address.starts_with('-') => address,
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        _ => fail(&format!("more than one address; {USAGE}")),
    };
    let reports = run(workers, address).unwrap_or_else(|error| fail(&format!("cannot serve on {address}: {error}")));
    reports.iter().enumerate().for_each(|(number, report)| println!("one_per_core: worker {number}: {report}"));
}

fn fail(why: &str) -> ! {
    eprintln!("one_per_core: {why}");
    std::process::exit(2)
}

/// Runs a server on each of `workers` threads, and waits until all have ended.
fn run(workers: usize, address: &str) -> io::Result<Vec<Report>> {
    // The first listener gets the port, if that is 0, and the others share it.
    let first = listen(address.parse().map_err(io::Error::other)?)?;
    let (address, shutdown) = (first.local_addr()?, ShutdownSignal::new());
    let others: Vec<_> = (1..workers).map(|_| listen(address)).collect::<io::Result<_>>()?;
    let servers = [first].into_iter().chain(others).enumerate().map(|(number, listener)| {
        let (shutdown, ending) = (shutdown.clone(), terminate());
        move || kittiwake::block_on(serve(number, listener, shutdown, ending))
    });
    let threads: Vec<_> = servers.map(thread::spawn).collect();
    println!("one_per_core: listening on {address}");
    threads.into_iter().map(|thread| thread.join().expect("a server does not panic")).collect()
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?; // Listeners with this option can share a port.
    socket.bind(address)?;
    socket.listen(1024)
}

async fn serve(id: usize, listener: TcpListener, end: ShutdownSignal, ending: Terminate) -> io::Result<Report> {
    let answered = Rc::new(Cell::new(0_u64)); // No lock, and no atomic operation: only this thread has it.
    let server = serve_local(listener, |stream, _| count(id, stream, Rc::clone(&answered), end.clone()));
    let server = server.nodelay(true).on_error(|error| eprintln!("one_per_core: {error}"));
    // The servers share the signal, so none goes on alone after another has failed.
    Ok(server.with_shutdown(&end).with_graceful_shutdown(ending).drain_timeout(Duration::from_secs(5)).await?)
}

/// Answers each line with the number of the worker, and the number of lines that this worker has answered.
async fn count(id: usize, mut stream: TcpStream, answered: Rc<Cell<u64>>, mut end: ShutdownSignal) -> io::Result<()> {
    let mut buf = [0; 4096];
    // After the signal a client is served until it is silent for the grace.
    while let Some(read @ 1..) = end.run_with_grace(GRACE, stream.read(&mut buf)).await.transpose()? {
        let mut replies = String::new();
        for _ in buf[..read].iter().filter(|byte| **byte == b'\n') {
            answered.set(answered.get() + 1);
            replies += &format!("worker {id}: {}\n", answered.get());
        }
        stream.write_all(replies.as_bytes()).await?;
    }
    // A drop with unread input would be a reset, which the replies may not survive.
    let _ = timeout(GRACE, stream.drain(1 << 20)).await;
    Ok(())
}
