//! Unix sockets: addresses, errors and queues. The tests of streams are in `streams`.
#![cfg(unix)]
// Some tests need Linux.
#![cfg_attr(not(target_os = "linux"), allow(unused_imports))]

mod support;

use std::io::{self, ErrorKind};
use std::os::unix::net as std_unix;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, Interest};
use kittiwake::net::{Shutdown, ShutdownSignal, UnixDatagram, UnixListener, UnixStream, serve};
use kittiwake::spawn;
use socket2::SockRef;
use support::{counting_waker, pattern, run, settle, until, within};

/// A path for a socket, in a directory of its own that is removed in the end.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("kittiwake-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("socket")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A listener at `place` whose queue takes one connection more than it has, and is full.
fn full_listener(place: &Place) -> (UnixListener, Vec<std_unix::UnixStream>) {
    let listener = std_unix::UnixListener::bind(place.path()).expect("bind");
    SockRef::from(&listener).listen(0).expect("listen");
    let client = std_unix::UnixStream::connect(place.path()).expect("there is room for one");
    (UnixListener::from_std(listener).expect("from_std"), vec![client])
}

/// A path that cannot be one is refused with its length, before any system call.
#[test]
fn impossible_paths_are_explained() {
    run(|| async {
        let long = format!("/tmp/{}", "x".repeat(200));
        for (path, why) in [(&*long, "205 bytes"), ("", "empty"), ("a\0b", "zero byte")] {
            let errors = [
                UnixListener::bind(path).map(drop).expect_err("bind"),
                UnixDatagram::bind(path).map(drop).expect_err("bind"),
                UnixStream::connect(path).await.map(drop).expect_err("connect"),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains(why), "{error}");
            }
        }
    });
}

/// The longest path that the system allows can be bound.
#[test]
#[cfg(target_os = "linux")]
fn longest_path_is_bound() {
    let place = Place::new();
    let room = 107 - place.directory.as_os_str().len() - 1;
    let path = place.directory.join("x".repeat(room));
    drop(UnixListener::bind(&path).expect("107 bytes"));
    let error = UnixListener::bind(place.directory.join("x".repeat(room + 1))).expect_err("108 bytes");
    assert!(error.to_string().contains("has 108 bytes"), "{error}");
}

/// `AddrInUse` says whether a socket uses the path, an ended one has left it, or the file is no socket. To find out
/// leaves no connection in the queue of the socket that uses it.
#[test]
fn taken_and_stale_paths_are_told_apart() {
    run(|| async {
        let place = Place::new();
        let in_use = |why: &str| {
            for error in [
                UnixListener::bind(place.path()).map(drop).expect_err("bind"),
                UnixDatagram::bind(place.path()).map(drop).expect_err("bind"),
            ] {
                let text = error.to_string();
                assert_eq!(error.kind(), ErrorKind::AddrInUse, "{text}");
                assert!(text.contains(why) && text.contains(place.path().to_str().unwrap()), "{text}");
            }
        };
        let listener = UnixListener::bind(place.path()).expect("bind");
        in_use("another socket uses the path");
        assert_eq!(listener.try_accept().expect_err("no client").kind(), ErrorKind::WouldBlock);
        drop(listener);
        in_use("remove the file");
        std::fs::remove_file(place.path()).expect("the socket's file is still there");
        let datagram = UnixDatagram::bind(place.path()).expect("bind");
        in_use("another socket uses the path");
        drop(datagram);
        in_use("remove the file");
        std::fs::remove_file(place.path()).expect("the socket's file is still there");
        std::fs::write(place.path(), "text").expect("write");
        in_use("no socket");
    });
}

/// The errors of connecting name the path.
#[test]
fn connect_errors_name_the_path() {
    run(|| async {
        let place = Place::new();
        let error = UnixStream::connect(place.path()).await.expect_err("no file");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains(place.path().to_str().unwrap()), "{error}");
        let system = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<std::io::Error>());
        assert_eq!(system.and_then(std::io::Error::raw_os_error), Some(libc::ENOENT), "the kernel's code is kept");
        drop(UnixListener::bind(place.path()).expect("bind"));
        let error = UnixStream::connect(place.path()).await.expect_err("no listener");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(place.path().to_str().unwrap()), "{error}");
        let error = UnixStream::connect_timeout(place.path(), Duration::ZERO).await.expect_err("no time");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

