//! A client of HTTP/2 that sends what a test tells it to, frame by frame, and answers nothing by itself.

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::TcpStream;

use crate::server::Server;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The setting for the bytes that a stream may send at first.
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

pub(crate) struct FrameClient {
    pub(crate) stream: TcpStream,
}

#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl FrameClient {
    /// Connects, and sends the preface and settings.
    pub(crate) async fn connect(server: &Server, settings: &[(u16, u32)]) -> Self {
        let mut stream = server.connect().await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the server reads");
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| name.to_be_bytes().into_iter().chain(value.to_be_bytes()))
            .collect();
        let mut client = Self { stream };
        client.send(SETTINGS, 0, 0, &settings).await;
        client
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.stream.write_all(&frame(kind, flags, stream, payload)).await.expect("the server reads");
    }

    /// Sends a GET on a stream of its own.
    pub(crate) async fn get(&mut self, stream: u32, path: &str) {
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &head(b"\x82", path)).await;
    }

    /// Receives the next frame. `None` if the server has closed the connection.
    pub(crate) async fn receive(&mut self) -> Option<Received> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Received { kind: head[3], stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload })
    }

    /// Receives until a frame of this kind comes.
    pub(crate) async fn receive_kind(&mut self, kind: u8) -> Received {
        loop {
            let received = self.receive().await;
            let received = received.unwrap_or_else(|| panic!("the server closed before a frame of kind {kind}"));
            if received.kind == kind {
                return received;
            }
        }
    }

    /// Receives until the server closes the connection. Returns the reason of its GOAWAY.
    pub(crate) async fn receive_all(&mut self) -> Option<u32> {
        let mut reason = None;
        while let Some(received) = self.receive().await {
            if received.kind == GOAWAY {
                reason = Some(u32::from_be_bytes(received.payload[4..8].try_into().unwrap()));
            }
        }
        reason
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The head of a request, in HPACK: the method is an entry of the static table, or a literal.
pub(crate) fn head(method: &[u8], path: &str) -> Vec<u8> {
    // `:scheme: http`, then `:path` and `:authority` as literals.
    let mut head = [method, b"\x86\x04", &[u8::try_from(path.len()).unwrap()]].concat();
    head.extend_from_slice(path.as_bytes());
    head.extend_from_slice(b"\x01\x01x");
    head
}
