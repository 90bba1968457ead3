//! A web server for the files of a folder. Ctrl-C or SIGTERM ends it: each request is answered first.
//! `cargo run --release --features hyper,listenfd --example web [--workers N] [FOLDER [ADDRESS]]`, then
//! `curl http://127.0.0.1:8080/`. Further paths: `/slow` takes a second, and `POST /echo` sends its body back.

use std::error::Error;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE};
use hyper::{Method, Request, Response, StatusCode, service::service_fn};
use kittiwake::net::{Report, TcpListener};
use kittiwake::{io, runtime::Builder, signal, spawn_blocking, time};

const USAGE: &str =
    "usage: web [--workers N] [FOLDER [ADDRESS]]    1, the current folder and 127.0.0.1:8080 if not given";
const CHUNK: u64 = 32 * 1024;
type Body = UnsyncBoxBody<Bytes, hyper::Error>;
type Answer = Result<Response<Body>, hyper::http::Error>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (workers, rest) =
        if let ["--workers", n, rest @ ..] = &args[..] { (n.parse(), rest) } else { (Ok(1), &args[..]) };
    let (folder, address) = match (&workers, rest) {
        (_, ["-h" | "--help", ..]) => return println!("{USAGE}"),
        (Ok(1..=1024), []) => (".", "127.0.0.1:8080"),
        (Ok(1..=1024), [folder]) if !folder.starts_with('-') => (*folder, "127.0.0.1:8080"),
        (Ok(1..=1024), [folder, address]) => (*folder, *address),
        _ => fail(&format!("{args:?}? {USAGE}")),
    };
    let workers = workers.unwrap_or(1);
    // This changes the environment, so it comes before all threads. A service manager that starts the server with a
    // socket keeps it open while the server restarts.
    let mut inherited = TcpListener::inherited().unwrap_or_else(|error| fail(&error.to_string()));
    if inherited.len() > 1 {
        fail(&format!("it serves one socket, and was started with {}", inherited.len()));
    }
    let inherited = inherited.pop();
    let runtime = if workers == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    let report =
        runtime.worker_threads(workers).build().and_then(|runtime| runtime.block_on(serve(folder, address, inherited)));
    println!("web: {}", report.unwrap_or_else(|error| fail(&format!("cannot serve on {address}: {error}"))));
}

fn fail(why: &str) -> ! {
    eprintln!("web: {why}");
    std::process::exit(2)
}

async fn serve(folder: &str, address: &str, inherited: Option<TcpListener>) -> io::Result<Report> {
    let folder =
        Path::new(folder).canonicalize().map_err(|error| io::Error::new(error.kind(), format!("{folder}: {error}")))?;
    let listener = match inherited {
        Some(listener) => listener,
        None => TcpListener::bind(address).await?,
    };
    println!("web: listening on {}", listener.local_addr()?);
    let server = kittiwake::hyper::serve(listener, service_fn(move |request| answer(request, folder.clone())));
    // Clients that leave are no news. The others are shown with the reasons of their errors.
    // Each connection has a few pieces of files in memory, and few files open.
    let server = server.http1(|http1| {
        http1.max_buf_size(64 * 1024);
    });
    let server = server.http2(|http2| {
        http2.max_concurrent_streams(16);
    });
    let server = server.max_connections(10_000).on_error(|failure| {
        if !failure.is_disconnect() {
            let source = failure.source().map(|source| format!(": {source}"));
            eprintln!("web: {failure}{}", source.unwrap_or_default());
        }
    });
    Ok(server.with_graceful_shutdown(signal::terminate()).await?)
}

