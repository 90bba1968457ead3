//~ compiles
use std::error::Error;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream, UnixListener, serve, serve_local};

async fn greet(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello").await?;
    Ok(())
}

/// The forms that the docs of `serve` show.
async fn servers() -> std::io::Result<()> {
    serve(TcpListener::bind("127.0.0.1:0").await?, |stream, _peer| greet(stream)).await?;
    serve(TcpListener::bind("127.0.0.1:0").await?, |mut stream, _peer| async move {
        stream.write_all(b"hello").await?;
        std::io::Result::Ok(())
    })
    .await?;
    serve(TcpListener::bind("127.0.0.1:0").await?, |mut stream, peer| async move {
        stream.write_all(peer.to_string().as_bytes()).await?;
        let _: u32 = "42".parse()?;
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    })
    .await?;
    // The last expression has the type already.
    serve_local(UnixListener::bind("socket")?, |mut stream, _peer| async move {
        stream.read_exact(&mut [0]).await?;
        stream.write_all(b"y").await
    })
    .await
    .map(drop)
    .map_err(Into::into)
}

fn main() {
    let _ = servers();
}
