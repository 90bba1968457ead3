//~ says: `{integer}` is not a socket address or the name of a host
//~ says: this is no address with a port
//~ says: write "127.0.0.1:7000"
//~ never: sealed
use kittiwake::net::TcpListener;

fn main() {
    let _ = TcpListener::bind(7000);
}
