//! A small Redis: strings with expiry, in memory, with pipelining and limits. Ctrl-C or SIGTERM ends it.
//! It takes GET, SET (with EX or PX), DEL, EXPIRE, TTL, PING and ECHO.
//! `cargo run --release --example mini_redis [--workers N] [ADDRESS]`, then `redis-cli -p 7000`, or
//! `redis-benchmark -p 7000 -t ping,set,get -P 16`

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, Report, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::signal::terminate;
use kittiwake::time::{Duration, Instant, interval, timeout};
use kittiwake::{runtime::Builder, spawn};

const USAGE: &str = "usage: mini_redis [--workers N] [ADDRESS]    on 1 thread, at 127.0.0.1:7000 if not given";
const MAX_MEMORY: usize = 64 << 20; // The bytes of all keys and values. Each entry counts as 100 bytes more.
const MAX_REQUEST: usize = 256 << 10; // The bytes of a request, and so of a key and a value.
const MAX_ARGUMENTS: usize = 1024;
const MAX_LINE: usize = 64 << 10; // The bytes of a request that is one line, as a user of nc types it.
const MAX_OUTPUT: usize = 64 << 10; // Replies of so many bytes are sent before the next request is read.
const IDLE: Duration = Duration::from_secs(300);
const GRACE: Duration = Duration::from_secs(1); // For requests that are on their way when the server ends.

#[derive(Default)]
struct Store {
    entries: HashMap<Box<[u8]>, Entry>,
    memory: usize,
}

struct Entry {
    value: Box<[u8]>,
    expiry: Option<Instant>,
}

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
    println!("mini_redis: {}", report.unwrap_or_else(|error| fail(&format!("cannot serve on {address}: {error}"))));
}

fn fail(why: &str) -> ! {
    eprintln!("mini_redis: {why}");
    std::process::exit(2)
}

async fn serve(address: &str) -> io::Result<Report> {
    let (listener, shutdown, ending) = (TcpListener::bind(address).await?, ShutdownSignal::new(), terminate());
    println!("mini_redis: listening on {}", listener.local_addr()?);
    let store = Arc::new(Mutex::new(Store::default()));
    spawn(remove_expired(Arc::clone(&store)));
    let server = net::serve(listener, |stream, _| talk(stream, Arc::clone(&store), shutdown.clone()));
    let server = server.nodelay(true).max_connections(1000).on_error(|error| eprintln!("mini_redis: {error}"));
    Ok(server.with_shutdown(&shutdown).with_graceful_shutdown(ending).drain_timeout(Duration::from_secs(5)).await?)
}

/// Frees the memory of expired keys that no client asks for.
async fn remove_expired(store: Arc<Mutex<Store>>) {
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let Store { entries, memory } = &mut *store.lock().unwrap();
        entries.retain(|key, entry| {
            let is_alive = entry.is_alive();
            *memory -= if is_alive { 0 } else { size(key, &entry.value) };
            is_alive
        });
    }
}

async fn talk(mut stream: TcpStream, store: Arc<Mutex<Store>>, mut end: ShutdownSignal) -> io::Result<()> {
    stream.set_idle_timeout(Some(IDLE))?;
    let (mut chunk, mut grace) = (vec![0; 16 << 10], GRACE);
    let (mut input, mut start, mut output) = (Vec::new(), 0, Vec::new());
    loop {
        let parsed = parse(&input[start..]);
        if let Ok((request, length)) = &parsed {
            start += length;
            let answered = answer(request, &mut store.lock().unwrap(), &mut output);
            answered.unwrap_or_else(|mistake| output.extend(format!("-{mistake}\r\n").as_bytes()));
        } else if let Err(Stop::Mistake(mistake)) = &parsed {
            output.extend(format!("-ERR Protocol error: {mistake}\r\n").as_bytes());
        }
        // The replies to requests that came together are sent together.
        if parsed.is_err() || output.len() >= MAX_OUTPUT {
            stream.write_all(&output).await?;
            output.clear();
        }
        match parsed {
            Ok(_) => {}
            Err(Stop::Mistake(_)) => break,
            Err(Stop::NeedsMore) => {
                input.drain(..std::mem::take(&mut start));
                let read = stream.read(&mut chunk);
                // Between two requests the server may end. A request that has begun is answered.
                let read = if input.is_empty() { end.run_with_grace(grace, read).await } else { Some(read.await) };
                if end.is_triggered() {
                    grace = Duration::ZERO; // A client that always has one more request does not hold up the end.
                }
                match read.transpose()? {
                    Some(0) => return Ok(()),
                    Some(read) => input.extend_from_slice(&chunk[..read]),
                    None => break,
                }
            }
        }
    }
    // A drop with unread input is a reset, which the last reply may not survive.
    timeout(GRACE, stream.drain(1 << 20)).await.map_or(Ok(()), |end| end.map(drop))
}

// ---- requests ----

/// Why the input does not begin with a request.
enum Stop {
    NeedsMore,
    Mistake(String),
}

