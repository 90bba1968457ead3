//! `TcpSocket`, and the options of sockets and streams. Each option is read back by socket2 from a duplicate.

mod support;

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind, Result};
use kittiwake::net::{AddrError, TcpKeepalive, TcpListener, TcpSocket, TcpStream};
use kittiwake::time::Duration;
use socket2::{Domain, Socket, Type};
use support::*;

/// A listener and a stream can be made from sockets that the program has set up.
#[test]
fn socket_listens_and_connects() {
    run(|| async {
        let socket = bound();
        let listener = socket.listen(16).expect("listen");
        let address = listener.local_addr().expect("local_addr");
        let socket = bound();
        let local = socket.local_addr().expect("local_addr");
        let mut client = socket.connect(address).await.expect("connect");
        assert_eq!(client.local_addr().expect("local_addr"), local, "the client must keep the address of its bind");
        let (mut server, peer) = listener.accept().await.expect("accept");
        assert_eq!(peer, local);
        client.write_all(b"x").await.expect("write");
        assert_eq!(server.read(&mut [0; 8]).await.expect("read"), 1);
    });
}

/// The backlog reaches the kernel: a short one holds few connections.
#[test]
#[cfg(target_os = "linux")]
fn backlog_limits_the_queue() {
    run(|| async {
        let listener = bound().listen(0).expect("listen");
        let address = listener.local_addr().expect("local_addr");
        let _queued = TcpStream::connect(address).await.expect("the queue holds one connection");
        let connect = TcpStream::connect_timeout(address, Duration::from_millis(20));
        assert_eq!(connect.await.expect_err("the queue is full").kind(), ErrorKind::TimedOut);
    });
}

/// An unbound socket that listens gets a port, and an unbound one has none before.
#[test]
fn unbound_socket_has_no_port() {
    let socket = TcpSocket::new_v4().expect("a socket");
    assert_eq!(socket.local_addr().expect("local_addr"), SocketAddr::from(([0, 0, 0, 0], 0)));
    let text = format!("{socket:?}");
    assert!(text.starts_with("TcpSocket { addr: 0.0.0.0:0, fd: "), "{text}");
}

/// Each error names the address and has the kernel's code.
#[test]
fn errors_name_the_address() {
    run(|| async {
        let (_listener, taken) = listener().await;
        let socket = TcpSocket::new_v4().expect("a socket");
        let error = socket.bind(taken).expect_err("the port is taken");
        assert_named(&error, "cannot bind ", taken, libc::EADDRINUSE);

        let refusing = bound();
        let address = refusing.local_addr().expect("local_addr");
        let error = socket.connect(address).await.expect_err("no server listens");
        assert_named(&error, "cannot connect to ", address, libc::ECONNREFUSED);
    });
}

/// Two sockets may be bound to one port until both want to listen. That error names the port, too.
#[test]
#[cfg(target_os = "linux")]
fn listen_error_names_the_address() {
    let sockets = [(); 2].map(|()| TcpSocket::new_v4().expect("a socket"));
    let mut address = "127.0.0.1:0".parse().expect("an address");
    for socket in &sockets {
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(address).expect("bind");
        address = socket.local_addr().expect("local_addr");
    }
    let [first, second] = sockets;
    let _listener = first.listen(1).expect("the first socket may listen");
    let error = second.listen(1).expect_err("the first socket listens");
    assert_named(&error, "cannot listen on ", address, libc::EADDRINUSE);
}

#[track_caller]
fn assert_named(error: &std::io::Error, begin: &str, address: SocketAddr, code: i32) {
    assert!(error.to_string().starts_with(&format!("{begin}{address}: ")), "{error}");
    assert_eq!(AddrError::of(error).expect("the error has the address inside").addr(), address);
    assert_eq!(errno(error), Some(code), "the code must be the kernel's own: {error}");
}

