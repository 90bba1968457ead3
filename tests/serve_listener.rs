//! `net::serve` on listeners of the user's own: the trait `net::Listener`.

mod support;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use futures_lite::future::{poll_once, yield_now};
use kittiwake::net::{Listener, ShutdownSignal, TcpListener, TcpStream, serve};
use kittiwake::time::{Duration, Instant, advance, timeout};
use support::{listener, paused_runtime, run, run_paused, within};

/// How many clients a stopping server takes off its queue at least, if they do not end.
const QUEUE: u64 = 4_096;

/// A client whose connection no event has reported yet must not be reset when the server stops.
#[test]
fn provided_try_accept_asks_the_kernel() {
    run(|| async {
        let (listener, address) = listener().await;
        let signal = ShutdownSignal::new();
        let mut server = pin!(serve(Plain(listener), |_, _| async {}).with_shutdown(&signal).into_future());
        assert!(poll_once(&mut server).await.is_none(), "no client has come, and the socket is registered");
        let mut client = std::net::TcpStream::connect(address).expect("connect");
        signal.trigger();
        assert_eq!(server.await.expect("a report").served, 1);
        assert_eq!(client.read(&mut [0]).expect("the handler has closed the connection"), 0);
    });
}

/// A listener that drops more strangers than a poll may accept must not cost the client behind them its connection when
/// the server stops.
#[test]
fn strangers_hide_no_client_at_the_end() {
    const STRANGERS: u32 = 300;
    run(|| async {
        let (listener, address) = listener().await;
        let connect = || std::net::TcpStream::connect(address).expect("connect");
        let _strangers: Vec<_> = (0..STRANGERS).map(|_| connect()).collect();
        let mut client = connect();
        let listener = Picky { listener: Plain(listener), strangers: Cell::new(STRANGERS) };
        let report = serve(listener, |_, _| async {}).with_graceful_shutdown(async {}).await.expect("a report");
        assert_eq!(report.served, 1);
        assert_eq!(client.read(&mut [0]).expect("the handler has closed the connection"), 0);
    });
}

/// The server must not ask for more than the trait promises: a descriptor, a socket, or an address of the network.
#[test]
fn listener_needs_no_socket() {
    run(|| async {
        let script = [Ok('a'), Err(ErrorKind::ConnectionReset.into()), Ok('b'), Err(ErrorKind::InvalidData.into())];
        let listener = Scripted::new(script);
        let handler = |number: char, name| async move {
            assert_eq!(name, format!("client {number}"));
            if number == 'b' { Err("no") } else { Ok("a result of any type") }
        };
        let errors = std::sync::Arc::new(Mutex::new(Vec::new()));
        let seen = errors.clone();
        let server = serve(&listener, handler);
        let server = server.on_error(move |error| seen.lock().unwrap().push(error.to_string()));
        let end = server.await.expect_err("the last error is fatal");
        assert_eq!((end.error.kind(), end.report.served, end.report.failed), (ErrorKind::InvalidData, 1, 1));
        let errors = errors.lock().unwrap();
        assert_eq!(*errors, ["cannot accept connections: invalid data", "\"client b\": no"]);
    });
}

/// A client that has given up its connection must not cost the clients behind it theirs when the server stops.
#[test]
fn stopping_server_passes_over_lost_client() {
    run(|| async {
        let lost = || Err(ErrorKind::ConnectionAborted.into());
        let listener = Scripted::new([Ok('a'), lost(), Ok('b'), lost(), lost(), Ok('c')]);
        let server = serve(&listener, |_, _| async {}).with_graceful_shutdown(async {});
        assert_eq!(server.await.expect("a report").served, 3);
    });
}

/// An error of one connection says nothing of the next, so no client waits for it.
#[test]
fn network_errors_delay_no_client() {
    const NETWORK: [i32; 11] = [
        libc::EPERM,
        libc::ETIMEDOUT,
        libc::ENETDOWN,
        libc::EPROTO,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::ECONNABORTED,
        libc::EINTR,
    ];
    within(|| assert_eq!(wait_after(NETWORK), Duration::ZERO, "the server has waited"));
}

/// If the errors of single connections do not end, the server waits. EPERM may leave the connection in the queue, and the
/// server would spin.
#[test]
fn endless_network_errors_spin_no_server() {
    within(|| {
        let waited = wait_after([libc::EPERM; 200]);
        assert!(waited > Duration::from_secs(10), "the server has waited for {waited:?} only");
    });
}

