//! A program of this package that runs, and bounds on waiting for it.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// Longer than any test takes on a slow machine. Only a hang reaches this limit.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a thread of its own and fails if it does not end within [`PATIENCE`].
#[track_caller]
pub fn within<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = thread::spawn(move || {
        // A panic drops `done`, which ends the wait too.
        let done = done;
        let value = test();
        let _ = done.send(());
        value
    });
    let ended = waiting.recv_timeout(PATIENCE);
    assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout), "the test still waits after {PATIENCE:?}");
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?} does not run: {error}"))
}

/// Whether a command runs and succeeds. A test that needs a foreign client asks this first.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

/// A server that runs. A drop ends it.
pub struct Program {
    name: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
    errors: Receiver<String>,
    /// Where it listens, as its first line says.
    pub address: SocketAddr,
}

impl Program {
    /// Starts a program, and waits until it listens.
    #[track_caller]
    pub fn start(name: &'static str, path: &str, args: &[&str]) -> Self {
        let mut command = Command::new(path);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (report, errors) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| report.send(line)));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the first line");
        let address = line.trim_end().strip_prefix(&format!("{name}: listening on ")).map(str::parse);
        let Some(Ok(address)) = address else { panic!("the first line must say where {name} listens: {line:?}") };
        Self { name, child, stdout, errors, address }
    }

    /// A connection whose reads and writes are bounded.
    #[track_caller]
    pub fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("connect to the program");
        client.set_read_timeout(Some(PATIENCE)).expect("a bound on the client's reads");
        client.set_write_timeout(Some(PATIENCE)).expect("a bound on the client's writes");
        client
    }

    /// Waits for the next line on stderr, without the program's name.
    #[track_caller]
    pub fn error(&self) -> String {
        let line = self.errors.recv_timeout(PATIENCE).expect("the program reports an error");
        let error = line.strip_prefix(&format!("{}: ", self.name));
        error.unwrap_or_else(|| panic!("an error begins with the program's name: {line}")).to_owned()
    }

    /// Sends SIGTERM.
    #[track_caller]
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        assert!(succeeds(Command::new("kill").args(["-s", name, &self.child.id().to_string()])), "kill fails");
    }

    /// Waits until it has ended with status 0. Returns its report, and what stderr has that no test has read.
    #[track_caller]
    pub fn ended(&mut self) -> (String, Vec<String>) {
        let mut report = String::new();
        self.stdout.read_to_string(&mut report).expect("its output");
        let errors: Vec<String> = self.errors.iter().collect();
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0), "{} has printed: {report}{errors:?}", self.name);
        let report = report.strip_prefix(&format!("{}: ", self.name)).map(str::to_owned);
        (report.expect("the program prints a report"), errors)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for the files of one test. A drop removes it.
pub struct Folder(PathBuf);

impl Folder {
    #[track_caller]
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kittiwake-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