async fn answer(request: Request<Incoming>, folder: PathBuf) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/echo") => Ok(Response::new(request.into_body().boxed_unsync())),
        (&Method::GET | &Method::HEAD, "/slow") => {
            time::sleep(time::Duration::from_secs(1)).await;
            text(StatusCode::OK, "this took a second\n")
        }
        (&Method::GET | &Method::HEAD, path) => match open(folder, path).await {
            Ok((file, kind, length)) => send(&request, file, kind, length),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                text(StatusCode::NOT_FOUND, "there is no such file\n")
            }
            Err(_) => text(StatusCode::FORBIDDEN, "this file cannot be read\n"),
        },
        _ => {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")?;
            answer.headers_mut().insert(ALLOW, "GET, HEAD".parse()?);
            Ok(answer)
        }
    }
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let body = Full::from(text).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header(CONTENT_TYPE, "text/plain; charset=utf-8").body(body)
}

/// Opens a file inside the folder. A link that leads out of it is no such file.
async fn open(folder: PathBuf, path: &str) -> io::Result<(File, &'static str, u64)> {
    let path = PathBuf::from(percent_decoded(path).ok_or(io::ErrorKind::NotFound)?);
    spawn_blocking(move || {
        let inside = path.components().filter(|component| matches!(component, Component::Normal(_)));
        let mut full = folder.join(inside.collect::<PathBuf>()).canonicalize()?;
        if full.is_dir() {
            full = full.join("index.html").canonicalize()?;
        }
        // To open a FIFO would hold the thread until a writer comes.
        if !full.starts_with(&folder) || !full.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::open(&full)?;
        let length = file.metadata()?.len();
        Ok((file, kind(&full), length))
    })
    .await?
}

fn percent_decoded(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        // `from_str_radix` takes a sign, too.
        let digits = part.get(..2).filter(|digits| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok().filter(|path| !path.contains('\0'))
}

fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    }
}

fn send(request: &Request<Incoming>, file: File, kind: &str, length: u64) -> Answer {
    // `If-Range` asks for a part of one version of the file, and this server tells none of them from another.
    let takes_part = request.method() == Method::GET && !request.headers().contains_key(IF_RANGE);
    let asked = request.headers().get(RANGE).filter(|_| takes_part).and_then(|value| value.to_str().ok());
    let answer = Response::builder().header(ACCEPT_RANGES, "bytes").header(CONTENT_TYPE, kind);
    let (answer, range) = match asked.map(|asked| range(asked, length)) {
        None | Some(Asked::All) => (answer, 0..length),
        Some(Asked::Part(part)) => {
            let header = format!("bytes {}-{}/{length}", part.start, part.end - 1);
            (answer.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, header), part)
        }
        Some(Asked::Nothing) => {
            let answer = answer.status(StatusCode::RANGE_NOT_SATISFIABLE);
            return answer.header(CONTENT_RANGE, format!("bytes */{length}")).body(Body::default());
        }
    };
    let answer = answer.header(CONTENT_LENGTH, range.end - range.start);
    if request.method() == Method::HEAD { answer.body(Body::default()) } else { answer.body(contents(file, range)) }
}

enum Asked {
    All,
    Part(Range<u64>),
    Nothing,
}

/// One range of bytes, by RFC 9110, section 14. Several ranges, and headers that are wrong, get the whole file.
fn range(header: &str, length: u64) -> Asked {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::All;
    };
    let part = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..length.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(suffix)) if first.is_empty() => length.saturating_sub(suffix)..length,
        _ => return Asked::All,
    };
    if part.start < part.end { Asked::Part(part) } else { Asked::Nothing }
}

/// A body that reads the file piece by piece, on a thread for blocking work. A failed read ends the connection, or on
/// HTTP/2 the stream, so that the client does not take the part for the whole.
fn contents(file: File, range: Range<u64>) -> Body {
    let pieces = stream::unfold((file, range), |(file, range)| async move {
        if range.is_empty() {
            return None;
        }
        let read = spawn_blocking(move || {
            let mut piece = vec![0; CHUNK.min(range.end - range.start) as usize];
            file.read_exact_at(&mut piece, range.start).map(|()| (piece, file, range))
        });
        let (piece, file, range) = read.await.ok()?.ok()?;
        let rest = range.start + piece.len() as u64..range.end;
        Some((Ok(Frame::data(Bytes::from(piece))), (file, rest)))
    });
    StreamBody::new(pieces).boxed_unsync()
}
