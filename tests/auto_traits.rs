//! What the public types may be used for: between threads, across a `catch_unwind`, without pinning. To take one of these
//! away would break programs.

use std::future::Ready;
use std::marker::PhantomPinned;
use std::net::SocketAddr;
use std::panic::{RefUnwindSafe, UnwindSafe};

use kittiwake::net::{
    Accept, Incoming, OwnedReadHalf, OwnedWriteHalf, ReadHalf, Report, Serve, Serving, ShutdownSignal, TcpListener,
    TcpStream, WriteHalf,
};
use kittiwake::runtime::{Builder, Handle, Metrics, Runtime, ShutdownTimeout};
use kittiwake::signal::CtrlC;
use kittiwake::signal::unix::{Signal, SignalKind};
use kittiwake::task::{AbortHandle, Id, JoinError, JoinHandle, JoinSet, YieldNow};

fn send_and_sync<T: Send + Sync>() {}
fn unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
fn unpin<T: Unpin>() {}

#[test]
fn sockets_go_between_threads() {
    send_and_sync::<(TcpListener, TcpStream, OwnedReadHalf, OwnedWriteHalf)>();
    send_and_sync::<(ReadHalf<'_>, WriteHalf<'_>, Accept<'_>, Incoming<'_>)>();
}

#[test]
fn servers_go_between_threads() {
    type Handler = fn(TcpStream, SocketAddr) -> Ready<()>;
    fn send<T: Send>() {}
    send::<(Serve<TcpListener, Handler, Ready<()>>, Serving<TcpListener, Handler, Ready<()>>)>();
    send_and_sync::<(ShutdownSignal, Report)>();
    unwind_safe::<(ShutdownSignal, Report)>();
    unpin::<(Serving<TcpListener, Handler, PhantomPinned>, ShutdownSignal)>();
}

#[test]
fn tasks_and_runtimes_go_between_threads() {
    send_and_sync::<(Runtime, Builder, Handle, Metrics, ShutdownTimeout)>();
    send_and_sync::<(JoinHandle<u8>, JoinError, AbortHandle, JoinSet<u8>, Id, YieldNow)>();
}

#[test]
fn signals_go_between_threads() {
    send_and_sync::<(Signal, SignalKind, CtrlC)>();
}

#[test]
fn sockets_tasks_and_runtimes_cross_a_catch_unwind() {
    unwind_safe::<(Runtime, Handle, TcpListener, TcpStream, JoinHandle<u8>, AbortHandle, Signal)>();
}

#[test]
fn futures_and_streams_need_no_pinning() {
    unpin::<(JoinHandle<PhantomPinned>, Accept<'_>, Incoming<'_>, YieldNow, CtrlC, Signal)>();
}
