//! AsyncFd: any descriptor that the system can watch.
//!
//! # The protocol
//! 1. [`AsyncFd::readable`] waits until the reactor has reported the descriptor, and returns a guard.
//! 2. The caller makes its system call in [`AsyncFdReadyGuard::try_io`]. `WouldBlock` clears the readiness that the guard
//!    has seen.
//! 3. An event that came between 1 and 2 is kept, because the guard keeps the readiness that it was made by. So the next
//!    wait returns at once and loses nothing.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};
use rustix::io::Errno;

use crate::budget;
use crate::reactor::{Direction, Interest, Ready, Registration, Snapshot, WaiterSlot};

/// A descriptor whose readiness tasks can wait for: a pipe, an eventfd, a timerfd, inotify, a terminal, and so on.
///
/// For sockets there are the types of [`net`](crate::net). Regular files and directories cannot be watched: they are
/// read in [`spawn_blocking`](crate::spawn_blocking).
///
/// A descriptor is registered when a task first waits for it, with the runtime that polls the task. One descriptor can be
/// registered once with each worker: two `AsyncFd`s with the same number disturb each other. A duplicate, as
/// `try_clone` makes it, has a number of its own.
///
/// [`AsyncRead`] and [`AsyncWrite`] make the system calls read(2) and write(2), whatever the type of the owner does
/// besides. Closing does nothing: a pipe's other end sees the end when the `AsyncFd` is dropped.
///
/// # Platform notes
/// The events are edges: after one, the caller makes system calls until one says `WouldBlock`. Whether the system can
/// watch a descriptor is told by epoll_ctl(2) or kevent(2).
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncFd, AsyncReadExt, AsyncWriteExt};
///
/// # kittiwake::block_on(async {
/// let (reader, writer) = std::io::pipe()?;
/// let (mut reader, mut writer) = (AsyncFd::new(reader)?, AsyncFd::new(writer)?);
/// let writing = kittiwake::spawn(async move { writer.write_all(b"hello").await });
///
/// let mut text = String::new();
/// reader.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// writing.await?
/// # }).unwrap();
/// ```
pub struct AsyncFd<T: AsFd> {
    registration: Registration<T>,
}

/// Says that a descriptor was reported ready, and lets the caller take that back.
///
/// [`AsyncFd::readable`], [`writable`](AsyncFd::writable) and their `poll_` forms return it, and so does
/// [`ready`](AsyncFd::ready).
#[must_use = "readiness is cleared through `try_io` or `clear_ready`"]
pub struct AsyncFdReadyGuard<'a, T: AsFd> {
    fd: &'a AsyncFd<T>,
    interest: Interest,
    ready: Ready,
    /// The readiness when the guard was made.
    seen: Snapshot,
}

/// The call of [`AsyncFdReadyGuard::try_io`] would have blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TryIoError(());

