//! What a server does with the bytes of a connection: the same code in all programs.
//!
//! A program has one place where it reads and one where it writes, and all handlers go through these. A place of its
//! own for each handler would make the compiler put less of each into line, which costs an echo a hundred
//! instructions in some runtimes, and nobody's server has five handlers for the same protocol.

use crate::jobs::{Handler, SLOW};
use crate::program::spin;

/// A connection's state.
#[derive(Debug)]
pub struct Session {
    handler: Handler,
    /// Bytes that came, for [`Handler::Discard`].
    received: u64,
}

/// What to do after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send so many bytes from the front of the buffer.
    Send(usize),
    /// Nothing: read again.
    ReadOn,
    /// Close.
    End,
}

impl Session {
    pub fn new(handler: Handler) -> Self {
        Self { handler, received: 0 }
    }

    /// Looks at what was read into `buffer`: `read` bytes, 0 for the end. The answer, if there is one, is then in the buffer,
    /// which has room for 8 bytes at least.
    #[inline]
    pub fn answer(&mut self, buffer: &mut [u8], read: usize) -> Answer {
        match self.handler {
            Handler::Discard if read == 0 => {
                let total = self.received.to_le_bytes();
                buffer[..total.len()].copy_from_slice(&total);
                // The next end of stream is the end.
                self.handler = Handler::Echo64K;
                return Answer::Send(total.len());
            }
            Handler::Discard => {
                self.received += read as u64;
                return Answer::ReadOn;
            }
            Handler::Slow => spin(SLOW),
            Handler::Echo64 | Handler::Echo4K | Handler::Echo64K | Handler::Guarded => {}
        }
        if read == 0 { Answer::End } else { Answer::Send(read) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_sends_what_it_reads_and_ends_with_the_client() {
        let mut session = Session::new(Handler::Echo4K);
        assert_eq!(session.answer(&mut [7; 64], 64), Answer::Send(64));
        assert_eq!(session.answer(&mut [7; 64], 0), Answer::End);
    }

    #[test]
    fn discard_counts_and_tells_the_count_once() {
        let mut session = Session::new(Handler::Discard);
        let mut buffer = [7; 64];
        assert_eq!(session.answer(&mut buffer, 64), Answer::ReadOn);
        assert_eq!(session.answer(&mut buffer, 3), Answer::ReadOn);
        assert_eq!(session.answer(&mut buffer, 0), Answer::Send(8));
        assert_eq!(buffer[..8], 67_u64.to_le_bytes());
        assert_eq!(session.answer(&mut buffer, 0), Answer::End);
    }
}
