//! Unix sockets: listeners, streams and datagram sockets.

mod addr;
mod backoff;
mod datagram;
mod listener;
mod stream;

pub use datagram::UnixDatagram;
pub use listener::UnixListener;
#[cfg(feature = "sockopt")]
pub use stream::UCred;
pub use stream::UnixStream;
