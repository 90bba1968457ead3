//! Methods: the public methods and traits that several socket types share, as macros.
//!
//! A socket type is a newtype. [`impl_stream`], [`impl_datagram`] and [`impl_listener`] define the private methods that
//! the other macros call: `registration`, `socket` and `into_socket`, which return the socket of std's or of mio's, and
//! `caller`, which makes system calls of the user's own. Streams and datagram sockets also get `from_nonblocking`. A
//! stream has the field `stream`, a [`Stream`](super::stream::Stream), and a datagram socket the field `datagram`, a
//! [`Datagram`](super::datagram::Datagram).
//!
//! The examples of [`impl_stream`] get `$pair`, code that makes two connected streams.

/// Implements waiting for readiness, and system calls of the user's own. With `read`, only what a listener has.
macro_rules! impl_readiness {
    ($type:ident) => {
        impl_readiness!(read $type);

        impl $type {
            /// Waits until something can be written, or the socket has failed.
            ///
            /// It may return although nothing can be written. Then a `try_` method says `WouldBlock`, and the next call
            /// waits.
            ///
            /// # Cancel safety
            /// Safe.
            ///
            /// # Errors
            /// As for [`readable`](Self::readable).
            ///
            /// # Examples
            /// See [the module](crate::net#readiness).
            pub async fn writable(&self) -> io::Result<()> {
                self.registration().reported(Direction::Write).await.map(drop)
            }

            /// Polls whether something can be written.
            ///
            /// The results are those of [`writable`](Self::writable). If the result is `Pending`, the waker of the last
            /// poll is woken. Wakers of earlier polls are woken too, or at once if there are many.
            ///
            /// # Errors
            /// As for [`readable`](Self::readable).
            pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.registration().poll_reported(cx, Direction::Write, WaiterSlot::Seat).map_ok(drop)
            }
        }
    };
    (read $type:ident) => {
        impl $type {
            /// Waits until there is something to take from the socket, an end or an error included.
            ///
            /// It may return when there is nothing: then a `try_` method says `WouldBlock`, and the next call waits.
            ///
            /// # Cancel safety
            /// Safe.
            ///
            /// # Errors
            /// If the socket cannot be registered: no runtime runs on this thread, or epoll_ctl(2) fails.
            ///
            /// # Examples
            /// See [the module](crate::net#readiness).
            pub async fn readable(&self) -> io::Result<()> {
                self.registration().reported(Direction::Read).await.map(drop)
            }

            /// Polls whether there is something to take from the socket.
            ///
            /// The results are those of [`readable`](Self::readable). If the result is `Pending`, the waker of the last
            /// poll is woken. Wakers of earlier polls are woken too, or at once if there are many.
            ///
            /// # Errors
            /// As for [`readable`](Self::readable).
            pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.registration().poll_reported(cx, Direction::Read, WaiterSlot::Seat).map_ok(drop)
            }

            /// Waits until a direction of `interest` is ready, and returns the directions that are.
            ///
            /// It may report a direction in which the next system call would block.
            ///
            /// # Cancel safety
            /// Safe.
            ///
            /// # Errors
            /// As for [`readable`](Self::readable).
            ///
            /// # Examples
            /// See [`Ready`].
            pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
                self.registration().ready(interest).await.map(|(ready, _)| ready)
            }

            /// Makes a system call of the caller's own, once, and without waiting.
            ///
            /// `call` makes a non-blocking system call on this socket. `interest` says for what the call may have to
            /// wait. If `call` fails with `WouldBlock`, these directions count as not ready, and
            /// [`readable`](Self::readable), [`ready`](Self::ready) and the like wait for the next event. After a
            /// system call that bypasses this method they would return at once, again and again. If `interest` is both
            /// directions, one that poll(2) finds ready stays ready.
            ///
            /// # Errors
            /// Those of `call`.
            ///
            /// # Examples
            /// See [the module](crate::net#readiness).
            pub fn try_io<R>(&self, interest: Interest, call: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
                self.caller().try_io(interest, |_, _| call())
            }

            /// Makes a system call of your own, and waits while it would block.
            ///
            /// `call` makes a non-blocking system call on this socket. It is called again after each event, and now and
            /// then without one, until its result is neither `WouldBlock` nor `Interrupted`. `interest` says for what
            /// the call may have to wait.
            ///
            /// # Cancel safety
            /// As safe as `call`: its result is returned in the poll that has called it.
            ///
            /// # Errors
            /// Those of `call`, and those of [`readable`](Self::readable).
            ///
            /// # Examples
            /// See [the module](crate::net#readiness).
            pub async fn async_io<R>(
                &self,
                interest: Interest,
                mut call: impl FnMut() -> io::Result<R>,
            ) -> io::Result<R> {
                self.caller().async_io(interest, |_| call()).await?
            }

            /// The error that is pending on the socket (`SO_ERROR`), which this takes away.
            ///
            /// # Errors
            /// See getsockopt(2).
            pub fn take_error(&self) -> io::Result<Option<io::Error>> {
                self.socket().take_error()
            }
        }
    };
}
pub(super) use impl_readiness;

