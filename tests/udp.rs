//! UDP sockets.
// Some tests need Linux.
#![cfg_attr(not(target_os = "linux"), allow(unused_imports))]

mod support;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::future::poll_once;
use kittiwake::io::Interest;
use kittiwake::net::{AddrError, UdpSocket};
use kittiwake::spawn;
use kittiwake::time::{sleep, timeout};
use support::{PATIENCE, counting_waker, own_address, pattern, run, settle, until, within};

/// The most that one datagram of IPv4 carries.
const LARGEST: usize = 65_507;

/// A socket on a port that the kernel chose, and its address.
async fn socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind to port 0");
    let address = socket.local_addr().expect("its address");
    (socket, address)
}

/// Two sockets that are connected to each other.
async fn pair() -> (UdpSocket, UdpSocket) {
    let ((one, one_address), (other, other_address)) = (socket().await, socket().await);
    one.connect(other_address).await.expect("connect");
    other.connect(one_address).await.expect("connect");
    (one, other)
}

/// The address of a port that is closed, and that no other test opens.
async fn closed_port() -> SocketAddr {
    let socket = UdpSocket::bind(own_address()).await.expect("bind");
    socket.local_addr().expect("its address")
}

/// A datagram arrives whole and alone, whatever its size. An empty one is no end.
#[test]
fn datagrams_arrive_whole() {
    run(|| async {
        let ((one, from), (other, to)) = (socket().await, socket().await);
        for length in [0, 1, 1_500, LARGEST, 0, 7] {
            let sent = pattern(length);
            assert_eq!(one.send_to(&sent, to).await.expect("send_to"), length);
            let mut buf = vec![0; LARGEST + 1];
            let (received, peer) = other.recv_from(&mut buf).await.expect("recv_from");
            assert_eq!((&buf[..received], peer), (&sent[..], from));
        }
    });
}

/// A datagram that is too large is an error with the kernel's code, and the socket can be used on.
#[test]
fn oversize_datagram_is_refused() {
    run(|| async {
        let (one, other) = pair().await;
        let error = one.send(&pattern(LARGEST + 1)).await.expect_err("65,508 bytes are too many");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
        one.send(b"small").await.expect("the next datagram");
        assert_eq!(other.recv(&mut [0; 16]).await.expect("recv"), 5);
    });
}

/// A datagram fills a buffer that is too small, and the rest of it is lost. The next datagram is whole, as with std's
/// socket.
#[test]
fn truncated_datagram_fills_buffer() {
    run(|| async {
        let (one, other) = pair().await;
        one.send(b"0123456789").await.expect("send");
        one.send(b"next").await.expect("send");
        let mut buf = [0; 4];
        assert_eq!(other.peek(&mut buf).await.expect("peek"), 4);
        assert_eq!(other.recv(&mut buf).await.expect("recv"), 4);
        assert_eq!(&buf, b"0123");
        assert_eq!(other.recv(&mut buf).await.expect("recv"), 4);
        assert_eq!(&buf, b"next");
    });
}

/// A port that is closed is reported to the next call once, whether it was waiting or not, and neither wedges the
/// socket nor makes it spin.
#[test]
fn refusal_is_reported_once() {
    run(|| async {
        let closed = closed_port().await;
        let client = UdpSocket::bind((closed.ip(), 0)).await.expect("bind");
        client.connect(closed).await.expect("connect");
        for round in 0..3 {
            let mut buf = [0; 16];
            let mut receiving = pin!(client.recv(&mut buf));
            let waits = round % 2 == 0;
            if waits {
                assert!(poll_once(&mut receiving).await.is_none(), "nothing was sent");
            }
            client.send(b"hello").await.expect("send");
            let error = receiving.await.expect_err("the port is closed");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "round {round}");
        }
        let (waker, wakes) = counting_waker();
        let mut buf = [0; 16];
        assert!(client.poll_recv(&mut Context::from_waker(&waker), &mut buf).is_pending(), "the error is gone");
        settle().await;
        assert_eq!(wakes.get(), 0, "an error that is over wakes the receiver");
        let server = UdpSocket::bind(closed).await.expect("the port is free");
        server.send_to(b"back", client.local_addr().expect("its address")).await.expect("send_to");
        assert_eq!(client.recv(&mut [0; 16]).await.expect("the socket works"), 4);
    });
}

/// A server does not fail because one of its clients has gone.
#[test]
fn unconnected_socket_hears_no_refusal() {
    run(|| async {
        let (server, address) = socket().await;
        let closed = closed_port().await;
        for _ in 0..3 {
            server.send_to(b"to nobody", closed).await.expect("send_to");
        }
        let (client, _) = socket().await;
        client.send_to(b"hello", address).await.expect("send_to");
        assert_eq!(server.recv_from(&mut [0; 16]).await.expect("recv_from").0, 5);
    });
}

