//! The clients. Each makes one connection after the other, and behaves on each in a way that the seed chooses.
//!
//! A connection fails the run if it ends in a way that the client has not chosen, unless its server ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use kittiwake::future::try_zip;
use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{OwnedReadHalf, OwnedWriteHalf, TcpSocket, TcpStream};
use kittiwake::time::{Duration, Instant, sleep, timeout};

use crate::server::Server;
use crate::traffic::{Counts, Progress, Traffic};
use crate::verdict::fail;
use crate::wire::{Direction, Hello, Pattern, Random, Reading, Request};

/// The size of a client's buffer.
const BUFFER: usize = 4 << 10;

/// The behaviours of a client on a connection.
#[derive(Clone, Copy, Debug)]
enum Conduct {
    /// One small request, and the end.
    Churn,
    /// Requests of many sizes, with pauses.
    Converse,
    /// Many requests at once. Then the client shuts its direction down, and reads up to the end.
    HalfClose,
    /// The client writes and reads large pieces at the same time.
    Flood,
    /// The client pauses in the middle of a large answer.
    StallReading,
    /// The client pauses in the middle of a request.
    StallWriting,
    /// The client resets the connection in the middle of a request or of an answer.
    Reset,
    /// The client falls silent. The server's read timeout has to end the connection.
    Silent,
    /// The client does not read. The server's write timeout has to end the connection.
    Deaf,
}

impl Conduct {
    fn choose(random: &mut Random) -> Self {
        match random.range(0, 32) {
            0..=13 => Self::Churn,
            14..=18 => Self::Converse,
            19..=22 => Self::HalfClose,
            23 => Self::Flood,
            24 => Self::StallReading,
            25 => Self::StallWriting,
            26..=28 => Self::Reset,
            29..=30 => Self::Silent,
            _ => Self::Deaf,
        }
    }

    /// Whether the server may end the connection before the client does.
    fn may_be_cut(self) -> bool {
        matches!(self, Self::Silent | Self::Deaf)
    }
}

/// Client `number`: makes connections until the traffic has to pause.
pub(crate) async fn run(traffic: Arc<Traffic>, number: usize, mut random: Random) {
    let _running = traffic.client_runs();
    let progress = traffic.progress(number);
    while !traffic.must_pause() {
        let (server, conduct) = (traffic.choose_server(&mut random), Conduct::choose(&mut random));
        let result = converse(&traffic.counts, progress, number, &server, conduct, &mut random).await;
        match result {
            Ok(()) => {}
            // The flag is older than the end of the connection.
            Err(_) if server.is_ending() => Counts::add(&traffic.counts.cut_off, 1),
            Err(error) => fail(&format!("{}: {error}", progress.what())),
        }
    }
}

async fn converse(
    counts: &Counts,
    progress: &Progress,
    number: usize,
    server: &Arc<Server>,
    conduct: Conduct,
    random: &mut Random,
) -> io::Result<()> {
    progress.begin(|| format!("client {number}, {conduct:?}: connects to server {}", server.number), None);
    let stream = connect(number, server.address, conduct, random).await?;
    let local = stream.local_addr()?;
    let what = || format!("client {number}, {conduct:?}: {local}, connected to server {}", server.number);
    progress.begin(what, Some((local, server.clone())));
    Counts::add(&counts.connections, 1);
    let mut connection = Connection::begin(counts, progress, stream, conduct, random).await?;
    let ended = connection.conduct(conduct).await;
    if conduct.may_be_cut() { ended.or_else(|error| expect_cut(&error)) } else { ended }
}

/// A server that closes a connection with bytes in it resets the connection.
fn expect_cut(error: &io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => Ok(()),
        kind => Err(kind.into()),
    }
}

/// On Linux each client has an address of its own, so that closed connections do not use up the ports.
async fn connect(number: usize, server: SocketAddr, conduct: Conduct, random: &mut Random) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if cfg!(target_os = "linux") {
        let [.., high, low] = (number as u32).to_be_bytes();
        socket.bind((Ipv4Addr::new(127, 1 + (number >> 16) as u8, high, low), 0).into())?;
    }
    if let Conduct::StallReading | Conduct::Deaf = conduct {
        socket.set_recv_buffer_size(16 << 10)?;
    }
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    // Most connections end with a reset, because the kernel remembers the others for a minute.
    if matches!(conduct, Conduct::Reset) || !random.one_in(8) {
        stream.set_zero_linger()?;
    }
    Ok(stream)
}

