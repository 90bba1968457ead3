//! A client of the programs that speak WebSocket, with tungstenite.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use async_tungstenite::tungstenite::protocol::frame::CloseFrame;
use async_tungstenite::tungstenite::{self, Error, Message, WebSocket};

use super::program::Program;

pub type Client = WebSocket<TcpStream>;

#[track_caller]
pub fn connect(server: &Program, path: &str) -> Client {
    let address = format!("ws://{}{path}", server.address);
    tungstenite::client(address, server.connect()).expect("the opening handshake").0
}

/// Fails unless the next message, apart from pings, is `expected`.
#[track_caller]
pub fn expect(client: &mut Client, expected: &Message) {
    let received = loop {
        match client.read() {
            Ok(Message::Ping(_)) => {}
            other => break other,
        }
    };
    // A binary message may be too long to print.
    let is_expected = received.as_ref().is_ok_and(|message| message == expected);
    assert!(is_expected, "not the message that was sent, of {} bytes: {received:?}", expected.len());
}

/// Reads until the connection ends. Returns the close frame.
#[track_caller]
pub fn closed(client: &mut Client) -> Option<CloseFrame> {
    let mut frame = None;
    loop {
        match client.read() {
            Ok(Message::Close(received)) => frame = received,
            Ok(_) => {}
            Err(Error::ConnectionClosed) => return frame,
            Err(error) => panic!("an orderly end, and not: {error}"),
        }
    }
}

/// Reads until the server has ended the connection, with or without a reset.
pub fn cut_off(mut stream: &TcpStream) -> Result<(), String> {
    match stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind()) {
        Ok(_) | Err(ErrorKind::ConnectionReset) => Ok(()),
        Err(error) => Err(format!("the client is not cut off: {error:?}")),
    }
}
