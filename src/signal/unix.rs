//! Listeners for the signals of Unix systems.
//!
//! A listener replaces the default action of its signal for the rest of the process's life. The page of
//! [`signal`](super) says what that means.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::task::{Context, Poll};

use signal_hook::SigId;
use signal_hook::consts::FORBIDDEN;
use signal_hook::low_level::{pipe, unregister};

use crate::reactor::{Direction, Registration, WaiterSlot};

/// Creates a listener for signals of `kind`. The listener receives signals from this call on.
///
/// The call needs no runtime; waiting for a signal does. Each listener uses two descriptors.
///
/// # Errors
/// Returns `InvalidInput` for a signal that a listener cannot receive:
/// * `SIGKILL` and `SIGSTOP`, because the system does not allow it;
/// * `SIGILL`, `SIGFPE` and `SIGSEGV`, because the program cannot continue after them;
/// * a number that is no signal.
///
/// Returns the error of socketpair(2) if the process has no descriptors left.
///
/// # Examples
/// ```
/// use kittiwake::signal::unix::{SignalKind, signal};
///
/// # fn main() -> std::io::Result<()> {
/// let mut reload = signal(SignalKind::hangup())?;
/// kittiwake::block_on(async {
///     # signal_hook::low_level::raise(SignalKind::hangup().as_raw_value()).unwrap();
///     // After `kill -HUP`:
///     assert_eq!(reload.recv().await, Some(()));
/// });
/// # Ok(())
/// # }
/// ```
pub fn signal(kind: SignalKind) -> io::Result<Signal> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    let id = register(kind, sender)?;
    Ok(Signal { id, kind, registration: Registration::new(receiver) })
}

/// Lets the handler of `kind` write one byte to `sender` at each signal. The sender is dropped when the action is
/// unregistered.
pub(crate) fn register(SignalKind(number): SignalKind, sender: UnixStream) -> io::Result<SigId> {
    // signal-hook panics if it is asked for one of these.
    if FORBIDDEN.contains(&number) {
        let why =
            format!("signal {number} cannot be listened for: the system does not allow it, or nothing can follow it");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    // The sender may stay blocking: signal-hook's handler sends with `MSG_DONTWAIT` (see send(2)).
    pipe::register(number, sender)
        .map_err(|error| io::Error::new(error.kind(), format!("signal {number} cannot be listened for: {error}")))
}

/// A listener for signals of one kind. [`signal`] creates it.
///
/// A listener may move between tasks, threads and runtimes. It keeps signals that arrive meanwhile.
pub struct Signal {
    /// The handler's action for this listener. The action owns the sending end of the pair, and closes it when it is
    /// unregistered.
    id: SigId,
    kind: SignalKind,
    /// The receiving end of the pair.
    registration: Registration<UnixStream>,
}

impl Signal {
    /// Waits until a signal has arrived since the last report, or since the call that created this listener.
    ///
    /// All signals that have arrived meanwhile count as one. The result is `None` if the listener cannot wait: outside
    /// a runtime, or if the kernel has no memory for its registration (see epoll_ctl(2)). The next call tries again.
    ///
    /// # Cancel safety
    /// Safe. The listener takes signals only in the poll that reports them.
    ///
    /// # Examples
    /// See [`signal`].
    pub async fn recv(&mut self) -> Option<()> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Polls for a signal that has arrived since the last report.
    ///
    /// The results are those of [`recv`](Signal::recv). If the result is `Pending`, the next signal wakes the waker of
    /// the last poll.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        self.poll_received(cx).map(Result::ok)
    }

    /// Polls for a signal, and keeps the reason if the listener cannot wait.
    pub(super) fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.registration.poll_operation(cx, Direction::Read, WaiterSlot::Seat, |receiver, _| drain(receiver))
    }
}

/// Reads all bytes of the pair, so that many signals cause one wake. Fails with `WouldBlock` if there are none.
fn drain(mut receiver: &UnixStream) -> io::Result<()> {
    let mut bytes = [0; 256];
    if receiver.read(&mut bytes)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    while receiver.read(&mut bytes).is_ok_and(|read| read > 0) {}
    Ok(())
}

impl Drop for Signal {
    fn drop(&mut self) {
        // This must come before the receiving end is closed. Otherwise the handler could write to a socket whose other
        // end is closed. That raises SIGPIPE, which ends a process that has restored the default action.
        unregister(self.id);
    }
}

// A listener has no state that a panic could leave half changed: only its sockets.
impl UnwindSafe for Signal {}
impl RefUnwindSafe for Signal {}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signal").field(&self.kind.0).finish()
    }
}

/// A kind of signal. The kinds are those of signal(7).
///
/// # Examples
/// ```
/// use kittiwake::signal::unix::SignalKind;
///
/// assert_eq!(SignalKind::from_raw(libc::SIGTERM), SignalKind::terminate());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignalKind(i32);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:ident;)*) => {
        impl SignalKind {
            $($(#[$doc])*
            pub const fn $name() -> Self {
                Self(libc::$number)
            })*
        }
    };
}

kinds! {
    /// `SIGALRM`: a timer of alarm(2) or setitimer(2) has expired.
    ///
    /// The default action terminates the process.
    alarm = SIGALRM;
    /// `SIGCHLD`: a child process has terminated, stopped or continued.
    ///
    /// By default the signal is ignored.
    child = SIGCHLD;
    /// `SIGHUP`: the controlling terminal has been closed. By convention it asks a daemon to reload its configuration.
    ///
    /// The default action terminates the process.
    hangup = SIGHUP;
    /// `SIGINT`: an interrupt from the keyboard, which is Ctrl-C.
    ///
    /// The default action terminates the process.
    interrupt = SIGINT;
    /// `SIGIO`: I/O is possible on a descriptor with `O_ASYNC` (see fcntl(2)).
    ///
    /// # Platform notes
    /// On Linux the default action terminates the process. On macOS and the BSDs the signal is ignored by default.
    io = SIGIO;
    /// `SIGPIPE`: a write to a pipe or socket whose other end is closed.
    ///
    /// The default action terminates the process. Rust's standard library ignores the signal from the start of the
    /// program, so the write returns `EPIPE` instead.
    pipe = SIGPIPE;
    /// `SIGQUIT`: a quit from the keyboard, which is Ctrl-\.
    ///
    /// The default action terminates the process with a core dump.
    quit = SIGQUIT;
    /// `SIGTERM`: a termination request. kill(1) and service managers send it.
    ///
    /// The default action terminates the process.
    terminate = SIGTERM;
    /// `SIGUSR1`: a signal with a meaning of the program's own.
    ///
    /// The default action terminates the process.
    user_defined1 = SIGUSR1;
    /// `SIGUSR2`: a signal with a meaning of the program's own.
    ///
    /// The default action terminates the process.
    user_defined2 = SIGUSR2;
    /// `SIGWINCH`: the terminal window has a new size.
    ///
    /// By default the signal is ignored.
    window_change = SIGWINCH;
}

impl SignalKind {
    /// Creates a kind from the system's number for it.
    ///
    /// Every number is accepted here. [`signal`] returns an error for a number that it cannot listen for.
    pub const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// Returns the system's number for this kind.
    pub const fn as_raw_value(self) -> i32 {
        self.0
    }
}
