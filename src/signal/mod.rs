//! Signals: Ctrl-C, and those that Unix systems send to end, reload or inform a process.
//!
//! # Process-wide
//! A signal is sent to the process, and each listener of its kind hears it, in whichever runtime it is polled. The first
//! listener for a kind takes its default action away, **for the rest of the process's life**, also when all listeners are
//! gone: after [`ctrl_c`] was called once, Ctrl-C ends nothing any more unless somebody listens for it, and acts.
//!
//! A listener hears that there was a signal since it last looked, and not how many.
//!
//! # From the handler to the task
//! A signal handler may do next to nothing. Ours is `signal-hook`'s, and writes one byte to each listener's own pair of
//! sockets; the other end is registered with the reactor as any socket is. It keeps its signals from the call that makes it,
//! wherever that is, and none is lost before the first poll or between two runtimes. A pair that is full takes no more bytes:
//! the listener has enough to hear.

pub mod unix;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use unix::{Signal, SignalKind, signal};

/// Waits for Ctrl-C (`SIGINT`).
///
/// It is listened for from this call on, not only from the first poll: make the future before the work that a Ctrl-C is to end.
/// Polled again after it was ready, it waits for the next one.
///
/// From the first call on, Ctrl-C does not end the process by itself any more, also after this future is gone: see
/// [`signal`](self).
///
/// # Cancel safety
/// Safe, but a signal that this future had heard and not yet reported is gone with it.
///
/// # Errors
/// When there are no descriptors left to listen with, and when it has to wait outside a runtime.
///
/// # Examples
/// ```no_run
/// use kittiwake::net::TcpListener;
/// use kittiwake::signal::ctrl_c;
///
/// kittiwake::block_on(async {
///     let ctrl_c = ctrl_c();
///     let listener = TcpListener::bind("localhost:7000").await?;
///     let server = kittiwake::spawn(async move {
///         loop {
///             let (stream, _) = listener.accept().await?;
///             // Serve it.
/// #           drop(stream);
///         }
///         # #[allow(unreachable_code)]
///         std::io::Result::Ok(())
///     });
///     ctrl_c.await?;
///     server.abort();
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub fn ctrl_c() -> CtrlC {
    CtrlC { signal: signal(SignalKind::interrupt()) }
}

/// The future of [`ctrl_c`].
#[must_use = "futures do nothing unless awaited"]
pub struct CtrlC {
    signal: io::Result<Signal>,
}

impl Future for CtrlC {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.signal {
            Ok(signal) => signal.poll_heard(cx),
            Err(error) => Poll::Ready(Err(io::Error::new(error.kind(), error.to_string()))),
        }
    }
}

impl fmt::Debug for CtrlC {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CtrlC").finish_non_exhaustive()
    }
}
