//~ compiles
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::io;

use kittiwake::net::{TcpListener, TcpStream, serve};
use kittiwake::time::{Duration, sleep, timeout};
use kittiwake::signal::ctrl_c;

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn copied(_: TcpStream) -> io::Result<u64> {
    Ok(1)
}

async fn endless(_: TcpStream) -> io::Result<Infallible> {
    loop {
        sleep(Duration::from_secs(1)).await;
    }
}

async fn boxed(_: TcpStream) -> Result<(), Box<dyn Error + Send + Sync>> {
    let port: u16 = "80".parse()?;
    Err(format!("port {port} is closed"))?
}

#[derive(Debug)]
struct Foreign;

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("foreign")
    }
}

impl Error for Foreign {}

/// All that may be the error of a handler.
async fn errors() -> io::Result<()> {
    serve(listener().await, |stream, _| boxed(stream)).await?;
    serve(listener().await, |_: TcpStream, _| async { Err::<(), _>("text") }).await?;
    serve(listener().await, |_: TcpStream, _| async { Err::<(), _>(String::new()) }).await?;
    serve(listener().await, |_: TcpStream, _| async { Err::<(), _>(Foreign) }).await?;
    serve(listener().await, |_: TcpStream, _| async { Ok::<_, Infallible>(()) }).await?;
    let server = serve(listener().await, |stream, _| copied(stream)).on_error(|failure| {
        let foreign = failure.error().is_some_and(|error| error.is::<Foreign>());
        if !foreign && failure.kind() != io::ErrorKind::TimedOut && !failure.is_disconnect() {
            eprintln!("{:?}: {failure}", failure.peer());
        }
    });
    server.await?;
    Ok(())
}

async fn servers() -> io::Result<()> {
    serve(listener().await, |stream, _| copied(stream)).await?;
    serve(listener().await, |stream, _| endless(stream)).await?;
    serve(listener().await, |_: TcpStream, _| async {
        loop {
            sleep(Duration::from_secs(1)).await;
        }
    })
    .await?;
    serve(listener().await, |_: TcpStream, _| async {}).nodelay(true).with_graceful_shutdown(ctrl_c()).await?;
    // A server can be spawned and timed as it is.
    let server = serve(listener().await, |stream, _| copied(stream));
    kittiwake::spawn(timeout(Duration::from_secs(1), server)).await?.unwrap()?;
    let joined: Result<u8, io::Error> = kittiwake::spawn(async { 1 }).await.map_err(io::Error::from);
    joined.map(drop)
}

fn main() {
    let _ = (servers(), errors());
}
