//! The shutdown signal: a flag that is set once, and the wakers of the tasks that wait for it.
//!
//! Each clone has at most one waker in the shared table ([`Waiting`]). It keeps that slot until it is dropped or the
//! signal is triggered. Polling a clone again with the same waker loads the flag and compares two wakers, and takes no
//! lock.
//!
//! # The race
//! A: polls, finds the flag clear.   B: sets the flag, wakes all wakers.   A: stores its waker.
//! A would sleep for ever. Therefore [`ShutdownSignal::trigger`] sets the flag under the lock of the wakers, and
//! [`ShutdownSignal::store_waker`] loads it again under that lock: either A sees the flag, or B takes A's waker.

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

use crate::budget::{self, ask_kernel};
use crate::sync::wake_all;
use crate::time::{Duration, sleep};

/// Asks servers and their handlers to stop: all clones are triggered together, once and for good.
///
/// Each clone is also a future, which is ready once the signal is [triggered](ShutdownSignal::trigger).
///
/// A connection that is kept alive between two requests would hold up the end of its [server](crate::net::serve())
/// until the [drain timeout](crate::net::Serve::drain_timeout). Its handler should therefore wait for the signal and
/// the next request at the same time, which is what [`run_with_grace`](ShutdownSignal::run_with_grace) and
/// [`run_until_triggered`](ShutdownSignal::run_until_triggered) do.
/// [Ending without loss](fn@crate::net::serve#ending-without-loss) says where in a handler they belong.
///
/// Triggering the signal stops every server that has a clone of it by
/// [`with_shutdown`](crate::net::Serve::with_shutdown). A handler may trigger it too.
///
/// # Cancel safety
/// Safe. The future may be dropped at any time, and polled again after it was ready: it stays ready.
///
/// # Examples
/// ```
/// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
/// use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
///
/// # kittiwake::block_on(async {
/// async fn echo(mut stream: TcpStream, mut signal: ShutdownSignal) -> std::io::Result<()> {
///     let mut buf = [0; 4096];
///     while let Some(read) = signal.run_until_triggered(stream.read(&mut buf)).await {
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
/// let signal = ShutdownSignal::new();
/// let server = kittiwake::spawn({
///     let (stop, signal) = (signal.clone(), signal.clone());
///     async move { serve(listener, |stream, _| echo(stream, signal.clone())).with_shutdown(&stop).await }
/// });
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"x").await?;
/// client.read_exact(&mut [0]).await?;
///
/// // The client keeps its connection and sends nothing more.
/// signal.trigger();
/// assert_eq!(server.await.unwrap()?.served, 1);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct ShutdownSignal {
    shared: Arc<Shared>,
    /// This clone's slot in the table of wakers, once it has waited.
    waiting: Option<Waiting>,
    /// Since the signal was triggered, [`poll_last`](ShutdownSignal::poll_last) has asked the kernel in vain.
    ///
    /// It asks again after each success. A read that succeeds so fills its buffer with bytes that no event has
    /// reported. The source is not ready after it, and the next read would wait although the kernel has more.
    found_nothing: bool,
}

#[derive(Default)]
struct Shared {
    /// Set once, under the lock of `wakers`.
    triggered: AtomicBool,
    /// Empty from the moment that `triggered` is set.
    wakers: Mutex<Slab<Waker>>,
}

struct Waiting {
    /// The slot in the table; valid until the signal is triggered.
    key: usize,
    /// A clone of the waker in that slot.
    waker: Waker,
}

impl ShutdownSignal {
    /// Makes a signal that is not triggered.
    pub fn new() -> Self {
        Self { shared: Arc::default(), waiting: None, found_nothing: false }
    }

    /// Triggers the signal, for all clones. Further calls do nothing.
    ///
    /// # Examples
    /// See [`ShutdownSignal`].
    pub fn trigger(&self) {
        let mut table = self.shared.wakers.lock();
        self.shared.triggered.store(true, Ordering::Release);
        let wakers = mem::take(&mut *table);
        drop(table);
        wake_all(&mut wakers.into_iter().map(|(_, waker)| waker).collect());
    }

    /// Whether the signal is triggered.
    pub fn is_triggered(&self) -> bool {
        self.shared.triggered.load(Ordering::Acquire)
    }

