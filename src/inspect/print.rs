//! Printing the dump of a runtime to stderr, at a signal or after a panic.
//!
//! # At a signal
//! 1. The handler of the signal writes one byte to a pair of sockets, as for each listener (see [`signal`](crate::signal)).
//! 2. A thread of the program's own blocks in a read of the other end. So it needs no worker, and all may be stuck.
//! 3. It makes the dump and writes it in one call. Signals that arrive meanwhile cause one more dump.
//! 4. [`DumpOn::stop`] drops the handler's end. The read returns 0, and the thread ends.
//!
//! # After a panic
//! The hook runs on the thread that panics, which may be a worker. A thread of its own makes the dump, and the hook waits
//! for it for [`LIMIT`]. User code never panics while its thread holds a lock of the runtime. A defect of the runtime could
//! do so: then the dump waits for that lock, and the hook gives up instead of blocking the panic for ever.

use std::any::Any;
use std::fmt::{self, Write as _};
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use signal_hook::SigId;
use signal_hook::low_level::{signal_name, unregister};

use crate::dump::{Count, TaskDump, WorkerInfo, WorkerState};
use crate::runtime::Handle;
use crate::signal::unix::{SignalKind, register};

/// Prints the [`TaskDump`] of this runtime to stderr, at each signal of this kind from now on.
///
/// The print has at most [100 lines](#the-print), however many tasks there are. It also works when every worker is stuck,
/// because this call starts a thread of its own. The thread blocks until a signal arrives. It costs some kilobytes and two
/// descriptors, and no time.
///
/// The dump is printed for the rest of the program's life, or until [`DumpOn::stop`]. Dropping the result changes nothing.
/// Once the runtime has ended, the print says that its workers are stopped.
///
/// The signal loses its default action for the rest of the program's life: see [`signal`](crate::signal). A listener for
/// the same signal receives it too. Signals that arrive while a dump is printed cause one more dump.
///
/// # The print
/// It has, in this order, a head, the workers, the sites of the tasks as in the table of the dump, and single tasks: first
/// those that run, then those that have waited longest. Today these are at most 16 workers, 40 sites and 40 tasks. If there
/// are more, a line says how many.
///
/// # Errors
/// As for [`signal`](crate::signal::unix::signal). Also an error if this thread is not inside a runtime, or if the system
/// starts no thread.
///
/// # Examples
/// ```
/// use kittiwake::inspect;
/// use kittiwake::signal::unix::SignalKind;
///
/// kittiwake::block_on(async {
///     inspect::dump_on(SignalKind::user_defined1())?;
///     // From now on, `kill -USR1` prints the tasks.
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub fn dump_on(kind: SignalKind) -> io::Result<DumpOn> {
    let handle = Handle::try_current().map_err(io::Error::other)?;
    let (receiver, sender) = UnixStream::pair()?;
    let id = register(kind, sender)?;
    let name = signal_name(kind.as_raw_value()).unwrap_or("the signal");
    let head = format!("kittiwake: tasks at {name}, process {}", std::process::id());
    let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
        while has_arrived(&receiver) {
            // A name of a task is foreign code. The thread outlives its panic.
            let _: Result<(), Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(|| print(&handle.tasks(), &head)));
        }
    });
    match thread {
        Ok(thread) => Ok(DumpOn { kind, id, thread }),
        Err(error) => {
            unregister(id);
            Err(error)
        }
    }
}

/// Blocks until a signal has arrived. False once the handler's end is closed.
fn has_arrived(mut receiver: &UnixStream) -> bool {
    // Several signals in one read are one dump.
    let mut bytes = [0; 256];
    loop {
        match receiver.read(&mut bytes) {
            Ok(read) => return read > 0,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// The thread that prints the dump at each signal. [`dump_on`] starts it.
///
/// Dropping this value does not stop it.
pub struct DumpOn {
    kind: SignalKind,
    /// The handler's action, which owns the sending end of the pair.
    id: SigId,
    thread: thread::JoinHandle<()>,
}

impl DumpOn {
    /// Prints no dump from now on, and ends the thread.
    ///
    /// It waits for a dump that is being printed. The default action of the signal does not return.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::inspect;
    /// use kittiwake::signal::unix::SignalKind;
    ///
    /// # kittiwake::block_on(async {
    /// let dump_on = inspect::dump_on(SignalKind::user_defined2())?;
    /// dump_on.stop();
    /// # std::io::Result::Ok(())
    /// # })?;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn stop(self) {
        // This closes the sending end. The receiving end must be closed after it, by the thread: see `Signal`.
        unregister(self.id);
        // It catches the panics of the dump.
        let _ = self.thread.join();
    }
}

impl fmt::Debug for DumpOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DumpOn").field(&self.kind.as_raw_value()).finish()
    }
}

