//~ says: a handler of `serve` cannot return `Result<(), Refused>`
//~ says: such an error is a string, or a type that implements `Error + Send + Sync`
//~ never: sealed
//~ never: From
use kittiwake::net::{TcpListener, TcpStream, serve};

struct Refused;

async fn refuses(_: TcpStream) -> Result<(), Refused> {
    Err(Refused)
}

fn main() {
    kittiwake::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _ = serve(listener, |stream, _| refuses(stream)).await;
    });
}