impl<T: AsFd> AsyncFd<T> {
    /// Takes a descriptor, and makes it non-blocking.
    ///
    /// # Errors
    /// If it cannot be made non-blocking (ioctl(2), `FIONBIO`).
    ///
    /// # Platform notes
    /// Non-blocking is a setting of the open file. All duplicates of the descriptor share it, also those in other
    /// processes. For the standard streams, which a shell shares, there are [`stdin`](super::stdin()),
    /// [`stdout`](super::stdout()) and [`stderr`](super::stderr()).
    ///
    /// # Examples
    /// See [`AsyncFd`].
    pub fn new(inner: T) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&inner, true)?;
        Ok(Self::unchanged(inner))
    }

    /// Takes a descriptor as it is.
    pub(super) fn unchanged(inner: T) -> Self {
        Self { registration: Registration::new(inner) }
    }

    pub(super) fn registration(&self) -> &Registration<T> {
        &self.registration
    }

    /// The descriptor's owner.
    pub fn get_ref(&self) -> &T {
        self.registration.socket()
    }

    /// The descriptor's owner. Do not let it change to another descriptor: the number of the old one stays registered. If
    /// the system gives that number to another socket, dropping this `AsyncFd` takes that socket out of the reactor.
    pub fn get_mut(&mut self) -> &mut T {
        self.registration.socket_mut()
    }

    /// Gives the descriptor's owner back, out of the reactor. The descriptor stays non-blocking.
    pub fn into_inner(self) -> T {
        self.registration.into_socket()
    }

    /// Waits until there is something to read, an end or an error included.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// If the descriptor cannot be registered. `PermissionDenied`: the system cannot watch it, because it is a regular
    /// file or a directory. `AlreadyExists`: the same descriptor is registered already. Outside a runtime it fails too.
    ///
    /// # Examples
    /// ```
    /// use std::io::Read;
    /// use kittiwake::io::AsyncFd;
    ///
    /// async fn read(fd: &AsyncFd<std::io::PipeReader>, buf: &mut [u8]) -> std::io::Result<usize> {
    ///     loop {
    ///         let mut guard = fd.readable().await?;
    ///         match guard.try_io(|fd| fd.get_ref().read(buf)) {
    ///             Ok(result) => return result,
    ///             Err(_would_block) => continue,
    ///         }
    ///     }
    /// }
    /// # kittiwake::block_on(async {
    /// # let (reader, mut writer) = std::io::pipe()?;
    /// # std::io::Write::write_all(&mut writer, b"hello")?;
    /// # assert_eq!(read(&AsyncFd::new(reader)?, &mut [0; 16]).await?, 5);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, T>> {
        self.ready(Interest::READABLE).await
    }

    /// Waits until something can be written, or the other end has gone.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// As for [`readable`](AsyncFd::readable).
    pub async fn writable(&self) -> io::Result<AsyncFdReadyGuard<'_, T>> {
        self.ready(Interest::WRITABLE).await
    }

    /// Waits until a direction of `interest` is ready.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// As for [`readable`](AsyncFd::readable).
    pub async fn ready(&self, interest: Interest) -> io::Result<AsyncFdReadyGuard<'_, T>> {
        let (ready, seen) = self.registration.ready(interest).await.map_err(explained)?;
        Ok(AsyncFdReadyGuard { fd: self, interest, ready, seen })
    }

    /// Polls whether there is something to read.
    ///
    /// The results are those of [`readable`](AsyncFd::readable). If the result is `Pending`, the waker of the last poll is
    /// woken.
    ///
    /// # Errors
    /// As for [`readable`](AsyncFd::readable).
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<AsyncFdReadyGuard<'_, T>>> {
        self.poll_ready(cx, Direction::Read)
    }

    /// Polls whether something can be written.
    ///
    /// The results are those of [`writable`](AsyncFd::writable). If the result is `Pending`, the waker of the last poll is
    /// woken.
    ///
    /// # Errors
    /// As for [`readable`](AsyncFd::readable).
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<AsyncFdReadyGuard<'_, T>>> {
        self.poll_ready(cx, Direction::Write)
    }

    /// Makes a system call on the descriptor, once, and without waiting. `WouldBlock` clears the directions of
    /// `interest`.
    ///
    /// # Errors
    /// Those of `call`.
    pub fn try_io<R>(&self, interest: Interest, call: impl FnOnce(&T) -> io::Result<R>) -> io::Result<R> {
        self.registration.try_io(interest, |inner, _| call(inner))
    }

    /// Makes a system call on the descriptor, and waits while it would block.
    ///
    /// `call` is called again after each event, until its result is neither `WouldBlock` nor `Interrupted`.
    ///
    /// # Cancel safety
    /// As safe as `call`: its result is returned in the poll that has called it.
    ///
    /// # Errors
    /// Those of `call`, and those of [`readable`](AsyncFd::readable).
    ///
    /// # Examples
    /// ```
    /// use std::io::Read;
    /// use kittiwake::io::{AsyncFd, Interest};
    ///
    /// # kittiwake::block_on(async {
    /// let (reader, writer) = std::io::pipe()?;
    /// let reader = AsyncFd::new(reader)?;
    /// drop(writer);
    /// let mut buf = [0; 16];
    /// let length = reader.async_io(Interest::READABLE, |mut pipe| pipe.read(&mut buf)).await?;
    /// assert_eq!(length, 0);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    pub async fn async_io<R>(&self, interest: Interest, call: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.registration.async_io(interest, call).await.map_err(explained)?
    }

    fn poll_ready(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<io::Result<AsyncFdReadyGuard<'_, T>>> {
        let seen = ready!(self.registration.poll_reported(cx, direction, WaiterSlot::Seat)).map_err(explained)?;
        let interest = Interest::from(direction);
        let ready = Ready::reported(interest, seen).expect("the direction was reported");
        Poll::Ready(Ok(AsyncFdReadyGuard { fd: self, interest, ready, seen }))
    }
}

