//! The bytes between a client and a server, and how each end checks them.
//!
//! # Protocol
//! 1. The client sends a [`Hello`]: the key of the connection, and how the server must read and write.
//! 2. The client sends requests: a [`Request`], then a body of the length that it says.
//! 3. The server sends for each request an answer of the length that the request asks for. It has no header.
//!
//! Bodies and answers are two [`Pattern`]s. Each byte depends on the key, the direction and the position, and the
//! position goes on from request to request. So a lost, doubled or moved byte shows, and so does one of another
//! connection.

use kittiwake::io::{self, AsyncRead, AsyncReadExt};

use crate::verdict::fail;

/// A small generator of random numbers (splitmix64). Equal seeds give equal numbers.
pub(crate) struct Random(u64);

impl Random {
    /// A generator for one of many users of a seed.
    pub(crate) fn new(seed: u64, user: u64) -> Self {
        Self(mix(seed) ^ mix(user.wrapping_add(1 << 32)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `from` up to `to`, without `to`.
    pub(crate) fn range(&mut self, from: u32, to: u32) -> u32 {
        from + (self.next() >> 32) as u32 % (to - from)
    }

    pub(crate) fn one_in(&mut self, count: u32) -> bool {
        self.range(0, count) == 0
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// The bytes of one direction of a connection, and a position in them.
pub(crate) struct Pattern {
    key: u64,
    direction: Direction,
    position: u64,
}

impl Pattern {
    pub(crate) fn new(key: u64, direction: Direction) -> Self {
        Self { key, direction, position: 0 }
    }

    /// The bytes from the position to the end of its word.
    fn rest_of_word(&self) -> ([u8; 8], usize) {
        let salt = self.key ^ (self.direction as u64) << 63;
        let word = mix(salt.wrapping_add((self.position / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        (word.to_le_bytes(), (self.position % 8) as usize)
    }

    /// Fills `buf` with the next bytes.
    pub(crate) fn fill(&mut self, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let (word, offset) = self.rest_of_word();
            let count = buf.len().min(8 - offset);
            buf[..count].copy_from_slice(&word[offset..offset + count]);
            buf = &mut buf[count..];
            self.position += count as u64;
        }
    }

    /// Ends the program if `found` are not the next bytes.
    pub(crate) fn check(&mut self, mut found: &[u8]) {
        while !found.is_empty() {
            let (word, offset) = self.rest_of_word();
            let count = found.len().min(8 - offset);
            let expected = &word[offset..offset + count];
            if found[..count] != *expected {
                let Self { key, direction, position } = self;
                let found = &found[..count];
                fail(&format!(
                    "connection {key:016x}, {direction:?}: a wrong byte in the {count} from position {position}: \
                     {found:02x?} instead of {expected:02x?}"
                ));
            }
            found = &found[count..];
            self.position += count as u64;
        }
    }
}

/// How the server reads from a connection.
#[derive(Clone, Copy)]
pub(crate) enum Reading {
    /// `AsyncRead` of a borrowed half.
    Borrowed,
    /// A `BufReader` on an owned half.
    Buffered,
    /// `readable`, then `try_read`.
    Readiness,
}

/// The first bytes of a connection.
pub(crate) struct Hello {
    pub(crate) key: u64,
    pub(crate) reading: Reading,
    /// The server's timeout for reads in milliseconds. Zero means none.
    pub(crate) read_timeout: u16,
    /// The server's timeout for writes in milliseconds. Zero means none.
    pub(crate) write_timeout: u16,
}

impl Hello {
    pub(crate) const LENGTH: usize = 13;

    pub(crate) fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.key.to_le_bytes());
        bytes[8] = self.reading as u8;
        bytes[9..11].copy_from_slice(&self.read_timeout.to_le_bytes());
        bytes[11..].copy_from_slice(&self.write_timeout.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; Self::LENGTH]) -> Self {
        let [key @ .., _, _, _, _, _] = *bytes;
        let [.., reading, r0, r1, w0, w1] = *bytes;
        let reading = match reading {
            0 => Reading::Borrowed,
            1 => Reading::Buffered,
            2 => Reading::Readiness,
            _ => fail(&format!("a server has received a hello that no client sends: {bytes:02x?}")),
        };
        Self {
            key: u64::from_le_bytes(key),
            reading,
            read_timeout: u16::from_le_bytes([r0, r1]),
            write_timeout: u16::from_le_bytes([w0, w1]),
        }
    }
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Request {
    /// The number of the request on its connection.
    pub(crate) sequence: u32,
    /// The length of the body.
    pub(crate) body: u32,
    /// The length of the answer.
    pub(crate) answer: u32,
}

impl Request {
    pub(crate) const LENGTH: usize = 16;

    /// The last word depends on the others and on the key, so that the server notices a header at a wrong place.
    pub(crate) fn encode(&self, key: u64) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let words = [self.sequence, self.body, self.answer, self.seal(key)];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Ends the program if the bytes are not the header of request `sequence`.
    fn decode(bytes: &[u8; Self::LENGTH], key: u64, sequence: u32) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let request = Self { sequence: word(0), body: word(4), answer: word(8) };
        if request.sequence != sequence || word(12) != request.seal(key) {
            fail(&format!("connection {key:016x}: a wrong header instead of request {sequence}: {bytes:02x?}"));
        }
        request
    }

    fn seal(&self, key: u64) -> u32 {
        mix(mix(key ^ u64::from(self.sequence)) ^ u64::from(self.body) << 32 ^ u64::from(self.answer)) as u32
    }

    /// Reads the header of request `sequence`. Returns `None` if the client has sent its last request.
    pub(crate) async fn read(
        reader: &mut (impl AsyncRead + Unpin),
        key: u64,
        sequence: u32,
    ) -> io::Result<Option<Self>> {
        let mut bytes = [0; Self::LENGTH];
        let first = reader.read(&mut bytes).await?;
        if first == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut bytes[first..]).await?;
        Ok(Some(Self::decode(&bytes, key, sequence)))
    }
}
