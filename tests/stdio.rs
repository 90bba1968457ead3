//! The standard streams and child processes, by the `child` example with pipes, files and `/dev/null`.
#![cfg(unix)]
// Only the library keeps to the oldest Rust that it supports.
#![allow(clippy::incompatible_msrv)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use support::{pattern, within};

/// The program of the example. Cargo builds the examples before it runs the tests.
fn child(command: &[&str]) -> Command {
    let directory = std::env::current_exe().expect("this program's path");
    let directory = directory.parent().and_then(|deps| deps.parent()).expect("target/debug");
    let mut child = Command::new(directory.join("examples/child"));
    child.args(command);
    child
}

/// A file that is removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("kittiwake-stdio-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("a file");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a program with `input` in a pipe, and collects its output from another one.
fn piped(mut command: Command, input: Vec<u8>) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the example");
    let mut pipe = child.stdin.take().expect("piped");
    let writing = std::thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    let _ = writing.join();
    output
}

/// More bytes than a pipe holds pass from pipe to pipe, through the child and back.
#[test]
fn pipes_pass_all_bytes() {
    within(|| {
        let input = pattern(1_000_000);
        let output = piped(child(&["cat"]), input.clone());
        assert!(output.status.success() && output.stdout == input, "{} bytes came", output.stdout.len());
    });
}

/// Regular files cannot be watched: the blocking pool reads and writes them, and no byte is lost.
#[test]
fn files_pass_all_bytes() {
    within(|| {
        let input = pattern(300_000);
        let (from, to) = (Scratch::new("from", &input), Scratch::new("to", b""));
        let mut command = child(&["cat"]);
        command.stdin(File::open(&from.0).expect("open")).stdout(File::create(&to.0).expect("create"));
        assert!(command.status().expect("it ends").success());
        assert!(std::fs::read(&to.0).expect("read") == input, "the file changed");
    });
}

/// A terminal-like stream stays blocking for the processes that share it.
#[test]
#[cfg(target_os = "linux")]
fn shared_streams_stay_blocking() {
    within(|| {
        let (mut ours, theirs) = std::io::pipe().expect("a pipe");
        let kept = theirs.try_clone().expect("dup");
        let mut command = child(&["echo", "hello"]);
        assert!(command.stdin(Stdio::null()).stdout(theirs).status().expect("it ends").success());
        assert_eq!(support::descriptor_flags(&kept) & libc::O_NONBLOCK, 0, "the writing end became non-blocking");
        drop((command, kept));
        let mut text = String::new();
        ours.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello\n");
    });
}

/// The example passes on the exit code, and a silent input does not block it. The command lives long enough for a read of
/// that input to begin.
#[test]
fn exit_code_is_passed_on() {
    within(|| {
        let (_never, silent) = std::io::pipe().map(|(reader, writer)| (writer, reader)).expect("a pipe");
        let status = child(&["sh", "-c", "sleep 0.1; exit 7"]).stdin(silent).status().expect("it ends");
        assert_eq!(status.code(), Some(7));
        let missing = child(&["/no/such/command"]).stdin(Stdio::null()).output().expect("it ends");
        assert_eq!(missing.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/command: No such file"));
    });
}
