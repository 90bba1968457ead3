//~ compiles
use std::convert::Infallible;
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
    let _ = servers();
}
