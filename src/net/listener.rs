//! [`Listener`]: the trait through which a server accepts connections.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, Waker};

use crate::budget::{ask_kernel, has_refused};

/// A listener that [`serve`](crate::net::serve()) can accept connections from.
///
/// [`TcpListener`](crate::net::TcpListener) is one. Implement the trait to serve something else: connections of another
/// socket type, connections wrapped in TLS, or only the connections that pass a test.
///
/// # Errors
/// An error of [`poll_accept`](Listener::poll_accept) concerns the listener as a whole. Do not return the failure of
/// one connection, such as a failed handshake: drop that connection and accept the next. For one connection, return an
/// error of the first two rows of this table, or none.
///
/// The server decides by the error what to do:
///
/// | error | what the server does |
/// | --- | --- |
/// | the kind is `Interrupted`, `ConnectionAborted` or `ConnectionReset`; `EPROTO` | accepts the next connection at once |
/// | the other network errors of accept(2), such as `ENETDOWN` and `EHOSTUNREACH`; `EPERM`, `ETIMEDOUT` | accepts the next connection at once; after 64 such errors in succession it waits, as in the next row; `EOPNOTSUPP` ends the server |
/// | `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM` | reports it, waits, and tries again |
/// | any other | drains and ends with the error |
///
/// # Examples
/// A listener that serves clients on the same machine only:
/// ```
/// use std::io;
/// use std::net::SocketAddr;
/// use std::os::fd::OwnedFd;
/// use std::task::{Context, Poll, ready};
///
/// use kittiwake::net::{Listener, ShutdownSignal, TcpListener, TcpStream, serve};
///
/// struct Loopback(TcpListener);
///
/// impl Listener for Loopback {
///     type Stream = TcpStream;
///     type Addr = SocketAddr;
///
///     fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
///         loop {
///             let (stream, peer) = ready!(self.0.poll_accept(cx))?;
///             if peer.ip().is_loopback() {
///                 return Poll::Ready(Ok((stream, peer)));
///             }
///             // Dropping the stream closes the connection.
///         }
///     }
///
///     fn reserve(&self) -> Option<OwnedFd> {
///         self.0.reserve()
///     }
/// }
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = kittiwake::spawn(TcpStream::connect(listener.local_addr()?));
/// let signal = ShutdownSignal::new();
/// let handler = |_stream: TcpStream, _peer| {
///     let signal = signal.clone();
///     async move { signal.trigger() }
/// };
/// let report = serve(Loopback(listener), handler).with_shutdown(&signal).await?;
/// assert_eq!(report.served, 1);
/// # client.await.unwrap()?;
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub trait Listener {
    /// A connection.
    type Stream;

    /// The address of a peer. Reports and errors show it. Cloning it must be cheap and must not block.
    type Addr: Clone + fmt::Debug + Send + 'static;

    /// Accepts the next connection.
    ///
    /// If there is none, it stores the waker and returns `Pending`. Only the waker of the last call must be woken.
    /// After an error, the next call must try again and not wait for another event.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Self::Addr)>>;

    /// Accepts a connection that is ready now, and never waits.
    ///
    /// A server that was asked to stop calls this until the kernel's queue is empty or its limit is reached, and then
    /// closes the listener. A server that turns clients away accepts them by this, too.
    ///
    /// The provided method polls [`poll_accept`](Listener::poll_accept) once, with a waker that does nothing. In that
    /// poll the sockets of this crate ask the kernel, even if no event has reported a connection.
    ///
    /// # Errors
    /// `WouldBlock` if no connection is ready. `Interrupted` if that is not known: `poll_accept` used up the budget of a
    /// poll, as one does that accepts and drops many strangers. After that, and after an error that concerns one
    /// connection, as in the table above, the server calls this again at once.
    fn try_accept(&self) -> io::Result<(Self::Stream, Self::Addr)> {
        ask_kernel(|| match self.poll_accept(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(accepted) => accepted,
            // Without a budget the kernel was not asked. It may have more connections.
            Poll::Pending if has_refused() => Err(io::ErrorKind::Interrupted.into()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        })
    }

    /// Opens a descriptor for the server to keep in reserve. The provided method returns `None`: no reserve.
    ///
    /// The reserve is for the case that all descriptors are in use for long. The server then closes it, accepts with
    /// the descriptor that this frees, and closes that connection, so that the client learns of the failure at once.
    /// Without a reserve such a client waits in the kernel's queue.
    ///
    /// The descriptor should be the only one of its file. To close a duplicate of the listening socket would help against
    /// `EMFILE`, but not against `ENFILE`.
    fn reserve(&self) -> Option<OwnedFd> {
        None
    }
}
