//! Networks that fail: routes that lead nowhere, lost packets, firewalls, killed connections, a link that goes down. Each
//! test runs itself in a child process that has a network namespace of its own, and breaks that network only.
#![cfg(target_os = "linux")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use futures_lite::future::{or, try_zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream, serve};
use kittiwake::runtime::Builder;
use kittiwake::time::{Duration, Instant, sleep, timeout};
use support::*;

/// Longer than an answer takes, and shorter than the kernel waits for a silent host.
const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(30);

/// A network with neighbours that never answer, from 10.5.0.2 on. The kernel gives each up after 100 seconds, which is
/// longer than a test may take.
const SILENT_NEIGHBOUR: &str = "ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up \
     && ip addr add 10.5.0.1/24 dev v0 && echo 100 > /proc/sys/net/ipv4/neigh/v0/mcast_solicit";

/// The kernel asks for a silent neighbour so many times, once a second.
const SOLICITATIONS: &str = "/proc/sys/net/ipv4/neigh/v0/mcast_solicit";

/// The rules of a firewall, in a chain that sees each packet that arrives.
const FIREWALL: &str = "nft add table inet t && nft 'add chain inet t in { type filter hook input priority 0 ; }'";

/// A connect over a dead route fails at once with the kernel's error and the address, and leaves nothing behind.
#[test]
fn dead_route_fails_connect() {
    let routes = "ip route add unreachable 10.1.0.0/16 && ip route add prohibit 10.2.0.0/16 \
         && ip route add blackhole 10.3.0.0/16";
    in_network("dead_route_fails_connect", routes, || {
        run(|| async {
            // On the poll(2) backend a reactor has sockets of its own.
            open_reactor().await;
            let before = open_sockets();
            let dead = [
                ("10.1.0.1:80", libc::EHOSTUNREACH),
                ("10.2.0.1:80", libc::EACCES),
                ("10.3.0.1:80", libc::EINVAL),
                ("10.4.0.1:80", libc::ENETUNREACH),
            ];
            for (address, code) in dead {
                let connect = TcpStream::connect(address).await;
                let bounded = TcpStream::connect_timeout(address, LONG).await;
                for error in [connect, bounded].map(|connected| connected.expect_err("there is no route")) {
                    assert_eq!(errno(&error), Some(code), "{error}");
                    assert!(error.to_string().contains(address), "the error must name {address}: {error}");
                }
            }
            assert_eq!((sources(), open_sockets()), (0, before), "no socket may be left");
        });
    });
}

/// A connect to a host that never answers ends by its timeout, by the drop of its future, or by the kernel's. Each leaves
/// nothing behind.
#[test]
fn silent_host_ends_connect_in_time() {
    in_network("silent_host_ends_connect_in_time", SILENT_NEIGHBOUR, || {
        run(|| async {
            // On the poll(2) backend a reactor has sockets of its own.
            open_reactor().await;
            let before = open_sockets();
            let begin = Instant::now();
            let error = TcpStream::connect_timeout("10.5.0.2:80", SHORT).await.expect_err("the host is silent");
            assert!(begin.elapsed() >= SHORT, "{:?} is too early", begin.elapsed());
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert!(error.to_string().contains("10.5.0.2:80"), "{error}");
            timeout(SHORT, TcpStream::connect("10.5.0.3:80")).await.expect_err("the host is silent").to_string();
            // From here on it gives a neighbour up after a second.
            fs::write(SOLICITATIONS, "1").expect("the kernel's setting");
            let error = TcpStream::connect("10.5.0.4:80").await.expect_err("the host is silent");
            assert_eq!(errno(&error), Some(libc::EHOSTUNREACH), "{error}");
            assert_eq!((sources(), open_sockets()), (0, before), "no socket may be left");
        });
    });
}