    /// Waits until the signal is triggered.
    ///
    /// # Cancel safety
    /// Safe: a later call returns at once if the signal was triggered meanwhile.
    ///
    /// # Examples
    /// ```
    /// use kittiwake::net::ShutdownSignal;
    ///
    /// # kittiwake::block_on(async {
    /// let signal = ShutdownSignal::new();
    /// let mut clone = signal.clone();
    /// let waits = kittiwake::spawn(async move { clone.triggered().await });
    /// signal.trigger();
    /// waits.await.unwrap();
    /// # });
    /// ```
    pub async fn triggered(&mut self) {
        self.await;
    }

    /// Runs `future` until the signal is triggered. Returns its output, or `None` if the signal comes first.
    ///
    /// Data that the kernel already holds comes before the signal. If a peer sent a request before the signal was
    /// triggered, a read returns it, even if no worker has seen the event yet. For this the future is polled once more
    /// after the signal, and in that poll reads, writes and accepts try their system call. Operations that only wait
    /// for readiness do not.
    ///
    /// Further calls on the same clone do that too, until one has found nothing. After that, a future that has to wait
    /// ends at once. A peer that never stops sending keeps its connection until the server's
    /// [drain timeout](crate::net::Serve::drain_timeout).
    ///
    /// A future that polls only those of its parts that were woken, such as a `FuturesUnordered`, does not reach the
    /// reads in the others. Give each of these a clone of the signal instead.
    ///
    /// A request that is still on its way is not waited for: [`run_with_grace`](ShutdownSignal::run_with_grace) does
    /// that.
    ///
    /// # Cancel safety
    /// That of `future`, which is dropped when the signal comes first.
    ///
    /// # Examples
    /// See [`ShutdownSignal`].
    pub async fn run_until_triggered<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let (mut future, mut has_yielded) = (pin!(future), false);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                ready!(self.poll_triggered(cx));
                self.poll_last(cx, future.as_mut(), &mut has_yielded)
            }
        })
        .await
    }

    /// Runs `future` until the signal is triggered, and then for up to `grace` more. Returns its output, or `None` once
    /// the grace is over.
    ///
    /// Each call has the whole grace. In a loop of reads, a client therefore keeps its connection until it has been
    /// silent for that long. This lets a request that has begun arrive whole, also if the handler cannot know where it
    /// ends. A handler that does know it passes zero once it has answered a request after the signal: the call then
    /// takes what the kernel holds, and waits for nothing. The grace should be longer than the round trips and
    /// retransmissions of the network: a second is usual.
    ///
    /// At the end of the grace the future is polled once more, as by
    /// [`run_until_triggered`](ShutdownSignal::run_until_triggered): data that the kernel holds comes before the end.
    ///
    /// # Cancel safety
    /// That of `future`, which is dropped at the end of the grace.
    ///
    /// # Panics
    /// Outside a runtime, once the signal is triggered.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
    /// use kittiwake::net::{ShutdownSignal, TcpStream};
    /// use kittiwake::time::timeout;
    ///
    /// const GRACE: Duration = Duration::from_millis(200);
    ///
    /// async fn echo(mut stream: TcpStream, mut signal: ShutdownSignal) -> std::io::Result<()> {
    ///     let mut buf = [0; 4096];
    ///     while let Some(read) = signal.run_with_grace(GRACE, stream.read(&mut buf)).await {
    ///         match read? {
    ///             0 => return Ok(()),
    ///             n => stream.write_all(&buf[..n]).await?,
    ///         }
    ///     }
    ///     // Bytes that come now would reset a closed connection, and the reset would destroy answers.
    ///     let _ = timeout(GRACE, stream.drain(1 << 20)).await;
    ///     Ok(())
    /// }
    ///
    /// # kittiwake::block_on(async {
    /// # let listener = kittiwake::net::TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (stream, _) = listener.accept().await?;
    /// let signal = ShutdownSignal::new();
    /// let handler = kittiwake::spawn(echo(stream, signal.clone()));
    /// client.write_all(b"the first part ").await?;
    /// signal.trigger();
    /// client.write_all(b"and the second").await?;
    /// let mut answer = String::new();
    /// client.read_to_string(&mut answer).await?;
    /// assert_eq!(answer, "the first part and the second");
    /// # drop(client);
    /// handler.await?
    /// # }).unwrap();
    /// ```
    pub async fn run_with_grace<F: Future>(&mut self, grace: Duration, future: F) -> Option<F::Output> {
        let (mut future, mut has_yielded, mut end) = (pin!(future), false, None);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                ready!(self.poll_triggered(cx));
                let end = end.get_or_insert_with(|| sleep(grace));
                // A future that uses up the budget in each poll must not hide that the grace is over.
                ready!(budget::with_fresh(|| Pin::new(end).poll(cx)));
                // After a long poll of another task the grace is over, and the worker has not turned its reactor, so no
                // event has reported the bytes that came in time. So the end of each grace asks.
                self.found_nothing = false;
                self.poll_last(cx, future.as_mut(), &mut has_yielded)
            }
        })
        .await
    }

    /// Polls `future`, which has returned `Pending`, for the last time: the signal is triggered, and the grace is over.
    ///
    /// A `Pending` for want of budget says nothing about the kernel. The task then yields once in each call, so that a
    /// peer that always has more to send does not keep the worker, and polls again with a new budget.
    fn poll_last<F: Future>(
        &mut self,
        cx: &mut Context<'_>,
        future: Pin<&mut F>,
        has_yielded: &mut bool,
    ) -> Poll<Option<F::Output>> {
        if !*has_yielded && budget::poll_proceed(cx).is_pending() {
            *has_yielded = true;
            return Poll::Pending;
        }
        if self.found_nothing {
            return Poll::Ready(None);
        }
        match ask_kernel(|| future.poll(cx)) {
            Poll::Ready(output) => {
                // `ask_kernel` has a budget of its own. Without this, a loop of such reads would never yield.
                if !*has_yielded {
                    budget::spend();
                }
                Poll::Ready(Some(output))
            }
            Poll::Pending => {
                self.found_nothing = true;
                Poll::Ready(None)
            }
        }
    }

    /// As the public `poll`, without spending budget: a future that always uses up its budget must not hide the signal
    /// from [`run_until_triggered`](ShutdownSignal::run_until_triggered).
    pub(crate) fn poll_triggered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_triggered() {
            return Poll::Ready(());
        }
        match &self.waiting {
            // The waker stays in the table until the signal is triggered, which wakes it.
            Some(waiting) if waiting.waker.will_wake(cx.waker()) => Poll::Pending,
            _ => self.store_waker(cx),
        }
    }

    /// Stores the waker. `Ready` if the signal was triggered meanwhile.
    fn store_waker(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Cloning and dropping a waker may run foreign code, so neither happens under the lock.
        let (stored, kept) = (cx.waker().clone(), cx.waker().clone());
        let mut table = self.shared.wakers.lock();
        if self.is_triggered() {
            drop(table);
            return Poll::Ready(());
        }
        let (key, replaced) = match &self.waiting {
            Some(waiting) => (waiting.key, Some(mem::replace(&mut table[waiting.key], stored))),
            None => (table.insert(stored), None),
        };
        drop(table);
        drop(replaced);
        self.waiting = Some(Waiting { key, waker: kept });
        Poll::Pending
    }

    /// Takes this clone's waker out of the table.
    fn remove_waker(&mut self) {
        let Some(waiting) = self.waiting.take() else { return };
        let mut table = self.shared.wakers.lock();
        let removed = if self.is_triggered() { None } else { Some(table.remove(waiting.key)) };
        drop(table);
        drop(removed);
    }
}

impl Future for ShutdownSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_triggered(cx));
        budget::poll_spend_complete(cx)
    }
}

impl Clone for ShutdownSignal {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), waiting: None, found_nothing: false }
    }
}

impl Drop for ShutdownSignal {
    fn drop(&mut self) {
        self.remove_waker();
    }
}

impl Default for ShutdownSignal {
    fn default() -> Self {
        Self::new()
    }
}

// A panic cannot leave the flag or the table half-changed: no foreign code runs while they are changed.
impl UnwindSafe for ShutdownSignal {}
impl RefUnwindSafe for ShutdownSignal {}

impl fmt::Debug for ShutdownSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownSignal").field("triggered", &self.is_triggered()).finish()
    }
}