/// Eight tasks receive on one socket: each datagram goes to one of them, and no task is forgotten.
#[test]
fn eight_receivers_share_one_socket() {
    const EACH: usize = 50;
    for workers in [1, 2] {
        within(move || {
            let runtime =
                kittiwake::runtime::Builder::new_multi_thread().worker_threads(workers).build().expect("a runtime");
            runtime.block_on(async {
                let (server, address) = socket().await;
                let (server, received) = (Arc::new(server), Arc::new(AtomicUsize::new(0)));
                let tasks: Vec<_> = (0..8)
                    .map(|_| {
                        let (server, received) = (server.clone(), received.clone());
                        spawn(async move {
                            let mut sum = 0;
                            for _ in 0..EACH {
                                let mut buf = [0; size_of::<usize>()];
                                assert_eq!(server.recv_from(&mut buf).await.expect("recv_from").0, size_of::<usize>());
                                received.fetch_add(1, Ordering::SeqCst);
                                sum += usize::from_ne_bytes(buf);
                            }
                            sum
                        })
                    })
                    .collect();
                let (client, _) = socket().await;
                for number in 0..8 * EACH {
                    client.send_to(&number.to_ne_bytes(), address).await.expect("send_to");
                    // A full receive buffer would drop datagrams.
                    until(|| received.load(Ordering::SeqCst) + 16 > number).await;
                }
                let mut sum = 0;
                for task in tasks {
                    sum += task.await.expect("a receiver");
                }
                assert_eq!(sum, (0..8 * EACH).sum::<usize>(), "with {workers} workers");
            });
        });
    }
}

/// A receiver that was woken and then cancelled leaves its datagram to the others.
#[test]
fn cancelled_receiver_loses_no_datagram() {
    run(|| async {
        let (one, other) = pair().await;
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let (mut first_buf, mut second_buf) = ([0; 8], [0; 8]);
        let mut first = Box::pin(other.recv(&mut first_buf));
        let mut second = Box::pin(other.recv(&mut second_buf));
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        one.send(b"hello").await.expect("send");
        until(|| wakes.get() >= 2).await;
        drop(first);
        assert_eq!(second.await.expect("recv"), 5);
    });
}

/// A socket that is always ready does not keep its worker from timers.
#[test]
fn ready_socket_starves_nobody() {
    run(|| async {
        let (one, other) = pair().await;
        one.send(b"stays").await.expect("send");
        let peeking = spawn(async move {
            loop {
                other.peek(&mut [0; 8]).await.expect("peek");
            }
        });
        sleep(Duration::from_millis(5)).await;
        peeking.abort();
        assert!(peeking.await.is_err_and(|error| error.is_cancelled()));
    });
}

/// A system call of the caller's own clears readiness by its `WouldBlock`, and the next datagram brings it back.
#[test]
fn own_calls_clear_readiness() {
    run(|| async {
        let (one, other) = pair().await;
        let mut cx = Context::from_waker(Waker::noop());
        one.send(b"hello").await.expect("send");
        other.readable().await.expect("readable");
        let call = || socket2::SockRef::from(&other).recv(&mut [std::mem::MaybeUninit::uninit(); 16]);
        assert_eq!(other.try_io(Interest::READABLE, call).expect("the datagram"), 5);
        assert!(other.poll_readable(&mut cx).is_ready(), "no call has said otherwise");
        let error = other.try_io(Interest::READABLE, call).expect_err("none is left");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(other.poll_readable(&mut cx).is_pending(), "readiness outlives WouldBlock");
        one.send(b"again").await.expect("send");
        assert_eq!(other.async_io(Interest::READABLE, call).await.expect("the next one"), 5);
    });
}

/// The methods that do not wait say `WouldBlock`, and do what the others do if they can.
#[test]
fn try_methods_do_not_wait() {
    run(|| async {
        let (one, other) = pair().await;
        let mut buf = [0; 16];
        assert_eq!(other.try_recv(&mut buf).expect_err("nothing").kind(), ErrorKind::WouldBlock);
        assert_eq!(other.try_recv_from(&mut buf).expect_err("nothing").kind(), ErrorKind::WouldBlock);
        assert_eq!(one.try_send(b"one").expect("send"), 3);
        other.readable().await.expect("readable");
        assert_eq!(other.try_recv_from(&mut buf).expect("recv"), (3, one.local_addr().expect("its address")));
    });
}

