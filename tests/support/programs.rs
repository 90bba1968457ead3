//! The examples as programs: where they are, and one that runs.

// Each test crate compiles this module and uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use super::support::PATIENCE;

/// The path at which cargo has put an example, beside the tests.
#[track_caller]
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this program");
    let built = test.ancestors().nth(2).expect("the profile's directory").join("examples").join(name);
    assert!(built.exists(), "{} is not built: run `cargo test` or `cargo build --examples`", built.display());
    built
}

/// Runs an example to its end.
#[track_caller]
pub fn run(name: &str, args: &[&str]) -> Output {
    Command::new(example(name)).args(args).stdin(Stdio::null()).output().expect("the example runs")
}

/// An example that runs. A drop ends it.
pub struct Program {
    name: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The address or the path that its first line says.
    pub listens_on: String,
}

impl Program {
    /// Starts an example, and waits until it listens.
    #[track_caller]
    pub fn start(name: &'static str, args: &[&str]) -> Self {
        let mut command = Command::new(example(name));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the example starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the first line");
        let listens_on = line.trim_end().strip_prefix(&format!("{name}: listening on ")).map(str::to_owned);
        let listens_on = listens_on.unwrap_or_else(|| panic!("the first line must say where {name} listens: {line:?}"));
        Self { name, child, stdout, listens_on }
    }

    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.listens_on.parse().expect("the address of the example")
    }

    #[track_caller]
    pub fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address()).expect("connect to the example");
        client.set_read_timeout(Some(PATIENCE)).expect("a bound on the client's reads");
        client.set_write_timeout(Some(PATIENCE)).expect("a bound on the client's writes");
        client
    }

    /// Sends a signal, such as `TERM`.
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits until it has ended with status 0. Returns its report and what it has printed on stderr.
    #[track_caller]
    pub fn ended(&mut self) -> (String, String) {
        let (mut report, mut errors) = (String::new(), String::new());
        self.stdout.read_to_string(&mut report).expect("its output");
        self.child.stderr.take().expect("stderr is piped").read_to_string(&mut errors).expect("its errors");
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0), "{} has printed: {report}{errors}", self.name);
        let report = report.strip_prefix(&format!("{}: ", self.name)).map(str::to_owned);
        (report.expect("the example prints a report"), errors)
    }

    /// Ends it by a signal, as [`ended`](Self::ended).
    #[track_caller]
    pub fn end_by(&mut self, signal: &str) -> (String, String) {
        self.signal(signal);
        self.ended()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
