//! An echo server over QUIC, with a certificate of its own, and its client. Each stream returns its bytes.
//! `cargo run --release --bin quic serve /tmp/quic.pem [ADDRESS [SECONDS]]` ends by Ctrl-C or SIGTERM. In a second
//! terminal, `date | cargo run --release --bin quic connect /tmp/quic.pem [ADDRESS [SECONDS]]`

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::{env, error::Error, fs, process};

use kittiwake::future::{or, pending, try_zip};
use kittiwake::io::{self, stdin, stdout};
use kittiwake::net::{ShutdownSignal, lookup_host};
use kittiwake::task::JoinSet;
use kittiwake::{signal::terminate, time::Duration, time::timeout};
use kittiwake_ecosystem::quic::endpoint;
use quinn::{ClientConfig, ConnectionError, Incoming, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};

const USAGE: &str = "usage: quic serve|connect CERTIFICATE [ADDRESS [SECONDS]]
serve        echoes the streams of its clients, and writes its certificate to the file CERTIFICATE
connect      sends stdin to a server whose certificate is in this file, and prints what returns
ADDRESS      of the server; 127.0.0.1:7000 if not given
SECONDS      how long a peer may be silent; 30 if not given";
const MAX_CLIENTS: usize = 500;
const MAX_STREAMS: u32 = 100; // Of one connection at a time. More streams wait at the client.
const DONE: VarInt = VarInt::from_u32(0);
const CUT: VarInt = VarInt::from_u32(1);
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (mode, file, address, seconds) = match args[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [mode @ ("serve" | "connect"), file] => (mode, file, "127.0.0.1:7000", "30"),
        [mode @ ("serve" | "connect"), file, address] => (mode, file, address, "30"),
        [mode @ ("serve" | "connect"), file, address, seconds] => (mode, file, address, seconds),
        _ => fail(USAGE),
    };
    let limit = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else { fail(&format!("{seconds:?} seconds? {USAGE}")) };
    let result = kittiwake::block_on(async {
        let found = lookup_host(address).await?.next().ok_or("this name has no address")?;
        if mode == "serve" { serve(file, found, limit).await } else { connect(file, found, limit).await }
    });
    result.unwrap_or_else(|error| fail(&format!("cannot {mode} ({address}, {file}): {error}")));
}

fn fail(why: &str) -> ! {
    eprintln!("quic: {why}");
    process::exit(2)
}

async fn serve(file: &str, address: SocketAddr, limit: Duration) -> Result<()> {
    let (mut ending, shutdown, mut clients) = (pin!(terminate()), ShutdownSignal::new(), JoinSet::new());
    let endpoint = endpoint(address, Some(server_config(file, limit)?))?;
    println!("quic: listening on {}", endpoint.local_addr()?);
    let (mut accepted, mut echoed) = (0, 0);
    loop {
        let (client, end) = (async { Ok(endpoint.accept().await) }, async { ending.as_mut().await.map(|()| None) });
        let Some(client) = or(end, client).await? else { break };
        while let Some(streams) = clients.try_join_next() {
            echoed += streams.unwrap_or(0);
        }
        if clients.len() >= MAX_CLIENTS {
            client.refuse();
            continue;
        }
        accepted += 1;
        let (peer, client) = (client.remote_address(), talk(client, limit, shutdown.clone()));
        clients.spawn(async move {
            client.await.unwrap_or_else(|error| {
                eprintln!("quic: {peer}: {error}");
                0
            })
        });
    }
    // The clients still get the answers to the streams that they have opened. New clients are told to go elsewhere.
    shutdown.trigger();
    let draining = async {
        while let Some(streams) = clients.join_next().await {
            echoed += streams.unwrap_or(0);
        }
    };
    let refusing = async {
        while let Some(client) = endpoint.accept().await {
            client.refuse();
        }
        pending().await
    };
    if timeout(limit, or(draining, refusing)).await.is_err() {
        endpoint.close(CUT, b"the server ends");
    }
    endpoint.wait_idle().await;
    println!("quic: {accepted} accepted: {echoed} streams echoed");
    Ok(())
}

/// Makes a certificate for localhost, and writes it to `file`. The key stays in memory.
fn server_config(file: &str, limit: Duration) -> Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(file, made.cert.pem())?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = ServerConfig::with_single_cert(vec![made.cert.into()], key.into())?;
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(MAX_STREAMS.into()).max_concurrent_uni_streams(0_u32.into());
    transport.max_idle_timeout(Some(limit.try_into()?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Serves one client. Returns how many of its streams were echoed to their end.
async fn talk(client: Incoming, limit: Duration, mut shutdown: ShutdownSignal) -> Result<u64> {
    let connection = timeout(limit, client).await.map_err(|_| "its handshake takes too long")??;
    let (mut streams, mut echoed) = (JoinSet::new(), 0);
    loop {
        match shutdown.run_until_triggered(connection.accept_bi()).await {
            Some(Ok((send, receive))) => streams.spawn(echo(send, receive, limit)),
            // The client closes its connection when it is done.
            Some(Err(ConnectionError::ApplicationClosed(_))) | None => break,
            Some(Err(error)) => return Err(error.into()),
        };
        while let Some(is_done) = streams.try_join_next() {
            echoed += u64::from(is_done?);
        }
    }
    while let Some(is_done) = streams.join_next().await {
        echoed += u64::from(is_done?);
    }
    connection.close(DONE, b"the server ends");
    Ok(echoed)
}

/// Echoes one stream. Returns whether the client has acknowledged all of it.
async fn echo(mut send: SendStream, mut receive: RecvStream, limit: Duration) -> bool {
    let is_done = pass(&mut send, &mut receive, limit).await.is_ok();
    if !is_done {
        // A drop alone would look like the end of the data. These calls fail if the stream has ended already.
        let _ = (send.reset(CUT), receive.stop(CUT));
    }
    is_done
}

async fn pass(send: &mut SendStream, receive: &mut RecvStream, limit: Duration) -> Result<()> {
    let mut buf = [0; 4096];
    while let Some(read) = timeout(limit, receive.read(&mut buf)).await?? {
        timeout(limit, send.write_all(&buf[..read])).await??;
    }
    send.finish()?;
    // The close of a connection discards what its peer has not acknowledged.
    timeout(limit, send.stopped()).await??;
    Ok(())
}

async fn connect(file: &str, address: SocketAddr, limit: Duration) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file)?)?;
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(limit.try_into()?)).keep_alive_interval(Some(limit / 3));
    config.transport_config(Arc::new(transport));
    let endpoint = endpoint(if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse()?, None)?;
    let connecting = timeout(limit, endpoint.connect_with(config, address, "localhost")?).await;
    let connection = connecting.map_err(|_| "the server does not answer")??;
    let (mut send, mut receive) = connection.open_bi().await?;
    let upload = async {
        io::copy(stdin(), &mut send).await?;
        Ok(send.finish()?)
    };
    try_zip(upload, io::copy(&mut receive, stdout())).await?;
    connection.close(DONE, b"done");
    endpoint.wait_idle().await;
    Ok(())
}