/// The client's end of a connection.
struct Connection<'a> {
    asks: Asks<'a>,
    answers: Answers<'a>,
    random: &'a mut Random,
}

/// The direction to the server.
struct Asks<'a> {
    counts: &'a Counts,
    progress: &'a Progress,
    writer: Option<OwnedWriteHalf<TcpStream>>,
    key: u64,
    sequence: u32,
    bodies: Pattern,
    buf: Vec<u8>,
}

/// The direction from the server.
struct Answers<'a> {
    counts: &'a Counts,
    progress: &'a Progress,
    reader: OwnedReadHalf<TcpStream>,
    pattern: Pattern,
    /// Cancels a read now and then. The next read must get its bytes.
    cancels: Random,
    buf: Vec<u8>,
}

impl<'a> Connection<'a> {
    async fn begin(
        counts: &'a Counts,
        progress: &'a Progress,
        stream: TcpStream,
        conduct: Conduct,
        random: &'a mut Random,
    ) -> io::Result<Self> {
        let (read_timeout, write_timeout) = match conduct {
            Conduct::Silent => (random.range(100, 1000) as u16, 0),
            Conduct::Deaf => (0, random.range(100, 500) as u16),
            _ => (0, 0),
        };
        // A read timeout does not bound `readable`.
        let reading = match random.range(0, if read_timeout == 0 { 3 } else { 2 }) {
            0 => Reading::Borrowed,
            1 => Reading::Buffered,
            _ => Reading::Readiness,
        };
        let key = random.next();
        let (reader, writer) = stream.into_split();
        let asks = Asks {
            counts,
            progress,
            writer: Some(writer),
            key,
            sequence: 0,
            bodies: Pattern::new(key, Direction::ToServer),
            buf: vec![0; BUFFER],
        };
        let answers = Answers {
            counts,
            progress,
            reader,
            pattern: Pattern::new(key, Direction::ToClient),
            cancels: Random::new(key, 0),
            buf: vec![0; BUFFER],
        };
        let mut connection = Self { asks, answers, random };
        let hello = Hello { key, reading, read_timeout, write_timeout };
        connection.asks.write_all(&hello.encode()).await?;
        Ok(connection)
    }

    async fn conduct(&mut self, conduct: Conduct) -> io::Result<()> {
        match conduct {
            Conduct::Churn => self.ask(256, 256).await,
            Conduct::Converse => self.converse().await,
            Conduct::HalfClose => self.half_close().await,
            Conduct::Flood => self.flood().await,
            Conduct::StallReading => self.stall_reading().await,
            Conduct::StallWriting => self.stall_writing().await,
            Conduct::Reset => self.reset().await,
            Conduct::Silent => self.fall_silent().await,
            Conduct::Deaf => self.turn_deaf().await,
        }
    }

    /// Makes a request with a body and an answer of random lengths, and waits for the answer.
    async fn ask(&mut self, most_body: u32, most_answer: u32) -> io::Result<()> {
        let (body, answer) = (self.random.range(0, most_body), self.random.range(1, most_answer));
        let begun = Instant::now();
        self.asks.send(body, answer).await?;
        self.answers.receive(answer).await?;
        self.asks.counts.note_latency(begun.elapsed());
        Ok(())
    }

    async fn pause(&mut self, most_milliseconds: u32) {
        sleep(Duration::from_millis(self.random.range(1, most_milliseconds).into())).await;
        self.asks.progress.step();
    }

    async fn converse(&mut self) -> io::Result<()> {
        for _ in 0..self.random.range(2, 12) {
            self.ask(4_000, 12_000).await?;
            if self.random.one_in(4) {
                self.pause(100).await;
            }
        }
        Ok(())
    }

    async fn half_close(&mut self) -> io::Result<()> {
        let mut expected = 0;
        // The answers fit into the kernel's buffers, because the client reads none of them yet.
        for _ in 0..self.random.range(1, 8) {
            let answer = self.random.range(1, 2_000);
            expected += answer;
            let body = self.random.range(0, 2_000);
            self.asks.send(body, answer).await?;
        }
        self.asks.shut_down();
        self.answers.receive(expected).await?;
        self.answers.expect_end().await
    }