/// A socket of the program's own is non-blocking when it listens or connects, although it was blocking before.
#[test]
fn converted_socket_blocks_no_worker() {
    run(|| async {
        let blocking = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let socket = TcpSocket::from(blocking());
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bind");
        let listener = socket.listen(16).expect("listen");
        let client = TcpSocket::from(blocking());
        let client = client.connect(listener.local_addr().expect("local_addr")).await.expect("connect");
        #[cfg(target_os = "linux")]
        for flags in [descriptor_flags(&listener), descriptor_flags(&client)] {
            assert_ne!(flags & libc::O_NONBLOCK, 0, "the socket must be non-blocking");
        }
        let (server, _) = listener.accept().await.expect("accept");
        assert_eq!(client.try_read(&mut [0; 8]).expect_err("nothing was sent").kind(), ErrorKind::WouldBlock);
        drop((server, OwnedFd::from(bound())));
    });
}

/// All sockets of this crate are non-blocking and close-on-exec.
#[test]
#[cfg(target_os = "linux")]
fn sockets_are_nonblocking_and_cloexec() {
    run(|| async {
        let (listener, address) = listener().await;
        let client = TcpStream::connect(address).await.expect("connect");
        let [four, six] = [TcpSocket::new_v4(), TcpSocket::new_v6()].map(|socket| socket.expect("a socket"));
        let flags = [descriptor_flags(&listener), descriptor_flags(&client)];
        for flags in flags.into_iter().chain([descriptor_flags(&four), descriptor_flags(&six)]) {
            assert_eq!(flags & (libc::O_NONBLOCK | libc::O_CLOEXEC), libc::O_NONBLOCK | libc::O_CLOEXEC);
        }
    });
}

/// A socket for IPv6 alone leaves its port to IPv4.
#[test]
#[cfg(target_os = "linux")]
fn only_v6_leaves_the_port_to_v4() {
    run(|| async {
        let socket = TcpSocket::new_v6().expect("a socket");
        if socket.bind("[::1]:0".parse().expect("an address")).is_err() {
            return; // This machine has no IPv6.
        }
        for only in [false, true] {
            // Another program may have the port of IPv4, so several ports are tried.
            let leaves_port = (0..100).any(|_| {
                let socket = TcpSocket::new_v6().expect("a socket");
                socket.set_only_v6(only).expect("IPV6_V6ONLY");
                assert_eq!(socket.only_v6().expect("IPV6_V6ONLY"), only);
                assert_eq!(reader(&socket).only_v6().expect("IPV6_V6ONLY"), only);
                socket.bind("[::]:0".parse().expect("an address")).expect("bind");
                let port = socket.local_addr().expect("local_addr").port();
                TcpSocket::new_v4().expect("a socket").bind(([0, 0, 0, 0], port).into()).is_ok()
            });
            assert_eq!(leaves_port, only, "only a socket for IPv6 alone leaves its port to IPv4");
        }
        TcpSocket::new_v4().expect("a socket").only_v6().expect_err("the option is one of IPv6");
    });
}

/// Several sockets with `SO_REUSEPORT` listen on one port.
#[test]
#[cfg(any(target_os = "android", target_os = "linux"))]
fn reused_port_has_several_listeners() {
    let mut address = "127.0.0.1:0".parse().expect("an address");
    let mut listeners = Vec::new();
    for _ in 0..3 {
        let socket = TcpSocket::new_v4().expect("a socket");
        assert!(!socket.reuse_port().expect("SO_REUSEPORT"));
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        assert!(socket.reuse_port().expect("SO_REUSEPORT") && reader(&socket).reuse_port().expect("SO_REUSEPORT"));
        socket.bind(address).expect("bind");
        address = socket.local_addr().expect("local_addr");
        listeners.push(socket.listen(16).expect("each socket may listen"));
    }
}

