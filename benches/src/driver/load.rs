//! The load: one thread, a loop by hand on epoll, closed: each connection asks again when it has its answer.
//!
//! A slow server is asked less often, so latencies here are those of a server as busy as it can be with so
//! many clients, not those at a given rate.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use kittiwake_benches::program::spin;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use slab::Slab;

/// A server that answers nothing for so long is taken for stuck.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// What is sent in one piece on a stream.
pub(crate) const BLOCK: usize = 65536;

/// Latencies are kept up to this many nanoseconds.
const MAX_LATENCY: u64 = 60_000_000_000;

/// How long a slice lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// No request is begun after this time.
    For(Duration),
    /// This many requests.
    Requests(u64),
}

/// What came of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
}

/// A load on one server. Between slices all is quiet.
pub(crate) trait Load {
    fn slice(&mut self, until: Until, latency: &mut Histogram<u64>) -> Result<Slice>;
}

/// A histogram for latencies in nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY, 3).expect("the bounds are in order")
}

/// When to begin no more requests.
struct Quota {
    start: Instant,
    until: Until,
    begun: u64,
}

impl Quota {
    fn new(until: Until) -> Self {
        Self { start: Instant::now(), until, begun: 0 }
    }

    /// Whether one more request may begin at `now`.
    fn take(&mut self, now: Instant) -> bool {
        let more = match self.until {
            Until::For(duration) => now.duration_since(self.start) < duration,
            Until::Requests(requests) => self.begun < requests,
        };
        self.begun += u64::from(more);
        more
    }

    fn end(&self) -> Slice {
        Slice { requests: self.begun, elapsed: self.start.elapsed() }
    }
}

/// Connections that each send a message and wait for it to come back.
pub(crate) struct PingPong {
    epoll: OwnedFd,
    events: Vec<Event>,
    connections: Vec<Connection>,
    message: Vec<u8>,
    buffer: Vec<u8>,
    /// The client's pause between an answer and its next request.
    think: Duration,
}

struct Connection {
    stream: TcpStream,
    /// Bytes of the message that are not sent, and bytes of the answer that are not here.
    unsent: usize,
    missing: usize,
    begun: Instant,
}

impl PingPong {
    pub(crate) fn open(address: SocketAddr, connections: usize, bytes: usize, think: Duration) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut all = Vec::with_capacity(connections);
        for key in 0..connections {
            let stream = connect(address).with_context(|| format!("connection {key} of {connections}"))?;
            let interest = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&epoll, &stream, EventData::new_u64(key as u64), interest)?;
            all.push(Connection { stream, unsent: 0, missing: 0, begun: Instant::now() });
        }
        // The server accepts them all and waits for their first request, as in a server's life.
        thread::sleep(Duration::from_millis(20));
        let (message, buffer) = (vec![b'x'; bytes], vec![0; bytes]);
        Ok(Self { epoll, events: Vec::with_capacity(1024), connections: all, message, buffer, think })
    }
}

impl Load for PingPong {
    fn slice(&mut self, until: Until, latency: &mut Histogram<u64>) -> Result<Slice> {
        let mut quota = Quota::new(until);
        let mut in_flight = 0;
        for connection in &mut self.connections {
            let now = Instant::now();
            if quota.take(now) {
                connection.begin(now, &self.message)?;
                in_flight += 1;
            }
        }
        while in_flight > 0 {
            wait(&self.epoll, &mut self.events)?;
            for event in self.events.drain(..) {
                let connection = &mut self.connections[event.data.u64() as usize];
                if !connection.go_on(&self.message, &mut self.buffer)? {
                    continue;
                }
                let mut now = Instant::now();
                latency.saturating_record(now.duration_since(connection.begun).as_nanos() as u64);
                if !self.think.is_zero() {
                    think(self.think);
                    now = Instant::now();
                }
                if quota.take(now) {
                    connection.begin(now, &self.message)?;
                } else {
                    in_flight -= 1;
                }
            }
        }
        Ok(quota.end())
    }
}