/// Prints the [`TaskDump`] of its runtime to stderr when a task panics.
///
/// It sets a panic hook, which first calls the hook that was set before. So the message of the panic comes first. The dump
/// is that of the runtime in which the thread is that panics. The task that panics is among those that run. A panic on a
/// thread that is in no runtime prints no dump. The print is that of [`dump_on`].
///
/// A dump of many tasks takes time. After one dump, the panics of the next ten seconds print none. If the dump is not made
/// within two seconds, the hook prints a line that says so. A second call of this function changes nothing.
///
/// Call it before `std::panic::set_hook` of your own, or after: the later hook must call the earlier one.
///
/// # Panics
/// If the calling thread is panicking, as `std::panic::set_hook` does.
///
/// # Examples
/// ```
/// kittiwake::inspect::dump_on_panic();
/// kittiwake::block_on(async {
///     let task = kittiwake::spawn(async { panic!("on purpose") });
///     // The message of the panic is on stderr, and then the dump.
///     assert!(task.await.is_err());
/// });
/// ```
pub fn dump_on_panic() {
    static IS_SET: Mutex<bool> = Mutex::new(false);
    let mut is_set = IS_SET.lock();
    if !*is_set {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            previous(info);
            print_after_panic();
        }));
        *is_set = true;
    }
}

/// How long the hook waits for the dump.
const LIMIT: Duration = Duration::from_secs(2);

/// How long after a dump the hook prints none.
const QUIET: Duration = Duration::from_secs(10);

const THREAD: &str = "kittiwake-dump";

fn print_after_panic() {
    /// When the last dump was printed.
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let Ok(handle) = Handle::try_current() else { return };
    // Not `lock`: a panic beside another one would wait for the dump of that.
    let Some(mut last) = LAST.try_lock() else { return };
    if last.is_some_and(|last| last.elapsed() < QUIET) {
        return;
    }
    let thread = thread::current();
    let thread = thread.name().unwrap_or("without a name").escape_debug();
    let head = format!("kittiwake: tasks after a panic on thread {thread}, process {}", std::process::id());
    let (sender, dump) = mpsc::channel();
    // A panic on that thread is in no runtime. So the hook does not call itself.
    let made = thread::Builder::new().name(THREAD.to_owned()).spawn(move || sender.send(handle.tasks()));
    match made.map(|_detached| dump.recv_timeout(LIMIT)) {
        Ok(Ok(dump)) => print(&dump, &head),
        Ok(Err(mpsc::RecvTimeoutError::Timeout)) => {
            write(&format!("{head}: not listed, because that did not end within {LIMIT:?}\n"));
        }
        Ok(Err(mpsc::RecvTimeoutError::Disconnected)) => {
            write(&format!("{head}: not listed, because that panicked\n"));
        }
        Err(error) => write(&format!("{head}: not listed, because the system starts no thread: {error}\n")),
    }
    *last = Some(Instant::now());
}

fn print(dump: &TaskDump, head: &str) {
    write(&text(dump, head));
}

/// Writes all text in one call, so that the lines of other threads do not come between.
fn write(text: &str) {
    // A program whose stderr is closed has no reader to whom the error could be said.
    let _ = io::stderr().write_all(text.as_bytes());
}

const WORKERS: usize = 16;
const SITES: usize = 40;
const TASKS: usize = 40;

/// The dump in at most 100 lines.
fn text(dump: &TaskDump, head: &str) -> String {
    let mut text = String::new();
    let _ = list(&mut text, dump, head);
    text
}

fn list(text: &mut String, dump: &TaskDump, head: &str) -> fmt::Result {
    let (tasks, workers) = (Count(dump.tasks().len(), "task"), Count(dump.workers().len(), "worker"));
    writeln!(text, "{head}: {tasks}, {workers}")?;
    let mut workers: Vec<&WorkerInfo> = dump.workers().iter().collect();
    // Those that have run their task for longest come first: these may be stuck.
    workers.sort_by_key(|worker| std::cmp::Reverse(running_since(worker)));
    for worker in workers.iter().take(WORKERS) {
        writeln!(text, "  worker {} {}", worker.index, worker.state)?;
    }
    more(text, workers.len(), WORKERS, "more worker")?;
    let sites = dump.groups();
    for site in sites.iter().take(SITES) {
        writeln!(text, "  {site}")?;
    }
    more(text, sites.len(), SITES, "more line")?;
    let longest = dump.longest(TASKS);
    for task in &longest {
        writeln!(text, "{task}")?;
    }
    more(text, dump.tasks().len(), TASKS, "more task")
}

fn running_since(worker: &WorkerInfo) -> Option<Duration> {
    match worker.state {
        WorkerState::Running { since, .. } => Some(since),
        _ => None,
    }
}

fn more(text: &mut String, all: usize, listed: usize, thing: &'static str) -> fmt::Result {
    match all.checked_sub(listed) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(text, "  and {}", Count(more, thing)),
    }
}
