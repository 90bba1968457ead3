//! [`Io`]: hyper's I/O traits for futures-io streams, and the reverse.
//!
//! hyper reads into memory that may be uninitialized, and a futures-io stream needs initialized memory. So a read goes
//! into a buffer of the thread and is copied from there. To zero hyper's memory before each read costs more.
//!
//! hyper passes the head and the body of a response in two buffers. If they are short, they are copied into the buffer
//! of the thread: send(2) costs less than sendmsg(2).

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use futures_io::{AsyncRead, AsyncWrite};

/// The longest read: hyper asks for more on busy connections, but one read of a socket seldom returns as much.
const LONGEST_READ: usize = 64 * 1024;

thread_local! {
    /// The memory for reads and short writes. It is taken out meanwhile: a stream may contain an `Io` that reads, too.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The longest write whose buffers are copied together: to copy so much costs less than to pass the kernel a list of
/// buffers.
const LONGEST_COPIED: usize = 1024;

/// Gives a futures-io stream the I/O traits of hyper, and a stream of hyper those of futures-io.
///
/// A stream that implements [`AsyncRead`] and [`AsyncWrite`] gets `hyper::rt::Read` and `Write`, which hyper's
/// connections need. A stream that implements hyper's traits, such as `hyper::upgrade::Upgraded`, gets those of
/// futures-io.
///
/// # Cancel safety
/// That of the stream. `Io` keeps no bytes.
///
/// # Examples
/// A client's request over a stream in memory:
/// ```
/// use http_body_util::{BodyExt, Empty};
/// use hyper::body::Bytes;
/// use kittiwake::hyper::Io;
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt, duplex};
///
/// # kittiwake::block_on(async {
/// let (client, mut server) = duplex(4096);
/// kittiwake::spawn(async move {
///     server.read(&mut [0; 1024]).await?;
///     server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await
/// });
/// let (mut sender, connection) = hyper::client::conn::http1::handshake(Io::new(client)).await?;
/// kittiwake::spawn(connection);
/// let response = sender.send_request(hyper::Request::new(Empty::<Bytes>::new())).await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
/// # hyper::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Io<T> {
    inner: T,
    writev: bool,
}

impl<T> Io<T> {
    /// Wraps a stream.
    pub fn new(inner: T) -> Self {
        Self { inner, writev: false }
    }

    /// Sets whether the stream writes several buffers by one call of `poll_write_vectored`. The default is `false`.
    ///
    /// Where it is `false`, hyper copies all that it writes into one buffer on HTTP/1, and small pieces on HTTP/2.
    /// Where it is `true`, only buffers of more than 1 KiB together go to `poll_write_vectored`. Shorter ones are
    /// copied together and go to `poll_write`. The sockets of this crate write vectored; the traits of futures-io have
    /// no way to ask a stream for that. A TLS stream mostly does not.
    pub fn writev(mut self, writev: bool) -> Self {
        self.writev = writev;
        self
    }

    /// Returns the stream.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// Returns a reference to the stream.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Returns a mutable reference to the stream.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: AsyncRead + Unpin> Read for Io<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        poll_read(&mut self.inner, cx, buf).map_ok(drop)
    }
}

impl<T: AsyncWrite + Unpin> Write for Io<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.writev
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_copied(&mut self.inner, cx, bufs)
    }
}

impl<T: Read + Unpin> AsyncRead for Io<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf.unfilled()))?;
        Poll::Ready(Ok(buf.filled().len()))
    }
}

impl<T: Write + Unpin> AsyncWrite for Io<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Reads from `stream` into hyper's memory. Returns how many bytes were read.
pub(super) fn poll_read<T: AsyncRead + Unpin>(
    stream: &mut T,
    cx: &mut Context<'_>,
    mut buf: ReadBufCursor<'_>,
) -> Poll<io::Result<usize>> {
    poll_read_scratch(stream, cx, buf.remaining(), |bytes| buf.put_slice(bytes))
}

/// Reads at most `len` bytes from `stream` and passes them to `take`. Returns how many bytes were read.
pub(super) fn poll_read_scratch<T: AsyncRead + Unpin>(
    stream: &mut T,
    cx: &mut Context<'_>,
    len: usize,
    take: impl FnOnce(&[u8]),
) -> Poll<io::Result<usize>> {
    let mut scratch = SCRATCH.take();
    let len = len.min(LONGEST_READ);
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
    let read = Pin::new(stream).poll_read(cx, &mut scratch[..len]);
    if let Poll::Ready(Ok(n)) = read {
        take(&scratch[..n]);
    }
    SCRATCH.set(scratch);
    read
}

/// Writes several buffers to `stream`, short ones as one.
pub(super) fn poll_write_copied<T: AsyncWrite + Unpin>(
    stream: &mut T,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let len = bufs.iter().map(|buf| buf.len()).sum();
    let stream = Pin::new(stream);
    match bufs {
        [buf] => return stream.poll_write(cx, buf),
        _ if len > LONGEST_COPIED => return stream.poll_write_vectored(cx, bufs),
        _ => {}
    }
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(LONGEST_COPIED, 0);
    }
    let mut end = 0;
    for buf in bufs {
        scratch[end..end + buf.len()].copy_from_slice(buf);
        end += buf.len();
    }
    let written = stream.poll_write(cx, &scratch[..len]);
    SCRATCH.set(scratch);
    written
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// A stream that takes at most `takes` bytes of each write, and records the lengths of the buffers.
    struct Recorder {
        takes: usize,
        written: Vec<u8>,
        calls: Vec<Vec<usize>>,
    }

    impl AsyncWrite for Recorder {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.calls.push(bufs.iter().map(|buf| buf.len()).collect());
            let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let n = bytes.len().min(self.takes);
            self.written.extend_from_slice(&bytes[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes `bufs` by one call. Returns how many bytes it took, and the recorder.
    fn write(bufs: &[&[u8]], takes: usize) -> (usize, Recorder) {
        let mut io = Io::new(Recorder { takes, written: Vec::new(), calls: Vec::new() }).writev(true);
        let bufs: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let written = Pin::new(&mut io).poll_write_vectored(&mut Context::from_waker(Waker::noop()), &bufs);
        let Poll::Ready(Ok(n)) = written else { panic!("the recorder takes each write, but {written:?}") };
        (n, io.into_inner())
    }

    /// Short buffers reach the stream as one, in their order. A write that takes a part of them says how much.
    #[test]
    fn short_buffers_are_copied_together() {
        let (n, stream) = write(&[b"head", b"", b"body"], usize::MAX);
        assert_eq!((n, &stream.written[..]), (8, &b"headbody"[..]));
        assert_eq!(stream.calls, [[8]], "short buffers took another form than one buffer");
        let (n, stream) = write(&[b"head", b"body"], 6);
        assert_eq!((n, &stream.written[..]), (6, &b"headbo"[..]), "a short write was not reported truly");
    }

    /// Long buffers are not copied.
    #[test]
    fn long_buffers_stay_apart() {
        let body = vec![b'x'; LONGEST_COPIED];
        let (n, stream) = write(&[b"head", &body], usize::MAX);
        assert_eq!(n, 4 + LONGEST_COPIED);
        assert_eq!(stream.calls, [[4, LONGEST_COPIED]], "long buffers were copied together");
        assert_eq!(write(&[&body, b""], usize::MAX).1.calls, [[LONGEST_COPIED]], "the longest copied write");
    }
}