impl<T: AsFd> AsyncFdReadyGuard<'_, T> {
    /// Makes a system call on the descriptor. If it would block, clears the readiness that this guard has seen, as
    /// [`clear_ready`](AsyncFdReadyGuard::clear_ready) does.
    ///
    /// # Errors
    /// [`TryIoError`] if `call` says `WouldBlock`. Any other result of `call` is returned as it is, inside `Ok`.
    ///
    /// # Examples
    /// See [`AsyncFd::readable`].
    pub fn try_io<R>(&mut self, call: impl FnOnce(&AsyncFd<T>) -> io::Result<R>) -> Result<io::Result<R>, TryIoError> {
        match call(self.fd) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.clear_ready();
                Err(TryIoError(()))
            }
            result => Ok(result),
        }
    }

    /// Clears the readiness that this guard has seen. The next wait returns after the next event.
    ///
    /// An event that has come since the guard was made is kept. If the guard is for both directions, one that poll(2)
    /// finds ready stays ready: a call that would block says nothing of the other direction. Call it only after a system call has said `WouldBlock`:
    /// the system reports no second event for what is there already.
    pub fn clear_ready(&mut self) {
        // An error means that the backend cannot be armed again. The next wait arms it, or reports the error.
        let _ = self.fd.registration.clear_ready(self.interest, self.seen);
    }

    /// The directions that were ready.
    pub fn readiness(&self) -> Ready {
        self.ready
    }

    /// The descriptor.
    pub fn get_ref(&self) -> &AsyncFd<T> {
        self.fd
    }
}

/// Adds to an error of the registration what it means for a descriptor.
fn explained(error: io::Error) -> io::Error {
    let why = match (error.kind(), error.raw_os_error()) {
        (_, Some(libc::EPERM)) => {
            "the system cannot watch this descriptor, because it is a regular file or a directory, which never blocks; \
             read it in kittiwake::spawn_blocking"
        }
        (io::ErrorKind::AlreadyExists, _) => {
            "this descriptor is registered already: use one AsyncFd for it, or duplicate it"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{why}: {error}"))
}

/// Implements the traits of reading and writing for a type that has the field `registration`.
macro_rules! impl_io {
    ($type:ty) => {
        impl<T: AsFd> AsyncRead for $type {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                if buf.is_empty() {
                    return Poll::Ready(Ok(0));
                }
                let read = |fd: &T, _| moved(rustix::io::read(fd, &mut *buf));
                let polled = self.registration.poll_operation(cx, Direction::Read, WaiterSlot::Seat, read);
                polled.map(|ended| ended.map_err(explained)?)
            }
        }

        impl<T: AsFd> AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                if buf.is_empty() {
                    return Poll::Ready(Ok(0));
                }
                let write = |fd: &T, _| moved(rustix::io::write(fd, buf));
                let polled = self.registration.poll_operation(cx, Direction::Write, WaiterSlot::Seat, write);
                polled.map(|ended| ended.map_err(explained)?)
            }

            /// Does nothing: what was written is the kernel's.
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            /// Does nothing: the descriptor is closed when its owner is dropped.
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
    };
}

impl_io!(AsyncFd<T>);
impl_io!(&AsyncFd<T>);

/// Counts what a transfer has moved, as work. The outer error leaves the operation in its loop. The inner one is the
/// system call's, and ends the operation.
fn moved(transferred: rustix::io::Result<usize>) -> io::Result<io::Result<usize>> {
    match transferred {
        Ok(bytes) => {
            budget::count_moved(bytes);
            Ok(Ok(bytes))
        }
        Err(error @ (Errno::AGAIN | Errno::INTR)) => Err(error.into()),
        Err(error) => Ok(Err(error.into())),
    }
}

impl<T: AsFd> AsFd for AsyncFd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

impl<T: AsFd> AsRawFd for AsyncFd<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

// A panic leaves no state of a registration half changed.
impl<T: AsFd + UnwindSafe> UnwindSafe for AsyncFd<T> {}
impl<T: AsFd + RefUnwindSafe> RefUnwindSafe for AsyncFd<T> {}

impl<T: AsFd + fmt::Debug> fmt::Debug for AsyncFd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncFd").field(self.get_ref()).finish()
    }
}

impl<T: AsFd> fmt::Debug for AsyncFdReadyGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncFdReadyGuard").field("ready", &self.ready).finish_non_exhaustive()
    }
}

impl fmt::Display for TryIoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the system call would block")
    }
}

impl std::error::Error for TryIoError {}