/// A full queue is waited for: the system says `EAGAIN` and reports no event.
#[test]
fn full_queue_is_waited_for() {
    run(|| async {
        let place = Place::new();
        let (listener, _clients) = full_listener(&place);
        let mut connecting = pin!(UnixStream::connect(place.path()));
        assert!(poll_once(&mut connecting).await.is_none(), "the queue is full");
        listener.accept().await.expect("the first client");
        let client = connecting.await.expect("the queue has room");
        let (server, _) = listener.accept().await.expect("the second client");
        client.try_write(b"hello").expect("write");
        assert_eq!(server.peek(&mut [0; 8]).await.expect("peek"), 5);
    });
}

/// The caller's limit ends the wait for a full queue.
#[test]
fn full_queue_is_bounded_by_timeout() {
    run(|| async {
        let place = Place::new();
        let (_listener, _clients) = full_listener(&place);
        let connecting = UnixStream::connect_timeout(place.path(), Duration::from_millis(20));
        let error = connecting.await.expect_err("nobody accepts");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains(place.path().to_str().unwrap()), "{error}");
    });
}

/// Outside a runtime nothing can pause, and the error says what is the matter.
#[test]
fn full_queue_outside_runtime_fails() {
    let place = Place::new();
    let (_listener, _clients) = full_listener(&place);
    let error = futures_lite::future::block_on(UnixStream::connect(place.path())).expect_err("the queue is full");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

/// Abstract names work for all three kinds of socket, and come back as they were given.
#[test]
#[cfg(all(target_os = "linux", not(kittiwake_portable)))]
fn abstract_names_come_back() {
    use std::os::linux::net::SocketAddrExt;
    run(|| async {
        let name = format!("kittiwake\0{}", std::process::id()).into_bytes();
        let addr = std_unix::SocketAddr::from_abstract_name(&name).expect("a name");
        let listener = UnixListener::bind_addr(&addr).expect("bind_addr");
        assert_eq!(listener.local_addr().expect("local_addr").as_abstract_name(), Some(&name[..]));
        let error = UnixListener::bind_addr(&addr).expect_err("the name is taken");
        assert!(error.to_string().contains("@kittiwake\\x00"), "{error}");
        let client = UnixStream::connect_addr(&addr).await.expect("connect_addr");
        assert_eq!(client.peer_addr().expect("peer_addr").as_abstract_name(), Some(&name[..]));
        drop(listener);
        let receiver = UnixDatagram::bind_addr(&addr).expect("the name is free");
        receiver.send_to_addr(b"self", &addr).await.expect("send_to_addr");
        let (length, from) = receiver.recv_from(&mut [0; 8]).await.expect("recv_from");
        assert_eq!((length, from.as_abstract_name()), (4, Some(&name[..])));
    });
}

/// The zero bytes of an abstract name count, also the first one. The client reaches the listener of just that name.
#[test]
#[cfg(all(target_os = "linux", not(kittiwake_portable)))]
fn zero_bytes_of_names_count() {
    let unique = std::process::id();
    for name in [format!("\0kittiwake-{unique}"), format!("kittiwake-{unique}\0")] {
        run(move || connects_to_abstract(name.into_bytes()));
    }
}

/// The empty name is an abstract name like any other. Another program may use it, so the test has a network of its own.
#[test]
#[cfg(all(target_os = "linux", not(kittiwake_portable)))]
fn empty_name_is_abstract() {
    support::in_own_network("empty_name_is_abstract", || kittiwake::block_on(connects_to_abstract(Vec::new())));
}

#[cfg(all(target_os = "linux", not(kittiwake_portable)))]
async fn connects_to_abstract(name: Vec<u8>) {
    use std::os::linux::net::SocketAddrExt;
    let addr = std_unix::SocketAddr::from_abstract_name(&name).expect("a name");
    let absent = UnixStream::connect_addr(&addr).await.expect_err("no socket has the name");
    assert_eq!(absent.kind(), ErrorKind::ConnectionRefused, "{absent}");
    assert!(absent.to_string().contains(&format!("@{}", name.escape_ascii())), "{absent}");
    let listener = UnixListener::bind_addr(&addr).expect("bind_addr");
    let client = UnixStream::connect_addr(&addr).await.expect("connect_addr");
    assert_eq!(client.peer_addr().expect("peer_addr").as_abstract_name(), Some(&name[..]));
    listener.accept().await.expect("the client has connected to this listener");
}

/// A read stops where a peer has passed a descriptor. So a short read does not prove that nothing is left.
#[test]
#[cfg(target_os = "linux")]
fn passed_descriptor_hides_no_byte() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsFd;
    run(|| async {
        let (mut ours, theirs) = UnixStream::pair().expect("pair");
        let mut buf = [0; 16];
        assert!(poll_once(ours.read(&mut buf)).await.is_none(), "it is registered");
        let descriptors = [theirs.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        theirs.try_write(b"ab").expect("write");
        sendmsg(&theirs, &[IoSlice::new(b"cd")], &mut ancillary, SendFlags::empty()).expect("sendmsg");
        theirs.try_write(b"ef").expect("write");
        // The reactor reports all three at once.
        ours.readable().await.expect("readable");
        settle().await;
        let mut bytes = Vec::new();
        while bytes.len() < 6 {
            let read = ours.read(&mut buf).await.expect("read");
            bytes.extend_from_slice(&buf[..read]);
        }
        assert_eq!(bytes, b"abcdef");
    });
}

/// `serve` takes a Unix listener, drains, and reports.
#[test]
fn serve_takes_unix_listener() {
    run(|| async {
        let place = Place::new();
        let signal = ShutdownSignal::new();
        let echo = |mut stream: UnixStream, _peer| async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            stream.write_all(&bytes).await
        };
        let server =
            spawn(serve(UnixListener::bind(place.path()).expect("bind"), echo).with_shutdown(&signal).into_future());
        for length in [0, 1, 300_000] {
            let mut client = UnixStream::connect(place.path()).await.expect("connect");
            let sent = pattern(length);
            client.write_all(&sent).await.expect("write");
            client.shutdown(std::net::Shutdown::Write).expect("shutdown");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("read");
            assert!(answer == sent, "{length} bytes came back changed");
        }
        signal.trigger();
        assert_eq!(server.await.expect("the server").expect("no error").served, 3);
    });
}

