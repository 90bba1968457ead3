//~ says: a handler of `serve` cannot return `u64`
//~ says: a handler returns `()`, `!`, or a `Result` whose error converts into `Box<dyn Error + Send + Sync>`
//~ never: sealed
use kittiwake::net::{TcpListener, TcpStream, serve};

async fn number(_: TcpStream) -> u64 {
    1
}

fn main() {
    kittiwake::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _ = serve(listener, |stream, _| number(stream)).await;
    });
}
