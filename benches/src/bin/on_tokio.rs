//! The jobs on tokio: `--driver current_thread`, or `multi_thread` with `--workers N`.

use std::io;

use kittiwake_benches::jobs::SLOW;
use kittiwake_benches::{Handler, MemoryJob, Program, Stopwatch, Task, executor_jobs, program, spin, timer_jobs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, yield_now};
use tokio::time::{sleep, timeout};

fn main() {
    let program = Program::start();
    let runtime = runtime(&program).unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    match program.task {
        Task::Serve(handler) => {
            // In a task, as is usual: on several workers the future of `block_on` would not run on one of them.
            let Err(error) = runtime.block_on(async { tokio::spawn(serve(handler)).await.unwrap() });
            program::fail(&format!("tokio: {error}"));
        }
        // Local tasks need a set of their own, which costs each wake-up something: only where there are some.
        Task::Memory(MemoryJob::Two, n) => LocalSet::new().block_on(&runtime, memory(MemoryJob::Two, n)),
        Task::Memory(job, n) => runtime.block_on(memory(job, n)),
    }
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    match program.driver.as_deref() {
        Some("current_thread") => Builder::new_current_thread().enable_all().build(),
        Some("multi_thread") => Builder::new_multi_thread().worker_threads(program.workers).enable_all().build(),
        _ => program.refuse(),
    }
}

async fn serve(handler: Handler) -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::from_std(program::listen())?;
    match handler {
        Handler::Echo64 => accept(listener, echo::<64>).await,
        Handler::Echo4K => accept(listener, echo::<4096>).await,
        Handler::Echo64K => accept(listener, echo::<65536>).await,
        Handler::Discard => accept(listener, discard).await,
        Handler::Slow => accept(listener, slow).await,
    }
}

async fn accept<F>(listener: TcpListener, handler: fn(TcpStream) -> F) -> io::Result<std::convert::Infallible>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(handler(stream));
    }
}

async fn echo<const N: usize>(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; N];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

async fn slow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        spin(SLOW);
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn discard(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 65536];
    let mut received = 0_u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.write_all(&received.to_le_bytes()).await,
            read => received += read as u64,
        }
    }
}

async fn memory(job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [tokio::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [.unwrap()],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [tokio::spawn],
            spawn_local: [tokio::task::spawn_local],
            yield_now: [yield_now],
            value: [.unwrap()],
        });
    }
    clock.report();
}