/// The words of the first request in `input`, and its length. It is an array of strings (RESP2), or a line.
fn parse(input: &[u8]) -> Result<(Vec<&[u8]>, usize), Stop> {
    let mistake = |text: &str| Stop::Mistake(text.to_owned());
    let mut rest = input;
    let line = take_line(&mut rest)?;
    let Some(count) = line.strip_prefix(b"*") else {
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        return Ok((words, input.len() - rest.len()));
    };
    let count = number(count).filter(|count| *count <= MAX_ARGUMENTS as i64);
    let mut words = Vec::new();
    for _ in 0..count.ok_or_else(|| mistake("invalid multibulk length"))? {
        let header = take_line(&mut rest)?;
        let Some(length) = header.strip_prefix(b"$") else {
            let got = header.get(..1).unwrap_or_default().escape_ascii();
            return Err(Stop::Mistake(format!("expected '$', got '{got}'")));
        };
        let length = number(length).and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| length.saturating_add(input.len() - rest.len()) <= MAX_REQUEST);
        let length = length.ok_or_else(|| mistake("invalid bulk length"))?;
        // Two bytes end the string.
        let (word, after) = rest.split_at_checked(length + 2).ok_or(Stop::NeedsMore)?;
        words.push(&word[..length]);
        rest = after;
    }
    Ok((words, input.len() - rest.len()))
}

/// Takes the first line, without its end.
fn take_line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Stop> {
    match rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n') {
        Some(end) => {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            *rest = after;
            Ok(line.strip_suffix(b"\r").unwrap_or(line))
        }
        None if rest.len() >= MAX_LINE => Err(Stop::Mistake("too big inline request".to_owned())),
        None => Err(Stop::NeedsMore),
    }
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

// ---- replies ----

/// Appends the reply to `output`. An error is a reply, too.
fn answer(request: &[&[u8]], store: &mut Store, output: &mut Vec<u8>) -> Result<(), String> {
    let Some((name, words)) = request.split_first() else { return Ok(()) };
    let name = name.escape_ascii().to_string().to_ascii_lowercase();
    let invalid = || format!("ERR invalid expire time in '{name}' command");
    match (name.as_str(), words) {
        ("ping", []) => output.extend(b"+PONG\r\n"),
        ("ping" | "echo", [text]) => bulk(output, text),
        ("get", [key]) => match store.find(key) {
            Some(entry) => bulk(output, &entry.value),
            None => output.extend(b"$-1\r\n"),
        },
        ("set", [key, value, options @ ..]) => {
            let expiry = match options {
                [] => None,
                [unit, count] if unit.eq_ignore_ascii_case(b"ex") => Some(deadline(count, 1000)?.ok_or_else(invalid)?),
                [unit, count] if unit.eq_ignore_ascii_case(b"px") => Some(deadline(count, 1)?.ok_or_else(invalid)?),
                _ => return Err("ERR syntax error".to_owned()),
            };
            let replaced = store.entries.get(*key).map_or(0, |entry| size(key, &entry.value));
            if store.memory - replaced + size(key, value) > MAX_MEMORY {
                return Err("OOM command not allowed when used memory > 'maxmemory'.".to_owned());
            }
            store.remove(key);
            store.memory += size(key, value);
            store.entries.insert((*key).into(), Entry { value: (*value).into(), expiry });
            output.extend(b"+OK\r\n");
        }
        ("del", [_, ..]) => {
            let deleted = words.iter().filter(|key| store.remove(key));
            integer(output, deleted.count() as i64);
        }
        ("expire", [key, seconds]) => {
            let expiry = deadline(seconds, 1000)?;
            let found = store.find(key).map(|entry| entry.expiry = expiry);
            if expiry.is_none() {
                store.remove(key);
            }
            integer(output, found.is_some().into());
        }
        ("ttl", [key]) => integer(
            output,
            match store.find(key).map(|entry| entry.expiry) {
                None => -2,
                Some(None) => -1,
                Some(Some(expiry)) => (expiry - Instant::now() + Duration::from_millis(500)).as_secs() as i64,
            },
        ),
        // redis-cli and redis-benchmark ask for these when they start.
        ("command", _) => output.extend(b"*0\r\n"),
        ("config", [_, name]) => {
            output.extend(b"*2\r\n");
            bulk(output, name);
            bulk(output, b"");
        }
        ("ping" | "echo" | "get" | "set" | "del" | "expire" | "ttl" | "config", _) => {
            return Err(format!("ERR wrong number of arguments for '{name}' command"));
        }
        _ => return Err(format!("ERR unknown command '{name:.128}'")),
    }
    Ok(())
}

impl Store {
    fn find(&mut self, key: &[u8]) -> Option<&mut Entry> {
        self.entries.get_mut(key).filter(|entry| entry.is_alive())
    }

    /// Returns whether the key was there.
    fn remove(&mut self, key: &[u8]) -> bool {
        let removed = self.entries.remove(key);
        self.memory -= removed.as_ref().map_or(0, |entry| size(key, &entry.value));
        removed.is_some_and(|entry| entry.is_alive())
    }
}

fn size(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + 100
}

impl Entry {
    fn is_alive(&self) -> bool {
        self.expiry.is_none_or(|expiry| Instant::now() < expiry)
    }
}

/// The instant after that many units of time, or `None` if it is past.
fn deadline(count: &[u8], unit_millis: u64) -> Result<Option<Instant>, String> {
    let count = number(count).ok_or("ERR value is not an integer or out of range")?;
    let Some(count @ 1..) = u64::try_from(count).ok() else { return Ok(None) };
    let duration = count.checked_mul(unit_millis).map(Duration::from_millis);
    let instant = duration.and_then(|duration| Instant::now().checked_add(duration));
    instant.map(Some).ok_or_else(|| "ERR value is not an integer or out of range".to_owned())
}

fn bulk(output: &mut Vec<u8>, text: &[u8]) {
    output.extend(format!("${}\r\n", text.len()).as_bytes());
    output.extend([text, b"\r\n"].concat());
}

fn integer(output: &mut Vec<u8>, number: i64) {
    output.extend(format!(":{number}\r\n").as_bytes());
}
