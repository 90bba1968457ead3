//! A store of keys and values over lines, with expiry, limits and metrics. Ctrl-C or SIGTERM ends it.
//! `cargo run --release --example kv [ADDRESS [IDLE_SECONDS]]`, then `nc 127.0.0.1 7000`, and type `set bird 60 kittiwake`

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kittiwake::future::or;
use kittiwake::io::{self, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use kittiwake::net::{self, Report, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::runtime::Handle;
use kittiwake::signal::unix::{SignalKind, signal};
use kittiwake::time::{Duration, Instant, timeout};

const USAGE: &str = "usage: kv [ADDRESS [IDLE_SECONDS]]    127.0.0.1:7000 and 60 if not given";
const MISTAKE: &str = "error: get KEY, set KEY SECONDS VALUE, del KEY or stats, in UTF-8 and at most 4096 bytes";
const GRACE: Duration = Duration::from_secs(1); // For requests that are on their way when the store ends.
const MAX_LINE: u64 = 4096;
const MAX_KEYS: usize = 10_000;
type Store = HashMap<String, (String, Instant)>; // A value expires at the instant beside it.

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let address = args.first().map_or("127.0.0.1:7000", String::as_str);
    let served = match args.get(1).map_or("60", String::as_str).parse().map(Duration::try_from_secs_f64) {
        _ if matches!(address, "-h" | "--help") => return println!("{USAGE}"),
        Ok(Ok(idle)) if args.len() <= 2 && !idle.is_zero() => kittiwake::block_on(serve(address, idle)),
        _ => Err(io::Error::other(format!("{args:?}? {USAGE}"))),
    };
    served.map(|report| println!("kv: {report}")).unwrap_or_else(|error| {
        eprintln!("kv: {error}");
        std::process::exit(2)
    });
}

async fn serve(address: &str, idle: Duration) -> io::Result<Report> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let ending = async move { or(interrupt.recv(), terminate.recv()).await.ok_or("cannot wait for signals") };
    let (listener, shutdown, store) = (TcpListener::bind(address).await?, ShutdownSignal::new(), Arc::default());
    println!("kv: listening on {}", listener.local_addr()?);
    let server = net::serve(listener, |stream, _| talk(stream, Arc::clone(&store), idle, shutdown.clone()));
    let server = server.nodelay(true).max_connections(500).on_error(|error| eprintln!("kv: {error}"));
    Ok(server.with_shutdown(&shutdown).with_graceful_shutdown(ending).drain_timeout(Duration::from_secs(5)).await?)
}

async fn talk(stream: TcpStream, store: Arc<Mutex<Store>>, idle: Duration, mut end: ShutdownSignal) -> io::Result<()> {
    let (mut reader, mut grace) = (BufReader::new(&stream), GRACE);
    // Between two requests the store may end. A request that has begun is answered.
    while let Some(begun) = end.run_with_grace(grace, timeout(idle, reader.fill_buf())).await {
        if begun??.is_empty() {
            return Ok(());
        }
        let (mut line, mut request) = (Vec::new(), (&mut reader).take(MAX_LINE));
        timeout(idle, request.read_until(b'\n', &mut line)).await??;
        let reply = answer(&line, &mut store.lock().unwrap()).unwrap_or_else(str::to_owned) + "\n";
        timeout(idle, (&stream).write_all(reply.as_bytes())).await??;
        if !line.ends_with(b"\n") {
            break; // The line is too long, or cut.
        }
        if end.is_triggered() {
            grace = Duration::ZERO; // A client that always has one more request does not hold up the end.
        }
    }
    // A drop with unread input is a reset, which the reply may not survive.
    timeout(idle.min(GRACE), stream.drain(1 << 20)).await.map_or(Ok(()), |drained| drained.map(drop))
}

fn answer(request: &[u8], store: &mut Store) -> Result<String, &'static str> {
    let (now, request) = (Instant::now(), std::str::from_utf8(request).ok().and_then(|line| line.strip_suffix('\n')));
    match request.ok_or(MISTAKE)?.trim_end_matches('\r').splitn(4, ' ').collect::<Vec<_>>()[..] {
        ["get", key] => store.get(key).filter(|(_, at)| now < *at).map(|(v, _)| format!("value {v}")).ok_or("none"),
        ["set", key, seconds, value] => {
            let lifetime = Duration::try_from_secs_f64(seconds.parse().map_err(|_| MISTAKE)?).map_err(|_| MISTAKE)?;
            if store.len() >= MAX_KEYS {
                store.retain(|_, (_, expiry)| now < *expiry);
            }
            if store.len() >= MAX_KEYS && !store.contains_key(key) {
                return Err("error: the store is full");
            }
            store.insert(key.to_owned(), (value.to_owned(), now.checked_add(lifetime).ok_or(MISTAKE)?));
            Ok("ok".to_owned())
        }
        ["del", key] => store.remove(key).map(|_| "ok".to_owned()).ok_or("none"),
        ["stats"] => Ok(format!("{} keys, {} clients", store.len(), Handle::current().metrics().tasks_alive())),
        _ => Err(MISTAKE),
    }
}