/// Implements the traits of a descriptor.
macro_rules! impl_fd {
    ($type:ident) => {
        impl AsFd for $type {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.socket().as_fd()
            }
        }

        impl AsRawFd for $type {
            fn as_raw_fd(&self) -> RawFd {
                self.socket().as_raw_fd()
            }
        }

        /// Takes the socket out of its reactor. It stays non-blocking.
        impl From<$type> for OwnedFd {
            fn from(socket: $type) -> Self {
                socket.into_socket().into()
            }
        }

        // A panic leaves no state of a socket half changed.
        impl UnwindSafe for $type {}
        impl RefUnwindSafe for $type {}

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.socket().fmt(f)
            }
        }
    };
}
pub(super) use impl_fd;

/// Implements the conversions between a socket and std's, by the private method `from_nonblocking`.
macro_rules! impl_std {
    ($type:ident, $std:ty) => {
        impl $type {
            /// Takes a socket of std's, and makes it non-blocking.
            ///
            /// # Errors
            /// If it cannot be made non-blocking.
            pub fn from_std(socket: $std) -> io::Result<Self> {
                socket.set_nonblocking(true)?;
                Ok(Self::from_nonblocking(socket))
            }

            /// Gives the socket back as one of std's, out of the reactor and blocking again. Every duplicate of its
            /// descriptor becomes blocking too, because duplicates share that setting.
            ///
            /// # Errors
            /// If it cannot be made blocking.
            pub fn into_std(self) -> io::Result<$std> {
                let socket = self.into_socket();
                socket.set_nonblocking(false)?;
                Ok(socket)
            }
        }

        impl TryFrom<$std> for $type {
            type Error = io::Error;

            /// As `from_std`.
            fn try_from(socket: $std) -> io::Result<Self> {
                Self::from_std(socket)
            }
        }
    };
}
pub(super) use impl_std;

