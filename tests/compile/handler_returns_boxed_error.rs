//~ says: a handler of `serve` cannot return `Result<(), Box<
//~ says: in place of `Box<dyn Error>` write `Box<dyn Error + Send + Sync>`
//~ never: sealed
//~ never: From
use std::error::Error;

use kittiwake::net::{TcpListener, TcpStream, serve};

async fn fails(_: TcpStream) -> Result<(), Box<dyn Error>> {
    Ok(())
}

fn main() {
    kittiwake::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _ = serve(listener, |stream, _| fails(stream)).await;
    });
}
