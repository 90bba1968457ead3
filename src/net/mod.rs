//! TCP, UDP and Unix sockets.
//!
//! # Where a socket is registered
//! A socket makes its system calls at once. It is registered with a reactor only when an operation first has to wait.
//! On an unregistered socket, `readable`, `writable` and `connect` always wait. The reactor is that of the runtime that
//! polls the operation. So a socket may be made anywhere, and works from any thread and in any executor once it is
//! registered.
//!
//! A runtime that ends wakes the tasks that wait for its sockets. Each tries again where it is polled next, and
//! registers there. Without a runtime on that thread, an operation that has to wait fails, and its error says so. A
//! current-thread runtime turns its reactor only while a thread is in its `block_on`. When that thread leaves, waiting
//! tasks are woken in the same way. A task that another runtime runs tries again there, and registers the socket with
//! its own runtime. A task of the current-thread runtime waits for the next `block_on` call.
//!
//! # One reader, one writer, or several
//! All operations take `&self`, or have a form that does (`AsyncRead for &TcpStream`). One task that reads and one that
//! writes never disturb each other. Several tasks that read the same stream are all woken when bytes come, and the
//! first to poll gets them. So all but one are woken in vain. From the tenth task that polls one stream through
//! `AsyncRead` on, some are also woken without an event.
//!
//! # Readiness
//! `readable` and `writable` wait until the system has reported a socket ready. The report may be out of date. So a
//! caller tries, and waits again after `WouldBlock`:
//! ```
//! use kittiwake::net::UnixStream;
//!
//! async fn read(stream: &UnixStream, buf: &mut [u8]) -> std::io::Result<usize> {
//!     loop {
//!         stream.readable().await?;
//!         match stream.try_read(buf) {
//!             Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
//!             result => return result,
//!         }
//!     }
//! }
//! # kittiwake::block_on(async {
//! # let (ours, theirs) = UnixStream::pair()?;
//! # theirs.try_write(b"hello")?;
//! # assert_eq!(read(&ours, &mut [0; 16]).await?, 5);
//! # std::io::Result::Ok(())
//! # }).unwrap();
//! ```
//! A system call that this crate does not have is made in `try_io` or `async_io`. They note a `WouldBlock`, without which
//! `readable` and `writable` would return at once again and again. This reads with a call of `socket2`'s:
//! ```
//! use kittiwake::io::Interest;
//! use kittiwake::net::UnixStream;
//! use socket2::SockRef;
//! use std::mem::MaybeUninit;
//!
//! # kittiwake::block_on(async {
//! let (ours, theirs) = UnixStream::pair()?;
//! theirs.try_write(b"hello")?;
//! let mut buf = [MaybeUninit::uninit(); 16];
//! let received = ours.async_io(Interest::READABLE, || SockRef::from(&ours).recv(&mut buf)).await?;
//! assert_eq!(received, 5);
//! # std::io::Result::Ok(())
//! # }).unwrap();
//! ```

mod addr;
mod addr_error;
mod connect;
mod datagram;
mod deadline;
mod halves;
mod incoming;
#[cfg(feature = "listenfd")]
mod inherited;
mod listen;
mod listener;
mod methods;
mod serve;
mod shutdown;
mod stream;
mod sys;
mod tcp;
mod udp;
mod unix;

pub use addr::{ToSocketAddrs, lookup_host};
pub use addr_error::AddrError;
pub use halves::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use incoming::{Incoming, IncomingWithPeer, IntoIncoming, IntoIncomingWithPeer};
pub use listener::Listener;
pub use serve::{Failure, HandlerOutput, Open, Report, Serve, ServeError, ServeStats, Serving, serve, serve_local};
pub use shutdown::ShutdownSignal;
pub use std::net::Shutdown;
pub use tcp::{TcpKeepalive, TcpListener, TcpSocket, TcpStream};
pub use udp::UdpSocket;
#[cfg(feature = "sockopt")]
pub use unix::UCred;
pub use unix::{UnixDatagram, UnixListener, UnixStream};
