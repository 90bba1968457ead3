//! Datagrams between sockets, of UDP and Unix, compared with a queue.
//!
//! Each datagram arrives once, whole or cut to the buffer, and in order. A receiver waits only if there is none, and a
//! sender only if the queue of a Unix socket is full. A receive that is dropped takes nothing.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use kittiwake::future::zip;
use kittiwake::net::{UdpSocket, UnixDatagram};
use kittiwake::task::yield_now;
use kittiwake::time::{Duration, timeout};

use crate::script::Script;

/// Longer than any datagram takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The datagrams that wait for a receiver, at most. A UDP socket drops what its buffer cannot hold.
const QUEUE: usize = 24;

/// One step, on the way of this number.
#[derive(Debug)]
enum Op {
    /// Sends so many bytes: by a future, by one poll, or at once.
    Send(usize, usize, usize),
    /// Receives into a buffer of so many bytes, in one of several ways.
    Receive(usize, usize, usize),
    Peek(usize, usize),
    /// Polls a receive once, and drops it.
    Drop(usize, usize),
    /// Waits for a datagram, while another task sends it.
    Exchange(usize, usize),
    /// Two receivers at a time, and two datagrams.
    Share(usize, usize),
    /// Sends until the queue is full, and once more. That one waits until there is room.
    Fill(usize),
    Readable(usize),
}

impl Op {
    fn next(script: &mut Script<'_>) -> Self {
        let (choice, count) = (script.byte(), script.byte());
        let way = usize::from(choice >> 4) % 5;
        // Small, empty, and larger than a packet of Ethernet.
        let length = usize::from(count & 31) * if count >= 224 { 64 } else { 1 };
        match choice % 16 {
            0..=4 => Self::Send(way, length, usize::from(count >> 5)),
            5..=8 => Self::Receive(way, length, usize::from(count >> 5)),
            9 => Self::Peek(way, length),
            10 => Self::Drop(way, length),
            11 | 12 => Self::Exchange(way, length),
            13 => Self::Share(way, length),
            14 if count < 32 => Self::Fill(way),
            _ => Self::Readable(way),
        }
    }
}

/// A socket, and where it sends to.
enum Socket {
    /// A UDP socket that is not connected, and the address of its peer.
    Udp(UdpSocket, SocketAddr),
    Connected(UdpSocket),
    Unix(UnixDatagram),
}

impl Socket {
    async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket, peer) => socket.send_to(bytes, peer).await,
            Self::Connected(socket) => socket.send(bytes).await,
            Self::Unix(socket) => socket.send(bytes).await,
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Udp(socket, peer) => socket.poll_send_to(cx, bytes, *peer),
            Self::Connected(socket) => socket.poll_send(cx, bytes),
            Self::Unix(socket) => socket.poll_send(cx, bytes),
        }
    }

    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket, peer) => socket.try_send_to(bytes, *peer),
            Self::Connected(socket) => socket.try_send(bytes),
            Self::Unix(socket) => socket.try_send(bytes),
        }
    }

    /// Receives, and checks the sender's address.
    async fn receive(&self, buf: &mut [u8], how: usize) -> io::Result<usize> {
        match self {
            Self::Udp(socket, peer) => {
                let (length, from) = match how % 3 {
                    0 => socket.recv_from(buf).await?,
                    1 => poll_fn(|cx| socket.poll_recv_from(cx, buf)).await?,
                    _ => return socket.recv(buf).await,
                };
                assert_eq!(from, *peer, "the datagram has another sender");
                Ok(length)
            }
            Self::Connected(socket) => match how % 3 {
                0 => socket.recv(buf).await,
                1 => poll_fn(|cx| socket.poll_recv(cx, buf)).await,
                _ => Ok(socket.recv_from(buf).await?.0),
            },
            Self::Unix(socket) => match how % 3 {
                0 => socket.recv(buf).await,
                1 => poll_fn(|cx| socket.poll_recv(cx, buf)).await,
                _ => {
                    let (length, from) = socket.recv_from(buf).await?;
                    assert!(from.is_unnamed(), "a socket of a pair has no name");
                    Ok(length)
                }
            },
        }
    }

    fn try_receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket, _) => Ok(socket.try_recv_from(buf)?.0),
            Self::Connected(socket) => socket.try_recv(buf),
            Self::Unix(socket) => socket.try_recv(buf),
        }
    }

    async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket, _) => Ok(socket.peek_from(buf).await?.0),
            Self::Connected(socket) => socket.peek(buf).await,
            Self::Unix(socket) => socket.peek(buf).await,
        }
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Udp(socket, _) | Self::Connected(socket) => socket.readable().await,
            Self::Unix(socket) => socket.readable().await,
        }
    }
}