/// A socket of this kind whose path fills the kernel's structure. std refuses to bind it, and any other program may.
#[cfg(target_os = "linux")]
fn bound_to_longest_path(place: &Place, kind: rustix::net::SocketType) -> (std::os::fd::OwnedFd, PathBuf) {
    use rustix::net::{AddressFamily, SocketAddrUnix, bind, socket};
    let room = 108 - place.directory.as_os_str().len() - 1;
    let path = place.directory.join("x".repeat(room));
    let socket = socket(AddressFamily::UNIX, kind, None).expect("a socket");
    bind(&socket, &SocketAddrUnix::new(&path).expect("108 bytes")).expect("bind");
    (socket, path)
}

/// A client chooses its address. None may make a listener panic, which would end the whole server, or fail.
#[test]
#[cfg(target_os = "linux")]
fn accept_takes_every_client_address() {
    use rustix::net::{SocketAddrUnix, SocketType, connect};
    use std::os::linux::net::SocketAddrExt;
    run(|| async {
        let place = Place::new();
        let listener = UnixListener::bind(place.path()).expect("bind");
        let (client, path) = bound_to_longest_path(&place, SocketType::STREAM);
        connect(&client, &SocketAddrUnix::new(place.path()).expect("a path")).expect("connect");
        let (stream, peer) = listener.accept().await.expect("a client with a path of 108 bytes");
        assert_eq!(peer.as_pathname(), Some(&*path));
        assert_eq!(stream.peer_addr().expect("peer_addr").as_pathname(), Some(&*path));

        let client = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        let name = format!("kittiwake-client-{}", std::process::id());
        client.bind(&socket2::SockAddr::unix(format!("\0{name}")).expect("a name")).expect("bind");
        client.connect(&socket2::SockAddr::unix(place.path()).expect("a path")).expect("connect");
        let (_, peer) = listener.accept().await.expect("a client with an abstract name");
        assert_eq!(peer.as_abstract_name(), Some(name.as_bytes()), "the name was lost");
    });
}

