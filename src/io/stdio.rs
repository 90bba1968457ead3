//! Standard input and output.
//!
//! # Input
//! A pipe, a socket and a terminal are watched by the reactor. They stay blocking: other processes share them, and a
//! shell whose terminal becomes non-blocking fails. So poll(2) is asked before each read, which then takes what is
//! there. Anything else, such as a regular file, cannot be watched. The blocking pool reads it ([`Pooled`]).
//!
//! # Output
//! The blocking pool writes all of it. poll(2) would not do: between it and the write, another task or process may take
//! the room in a pipe, and a terminal takes fewer bytes than poll(2) promises. The write would then block a worker.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;

use super::async_fd::AsyncFd;
use crate::reactor::{Direction, WaiterSlot, poll_now};
use crate::task::{JoinHandle, Work, try_spawn};

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
/// The descriptor cannot be duplicated, or its system calls fail. Outside a runtime a read fails that has to wait, or
/// that reads a file.
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
pub struct Stdin(Input);

/// The standard output of the process.
///
/// It writes to the descriptor itself, without a buffer: flush what `print!` has left in the buffer of
/// [`std::io::stdout`] first.
///
/// # Cancel safety
/// Safe. A `poll_write` that returns `Ready` has queued its bytes for the blocking pool, which writes them even if the
/// stream is dropped. Flush it before the runtime ends: the end of the runtime drops the bytes that no thread of the
/// pool has begun to write.
///
/// Flush it before you drop it, too, if another one follows: the bytes of two of them are written in no certain order.
///
/// # Errors
/// The descriptor cannot be duplicated, or its system calls fail. The error of a write is reported by the next write or
/// flush. Outside a runtime a write fails.
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
pub struct Stdout(Output);

/// The standard error of the process.
///
/// Apart from the descriptor it is like [`Stdout`].
#[derive(Debug)]
pub struct Stderr(Output);

/// The standard input of the process.
///
/// # Examples
/// See [`Stdin`].
pub fn stdin() -> Stdin {
    Stdin(Input::new(io::stdin()))
}

/// The standard output of the process.
///
/// # Examples
/// See [`Stdout`].
pub fn stdout() -> Stdout {
    Stdout(Output::new(io::stdout()))
}

/// The standard error of the process.
pub fn stderr() -> Stderr {
    Stderr(Output::new(io::stderr()))
}

/// A duplicate of the standard input.
#[derive(Debug)]
enum Input {
    Watched(AsyncFd<OwnedFd>),
    Pooled(Pooled),
    /// The stream cannot be duplicated.
    Failed(io::Error),
}

/// A duplicate of an output stream, or the error with which that failed.
#[derive(Debug)]
struct Output(io::Result<Pooled>);

/// A file that the blocking pool reads and writes, one call at a time.
#[derive(Debug)]
struct Pooled {
    file: Arc<File>,
    /// The call that runs in the pool.
    call: Option<JoinHandle<io::Result<Vec<u8>>>>,
    /// Bytes that were read and not taken yet.
    read: Vec<u8>,
}

impl Input {
    fn new(stream: impl AsFd) -> Self {
        match duplicate(stream).and_then(|file| Ok((file.metadata()?.file_type(), file))) {
            Ok((kind, file)) if kind.is_fifo() || kind.is_socket() || io::IsTerminal::is_terminal(&file) => {
                Self::Watched(AsyncFd::unchanged(file.into()))
            }
            Ok((_, file)) => Self::Pooled(Pooled::new(file)),
            Err(error) => Self::Failed(error),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            _ if buf.is_empty() => Poll::Ready(Ok(0)),
            Self::Watched(fd) => fd.registration().poll_operation(cx, Direction::Read, WaiterSlot::Seat, |fd, _| {
                // `WouldBlock` if a blocking call would have to wait.
                if poll_now(fd, PollFlags::IN)?.is_empty() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(rustix::io::read(fd, &mut *buf)?)
            }),
            Self::Pooled(pooled) => pooled.poll_read(cx, buf),
            Self::Failed(error) => Poll::Ready(Err(copied(error))),
        }
    }
}

