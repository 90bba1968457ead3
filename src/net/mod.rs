//! TCP sockets.
//!
//! A socket tries its operations at once, and is registered with a reactor only when one first has to wait: with
//! the one of the runtime that is polling it. So a socket may be made anywhere, and is homed where
//! it is first waited on; bound to a runtime that runs, it works from any thread and in any executor. A runtime
//! runs while a thread is in its `block_on`: between two calls it watches nothing, and what waits on its sockets, wherever
//! that is, waits for the next call. When the runtime ends, an operation that would have to go on waiting fails once, and
//! the next one binds anew. (A read that is dropped and begun anew counts as going on.)
//!
//! # One reader, one writer, or several
//! All operations take `&self`, or have a form that does (`AsyncRead for &TcpStream`). One task that
//! reads and one that writes never disturb each other. Several that read the same stream are each woken when there
//! is something, and the first to come gets it. (Beyond 1,024 tasks that poll one stream through `AsyncRead`, some are
//! woken for nothing.)

mod addr;
mod deadline;
#[cfg(feature = "listenfd")]
mod inherited;
mod listener;
mod serve;
mod shutdown;
mod stream;
mod sys;
mod tcp;

pub use addr::{ToSocketAddrs, lookup_host};
pub use listener::Listener;
pub use serve::{HandlerOutput, Open, Report, Serve, ServeError, Serving, serve, serve_local};
pub use shutdown::ShutdownSignal;
pub use std::net::Shutdown;
pub use tcp::{
    Accept, Incoming, OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, TcpListener, TcpStream, WriteHalf,
};
