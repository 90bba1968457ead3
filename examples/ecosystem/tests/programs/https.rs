//! The example `https`, with curl and rustls as clients.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::program::{Folder, Program, run, succeeds, within};

/// The example, and the folder with its certificate.
pub struct Server {
    pub program: Program,
    folder: Folder,
}

impl Server {
    #[track_caller]
    pub fn start(test: &str, seconds: &str) -> Self {
        let folder = Folder::new(test);
        let args = [&folder.file("localhost.pem"), "127.0.0.1:0", seconds];
        Self { program: Program::start("https", env!("CARGO_BIN_EXE_https"), &args), folder }
    }

    /// The file with its certificate.
    pub fn certificate(&self) -> String {
        self.folder.file("localhost.pem")
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.program.address)
    }

    fn session(&self) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(self.certificate()).expect("a certificate");
        roots.add(certificate).expect("the certificate is valid");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        ClientConnection::new(Arc::new(config), name).expect("a client's session")
    }

    /// A client that offers no protocol by ALPN. It gets HTTP/1.
    fn client(&self) -> StreamOwned<ClientConnection, TcpStream> {
        StreamOwned::new(self.session(), self.program.connect())
    }

    #[track_caller]
    fn curl(&self, args: &[&str], path: &str) -> Output {
        run(Command::new("curl")
            .args(["-sS", "-m", "30", "-w", "%{http_version} %{http_code}"])
            .args(args)
            .arg(self.url(path)))
    }
}

/// Sends a request on a connection that stays open, and reads the response.
#[track_caller]
fn exchange(client: &mut (impl Read + Write)) {
    client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("write");
    let mut response = Vec::new();
    while !response.ends_with(b"hello over HTTP/1.1\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap_or_else(|error| {
            panic!("{error}, after {}", response.escape_ascii());
        });
        response.extend(byte);
    }
}

/// curl verifies the certificate, agrees on the protocol by ALPN and is answered by it. Without the certificate it ends
/// the handshake.
#[test]
fn curl_speaks_both_protocols() {
    within(|| {
        if !succeeds(Command::new("curl").arg("--version")) {
            return eprintln!("skipped: curl is missing");
        }
        let mut server = Server::start("https-curl", "60");
        let file = server.certificate();
        for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
            let output = server.curl(&["--cacert", &file, option], "/");
            let (body, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let written = if version == "2" { "2.0" } else { version };
            assert_eq!(body, format!("hello over HTTP/{written}\n{version} 200"), "{option}: {errors}");
        }
        let output = server.curl(&["--cacert", &file], "/nothing");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "there is no /nothing\n2 404");
        let output = server.curl(&[], "/");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("certificate"), "{errors}");
        let error = server.program.error();
        assert!(error.contains(": TLS handshake: "), "{error}");
        server.program.terminate();
        let (report, errors) = server.program.ended();
        assert!(report.starts_with("4 accepted: 3 served, 1 failed"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}

/// Clients that stop before or within the handshake hold up no other client, and are cut off when their time is over.
#[test]
fn half_handshakes_are_cut_off() {
    within(|| {
        let server = Server::start("https-half", "3");
        let silent = server.program.connect();
        let mut hello = Vec::new();
        server.session().write_tls(&mut hello).expect("a ClientHello");
        let mut half = server.program.connect();
        half.write_all(&hello[..hello.len() / 2]).expect("write");
        // The server answers all of it, and the client does not finish.
        let mut unfinished = server.program.connect();
        unfinished.write_all(&hello).expect("write");
        unfinished.read_exact(&mut [0; 64]).expect("the server's answer");
        exchange(&mut server.client());
        for mut client in [silent, half, unfinished] {
            // The end, or a reset if bytes of the client were not read.
            let ended = client.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
            assert!(matches!(ended, Ok(_) | Err(ErrorKind::ConnectionReset)), "the client is not cut off: {ended:?}");
            let error = server.program.error();
            assert!(error.contains("does not complete the handshake"), "{error}");
        }
        exchange(&mut server.client());
    });
}

/// A client that speaks plain HTTP gets an alert of TLS, and costs other clients nothing.
#[test]
fn plain_http_gets_an_alert() {
    within(|| {
        let server = Server::start("https-plain", "60");
        let (mut beside, mut plain) = (server.client(), server.program.connect());
        exchange(&mut beside);
        plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("write");
        let mut alert = Vec::new();
        plain.read_to_end(&mut alert).expect("an orderly end");
        assert_eq!(alert.first(), Some(&21), "the answer must be an alert: {alert:?}");
        let error = server.program.error();
        assert!(error.contains(": TLS handshake: "), "{error}");
        exchange(&mut beside);
    });
}

/// The end of the server closes an idle connection by close_notify. Without it, a client could not tell the end from a
/// cut.
#[test]
fn end_sends_close_notify() {
    within(|| {
        let mut server = Server::start("https-end", "60");
        let mut client = server.client();
        exchange(&mut client);
        server.program.terminate();
        let mut rest = Vec::new();
        // Without close_notify this fails with `UnexpectedEof`.
        client.read_to_end(&mut rest).expect("the server's close_notify");
        assert!(rest.is_empty(), "{} bytes too many", rest.len());
        let (report, errors) = server.program.ended();
        assert!(report.starts_with("1 accepted: 1 served"), "{report}");
        assert!(errors.is_empty(), "{errors:?}");
    });
}
