//! TCP: listeners, streams, and the halves of a stream.

mod listener;
mod split;
mod stream;

pub use listener::{Accept, Incoming, TcpListener};
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use stream::TcpStream;
