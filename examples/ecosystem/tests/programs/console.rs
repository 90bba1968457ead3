//! The example `console`: its tasks, as `tokio-console` sees them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use console_api::field::{Name, Value};
use console_api::instrument::instrument_client::InstrumentClient;
use console_api::instrument::{InstrumentRequest, Update};
use console_api::tasks::{Stats, Task};

use super::program::{Program, succeeds, within};

/// Whether console-subscriber lets the program run.
const CAN_RUN: bool = cfg!(console_without_tokio_unstable);

/// The program, and where `tokio-console` may connect.
struct Server {
    program: Program,
    console: String,
}

impl Server {
    #[track_caller]
    fn start() -> Self {
        // The program cannot say which port it was given, so it gets an address that is its own.
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        let console = format!("127.{high}.{low}.{}:6669", NEXT.fetch_add(1, Ordering::Relaxed));
        let program = Program::start("console", env!("CARGO_BIN_EXE_console"), &["127.0.0.1:0", &console]);
        Self { program, console }
    }

    /// A client that has had this many bytes echoed, one by one.
    #[track_caller]
    fn client(&self, bytes: usize) -> TcpStream {
        let mut client = self.program.connect();
        for _ in 0..bytes {
            client.write_all(b"x").expect("write");
            client.read_exact(&mut [0]).expect("the echo");
        }
        client
    }
}

/// The tasks as the updates describe them.
#[derive(Default)]
struct Tasks {
    tasks: HashMap<u64, Task>,
    stats: HashMap<u64, Stats>,
}

impl Tasks {
    fn add(&mut self, update: Update) {
        let Some(update) = update.task_update else { return };
        assert_eq!(update.dropped_events, 0, "the subscriber has lost events");
        let id = |task: &Task| task.id.expect("a task has an id").id;
        self.tasks.extend(update.new_tasks.into_iter().map(|task| (id(&task), task)));
        self.stats.extend(update.stats_update);
    }

    /// The first task of this name, with its kind and its statistics.
    fn named(&self, name: &str) -> Option<(String, &Task, &Stats)> {
        let is_named = |(_, task): &(&u64, &Task)| field(task, "task.name").as_deref() == Some(name);
        let (id, task) = self.tasks.iter().find(is_named)?;
        Some((field(task, "kind")?, task, self.stats.get(id)?))
    }
}

/// A field of a task.
fn field(task: &Task, name: &str) -> Option<String> {
    let field = task.fields.iter().find(|field| matches!(&field.name, Some(Name::StrName(of)) if of == name));
    match field?.value.as_ref()? {
        Value::StrVal(text) | Value::DebugVal(text) => Some(text.clone()),
        Value::U64Val(number) => Some(number.to_string()),
        _ => None,
    }
}

fn polls(stats: &Stats) -> u64 {
    stats.poll_stats.as_ref().map_or(0, |stats| stats.polls)
}

/// Follows the updates until `holds`.
#[track_caller]
fn wait_until(console: &str, holds: impl Fn(&Tasks) -> bool) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = loop {
            // The thread of the subscriber may not listen yet.
            match InstrumentClient::connect(format!("http://{console}")).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut updates = client.watch_updates(InstrumentRequest {}).await.expect("a stream of updates").into_inner();
        let mut tasks = Tasks::default();
        while !holds(&tasks) {
            tasks.add(updates.message().await.expect("an update").expect("the program runs"));
        }
    });
}

/// Our tasks reach `tokio-console`'s protocol with their names, places, kinds, polls and wakes, and their ends.
#[test]
fn console_gets_the_tasks() {
    if !CAN_RUN {
        return eprintln!("skipped: built without RUSTFLAGS='--cfg console_without_tokio_unstable'");
    }
    within(|| {
        let server = Server::start();
        let client = server.client(5);
        let name = client.local_addr().expect("an address").to_string();
        wait_until(&server.console, |tasks| {
            let Some((kind, task, stats)) = tasks.named(&name) else { return false };
            let place = task.location.as_ref().and_then(|location| location.file.as_deref());
            let is_in_program = place.is_some_and(|file| file.ends_with("src/bin/console.rs"));
            // The first poll follows no wake. A wake may find the next byte too: without the short-read rule, which poll(2)
            // lacks, a task reads until nothing is left.
            let is_counted = polls(stats) >= 2 && stats.wakes >= 1 && stats.wakes < polls(stats);
            let has_waker = stats.waker_clones > stats.waker_drops;
            kind == "task" && is_in_program && is_counted && has_waker && stats.dropped_at.is_none()
        });
        wait_until(&server.console, |tasks| {
            let is_polled =
                |name, of| matches!(tasks.named(name), Some((kind, _, stats)) if kind == of && polls(stats) > 0);
            is_polled("clock", "task") && is_polled("nap", "blocking") && is_polled("server", "task")
        });
        drop(client);
        wait_until(&server.console, |tasks| {
            // A task that has ended is shown for some time, and then left out.
            tasks.named(&name).is_none_or(|(.., stats)| stats.dropped_at.is_some()) && tasks.named("clock").is_some()
        });
    });
}

/// The screen of `tokio-console` has our tasks, and does not warn of them.
#[test]
fn console_shows_the_tasks() {
    if !CAN_RUN
        || !succeeds(Command::new("tmux").arg("-V"))
        || !succeeds(Command::new("tokio-console").arg("--version"))
    {
        return eprintln!(
            "skipped: there is no tmux, no tokio-console (cargo install tokio-console), or the cfg is missing"
        );
    }
    within(|| {
        let server = Server::start();
        let client = server.client(5);
        let name = client.local_addr().expect("an address").to_string();
        let screen = Screen::start(&format!("tokio-console http://{}", server.console));
        let shows = |text: &str, words: &[&str]| words.iter().all(|word| text.contains(word));
        let mut text = String::new();
        while !shows(&text, &["clock", "server", "nap", &name, "src/bin/console.rs"]) {
            thread::sleep(Duration::from_millis(50));
            text = screen.text();
        }
        assert!(!text.contains("lost"), "tokio-console warns of lost wakers:\n{text}");
        println!("{text}");
    });
}

/// A terminal in which a command runs. A drop ends it.
struct Screen(String);

impl Screen {
    fn start(command: &str) -> Self {
        let screen = Self(format!("kittiwake-{}", std::process::id()));
        let new = ["-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "50", command];
        assert!(succeeds(screen.tmux().args(new)), "tmux does not start");
        screen
    }

    /// The command with a server of this test's own.
    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.0]).env("LC_ALL", "C.UTF-8").env("TERM", "xterm-256color");
        command
    }

    fn text(&self) -> String {
        let output = self.tmux().args(["capture-pane", "-p"]).output().expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        succeeds(self.tmux().arg("kill-server"));
    }
}
