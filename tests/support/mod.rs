//! What the tests share: bounds on waiting, pairs of sockets, wakers that count.
//!
//! Every test runs inside [`within`] or [`run`], so that a lost wake-up is a failure with a
//! sentence, and not a test run that hangs.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Wake, Waker};
use std::time::Duration;

use kittiwake::net::{TcpListener, TcpStream};

/// Longer than anything here takes on a slow machine; only a hang meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a thread of its own and fails when it does not end in time.
#[track_caller]
pub fn within<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(std::thread::current().name().unwrap_or("test").to_owned())
        .spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
            let _ = done.send(());
            result
        })
        .expect("a thread for the test");
    let ended = waiting.recv_timeout(PATIENCE);
    assert!(ended.is_ok(), "the test still waits after {PATIENCE:?}: something was not woken");
    match thread.join().expect("the thread catches its own panics") {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs the future that `test` makes in a runtime, and fails when it does not end in time.
#[track_caller]
pub fn run<F>(test: impl FnOnce() -> F + Send + 'static) -> F::Output
where
    F: Future,
    F::Output: Send + 'static,
{
    within(move || kittiwake::block_on(test()))
}

/// A listener on a port of the system's choice, and its address.
pub async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    (listener, address)
}

/// Two ends of one connection, both ours: the client's and the server's.
pub async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listener().await;
    let client = TcpStream::connect(address).await.expect("connect");
    let (server, _) = listener.accept().await.expect("accept");
    (client, server)
}

/// Two ends of one connection: ours, and a blocking one of std's for a peer.
pub fn pair_with_std() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    let peer = std::net::TcpStream::connect(address).expect("connect");
    peer.set_read_timeout(Some(PATIENCE)).expect("a bound on the peer's reads");
    peer.set_write_timeout(Some(PATIENCE)).expect("a bound on the peer's writes");
    let (ours, _) = listener.accept().expect("accept");
    (TcpStream::from_std(ours).expect("from_std"), peer)
}

/// Closes a connection by a reset instead of an orderly end.
pub fn reset(stream: std::net::TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER of zero");
    drop(stream);
}

/// Reads a peer to its end.
pub fn read_all(mut peer: std::net::TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    peer.read_to_end(&mut bytes).expect("the peer reads to an end");
    bytes
}

/// How often a waker was woken.
#[derive(Default)]
pub struct Wakes(AtomicUsize);

impl Wakes {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker that counts. `Arc::strong_count` of the second tells how many wakers there are.
pub fn counting_waker() -> (Waker, Arc<Wakes>) {
    let wakes = Arc::new(Wakes::default());
    (Waker::from(wakes.clone()), wakes)
}