/// The options that only unconnected sockets have reach the kernel.
#[test]
fn socket_options_reach_the_kernel() {
    let socket = TcpSocket::new_v4().expect("a socket");
    for on in [true, false] {
        socket.set_reuse_address(on).expect("SO_REUSEADDR");
        assert_eq!(reader(&socket).reuse_address().expect("SO_REUSEADDR"), on);
        assert_eq!(socket.reuse_address().expect("SO_REUSEADDR"), on);
        socket.set_nodelay(on).expect("TCP_NODELAY");
        assert_eq!(reader(&socket).tcp_nodelay().expect("TCP_NODELAY"), on);
        assert_eq!(socket.nodelay().expect("TCP_NODELAY"), on);
    }
    #[cfg(all(target_os = "linux", not(kittiwake_portable)))]
    {
        assert_eq!(socket.device().expect("SO_BINDTODEVICE"), None);
        let bound = socket.bind_device(Some(b"lo"));
        if bound.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
            return eprintln!("the device was skipped: this process may not bind one");
        }
        bound.expect("SO_BINDTODEVICE");
        assert_eq!(reader(&socket).device().expect("SO_BINDTODEVICE").as_deref(), Some(&b"lo"[..]));
        assert_eq!(socket.device().expect("SO_BINDTODEVICE").as_deref(), Some(&b"lo"[..]));
    }
}

/// A name that Linux would cut short is an error. It would bind the socket to another device, or to none.
#[test]
fn cut_name_binds_no_device() {
    let socket = TcpSocket::new_v4().expect("a socket");
    for name in [&b""[..], b"lo\0", b"lo\0junk", b"lo23456789012345"] {
        let error = socket.bind_device(Some(name)).expect_err("the name would be cut");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}: {error}");
    }
    #[cfg(all(target_os = "linux", not(kittiwake_portable)))]
    assert_eq!(socket.device().expect("SO_BINDTODEVICE"), None);
}

