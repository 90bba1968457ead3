//~ compiles
use std::net::SocketAddr;

use kittiwake::net::{TcpListener, TcpStream, ToSocketAddrs};

async fn bind<A: ToSocketAddrs>(address: A) -> std::io::Result<TcpListener> {
    drop(TcpStream::connect(&&address).await);
    TcpListener::bind(address).await
}

fn main() {
    let addresses: Vec<SocketAddr> = Vec::new();
    let _ = bind(&addresses[..]);
    let _ = bind(addresses);
    let _ = bind(("localhost", 80));
    let _ = bind(&String::from("localhost:80"));
}
