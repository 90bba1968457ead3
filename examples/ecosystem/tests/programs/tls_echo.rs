//! The example `tls_echo`, with OpenSSL and rustls as clients.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::program::{Folder, Program, run, succeeds, within};

/// The server, and the file that has its certificate.
struct Server {
    program: Program,
    folder: Folder,
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Server {
    #[track_caller]
    fn start(test: &str, seconds: &str) -> Self {
        let folder = Folder::new(test);
        let args = [&folder.file("localhost.pem"), "127.0.0.1:0", seconds];
        Self { program: Program::start("tls_echo", env!("CARGO_BIN_EXE_tls_echo"), &args), folder }
    }

    /// The client's side of a handshake that has not begun. It trusts the server's certificate and no other.
    fn session(&self) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(self.folder.file("localhost.pem")).expect("a certificate");
        roots.add(certificate).expect("the certificate is valid");
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"echo".to_vec()];
        let name = ServerName::try_from("localhost").expect("a name");
        ClientConnection::new(Arc::new(config), name).expect("a client's session")
    }

    /// The bytes with which a client begins the handshake.
    fn hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.session().write_tls(&mut hello).expect("a ClientHello");
        hello
    }

    fn client(&self) -> Tls {
        StreamOwned::new(self.session(), self.program.connect())
    }

    /// The command that connects OpenSSL's client. It offers `protocol` by ALPN.
    fn openssl(&self, protocol: &str) -> Command {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.program.address.to_string(), "-servername", "localhost"]);
        command.args(["-CAfile", &self.folder.file("localhost.pem"), "-verify_return_error", "-ign_eof"]);
        command.args(["-alpn", protocol]);
        command
    }
}

#[track_caller]
fn exchange(client: &mut Tls, message: &[u8]) {
    client.write_all(message).expect("write");
    let mut reply = vec![0; message.len()];
    client.read_exact(&mut reply).expect("read");
    assert!(reply == message, "the server returns other bytes");
}

