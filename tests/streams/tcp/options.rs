//! Options and addresses.

use super::*;

/// Options and addresses are those of the socket itself.
#[test]
fn options_apply_to_the_socket() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        assert_eq!(stream.peer_addr().expect("peer_addr"), peer.local_addr().expect("local_addr"));
        assert_eq!(stream.local_addr().expect("local_addr"), peer.peer_addr().expect("peer_addr"));
        for nodelay in [true, false] {
            stream.set_nodelay(nodelay).expect("TCP_NODELAY");
            assert_eq!(stream.nodelay().expect("TCP_NODELAY"), nodelay);
        }
        stream.set_ttl(7).expect("IP_TTL");
        assert_eq!(stream.set_ttl(u32::MAX).expect_err("at most 255").kind(), ErrorKind::InvalidInput);
        assert_eq!(stream.ttl().expect("IP_TTL"), 7, "a refused number must not mean the default");
        assert!(stream.take_error().expect("SO_ERROR").is_none(), "no error may be pending");
    });
}

/// The halves have the addresses of their stream.
#[test]
fn halves_have_the_streams_addresses() {
    run(|| async {
        let (mut stream, peer) = pair_with_std();
        let (ours, theirs) = (peer.peer_addr().expect("peer_addr"), peer.local_addr().expect("local_addr"));
        {
            let (read, write) = stream.split();
            assert_eq!(read.peer_addr().expect("peer_addr"), theirs);
            assert_eq!(write.local_addr().expect("local_addr"), ours);
        }
        let (read, write) = stream.into_split();
        assert_eq!(read.local_addr().expect("local_addr"), ours);
        assert_eq!(write.as_ref().peer_addr().expect("peer_addr"), theirs, "the half must return its stream");
    });
}
