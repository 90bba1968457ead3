//~ says: `(&str, &str)` is not a socket address or the name of a host
//~ never: sealed
use kittiwake::net::TcpStream;

fn main() {
    let _ = TcpStream::connect(("localhost", "80"));
}