/// The poll methods store their waker, and return what the others return.
#[test]
fn poll_methods_wake_their_task() {
    run(|| async {
        let ((one, from), (other, to)) = (socket().await, socket().await);
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let mut buf = [0; 16];
        assert!(other.poll_peek_from(&mut cx, &mut buf).is_pending());
        assert!(matches!(one.poll_send_to(&mut cx, b"hello", to), Poll::Ready(Ok(5))));
        until(|| wakes.get() > 0).await;
        assert!(matches!(other.poll_peek_from(&mut cx, &mut buf), Poll::Ready(Ok((5, peer))) if peer == from));
        assert!(matches!(other.poll_recv_from(&mut cx, &mut buf), Poll::Ready(Ok((5, peer))) if peer == from));
        assert!(other.poll_recv(&mut cx, &mut buf).is_pending());
    });
}

/// A connected socket gets the datagrams of its peer only, and the peer can be changed.
#[test]
fn connected_socket_hears_its_peer_only() {
    run(|| async {
        let (server, address) = socket().await;
        let ((one, one_address), (other, other_address)) = (socket().await, socket().await);
        for (peer, peer_address, stranger) in [(&one, one_address, &other), (&other, other_address, &one)] {
            server.connect(peer_address).await.expect("connect");
            assert_eq!(server.peer_addr().expect("its peer"), peer_address);
            stranger.send_to(b"stranger", address).await.expect("send_to");
            peer.send_to(b"peer", address).await.expect("send_to");
            assert_eq!(server.recv(&mut [0; 16]).await.expect("recv"), 4);
        }
    });
}

/// Sending to a broadcast address needs `SO_BROADCAST`.
#[test]
#[cfg(target_os = "linux")]
fn broadcast_needs_permission() {
    run(|| async {
        let receiver = UdpSocket::bind("0.0.0.0:0").await.expect("bind");
        let target = ("127.255.255.255", receiver.local_addr().expect("its address").port());
        let (sender, _) = socket().await;
        assert!(!sender.broadcast().expect("SO_BROADCAST"));
        let error = sender.send_to(b"all", target).await.expect_err("it was not allowed");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        sender.set_broadcast(true).expect("SO_BROADCAST");
        sender.send_to(b"all", target).await.expect("send_to");
        assert_eq!(receiver.recv(&mut [0; 16]).await.expect("recv"), 3);
    });
}

/// A socket gets the datagrams of a group while it is a member.
#[test]
#[cfg(target_os = "linux")]
fn members_receive_multicasts() {
    run(|| async {
        let receiver = UdpSocket::bind("0.0.0.0:0").await.expect("bind");
        let port = receiver.local_addr().expect("its address").port();
        // A group of its own: Linux gives this socket also the datagrams of groups that others have joined.
        let [high, low] = port.to_be_bytes();
        let group = Ipv4Addr::new(239, 255, high, low);
        let target = SocketAddr::from((group, port));
        receiver.join_multicast_v4(group, Ipv4Addr::LOCALHOST).expect("join");
        let (sender, _) = socket().await;
        sender.set_multicast_if_v4(Ipv4Addr::LOCALHOST).expect("IP_MULTICAST_IF");
        assert_eq!(sender.multicast_if_v4().expect("IP_MULTICAST_IF"), Ipv4Addr::LOCALHOST);
        sender.send_to(b"members", target).await.expect("send_to");
        let mut buf = [0; 16];
        let received = timeout(PATIENCE / 2, receiver.recv(&mut buf)).await.expect("a member gets it");
        assert_eq!(received.expect("recv"), 7);
        receiver.leave_multicast_v4(group, Ipv4Addr::LOCALHOST).expect("leave");
        sender.send_to(b"leaver", target).await.expect("send_to");
        sender.send_to(b"marker", (Ipv4Addr::LOCALHOST, port)).await.expect("send_to");
        assert_eq!(receiver.recv(&mut buf).await.expect("recv"), 6);
        assert_eq!(&buf[..6], b"marker", "a socket that has left the group must not get its datagrams");
    });
}

/// Each option is read back as it was set.
#[test]
fn options_are_read_back() {
    run(|| async {
        let (socket, _) = socket().await;
        for value in [true, false] {
            socket.set_broadcast(value).expect("broadcast");
            socket.set_multicast_loop_v4(value).expect("multicast_loop_v4");
            assert_eq!((socket.broadcast().unwrap(), socket.multicast_loop_v4().unwrap()), (value, value));
        }
        socket.set_ttl(7).expect("ttl");
        socket.set_tos_v4(0x10).expect("tos_v4");
        socket.set_multicast_ttl_v4(3).expect("multicast_ttl_v4");
        assert_eq!((socket.ttl().unwrap(), socket.tos_v4().unwrap(), socket.multicast_ttl_v4().unwrap()), (7, 0x10, 3));
        socket.set_recv_buffer_size(20_000).expect("recv_buffer_size");
        socket.set_send_buffer_size(30_000).expect("send_buffer_size");
        // On Linux a socket begins with larger sizes than twice these.
        let sizes = (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap());
        assert!((20_000..100_000).contains(&sizes.0) && (30_000..100_000).contains(&sizes.1), "the sizes: {sizes:?}");
    });
}

