//~ says: type annotations needed
//~ never: sealed
use kittiwake::io::AsyncWriteExt;
use kittiwake::net::{TcpListener, serve};

fn main() {
    kittiwake::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = serve(listener, |mut stream, _peer| async move {
            stream.write_all(b"hello").await?;
            Ok(())
        });
        let _ = server.await;
    });
}