/// Among several addresses, those with a dead route and those of silent hosts do not keep a connect from the one that
/// answers.
#[test]
fn connect_passes_dead_addresses() {
    let setup =
        format!("{SILENT_NEIGHBOUR} && ip route add unreachable 10.1.0.0/16 && ip -6 route add unreachable fd01::/16");
    in_network("connect_passes_dead_addresses", &setup, || {
        run(|| async {
            let (listener, live) = listener().await;
            let dead = ["10.5.0.2:80", "[fd01::1]:80", "10.1.0.1:80", "10.5.0.3:80"];
            let addresses: Vec<SocketAddr> =
                dead.map(|address| address.parse().expect("an address")).into_iter().chain([live]).collect();
            let begin = Instant::now();
            let connects = [
                TcpStream::connect(addresses.clone()).await,
                TcpStream::connect_timeout(addresses.clone(), LONG).await,
            ];
            for client in connects.map(|connected| connected.expect("one of the addresses answers")) {
                let (_, peer) = listener.accept().await.expect("accept");
                assert_eq!(peer, client.local_addr().expect("local_addr"));
            }
            // Each connect waits for two silent hosts, a quarter of a second each.
            assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}: the attempts did not wait", begin.elapsed());
            until(|| sources() <= 1).await;
            let error = TcpStream::connect_timeout(&addresses[..4], SHORT).await.expect_err("none answers");
            for address in dead {
                assert!(error.to_string().contains(address), "the error must name {address}: {error}");
            }
        });
    });
}

/// A firewall refuses, drops or rejects a connect. Each ends as the kernel or the timeout says.
#[test]
fn firewall_ends_connect() {
    let setup = format!(
        "{FIREWALL} && nft add rule inet t in tcp dport 81 reject with tcp reset \
         && nft add rule inet t in tcp dport 82 drop \
         && nft add rule inet t in tcp dport 83 reject with icmpx type host-unreachable"
    );
    in_network("firewall_ends_connect", &setup, || {
        run(|| async {
            let connect = |port: u16| TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)));
            let refused = connect(81).await.expect_err("the firewall resets it");
            assert_eq!(errno(&refused), Some(libc::ECONNREFUSED), "{refused}");
            let rejected = connect(83).await.expect_err("the firewall rejects it");
            assert_eq!(errno(&rejected), Some(libc::EHOSTUNREACH), "{rejected}");
            let dropped = TcpStream::connect_timeout("127.0.0.1:82", SHORT).await.expect_err("the firewall drops it");
            assert_eq!(dropped.kind(), io::ErrorKind::TimedOut, "{dropped}");
            assert_eq!(sources(), 0, "no socket may be left");
        });
    });
}

/// A server that stops serves all clients of its queue, also where the system allows longer queues than by default.
#[test]
fn long_queue_is_served() {
    const QUEUED: u64 = 5_000;
    let setup = "ulimit -n 12000 && echo 6000 > /proc/sys/net/core/somaxconn";
    in_network("long_queue_is_served", setup, || {
        run(|| async {
            let (listener, address) = listener().await;
            let connect = |_| std::net::TcpStream::connect(address).expect("the queue has a place");
            let clients: Vec<_> = (0..QUEUED).map(connect).collect();
            let server = serve(listener, |stream, _| async move { drop(stream) }).with_graceful_shutdown(async {});
            assert_eq!(server.await.expect("a report").served, QUEUED);
            drop(clients);
        });
    });
}

/// A reset that a firewall sends wakes the task that waits for an answer.
#[test]
fn firewall_reset_wakes_reader() {
    in_network("firewall_reset_wakes_reader", FIREWALL, || {
        run(|| async {
            let (client, server) = pair().await;
            let port = server.local_addr().expect("local_addr").port();
            tool(&format!("nft add rule inet t in tcp dport {port} reject with tcp reset"));
            (&client).write_all(b"x").await.expect("the kernel takes the byte");
            let error = (&client).read(&mut [0; 8]).await.expect_err("the firewall has reset the connection");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            tool("nft flush chain inet t in");
            // No packet has told the server. Its next byte is answered by a reset.
            (&server).write_all(b"y").await.expect("the kernel takes the byte");
            let error = (&server).read(&mut [0; 8]).await.expect_err("the client's kernel knows no such connection");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        });
    });
}

/// A peer that has vanished fails the next read, also if a write has met that first: no half message looks like a whole one.
#[test]
fn vanished_peer_is_no_end() {
    in_network("vanished_peer_is_no_end", FIREWALL, || {
        run(|| async {
            let (client, server) = pair().await;
            let port = server.local_addr().expect("local_addr").port();
            // The streams of other systems have no such option.
            socket2::SockRef::from(&client).set_tcp_user_timeout(Some(SHORT)).expect("TCP_USER_TIMEOUT");
            tool(&format!("nft add rule inet t in tcp dport {port} drop"));
            let written = loop {
                // The kernel gives up after some time.
                if let Err(error) = (&client).write(b"x").await {
                    break error;
                }
                sleep(Duration::from_millis(1)).await;
            };
            assert_eq!(written.kind(), io::ErrorKind::TimedOut, "{written}");
            let peeked = client.peek(&mut [0; 8]).await.expect_err("the peer is gone");
            let read = (&client).read(&mut [0; 8]).await.expect_err("the peer is gone, and has not ended its side");
            assert_eq!((peeked.kind(), read.kind()), (io::ErrorKind::TimedOut, io::ErrorKind::TimedOut));
            assert_eq!((&client).read(&mut [0; 8]).await.expect("the error was reported"), 0);
        });
    });
}

