//! A server's treatment of the bytes of a connection, the same code in all programs.
//!
//! All handlers share one place that reads and one that writes. With a place for each handler the compiler would inline
//! less of each. That costs an echo a hundred instructions in some runtimes, and a real server does not have five handlers
//! for one protocol.

use crate::jobs::{Handler, SLOW};
use crate::program::spin;

/// A connection's state.
#[derive(Debug)]
pub struct Session {
    handler: Handler,
    /// Bytes received so far, for [`Handler::Discard`].
    received: u64,
}

/// The step that follows a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this many bytes from the front of the buffer.
    Send(usize),
    /// Send nothing and read again.
    ReadOn,
    /// Close the connection.
    End,
}

impl Session {
    pub fn new(handler: Handler) -> Self {
        Self { handler, received: 0 }
    }

    /// Handles `read` bytes in `buffer`; 0 is the end of the stream. Writes the answer, if there is one, into the buffer,
    /// whose length is at least 8 bytes.
    #[inline]
    pub fn answer(&mut self, buffer: &mut [u8], read: usize) -> Answer {
        match self.handler {
            Handler::Discard if read == 0 => {
                let total = self.received.to_le_bytes();
                buffer[..total.len()].copy_from_slice(&total);
                // The next end of stream closes the connection.
                self.handler = Handler::Echo64K;
                return Answer::Send(total.len());
            }
            Handler::Discard => {
                self.received += read as u64;
                return Answer::ReadOn;
            }
            Handler::Slow => spin(SLOW),
            Handler::Echo64 | Handler::Echo4K | Handler::Echo64K | Handler::Guarded => {}
            Handler::Http1 | Handler::Http2 => return Answer::End,
        }
        if read == 0 { Answer::End } else { Answer::Send(read) }
    }
}

/// Defines `handle`, the task of a runtime whose streams read into a borrowed buffer.
///
/// A buffer of 64 bytes is part of the task. The caller imports the runtime's traits for reading and writing.
#[macro_export]
macro_rules! borrowed_buffer_task {
    ($stream:ty) => {
        async fn handle(mut stream: $stream, handler: $crate::Handler) -> std::io::Result<()> {
            let mut session = $crate::Session::new(handler);
            let mut small = [0; 64];
            let mut large = Vec::new();
            let mut buffer = small.as_mut_slice();
            if handler.buffer() > buffer.len() {
                large.resize(handler.buffer(), 0);
                buffer = &mut large;
            }
            loop {
                let read = stream.read(buffer).await?;
                match session.answer(buffer, read) {
                    $crate::Answer::Send(bytes) => stream.write_all(&buffer[..bytes]).await?,
                    $crate::Answer::ReadOn => {}
                    $crate::Answer::End => return Ok(()),
                }
            }
        }
    };
}

/// Defines `handle`, the task of a runtime whose streams take a buffer and give it back.
#[macro_export]
macro_rules! owned_buffer_task {
    ($stream:ty) => {
        async fn handle(mut stream: $stream, handler: $crate::Handler) -> std::io::Result<()> {
            let mut session = $crate::Session::new(handler);
            let mut buffer = Vec::with_capacity(handler.buffer());
            loop {
                let (read, mut filled): (std::io::Result<usize>, Vec<u8>) = stream.read(buffer).await.into();
                let read = read?;
                if read == 0 {
                    // Capacity for the session's last answer.
                    filled.resize(8, 0);
                }
                buffer = match session.answer(&mut filled, read) {
                    $crate::Answer::Send(bytes) => {
                        filled.truncate(bytes);
                        let (written, returned): (std::io::Result<_>, Vec<u8>) = stream.write_all(filled).await.into();
                        written?;
                        returned
                    }
                    $crate::Answer::ReadOn => filled,
                    $crate::Answer::End => return Ok(()),
                };
            }
        }
    };
}

/// Accepts connections for ever, and evaluates the expression for each: `accept_each!(listener, stream => expression)`.
#[macro_export]
macro_rules! accept_each {
    ($listener:expr, $stream:ident => $spawn:expr) => {{
        let listener = $listener;
        loop {
            let ($stream, _) = listener.accept().await?;
            $stream.set_nodelay(true)?;
            $spawn;
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_sends_back_and_ends() {
        let mut session = Session::new(Handler::Echo4K);
        assert_eq!(session.answer(&mut [7; 64], 64), Answer::Send(64));
        assert_eq!(session.answer(&mut [7; 64], 0), Answer::End);
    }

    #[test]
    fn discard_sends_its_count_once() {
        let mut session = Session::new(Handler::Discard);
        let mut buffer = [7; 64];
        assert_eq!(session.answer(&mut buffer, 64), Answer::ReadOn);
        assert_eq!(session.answer(&mut buffer, 3), Answer::ReadOn);
        assert_eq!(session.answer(&mut buffer, 0), Answer::Send(8));
        assert_eq!(buffer[..8], 67_u64.to_le_bytes());
        assert_eq!(session.answer(&mut buffer, 0), Answer::End);
    }
}