/// How long a client waits behind these errors, on a paused clock.
fn wait_after(errors: impl IntoIterator<Item = i32>) -> Duration {
    paused_runtime().block_on(async {
        let errors = errors.into_iter().map(|code| Err(io::Error::from_raw_os_error(code)));
        let (signal, start) = (ShutdownSignal::new(), Instant::now());
        let handler = |_, _| {
            let signal = signal.clone();
            async move { signal.trigger() }
        };
        let listener = Scripted::new(errors.chain([Ok('a')]));
        let report = serve(&listener, handler).with_shutdown(&signal).await.expect("no error is fatal");
        assert_eq!(report.served, 1);
        start.elapsed()
    })
}

/// Without a reserve there is no descriptor to turn a client away with: the one that is free serves it.
#[test]
fn without_reserve_no_client_is_refused() {
    run_paused(|| async {
        let lacks = (0..12).map(|_| Err(io::Error::from_raw_os_error(libc::EMFILE)));
        let (signal, start) = (ShutdownSignal::new(), Instant::now());
        let handler = |_, _| {
            let signal = signal.clone();
            async move { signal.trigger() }
        };
        let listener = Scripted::new(lacks.chain([Ok('a')]));
        let server = serve(&listener, handler).with_shutdown(&signal).into_future();
        let report = timeout(Duration::from_secs(60), server).await.expect("the client is served").expect("a report");
        assert_eq!((report.served, report.refused), (1, 0));
        assert!(start.elapsed() > Duration::from_secs(5), "clients would be turned away after {:?}", start.elapsed());
    });
}

/// Clients that reconnect as fast as they are turned away must not keep a stopping server from its end.
#[test]
fn reconnecting_clients_keep_no_server() {
    run(|| async {
        let (flood, signal) = (Flood::new(u64::MAX), ShutdownSignal::new());
        let server = serve(&flood, |(), _| async {}).with_shutdown(&signal).drain_timeout(Duration::from_millis(20));
        let mut server = pin!(server.into_future());
        assert!(poll_once(&mut server).await.is_none(), "there is no descriptor to accept with");
        signal.trigger();
        let report = timeout(Duration::from_secs(20), server).await.expect("the drain timeout has an end");
        let refused = report.expect("no error is fatal").refused;
        assert!(refused >= QUEUE, "{refused} clients have learned of the end");
    });
}

/// Clients that reconnect as fast as they are turned away are served again once a descriptor is free.
#[test]
fn reconnecting_clients_are_served_again() {
    run(|| async {
        let (flood, signal) = (Flood::new(1_000), ShutdownSignal::new());
        let handler = |(), _| {
            let signal = signal.clone();
            async move { signal.trigger() }
        };
        let server = serve(&flood, handler).with_shutdown(&signal);
        let stats = server.stats();
        let server = timeout(Duration::from_secs(20), server.into_future());
        let report =
            server.await.unwrap_or_else(|_| panic!("no client is served: {stats:?}")).expect("no error is fatal");
        assert!(report.served > 0 && (1_000..1_064).contains(&report.refused), "{report}");
    });
}

/// A server that stops while it turns clients away looks first whether a descriptor is free for those in the queue.
#[test]
fn stopping_server_refuses_none_for_the_past() {
    run_paused(|| async {
        let (flood, signal) = (Flood::new(u64::MAX), ShutdownSignal::new());
        let server = serve(&flood, |(), _| async {}).with_shutdown(&signal);
        let stats = server.stats();
        let mut server = pin!(server.into_future());
        while stats.refused() == 0 {
            assert!(poll_once(&mut server).await.is_none(), "nobody has asked it to stop");
            advance(Duration::from_millis(100)).await;
        }
        let refused = stats.refused();
        flood.without.set(0);
        signal.trigger();
        let report = server.await.expect("no error is fatal");
        assert!(report.served >= QUEUE && report.refused == refused, "{refused} were refused before: {report}");
    });
}

