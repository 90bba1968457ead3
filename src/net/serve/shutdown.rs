//! Telling many that the end begins.
//!
//! A flag that is set once, and the wakers of those who wait for it. Each clone has a place of its own among them
//! ([`Waiting`]), which it keeps until it is dropped: to poll it again and again looks at the flag and compares two
//! wakers, without the lock.
//!
//! # The race
//! The flag may be set between the look at it and the leaving of the waker. So it is set under the lock of the wakers, and
//! looked at once more there: either it is seen, or the waker is.

use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use slab::Slab;

use crate::budget::ask_kernel;
use crate::sync::wake_all;

/// Says, to whoever has a clone, that the server is to end: a future that is ready once it [begins](Shutdown::begin).
///
/// A connection that is kept alive between two requests would keep a [server](crate::net::serve()) from ending until the drain
/// timeout. Its handler should therefore wait for the shutdown beside the next request:
/// [`run_until_begun`](Shutdown::run_until_begun) does that.
///
/// Whoever is served can begin it too: [`begin`](Shutdown::begin) in a handler drains the servers that are
/// [tied](crate::net::Serve::with_shutdown) to it. Any number of servers may be.
///
/// # Cancel safety
/// Safe. It can be polled again and again, in each round of a `select!` too, and stays ready once it is.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
/// use kittiwake::net::{Shutdown, TcpListener, TcpStream, serve};
///
/// # kittiwake::block_on(async {
/// async fn echo(mut stream: TcpStream, mut shutdown: Shutdown) -> std::io::Result<()> {
///     let mut buf = [0; 4096];
///     while let Some(read) = shutdown.run_until_begun(stream.read(&mut buf)).await {
///         match read? {
///             0 => break,
///             n => stream.write_all(&buf[..n]).await?,
///         }
///     }
///     Ok(())
/// }
///
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let shutdown = Shutdown::new();
/// let server = kittiwake::spawn({
///     let (tie, shutdown) = (shutdown.clone(), shutdown.clone());
///     async move { serve(listener, |stream, _| echo(stream, shutdown.clone())).with_shutdown(&tie).await }
/// });
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"x").await?;
/// client.read_exact(&mut [0]).await?;
///
/// // The client stays, and says nothing more.
/// shutdown.begin();
/// assert_eq!(server.await.unwrap()?.served, 1);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct Shutdown {
    shared: Arc<Shared>,
    /// Where this clone waits, once it has.
    waiting: Option<Waiting>,
    /// [`run_until_begun`](Shutdown::run_until_begun) has met the beginning.
    heard: bool,
}

#[derive(Default)]
struct Shared {
    /// Set under the lock of `waiters`, once.
    begun: AtomicBool,
    /// Empty for good once it has begun.
    waiters: Mutex<Slab<Waker>>,
}

struct Waiting {
    /// The place among the waiters, while it has not begun.
    key: usize,
    /// A clone of the waker that is there.
    waker: Waker,
}

impl Shutdown {
    /// Makes one that has not begun.
    pub fn new() -> Self {
        Self { shared: Arc::default(), waiting: None, heard: false }
    }

    /// Begins the shutdown, for all clones. Does nothing if it has begun.
    pub fn begin(&self) {
        let mut waiters = self.shared.waiters.lock();
        self.shared.begun.store(true, Ordering::Release);
        let told = mem::take(&mut *waiters);
        drop(waiters);
        wake_all(&mut told.into_iter().map(|(_, waker)| waker).collect());
    }

    /// Whether it has begun.
    #[inline]
    pub fn has_begun(&self) -> bool {
        self.shared.begun.load(Ordering::Acquire)
    }

    /// Runs `future` until the shutdown begins: gives its output, or `None` if that comes first.
    ///
    /// What comes first is what the kernel has: a read gives what the peer had sent when the shutdown began, also if no
    /// worker has noticed yet. For that the future is polled once more, and its reads, writes and accepts ask the kernel
    /// (what waits for readiness alone does not); once for each clone, or a peer who always has more to say would never be
    /// left.
    ///
    /// # Cancel safety
    /// That of `future`, which is dropped when the shutdown begins.
    ///
    /// # Examples
    /// See [`Shutdown`].
    pub async fn run_until_begun<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                ready!(Pin::new(&mut *self).poll(cx));
                if mem::replace(&mut self.heard, true) {
                    return Poll::Ready(None);
                }
                match ask_kernel(|| future.as_mut().poll(cx)) {
                    Poll::Ready(output) => Poll::Ready(Some(output)),
                    Poll::Pending => Poll::Ready(None),
                }
            }
        })
        .await
    }

    /// Leaves the waker, or finds that it has begun meanwhile.
    #[cold]
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (left, waker) = (cx.waker().clone(), cx.waker().clone());
        let mut waiters = self.shared.waiters.lock();
        if self.has_begun() {
            drop(waiters);
            return Poll::Ready(());
        }
        let (key, replaced) = match &self.waiting {
            Some(waiting) => (waiting.key, Some(mem::replace(&mut waiters[waiting.key], left))),
            None => (waiters.insert(left), None),
        };
        drop(waiters);
        drop(replaced);
        self.waiting = Some(Waiting { key, waker });
        Poll::Pending
    }

    /// Takes the waker away that this clone has left.
    fn leave(&mut self) {
        let Some(waiting) = self.waiting.take() else { return };
        let mut waiters = self.shared.waiters.lock();
        let left = if self.has_begun() { None } else { Some(waiters.remove(waiting.key)) };
        drop(waiters);
        drop(left);
    }
}

impl Future for Shutdown {
    type Output = ();

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_begun() {
            return Poll::Ready(());
        }
        match &self.waiting {
            // It is there until the shutdown begins, and woken then.
            Some(waiting) if waiting.waker.will_wake(cx.waker()) => Poll::Pending,
            _ => self.wait(cx),
        }
    }
}

impl Clone for Shutdown {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), waiting: None, heard: false }
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

// A flag and some wakers: nothing that a panic could have left half-changed.
impl UnwindSafe for Shutdown {}
impl RefUnwindSafe for Shutdown {}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").field("begun", &self.has_begun()).finish()
    }
}
