//! quinn on this runtime: the example `quic` with its own client and another, and a long transfer.

use std::io::Write;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kittiwake::runtime::Builder;
use kittiwake::time::timeout;
use kittiwake_ecosystem::quic::endpoint;
use quinn::{ClientConfig, ConnectionError, Endpoint, ServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};

use super::program::{Folder, PATIENCE, Program, within};

/// How much is sent.
const LENGTH: usize = 64 << 20;

#[track_caller]
fn start(certificate: &str) -> Program {
    Program::start("quic", env!("CARGO_BIN_EXE_quic"), &["serve", certificate, "127.0.0.1:0", "30"])
}

/// The example's client gets all bytes of its stdin back. Garbage at the server's port changes nothing.
#[test]
fn quic_client_gets_its_bytes() {
    within(|| {
        let folder = Folder::new("quic-client");
        let mut server = start(&folder.file("quic.pem"));
        let garbage = UdpSocket::bind("127.0.0.1:0").expect("bind");
        for length in [0, 1, 20, 1200] {
            garbage.send_to(&[0xff; 1200][..length], server.address).expect("send");
        }
        let bytes: Vec<u8> = (0..3_000_000).map(byte_at).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_quic"));
        command.args(["connect", &folder.file("quic.pem"), &server.address.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = command.spawn().expect("the client starts");
        let (mut stdin, sent) = (client.stdin.take().expect("stdin is piped"), bytes.clone());
        let writer = std::thread::spawn(move || stdin.write_all(&sent));
        let output = client.wait_with_output().expect("the client ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        writer.join().expect("no panic").expect("the client reads its stdin");
        assert!(output.stdout == bytes, "the client prints {} other bytes", output.stdout.len());
        server.terminate();
        let (report, errors) = server.ended();
        assert_eq!(report, "1 accepted: 1 streams echoed\n");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A signal ends the example only when the streams that a client has opened are echoed. Then the client reads a reason.
#[test]
fn signalled_quic_finishes_open_streams() {
    within(|| {
        let folder = Folder::new("quic-signal");
        let certificate = folder.file("quic.pem");
        let mut server = start(&certificate);
        let address = server.address;
        kittiwake::block_on(async {
            let config = client_config(CertificateDer::from_pem_file(certificate).expect("a certificate"));
            let client = loopback(None);
            let connecting = client.connect_with(config.clone(), address, "localhost").expect("an attempt");
            let connection = timeout(PATIENCE, connecting).await.expect("in time").expect("a connection");
            let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
            let mut buf = [0; 5];
            send.write_all(b"begun").await.expect("write");
            receive.read_exact(&mut buf).await.expect("an echo");
            server.terminate();
            // The server refuses new clients once it has seen the signal.
            loop {
                let attempt = client.connect_with(config.clone(), address, "localhost").expect("an attempt");
                match timeout(PATIENCE, attempt).await.expect("in time") {
                    Ok(accepted) => accepted.close(0_u32.into(), b""),
                    Err(ConnectionError::ConnectionClosed(_)) => break,
                    Err(error) => panic!("a refusal, and not: {error}"),
                }
            }
            send.write_all(b"ended").await.expect("write");
            send.finish().expect("finish");
            assert_eq!(receive.read_to_end(16).await.expect("an echo"), b"ended");
            let ConnectionError::ApplicationClosed(closed) = connection.closed().await else {
                panic!("the server must close the connection");
            };
            assert_eq!(closed.reason, "the server ends");
        });
        let (report, errors) = server.ended();
        assert!(report.ends_with(" accepted: 1 streams echoed\n"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// An endpoint on a port of loopback.
fn loopback(server: Option<ServerConfig>) -> Endpoint {
    endpoint("127.0.0.1:0".parse().expect("an address"), server).expect("an endpoint")
}

/// The configuration of a client that trusts this certificate and no other.
fn client_config(certificate: CertificateDer<'_>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.into_owned()).expect("a certificate");
    ClientConfig::with_root_certificates(Arc::new(roots)).expect("a client's configuration")
}

/// The configurations of a server with a certificate of its own, and of a client that trusts it.
fn configurations() -> (ServerConfig, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let certificate = made.cert.der().clone();
    let server =
        ServerConfig::with_single_cert(vec![certificate.clone()], key.into()).expect("a server's configuration");
    (server, client_config(certificate))
}

/// The byte at a place of the stream, so that a lost, doubled or moved one shows.
fn byte_at(at: usize) -> u8 {
    (at % 251) as u8 ^ (at / 251 % 241) as u8
}

/// Sends [`LENGTH`] bytes to a server, which checks and counts them and answers.
async fn transfer() {
    let (server_config, client_config) = configurations();
    let server = loopback(Some(server_config));
    let address = server.local_addr().expect("its address");
    let serving = kittiwake::spawn(async move {
        let connection = server.accept().await.expect("a client").await.expect("a handshake");
        let (mut send, mut receive) = connection.accept_bi().await.expect("a stream");
        let (mut buf, mut at) = (vec![0; 64 << 10], 0);
        while let Some(read) = receive.read(&mut buf).await.expect("read") {
            let right = buf[..read].iter().enumerate().all(|(place, byte)| *byte == byte_at(at + place));
            assert!(right, "a byte between {at} and {} is wrong", at + read);
            at += read;
        }
        send.write_all(&at.to_le_bytes()).await.expect("write");
        send.finish().expect("finish");
        connection.closed().await;
    });

    let client = loopback(None);
    let connection = client.connect_with(client_config, address, "localhost").expect("an attempt");
    let connection = connection.await.expect("a connection");
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let mut at = 0;
    while at < LENGTH {
        let piece: Vec<u8> = (at..LENGTH.min(at + (64 << 10))).map(byte_at).collect();
        send.write_all(&piece).await.expect("write");
        at += piece.len();
    }
    send.finish().expect("finish");
    let answer = receive.read_to_end(16).await.expect("an answer");
    assert_eq!(answer, LENGTH.to_le_bytes(), "the server has read another number of bytes");
    connection.close(0_u32.into(), b"done");
    client.wait_idle().await;
    serving.await.expect("the server");
}

/// 64 MiB arrive byte for byte, on one worker, which runs both ends, and on two.
#[test]
fn quic_transfers_every_byte() {
    let bounded = || timeout(Duration::from_secs(120), transfer());
    kittiwake::block_on(bounded()).expect("on one worker it is done in time");
    let runtime = Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(runtime.handle().spawn(bounded())).expect("no panic").expect("on two workers it is done in time");
}
