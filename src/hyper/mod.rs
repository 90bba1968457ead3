//! HTTP by hyper 1 on this runtime: servers, and the parts that hyper asks of a runtime.
//!
//! [`serve()`] is an HTTP server in one line. It needs the feature `hyper`. For everything else that hyper can do, there
//! are [`Io`], [`Executor`], [`LocalExecutor`] and [`Timer`]. With the feature `hyper-util` there is `Connector`, for that
//! crate's client.
//!
//! # The protocol of a connection
//! 1. [`net::serve`](crate::net::serve()) accepts it. Its task does the handshake, if there is one, and then finds the
//!    protocol by the first bytes (`connection`).
//! 2. hyper reads and writes through the transport (`transport`) and calls the user's service through a wrapper
//!    (`service`). Both report to the activity of the connection (`activity`).
//! 3. Each time hyper has to wait, the activity tells for what, and the deadline (`deadline`) how long that may last.
//! 4. When the server stops, the connection is polled once more, asking the kernel, so that a request in the kernel is
//!    answered. hyper ends an HTTP/2 connection then. It ends an HTTP/1 connection with the next response, whose header
//!    tells the client.

mod connection;
#[cfg(feature = "hyper-util")]
mod connector;
mod serve;

mod deadline;
mod executor;
mod io;
mod service;
mod timer;
mod transport;
mod tunnel;

mod activity;

#[cfg(feature = "hyper-util")]
pub use connector::Connector;
pub use executor::{Executor, LocalExecutor, StreamExecutor};
pub use io::Io;
pub use serve::{Serve, Serving, serve, serve_with};
pub use timer::Timer;