/// A buffer size that the kernel cannot express is the largest one. Cut to 32 bits, it could be the smallest.
#[test]
fn huge_buffer_size_is_largest() {
    run(|| async {
        let (socket, _) = socket().await;
        socket.set_recv_buffer_size(20_000).expect("recv_buffer_size");
        socket.set_send_buffer_size(20_000).expect("send_buffer_size");
        let small = (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap());
        socket.set_recv_buffer_size(i32::MAX as usize).expect("recv_buffer_size");
        socket.set_send_buffer_size(i32::MAX as usize).expect("send_buffer_size");
        let largest = (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap());
        assert!(small.0 < largest.0 && small.1 < largest.1, "neither size may stay: {small:?}, {largest:?}");
        socket.set_recv_buffer_size(1 << 32).expect("recv_buffer_size");
        socket.set_send_buffer_size(1 << 32).expect("send_buffer_size");
        assert_eq!((socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap()), largest);
    });
}

/// The IPv6 options are read back as they were set, where the machine has IPv6.
#[test]
fn v6_options_are_read_back() {
    run(|| async {
        if std::net::UdpSocket::bind("[::1]:0").is_err() {
            println!("skipped: no IPv6 here");
            return;
        }
        let socket = UdpSocket::bind("[::1]:0").await.expect("bind");
        socket.set_multicast_loop_v6(false).expect("multicast_loop_v6");
        socket.set_multicast_hops_v6(4).expect("multicast_hops_v6");
        socket.set_unicast_hops_v6(5).expect("unicast_hops_v6");
        assert!(!socket.multicast_loop_v6().unwrap());
        assert_eq!((socket.multicast_hops_v6().unwrap(), socket.unicast_hops_v6().unwrap()), (4, 5));
    });
}

/// A socket that goes to std and back is the same socket, and each side has the blocking mode that it needs.
#[test]
fn std_round_trip_keeps_socket() {
    run(|| async {
        let (socket, address) = socket().await;
        assert!(poll_once(socket.readable()).await.is_none(), "it is registered");
        let std_socket = socket.into_std().expect("into_std");
        std_socket.set_read_timeout(Some(PATIENCE)).expect("a bound");
        let (client, _) = self::socket().await;
        client.send_to(b"std", address).await.expect("send_to");
        assert_eq!(std_socket.recv(&mut [0; 16]).expect("it is blocking again"), 3);
        let socket = UdpSocket::try_from(std_socket).expect("try_from");
        let mut buf = [0; 16];
        assert!(poll_once(socket.recv(&mut buf)).await.is_none(), "it is non-blocking again");
        let descriptor = std::os::fd::OwnedFd::from(socket);
        assert_eq!(std::net::UdpSocket::from(descriptor).local_addr().expect("its address"), address);
    });
}

/// The errors of binding and connecting name the address, and keep the kernel's code.
#[test]
fn errors_name_the_address() {
    run(|| async {
        let (_taken, address) = socket().await;
        let error = UdpSocket::bind(address).await.expect_err("the port is taken");
        assert!(error.to_string().starts_with(&format!("cannot bind {address}: ")), "{error}");
        assert_eq!(AddrError::of(&error).expect("an address").raw_os_error(), Some(libc::EADDRINUSE));
        let (socket, _) = socket().await;
        let error = socket.connect("[::1]:9").await.expect_err("an IPv4 socket has no route to IPv6");
        assert!(error.to_string().starts_with("cannot connect to [::1]:9: "), "{error}");
        assert!(AddrError::of(&error).expect("an address").raw_os_error().is_some());
    });
}

/// A number of hops that the system does not allow is an error, and does not silently mean the default.
#[test]
fn too_many_hops_are_refused() {
    run(|| async {
        let (socket, _) = socket().await;
        socket.set_ttl(9).expect("ttl");
        for hops in [256, u32::MAX] {
            assert_eq!(socket.set_ttl(hops).expect_err("at most 255").kind(), ErrorKind::InvalidInput);
            assert_eq!(socket.set_multicast_ttl_v4(hops).expect_err("at most 255").kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(socket.ttl().expect("ttl"), 9);
    });
}
