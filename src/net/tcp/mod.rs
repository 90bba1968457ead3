//! TCP: listeners, streams, and halves of streams.

mod listener;
mod split;
mod stream;

pub use listener::{Accept, Incoming, TcpListener};
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use stream::TcpStream;
