//~ says: cannot return `Option<()>`
//~ says: end the handler's `async` block with a semicolon
//~ never: sealed
use kittiwake::net::{TcpListener, TcpStream, serve_local};

fn main() {
    kittiwake::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _ = serve_local(listener, |_: TcpStream, _| async { Some(()) });
    });
}
