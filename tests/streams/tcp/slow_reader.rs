//! A peer that reads slowly. Linux reports room in a full send buffer of TCP only once a third of it is free.

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::spawn;
use kittiwake::time::{Duration, advance, pause, resume};

use super::*;

const LIMIT: Duration = Duration::from_secs(1);

/// A stream to a slow reader is not idle, also for the task that reads the next request meanwhile. Each task notices
/// the idle end when the peer reads no more.
#[test]
fn slow_reader_is_not_idle() {
    run(|| async {
        let (mut client, server) = pair().await;
        server.set_idle_timeout(Some(LIMIT)).expect("a timeout");
        pause();
        let (mut requests, mut replies) = server.into_split();
        let reader = spawn(async move { requests.read(&mut [0; 64]).await });
        // The reader waits first, so that its time is over first.
        settle().await;
        let writer = spawn(async move {
            loop {
                if let Err(error) = replies.write_all(&[7; 65_536]).await {
                    return error;
                }
            }
        });
        read_slowly(&mut client, LIMIT * 2 / 3).await;
        assert!(!reader.is_finished(), "the read has ended: {:?}", reader.await);
        assert!(!writer.is_finished(), "the write has ended: {:?}", writer.await);
        // The kernels may move a few bytes yet.
        while !(reader.is_finished() && writer.is_finished()) {
            advance(LIMIT).await;
            settle().await;
        }
        resume();
        assert_eq!(reader.await.expect("the reader").expect_err("no request").kind(), ErrorKind::TimedOut);
        assert_eq!(writer.await.expect("the writer").kind(), ErrorKind::TimedOut);
    });
}
