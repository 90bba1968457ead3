//! Runs a stream against a peer that writes, reads and shuts down in any order.
//!
//! The stream must read exactly the bytes that the peer sent. A read must never wait while there are bytes or an end of
//! stream.
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

/// A connection, and the bytes that are on their way.
struct Pair {
    stream: TcpStream,
    peer: Peer,
    /// The bytes that the peer has sent and the stream has not read.
    to_stream: Vec<u8>,
    /// The bytes that the stream has sent and the peer has not read.
    to_peer: Vec<u8>,
    /// The value of the next byte to send. Each byte is one more than the last, so lost and repeated bytes show.
    next: u8,
    /// The peer has shut down its writing side.
    ended: bool,
    /// The stream has been closed for writing.
    closed: bool,
}

impl Pair {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let peer = Peer::connect(listener.local_addr().expect("address")).expect("connect");
        // A linger time of zero avoids TIME_WAIT. Otherwise thousands of runs a second would use up the ports.
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("SO_LINGER of zero");
        let stream = TcpStream::from_std(listener.accept().expect("accept").0).expect("from_std");
        Self { stream, peer, to_stream: Vec::new(), to_peer: Vec::new(), next: 0, ended: false, closed: false }
    }

    /// The next `count` bytes to send.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (0..count).map(|i| self.next.wrapping_add(i as u8)).collect();
        self.next = self.next.wrapping_add(count as u8);
        bytes
    }

    /// Runs one step of the script. An operation that is impossible now does nothing, or only yields.
    async fn step(&mut self, operation: u8, argument: u8) {
        let count = usize::from(argument) + 1;
        match operation % 8 {
            0 if !self.ended && self.to_stream.len() < 10_000 => {
                let bytes = self.bytes(count);
                self.peer.write_all(&bytes).expect("the peer writes");
                self.to_stream.extend(bytes);
            }
            1 => self.read(count).await,
            2 => self.read_vectored(count).await,
            3 if !self.closed && self.to_peer.len() < 10_000 => {
                let bytes = self.bytes(count);
                self.stream.write_all(&bytes).await.expect("the stream writes");
                self.to_peer.extend(bytes);
            }
            4 if !self.to_peer.is_empty() => {
                let mut bytes = vec![0; count.min(self.to_peer.len())];
                self.peer.read_exact(&mut bytes).expect("the peer reads");
                assert_eq!(bytes, self.to_peer.drain(..bytes.len()).collect::<Vec<_>>());
            }
            5 => {
                self.end();
            }
            6 if argument == 0 => {
                self.stream.close().await.expect("close");
                self.closed = true;
            }
            6 => self.cancelled_read(count),
            _ => yield_now().await,
        }
    }

    /// Shuts down the peer's writing side.
    fn end(&mut self) {
        // The call fails with `NotConnected` if both sides were shut down before.
        let _ = self.peer.shutdown(Shutdown::Write);
        self.ended = true;
    }

    /// Reads if there are bytes or an end of stream, so that the read must not wait.
    async fn read(&mut self, count: usize) {
        if self.to_stream.is_empty() && !self.ended {
            return;
        }
        let mut bytes = vec![0; count];
        let read = self.stream.read(&mut bytes).await.expect("read");
        self.expect(&bytes[..read]);
    }

    /// Reads as [`read`](Pair::read) does, into two slices.
    async fn read_vectored(&mut self, count: usize) {
        if self.to_stream.is_empty() && !self.ended {
            return;
        }
        let mut bytes = vec![0; count];
        let (first, second) = bytes.split_at_mut(count / 3);
        let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
        let read = poll_fn(|cx| Pin::new(&mut self.stream).poll_read_vectored(cx, &mut slices)).await.expect("read");
        self.expect(&bytes[..read]);
    }

    /// Polls a read once and drops it. A read that was pending must not have taken any byte.
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

    /// Checks bytes that the stream has read. No bytes stand for the end of the stream.
    fn expect(&mut self, read: &[u8]) {
        assert!(
            !read.is_empty() || (self.ended && self.to_stream.is_empty()),
            "the stream has ended before its peer shut down"
        );
        assert!(read.len() <= self.to_stream.len(), "the stream has read bytes that were never sent");
        assert_eq!(read, self.to_stream.drain(..read.len()).collect::<Vec<_>>());
    }
}

fuzz_target!(|script: &[u8]| {
    kittiwake::block_on(async {
        let mut pair = Pair::new();
        for step in script.chunks_exact(2).take(200) {
            pair.step(step[0], step[1]).await;
        }
        pair.end();
        let mut remaining = Vec::new();
        pair.stream.read_to_end(&mut remaining).await.expect("read to the end");
        assert_eq!(remaining, pair.to_stream);
    });
});