/// A network that loses one packet in ten loses no byte, with a server on one worker and on four.
#[test]
fn lossy_network_loses_no_byte() {
    let setup = format!("{FIREWALL} && nft add rule inet t in meta l4proto tcp numgen random mod 100 '<' 10 drop");
    in_network("lossy_network_loses_no_byte", &setup, || {
        for workers in [1, 4] {
            exchange_with(workers, 4, 100_000);
        }
    });
}

/// A link that is slow delays bytes, but no timer.
#[test]
fn slow_link_delays_no_timer() {
    let setup = "ip link set lo mtu 1500 && tc qdisc add dev lo root tbf rate 16mbit burst 20kb latency 200ms";
    in_network("slow_link_delays_no_timer", setup, || {
        let begin = Instant::now();
        exchange_with(1, 2, 250_000);
        // A million bytes in all, at two million a second.
        assert!(begin.elapsed() > Duration::from_millis(250), "{:?}: the link is not slow", begin.elapsed());
    });
}

/// Packets that arrive late and out of order lose no byte.
#[test]
fn late_packets_lose_no_byte() {
    let setup = "tc qdisc add dev lo root netem delay 10ms 8ms loss 2%";
    in_network("late_packets_lose_no_byte", setup, || exchange_with(4, 4, 200_000));
}

/// Connections that an administrator kills wake their tasks on both sides, with an error. The server goes on.
#[test]
fn killed_connection_wakes_both_ends() {
    in_network("killed_connection_wakes_both_ends", "command -v ss", || {
        run(|| async {
            let (listener, address) = listener().await;
            let (errors, server_errors) = async_channel::unbounded();
            let server = serve(listener, move |stream, _| {
                let errors = errors.clone();
                async move {
                    let result = echo(stream).await;
                    if let Err(error) = result {
                        errors.send(error.kind()).await.expect("the test receives");
                    }
                }
            });
            let server = kittiwake::spawn(server.into_future());
            ask(&TcpStream::connect(address).await.expect("connect"), b"hello").await;
            until(|| sources() == 1).await;
            let (before, mut readers) = (open_sockets(), Vec::new());
            for _ in 0..10 {
                let client = TcpStream::connect(address).await.expect("connect");
                ask(&client, b"hello").await;
                readers.push(kittiwake::spawn(async move { (&client).read(&mut [0; 8]).await }));
            }
            settle().await;
            let killed = tool(&format!("ss -Kt dport = :{}", address.port()));
            if !killed.contains(&address.to_string()) {
                // Skips the test.
                eprintln!("{SKIP}: the kernel kills no connections");
                return;
            }
            for reader in readers {
                let error = reader.await.expect("the task ends").expect_err("the connection was killed");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
                let error = server_errors.recv().await.expect("the handler's error");
                assert_eq!(error, io::ErrorKind::ConnectionReset);
            }
            until(|| open_sockets() == before).await;
            ask(&TcpStream::connect(address).await.expect("connect"), b"hello again").await;
            server.abort();
        });
    });
}

/// A connect for which no port is free fails with the kernel's error and the address. It works once a port is free.
#[test]
fn exhausted_ports_fail_connect() {
    let setup = "echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range";
    in_network("exhausted_ports_fail_connect", setup, || {
        run(|| async {
            let listener = TcpListener::bind("127.0.0.1:7000").await.expect("bind");
            let connect = || TcpStream::connect("127.0.0.1:7000");
            let mut clients = Vec::new();
            for _ in 0..4 {
                clients.push(connect().await.expect("a port is free"));
            }
            for _ in 0..3 {
                let error = connect().await.expect_err("no port is free");
                assert_eq!(errno(&error), Some(libc::EADDRNOTAVAIL), "{error}");
                assert!(error.to_string().contains("127.0.0.1:7000"), "{error}");
                // An orderly close would keep the port for a minute.
                will_reset(&clients.pop().expect("a client"));
                clients.push(connect().await.expect("a port is free again"));
            }
            for _ in 0..4 {
                listener.accept().await.expect("accept");
            }
        });
    });
}

