//! A chat room with axum: a page on WebSocket, JSON for other programs, and server-sent events for readers.
//! `cargo run --release --bin axum [ADDRESS [SECONDS]]`, then open http://127.0.0.1:8080/ in two windows of a browser.
//! `curl -N http://127.0.0.1:8080/events` shows the messages, and this command sends one:
//! `curl --json '{"name": "me", "text": "hello"}' http://127.0.0.1:8080/messages`. Ctrl-C or SIGTERM ends the server.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::{convert::Infallible, env, error::Error, process};

use async_channel::{Receiver, Sender};
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::handshake::server::create_response_with_body;
use async_tungstenite::tungstenite::protocol::frame::{CloseFrame, Utf8Bytes, coding::CloseCode};
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use async_tungstenite::tungstenite::{self, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, Response, Sse, sse::Event};
use axum::{Json, Router, body::Body, routing::get};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::service::TowerToHyperService;
use kittiwake::future::{or, race};
use kittiwake::hyper::Io;
use kittiwake::net::{Report, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::stream::{Stream, StreamExt, unfold};
use kittiwake::time::{Duration, Instant, interval, sleep, timeout};
use kittiwake::{io, signal::terminate};
use serde::{Deserialize, Serialize};

const USAGE: &str = "usage: axum [ADDRESS [SECONDS]]
ADDRESS  where to listen; 127.0.0.1:8080 if not given
SECONDS  how long a client may be silent, or take to read a message; 30 if not given";
const MAX_MESSAGE: usize = 4096;
const HISTORY: usize = 100; // So many messages greet a new client of the page.
const QUEUE: usize = 64; // So many messages wait for a client. The clients share their bytes.
const SEND_BUFFER: usize = 64 * 1024; // The kernel keeps this for a client.
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;
type Socket = WebSocketStream<Io<Upgraded>>;
type Refusal = (StatusCode, String);

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (address, seconds) = match args[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        [] => ("127.0.0.1:8080", "30"),
        [address] => (address, "30"),
        [address, seconds] => (address, seconds),
        _ => fail(USAGE),
    };
    let limit = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(limit) = limit.filter(|limit| *limit >= Duration::from_millis(1)) else {
        fail(&format!("{seconds:?} seconds? {USAGE}"))
    };
    match kittiwake::block_on(serve(address, limit)) {
        Ok(report) => println!("axum: {report}"),
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("axum: {why}");
    process::exit(2)
}

async fn serve(address: &str, limit: Duration) -> io::Result<Report> {
    let (ending, shutdown) = (terminate(), ShutdownSignal::new());
    let room = Room { chat: Arc::default(), limit, shutdown: shutdown.clone() };
    let router = Router::new()
        .route("/", get(async || Html(include_str!("axum.html"))))
        .route("/messages", get(history).post(receive))
        .route("/events", get(events))
        .route("/socket", get(socket))
        .layer(DefaultBodyLimit::max(MAX_MESSAGE))
        .with_state(room);
    let listener = TcpListener::bind(address).await?;
    println!("axum: listening on {}", listener.local_addr()?);
    let server = kittiwake::hyper::serve(listener, TowerToHyperService::new(router)).max_connections(1000);
    let server = server.body_timeout(limit).handshake(async |stream: TcpStream| {
        stream.set_send_buffer_size(SEND_BUFFER)?;
        io::Result::Ok(stream)
    });
    let server = server.on_error(|failure| {
        if !failure.is_disconnect() {
            let source = failure.source().map(|source| format!(": {source}"));
            eprintln!("axum: {failure}{}", source.unwrap_or_default());
        }
    });
    Ok(server.with_shutdown(&shutdown).with_graceful_shutdown(ending).await?)
}

/// The state of the router. Each handler gets a clone.
#[derive(Clone)]
struct Room {
    chat: Arc<Mutex<Chat>>,
    limit: Duration,
    shutdown: ShutdownSignal,
}

#[derive(Default)]
struct Chat {
    history: VecDeque<Message>,
    /// The queues of the clients that listen. They hold messages as JSON.
    members: Vec<Sender<Utf8Bytes>>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Message {
    name: String,
    text: String,
}

impl Message {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("two strings have a form in JSON")
    }
}

impl Room {
    /// Passes a message to all clients. One whose queue is full is no member any more, and its task cuts it off.
    fn say(&self, message: Message) -> Result<(), &'static str> {
        if message.name.is_empty() || message.text.is_empty() {
            return Err("a message has a name and a text");
        }
        let json = Utf8Bytes::from(message.to_json());
        let mut chat = self.chat.lock().unwrap();
        chat.history.push_back(message);
        if chat.history.len() > HISTORY {
            chat.history.pop_front();
        }
        chat.members.retain(|member| member.try_send(json.clone()).is_ok());
        Ok(())
    }

    /// Returns the messages so far, and the queue of those to come. No message is in both, and none is missing.
    fn join(&self) -> (VecDeque<Message>, Receiver<Utf8Bytes>) {
        let (sender, queue) = async_channel::bounded(QUEUE);
        let mut chat = self.chat.lock().unwrap();
        // Clients that have left are removed here. A message removes them too, but in a quiet chat there is none.
        chat.members.retain(|member| !member.is_closed());
        chat.members.push(sender);
        (chat.history.clone(), queue)
    }
}