impl Connection {
    fn begin(&mut self, now: Instant, message: &[u8]) -> Result<()> {
        self.begun = now;
        self.unsent = message.len();
        self.missing = message.len();
        self.send(message)
    }

    /// Sends and receives what it can. Returns whether the answer has just become complete.
    fn go_on(&mut self, message: &[u8], buffer: &mut [u8]) -> Result<bool> {
        if self.missing == 0 {
            return Ok(false);
        }
        self.send(message)?;
        while self.missing > 0 {
            match self.stream.read(&mut buffer[..self.missing]) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(read) => self.missing -= read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("reading the answer"),
            }
        }
        Ok(true)
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        while self.unsent > 0 {
            match self.stream.write(&message[message.len() - self.unsent..]) {
                Ok(sent) => self.unsent -= sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("sending a request"),
            }
        }
        Ok(())
    }
}

/// Connections that live for one ping-pong.
pub(crate) struct Churn {
    address: SocketAddr,
    in_flight: usize,
    epoll: OwnedFd,
    events: Vec<Event>,
    connections: Slab<(TcpStream, Instant)>,
}

impl Churn {
    const MESSAGE: [u8; 64] = [b'x'; 64];

    pub(crate) fn new(address: SocketAddr, in_flight: usize) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { address, in_flight, epoll, events: Vec::with_capacity(64), connections: Slab::new() })
    }

    fn begin(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut stream = connect(self.address)?;
        stream.write_all(&Self::MESSAGE).context("sending the request")?;
        let entry = self.connections.vacant_entry();
        epoll::add(&self.epoll, &stream, EventData::new_u64(entry.key() as u64), EventFlags::IN)?;
        entry.insert((stream, begun));
        Ok(())
    }

    fn end(&mut self, key: usize, latency: &mut Histogram<u64>) -> Result<()> {
        let (mut stream, begun) = self.connections.remove(key);
        let mut answer = [0; Self::MESSAGE.len()];
        // Sent in one piece, it comes in one piece.
        stream.read_exact(&mut answer).context("reading the answer")?;
        latency.saturating_record(begun.elapsed().as_nanos() as u64);
        Ok(())
    }
}

impl Load for Churn {
    fn slice(&mut self, until: Until, latency: &mut Histogram<u64>) -> Result<Slice> {
        let mut quota = Quota::new(until);
        let mut events = std::mem::take(&mut self.events);
        loop {
            while self.connections.len() < self.in_flight && quota.take(Instant::now()) {
                self.begin()?;
            }
            if self.connections.is_empty() {
                self.events = events;
                return Ok(quota.end());
            }
            wait(&self.epoll, &mut events)?;
            for event in events.drain(..) {
                self.end(event.data.u64() as usize, latency)?;
            }
        }
    }
}

/// One connection for each slice, on which the client sends without end.
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
    /// Records no latencies: nothing is answered but the end.
    fn slice(&mut self, until: Until, _latency: &mut Histogram<u64>) -> Result<Slice> {
        let mut quota = Quota::new(until);
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

/// Connects, and waits a little where the ports have run out: those of closed connections come back after a second.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("connecting to {address}; if the ports ran out, net.ipv4.tcp_tw_reuse = 2 is the kernel's default")
                });
            }
        }
    }
}

fn wait(epoll: &OwnedFd, events: &mut Vec<Event>) -> Result<()> {
    match epoll::wait(epoll, spare_capacity(events), Some(&PATIENCE)) {
        Ok(0) => bail!("the server has answered nothing for {} s", PATIENCE.tv_sec),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("waiting for answers"),
    }
}

/// Lets time pass. Sleeping is too coarse for microseconds, and spinning for milliseconds would keep the core awake.
fn think(pause: Duration) {
    const COARSE: Duration = Duration::from_millis(1);
    let start = Instant::now();
    if pause >= COARSE {
        thread::sleep(pause - COARSE / 2);
    }
    spin(pause.saturating_sub(start.elapsed()));
}
