//! Standard input and output.
//!
//! # Two ways
//! A pipe, a socket and a terminal are watched by the reactor. They stay blocking: other processes share them, and a
//! shell whose terminal becomes non-blocking fails. So poll(2) is asked before each system call, and one call writes at
//! most [`PIPE_BUF`] bytes, which fit if poll(2) says so.
//!
//! Anything else, such as a regular file, cannot be watched. The blocking pool reads and writes it ([`Pooled`]).

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::async_fd::AsyncFd;
use crate::reactor::{Direction, WaiterSlot};
use crate::task::{JoinHandle, spawn_blocking};

/// As many bytes as a pipe takes at once if it takes any (pipe(7)).
const PIPE_BUF: usize = 4096;

/// The most bytes that the pool reads or writes in one go.
const POOL_BUF: usize = 64 * 1024;

/// The standard input of the process.
///
/// It reads the descriptor itself, and not the buffer of [`std::io::stdin`]: use one of the two.
///
/// # Cancel safety
/// A read takes bytes only in the poll that returns them, or keeps them for the next read.
///
/// # Errors
/// The descriptor cannot be duplicated, or its system calls fail. Outside a runtime a read that has to wait fails.
///
/// # Platform notes
/// If another process reads the same terminal or pipe at the same moment, a read may block its worker until more comes.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, stdin};
///
/// async fn input() -> std::io::Result<String> {
///     let mut text = String::new();
///     stdin().read_to_string(&mut text).await?;
///     Ok(text)
/// }
/// # let _ = input();
/// ```
#[derive(Debug)]
pub struct Stdin(Stdio);

/// The standard output of the process.
///
/// It writes to the descriptor itself, without a buffer: flush what `print!` has left in the buffer of
/// [`std::io::stdout`] first.
///
/// # Cancel safety
/// A `poll_write` that returns `Ready` has written its bytes, or they are being written by a thread of the blocking pool.
/// Flush it before the runtime ends.
///
/// # Errors
/// As for [`Stdin`]. The error of a write by the pool is reported by the next write or flush.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncWriteExt, stdout};
///
/// # kittiwake::block_on(async {
/// let mut out = stdout();
/// out.write_all(b"hello\n").await?;
/// out.flush().await
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Stdout(Stdio);

/// The standard error of the process.
///
/// Apart from the descriptor it is like [`Stdout`].
#[derive(Debug)]
pub struct Stderr(Stdio);

/// The standard input of the process.
///
/// # Examples
/// See [`Stdin`].
pub fn stdin() -> Stdin {
    Stdin(Stdio::new(io::stdin()))
}

/// The standard output of the process.
///
/// # Examples
/// See [`Stdout`].
pub fn stdout() -> Stdout {
    Stdout(Stdio::new(io::stdout()))
}

/// The standard error of the process.
pub fn stderr() -> Stderr {
    Stderr(Stdio::new(io::stderr()))
}

/// A duplicate of a standard stream.
#[derive(Debug)]
enum Stdio {
    Watched(AsyncFd<OwnedFd>),
    Pooled(Pooled),
    /// The stream cannot be duplicated.
    Failed(io::Error),
}

/// A file that the blocking pool reads and writes, one call at a time.
#[derive(Debug)]
struct Pooled {
    state: State,
    /// Bytes that were read and not taken yet.
    read: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Idle(File),
    Busy(JoinHandle<(File, io::Result<Vec<u8>>)>),
    /// The pool's thread could not start or has panicked.
    Failed,
}