/// The options that sockets and streams share, so that one test serves both types.
macro_rules! options_reach_the_kernel {
    ($socket:expr) => {
        let socket = $socket;
        let seconds = Duration::from_secs;
        assert_eq!(socket.keepalive().expect("SO_KEEPALIVE"), None);
        let keepalive =
            TcpKeepalive::new().with_time(seconds(60)).with_interval(Duration::from_millis(9_001)).with_retries(3);
        or_unsupported(socket.set_keepalive(Some(keepalive)), || {
            assert!(reader(&socket).keepalive().expect("SO_KEEPALIVE"));
            let rounded_up = keepalive.with_interval(seconds(10));
            assert_eq!(socket.keepalive().expect("SO_KEEPALIVE"), Some(rounded_up));
            #[cfg(target_os = "linux")]
            {
                assert_eq!(reader(&socket).tcp_keepalive_time().expect("TCP_KEEPIDLE"), seconds(60));
                assert_eq!(reader(&socket).tcp_keepalive_interval().expect("TCP_KEEPINTVL"), seconds(10));
                assert_eq!(reader(&socket).tcp_keepalive_retries().expect("TCP_KEEPCNT"), 3);
            }
            // A time that is not set stays.
            let probes = socket.set_keepalive(Some(TcpKeepalive::new().with_retries(4)));
            probes.expect("TCP_KEEPCNT");
            assert_eq!(socket.keepalive().expect("SO_KEEPALIVE"), Some(rounded_up.with_retries(4)));
            let error = socket.set_keepalive(Some(TcpKeepalive::new().with_time(Duration::ZERO)));
            assert_eq!(error.expect_err("a time of zero").kind(), ErrorKind::InvalidInput);
        });
        socket.set_keepalive(None).expect("SO_KEEPALIVE");
        assert!(!reader(&socket).keepalive().expect("SO_KEEPALIVE"));

        or_unsupported(socket.set_user_timeout(Some(Duration::from_micros(1_500))), || {
            #[cfg(target_os = "linux")]
            {
                let rounded_up = Some(Duration::from_millis(2));
                assert_eq!(reader(&socket).tcp_user_timeout().expect("TCP_USER_TIMEOUT"), rounded_up);
                assert_eq!(socket.user_timeout().expect("TCP_USER_TIMEOUT"), rounded_up);
            }
            for wrong in [Duration::ZERO, Duration::MAX] {
                let error = socket.set_user_timeout(Some(wrong)).expect_err("the kernel has no such timeout");
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
            }
            socket.set_user_timeout(None).expect("TCP_USER_TIMEOUT");
            assert_eq!(socket.user_timeout().expect("TCP_USER_TIMEOUT"), None);
        });

        for on in [false, true] {
            or_unsupported(socket.set_quickack(on), || {
                #[cfg(target_os = "linux")]
                assert_eq!(reader(&socket).tcp_quickack().expect("TCP_QUICKACK"), on);
                assert_eq!(socket.quickack().expect("TCP_QUICKACK"), on);
            });
        }
        or_unsupported(socket.set_notsent_lowat(4_096), || {
            #[cfg(target_os = "linux")]
            assert_eq!(reader(&socket).tcp_notsent_lowat().expect("TCP_NOTSENT_LOWAT"), 4_096);
            assert_eq!(socket.notsent_lowat().expect("TCP_NOTSENT_LOWAT"), 4_096);
        });
        or_unsupported(socket.set_congestion("reno"), || {
            #[cfg(target_os = "linux")]
            assert!(reader(&socket).tcp_congestion().expect("TCP_CONGESTION").starts_with(b"reno\0"));
            assert_eq!(socket.congestion().expect("TCP_CONGESTION"), "reno");
            let error = socket.set_congestion("no such algorithm").expect_err("no system has this one");
            assert_ne!(error.kind(), ErrorKind::Unsupported, "{error}");
        });

        socket.set_send_buffer_size(16_384).expect("SO_SNDBUF");
        let size = reader(&socket).send_buffer_size().expect("SO_SNDBUF");
        assert!([16_384, 32_768].contains(&size), "the kernel doubles the size or keeps it: {size}");
        assert_eq!(socket.send_buffer_size().expect("SO_SNDBUF"), size);
        socket.set_recv_buffer_size(16_384).expect("SO_RCVBUF");
        let size = reader(&socket).recv_buffer_size().expect("SO_RCVBUF");
        assert!([16_384, 32_768].contains(&size), "the kernel doubles the size or keeps it: {size}");
        assert_eq!(socket.recv_buffer_size().expect("SO_RCVBUF"), size);
        // Linux cuts the size down to what it allows. With its upper half cut off, the size would be the smallest one.
        #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
        {
            socket.set_send_buffer_size(1 << 32).expect("SO_SNDBUF");
            socket.set_recv_buffer_size(1 << 32).expect("SO_RCVBUF");
            assert!(socket.send_buffer_size().expect("SO_SNDBUF") > 32_768);
            assert!(socket.recv_buffer_size().expect("SO_RCVBUF") > 32_768);
        }

        or_unsupported(socket.set_tos_v4(0x10), || {
            #[cfg(target_os = "linux")]
            assert_eq!(reader(&socket).tos_v4().expect("IP_TOS"), 0x10);
            assert_eq!(socket.tos_v4().expect("IP_TOS"), 0x10);
        });
        assert_eq!(socket.linger().expect("SO_LINGER"), None);
        socket.set_zero_linger().expect("SO_LINGER");
        assert_eq!(socket.linger().expect("SO_LINGER"), Some(Duration::ZERO));
        assert_eq!(reader(&socket).linger().expect("SO_LINGER"), Some(Duration::ZERO));
    };
}

/// Each option reaches the kernel before the connection, or is `Unsupported`.
#[test]
fn options_hold_before_the_connection() {
    options_reach_the_kernel!(TcpSocket::new_v4().expect("a socket"));
}

/// Each option reaches the kernel on a connection, or is `Unsupported`.
#[test]
fn options_hold_on_a_stream() {
    run(|| async {
        let (client, _server) = pair().await;
        options_reach_the_kernel!(client);
    });
}

/// The traffic class is an option of IPv6.
#[test]
fn traffic_class_reaches_the_kernel() {
    let Ok(socket) = TcpSocket::new_v6() else { return };
    or_unsupported(socket.set_tclass_v6(0x20), || {
        #[cfg(target_os = "linux")]
        assert_eq!(reader(&socket).tclass_v6().expect("IPV6_TCLASS"), 0x20);
        assert_eq!(socket.tclass_v6().expect("IPV6_TCLASS"), 0x20);
    });
    let error = TcpSocket::new_v4().expect("a socket").tclass_v6().expect_err("the option is one of IPv6");
    assert!(!error.to_string().is_empty());
}