/// Implements reading, writing, shutting down and timeouts of a stream.
macro_rules! impl_stream {
    ($type:ident, $std:ty, $pair:expr) => {
        impl_io!(read for $type, stream);
        impl_io!(write for $type, stream);
        impl_io!(read for &$type, stream);
        impl_io!(write for &$type, stream);

        impl $type {
            /// Reads without taking the bytes away: the next read gets them again.
            ///
            /// Waits until there is something, and returns `Ok(0)` at the end of the stream. If the socket has a peek
            /// offset (`SO_PEEK_OFF`, socket(7)), it waits for bytes beyond the offset.
            ///
            /// # Cancel safety
            /// Safe: nothing is taken.
            ///
            /// # Errors
            /// As for reading.
            ///
            /// # Examples
            /// ```
            /// # kittiwake::block_on(async {
            #[doc = concat!("# let (stream, peer) = ", $pair, ";")]
            /// peer.try_write(b"hello")?;
            /// let mut buf = [0; 16];
            /// assert_eq!(stream.peek(&mut buf).await?, 5);
            /// assert_eq!(stream.try_read(&mut buf)?, 5);
            /// # std::io::Result::Ok(())
            /// # }).unwrap();
            /// ```
            pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.stream.peek(buf).await
            }

            /// Polls for bytes, and does not take them away.
            ///
            /// The results are those of [`peek`](Self::peek). If the result is `Pending`, the waker of the last poll is
            /// woken. Wakers of earlier polls are woken too, or at once if there are many.
            ///
            /// # Errors
            /// As for reading.
            pub fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                self.stream.poll_peek(cx, WaiterSlot::Seat, buf)
            }

            /// Reads what is there, without waiting.
            ///
            /// # Errors
            /// `WouldBlock` if nothing is there; else as for reading.
            pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.stream.try_read(buf)
            }

            /// Reads what is there into several buffers, one after the other, without waiting.
            ///
            /// # Errors
            /// As for [`try_read`](Self::try_read).
            ///
            /// # Examples
            /// ```
            /// use std::io::IoSliceMut;
            ///
            /// # kittiwake::block_on(async {
            #[doc = concat!("# let (stream, peer) = ", $pair, ";")]
            /// peer.try_write(b"hello")?;
            /// let (mut first, mut rest) = ([0; 1], [0; 16]);
            /// let mut bufs = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut rest)];
            /// assert_eq!(stream.try_read_vectored(&mut bufs)?, 5);
            /// assert_eq!((&first, &rest[..4]), (b"h", &b"ello"[..]));
            /// # std::io::Result::Ok(())
            /// # }).unwrap();
            /// ```
            pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                self.stream.try_read_vectored(bufs)
            }

            /// Writes what can be written, without waiting.
            ///
            /// # Errors
            /// `WouldBlock` if nothing can; else as for writing.
            pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
                self.stream.try_write(buf)
            }

            /// Writes what can be written of several buffers, one after the other, without waiting.
            ///
            /// # Errors
            /// As for [`try_write`](Self::try_write).
            pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
                self.stream.try_write_vectored(bufs)
            }

            /// Waits until the peer has ended its writing side, or the connection has failed. Takes no byte.
            ///
            /// A server awaits this beside a request that takes long, to notice that its client has gone. It also
            /// returns if the peer only writes no more and still reads, and after a [`shutdown`](Self::shutdown) of our
            /// reading half. Bytes that were sent before may still be unread.
            ///
            /// # Cancel safety
            /// Safe: nothing is taken.
            ///
            /// # Errors
            /// As for [`readable`](Self::readable). Also the error of poll(2), which a sandbox may refuse.
            ///
            /// # Platform notes
            /// Asks poll(2) after each event for `POLLRDHUP` on Linux, Android, FreeBSD and illumos, and for `POLLHUP`
            /// elsewhere.
            ///
            /// # Examples
            /// ```
            /// use kittiwake::io::AsyncReadExt;
            ///
            /// # kittiwake::block_on(async {
            #[doc = concat!("# let (mut stream, peer) = ", $pair, ";")]
            /// peer.try_write(b"unread")?;
            /// drop(peer);
            /// stream.closed().await?;
            /// let mut text = String::new();
            /// stream.read_to_string(&mut text).await?;
            /// assert_eq!(text, "unread");
            /// # std::io::Result::Ok(())
            /// # }).unwrap();
            /// ```
            pub async fn closed(&self) -> io::Result<()> {
                self.stream.closed().await
            }

            /// Shuts down the reading half, the writing half, or both.
            ///
            /// After `Write` the peer reads to an end, and writing gives `BrokenPipe`. After `Read`, reading returns
            /// what is there and then ends. To do it again, or after the connection has ended, is no error.
            ///
            /// # Errors
            /// See shutdown(2).
            pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                self.stream.shutdown(how)
            }

            /// Ends a conversation without a reset: shuts down the writing half, then reads and throws away at most
            /// `limit` bytes, until the peer closes its side.
            ///
            /// A connection that is dropped while it has unread input is reset by the kernel, and a peer that gets a
            /// reset may lose what it has not read yet: our last reply. So a server that stops reading early, after an
            /// error reply say, ends with this. Returns `true` if the peer has closed its side, and `false` once
            /// `limit` bytes were read. A peer that just keeps its side open makes this wait: bound it in time too, by
            /// a [`timeout`](crate::time::timeout).
            ///
            /// # Cancel safety
            /// Safe: what was read was to be thrown away.
            ///
            /// # Errors
            /// As for reading and for [`shutdown`](Self::shutdown).
            ///
            /// # Examples
            /// ```
            /// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
            ///
            /// # kittiwake::block_on(async {
            #[doc = concat!("# let (mut stream, mut peer) = ", $pair, ";")]
            /// let client = kittiwake::spawn(async move {
            ///     peer.write_all(&[0; 10_000]).await?;
            ///     let mut reply = String::new();
            ///     peer.read_to_string(&mut reply).await?;
            ///     std::io::Result::Ok(reply)
            /// });
            /// stream.write_all(b"too long").await?;
            /// assert!(stream.drain(1_000_000).await?);
            /// drop(stream);
            /// assert_eq!(client.await.unwrap()?, "too long");
            /// # std::io::Result::Ok(())
            /// # }).unwrap();
            /// ```
            pub async fn drain(&self, limit: u64) -> io::Result<bool> {
                self.stream.drain(limit).await
            }

            /// How long a read may wait; `None`, the default, is for ever.
            pub fn read_timeout(&self) -> Option<Duration> {
                self.stream.limit(Direction::Read, Limit::Operation)
            }

            /// Sets how long a read may wait before it fails with `TimedOut`.
            ///
            /// The time begins when a poll of a read has to wait. It ends when a read is ready, fails or times out, and
            /// begins anew with the next poll that has to wait. It goes on if the future of the read is dropped. So a
            /// read that is begun anew in each round of a loop, beside other things, times out as a single one would.
            /// Bytes that are there, and the end of the stream, are always read, however late. After `TimedOut` the
            /// stream is as good as before, and nothing is lost.
            ///
            /// The limit bounds reads through `AsyncRead`, and `drain`. It does not bound `peek` and `readable`. It is
            /// for all tasks that read the stream. If one of them is waiting already, its time begins now. A busy
            /// stream does not arm a timer for each read, as a [`timeout`](crate::time::timeout) around each would.
            ///
            /// # Errors
            /// `InvalidInput` for zero. In another executor, outside a runtime, the runtime in which the stream last
            /// waited under a timeout goes on to time it. A read that has to wait there fails if there is no such
            /// runtime, or it has ended.
            ///
            /// # Examples
            /// Each round of this loop drops a read that waits. The 10 ms run from the first of them, and a tick does
            /// not begin them anew.
            /// ```
            /// use kittiwake::future;
            /// use kittiwake::io::AsyncReadExt;
            /// use kittiwake::time::{Duration, interval};
            ///
            /// # kittiwake::block_on(async {
            #[doc = concat!("# let (mut stream, _silent) = ", $pair, ";")]
            /// stream.set_read_timeout(Some(Duration::from_millis(10)))?;
            /// let mut tick = interval(Duration::from_millis(1));
            /// let mut buf = [0; 64];
            /// let error = loop {
            ///     // As `select!`: the first that is ready counts, and the other is dropped.
            ///     let read = async { Some(stream.read(&mut buf).await) };
            ///     let ticked = async { tick.tick().await; None };
            ///     match future::or(read, ticked).await {
            ///         None => {}
            ///         Some(Ok(_)) => panic!("the peer sends nothing"),
            ///         Some(Err(error)) => break error,
            ///     }
            /// };
            /// assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            /// # std::io::Result::Ok(())
            /// # }).unwrap();
            /// ```
            pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.stream.set_limit(Limit::Operation, &[Direction::Read], timeout)
            }

            /// How long a write may wait; `None`, the default, is for ever.
            pub fn write_timeout(&self) -> Option<Duration> {
                self.stream.limit(Direction::Write, Limit::Operation)
            }

            /// Sets how long a write may wait before it fails with `TimedOut`.
            ///
            /// As [`set_read_timeout`](Self::set_read_timeout), for what goes through `AsyncWrite`. Each `poll_write`
            /// that writes something is an operation of its own: a `write_all` may take this time for every part that
            /// the peer takes, and when it fails some may have been written.
            ///
            /// # Errors
            /// As for [`set_read_timeout`](Self::set_read_timeout).
            pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.stream.set_limit(Limit::Operation, &[Direction::Write], timeout)
            }

            /// How long the stream may be idle; `None`, the default, is for ever.
            pub fn idle_timeout(&self) -> Option<Duration> {
                self.stream.limit(Direction::Read, Limit::Idle)
            }

            /// Sets how long the stream may be idle before a read or a write that waits fails with `TimedOut`.
            ///
            /// As [`set_read_timeout`](Self::set_read_timeout), for both directions. But each read *and* write that
            /// moves bytes pushes the time of the other back: a task that waits for requests is left in peace while
            /// another still sends a long reply. A system call of your own in [`async_io`](Self::async_io) or
            /// [`try_io`](Self::try_io) that returns `Ok` counts as a transfer in the directions of its interest.
            ///
            /// A read and a write that wait are timed separately. Before one of them fails, the other one tries again,
            /// and so does a call in `async_io`, but not a task that waits in [`writable`](Self::writable). If the
            /// future of the other one was dropped, the failure may come a second late. The limit ends reads and
            /// writes. It does not end a wait in `readable`, `writable`, `peek` or `async_io`. This timeout can be
            /// combined with the read timeout and the write timeout. The one that is over first applies.
            ///
            /// # Errors
            /// As for [`set_read_timeout`](Self::set_read_timeout).
            ///
            /// # Examples
            /// ```
            /// use kittiwake::io::AsyncReadExt;
            /// use kittiwake::time::Duration;
            ///
            /// # kittiwake::block_on(async {
            #[doc = concat!("# let (mut stream, _silent) = ", $pair, ";")]
            /// stream.set_idle_timeout(Some(Duration::from_millis(5)))?;
            /// let error = stream.read(&mut [0; 64]).await.unwrap_err();
            /// assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            /// # std::io::Result::Ok(())
            /// # }).unwrap();
            /// ```
            pub fn set_idle_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.stream.set_limit(Limit::Idle, &[Direction::Read, Direction::Write], timeout)
            }

            fn from_nonblocking(socket: $std) -> Self {
                Self { stream: Stream::new(socket) }
            }

            fn into_socket(self) -> $std {
                self.stream.into_socket()
            }

            fn socket(&self) -> &$std {
                self.stream.socket()
            }

            fn registration(&self) -> &Registration<Socket<$std>> {
                self.stream.registration()
            }

            /// The stream, whose timeouts learn of the calls.
            fn caller(&self) -> &Stream<$std> {
                &self.stream
            }
        }
    };
}
pub(super) use impl_stream;

