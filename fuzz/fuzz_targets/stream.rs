//! A stream and a peer that writes, reads, ends and resets in any order: what the reader gets is what was sent, and it is
//! never left asleep beside data or an end.
#![no_main]

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream as Peer};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use kittiwake::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, IoSliceMut};
use kittiwake::net::TcpStream;
use kittiwake::task::yield_now;
use libfuzzer_sys::fuzz_target;

struct Pair {
    stream: TcpStream,
    peer: Peer,
    /// What the peer sent and the stream has not read.
    unread: Vec<u8>,
    /// What the stream sent and the peer has not read.
    unseen: Vec<u8>,
    next: u8,
    ended: bool,
    closed: bool,
}

impl Pair {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let peer = Peer::connect(listener.local_addr().expect("address")).expect("connect");
        // No TIME_WAIT: thousands of runs a second would use up the ports.
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("SO_LINGER of zero");
        let stream = TcpStream::from_std(listener.accept().expect("accept").0).expect("from_std");
        Self { stream, peer, unread: Vec::new(), unseen: Vec::new(), next: 0, ended: false, closed: false }
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (0..count).map(|i| self.next.wrapping_add(i as u8)).collect();
        self.next = self.next.wrapping_add(count as u8);
        bytes
    }

    async fn step(&mut self, what: u8, how: u8) {
        let count = usize::from(how) + 1;
        match what % 8 {
            0 if !self.ended && self.unread.len() < 10_000 => {
                let bytes = self.bytes(count);
                self.peer.write_all(&bytes).expect("the peer writes");
                self.unread.extend(bytes);
            }
            1 => self.read(count).await,
            2 => self.read_vectored(count).await,
            3 if !self.closed && self.unseen.len() < 10_000 => {
                let bytes = self.bytes(count);
                self.stream.write_all(&bytes).await.expect("the stream writes");
                self.unseen.extend(bytes);
            }
            4 if !self.unseen.is_empty() => {
                let mut bytes = vec![0; count.min(self.unseen.len())];
                self.peer.read_exact(&mut bytes).expect("the peer reads");
                assert_eq!(bytes, self.unseen.drain(..bytes.len()).collect::<Vec<_>>());
            }
            5 => {
                self.end();
            }
            6 if how == 0 => {
                self.stream.close().await.expect("close");
                self.closed = true;
            }
            6 => self.cancelled_read(count),
            _ => yield_now().await,
        }
    }

    fn end(&mut self) {
        // NotConnected where both sides had ended before.
        let _ = self.peer.shutdown(Shutdown::Write);
        self.ended = true;
    }

    /// Reads when there is something to read, or an end; it must not wait then.
    async fn read(&mut self, count: usize) {
        if self.unread.is_empty() && !self.ended {
            return;
        }
        let mut bytes = vec![0; count];
        let read = self.stream.read(&mut bytes).await.expect("read");
        self.expect(&bytes[..read]);
    }

    async fn read_vectored(&mut self, count: usize) {
        if self.unread.is_empty() && !self.ended {
            return;
        }
        let mut bytes = vec![0; count];
        let (first, second) = bytes.split_at_mut(count / 3);
        let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
        let read = poll_fn(|cx| Pin::new(&mut self.stream).poll_read_vectored(cx, &mut slices)).await.expect("read");
        self.expect(&bytes[..read]);
    }

    /// Polls a read once and drops it: it has read, or nothing was lost.
    fn cancelled_read(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        let read = {
            let mut read = pin!(self.stream.read(&mut bytes));
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            read.as_mut().poll(&mut cx)
        };
        if let Poll::Ready(read) = read {
            let read = read.expect("read");
            self.expect(&bytes[..read]);
        }
    }

    fn expect(&mut self, read: &[u8]) {
        assert!(!read.is_empty() || (self.ended && self.unread.is_empty()), "an end before the end");
        assert!(read.len() <= self.unread.len(), "bytes that were never sent");
        assert_eq!(read, self.unread.drain(..read.len()).collect::<Vec<_>>());
    }
}

fuzz_target!(|script: &[u8]| {
    kittiwake::block_on(async {
        let mut pair = Pair::new();
        for step in script.chunks_exact(2).take(200) {
            pair.step(step[0], step[1]).await;
        }
        pair.end();
        let mut rest = Vec::new();
        pair.stream.read_to_end(&mut rest).await.expect("read to the end");
        assert_eq!(rest, pair.unread);
    });
});