/// A sender chooses its address. None may make a receiver panic, or cost it the datagram.
#[test]
#[cfg(target_os = "linux")]
fn recv_from_takes_every_sender_address() {
    use rustix::net::{SendFlags, SocketAddrUnix, SocketType, sendto};
    run(|| async {
        let place = Place::new();
        let receiver = UnixDatagram::bind(place.path()).expect("bind");
        let (sender, _) = bound_to_longest_path(&place, SocketType::DGRAM);
        let target = SocketAddrUnix::new(place.path()).expect("a path");
        sendto(&sender, b"hello", SendFlags::empty(), &target).expect("sendto");
        let mut buf = [0; 8];
        assert_eq!(receiver.peek_from(&mut buf).await.expect("peek_from").0, 5);
        let (length, peer) = receiver.recv_from(&mut buf).await.expect("a sender with a path of 108 bytes");
        assert_eq!(&buf[..length], b"hello");
        assert!(peer.is_unnamed(), "{peer:?}");
    });
}

/// Datagrams keep their limits and their order, and a sender waits while the receiver's queue is full.
#[test]
fn datagram_sender_waits_for_room() {
    run(|| async {
        let place = Place::new();
        let receiver = UnixDatagram::bind(place.path()).expect("bind");
        let connected = UnixDatagram::unbound().expect("unbound");
        connected.connect(place.path()).expect("connect");
        let mut queued = 0_u32;
        while connected.try_send(&queued.to_ne_bytes()).is_ok() {
            queued += 1;
        }
        let last = queued.to_ne_bytes();
        let mut sending = pin!(connected.send(&last));
        assert!(poll_once(&mut sending).await.is_none(), "the queue is full");
        let mut buf = [0; 8];
        assert_eq!(receiver.recv(&mut buf).await.expect("recv"), 4);
        sending.await.expect("there is room again");
        for number in 1..=queued {
            assert_eq!(receiver.recv(&mut buf).await.expect("recv"), 4);
            assert_eq!(buf[..4], number.to_ne_bytes(), "the order changed");
        }
        assert_eq!(receiver.try_recv(&mut buf).expect_err("all were received").kind(), ErrorKind::WouldBlock);
    });
}

/// A sender that is not connected waits for room as well, though no event tells it.
#[test]
fn unconnected_sender_waits_for_room() {
    run(|| async {
        let place = Place::new();
        let receiver = UnixDatagram::bind(place.path()).expect("bind");
        let sender = UnixDatagram::unbound().expect("unbound");
        while sender.try_send_to(b"fill", place.path()).is_ok() {}
        let mut sending = pin!(sender.send_to(b"last", place.path()));
        assert!(poll_once(&mut sending).await.is_none(), "the queue is full");
        assert_eq!(receiver.recv(&mut [0; 8]).await.expect("recv"), 4);
        assert_eq!(sending.await.expect("there is room again"), 4);
    });
}

/// The full queue of one receiver says nothing of the sender's own buffer: the sender stays writable for others.
#[test]
fn full_receiver_leaves_sender_writable() {
    run(|| async {
        let (full, other) = (Place::new(), Place::new());
        let bind = |place: &Place| UnixDatagram::bind(place.path()).expect("bind");
        let (idle, receiver, sender) = (bind(&full), bind(&other), UnixDatagram::unbound().expect("unbound"));
        let full = idle.local_addr().expect("local_addr");
        sender.connect(other.path()).expect("connect");
        // It is registered from now on.
        assert!(poll_once(pin!(sender.recv(&mut [0; 8]))).await.is_none(), "none has sent");
        sender.writable().await.expect("its buffer is empty");
        let stranger = UnixDatagram::unbound().expect("unbound");
        while stranger.try_send_to_addr(b"fill", &full).is_ok() {}
        let error = sender.try_send_to_addr(b"more", &full).expect_err("the queue is full");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(poll_once(pin!(sender.send_to_addr(b"more", &full))).await.is_none(), "it waits for room");
        assert!(poll_once(pin!(sender.writable())).await.is_some(), "its own buffer has room");
        sender.send(b"word").await.expect("the other receiver has room");
        assert_eq!(receiver.recv(&mut [0; 8]).await.expect("recv"), 4);
    });
}