/// Runs a script: any number of operations, of two bytes each.
///
/// # Panics
/// Panics if a datagram is lost, repeated or changed, or if a receiver waits in vain.
pub(crate) fn run(script: &[u8]) {
    kittiwake::block_on(async {
        let mut script = Script::new(script);
        let mut world = World::new().await.expect("sockets");
        for _ in 0..100 {
            if script.is_empty() {
                break;
            }
            let op = Op::next(&mut script);
            let text = format!("{op:?}");
            assert!(timeout(PATIENCE, world.apply(op)).await.is_ok(), "{text} waits in vain");
        }
        for way in 0..world.queues.len() {
            while !world.queues[way].is_empty() {
                world.receive(way, 4096, way).await;
            }
            assert!(world.is_empty(way), "there is a datagram that was not sent");
        }
    });
}

/// Three pairs of sockets, and what is on the way between them. Way 0 goes from socket 0 to socket 1, and way 1 back.
struct World {
    sockets: Vec<Socket>,
    queues: [VecDeque<Vec<u8>>; 5],
    sent: usize,
}

impl World {
    async fn new() -> io::Result<Self> {
        let any = "127.0.0.1:0";
        let (one, two) = (UdpSocket::bind(any).await?, UdpSocket::bind(any).await?);
        let (one_addr, two_addr) = (one.local_addr()?, two.local_addr()?);
        let (three, four) = (UdpSocket::bind(any).await?, UdpSocket::bind(any).await?);
        three.connect(four.local_addr()?).await?;
        four.connect(three.local_addr()?).await?;
        let (five, six) = UnixDatagram::pair()?;
        let sockets = vec![
            Socket::Udp(one, two_addr),
            Socket::Udp(two, one_addr),
            Socket::Connected(three),
            Socket::Connected(four),
            Socket::Unix(five),
            Socket::Unix(six),
        ];
        Ok(Self { sockets, queues: Default::default(), sent: 0 })
    }

    fn sender(&self, way: usize) -> &Socket {
        &self.sockets[way]
    }

    fn receiver(&self, way: usize) -> &Socket {
        &self.sockets[way ^ 1]
    }

