//! A web server over TLS, with a certificate of its own, for HTTP/1 and HTTP/2. Ctrl-C or SIGTERM ends it when every
//! request is answered.
//! `cargo run --release --bin https /tmp/localhost.pem [ADDRESS [SECONDS]]`, then
//! `curl --cacert /tmp/localhost.pem https://localhost:8443/`, and the same with `--http1.1`

use std::{convert::Infallible, env, error::Error, fs, process, sync::Arc};

use futures_rustls::TlsAcceptor;
use futures_rustls::rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use kittiwake::io;
use kittiwake::net::{Report, TcpListener};
use kittiwake::{signal::terminate, time::Duration};

const USAGE: &str = "usage: https CERTIFICATE [ADDRESS [SECONDS]]
CERTIFICATE  the file to which the server writes its certificate, for the clients
ADDRESS      where to listen; 127.0.0.1:8443 if not given
SECONDS      how long a client may take for the handshake, or for a request; 10 if not given";

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (file, address, seconds) = match args[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        [file] => (file, "127.0.0.1:8443", "10"),
        [file, address] => (file, address, "10"),
        [file, address, seconds] => (file, address, seconds),
        _ => fail(USAGE),
    };
    let limit = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else { fail(&format!("{seconds:?} seconds? {USAGE}")) };
    match kittiwake::block_on(serve(file, address, limit)) {
        Ok(report) => println!("https: {report}"),
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("https: {why}");
    process::exit(2)
}

async fn serve(file: &str, address: &str, limit: Duration) -> io::Result<Report> {
    let ending = terminate();
    let acceptor = TlsAcceptor::from(Arc::new(config(file)?));
    let listener = TcpListener::bind(address).await?;
    println!("https: listening on {}", listener.local_addr()?);
    // The server reads the protocol from the first bytes. So it serves what the two sides have agreed on by ALPN.
    let server = kittiwake::hyper::serve(listener, service_fn(answer)).handshake(move |stream| {
        let accepting = acceptor.accept(stream);
        async { accepting.await.map_err(|error| io::Error::new(error.kind(), format!("TLS handshake: {error}"))) }
    });
    let server = server.handshake_timeout(limit).header_read_timeout(limit).body_timeout(limit);
    let server = server.max_connections(1000).on_error(|failure| {
        if !failure.is_disconnect() {
            let source = failure.source().map(|source| format!(": {source}"));
            eprintln!("https: {failure}{}", source.unwrap_or_default());
        }
    });
    Ok(server.with_graceful_shutdown(ending).await?)
}

/// Makes a certificate for localhost, and writes it to `file`. The key stays in memory.
fn config(file: &str) -> io::Result<ServerConfig> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    fs::write(file, made.cert.pem()).map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.into()], key.into());
    let mut config = config.map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn answer(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => (StatusCode::OK, format!("hello over {:?}\n", request.version())),
        (&Method::GET | &Method::HEAD, path) => (StatusCode::NOT_FOUND, format!("there is no {path}\n")),
        (method, _) => (StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not supported\n")),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}
