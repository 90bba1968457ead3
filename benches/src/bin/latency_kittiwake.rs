//! The latency jobs on kittiwake, with `--workers N`.

use std::io;
use std::net;
use std::time::Duration;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::Builder;
use kittiwake::task::yield_now;
use kittiwake::time::{Interval, interval, sleep, timeout};
use kittiwake_benches::latency::{self, Runtime};
use kittiwake_benches::{Program, program};

struct Kittiwake;

impl Runtime for Kittiwake {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Interval = Interval;

    fn run(workers: usize, future: impl Future<Output = ()> + Send + 'static) {
        if workers == 1 {
            return kittiwake::block_on(future);
        }
        let runtime = program::or_fail("no runtime", Builder::new_multi_thread().worker_threads(workers).build());
        runtime.block_on(async { kittiwake::spawn(future).await.expect("no panic") });
    }

    fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        drop(kittiwake::spawn(future));
    }

    async fn yield_now() {
        yield_now().await;
    }

    async fn sleep(duration: Duration) {
        sleep(duration).await;
    }

    async fn timeout(duration: Duration, future: impl Future<Output = ()> + Send) {
        let _ = timeout(duration, future).await;
    }

    fn interval(period: Duration) -> Interval {
        interval(period)
    }

    async fn tick(interval: &mut Interval) {
        interval.tick().await;
    }

    fn listener(listener: net::TcpListener) -> io::Result<TcpListener> {
        TcpListener::from_std(listener)
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        stream.read(buffer).await
    }

    async fn write_all(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        stream.write_all(bytes).await
    }
}

fn main() {
    latency::run::<Kittiwake>(&Program::start());
}
