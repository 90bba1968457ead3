//! The latency jobs on tokio, `current_thread` with one worker and `multi_thread` with `--workers N`.

use std::io;
use std::net;
use std::time::Duration;

use kittiwake_benches::latency::{self, Runtime};
use kittiwake_benches::{Program, program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::{Interval, interval, sleep, timeout};

struct Tokio;

impl Runtime for Tokio {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Interval = Interval;

    fn run(workers: usize, future: impl Future<Output = ()> + Send + 'static) {
        let mut builder = match workers {
            1 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        let runtime = program::or_fail("no runtime", builder.worker_threads(workers).enable_all().build());
        if workers == 1 {
            return runtime.block_on(future);
        }
        runtime.block_on(async { tokio::spawn(future).await.expect("no panic") });
    }

    fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(future));
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
    latency::run::<Tokio>(&Program::start());
}
