//! The jobs on compio: `--driver epoll` or `io_uring`.

use std::io;

use compio::driver::{DriverType, ProactorBuilder};
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::{Runtime, RuntimeBuilder};
use compio::time::{sleep, timeout};
use kittiwake_benches::jobs::SLOW;
use kittiwake_benches::{
    Handler, MemoryJob, Program, Stopwatch, Task, executor_jobs, program, spin, timer_jobs, yield_now,
};

fn main() {
    let program = Program::start();
    let runtime = runtime(&program).unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    match program.task {
        Task::Serve(handler) => {
            let Err(error) = runtime.block_on(serve(handler));
            program::fail(&format!("compio: {error}"));
        }
        Task::Memory(job, n) => runtime.block_on(memory(job, n)),
    }
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    let driver = match program.driver.as_deref() {
        Some("epoll") if program.workers == 1 => DriverType::Poll,
        Some("io_uring") if program.workers == 1 => DriverType::IoUring,
        _ => program.refuse(),
    };
    let mut proactor = ProactorBuilder::new();
    proactor.driver_type(driver);
    RuntimeBuilder::new().with_proactor(proactor).build()
}

async fn serve(handler: Handler) -> io::Result<std::convert::Infallible> {
    let listener = program::listen();
    // io_uring waits by itself, but not for a socket that says it does not want to; for epoll, `from_std` says so again.
    listener.set_nonblocking(false)?;
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
        compio::runtime::spawn(handler(stream)).detach();
    }
}

async fn echo<const N: usize>(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N);
    loop {
        let (read, filled) = stream.read(buffer).await.into();
        if read? == 0 {
            return Ok(());
        }
        let (written, returned) = stream.write_all(filled).await.into();
        written?;
        buffer = returned;
    }
}

async fn slow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let (read, filled) = stream.read(buffer).await.into();
        if read? == 0 {
            return Ok(());
        }
        spin(SLOW);
        let (written, returned) = stream.write_all(filled).await.into();
        written?;
        buffer = returned;
    }
}

async fn discard(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(65536);
    let mut received = 0_u64;
    loop {
        let (read, filled) = stream.read(buffer).await.into();
        match read? {
            0 => return stream.write_all(received.to_le_bytes()).await.0,
            read => received += read as u64,
        }
        buffer = filled;
    }
}

async fn memory(job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [compio::runtime::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [.unwrap()],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [compio::runtime::spawn],
            spawn_local: [compio::runtime::spawn],
            yield_now: [yield_now],
            value: [.unwrap()],
        });
    }
    clock.report();
}