/// A traffic class has 8 bits. The kernel would take `u32::MAX` for -1, which means the default.
#[test]
fn large_traffic_class_is_refused() {
    let Ok(socket) = TcpSocket::new_v6() else { return };
    or_unsupported(socket.set_tclass_v6(0x20), || {
        for class in [256, i32::MAX as u32, u32::MAX] {
            let error = socket.set_tclass_v6(class).expect_err("a class of more than 8 bits");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{class}: {error}");
        }
        assert_eq!(socket.tclass_v6().expect("IPV6_TCLASS"), 0x20);
    });
}

/// An accepted connection inherits the options of its listener, as the docs of Linux say.
#[test]
#[cfg(target_os = "linux")]
fn connections_inherit_options() {
    run(|| async {
        let socket = bound();
        socket.set_nodelay(true).expect("TCP_NODELAY");
        socket.set_recv_buffer_size(8_192).expect("SO_RCVBUF");
        let listener = socket.listen(16).expect("listen");
        let _client = TcpStream::connect(listener.local_addr().expect("local_addr")).await.expect("connect");
        let (server, _) = listener.accept().await.expect("accept");
        assert!(server.nodelay().expect("TCP_NODELAY"));
        assert_eq!(server.recv_buffer_size().expect("SO_RCVBUF"), 16_384);
    });
}

