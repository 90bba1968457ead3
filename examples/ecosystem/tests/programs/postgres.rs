//! The example `postgres`, with a server of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program::{run, within};

/// Runs the example. Returns whether it succeeds, and what it prints.
#[track_caller]
fn example(config: &str) -> (bool, String) {
    let output = run(Command::new(env!("CARGO_BIN_EXE_postgres")).arg(config));
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).expect("UTF-8"))
}

/// A PostgreSQL server with an empty database. A drop stops it.
struct Server {
    programs: PathBuf,
    /// The data, the log and the Unix socket. It belongs to the user that runs the server.
    folder: String,
    address: String,
}

impl Server {
    /// Starts a server, or returns `None` if PostgreSQL is not installed.
    #[track_caller]
    fn start() -> Option<Self> {
        let programs = programs()?;
        let folder = run(as_user(Path::new("mktemp")).args(["-d", "/tmp/kittiwake-postgres.XXXXXX"])).stdout;
        let folder = String::from_utf8(folder).expect("a path").trim_end().to_owned();
        // An address of this process, so that the port is free there.
        let process = std::process::id();
        let address = format!("127.{}.{}.{}", 1 + (process >> 16) % 254, (process >> 8) % 256, 1 + process % 254);
        let server = Self { programs, folder, address };
        server.call("initdb", &["--username=postgres", "--auth=trust", "--no-sync", "--no-instructions"]);
        let log = format!("--log={}/log", server.folder);
        let options = format!("--options=-F -h {} -p 5432 -k {}", server.address, server.folder);
        server.call("pg_ctl", &["start", "--wait", "--timeout=50", &log, &options]);
        Some(server)
    }

    #[track_caller]
    fn call(&self, program: &str, args: &[&str]) {
        let mut command = as_user(&self.programs.join(program));
        let output = run(command.arg(format!("--pgdata={}/data", self.folder)).args(args));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} fails: {errors}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut stop = as_user(&self.programs.join("pg_ctl"));
        stop.args(["stop", "--mode=immediate", "--pgdata", &format!("{}/data", self.folder)]);
        // After a failed start there is nothing to stop.
        let _ = stop.output();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The folder that has `initdb` and `pg_ctl`. Debian does not put them into `PATH`.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = versions.map(|version| version.path().join("bin")).chain(std::env::split_paths(&path));
    folders.into_iter().find(|folder| folder.join("initdb").exists() && folder.join("pg_ctl").exists())
}

/// A command for a user other than root. PostgreSQL refuses to run as root.
fn as_user(program: &Path) -> Command {
    let user = run(Command::new("id").arg("-u")).stdout;
    if user != b"0\n" {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command
}

/// The example works over TCP and over a Unix socket, leaves nothing behind, and passes on the server's errors.
#[test]
fn postgres_runs_on_a_real_server() {
    const EXPECTED: &str = "postgres: gannet has a wingspan of 176 cm\n\
                            postgres: kittiwake has a wingspan of 97 cm\n\
                            postgres: notified of a puffin\n";
    within(|| {
        let Some(server) = Server::start() else { return eprintln!("skipped: PostgreSQL is not installed") };
        // Twice, because a table that stayed would fail the second time.
        for host in [&server.address, &server.folder, &server.address, &server.folder] {
            let (succeeds, printed) = example(&format!("host={host} user=postgres"));
            assert!(succeeds && printed == EXPECTED, "with host {host}: {printed}");
        }
        let (succeeds, printed) = example(&format!("postgres://nobody@{}", server.address));
        assert!(!succeeds && printed.contains("role \"nobody\" does not exist"), "{printed}");
    });
}

/// A server that is not there, or does not answer, is an error that says so, and no hang.
#[test]
fn postgres_says_which_server_fails() {
    within(|| {
        let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = silent.local_addr().expect("the listener's address").port();
        let config = format!("host=127.0.0.1 port={port} user=postgres connect_timeout=1");
        let (succeeds, printed) = example(&config);
        assert!(!succeeds && printed.contains("the server does not answer"), "{printed}");
        let (succeeds, printed) = example("host=/nonexistent user=postgres");
        assert!(!succeeds && printed.contains("/nonexistent/.s.PGSQL.5432"), "{printed}");
        let (succeeds, printed) = example("user=postgres");
        assert!(!succeeds && printed.contains("names no host"), "{printed}");
    });
}