    async fn flood(&mut self) -> io::Result<()> {
        let sizes: Vec<_> = (0..self.random.range(4, 12))
            .map(|_| (self.random.range(0, 60_000), self.random.range(1, 60_000)))
            .collect();
        let expected = sizes.iter().map(|(_, answer)| answer).sum();
        let Self { asks, answers, .. } = self;
        let write = async {
            for (body, answer) in sizes {
                asks.send(body, answer).await?;
            }
            Ok(())
        };
        try_zip(write, answers.receive(expected)).await?;
        Ok(())
    }

    async fn stall_reading(&mut self) -> io::Result<()> {
        let answer = self.random.range(200_000, 800_000);
        let first = self.random.range(0, answer);
        self.asks.send(10, answer).await?;
        self.answers.receive(first).await?;
        self.pause(1_500).await;
        self.answers.receive(answer - first).await
    }

    async fn stall_writing(&mut self) -> io::Result<()> {
        let (body, answer) = (self.random.range(1, 20_000), self.random.range(1, 2_000));
        let first = self.random.range(0, body);
        self.asks.send_header(body, answer).await?;
        self.asks.send_body(first).await?;
        self.pause(1_500).await;
        self.asks.send_body(body - first).await?;
        self.answers.receive(answer).await
    }

    /// The drop of the connection resets it.
    async fn reset(&mut self) -> io::Result<()> {
        let (body, answer) = (self.random.range(1, 20_000), self.random.range(1, 200_000));
        if self.random.one_in(2) {
            let first = self.random.range(0, body);
            self.asks.send_header(body, answer).await?;
            self.asks.send_body(first).await?;
        } else {
            let first = self.random.range(0, answer);
            self.asks.send(body, answer).await?;
            self.answers.receive(first).await?;
        }
        if self.random.one_in(2) {
            self.pause(20).await;
        }
        Ok(())
    }

    async fn fall_silent(&mut self) -> io::Result<()> {
        self.ask(256, 256).await?;
        if self.random.one_in(2) {
            // The server waits in the middle of a body now.
            self.asks.send_header(100, 100).await?;
            self.asks.send_body(50).await?;
        }
        self.answers.expect_end().await
    }

    async fn turn_deaf(&mut self) -> io::Result<()> {
        self.asks.send(0, 1_500_000).await?;
        self.pause(1_000).await;
        self.answers.receive(1_500_000).await
    }
}

impl Asks<'_> {
    async fn send(&mut self, body: u32, answer: u32) -> io::Result<()> {
        self.send_header(body, answer).await?;
        self.send_body(body).await
    }

    async fn send_header(&mut self, body: u32, answer: u32) -> io::Result<()> {
        let header = Request { sequence: self.sequence, body, answer }.encode(self.key);
        self.sequence += 1;
        Counts::add(&self.counts.requests, 1);
        self.write_all(&header).await
    }

    async fn send_body(&mut self, body: u32) -> io::Result<()> {
        let mut left = body as usize;
        while left > 0 {
            let mut buf = std::mem::take(&mut self.buf);
            let size = left.min(buf.len());
            self.bodies.fill(&mut buf[..size]);
            let written = self.write_all(&buf[..size]).await;
            self.buf = buf;
            written?;
            left -= size;
        }
        Ok(())
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.as_mut().expect("the direction is open").write_all(bytes).await?;
        Counts::add(&self.counts.bytes, bytes.len() as u64);
        self.progress.step();
        Ok(())
    }

    fn shut_down(&mut self) {
        self.writer = None;
    }
}

impl Answers<'_> {
    /// Reads and checks bytes of answers.
    async fn receive(&mut self, count: u32) -> io::Result<()> {
        let mut left = count as usize;
        while left > 0 {
            let size = left.min(self.buf.len());
            let read = self.read(size).await?;
            if read == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the end, {left} bytes too early")));
            }
            left -= read;
        }
        Ok(())
    }

    /// Waits until the server has ended its direction.
    async fn expect_end(&mut self) -> io::Result<()> {
        match self.read(1).await? {
            0 => Ok(()),
            _ => Err(io::Error::other("bytes behind the last answer")),
        }
    }

    async fn read(&mut self, size: usize) -> io::Result<usize> {
        let read = loop {
            let read = self.reader.read(&mut self.buf[..size]);
            if !self.cancels.one_in(8) {
                break read.await?;
            }
            let limit = Duration::from_micros(self.cancels.range(1, 3_000).into());
            if let Ok(result) = timeout(limit, read).await {
                break result?;
            }
        };
        self.pattern.check(&self.buf[..read]);
        Counts::add(&self.counts.bytes, read as u64);
        self.progress.step();
        Ok(read)
    }
}
