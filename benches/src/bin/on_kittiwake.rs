//! The jobs on kittiwake.

use std::io;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::task::yield_now;
use kittiwake::time::{sleep, timeout};
use kittiwake_benches::jobs::SLOW;
use kittiwake_benches::{Handler, MemoryJob, Program, Stopwatch, Task, executor_jobs, program, spin, timer_jobs};

fn main() {
    let program = Program::start();
    let runtime = runtime(&program).unwrap_or_else(|error| program::fail(&format!("no runtime: {error}")));
    match program.task {
        Task::Serve(handler) => {
            let Err(error) = runtime.block_on(serve(handler));
            program::fail(&format!("kittiwake: {error}"));
        }
        Task::Memory(job, n) => runtime.block_on(memory(job, n)),
    }
}

fn runtime(program: &Program) -> io::Result<Runtime> {
    let mut builder = Builder::new();
    if let Some(spin) = program.spin {
        builder = builder.spin(spin);
    }
    // One worker is all there is so far; `program.workers` goes to the builder when there are several.
    if program.workers != 1 || program.driver.is_some() {
        program.refuse();
    }
    builder.build()
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
        kittiwake::spawn(handler(stream));
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
            spawn: [kittiwake::spawn],
            sleep: [sleep],
            timeout: [timeout],
            value: [.unwrap()],
        });
    } else {
        executor_jobs!(job, n, {
            spawn: [kittiwake::spawn],
            spawn_local: [kittiwake::spawn_local],
            yield_now: [yield_now],
            value: [.unwrap()],
        });
    }
    clock.report();
}
