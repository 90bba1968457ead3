//! The load generator: a hand-written loop on epoll, in one thread.
//!
//! The loop is closed: each connection sends its next request when it has its answer. A slow server therefore gets fewer
//! requests. The latencies are those of a server that is as busy as its clients can make it, not those at a given rate.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use kittiwake_benches::by_hand::ready;
use kittiwake_benches::program::spin;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;

/// The load gives up on a server that answers nothing for this long.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The bytes that the load writes at once on a stream.
pub(crate) const BLOCK: usize = 65536;

/// The longest latency that a histogram records, in nanoseconds.
const MAX_LATENCY: u64 = 60_000_000_000;

/// A load on one server. It is idle between slices.
pub(crate) trait Load {
    /// Begins requests for at most this time and of at most this number, and waits for their answers. Returns the number
    /// of requests and the time that they took.
    fn slice(&mut self, time: Duration, requests: u64, latency: &mut Histogram<u64>) -> Result<(u64, Duration)>;
}

/// A histogram for latencies in nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY, 3).expect("the bounds are in order")
}

/// The limit of requests of a slice.
struct Quota {
    start: Instant,
    time: Duration,
    requests: u64,
    begun: u64,
}

impl Quota {
    fn new(time: Duration, requests: u64) -> Self {
        Self { start: Instant::now(), time, requests, begun: 0 }
    }

    /// Returns true if one more request may begin at `now`.
    fn take(&mut self, now: Instant) -> bool {
        let more = now.duration_since(self.start) < self.time && self.begun < self.requests;
        self.begun += u64::from(more);
        more
    }

    fn end(&self) -> (u64, Duration) {
        (self.begun, self.start.elapsed())
    }
}

/// Connections that each send a message and wait until it comes back.
pub(crate) struct PingPong {
    address: SocketAddr,
    epoll: OwnedFd,
    events: Vec<Event>,
    connections: Vec<Connection>,
    message: Vec<u8>,
    buffer: Vec<u8>,
    /// The client's pause between an answer and its next request.
    think: Duration,
    /// True if each connection lives for one ping-pong.
    churn: bool,
}

struct Connection {
    /// None only between the ping-pongs of a churn.
    stream: Option<TcpStream>,
    /// Bytes of the message that are not sent yet.
    unsent: usize,
    /// Bytes of the answer that have not come yet.
    missing: usize,
    begun: Instant,
}

impl PingPong {
    /// Opens the connections, or none yet for a churn.
    pub(crate) fn open(address: SocketAddr, connections: usize, bytes: usize, churn: bool) -> Result<Self> {
        let unconnected = || Connection { stream: None, unsent: 0, missing: 0, begun: Instant::now() };
        let mut load = Self {
            address,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(1024),
            connections: std::iter::repeat_with(unconnected).take(connections).collect(),
            message: vec![b'x'; bytes],
            buffer: vec![0; bytes],
            think: Duration::ZERO,
            churn,
        };
        for key in 0..if churn { 0 } else { connections } {
            let interest = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            load.connect(key, interest).with_context(|| format!("connection {key} of {connections}"))?;
        }
        // As in a real server's life, the server accepts all connections and then waits for their first requests.
        thread::sleep(Duration::from_millis(20));
        Ok(load)
    }

    pub(crate) fn with_pause(self, think: Duration) -> Self {
        Self { think, ..self }
    }

    fn connect(&mut self, key: usize, interest: EventFlags) -> Result<()> {
        let stream = connect(self.address)?;
        epoll::add(&self.epoll, &stream, EventData::new_u64(key as u64), interest)?;
        self.connections[key].stream = Some(stream);
        Ok(())
    }

    fn begin(&mut self, key: usize, now: Instant) -> Result<()> {
        if self.churn {
            self.connect(key, EventFlags::IN)?;
        }
        let bytes = self.message.len();
        let connection = &mut self.connections[key];
        (connection.begun, connection.unsent, connection.missing) = (now, bytes, bytes);
        connection.send(&self.message)
    }
}

