//! The signals of Unix systems.
//!
//! Read [`signal`](super)'s page first: listening for a kind takes its default action away for good.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::task::{Context, Poll, ready};

use signal_hook::SigId;
use signal_hook::consts::FORBIDDEN;
use signal_hook::low_level::{pipe, unregister};

use crate::reactor::{Direction, Registration};

/// Listens for signals of `kind`, from this call on.
///
/// It can be called anywhere; a runtime is needed to wait. Each call makes a listener of its own, which takes two descriptors.
///
/// # Errors
/// `InvalidInput` for signals that cannot be listened for: `SIGKILL` and `SIGSTOP`, by the system's rules; `SIGILL`,
/// `SIGFPE` and `SIGSEGV`, after which nothing can go on; and numbers that are no signal. Else what the system says when it
/// has no descriptors left.
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
    let SignalKind(number) = kind;
    // signal-hook panics at these.
    if FORBIDDEN.contains(&number) {
        let why =
            format!("signal {number} cannot be listened for: the system does not allow it, or nothing can follow it");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    // The handler writes with MSG_DONTWAIT.
    let id = pipe::register(number, sender)
        .map_err(|error| io::Error::new(error.kind(), format!("signal {number} cannot be listened for: {error}")))?;
    Ok(Signal { id, kind, registration: Registration::new(receiver) })
}

/// Hears signals of one kind.
///
/// Made by [`signal`]. It may be moved between tasks, threads and runtimes, and keeps its signals meanwhile.
pub struct Signal {
    /// What the handler has of it: the other end of the pair.
    id: SigId,
    kind: SignalKind,
    registration: Registration<UnixStream>,
}

impl Signal {
    /// Waits until there was a signal since the last time, or since this listener was made.
    ///
    /// Signals that came in the meantime count as one. `None` means that this cannot wait: outside a runtime, or without
    /// memory in the kernel. The next call tries again.
    ///
    /// # Cancel safety
    /// Safe: signals are taken only in the poll that reports them.
    ///
    /// # Examples
    /// See [`signal`].
    pub async fn recv(&mut self) -> Option<()> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`recv`](Signal::recv), for futures written by hand. The last poll's waker is woken.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        self.poll_heard(cx).map(Result::ok)
    }

    pub(super) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The first error may be the end of the runtime in which this waited. It goes on in the one it is polled in now.
        match ready!(self.poll_drain(cx)) {
            Err(_) => self.poll_drain(cx),
            heard => Poll::Ready(heard),
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.registration.poll_transfer(cx, Direction::Read, None, drain).map_ok(drop)
    }
}

/// Reads all there is, so that a storm of signals wakes once. `WouldBlock` if there is nothing.
fn drain(mut receiver: &UnixStream) -> io::Result<usize> {
    let mut bytes = [0; 256];
    let mut heard = 0;
    loop {
        match receiver.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => heard += read,
            Err(_) if heard > 0 => return Ok(heard),
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        // Before our end is closed: the handler would write to nobody, which raises another signal.
        unregister(self.id);
    }
}

// What a panic interrupts is a system call or none, as for a socket.
impl UnwindSafe for Signal {}
impl RefUnwindSafe for Signal {}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signal").field(&self.kind.0).finish()
    }
}

/// A kind of signal.
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
    /// `SIGALRM`: a timer of the process has run out. By default it ends the process.
    alarm = SIGALRM;
    /// `SIGCHLD`: a child process has ended or stopped. By default it is ignored.
    child = SIGCHLD;
    /// `SIGHUP`: the terminal is gone; for servers, by custom, that the configuration is to be read again. By default it ends
    /// the process.
    hangup = SIGHUP;
    /// `SIGINT`: Ctrl-C. By default it ends the process.
    interrupt = SIGINT;
    /// `SIGIO`: a descriptor is ready that asked for this. By default it ends the process, or is ignored.
    io = SIGIO;
    /// `SIGPIPE`: a write to a pipe or socket that nobody reads. Rust programs ignore it, and get an error instead.
    pipe = SIGPIPE;
    /// `SIGQUIT`: Ctrl-\. By default it ends the process with a core dump.
    quit = SIGQUIT;
    /// `SIGTERM`: the process is asked to end, by `kill` or a service manager. By default it ends the process.
    terminate = SIGTERM;
    /// `SIGUSR1`: means what the program says it does. By default it ends the process.
    user_defined1 = SIGUSR1;
    /// `SIGUSR2`: means what the program says it does. By default it ends the process.
    user_defined2 = SIGUSR2;
    /// `SIGWINCH`: the terminal has another size. By default it is ignored.
    window_change = SIGWINCH;
}

impl SignalKind {
    /// The kind of this number. Whether it can be listened for, [`signal`] says.
    pub const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// The system's number.
    pub const fn as_raw_value(self) -> i32 {
        self.0
    }
}
