//! The latency jobs: how late timers and answers are beside tasks that take much of their workers' time.
//!
//! A job is a list of cases. A case has a runtime of its own and lasts a fixed time. Its clients are threads with blocking
//! sockets in the same process. The bodies are generic over [`Runtime`], so they are the same code in all programs.
//!
//! A program prints one line per case: its name, a note, and the samples in nanoseconds, separated by tabs.

mod ready_loop;
mod stuck;
mod yield_pieces;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::exit;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::jobs::LatencyJob;
use crate::program::{Program, Task, or_fail};

/// The functions of a runtime that the jobs need.
pub trait Runtime: 'static {
    type Listener: Send + Sync + 'static;
    type Stream: Send + 'static;
    type Interval: Send + 'static;

    /// Runs `future` to its end. With one worker the caller's thread runs it, with several a worker does.
    fn run(workers: usize, future: impl Future<Output = ()> + Send + 'static);
    fn spawn(future: impl Future<Output = ()> + Send + 'static);
    fn yield_now() -> impl Future<Output = ()> + Send;
    fn sleep(duration: Duration) -> impl Future<Output = ()> + Send;
    fn timeout(duration: Duration, future: impl Future<Output = ()> + Send) -> impl Future<Output = ()> + Send;
    fn interval(period: Duration) -> Self::Interval;
    fn tick(interval: &mut Self::Interval) -> impl Future<Output = ()> + Send;
    fn listener(listener: TcpListener) -> io::Result<Self::Listener>;
    fn accept(listener: &Self::Listener) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    fn read(stream: &mut Self::Stream, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
    fn write_all(stream: &mut Self::Stream, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// Does the job of the command line, and exits.
pub fn run<R: Runtime>(program: &Program) -> ! {
    let Task::Latency { job, millis } = program.task else { program.refuse() };
    let cases = Cases { workers: program.workers, time: Duration::from_millis(millis) };
    match job {
        LatencyJob::YieldPieces => yield_pieces::run::<R>(&cases),
        LatencyJob::ReadyLoop => ready_loop::run::<R>(&cases),
        LatencyJob::Stuck => stuck::run::<R>(&cases),
    }
    exit(0)
}

/// The settings of all cases of a run.
struct Cases {
    workers: usize,
    /// How long a case lasts.
    time: Duration,
}

impl Cases {
    /// Runs a case of the usual length.
    fn run<R: Runtime, F>(&self, name: &str, body: impl FnOnce(Arc<Case>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.run_for::<R, F>(name, self.time, body);
    }

    /// Runs a case, and prints its results.
    fn run_for<R: Runtime, F>(&self, name: &str, time: Duration, body: impl FnOnce(Arc<Case>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        /// A runtime that has not ended then has a task that never returns.
        const PATIENCE: Duration = Duration::from_secs(5);
        let case = Arc::new(Case::new(time));
        let (workers, future) = (self.workers, body(case.clone()));
        let (ended, end) = channel();
        thread::spawn(move || {
            R::run(workers, future);
            let _ = ended.send(());
        });
        if end.recv_timeout(time + PATIENCE).is_err() {
            case.note("does not end".to_owned());
        }
        case.print(name);
    }
}

/// A case that is running.
struct Case {
    end: Instant,
    results: Mutex<Results>,
    clients: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Results {
    /// The first series has the case's name. Each other one has a name of its own.
    samples: Vec<(&'static str, Duration)>,
    note: String,
}

/// The series of a case that has only one.
const ONLY: &str = "";

impl Case {
    fn new(time: Duration) -> Self {
        Self { end: Instant::now() + time, results: Mutex::default(), clients: Mutex::default() }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    fn add(&self, series: &'static str, sample: Duration) {
        self.results.lock().expect("no panic under this lock").samples.push((series, sample));
    }

    fn note(&self, note: String) {
        self.results.lock().expect("no panic under this lock").note = note;
    }

    /// Sleeps again and again until the case is over, and samples how late each sleep ends.
    async fn sleep_often<R: Runtime>(&self, series: &'static str, duration: Duration) {
        while self.goes_on() {
            let start = Instant::now();
            R::sleep(duration).await;
            self.add(series, start.elapsed().saturating_sub(duration));
        }
    }

    /// Connects a client that runs in a thread of its own, and returns the server's end of the connection.
    async fn connect<R: Runtime>(
        self: &Arc<Self>,
        server: &Server<R>,
        client: impl FnOnce(&Self, TcpStream) + Send + 'static,
    ) -> R::Stream {
        let stream = or_fail("connecting", TcpStream::connect(server.address));
        or_fail("setting TCP_NODELAY", stream.set_nodelay(true));
        let case = self.clone();
        let thread = thread::spawn(move || client(&case, stream));
        self.clients.lock().expect("no panic under this lock").push(thread);
        or_fail("accepting", R::accept(&server.listener).await)
    }

    /// Connects a client that sends as fast as it can while the case lasts.
    async fn connect_flood<R: Runtime>(self: &Arc<Self>, server: &Server<R>) -> R::Stream {
        let flood =
            |case: &Self, mut stream: TcpStream| while case.goes_on() && stream.write_all(&[0; 65536]).is_ok() {};
        self.connect(server, flood).await
    }

    /// Waits until the case is over and its clients have ended.
    async fn finish<R: Runtime>(&self) {
        R::sleep(self.end.saturating_duration_since(Instant::now())).await;
        while !self.clients.lock().expect("no panic under this lock").iter().all(JoinHandle::is_finished) {
            R::sleep(Duration::from_millis(5)).await;
        }
    }

    fn print(&self, name: &str) {
        let results = std::mem::take(&mut *self.results.lock().expect("no panic under this lock"));
        let mut series: Vec<&str> = results.samples.iter().map(|(series, _)| *series).collect();
        series.sort_unstable();
        series.dedup();
        if series.is_empty() {
            println!("{name}\t{}\t", results.note);
        }
        for series in series {
            let own = results.samples.iter().filter(|(name, _)| *name == series);
            let samples: Vec<String> = own.map(|(_, sample)| sample.as_nanos().to_string()).collect();
            println!("{name}{series}\t{}\t{}", results.note, samples.join(" "));
        }
    }
}

/// A listener on a port that the system picks.
struct Server<R: Runtime> {
    listener: R::Listener,
    address: std::net::SocketAddr,
}

impl<R: Runtime> Server<R> {
    /// Call it inside the runtime.
    fn new() -> Self {
        let listener = or_fail("listening", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        or_fail("O_NONBLOCK", listener.set_nonblocking(true));
        let address = or_fail("the listener's address", listener.local_addr());
        Self { listener: or_fail("the runtime's listener", R::listener(listener)), address }
    }
}

/// Sends back every byte.
async fn echo<R: Runtime>(mut stream: R::Stream) {
    let mut buffer = [0; 64];
    while let Ok(read @ 1..) = R::read(&mut stream, &mut buffer).await {
        if R::write_all(&mut stream, &buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// A client's byte to the server and back. `None` if the server has closed the connection.
fn ping(stream: &mut TcpStream) -> Option<Duration> {
    let start = Instant::now();
    stream.write_all(b"p").ok()?;
    stream.read_exact(&mut [0]).ok()?;
    Some(start.elapsed())
}

/// Pings every three milliseconds while the case lasts.
fn ping_often(case: &Case, mut stream: TcpStream, series: &'static str) {
    while case.goes_on() {
        thread::sleep(Duration::from_millis(3));
        let Some(time) = ping(&mut stream) else { return };
        case.add(series, time);
    }
}