impl Load for PingPong {
    fn slice(&mut self, time: Duration, requests: u64, latency: &mut Histogram<u64>) -> Result<(u64, Duration)> {
        let mut quota = Quota::new(time, requests);
        let mut events = std::mem::take(&mut self.events);
        let mut in_flight = 0;
        for key in 0..self.connections.len() {
            let now = Instant::now();
            if quota.take(now) {
                self.begin(key, now)?;
                in_flight += 1;
            }
        }
        while in_flight > 0 {
            wait(&self.epoll, &mut events)?;
            for event in events.drain(..) {
                let key = event.data.u64() as usize;
                let connection = &mut self.connections[key];
                if !connection.go_on(&self.message, &mut self.buffer)? {
                    continue;
                }
                let now = Instant::now();
                latency.saturating_record(now.duration_since(connection.begun).as_nanos() as u64);
                if self.churn {
                    connection.stream = None;
                }
                let now = think(self.think, now);
                if quota.take(now) {
                    self.begin(key, now)?;
                } else {
                    in_flight -= 1;
                }
            }
        }
        self.events = events;
        Ok(quota.end())
    }
}

impl Connection {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let stream = self.stream.as_mut().context("an open connection")?;
        while self.unsent > 0 {
            let sent = ready(stream.write(&message[message.len() - self.unsent..])).context("sending a request")?;
            let Some(sent) = sent else { return Ok(()) };
            self.unsent -= sent;
        }
        Ok(())
    }

    /// Sends and receives as much as the kernel lets it. Returns true if the answer has just become complete.
    fn go_on(&mut self, message: &[u8], buffer: &mut [u8]) -> Result<bool> {
        if self.missing == 0 {
            return Ok(false);
        }
        self.send(message)?;
        let stream = self.stream.as_mut().context("an open connection")?;
        while self.missing > 0 {
            let read = ready(stream.read(&mut buffer[..self.missing])).context("reading the answer")?;
            let Some(read) = read else { return Ok(false) };
            ensure!(read > 0, "the server closed a connection");
            self.missing -= read;
        }
        Ok(true)
    }
}

/// One connection for each slice, on which the client sends all the time.
pub(crate) struct Stream {
    address: SocketAddr,
    block: Vec<u8>,
}

impl Stream {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, block: vec![b'x'; BLOCK] }
    }
}

impl Load for Stream {
    /// Records no latencies, because the server answers only once, at the end.
    fn slice(&mut self, time: Duration, requests: u64, _latency: &mut Histogram<u64>) -> Result<(u64, Duration)> {
        let mut quota = Quota::new(time, requests);
        let mut stream = connect(self.address)?;
        stream.set_nonblocking(false)?;
        let patience = Duration::from_secs(PATIENCE.tv_sec as u64);
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        while quota.take(Instant::now()) {
            stream.write_all(&self.block).context("sending")?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut total = [0; 8];
        stream.read_exact(&mut total).context("waiting for the server's total")?;
        let (total, sent) = (u64::from_le_bytes(total), quota.begun * BLOCK as u64);
        ensure!(total == sent, "the server got {total} bytes of {sent}");
        Ok(quota.end())
    }
}

/// Connects, and waits a little if the ports have run out. The ports of closed connections come back after a second.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let stream = loop {
        match TcpStream::connect(address) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            connected => break connected,
        }
    };
    // The kernel's default lets the ports of closed connections come back.
    let stream = stream.context("connecting; if the ports ran out, set net.ipv4.tcp_tw_reuse to 2")?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn wait(epoll: &OwnedFd, events: &mut Vec<Event>) -> Result<()> {
    match epoll::wait(epoll, spare_capacity(events), Some(&PATIENCE)) {
        Ok(0) => bail!("the server has answered nothing for {} s", PATIENCE.tv_sec),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("waiting for answers"),
    }
}

/// Waits, and returns the time after the pause, which begins at `now`. A sleep is too coarse for microseconds, and a spin
/// for milliseconds would keep the core awake.
fn think(pause: Duration, now: Instant) -> Instant {
    const COARSE: Duration = Duration::from_millis(1);
    if pause.is_zero() {
        return now;
    }
    if pause >= COARSE {
        thread::sleep(pause - COARSE / 2);
    }
    spin(pause.saturating_sub(now.elapsed()));
    Instant::now()
}