/// Implements receiving on a datagram socket, and sending to the peer that it is connected to.
macro_rules! impl_datagram {
    ($type:ident, $std:ty, $addr:ty) => {
        impl $type {
            /// Sends a datagram to the peer that the socket is connected to. Returns its length.
            ///
            /// # Cancel safety
            /// Safe: a datagram is sent whole, in the poll that returns `Ready`.
            ///
            /// # Errors
            /// `NotConnected` or `DestinationAddrRequired` if the socket is not connected. `EMSGSIZE` if the datagram
            /// is larger than the protocol or the send buffer allows; nothing is sent then. See send(2).
            pub async fn send(&self, buf: &[u8]) -> io::Result<usize> {
                self.datagram.send(buf).await
            }

            /// Polls whether a datagram could be sent, and sends it.
            ///
            /// The results are those of [`send`](Self::send). If the result is `Pending`, the waker of the last poll is
            /// woken.
            ///
            /// # Errors
            /// As for [`send`](Self::send).
            pub fn poll_send(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                self.datagram.poll_send(cx, buf)
            }

            /// Sends a datagram to the peer that the socket is connected to, without waiting.
            ///
            /// # Errors
            /// `WouldBlock` if a buffer is full; else as for [`send`](Self::send).
            pub fn try_send(&self, buf: &[u8]) -> io::Result<usize> {
                self.datagram.try_send(buf)
            }

            /// Receives a datagram. Returns the number of bytes in `buf`.
            ///
            /// The bytes of a datagram that do not fit into `buf` are lost, as with std's socket, and the result is
            /// then the length of `buf`. A datagram may be empty: `Ok(0)` is no end.
            ///
            /// # Cancel safety
            /// Safe: a datagram is taken only in the poll that returns it.
            ///
            /// # Errors
            /// An error that the network has reported for an earlier datagram of this socket, such as
            /// `ConnectionRefused` on a connected socket. The socket can be used on. See recv(2).
            pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.datagram.recv(buf).await
            }

            /// Polls for a datagram.
            ///
            /// The results are those of [`recv`](Self::recv). If the result is `Pending`, the waker of the last poll is
            /// woken.
            ///
            /// # Errors
            /// As for [`recv`](Self::recv).
            pub fn poll_recv(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                self.datagram.poll_recv(cx, buf)
            }

            /// Receives a datagram that is there, without waiting.
            ///
            /// # Errors
            /// `WouldBlock` if none is there; else as for [`recv`](Self::recv).
            pub fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.datagram.try_recv(buf)
            }

            /// Receives a datagram, and the address that it was sent from.
            ///
            /// Apart from that it is like [`recv`](Self::recv).
            ///
            /// # Cancel safety
            /// Safe: a datagram is taken only in the poll that returns it.
            ///
            /// # Errors
            /// As for [`recv`](Self::recv).
            ///
            /// # Examples
            #[doc = concat!("See [`", stringify!($type), "`].")]
            pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                self.datagram.recv_from(buf).await
            }

            /// Polls for a datagram and the address that it was sent from.
            ///
            /// The results are those of [`recv_from`](Self::recv_from). If the result is `Pending`, the waker of the
            /// last poll is woken.
            ///
            /// # Errors
            /// As for [`recv`](Self::recv).
            pub fn poll_recv_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, $addr)>> {
                self.datagram.poll_recv_from(cx, buf)
            }

            /// Receives a datagram that is there, and the address that it was sent from, without waiting.
            ///
            /// # Errors
            /// `WouldBlock` if none is there; else as for [`recv`](Self::recv).
            pub fn try_recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                self.datagram.try_recv_from(buf)
            }

            /// Receives a datagram and leaves it there: the next call gets it again.
            ///
            /// If the socket has a peek offset (`SO_PEEK_OFF`, socket(7)), it waits for bytes beyond the offset.
            ///
            /// # Cancel safety
            /// Safe: nothing is taken.
            ///
            /// # Errors
            /// As for [`recv`](Self::recv).
            pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.datagram.peek(buf).await
            }

            /// Receives a datagram and the address that it was sent from, and leaves it there.
            ///
            /// # Cancel safety
            /// Safe: nothing is taken.
            ///
            /// # Errors
            /// As for [`recv`](Self::recv).
            pub async fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                self.datagram.peek_from(buf).await
            }

            /// Polls for a datagram and the address that it was sent from, and leaves it there.
            ///
            /// # Errors
            /// As for [`recv`](Self::recv).
            pub fn poll_peek_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, $addr)>> {
                self.datagram.poll_peek_from(cx, buf)
            }

            /// The address of this socket.
            ///
            /// # Errors
            /// See getsockname(2).
            pub fn local_addr(&self) -> io::Result<$addr> {
                self.socket().local_addr()
            }

            /// The address of the peer that the socket is connected to.
            ///
            /// # Errors
            /// `NotConnected`; see getpeername(2).
            pub fn peer_addr(&self) -> io::Result<$addr> {
                self.socket().peer_addr()
            }

            fn from_nonblocking(socket: $std) -> Self {
                Self { datagram: Datagram::new(socket) }
            }

            fn into_socket(self) -> $std {
                self.datagram.into_socket()
            }

            fn socket(&self) -> &$std {
                self.registration().socket()
            }

            fn registration(&self) -> &Registration<$std> {
                self.datagram.registration()
            }

            fn caller(&self) -> &Registration<$std> {
                self.registration()
            }
        }
    };
}
pub(super) use impl_datagram;

