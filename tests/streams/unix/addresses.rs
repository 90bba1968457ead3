//! Addresses.

use std::os::unix::net::UnixListener;

use super::*;

/// A stream and its halves have the addresses of the socket itself.
#[test]
fn halves_have_the_streams_addresses() {
    run(|| async {
        let path = std::env::temp_dir().join(format!("kittiwake-streams-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("bind");
        let stream = Stream::connect(&path).await;
        std::fs::remove_file(&path).expect("the socket's file");
        let (mut stream, _peer) = (stream.expect("connect"), listener.accept().expect("accept"));
        assert!(stream.local_addr().expect("local_addr").is_unnamed(), "a client has no name");
        assert_eq!(stream.peer_addr().expect("peer_addr").as_pathname(), Some(&*path));
        {
            let (read, write) = stream.split();
            assert_eq!(read.peer_addr().expect("peer_addr").as_pathname(), Some(&*path));
            assert!(write.local_addr().expect("local_addr").is_unnamed(), "a client has no name");
        }
        let (read, write) = stream.into_split();
        assert!(read.local_addr().expect("local_addr").is_unnamed(), "a client has no name");
        let whole: &Stream = write.as_ref();
        assert_eq!(whole.peer_addr().expect("peer_addr").as_pathname(), Some(&*path));
    });
}
