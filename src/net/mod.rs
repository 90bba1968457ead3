//! TCP sockets.
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

mod addr;
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

pub use addr::{ToSocketAddrs, lookup_host};
pub use halves::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use incoming::{Incoming, IntoIncoming};
pub use listener::Listener;
pub use serve::{Failure, HandlerOutput, Open, Report, Serve, ServeError, Serving, serve, serve_local};
pub use shutdown::ShutdownSignal;
pub use std::net::Shutdown;
pub use tcp::{TcpListener, TcpStream};
