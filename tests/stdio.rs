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

/// A pipe stays blocking for the processes that share it.
#[test]
#[cfg(target_os = "linux")]
fn shared_streams_stay_blocking() {
    within(|| {
        let ((input, mut feed), (mut ours, output)) =
            (std::io::pipe().expect("a pipe"), std::io::pipe().expect("a pipe"));
        let (kept_input, kept_output) = (input.try_clone().expect("dup"), output.try_clone().expect("dup"));
        let is_blocking = || {
            let flags = support::descriptor_flags(&kept_input) | support::descriptor_flags(&kept_output);
            flags & libc::O_NONBLOCK == 0
        };
        let mut command = child(&["cat"]);
        let mut child = command.stdin(input).stdout(output).spawn().expect("the example");
        drop(command);
        feed.write_all(b"hello").expect("write");
        ours.read_exact(&mut [0; 5]).expect("read");
        // It has read, and waits for more.
        assert!(is_blocking(), "a stream became non-blocking while the child uses it");
        drop(feed);
        assert!(child.wait().expect("it ends").success());
        assert!(is_blocking(), "a stream is non-blocking after the child");
    });
}

/// A terminal that shows nothing more, such as that of a lost connection, stops the task that writes to it, and not its
/// worker: the other task of the example still passes on our input.
#[test]
#[cfg(target_os = "linux")]
fn stopped_terminal_blocks_no_worker() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
    within(|| {
        let never_read = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&never_read).expect("grantpt");
        unlockpt(&never_read).expect("unlockpt");
        let path = ptsname(&never_read, Vec::new()).expect("its name").into_string().expect("ASCII");
        let terminal = File::options().write(true).open(path).expect("open");
        let mut raw = tcgetattr(&terminal).expect("tcgetattr");
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).expect("tcsetattr");

        let mut command = child(&["sh", "-c", "cat /dev/zero & exec cat >&2"]);
        command.stdin(Stdio::piped()).stdout(terminal).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the example");
        let (mut input, mut echo) = (child.stdin.take().expect("piped"), child.stderr.take().expect("piped"));
        for round in 0..500_u32 {
            input.write_all(&round.to_ne_bytes()).expect("write");
            let mut bytes = [0; 4];
            echo.read_exact(&mut bytes).expect("read");
            assert_eq!(u32::from_ne_bytes(bytes), round);
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
    });
}

/// Another process may make a shared stream non-blocking. No byte is lost of it.
#[test]
fn non_blocking_output_is_complete() {
    within(|| {
        let input = pattern(1_000_000);
        let (mut ours, theirs) = std::io::pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&theirs, true).expect("FIONBIO");
        let mut command = child(&["cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(theirs).spawn().expect("the example");
        drop(command);
        let mut pipe = child.stdin.take().expect("piped");
        let sent = input.clone();
        let writing = std::thread::spawn(move || pipe.write_all(&sent));
        let mut output = Vec::new();
        ours.read_to_end(&mut output).expect("read");
        assert!(output == input, "{} bytes came", output.len());
        writing.join().expect("no panic").expect("write");
        assert!(child.wait().expect("it ends").success());
    });
}

/// An input that cannot be watched and is non-blocking has no error while it is empty: the read waits. An eventfd shared
/// with another process is one.
#[test]
#[cfg(target_os = "linux")]
fn empty_non_blocking_input_waits() {
    use rustix::event::{EventfdFlags, eventfd};
    within(|| {
        let counter = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd");
        let mut command = child(&["cat"]);
        let mut child =
            command.stdin(counter.try_clone().expect("dup")).stdout(Stdio::piped()).spawn().expect("the example");
        let mut output = child.stdout.take().expect("piped");
        for round in 1..=100_u64 {
            // By now the child has read the last number, so it finds the counter empty, or soon will.
            rustix::io::write(&counter, &round.to_ne_bytes()).expect("write");
            let mut bytes = [0; 8];
            output.read_exact(&mut bytes).expect("the child gave up its input");
            assert_eq!(u64::from_ne_bytes(bytes), round);
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
    });
}

/// Outside a runtime there is no pool to read a file. That is an error, and no panic.
#[test]
fn file_outside_runtime_fails() {
    support::in_own_process("file_outside_runtime_fails", || {
        use kittiwake::io::{AsyncReadExt, stdin};
        let mut stdin = stdin();
        let mut buf = [0; 8];
        let error = futures_lite::future::block_on(stdin.read(&mut buf)).expect_err("there is no pool");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
        assert_eq!(kittiwake::block_on(stdin.read(&mut buf)).expect("the stream was lost"), 0);
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
