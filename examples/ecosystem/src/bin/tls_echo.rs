//! An echo server over TLS, with a certificate of its own. Ctrl-C or SIGTERM ends it when every client has its answers.
//! `cargo run --release --bin tls_echo /tmp/localhost.pem [ADDRESS [SECONDS]]`, then
//! `openssl s_client -connect 127.0.0.1:7000 -servername localhost -CAfile /tmp/localhost.pem -alpn echo`

use std::sync::Arc;
use std::{env, fs, process};

use futures_rustls::TlsAcceptor;
use futures_rustls::rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, Report, ShutdownSignal, TcpListener, TcpStream};
use kittiwake::{signal::terminate, time::Duration, time::timeout};

/// For bytes that are on their way when the server ends.
const GRACE: Duration = Duration::from_secs(1);

const USAGE: &str = "usage: tls_echo CERTIFICATE [ADDRESS [SECONDS]]
CERTIFICATE  the file to which the server writes its certificate, for the clients
ADDRESS      where to listen; 127.0.0.1:7000 if not given
SECONDS      how long a handshake may take, and how long a client may be silent; 30 if not given";

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (file, address, seconds) = match args[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        [file] => (file, "127.0.0.1:7000", "30"),
        [file, address] => (file, address, "30"),
        [file, address, seconds] => (file, address, seconds),
        _ => fail(USAGE),
    };
    let limit = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else { fail(&format!("{seconds:?} seconds? {USAGE}")) };
    match kittiwake::block_on(serve(file, address, limit)) {
        Ok(report) => println!("tls_echo: {report}"),
        Err(error) => fail(&format!("cannot serve on {address}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("tls_echo: {why}");
    process::exit(2)
}

async fn serve(file: &str, address: &str, limit: Duration) -> io::Result<Report> {
    let (ending, shutdown) = (terminate(), ShutdownSignal::new());
    let acceptor = TlsAcceptor::from(Arc::new(config(file)?));
    let listener = TcpListener::bind(address).await?;
    println!("tls_echo: listening on {}", listener.local_addr()?);
    let server = net::serve(listener, |stream, _| echo(stream, acceptor.clone(), limit, shutdown.clone()));
    let server = server.nodelay(true).max_connections(500).on_error(|error| eprintln!("tls_echo: {error}"));
    Ok(server.with_shutdown(&shutdown).with_graceful_shutdown(ending).await?)
}

/// Makes a certificate for localhost, and writes it to `file`. The key stays in memory.
fn config(file: &str) -> io::Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
    fs::write(file, made.cert.pem()).map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.into()], key.into());
    let mut config = config.map_err(io::Error::other)?;
    // A client that offers other protocols only is refused. A client that offers none is served.
    config.alpn_protocols = vec![b"echo".to_vec()];
    Ok(config)
}

async fn echo(stream: TcpStream, tls: TlsAcceptor, limit: Duration, mut shutdown: ShutdownSignal) -> io::Result<()> {
    stream.set_idle_timeout(Some(limit))?;
    // This runs in the connection's own task. A client that stops half-way therefore holds up no other client.
    let handshake = timeout(limit, tls.accept(stream)).await.map_err(io::Error::from).and_then(|accepted| accepted);
    let mut stream = handshake.map_err(|error| io::Error::new(error.kind(), format!("TLS handshake: {error}")))?;
    let mut buf = [0; 4096];
    // After the signal a client is served until it is silent for the grace: an echo does not know the end of a request.
    while let Some(read @ 1..) = shutdown.run_with_grace(GRACE, stream.read(&mut buf)).await.transpose()? {
        stream.write_all(&buf[..read]).await?;
        stream.flush().await?;
    }
    // This sends close_notify. Without it, the client could not tell the end from a cut.
    stream.close().await?;
    let (stream, _) = stream.into_inner();
    // A drop with unread input would be a reset, which the answers may not survive.
    timeout(GRACE, stream.drain(1 << 20)).await.map_or(Ok(()), |drained| drained.map(drop))
}
