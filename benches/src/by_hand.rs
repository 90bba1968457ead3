//! A connection of the hand-written loops: the steps of a ready connection.
//!
//! The loops on epoll and on mio both use this state machine, so they differ in their interface to the kernel alone. All
//! connections share one buffer, which a loop without tasks can do. A buffer for each connection is therefore part of a
//! runtime's cost. A connection keeps only the bytes that the kernel has not taken at once.

use std::io::{self, ErrorKind, Read, Write};

use crate::jobs::Handler;
use crate::session::{Answer, Session};

/// A connection on the loop's type of stream.
#[derive(Debug)]
pub struct Connection<S> {
    pub stream: S,
    session: Session,
    /// Bytes that the kernel did not take at once, and the number of them that are sent.
    unsent: Vec<u8>,
    sent: usize,
}

/// The loop's next step for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait until it is readable: the last read was short, or found nothing.
    Wait,
    /// Read again: there may be more.
    More,
    /// Wait until it is writable.
    WaitToWrite,
    /// Drop it.
    Close,
}

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S, handler: Handler) -> Self {
        Self { stream, session: Session::new(handler), unsent: Vec::new(), sent: 0 }
    }

    /// Sends the rest of an earlier answer, or reads once and sends the answer.
    #[inline]
    pub fn step(&mut self, buffer: &mut [u8]) -> Next {
        if !self.unsent.is_empty() {
            return self.flush();
        }
        let read = match self.stream.read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
            Err(_) => return Next::Close,
        };
        let short = 0 < read && read < buffer.len();
        let next = match self.session.answer(buffer, read) {
            Answer::Send(bytes) => self.send(&buffer[..bytes]),
            Answer::ReadOn => Next::More,
            Answer::End => Next::Close,
        };
        if next == Next::More && short { Next::Wait } else { next }
    }

    /// Sends all bytes, or keeps those that the kernel does not take.
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> Next {
        let sent = match ready(self.stream.write(bytes)) {
            Ok(sent) => sent.unwrap_or(0),
            Err(_) => return Next::Close,
        };
        if sent == bytes.len() {
            return Next::More;
        }
        self.unsent.extend_from_slice(&bytes[sent..]);
        self.flush()
    }

    /// Sends until no bytes are left or the kernel takes no more.
    fn flush(&mut self) -> Next {
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(0) => return Next::Close,
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::WaitToWrite,
                Err(_) => return Next::Close,
            }
        }
        self.unsent.clear();
        self.sent = 0;
        Next::More
    }
}

/// Turns a `WouldBlock` into `None`.
#[inline]
pub fn ready<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A stream whose reads and writes come from a script. A write of 0 bytes in `takes` is a `WouldBlock`.
    #[derive(Default)]
    struct Script {
        reads: VecDeque<Vec<u8>>,
        takes: VecDeque<usize>,
        written: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = self.reads.pop_front().ok_or(ErrorKind::WouldBlock)?;
            buffer[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.takes.pop_front().unwrap_or(bytes.len()).min(bytes.len());
            if taken == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn refused_bytes_are_sent_later_in_order() {
        let script = Script { reads: [b"abcd".to_vec()].into(), takes: [1, 0, 2, 0].into(), ..Script::default() };
        let mut connection = Connection::new(script, Handler::Echo4K);
        assert_eq!(connection.step(&mut [0; 64]), Next::WaitToWrite);
        assert_eq!(connection.step(&mut [0; 64]), Next::WaitToWrite);
        assert_eq!(connection.step(&mut [0; 64]), Next::More);
        assert_eq!(connection.step(&mut [0; 64]), Next::Wait);
        assert_eq!(connection.stream.written, b"abcd");
    }

    #[test]
    fn discard_answers_and_closes() {
        let script = Script { reads: [vec![0; 64], vec![0; 3], vec![], vec![]].into(), ..Script::default() };
        let mut connection = Connection::new(script, Handler::Discard);
        assert_eq!(connection.step(&mut [0; 64]), Next::More);
        assert_eq!(connection.step(&mut [0; 64]), Next::Wait);
        assert_eq!(connection.step(&mut [0; 64]), Next::More);
        assert_eq!(connection.step(&mut [0; 64]), Next::Close);
        assert_eq!(connection.stream.written, 67_u64.to_le_bytes());
    }
}