/// Datagrams may be empty, are cut to the buffer, and can be looked at first. The sender's address comes with them.
#[test]
fn datagrams_keep_their_limits() {
    run(|| async {
        let place = Place::new();
        let receiver = UnixDatagram::bind(place.path()).expect("bind");
        let from = place.directory.join("sender");
        let sender = UnixDatagram::bind(&from).expect("bind");
        sender.send_to(b"", place.path()).await.expect("send_to");
        sender.send_to(b"0123456789", place.path()).await.expect("send_to");
        let mut buf = [0; 4];
        assert_eq!(receiver.recv(&mut buf).await.expect("recv"), 0);
        let (peeked, peer) = receiver.peek_from(&mut buf).await.expect("peek_from");
        assert_eq!((peeked, peer.as_pathname()), (4, Some(&*from)));
        let (received, peer) = receiver.recv_from(&mut buf).await.expect("recv_from");
        assert_eq!((received, peer.as_pathname(), &buf), (4, Some(&*from), b"0123"));
        let (waker, wakes) = counting_waker();
        assert!(receiver.poll_recv(&mut Context::from_waker(&waker), &mut buf).is_pending());
        sender.send_to(b"more", place.path()).await.expect("send_to");
        until(|| wakes.get() > 0).await;
        assert!(matches!(receiver.poll_recv(&mut Context::from_waker(&waker), &mut buf), Poll::Ready(Ok(4))));
    });
}

/// A receiver that is gone is an error of the sender's.
#[test]
fn sender_hears_of_closed_receiver() {
    run(|| async {
        let place = Place::new();
        let sender = UnixDatagram::unbound().expect("unbound");
        drop(UnixDatagram::bind(place.path()).expect("bind"));
        let error = sender.send_to(b"hello", place.path()).await.expect_err("no receiver");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let (one, other) = UnixDatagram::pair().expect("pair");
        drop(other);
        assert!(one.send(b"hello").await.is_err(), "the peer is gone");
    });
}

/// A shutdown of receiving ends each receive and each peek, also one that waits, and also later ones. Linux alone would
/// let them wait for ever.
#[test]
fn shutdown_ends_receives() {
    run(|| async {
        for how in [Shutdown::Read, Shutdown::Both] {
            let pairs: Vec<_> = (0..4).map(|_| UnixDatagram::pair().expect("pair")).collect();
            let [one, two, three, four] = [0, 1, 2, 3].map(|index| &pairs[index].0);
            let mut bufs = [[0; 8]; 4];
            let [a, b, c, d] = &mut bufs;
            let (mut recv, mut recv_from) = (pin!(one.recv(a)), pin!(two.recv_from(b)));
            let (mut peek, mut peek_from) = (pin!(three.peek(c)), pin!(four.peek_from(d)));
            for _ in 0..2 {
                assert!(poll_once(&mut recv).await.is_none(), "nothing was sent");
                assert!(poll_once(&mut recv_from).await.is_none(), "nothing was sent");
                assert!(poll_once(&mut peek).await.is_none(), "nothing was sent");
                assert!(poll_once(&mut peek_from).await.is_none(), "nothing was sent");
                settle().await;
            }
            for socket in [one, two, three, four] {
                socket.shutdown(how).expect("shutdown");
            }
            assert_eq!(recv.await.expect("recv"), 0);
            let (received, peer) = recv_from.await.expect("recv_from");
            assert!(received == 0 && peer.is_unnamed(), "{received} bytes from {peer:?}");
            assert_eq!(peek.await.expect("peek"), 0);
            let (peeked, peer) = peek_from.await.expect("peek_from");
            assert!(peeked == 0 && peer.is_unnamed(), "{peeked} bytes from {peer:?}");
            let mut buf = [0; 8];
            for _ in 0..2 {
                assert_eq!(one.recv(&mut buf).await.expect("it stays shut down"), 0);
                assert_eq!(one.peek(&mut buf).await.expect("it stays shut down"), 0);
                assert_eq!(one.try_recv(&mut buf).expect("it stays shut down"), 0);
                assert_eq!(one.try_recv_from(&mut buf).expect("it stays shut down").0, 0);
                one.readable().await.expect("it stays shut down");
            }
        }
    });
}

