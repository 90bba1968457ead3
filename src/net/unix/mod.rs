//! Unix sockets: listeners, streams and datagram sockets.

mod addr;
mod backoff;
mod datagram;
mod listener;
mod stream;

pub use datagram::UnixDatagram;
pub use listener::UnixListener;
pub use stream::UnixStream;
