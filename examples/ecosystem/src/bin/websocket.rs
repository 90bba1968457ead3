//! A chat over WebSocket. Each message goes to all clients, its sender included. Ctrl-C or SIGTERM ends it.
//! `cargo run --release --bin websocket [ADDRESS [SECONDS]]`, then in the console of two browser windows:
//! `s = new WebSocket("ws://127.0.0.1:7000"); s.onmessage = m => console.log(m.data)`, and `s.send("hello")`

use std::sync::{Arc, Mutex};
use std::{env, error::Error, process};

use async_channel::{Receiver, RecvError, Sender};
use async_tungstenite::tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use async_tungstenite::tungstenite::{self, Bytes, Message, protocol::WebSocketConfig};
use async_tungstenite::{WebSocketStream, accept_async_with_config};
use kittiwake::future::race;
use kittiwake::net::{self, Report, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::time::{Duration, Instant, interval_at, timeout};
use kittiwake::{io, signal::terminate, stream::StreamExt};

const USAGE: &str = "usage: websocket [ADDRESS [SECONDS]]
ADDRESS  where to listen; 127.0.0.1:7000 if not given
SECONDS  how long a client may be silent, or take to read a message; 30 if not given";
const MAX_MESSAGE: usize = 64 * 1024;
const QUEUE: usize = 64; // So many messages wait for a client. The clients share their bytes.
const SEND_BUFFER: usize = 64 * 1024; // The kernel keeps this for a client.
type Members = Arc<Mutex<Vec<Sender<Message>>>>; // The task of each client receives from its queue.
type Socket = WebSocketStream<TcpStream>;
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (address, seconds) = match args[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        [] => ("127.0.0.1:7000", "30"),
        [address] => (address, "30"),
        [address, seconds] => (address, seconds),
        _ => fail(USAGE),
    };
    let limit = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(limit) = limit.filter(|limit| *limit >= Duration::from_millis(1)) else {
        fail(&format!("{seconds:?} seconds? {USAGE}"))
    };
    match kittiwake::block_on(serve(address, limit)) {
        Ok(report) => println!("websocket: {report}"),
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("websocket: {why}");
    process::exit(2)
}

async fn serve(address: &str, limit: Duration) -> io::Result<Report> {
    let (ending, shutdown, members) = (terminate(), ShutdownSignal::new(), Members::default());
    let listener = TcpListener::bind(address).await?;
    println!("websocket: listening on {}", listener.local_addr()?);
    let server = net::serve(listener, |stream, _| chat(stream, members.clone(), limit, shutdown.clone()));
    let server = server.nodelay(true).max_connections(500).on_error(|error| eprintln!("websocket: {error}"));
    Ok(server.with_shutdown(&shutdown).with_graceful_shutdown(ending).await?)
}

enum Event {
    Received(Option<Message>),
    Queued(Result<Message, RecvError>),
    Ping,
}

async fn chat(stream: TcpStream, members: Members, limit: Duration, mut shutdown: ShutdownSignal) -> Result<()> {
    stream.set_send_buffer_size(SEND_BUFFER)?;
    stream.set_read_timeout(Some(limit))?;
    let config = WebSocketConfig::default().read_buffer_size(4096);
    let config = config.max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let handshake = timeout(limit, accept_async_with_config(stream, Some(config))).await;
    let mut socket = handshake.map_err(|_| "its handshake takes too long")??;
    let queue = join(&members);
    // A client that is alive answers each ping. So only a dead one is silent for as long as the read timeout.
    let mut ping = interval_at(Instant::now() + limit / 3, limit / 3);
    loop {
        let received = async { socket.next().await.transpose().map(Event::Received) };
        let queued = async { Ok(Event::Queued(queue.recv().await)) };
        let pinged = async {
            ping.tick().await;
            Ok(Event::Ping)
        };
        let message = match shutdown.run_until_triggered(race(received, race(queued, pinged))).await {
            None => return timeout(limit, close(&mut socket, CloseCode::Away, "the server ends")).await?,
            Some(Ok(Event::Ping)) => Message::Ping(Bytes::new()),
            Some(Ok(Event::Queued(Ok(message)))) if !queue.is_closed() => message,
            Some(Ok(Event::Queued(_))) => return Err("it reads too slowly".into()),
            // tungstenite answers the client's close while it waits for the end. No other message may follow.
            Some(Ok(Event::Received(None | Some(Message::Close(_))))) => {
                return timeout(limit, end(&mut socket)).await?;
            }
            Some(Ok(Event::Received(Some(message)))) => {
                broadcast(&members, message);
                continue;
            }
            Some(Err(error @ tungstenite::Error::Capacity(_))) => {
                timeout(limit, close(&mut socket, CloseCode::Size, "the message is too long")).await??;
                // A drop with the rest of the message unread would be a reset, which the reason may not survive.
                timeout(limit, socket.get_ref().drain(1 << 20)).await??;
                return Err(error.into());
            }
            Some(Err(error)) => return Err(error.into()),
        };
        timeout(limit, socket.send(message)).await.map_err(|_| "it reads too slowly")??;
    }
}

fn join(members: &Members) -> Receiver<Message> {
    let (sender, queue) = async_channel::bounded(QUEUE);
    let mut members = members.lock().unwrap();
    // Those that have left. A broadcast removes them too, but in a quiet chat there is none.
    members.retain(|member| !member.is_closed());
    members.push(sender);
    queue
}

/// Passes a message to all clients. One whose queue is full is no member any more, and its task cuts it off.
fn broadcast(members: &Members, message: Message) {
    // tungstenite itself answers pings.
    if message.is_text() || message.is_binary() {
        members.lock().unwrap().retain(|member| member.try_send(message.clone()).is_ok());
    }
}

/// Tells the client why the connection ends, and waits for its answer.
async fn close(socket: &mut Socket, code: CloseCode, reason: &'static str) -> Result<()> {
    socket.close(Some(CloseFrame { code, reason: reason.into() })).await?;
    end(socket).await
}

/// Waits until both sides have sent a close.
async fn end(socket: &mut Socket) -> Result<()> {
    while socket.next().await.transpose()?.is_some() {}
    Ok(())
}
