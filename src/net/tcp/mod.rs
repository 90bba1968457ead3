//! TCP: listeners, streams, and sockets that are neither yet.

mod listener;
mod options;
mod socket;
mod stream;

pub use listener::TcpListener;
pub use options::TcpKeepalive;
pub use socket::TcpSocket;
pub use stream::TcpStream;