impl Output {
    fn new(stream: impl AsFd) -> Self {
        Self(duplicate(stream).map(Pooled::new))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            _ if buf.is_empty() => Poll::Ready(Ok(0)),
            Ok(pooled) => pooled.poll_write(cx, buf),
            Err(error) => Poll::Ready(Err(copied(error))),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Ok(pooled) => pooled.poll_idle(cx).map_ok(drop),
            Err(error) => Poll::Ready(Err(copied(error))),
        }
    }
}

impl Pooled {
    fn new(file: File) -> Self {
        Self { file: Arc::new(file), call: None, read: Vec::new() }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.read.is_empty() {
            if self.call.is_none() {
                let length = buf.len().min(POOL_BUF);
                self.start(move |file| {
                    let mut bytes = vec![0; length];
                    let read = read(file, &mut bytes);
                    read.map(|read| bytes.truncate(read)).map(|()| bytes)
                })?;
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
        self.start(move |file| write_all(file, &bytes).map(|()| Vec::new()))?;
        Poll::Ready(Ok(length))
    }

    /// Starts a call in the pool. None may run there.
    fn start(&mut self, call: impl FnOnce(&File) -> io::Result<Vec<u8>> + Send + 'static) -> io::Result<()> {
        let file = self.file.clone();
        self.call = try_spawn(Work::Closure, move || call(&file));
        let why = "this stream needs a thread for blocking work, and there is no kittiwake runtime on this thread to \
                   start it; do so inside kittiwake::block_on, or from a task spawned there";
        if self.call.is_some() { Ok(()) } else { Err(io::Error::other(why)) }
    }

    /// Waits for the call in the pool, if there is one, and returns its result.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        let Some(call) = &mut self.call else { return Poll::Ready(Ok(Vec::new())) };
        let ended = ready!(Pin::new(call).poll(cx));
        self.call = None;
        Poll::Ready(ended?)
    }
}

fn duplicate(stream: impl AsFd) -> io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

/// Reads on a thread of the pool, which may wait.
fn read(mut file: impl Read + AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    repeat(&mut file, PollFlags::IN, |file| file.read(bytes))
}

/// Writes all bytes on a thread of the pool, which may wait.
fn write_all(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match repeat(&mut file, PollFlags::OUT, |file| file.write(bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

/// Makes a call until it is neither interrupted nor would block.
fn repeat<F: AsFd>(
    file: &mut F,
    events: PollFlags,
    mut call: impl FnMut(&mut F) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process has made the stream non-blocking. A sandbox may refuse poll(2), and then this loop would not
            // wait at all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                retry_on_intr(|| poll(&mut [PollFd::new(file, events)], None))?;
            }
            result => return result,
        }
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

// A panic leaves no state of a stream half changed.
impl UnwindSafe for Stdin {}
impl RefUnwindSafe for Stdin {}
impl UnwindSafe for Stdout {}
impl RefUnwindSafe for Stdout {}
impl UnwindSafe for Stderr {}
impl RefUnwindSafe for Stderr {}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A reader whose first call is interrupted and whose second one finds nothing yet.
    struct Late {
        stream: UnixStream,
        calls: usize,
    }

    impl Read for Late {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls {
                1 => Err(io::ErrorKind::Interrupted.into()),
                2 => Err(io::ErrorKind::WouldBlock.into()),
                _ => self.stream.read(bytes),
            }
        }
    }

    impl AsFd for Late {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.stream.as_fd()
        }
    }

    /// An interrupted read is made again, and one that finds nothing waits for more. Neither error reaches the reader.
    #[test]
    fn pooled_read_waits_for_bytes() {
        let (stream, mut writer) = UnixStream::pair().expect("a pair of sockets");
        writer.write_all(b"late").expect("write");
        let mut bytes = [0; 8];
        assert_eq!(read(Late { stream, calls: 0 }, &mut bytes).expect("the bytes"), 4);
        assert_eq!(&bytes[..4], b"late");
    }
}
