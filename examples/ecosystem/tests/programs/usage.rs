//! Laws of all programs of this package: help, and errors that say what to do.

use std::process::Command;

use super::program::{Folder, run, within};

const PROGRAMS: [(&str, &str); 8] = [
    ("tls_echo", env!("CARGO_BIN_EXE_tls_echo")),
    ("websocket", env!("CARGO_BIN_EXE_websocket")),
    ("quic", env!("CARGO_BIN_EXE_quic")),
    ("postgres", env!("CARGO_BIN_EXE_postgres")),
    ("axum", env!("CARGO_BIN_EXE_axum")),
    ("https", env!("CARGO_BIN_EXE_https")),
    ("http_client", env!("CARGO_BIN_EXE_http_client")),
    ("console", env!("CARGO_BIN_EXE_console")),
];

/// Each program prints its usage: on stdout and with status 0 if asked, on stderr and with status 2 after a mistake.
#[test]
fn programs_print_their_usage() {
    within(|| {
        for (name, path) in PROGRAMS {
            let help = run(Command::new(path).arg("--help"));
            let usage = String::from_utf8(help.stdout).expect("UTF-8");
            assert!(help.status.success() && usage.starts_with(&format!("usage: {name} ")), "{name}: {usage}");
            for mistake in [&["--unknown"][..], &["a", "b", "c", "d", "e"]] {
                let output = run(Command::new(path).args(mistake));
                let error = String::from_utf8(output.stderr).expect("UTF-8");
                assert_eq!(output.status.code(), Some(2), "{name} {mistake:?} must fail: {error}");
                assert!(error.starts_with(&format!("{name}: ")) && error.contains(&usage), "{name}: {error}");
            }
        }
    });
}

/// A server that cannot listen says where.
#[test]
fn busy_address_is_named() {
    within(|| {
        let folder = Folder::new("usage");
        let certificate = folder.file("localhost.pem");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let tcp = tcp.local_addr().map(|address| (tcp, address.to_string())).expect("the listener's address");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let udp = udp.local_addr().map(|address| (udp, address.to_string())).expect("the socket's address");
        let commands = [
            (0, vec![certificate.as_str(), &tcp.1]),
            (1, vec![tcp.1.as_str()]),
            (2, vec!["serve", &certificate, &udp.1]),
            (4, vec![tcp.1.as_str()]),
            (5, vec![certificate.as_str(), &tcp.1]),
        ];
        for (program, args) in commands {
            let output = run(Command::new(PROGRAMS[program].1).args(&args));
            let error = String::from_utf8(output.stderr).expect("UTF-8");
            let address = args.last().expect("an address");
            assert_eq!(output.status.code(), Some(2), "{args:?} must fail: {error}");
            assert!(error.contains(address) && error.contains("in use"), "{error}");
        }
    });
}