/// OpenSSL's client verifies the certificate, agrees on the protocol and gets its line back. When a signal ends the
/// server, the client reads close_notify, and not a cut.
#[test]
fn openssl_gets_echo_and_end() {
    within(|| {
        if !succeeds(Command::new("openssl").arg("version")) {
            return eprintln!("skipped: openssl is missing");
        }
        let mut server = Server::start("openssl", "60");
        let mut openssl = server.openssl("echo");
        openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = openssl.spawn().expect("openssl starts");
        writeln!(client.stdin.as_ref().expect("stdin is piped"), "kittiwake").expect("write to openssl");
        let mut lines = BufReader::new(client.stdout.take().expect("stdout is piped")).lines().map_while(Result::ok);
        let before: Vec<String> = lines.by_ref().take_while(|line| line != "kittiwake").collect();
        for expected in ["ALPN protocol: echo", "Verify return code: 0 (ok)"] {
            assert!(before.iter().any(|line| line.trim() == expected), "no {expected:?} in {before:#?}");
        }
        server.program.terminate();
        // The client prints more than its pipe holds only if it goes wrong.
        let after: Vec<String> = lines.collect();
        let output = client.wait_with_output().expect("openssl ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("unexpected eof"), "{after:#?}\n{errors}");
        let (report, errors) = server.program.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A client that offers another protocol only is refused by an alert.
#[test]
fn unknown_alpn_is_refused() {
    within(|| {
        if !succeeds(Command::new("openssl").arg("version")) {
            return eprintln!("skipped: openssl is missing");
        }
        let server = Server::start("alpn", "60");
        let output = run(&mut server.openssl("smtp"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("no application protocol"), "{errors}");
        let error = server.program.error();
        assert!(error.contains(": TLS handshake: "), "{error}");
    });
}

/// A client of rustls gets all of its bytes, and close_notify in answer to its own.
#[test]
fn rustls_gets_bytes_and_end() {
    within(|| {
        let mut server = Server::start("rustls", "60");
        let mut client = server.client();
        exchange(&mut client, b"hello");
        let large: Vec<u8> = (0..8192_u32).map(|at| (at % 251) as u8).collect();
        (0..100).for_each(|_| exchange(&mut client, &large));
        client.conn.send_close_notify();
        let mut rest = Vec::new();
        // Without close_notify this fails with `UnexpectedEof`.
        client.read_to_end(&mut rest).expect("the server's close_notify");
        assert!(rest.is_empty(), "{} bytes too many", rest.len());
        server.program.terminate();
        let (report, errors) = server.program.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// A client that had begun to send when SIGTERM came gets all of its bytes, and close_notify.
#[test]
fn begun_requests_are_answered() {
    within(|| {
        let mut server = Server::start("begun", "60");
        let mut client = server.client();
        exchange(&mut client, b"hello");
        server.program.signal("STOP");
        let body: Vec<u8> = (0..40_000_u32).map(|at| (at % 251) as u8).collect();
        client.write_all(&body[..10_000]).expect("the kernel takes the first part");
        server.program.signal("TERM");
        server.program.signal("CONT");
        // This makes the signal come first: the server has answered the first part.
        let mut got = vec![0; 10_000];
        client.read_exact(&mut got).expect("the answer to the first part");
        client.write_all(&body[10_000..]).expect("write the second part");
        client.read_to_end(&mut got).expect("the answer to the second part, and close_notify");
        assert!(got == body, "{} of {} bytes have come back", got.len(), body.len());
        drop(client);
        let (report, errors) = server.program.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}{errors:?}");
    });
}

/// A cut without close_notify is an error of that connection: the client may have lost bytes.
#[test]
fn cut_is_no_end() {
    within(|| {
        let server = Server::start("cut", "60");
        let mut client = server.client();
        exchange(&mut client, b"hello");
        client.sock.shutdown(Shutdown::Write).expect("shutdown");
        let error = server.program.error();
        assert!(error.contains("close_notify"), "{error}");
    });
}

/// Clients that stop in their handshake: before it, within the ClientHello, and after the server's answer.
#[track_caller]
fn half_handshakes(server: &Server) -> [TcpStream; 3] {
    let mut clients = [(); 3].map(|()| server.program.connect());
    let hello = server.hello();
    clients[1].write_all(&hello[..hello.len() / 2]).expect("write");
    clients[2].write_all(&hello).expect("write");
    clients[2].read_exact(&mut [0; 64]).expect("the server's answer");
    clients
}

/// Clients that stop before or within the handshake hold up no other client.
#[test]
fn half_handshakes_hold_up_none() {
    within(|| {
        let server = Server::start("half", "600");
        let _clients = half_handshakes(&server);
        exchange(&mut server.client(), b"served meanwhile");
    });
}

/// Clients that stop before or within the handshake, or send it byte by byte, are cut off when their time is over.
#[test]
fn half_handshakes_are_cut_off() {
    within(|| {
        let server = Server::start("cut-off", "1");
        // A byte now and then takes far longer than a handshake may.
        let (mut slow, hello) = (server.program.connect(), server.hello());
        let slow = thread::spawn(move || {
            hello.chunks(1).all(|byte| {
                thread::park_timeout(Duration::from_millis(30));
                slow.write_all(byte).is_ok()
            })
        });
        for mut client in half_handshakes(&server) {
            // The end, or a reset if bytes of the client were not read.
            let ended = client.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
            assert!(matches!(ended, Ok(_) | Err(ErrorKind::ConnectionReset)), "the client is not cut off: {ended:?}");
        }
        assert!(!slow.join().expect("no panic"), "the slow client could send all of its handshake");
        for _ in 0..4 {
            let error = server.program.error();
            assert!(error.contains(": TLS handshake: "), "{error}");
        }
    });
}

/// A client that speaks no TLS gets an alert, and costs other clients nothing.
#[test]
fn garbage_costs_one_connection() {
    within(|| {
        let server = Server::start("garbage", "60");
        let mut beside = server.client();
        exchange(&mut beside, b"before");
        // The last one is a ClientHello of one byte.
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 512], &[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]] {
            let mut client = server.program.connect();
            client.write_all(garbage).expect("write");
            let mut alert = Vec::new();
            client.read_to_end(&mut alert).expect("an orderly end");
            let error = server.program.error();
            assert!(error.contains(": TLS handshake: "), "{error}");
            assert_eq!(alert.first(), Some(&21), "the answer to garbage must be an alert: {alert:?}, {error}");
        }
        exchange(&mut beside, b"after");
    });
}