/// Implements getters and setters of socket options by `SockRef`.
macro_rules! impl_sock_options {
    ($type:ident: $($(#[$doc:meta])* $get:ident, $set:ident: $value:ty = $sock_get:ident, $sock_set:ident;)*) => {
        impl $type {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// See getsockopt(2).
                pub fn $get(&self) -> io::Result<$value> {
                    SockRef::from(self).$sock_get()
                }

                #[doc = concat!("Sets [`", stringify!($get), "`](Self::", stringify!($get), ").")]
                ///
                /// # Errors
                /// See setsockopt(2).
                pub fn $set(&self, value: $value) -> io::Result<()> {
                    SockRef::from(self).$sock_set(value)
                }
            )*
        }
    };
}
pub(super) use impl_sock_options;

/// Implements getters and setters of the options that count hops.
macro_rules! impl_hops {
    ($type:ident: $($(#[$doc:meta])* $get:ident, $set:ident = $sock_get:ident, $sock_set:ident;)*) => {
        impl $type {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// See getsockopt(2).
                pub fn $get(&self) -> io::Result<u32> {
                    SockRef::from(self).$sock_get()
                }

                #[doc = concat!("Sets [`", stringify!($get), "`](Self::", stringify!($get), "), at most 255.")]
                ///
                /// # Errors
                /// `InvalidInput` for a number that the system does not allow. See setsockopt(2).
                pub fn $set(&self, hops: u32) -> io::Result<()> {
                    // The system takes a signed number. `u32::MAX` would become -1, which means the default.
                    SockRef::from(self).$sock_set(hops.min(i32::MAX as u32))
                }
            )*
        }
    };
}
pub(super) use impl_hops;

/// Implements the traits of a listener, and the private methods that other macros call. The listener has the field
/// `listening`, a [`Listening`](super::listen::Listening). `$domain` is the domain of its sockets, if the system tells
/// it.
macro_rules! impl_listener {
    ($type:ident, $std:ty, $socket:ty, $stream:ty, $addr:ty, |$listener:ident| $domain:expr) => {
        impl $type {
            fn registration(&self) -> &Registration<$socket> {
                self.listening.registration()
            }

            fn caller(&self) -> &Registration<$socket> {
                self.registration()
            }

            fn socket(&self) -> &$socket {
                self.registration().socket()
            }

            fn into_socket(self) -> $socket {
                self.listening.into_socket()
            }
        }

        impl Accepts for $type {
            type Socket = $socket;

            fn listening(&self) -> &Listening<$socket> {
                &self.listening
            }
        }

        impl Listener for $type {
            type Stream = $stream;
            type Addr = $addr;

            fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<($stream, $addr)>> {
                self.listening.poll_accept(cx)
            }

            fn try_accept(&self) -> io::Result<($stream, $addr)> {
                self.listening.try_accept()
            }

            fn reserve(&self) -> Option<OwnedFd> {
                let $listener = self;
                sys::reserve(self, $domain?, Type::STREAM)
            }
        }

        impl TryFrom<$std> for $type {
            type Error = io::Error;

            /// As `from_std`.
            fn try_from(listener: $std) -> io::Result<Self> {
                Self::from_std(listener)
            }
        }
    };
}
pub(super) use impl_listener;
