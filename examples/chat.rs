//! A chat over lines. Each line goes to all other clients. A client that reads too slowly is dropped, not waited for.
//! Ctrl-C or SIGTERM ends it. `cargo run --release --example chat [ADDRESS]`, then `nc 127.0.0.1 7000` in two terminals

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};

use kittiwake::future::or;
use kittiwake::io::{self, AsyncBufReadExt, AsyncReadExt, BufReader};
use kittiwake::net::{self, Report, Shutdown, ShutdownSignal, TcpKeepalive, TcpListener, TcpStream};
use kittiwake::signal::unix::{SignalKind, signal};
use kittiwake::time::{Duration, sleep, timeout};

const USAGE: &str = "usage: chat [ADDRESS]    ADDRESS is where to listen, 127.0.0.1:7000 if not given";
const MAX_LINE: u64 = 1000; // A longer line arrives in pieces.
const GRACE: Duration = Duration::from_secs(1); // For lines that are on their way when the chat ends.
const PAUSE: Duration = Duration::from_millis(10); // After each line, so that no client floods the others.
const SEND_BUFFER: usize = 64 * 1024; // The kernel keeps this for a client. No other buffer does.
type Members = Mutex<Vec<Weak<TcpStream>>>; // The task of each client owns its stream.

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let served = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [] => kittiwake::block_on(serve("127.0.0.1:7000")),
        [address] if !address.starts_with('-') => kittiwake::block_on(serve(address)),
        _ => Err(io::Error::other(format!("{args:?}? {USAGE}"))),
    };
    served.map(|report| println!("chat: {report}")).unwrap_or_else(|error| {
        eprintln!("chat: {error}");
        std::process::exit(2)
    });
}

async fn serve(address: &str) -> io::Result<Report> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (listener, shutdown, members) = (TcpListener::bind(address).await?, ShutdownSignal::new(), Arc::default());
    println!("chat: listening on {}", listener.local_addr()?);
    let server = net::serve(listener, |stream, peer| chat(stream, peer, Arc::clone(&members), shutdown.clone()));
    let server = server.with_shutdown(&shutdown).max_connections(500).on_error(|error| eprintln!("chat: {error}"));
    let ending = async move { or(interrupt.recv(), terminate.recv()).await.ok_or("cannot wait for signals") };
    Ok(server.with_graceful_shutdown(ending).drain_timeout(Duration::from_secs(5)).await?)
}

async fn chat(stream: TcpStream, peer: SocketAddr, all: Arc<Members>, mut shutdown: ShutdownSignal) -> io::Result<()> {
    stream.set_send_buffer_size(SEND_BUFFER)?;
    // A client whose machine has vanished does not say so. The kernel asks it.
    stream.set_keepalive(Some(TcpKeepalive::new().with_time(Duration::from_secs(60))))?;
    let stream = Arc::new(stream);
    all.lock().unwrap().push(Arc::downgrade(&stream));
    broadcast(&all, &stream, &format!("{peer} has joined\n"));
    let mut reader = BufReader::new(&*stream);
    let ended = loop {
        // The end of the chat comes between two lines: one that has begun is passed on.
        let begun = shutdown.run_with_grace(GRACE, reader.fill_buf()).await.transpose();
        // The list of members has the only weak reference.
        if Arc::weak_count(&stream) == 0 {
            break Err(io::Error::other("it reads too slowly"));
        } else if !matches!(begun, Ok(Some([_, ..]))) {
            break begun.map(drop);
        }
        let (mut line, mut piece) = (Vec::new(), (&mut reader).take(MAX_LINE));
        let read = piece.read_until(b'\n', &mut line).await;
        if read.is_err() || Arc::weak_count(&stream) == 0 {
            break read.and(Err(io::Error::other("it reads too slowly")));
        }
        // Control characters would act on the terminals of the others.
        let text: String = String::from_utf8_lossy(&line).chars().filter(|sign| !sign.is_control()).collect();
        broadcast(&all, &stream, &format!("{peer}: {text}\n"));
        sleep(PAUSE).await;
    };
    broadcast(&all, &stream, &format!("{peer} has left\n"));
    ended?;
    all.lock().unwrap().retain(|member| !std::ptr::eq(member.as_ptr(), &*stream));
    // A drop with unread input would be a reset, which the last lines may not survive.
    timeout(GRACE, stream.drain(1 << 20)).await.map_or(Ok(()), |drained| drained.map(drop))
}

/// Sends a line to all members but the sender, and waits for none.
fn broadcast(members: &Members, sender: &Arc<TcpStream>, line: &str) {
    members.lock().unwrap().retain(|member| {
        let Some(member) = member.upgrade() else { return false };
        let is_sender = Arc::ptr_eq(&member, sender);
        let stays = is_sender || matches!(member.try_write(line.as_bytes()), Ok(sent) if sent == line.len());
        if !stays {
            // The kernel throws away what this member has not read, and its task reads to an end.
            drop((member.set_zero_linger(), member.shutdown(Shutdown::Both)));
        }
        stays
    });
}