/// Errors of single clients that do not end must not keep a stopping server from its end.
#[test]
fn endless_errors_keep_no_server() {
    run(|| async {
        let listener = Denying(Cell::new(0));
        let server = serve(&listener, |(), _| async {}).with_graceful_shutdown(async {}).into_future();
        timeout(Duration::from_secs(20), server).await.expect("the server ends").expect("no error is fatal");
        assert!(listener.0.get() >= QUEUE);
    });
}

/// A listener that never waits must not keep its worker from other tasks.
#[test]
fn busy_listener_lets_others_run() {
    run(|| async {
        let listener = Scripted::new((0..10_000).map(|_| Err(ErrorKind::ConnectionReset.into())));
        let mut server = pin!(serve(&listener, |_, _| async {}).into_future());
        for polls in 1..=10 {
            assert!(poll_once(&mut server).await.is_none(), "it has not been asked to stop");
            let attempts = 10_000 - listener.0.lock().unwrap().len();
            assert!((polls..=1_000 * polls).contains(&attempts), "{attempts} attempts in {polls} polls");
        }
    });
}

/// The output of an endless `async` block is `!`, and rustc chooses no other type for it.
#[test]
fn handler_may_run_for_ever() {
    run(|| async {
        let handler = |_, _| async {
            loop {
                yield_now().await;
            }
        };
        let listener = Scripted::new([Ok('a')]);
        let server = serve(&listener, handler).drain_timeout(Duration::from_millis(1));
        let report = server.with_graceful_shutdown(async {}).await.expect("a report");
        assert_eq!(report.open[0].peer, "client a");
    });
}

/// A listener that has only the methods which every listener must have.
struct Plain(TcpListener);

impl Listener for Plain {
    type Stream = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.0.poll_accept(cx)
    }
}

/// A listener that drops its first clients.
struct Picky {
    listener: Plain,
    strangers: Cell<u32>,
}

impl Listener for Picky {
    type Stream = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            let accepted = ready!(self.listener.poll_accept(cx));
            if self.strangers.get() == 0 {
                return Poll::Ready(accepted);
            }
            self.strangers.set(self.strangers.get() - 1);
        }
    }
}

/// A listener without descriptors, except for the reserve, and with another client in its queue at any time.
struct Flood {
    /// The other end of the reserve. It reads an end of file while the reserve is closed.
    reserved: Mutex<Option<UnixStream>>,
    /// How many clients the reserve accepts before there are descriptors again.
    without: Cell<u64>,
}

impl Flood {
    fn new(without: u64) -> Self {
        Self { reserved: Mutex::default(), without: Cell::new(without) }
    }
}

impl Listener for &Flood {
    type Stream = ();
    type Addr = &'static str;

    fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<((), &'static str)>> {
        Poll::Ready(self.try_accept())
    }

    fn try_accept(&self) -> io::Result<((), &'static str)> {
        let is_reserve_closed = |reserved: &mut UnixStream| matches!(reserved.read(&mut [0]), Ok(0));
        let without = self.without.get();
        if without == 0 {
            return Ok(((), "client"));
        } else if !self.reserved.lock().unwrap().as_mut().is_some_and(is_reserve_closed) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.without.set(without - 1);
        Ok(((), "client"))
    }

    fn reserve(&self) -> Option<OwnedFd> {
        let (reserve, reserved) = UnixStream::pair().expect("a pair of sockets");
        reserved.set_nonblocking(true).expect("a non-blocking socket");
        *self.reserved.lock().unwrap() = Some(reserved);
        Some(reserve.into())
    }
}

/// A listener that denies each client, and counts them.
struct Denying(Cell<u64>);

impl Listener for &Denying {
    type Stream = ();
    type Addr = &'static str;

    fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<((), &'static str)>> {
        self.0.set(self.0.get() + 1);
        Poll::Ready(Err(ErrorKind::ConnectionReset.into()))
    }
}

/// A listener that returns the results of a list, and then waits for ever.
struct Scripted(Mutex<VecDeque<io::Result<char>>>);

impl Scripted {
    fn new(script: impl IntoIterator<Item = io::Result<char>>) -> Self {
        Self(Mutex::new(script.into_iter().collect()))
    }
}

impl Listener for &Scripted {
    type Stream = char;
    type Addr = String;

    fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<(char, String)>> {
        match self.0.lock().unwrap().pop_front() {
            Some(result) => Poll::Ready(result.map(|number| (number, format!("client {number}")))),
            None => Poll::Pending,
        }
    }
}
