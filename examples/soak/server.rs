//! The servers. Each has a runtime and a thread of its own, and ends in one of several ways.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;

use kittiwake::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use kittiwake::net::{ServeStats, ShutdownSignal, TcpListener, TcpSocket, TcpStream, serve};
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::time::{Duration, Instant};

use crate::verdict::fail;
use crate::wire::{Direction, Hello, Pattern, Random, Reading, Request};

/// The size of a handler's buffer.
const BUFFER: usize = 8 << 10;

/// No runtime takes so long to end.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// The clients' view of a server.
pub(crate) struct Server {
    pub(crate) number: usize,
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) stats: ServeStats,
    ending: AtomicBool,
}

impl Server {
    /// Whether the server ends. Its clients may then be cut off at any byte.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

/// How a server ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// The handlers end after the request that they are at, or when the time is over.
    Graceful,
    /// The future of `block_on` ends, and with it the server. The handlers are dropped with the runtime.
    BlockOnReturns,
    /// The runtime is dropped while the server is a task in it.
    Drop,
    ShutdownTimeout,
    ShutdownBackground,
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
    end: ShutdownSignal,
    ending: Ending,
    thread: thread::JoinHandle<()>,
}

impl Running {
    /// Starts server `number`, with as many workers, or on one thread if that is `None`. It listens on an address of
    /// its own.
    pub(crate) fn start(number: usize, workers: Option<usize>, random: &mut Random) -> io::Result<Self> {
        let runtime = match workers {
            None => Builder::new_current_thread(),
            Some(count) => Builder::new_multi_thread().worker_threads(count).thread_name(format!("server {number}")),
        };
        let (runtime, listener) = (runtime.build()?, listen(number)?);
        let (address, handle) = (listener.local_addr()?, runtime.handle().clone());
        let ending = match random.range(0, 5) {
            0 => Ending::Graceful,
            1 => Ending::BlockOnReturns,
            2 => Ending::Drop,
            3 => Ending::ShutdownTimeout,
            _ => Ending::ShutdownBackground,
        };
        let end = ShutdownSignal::new();
        // Only a graceful end asks the handlers.
        let drain = if let Ending::Graceful = ending { end.clone() } else { ShutdownSignal::new() };
        let handler_drain = drain.clone();
        let serving = serve(listener, move |stream, _| answer_client(stream, handler_drain.clone()));
        let serving = serving.nodelay(true).with_shutdown(&drain).drain_timeout(Duration::from_millis(300));
        let stats = serving.stats();
        let serving = async move {
            if let Err(error) = serving.await {
                fail(&format!("server {number}: {error}"));
            }
        };
        let until = end.clone();
        let thread = thread::Builder::new().name(format!("server {number}"));
        let thread = thread.spawn(move || run(runtime, serving, ending, until))?;
        let server = Server { number, address, handle, stats, ending: AtomicBool::new(false) };
        Ok(Self { server: Arc::new(server), end, ending, thread })
    }

    /// Ends the server, with the connections that it has.
    pub(crate) fn end(self) {
        // A client that is cut off must find this set.
        self.server.ending.store(true, Ordering::SeqCst);
        self.end.trigger();
        let begun = Instant::now();
        while !self.thread.is_finished() {
            if begun.elapsed() > ENDS_WITHIN {
                let (server, ending) = (&self.server, self.ending);
                fail(&format!(
                    "{ending:?}: the runtime of server {} still runs:\n{}",
                    server.number,
                    server.handle.tasks()
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Linux has all addresses of 127.0.0.0/8, and other systems only 127.0.0.1.
fn listen(number: usize) -> io::Result<TcpListener> {
    let last = if cfg!(target_os = "linux") { 10 + number as u8 } else { 1 };
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    socket.listen(4096)
}

/// The thread of a server.
fn run(runtime: Runtime, serving: impl Future<Output = ()> + Send + 'static, ending: Ending, mut end: ShutdownSignal) {
    match ending {
        Ending::Graceful => runtime.block_on(serving),
        Ending::BlockOnReturns => {
            let _ = runtime.block_on(end.run_until_triggered(serving));
        }
        Ending::Drop | Ending::ShutdownTimeout | Ending::ShutdownBackground => {
            drop(runtime.handle().spawn(serving));
            runtime.block_on(end.triggered());
        }
    }
    match ending {
        Ending::ShutdownTimeout => {
            if let Err(left) = runtime.shutdown_timeout(ENDS_WITHIN) {
                fail(&format!("a runtime has not ended in {ENDS_WITHIN:?}: {left}"));
            }
        }
        Ending::ShutdownBackground => runtime.shutdown_background(),
        Ending::Graceful | Ending::BlockOnReturns | Ending::Drop => drop(runtime),
    }
}

/// The handler. Its errors fail nothing here: the client sees the end of the connection, and knows whether it was due.
async fn answer_client(mut stream: TcpStream, drain: ShutdownSignal) -> io::Result<()> {
    // Little fits into the kernel, so that clients that do not read stop the server.
    stream.set_send_buffer_size(64 << 10)?;
    let mut hello = [0; Hello::LENGTH];
    stream.read_exact(&mut hello).await?;
    let Hello { key, reading, read_timeout, write_timeout } = Hello::decode(&hello);
    let timeout = |milliseconds: u16| (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()));
    stream.set_read_timeout(timeout(read_timeout))?;
    stream.set_write_timeout(timeout(write_timeout))?;
    match reading {
        Reading::Borrowed => {
            let (reader, writer) = stream.split();
            answer(reader, writer, key, drain).await
        }
        Reading::Buffered => {
            let (reader, writer) = stream.into_split();
            answer(BufReader::new(reader), writer, key, drain).await
        }
        Reading::Readiness => answer(ByReadiness(&stream), &stream, key, drain).await,
    }
}

async fn answer(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    key: u64,
    mut drain: ShutdownSignal,
) -> io::Result<()> {
    let (mut bodies, mut answers) = (Pattern::new(key, Direction::ToServer), Pattern::new(key, Direction::ToClient));
    let mut buf = vec![0; BUFFER];
    for sequence in 0.. {
        let request = drain.run_until_triggered(Request::read(&mut reader, key, sequence)).await;
        let Some(Request { body, answer, .. }) = request.transpose()?.flatten() else { break };
        let mut left = body as usize;
        while left > 0 {
            let size = left.min(buf.len());
            let read = reader.read(&mut buf[..size]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bodies.check(&buf[..read]);
            left -= read;
        }
        let mut left = answer as usize;
        while left > 0 {
            let size = left.min(buf.len());
            answers.fill(&mut buf[..size]);
            writer.write_all(&buf[..size]).await?;
            left -= size;
        }
    }
    Ok(())
}

/// Reads by waiting for readiness first.
struct ByReadiness<'a>(&'a TcpStream);

impl AsyncRead for ByReadiness<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_readable(cx))?;
            match self.0.try_read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}