/// With a linger of zero, the drop resets the connection at once. Bytes on the way are thrown away.
#[test]
fn zero_linger_resets_on_drop() {
    run(|| async {
        let (client, mut server) = pair().await;
        client.set_zero_linger().expect("SO_LINGER");
        drop(client);
        let error = server.read(&mut [0; 8]).await.expect_err("the peer must be reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// A connect through a socket can be dropped, and its socket is closed.
#[test]
fn dropped_connect_closes_the_socket() {
    run(|| async {
        let (listener, address): (TcpListener, _) = listener().await;
        let connect = futures_lite::future::poll_once(bound().connect(address)).await;
        assert!(connect.is_none(), "the connect must wait");
        assert_eq!(sources(), 0, "the socket must be deregistered");
        let (mut server, _) = listener.accept().await.expect("accept");
        assert_eq!(server.read(&mut [0; 8]).await.expect("read"), 0, "the other end must be closed");
    });
}

/// Sockets, their options and their errors move between threads.
#[test]
fn sockets_are_send_and_sync() {
    fn send_and_sync<T: Send + Sync>(_: T) {}
    fn send<T: Send>(_: T) {}
    let addrs: Vec<SocketAddr> = Vec::new();
    send_and_sync((bound(), TcpKeepalive::new(), None::<AddrError>));
    send((bound().connect(([127, 0, 0, 1], 9).into()), TcpStream::connect(addrs.clone()), TcpListener::bind(addrs)));
}

/// A socket that is bound to a port of loopback.
#[track_caller]
fn bound() -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bind");
    socket
}

/// Runs `check` if the option was set. Fails if it was not, unless this system lacks it. Linux has all of them, except if it takes the branches of other systems.
#[track_caller]
fn or_unsupported(set: Result<()>, check: impl FnOnce()) {
    match set {
        Err(error)
            if error.kind() == ErrorKind::Unsupported && cfg!(any(not(target_os = "linux"), kittiwake_portable)) =>
        {
            assert!(error.to_string().ends_with(" is not supported on this system"), "{error}");
        }
        set => {
            set.expect("the option can be set");
            check();
        }
    }
}

/// A duplicate of the socket, as a socket of socket2.
#[track_caller]
fn reader(socket: &impl AsFd) -> Socket {
    Socket::from(socket.as_fd().try_clone_to_owned().expect("a duplicate"))
}

/// A connection without bytes stays out of the queue, and comes with its first byte.
#[test]
#[cfg(all(feature = "sockopt", target_os = "linux", not(kittiwake_portable)))]
fn deferred_connection_comes_with_its_first_byte() {
    run(|| async {
        let socket = bound();
        assert_eq!(socket.defer_accept().expect("TCP_DEFER_ACCEPT"), None);
        socket.set_defer_accept(Some(Duration::from_millis(9_500))).expect("TCP_DEFER_ACCEPT");
        let listener = socket.listen(16).expect("listen");
        let time = listener.defer_accept().expect("TCP_DEFER_ACCEPT").expect("it was set");
        assert!(time >= Duration::from_secs(10), "{time:?}");
        listener.set_defer_accept(Some(Duration::MAX)).expect("the longest time that the system has");
        assert!(listener.defer_accept().expect("TCP_DEFER_ACCEPT").is_some(), "it is still deferred");
        listener.set_defer_accept(Some(Duration::from_secs(10))).expect("TCP_DEFER_ACCEPT");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("connect");
        assert_eq!(listener.try_accept().expect_err("no byte has come").kind(), ErrorKind::WouldBlock);
        client.try_write(b"x").expect("write");
        let (server, _) = listener.accept().await.expect("accept");
        assert_eq!(server.try_read(&mut [0; 8]).expect("the byte is there"), 1);
        listener.set_defer_accept(None).expect("TCP_DEFER_ACCEPT");
        let _silent = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("connect");
        listener.accept().await.expect("it comes without a byte");
    });
}

/// A second connection by fast open returns at once, and its first write goes with the first packet.
#[test]
#[cfg(all(feature = "sockopt", target_os = "linux", not(kittiwake_portable)))]
fn fast_open_sends_with_the_first_packet() {
    // Later connections know the server's cookie, also in a second run.
    let test = || {
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").expect("a setting of this network");
        kittiwake::block_on(async {
            let socket = bound();
            socket.set_fastopen(16).expect("TCP_FASTOPEN");
            assert_eq!(socket.fastopen().expect("TCP_FASTOPEN"), 16);
            let listener = socket.listen(16).expect("listen");
            for round in 0..3 {
                let socket = bound();
                socket.set_fastopen_connect(true).expect("TCP_FASTOPEN_CONNECT");
                assert!(socket.fastopen_connect().expect("TCP_FASTOPEN_CONNECT"));
                let mut client = socket.connect(listener.local_addr().expect("its address")).await.expect("connect");
                client.write_all(b"first").await.expect("write");
                let (mut server, _) = listener.accept().await.expect("accept");
                let mut buf = [0; 8];
                assert_eq!(server.read(&mut buf).await.expect("read"), 5, "in round {round}");
                server.write_all(&buf).await.expect("write");
                client.read_exact(&mut buf).await.expect("read");
            }
        });
        let counters = std::fs::read_to_string("/proc/self/net/netstat").expect("counters");
        let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let active = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "TCPFastOpenActive");
        assert_eq!(active, Some(("TCPFastOpenActive", "2")), "all but the first should carry their bytes");
    };
    let may_write = "test -w /proc/sys/net/ipv4/tcp_fastopen";
    in_network("fast_open_sends_with_the_first_packet", may_write, || within_once(test));
}

/// A converted datagram socket does not pass for a stream: it would lose what does not fit into a buffer.
#[test]
fn converted_datagram_socket_is_refused() {
    run(|| async {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let socket = TcpSocket::from(Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket"));
        let connecting = socket.connect(server.local_addr().expect("its address"));
        assert_eq!(connecting.await.expect_err("it is no TCP socket").kind(), ErrorKind::InvalidInput);
    });
}

/// Probes whose time the system does not allow are not turned on.
#[test]
#[cfg(target_os = "linux")]
fn refused_keepalive_turns_nothing_on() {
    run(|| async {
        let socket = bound();
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(1_000_000));
        assert_eq!(socket.set_keepalive(Some(keepalive)).expect_err("too long").kind(), ErrorKind::InvalidInput);
        assert!(socket.keepalive().expect("SO_KEEPALIVE").is_none(), "the probes are on");
    });
}
