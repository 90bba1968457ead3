//! The jobs on smol, with a `LocalExecutor`.

use std::io;
use std::time::Duration;

use kittiwake_benches::jobs::SLOW;
use kittiwake_benches::{Handler, MemoryJob, Program, Stopwatch, Task, executor_jobs, program, spin, timer_jobs};
use smol::future::{or, yield_now};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};
use smol::{LocalExecutor, Timer};

fn main() {
    let program = Program::start();
    if program.workers != 1 || program.driver.is_some() {
        program.refuse();
    }
    let executor: &'static LocalExecutor<'static> = Box::leak(Box::new(LocalExecutor::new()));
    match program.task {
        Task::Serve(handler) => {
            let Err(error) = smol::block_on(executor.run(serve(executor, handler)));
            program::fail(&format!("smol: {error}"));
        }
        Task::Memory(job, n) => smol::block_on(executor.run(memory(executor, job, n))),
    }
}

async fn serve(executor: &'static LocalExecutor<'static>, handler: Handler) -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::try_from(program::listen())?;
    match handler {
        Handler::Echo64 => accept(executor, listener, echo::<64>).await,
        Handler::Echo4K => accept(executor, listener, echo::<4096>).await,
        Handler::Echo64K => accept(executor, listener, echo::<65536>).await,
        Handler::Discard => accept(executor, listener, discard).await,
        Handler::Slow => accept(executor, listener, slow).await,
    }
}

async fn accept<F>(
    executor: &'static LocalExecutor<'static>,
    listener: TcpListener,
    handler: fn(TcpStream) -> F,
) -> io::Result<std::convert::Infallible>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        executor.spawn(handler(stream)).detach();
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

async fn memory(executor: &'static LocalExecutor<'static>, job: MemoryJob, n: u64) {
    let clock = Stopwatch::start();
    if job.needs_timers() {
        timer_jobs!(job, n, {
            spawn: [executor.spawn],
            sleep: [Timer::after],
            timeout: [timeout],
            value: [],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [executor.spawn],
            spawn_local: [executor.spawn],
            yield_now: [yield_now],
            value: [],
        });
    }
    clock.report();
}

/// smol has no `timeout`; this is how its documentation makes one.
async fn timeout<F: Future>(duration: Duration, future: F) -> io::Result<F::Output> {
    or(async { Ok(future.await) }, async {
        Timer::after(duration).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}