/// A system call of the user meets `WouldBlock` after a shutdown of receiving, in [`UnixDatagram::try_io`] and in
/// [`UnixDatagram::async_io`]. It must not have later receives wait.
#[test]
fn own_call_hides_no_shutdown() {
    run(|| async {
        let (one, _other) = UnixDatagram::pair().expect("pair");
        one.shutdown(Shutdown::Read).expect("shutdown");
        one.readable().await.expect("readable");
        let blocks = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
        for _ in 0..2 {
            one.try_io(Interest::READABLE, blocks).expect_err("the call would block");
            assert_eq!(one.recv(&mut [0; 8]).await.expect("recv"), 0);
            assert!(poll_once(one.async_io(Interest::READABLE, blocks)).await.is_none(), "it waits for another event");
            one.readable().await.expect("readable");
            assert_eq!(one.peek(&mut [0; 8]).await.expect("peek"), 0);
        }
    });
}

/// A socket that no reactor has watched yet, or that moves to another reactor, stays shut down.
#[test]
fn shutdown_ends_receives_in_each_reactor() {
    within(|| {
        let (one, _other) = UnixDatagram::pair().expect("pair");
        one.shutdown(Shutdown::Read).expect("shutdown");
        for _ in 0..2 {
            kittiwake::block_on(async {
                assert_eq!(one.recv(&mut [0; 8]).await.expect("recv"), 0);
                one.readable().await.expect("readable");
                assert_eq!(one.recv(&mut [0; 8]).await.expect("recv"), 0);
            });
        }
    });
}

/// Datagrams that had arrived before receiving was shut down come first.
#[test]
fn shutdown_loses_no_datagram() {
    run(|| async {
        let (one, other) = UnixDatagram::pair().expect("pair");
        other.send(b"first").await.expect("send");
        other.send(b"").await.expect("send");
        other.send(b"last one").await.expect("send");
        one.shutdown(Shutdown::Read).expect("shutdown");
        let mut buf = [0; 16];
        assert_eq!(one.peek(&mut buf).await.expect("peek"), 5);
        for length in [5, 0, 8, 0, 0] {
            assert_eq!(one.recv(&mut buf).await.expect("recv"), length);
        }
    });
}

/// A shutdown of sending fails the sends that wait for room. No event tells them.
#[test]
fn shutdown_fails_waiting_sends() {
    run(|| async {
        for how in [Shutdown::Write, Shutdown::Both] {
            let (one, _other) = UnixDatagram::pair().expect("pair");
            while one.try_send(b"fill").is_ok() {}
            let mut sending = pin!(one.send(b"more"));
            for _ in 0..2 {
                assert!(poll_once(&mut sending).await.is_none(), "the queue is full");
                settle().await;
            }
            one.shutdown(how).expect("shutdown");
            let error = sending.await.expect_err("sending is shut down");
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        }
    });
}

/// A server learns from the kernel who its peer is.
#[test]
#[cfg(all(feature = "sockopt", target_os = "linux", not(kittiwake_portable)))]
fn peer_cred_names_the_peer() {
    use std::os::unix::fs::MetadataExt;
    run(|| async {
        let place = Place::new();
        let listener = UnixListener::bind(place.path()).expect("bind");
        let client = UnixStream::connect(place.path()).await.expect("connect");
        let (server, _) = listener.accept().await.expect("accept");
        let ours = std::fs::metadata("/proc/self").expect("/proc");
        for stream in [client, server] {
            let peer = stream.peer_cred().expect("peer_cred");
            assert_eq!((peer.pid(), peer.uid(), peer.gid()), (Some(std::process::id()), ours.uid(), ours.gid()));
        }
    });
}
