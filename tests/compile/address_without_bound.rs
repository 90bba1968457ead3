//~ says: `A` is not a socket address or the name of a host
//~ says: a generic function needs the bound `kittiwake::net::ToSocketAddrs`
//~ never: sealed
use kittiwake::net::TcpListener;

async fn bind<A>(address: A) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

fn main() {
    let _ = bind("127.0.0.1:0");
}