// ---- JSON ----

async fn history(State(room): State<Room>) -> Json<VecDeque<Message>> {
    Json(room.chat.lock().unwrap().history.clone())
}

async fn receive(State(room): State<Room>, Json(message): Json<Message>) -> Result<StatusCode, Refusal> {
    room.say(message).map_err(|why| (StatusCode::UNPROCESSABLE_ENTITY, format!("{why}\n")))?;
    Ok(StatusCode::CREATED)
}

// ---- server-sent events ----

/// Sends each message as an event. axum's `KeepAlive` needs tokio's timers, so the comments that keep the connection
/// alive come from a timer of this runtime.
async fn events(State(room): State<Room>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (_, queue) = room.join();
    Sse::new(unfold((room, queue), async |(mut room, queue)| {
        let said = async { queue.recv().await.ok().map(|json| Event::default().data(&*json)) };
        let silence = async {
            sleep(room.limit / 3).await;
            Some(Event::default().comment("nothing new"))
        };
        let event = room.shutdown.run_until_triggered(or(said, silence)).await??;
        Some((Ok(event), (room, queue)))
    }))
}

// ---- WebSocket ----

/// Answers a client that wants to change to WebSocket, and starts the task that talks to it. axum's `WebSocketUpgrade`
/// has its own `on_upgrade` for this, which calls `tokio::spawn` and so needs tokio's runtime.
async fn socket(State(room): State<Room>, mut request: Request) -> Result<Response, Refusal> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    // A browser lets the page of any site connect, and tells which. Only the page of this server may read along.
    if let Some(origin) = text(header::ORIGIN) {
        if origin.split_once("://").map(|(_, host)| host) != text(header::HOST) {
            return Err((StatusCode::FORBIDDEN, format!("{origin} is another site\n")));
        }
    }
    let response = create_response_with_body(&request, Body::empty);
    let response = response.map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    let upgrade = hyper::upgrade::on(&mut request);
    kittiwake::spawn(async move {
        if let Err(error) = talk(upgrade, room).await {
            eprintln!("axum: a WebSocket: {error}");
        }
    });
    Ok(response)
}

enum Step {
    Received(Option<tungstenite::Message>),
    Queued(Option<Utf8Bytes>),
    Ping,
}

async fn talk(upgrade: OnUpgrade, mut room: Room) -> Result<()> {
    // Bytes that the client has sent after its request come first: hyper keeps them.
    let stream = Io::new(upgrade.await?);
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config.read_buffer_size(4096))).await;
    let (limit, (history, queue)) = (room.limit, room.join());
    let sent = |sent: Result<_, _>| sent.map_err(|_| "it reads too slowly");
    for message in history {
        sent(timeout(limit, socket.send(message.to_json().into())).await)??;
    }
    // A client that is alive answers each ping.
    let (mut ping, mut heard) = (interval(limit / 3), Instant::now());
    loop {
        let received = async { socket.next().await.transpose().map(Step::Received) };
        let queued = async { Ok(Step::Queued(queue.recv().await.ok())) };
        let pinged = async { Ok(ping.tick().await).map(|_| Step::Ping) };
        let message = match room.shutdown.run_until_triggered(race(received, race(queued, pinged))).await.transpose()? {
            None => return timeout(limit, close(&mut socket, CloseCode::Away, "the server ends")).await?,
            Some(Step::Ping) if heard.elapsed() > limit => return Err("it is silent".into()),
            Some(Step::Ping) => tungstenite::Message::Ping(Bytes::new()),
            Some(Step::Queued(Some(json))) if !queue.is_closed() => tungstenite::Message::Text(json),
            Some(Step::Queued(_)) => return Err("it reads too slowly".into()),
            // tungstenite answers the client's close while it waits for the end. No other message may follow.
            Some(Step::Received(None | Some(tungstenite::Message::Close(_)))) => {
                return timeout(limit, end(&mut socket)).await?;
            }
            Some(Step::Received(Some(message))) => {
                heard = Instant::now();
                if let tungstenite::Message::Text(json) = message {
                    let message = serde_json::from_str(&json).map_err(|_| "not a message in JSON");
                    if let Err(why) = message.and_then(|message| room.say(message)) {
                        return timeout(limit, close(&mut socket, CloseCode::Policy, why)).await?;
                    }
                }
                continue;
            }
        };
        sent(timeout(limit, socket.send(message)).await)??;
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
