//! Signals: [`ctrl_c`], [`terminate`], and listeners for the signals of Unix systems.
//!
//! # Process-wide
//! A signal is sent to the process. Every listener for its kind receives it, in every runtime.
//!
//! The first listener for a kind replaces the default action of that signal **for the rest of the process's life**. The
//! default action does not return when all listeners are dropped. So after the first call of [`ctrl_c`], Ctrl-C no
//! longer ends the process by itself: the program must listen for it and act.
//!
//! # From the handler to the task
//! 1. Each listener has a pair of connected sockets.
//! 2. The signal handler writes one byte to the pair of each listener. It is the handler of the `signal-hook` crate,
//!    and does no more because a handler may do very little (see signal-safety(7)).
//! 3. The other end of the pair is registered with the reactor as any socket is. The byte wakes the listener's task.
//! 4. The task reads all bytes of the pair and reports one signal.
//!
//! So a listener reports that at least one signal has arrived since its last report, and not how many. It reports those
//! that arrive after it was created. The pair keeps them until the first poll, and from one runtime to the next.
//! If the pair is full, the handler drops its byte: the listener has bytes to read anyway.

pub mod unix;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use unix::{Signal, SignalKind, signal};

/// Waits for Ctrl-C (`SIGINT`).
///
/// The future receives signals from this call on, and not only from its first poll. So call this function before the
/// work that Ctrl-C should end. If the future is polled again after it was ready, it waits for the next signal.
///
/// From the first call on, Ctrl-C no longer ends the process by itself. Dropping the future does not change that: see
/// [`signal`](self).
///
/// # Cancel safety
/// Safe, except for one signal: a signal that this future has received but not reported is lost when the future is
/// dropped.
///
/// # Errors
/// Returns the error of socketpair(2) if the process has no descriptors left. Returns an error if the future has to
/// wait outside a runtime.
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
        poll_received(&mut self.signal, cx)
    }
}

impl fmt::Debug for CtrlC {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CtrlC").finish_non_exhaustive()
    }
}

/// Waits until the process is asked to end: for Ctrl-C (`SIGINT`), or for `SIGTERM`, which service managers send.
///
/// Apart from the second signal it is like [`ctrl_c`]. If the future is polled again after it was ready, it waits for
/// the next signal of either kind. So a server can drain at the first signal, and end at once at the second.
///
/// # Cancel safety
/// Safe, except for signals that this future has received but not reported. They are lost when the future is dropped.
///
/// # Errors
/// As for [`ctrl_c`].
///
/// # Examples
/// ```no_run
/// use kittiwake::net::{TcpListener, TcpStream, serve};
/// use kittiwake::signal::terminate;
///
/// kittiwake::block_on(async {
///     let listener = TcpListener::bind("localhost:7000").await?;
///     let report = serve(listener, |_stream: TcpStream, _peer| async {}).with_graceful_shutdown(terminate()).await?;
///     println!("{report}");
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub fn terminate() -> Terminate {
    Terminate { interrupt: signal(SignalKind::interrupt()), terminate: signal(SignalKind::terminate()) }
}

/// The future of [`terminate`].
#[must_use = "futures do nothing unless awaited"]
pub struct Terminate {
    interrupt: io::Result<Signal>,
    terminate: io::Result<Signal>,
}

impl Future for Terminate {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match poll_received(&mut self.interrupt, cx) {
            Poll::Pending => poll_received(&mut self.terminate, cx),
            ready => ready,
        }
    }
}

impl fmt::Debug for Terminate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminate").finish_non_exhaustive()
    }
}

fn poll_received(signal: &mut io::Result<Signal>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    match signal {
        Ok(signal) => signal.poll_received(cx),
        Err(error) => Poll::Ready(Err(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        })),
    }
}