impl Stdio {
    fn new(stream: impl AsFd) -> Self {
        let duplicate = stream.as_fd().try_clone_to_owned().map(File::from);
        match duplicate.and_then(|file| Ok((file.metadata()?.file_type(), file))) {
            Ok((kind, file)) if kind.is_fifo() || kind.is_socket() || io::IsTerminal::is_terminal(&file) => {
                Self::Watched(AsyncFd::unchanged(file.into()))
            }
            Ok((_, file)) => Self::Pooled(Pooled { state: State::Idle(file), read: Vec::new() }),
            Err(error) => Self::Failed(error),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            _ if buf.is_empty() => Poll::Ready(Ok(0)),
            Self::Watched(fd) => fd.registration().poll_operation(cx, Direction::Read, WaiterSlot::Seat, |fd, _| {
                check_ready(fd, PollFlags::IN)?;
                Ok(rustix::io::read(fd, &mut *buf)?)
            }),
            Self::Pooled(pooled) => pooled.poll_read(cx, buf),
            Self::Failed(error) => Poll::Ready(Err(copied(error))),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            _ if buf.is_empty() => Poll::Ready(Ok(0)),
            Self::Watched(fd) => fd.registration().poll_operation(cx, Direction::Write, WaiterSlot::Seat, |fd, _| {
                check_ready(fd, PollFlags::OUT)?;
                Ok(rustix::io::write(fd, &buf[..buf.len().min(PIPE_BUF)])?)
            }),
            Self::Pooled(pooled) => pooled.poll_write(cx, buf),
            Self::Failed(error) => Poll::Ready(Err(copied(error))),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Watched(_) => Poll::Ready(Ok(())),
            Self::Pooled(pooled) => pooled.poll_idle(cx).map_ok(drop),
            Self::Failed(error) => Poll::Ready(Err(copied(error))),
        }
    }
}

impl Pooled {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.read.is_empty() {
            if let State::Idle(_) = self.state {
                let length = buf.len().min(POOL_BUF);
                self.start(move |mut file| {
                    let mut bytes = vec![0; length];
                    let read = file.read(&mut bytes);
                    read.map(|read| bytes.truncate(read)).map(|()| bytes)
                });
            }
            self.read = ready!(self.poll_idle(cx))?;
        }
        let taken = buf.len().min(self.read.len());
        buf[..taken].copy_from_slice(&self.read[..taken]);
        self.read.drain(..taken);
        Poll::Ready(Ok(taken))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_idle(cx))?;
        let bytes = buf[..buf.len().min(POOL_BUF)].to_vec();
        let length = bytes.len();
        self.start(move |mut file| file.write_all(&bytes).map(|()| Vec::new()));
        Poll::Ready(Ok(length))
    }

    /// Starts a call in the pool. The file must be idle.
    fn start(&mut self, call: impl FnOnce(&File) -> io::Result<Vec<u8>> + Send + 'static) {
        if let State::Idle(file) = mem::replace(&mut self.state, State::Failed) {
            self.state = State::Busy(spawn_blocking(move || {
                let result = call(&file);
                (file, result)
            }));
        }
    }

    /// Waits for the call in the pool, if there is one, and returns its result.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        match &mut self.state {
            State::Idle(_) => Poll::Ready(Ok(Vec::new())),
            State::Busy(call) => {
                let ended = ready!(Pin::new(call).poll(cx));
                self.state = State::Failed;
                let (file, result) = ended?;
                self.state = State::Idle(file);
                Poll::Ready(result)
            }
            State::Failed => Poll::Ready(Err(io::Error::other("an earlier call on this stream has not returned it"))),
        }
    }
}

/// `WouldBlock` if a blocking call would have to wait.
fn check_ready(fd: &OwnedFd, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, flags)], Some(&Timespec::default()))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

fn copied(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

impl AsyncRead for Stdin {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll_read(cx, buf)
    }
}

/// Implements `AsyncWrite` for an output stream.
macro_rules! impl_write {
    ($type:ty) => {
        impl AsyncWrite for $type {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                self.0.poll_write(cx, buf)
            }

            /// Waits until the pool has written its bytes.
            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.0.poll_flush(cx)
            }

            /// Flushes. The stream stays open, because it is the process's.
            fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_flush(cx)
            }
        }
    };
}

impl_write!(Stdout);
impl_write!(Stderr);