/// A link that goes down and comes up again in the middle of a transfer delays bytes and loses none.
#[test]
fn downed_link_loses_no_byte() {
    in_network("downed_link_loses_no_byte", "true", || {
        for workers in ["1", "4"] {
            let peer = Peer::start(workers);
            run(|| async {
                let client = TcpStream::connect("10.6.0.2:7000").await.expect("connect");
                let bytes = pattern(50_000);
                for round in 0..60 {
                    if round % 20 == 10 {
                        tool("ip link set v0 down");
                        let mut first = [0; 1];
                        (&client).write_all(&bytes).await.expect("the kernel takes the bytes");
                        timeout(SHORT, (&client).read(&mut first)).await.expect_err("the link is down").to_string();
                        tool("ip link set v0 up");
                        assert!(receive(&client, bytes.len()).await == bytes, "every byte must be in its place");
                    }
                    ask(&client, &bytes).await;
                }
            });
            drop(peer);
        }
    });
}

/// The `echo` example in a network of its own, 10.6.0.2, which the link `v0` leads to.
struct Peer(Child);

impl Peer {
    fn start(workers: &'static str) -> Self {
        // The shell waits until the link is there.
        let script =
            "read _ && ip link set lo up && ip addr add 10.6.0.2/24 dev v1 && ip link set v1 up && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", script]).arg(programs::example("echo"));
        command.args(["--workers", workers, "10.6.0.2:7000"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare runs");
        let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).expect("a network");
        while network(child.id()) == network(std::process::id()) {
            std::thread::yield_now();
        }
        tool(&format!("ip link add v0 type veth peer name v1 netns {}", child.id()));
        tool("ip addr add 10.6.0.1/24 dev v0");
        tool("ip link set v0 up");
        child.stdin.take().expect("stdin is piped").write_all(b"\n").expect("the shell reads");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("its first line");
        assert!(line.contains("listening"), "{line:?}");
        Self(child)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
        // The kernel removes the network and the link at some later time, if this does not.
        let _ = Command::new("ip").args(["link", "del", "v0"]).output();
    }
}

/// Clients on one worker and a server on `workers` exchange bytes, all at once, while timers run.
fn exchange_with(workers: usize, clients: usize, length: usize) {
    within(move || {
        let server = Builder::new_multi_thread().worker_threads(workers).build().expect("a runtime");
        let (listener, address) = server.block_on(listener());
        server.handle().spawn(async move { serve(listener, |stream, _| echo(stream)).await });
        kittiwake::block_on(async {
            let exchanges = (0..clients).map(|_| {
                kittiwake::spawn(async move {
                    let client = TcpStream::connect(address).await.expect("connect");
                    ask(&client, &pattern(length)).await;
                })
            });
            let exchanges: Vec<_> = exchanges.collect();
            let exchanged = async {
                for exchange in exchanges {
                    exchange.await.expect("the exchange");
                }
            };
            or(exchanged, run_timers()).await;
        });
    });
}

/// Runs timers for ever, each of which must not be early.
async fn run_timers() {
    loop {
        let begin = Instant::now();
        sleep(Duration::from_millis(3)).await;
        assert!(begin.elapsed() >= Duration::from_millis(3), "a timer must not fire early");
    }
}

async fn echo(stream: TcpStream) -> io::Result<()> {
    let mut buf = [0; 4096];
    loop {
        match (&stream).read(&mut buf).await? {
            0 => return Ok(()),
            read => (&stream).write_all(&buf[..read]).await?,
        }
    }
}

/// Sends bytes to an echo server, and expects them back.
async fn ask(client: &TcpStream, bytes: &[u8]) {
    let mut writer = client;
    let write = async { writer.write_all(bytes).await };
    let read = async { Ok(receive(client, bytes.len()).await) };
    let ((), received) = try_zip(write, read).await.expect("write");
    assert!(received == bytes, "every byte must be in its place");
}

async fn receive(mut client: &TcpStream, length: usize) -> Vec<u8> {
    let mut received = vec![0; length];
    client.read_exact(&mut received).await.expect("read");
    received
}

/// The number of sockets that this process has open.
fn open_sockets() -> usize {
    let is_socket =
        |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    fs::read_dir("/proc/self/fd").expect("the descriptors").flatten().filter(is_socket).count()
}

/// Runs a program whose arguments have no spaces. Returns its output.
#[track_caller]
fn tool(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("the program runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {err}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
