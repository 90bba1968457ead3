//! The auto traits of the public types: use between threads, across `catch_unwind`, and without pinning. Losing one
//! of them would break programs.

use std::future::Ready;
use std::marker::PhantomPinned;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{RefUnwindSafe, UnwindSafe};

use kittiwake::io::{self, AsyncFd, Stderr, Stdin, Stdout};
use kittiwake::io::{
    BufReader, Bytes, Chain, CopyBidirectional, CopyError, DuplexStream, FillBuf, Lines, ReadExact, ReadFuture,
    ReadLine, ReadToEnd, ReadToString, ReadUntil, SkipUntil, Split,
};
use kittiwake::net::{
    Incoming, IncomingWithPeer, IntoIncoming, IntoIncomingWithPeer, OwnedReadHalf, OwnedWriteHalf, ReadHalf, Report,
    Serve, ServeError, ServeStats, Serving, ShutdownSignal, TcpListener, TcpSocket, TcpStream, UdpSocket, UnixDatagram,
    UnixListener, UnixStream, WriteHalf,
};
use kittiwake::runtime::{Builder, Handle, Metrics, Runtime, ShutdownTimeout};
use kittiwake::signal::unix::{Signal, SignalKind};
use kittiwake::signal::{CtrlC, Terminate};
use kittiwake::task::{AbortHandle, Id, JoinError, JoinHandle, JoinSet, YieldNow};

fn send_and_sync<T: Send + Sync>() {}
fn unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
fn unpin<T: Unpin>() {}

/// Sockets are `Send` and `Sync`.
#[test]
fn sockets_are_send_and_sync() {
    send_and_sync::<(TcpListener, TcpStream, UnixListener, UnixStream, OwnedReadHalf, OwnedWriteHalf)>();
    send_and_sync::<(ReadHalf<'_>, WriteHalf<'_>, Incoming<'_, TcpListener>, IntoIncoming<TcpListener>)>();
    send_and_sync::<(IncomingWithPeer<'_, TcpListener>, IntoIncomingWithPeer<TcpListener>)>();
}

/// Servers are `Send`, and their shutdowns and reports are `Sync` too.
#[test]
fn servers_are_send() {
    type Handler = fn(TcpStream, SocketAddr) -> Ready<()>;
    fn send<T: Send>() {}
    send::<(Serve<TcpListener, Handler, Ready<()>>, Serving<TcpListener, Handler, Ready<()>>)>();
    send_and_sync::<(ShutdownSignal, Report, ServeError, ServeStats)>();
    unwind_safe::<(ShutdownSignal, Report, ServeStats)>();
    unpin::<(Serving<TcpListener, Handler, PhantomPinned>, ShutdownSignal)>();
}

/// The readers, copies and halves of `io` are as `Send` and `Sync` as the streams in them.
#[test]
fn io_is_send_and_sync() {
    type Reader = BufReader<TcpStream>;
    send_and_sync::<(Reader, Lines<Reader>, Split<Reader>, DuplexStream, CopyError)>();
    send_and_sync::<(FillBuf<'_, Reader>, ReadLine<'_, Reader>, ReadUntil<'_, Reader>, SkipUntil<'_, Reader>)>();
    send_and_sync::<(Bytes<Reader>, Chain<Reader, Reader>)>();
    send_and_sync::<(ReadFuture<'_, Reader>, ReadExact<'_, Reader>, ReadToEnd<'_, Reader>, ReadToString<'_, Reader>)>();
    send_and_sync::<(kittiwake::io::ReadHalf<TcpStream>, kittiwake::io::WriteHalf<TcpStream>)>();
    send_and_sync::<CopyBidirectional<TcpStream, DuplexStream>>();
    unpin::<(Lines<Reader>, Split<Reader>, ReadLine<'_, Reader>, CopyBidirectional<TcpStream, TcpStream>)>();
    unpin::<(Bytes<Reader>, Chain<Reader, Reader>)>();
    unpin::<(ReadFuture<'_, Reader>, ReadExact<'_, Reader>, ReadToEnd<'_, Reader>, ReadToString<'_, Reader>)>();
}

/// Datagram sockets, descriptors and pairs in memory are `Send` and `Sync`.
#[test]
fn other_io_is_send_and_sync() {
    send_and_sync::<(UdpSocket, UnixDatagram, TcpSocket, AsyncFd<OwnedFd>, DuplexStream)>();
    send_and_sync::<(io::ReadHalf<DuplexStream>, io::WriteHalf<DuplexStream>, CopyBidirectional<TcpStream, TcpStream>)>(
    );
    fn send<T: Send>() {}
    send::<(Stdin, Stdout, Stderr)>();
}

/// Tasks, runtimes and their handles are `Send` and `Sync`.
#[test]
fn tasks_are_send_and_sync() {
    send_and_sync::<(Runtime, Builder, Handle, Metrics, ShutdownTimeout)>();
    send_and_sync::<(JoinHandle<u8>, JoinError, AbortHandle, JoinSet<u8>, Id, YieldNow)>();
}

/// Signals are `Send` and `Sync`.
#[test]
fn signals_are_send_and_sync() {
    send_and_sync::<(Signal, SignalKind, CtrlC, Terminate)>();
}

/// Sockets, tasks and runtimes may be used across `catch_unwind`.
#[test]
fn public_types_are_unwind_safe() {
    unwind_safe::<(Runtime, Handle, JoinHandle<u8>, JoinSet<u8>, AbortHandle, Signal)>();
    unwind_safe::<(TcpListener, TcpStream, UnixListener, UnixStream)>();
    unwind_safe::<(UdpSocket, UnixDatagram, TcpSocket, Incoming<'_, TcpListener>, IntoIncoming<TcpListener>)>();
    unwind_safe::<(IncomingWithPeer<'_, TcpListener>, IntoIncomingWithPeer<TcpListener>)>();
    unwind_safe::<(AsyncFd<OwnedFd>, Stdin, Stdout, Stderr, CopyBidirectional<TcpStream, TcpStream>)>();
    unwind_safe::<(DuplexStream, io::ReadHalf<DuplexStream>, io::WriteHalf<DuplexStream>)>();
}

/// Futures and streams are `Unpin`.
#[test]
fn futures_and_streams_are_unpin() {
    unpin::<(JoinHandle<PhantomPinned>, Incoming<'_, TcpListener>, IntoIncoming<TcpListener>, YieldNow, CtrlC, Signal)>(
    );
}

/// The future of `accept` may be polled without pinning it, and by any thread.
#[test]
fn accept_is_unpin_and_send() {
    fn check<T: Send + Sync + Unpin>(_: fn(&'static TcpListener) -> T) {}
    check(TcpListener::accept);
}