    /// The next datagram. No two of 251 in succession are the same, unless they are empty.
    fn datagram(&mut self, length: usize) -> Vec<u8> {
        self.sent += 1;
        (self.sent..self.sent + length).map(|number| (number % 251) as u8).collect()
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Send(way, length, how) if self.queues[way].len() < QUEUE => self.send(way, length, how).await,
            Op::Receive(way, size, how) => self.receive(way, size, how).await,
            Op::Peek(way, size) => self.peek(way, size).await,
            Op::Drop(way, size) => self.receive_and_drop(way, size),
            Op::Exchange(way, length) => self.exchange(way, length).await,
            Op::Share(way, length) => self.share(way, length).await,
            Op::Fill(way) => self.fill(way).await,
            Op::Readable(way) if !self.queues[way].is_empty() => {
                self.receiver(way).readable().await.expect("a datagram is there");
            }
            Op::Send(..) | Op::Readable(_) => yield_now().await,
        }
    }

    async fn send(&mut self, way: usize, length: usize, how: usize) {
        let bytes = self.datagram(length);
        let sender = self.sender(way);
        let sent = match how % 3 {
            0 => sender.send(&bytes).await,
            1 => poll_fn(|cx| sender.poll_send(cx, &bytes)).await,
            _ => sender.try_send(&bytes),
        };
        assert_eq!(sent.expect("there is room"), length, "a datagram was cut");
        self.queues[way].push_back(bytes);
    }

    /// Receives the next datagram, if there is one.
    async fn receive(&mut self, way: usize, size: usize, how: usize) {
        let Some(expected) = self.queues[way].pop_front() else {
            assert!(self.is_empty(way), "there is a datagram that was not sent");
            return;
        };
        let mut buf = vec![0; size];
        let received = self.receiver(way).receive(&mut buf, how).await.expect("a datagram is there");
        assert_eq!(buf[..received], expected[..expected.len().min(size)], "another datagram was received");
    }

    async fn peek(&mut self, way: usize, size: usize) {
        let Some(expected) = self.queues[way].front() else { return };
        let mut buf = vec![0; size];
        let peeked = self.receiver(way).peek(&mut buf).await.expect("a datagram is there");
        assert_eq!(buf[..peeked], expected[..expected.len().min(size)], "another datagram was peeked at");
    }

    /// Whether a receiver finds nothing.
    fn is_empty(&self, way: usize) -> bool {
        match self.receiver(way).try_receive(&mut [0; 4096]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            result => {
                result.expect("a receive");
                false
            }
        }
    }

    fn receive_and_drop(&mut self, way: usize, size: usize) {
        let mut buf = vec![0; size];
        let polled = {
            let receive = pin!(self.receiver(way).receive(&mut buf, size));
            receive.poll(&mut Context::from_waker(Waker::noop()))
        };
        // The kernel's event for a datagram may not have come yet, so a poll may wait although there is one.
        let Poll::Ready(received) = polled else { return };
        let expected = self.queues[way].pop_front().expect("a receive must wait if there is no datagram");
        let received = received.expect("a datagram");
        assert_eq!(buf[..received], expected[..expected.len().min(size)], "another datagram was received");
    }

    /// All that was on the way is received first, so that the receiver waits.
    async fn exchange(&mut self, way: usize, length: usize) {
        while !self.queues[way].is_empty() {
            self.receive(way, 4096, length).await;
        }
        let bytes = self.datagram(length);
        let mut buf = vec![0; length + 1];
        let send = async {
            yield_now().await;
            self.sender(way).send(&bytes).await
        };
        let (received, sent) = zip(self.receiver(way).receive(&mut buf, length), send).await;
        assert_eq!((received.expect("a receive"), sent.expect("a send")), (length, length));
        assert_eq!(buf[..length], bytes, "another datagram was received");
    }

    async fn share(&mut self, way: usize, length: usize) {
        while !self.queues[way].is_empty() {
            self.receive(way, 4096, length).await;
        }
        let (first, second) = (self.datagram(length), self.datagram(length + 1));
        let (mut one, mut two) = (vec![0; length + 2], vec![0; length + 2]);
        let receiver = self.receiver(way);
        let send = async {
            yield_now().await;
            self.sender(way).send(&first).await?;
            self.sender(way).send(&second).await
        };
        // Both wait in the list of `recv`: the seat of the `poll_` methods is for one.
        let both = zip(receiver.receive(&mut one, 0), receiver.receive(&mut two, 0));
        let ((one_length, two_length), sent) = zip(both, send).await;
        sent.expect("a send");
        one.truncate(one_length.expect("a receive"));
        two.truncate(two_length.expect("a receive"));
        assert!([&one, &two] == [&first, &second] || [&one, &two] == [&second, &first], "each gets one of the two");
    }

    async fn fill(&mut self, way: usize) {
        // Other systems say `ENOBUFS` when a queue is full.
        if !cfg!(target_os = "linux") || !matches!(self.sender(way), Socket::Unix(_)) {
            return;
        }
        loop {
            let bytes = self.datagram(64);
            match self.sender(way).try_send(&bytes) {
                Ok(_) => self.queues[way].push_back(bytes),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "a full queue fails by {error}");
                    break;
                }
            }
        }
        let bytes = self.datagram(64);
        self.send_when_full(way, &bytes).await;
        self.queues[way] = VecDeque::from([bytes]);
    }

    /// Sends, while another task receives all that was on the way.
    async fn send_when_full(&self, way: usize, bytes: &[u8]) {
        let mut send = pin!(self.sender(way).send(bytes));
        let waits = send.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
        assert!(waits, "a send into a full queue must wait");
        let receive = async {
            yield_now().await;
            for expected in &self.queues[way] {
                let mut buf = [0; 4096];
                let length = self.receiver(way).receive(&mut buf, 0).await.expect("a datagram is there");
                assert_eq!(&buf[..length], expected, "another datagram was received");
            }
        };
        let (sent, ()) = zip(send, receive).await;
        assert_eq!(sent.expect("there is room again"), bytes.len());
    }
}
