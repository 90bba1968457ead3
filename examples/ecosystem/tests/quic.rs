//! QUIC by quinn, client and server on our runtime: the sockets and timers that it asks of a runtime can be built on the
//! public API.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use kittiwake::io::Interest;
use kittiwake::net::UdpSocket;
use kittiwake::runtime::{Builder, Handle};
use kittiwake::time::{Sleep, sleep_until, timeout};
use quinn::udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, Runtime, ServerConfig, UdpPoller};

/// How much is sent.
const LENGTH: usize = 64 << 20;

/// kittiwake, as quinn wants a runtime.
#[derive(Debug)]
struct Kittiwake(Handle);

impl Runtime for Kittiwake {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(sleep_until(deadline.into())))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Arc::new(Socket { socket: UdpSocket::from_std(socket)?, state }))
    }
}

#[derive(Debug)]
struct Timer(Sleep);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.0.reset(deadline.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A UDP socket, and what quinn knows of it: segments, ECN and the like go through its own system calls.
#[derive(Debug)]
struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_io(Interest::WRITABLE, || self.state.send(UdpSockRef::from(&self.socket), transmit))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_readable(cx))?;
            let receive = || self.state.recv(UdpSockRef::from(&self.socket), bufs, meta);
            match self.socket.try_io(Interest::READABLE, receive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One of the tasks that wait until a socket is writable. Each has a future of its own, so all of them are woken.
struct Writable {
    socket: Arc<Socket>,
    waiting: Option<Waiting>,
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.clone();
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(async move { socket.socket.writable().await }));
        let result = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(result)
    }
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

/// An endpoint on a port of loopback.
fn endpoint(server: Option<ServerConfig>) -> Endpoint {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(Kittiwake(Handle::current())))
        .expect("an endpoint")
}

/// The configurations of a server with a certificate of its own, and of a client that trusts it.
fn configurations() -> (ServerConfig, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let certificate = made.cert.der().clone();
    let server =
        ServerConfig::with_single_cert(vec![certificate.clone()], key.into()).expect("a server's configuration");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    (server, ClientConfig::with_root_certificates(Arc::new(roots)).expect("a client's configuration"))
}

/// The byte at a place of the stream, so that a lost, doubled or moved one shows.
fn byte_at(at: usize) -> u8 {
    (at % 251) as u8 ^ (at / 251 % 241) as u8
}

/// Sends [`LENGTH`] bytes to a server, which checks and counts them and answers.
async fn transfer() {
    let (server_config, client_config) = configurations();
    let server = endpoint(Some(server_config));
    let address = server.local_addr().expect("its address");
    let serving = kittiwake::spawn(async move {
        let connection = server.accept().await.expect("a client").await.expect("a handshake");
        let (mut send, mut receive) = connection.accept_bi().await.expect("a stream");
        let (mut buf, mut at) = (vec![0; 64 << 10], 0);
        while let Some(read) = receive.read(&mut buf).await.expect("read") {
            let right = buf[..read].iter().enumerate().all(|(place, byte)| *byte == byte_at(at + place));
            assert!(right, "a byte between {at} and {} is wrong", at + read);
            at += read;
        }
        send.write_all(&at.to_le_bytes()).await.expect("write");
        send.finish().expect("finish");
        connection.closed().await;
    });

    let mut client = endpoint(None);
    client.set_default_client_config(client_config);
    let connection = client.connect(address, "localhost").expect("an attempt").await.expect("a connection");
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let mut at = 0;
    while at < LENGTH {
        let piece: Vec<u8> = (at..LENGTH.min(at + (64 << 10))).map(byte_at).collect();
        send.write_all(&piece).await.expect("write");
        at += piece.len();
    }
    send.finish().expect("finish");
    let answer = receive.read_to_end(16).await.expect("an answer");
    assert_eq!(answer, LENGTH.to_le_bytes(), "the server has read another number of bytes");
    connection.close(0_u32.into(), b"done");
    client.wait_idle().await;
    serving.await.expect("the server");
}

/// 64 MiB arrive byte for byte, on one worker, which runs both ends, and on two.
#[test]
fn quic_transfers_every_byte() {
    let bounded = || timeout(Duration::from_secs(120), transfer());
    kittiwake::block_on(bounded()).expect("on one worker it is done in time");
    let runtime = Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(runtime.handle().spawn(bounded())).expect("no panic").expect("on two workers it is done in time");
}
