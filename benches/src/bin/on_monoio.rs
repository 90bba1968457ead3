//! The jobs on monoio: `--driver epoll` or `io_uring`.

use std::io;

use kittiwake_benches::jobs::SLOW;
use kittiwake_benches::{
    Handler, MemoryJob, Program, Stopwatch, Task, executor_jobs, program, spin, timer_jobs, yield_now,
};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::time::{sleep, timeout};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

fn main() {
    let program = Program::start();
    if program.workers != 1 {
        program.refuse();
    }
    match program.driver.as_deref() {
        Some("epoll") => match RuntimeBuilder::<LegacyDriver>::new().enable_timer().build() {
            Ok(mut runtime) => runtime.block_on(run(program.task, true)),
            Err(error) => program::fail(&format!("no runtime: {error}")),
        },
        Some("io_uring") => match RuntimeBuilder::<IoUringDriver>::new().enable_timer().build() {
            Ok(mut runtime) => runtime.block_on(run(program.task, false)),
            Err(error) => program::fail(&format!("no runtime: {error}")),
        },
        _ => program.refuse(),
    }
}

async fn run(task: Task, nonblocking: bool) {
    match task {
        Task::Serve(handler) => {
            let Err(error) = serve(handler, nonblocking).await;
            program::fail(&format!("monoio: {error}"));
        }
        Task::Memory(job, n) => memory(job, n).await,
    }
}

async fn serve(handler: Handler, nonblocking: bool) -> io::Result<std::convert::Infallible> {
    let listener = program::listen();
    // io_uring waits by itself, but not for a socket that says it does not want to.
    listener.set_nonblocking(nonblocking)?;
    let listener = TcpListener::from_std(listener)?;
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
    F: Future<Output = io::Result<()>> + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        monoio::spawn(handler(stream));
    }
}

async fn echo<const N: usize>(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N);
    loop {
        let (read, filled) = stream.read(buffer).await;
        if read? == 0 {
            return Ok(());
        }
        let (written, returned) = stream.write_all(filled).await;
        written?;
        buffer = returned;
    }
}

async fn slow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let (read, filled) = stream.read(buffer).await;
        if read? == 0 {
            return Ok(());
        }
        spin(SLOW);
        let (written, returned) = stream.write_all(filled).await;
        written?;
        buffer = returned;
    }
}

async fn discard(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(65536);
    let mut received = 0_u64;
    loop {
        let (read, filled) = stream.read(buffer).await;
        match read? {
            0 => return stream.write_all(received.to_le_bytes().to_vec()).await.0.map(drop),
            read => received += read as u64,
        }
        buffer = filled;
    }
}

async fn memory(job: MemoryJob, n: u64) {
    if job == MemoryJob::Wake {
        program::fail("monoio takes wake-ups from other threads only with its feature `sync`");
    }
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [monoio::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [monoio::spawn],
            spawn_local: [monoio::spawn],
            yield_now: [yield_now],
            value: [],
        });
    }
    clock.report();
}
