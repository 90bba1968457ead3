//! Lines and other pieces of a reader, cut in every place by timeouts, drops and errors. Nothing may be lost, and
//! nothing read twice.

#[path = "../support/mod.rs"]
mod support;

mod script;

use std::io::{ErrorKind, IoSliceMut, Write};
use std::pin::Pin;
use std::string::FromUtf8Error;
use std::task::{Context, Poll};

use futures_lite::future::poll_once;
use kittiwake::io::{self, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Cursor};
use kittiwake::net::TcpStream;
use kittiwake::stream::StreamExt;
use kittiwake::task::{consume_budget, yield_now};
use kittiwake::time::{Duration, timeout};
use script::{Foreign, Op, Pieces, Step};
use support::{assert_give_way, listener, pair_with_std, reset, run, within};

/// Characters of each length, both ends of lines, empty lines, bytes that are no text, and no newline at the end.
const TEXT: &[u8] = b"a\xC3\xA9\xE2\x82\xAC\n\r\n\n\xF0\x9D\x84\x9Eb\r\nc\xFFd\n\xE2\x82\nend\xC3\xA9";

/// Every operation reads the same as std's, wherever the text is cut into two or three pieces, and whether a drop, a
/// delay or an error comes between.
#[test]
fn every_cut_reads_as_std() {
    within(|| {
        let operations = [Op::Until(b'\n'), Op::Skip(b'\n'), Op::Line, Op::NextLine, Op::NextPiece(b'\n'), Op::Fill(3)];
        let steps = [
            Step::Pending,
            Step::Fails(ErrorKind::Interrupted),
            Step::Fails(ErrorKind::WouldBlock),
            Step::Fails(ErrorKind::ConnectionReset),
        ];
        for (first, second) in
            (0..=TEXT.len()).flat_map(|first| (first..=TEXT.len()).map(move |second| (first, second)))
        {
            for between in &steps {
                let pieces = [&TEXT[..first], &TEXT[first..second], &TEXT[second..]];
                let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
                let steps = pieces.flat_map(|piece| [Step::Bytes(piece.to_vec()), between.clone()]);
                let pieces = Pieces::new(steps);
                for operation in operations {
                    for patience in [1, 3] {
                        read_all(&pieces, operation, patience);
                    }
                }
            }
        }
    });
}

/// Reads `pieces` by one operation again and again, from a `BufReader`, a small one, and a foreign reader.
fn read_all(pieces: &Pieces, operation: Op, patience: usize) {
    let operations = [operation; 12];
    for capacity in [1, 5, 8192] {
        let reader = BufReader::with_capacity(capacity, pieces.clone());
        script::run_on(reader, pieces, operations, patience, |reader| reader.get_mut());
    }
    script::run_on(Foreign::new(pieces.clone()), pieces, operations, patience, |reader| reader.pieces());
}

/// A timeout between any two pieces of a text costs nothing: the same call goes on.
#[test]
fn timeouts_lose_nothing() {
    run(async || {
        const LINE: &str = "a\u{e9}\u{20ac}\u{1d11e}\n";
        for cut in 0..LINE.len() {
            let steps = [&LINE.as_bytes()[..cut], &LINE.as_bytes()[cut..]].map(|piece| Step::Bytes(piece.to_vec()));
            let [first, second] = steps;
            let pieces =
                || Pieces::new([first.clone(), Step::Pending, second.clone()].into_iter().skip(usize::from(cut == 0)));
            let (mut line, mut bytes) = (String::new(), Vec::new());
            let mut reader = BufReader::new(pieces());
            while timeout(Duration::ZERO, reader.read_line(&mut line)).await.is_err() {}
            assert_eq!(line, LINE, "cut at {cut}");
            let mut reader = BufReader::new(pieces());
            while timeout(Duration::ZERO, reader.read_until(b'\n', &mut bytes)).await.is_err() {}
            assert_eq!(bytes, LINE.as_bytes(), "cut at {cut}");
            let mut lines = BufReader::new(pieces()).lines();
            let line = loop {
                if let Ok(line) = timeout(Duration::ZERO, lines.next()).await {
                    break line;
                }
            };
            assert_eq!(line.unwrap().unwrap(), LINE.trim_end(), "cut at {cut}");
        }
    });
}

/// The scripts that the fuzz target has found stay mended.
#[test]
fn corpus_is_replayed() {
    within(|| {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/io_buffered/corpus");
        let mut scripts = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            let file = file.expect("an entry of the corpus").path();
            println!("{}", file.display());
            script::run(&std::fs::read(file).expect("a script"));
            scripts += 1;
        }
        assert!(scripts > 0, "{corpus} has no scripts");
    });
}

/// Random scripts read as std does. The fuzz target searches with more patience.
#[test]
fn random_scripts_read_as_std() {
    within(|| {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..20_000 {
            let script: Vec<u8> = (0..random % 60 + 3)
                .map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    (random >> 32) as u8
                })
                .collect();
            let script = [&script[..2], &[script[2] % 40], &script[3..]].concat();
            script::run(&script);
        }
    });
}

/// A foreign reader that gives up the first bytes of a character loses them with a future that is dropped. The next call
/// must not take the others for text.
#[test]
fn lost_character_is_an_error() {
    run(async || {
        let euro = "\u{20ac}\n".as_bytes();
        let pieces = [Step::Bytes(euro[..1].to_vec()), Step::Pending, Step::Bytes(euro[1..].to_vec())];
        let mut reader = Foreign::new(Pieces::new(pieces));
        let mut line = String::new();
        assert!(poll_once(reader.read_line(&mut line)).await.is_none());
        let error = reader.read_line(&mut line).await.expect_err("the rest of a character is no text");
        assert_eq!((error.kind(), line.as_str()), (ErrorKind::InvalidData, ""));
    });
}

/// The reader is not asked beyond the limit of a `Take`, and the error has the bytes before the limit.
#[test]
fn limit_within_a_character_is_an_error() {
    run(async || {
        let (mut client, server) = io::duplex(64);
        client.write_all("a\u{20ac}".as_bytes()).await.unwrap();
        let mut line = String::new();
        let mut reader = BufReader::new(server);
        let error = (&mut reader).take(3).read_line(&mut line).await.expect_err("the limit is within a character");
        assert_eq!((error.kind(), line.as_str()), (ErrorKind::InvalidData, "a"));
        let error = error.into_inner().unwrap().downcast::<FromUtf8Error>().unwrap();
        assert_eq!(error.into_bytes(), b"\xE2\x82");
        assert_eq!(reader.buffer(), b"\xAC");
    });
}

/// `read_line` appends, as std's does.
#[test]
fn read_line_appends() {
    run(async || {
        let mut line = String::from("not empty: ");
        assert_eq!(Cursor::new("x\ny").read_line(&mut line).await.unwrap(), 2);
        assert_eq!(line, "not empty: x\n");
    });
}

/// A peer that sends half a line and resets leaves half a line and an error, and no panic.
#[test]
fn reset_keeps_half_a_line() {
    run(async || {
        let (ours, mut peer) = pair_with_std();
        std::io::Write::write_all(&mut peer, b"half a li").unwrap();
        let mut reader = BufReader::new(ours);
        assert_eq!(reader.fill_buf().await.unwrap(), b"half a li");
        reset(peer);
        let mut line = String::new();
        let error = reader.read_line(&mut line).await.expect_err("the connection was reset");
        assert_eq!((error.kind(), line.as_str()), (ErrorKind::ConnectionReset, "half a li"));
    });
}

/// At the end of a socket each call reads again, and may find the budget of its poll used up. That is no error.
#[test]
fn fill_buf_repeats_the_end() {
    run(async || {
        let (ours, peer) = pair_with_std();
        drop(peer);
        let mut reader = BufReader::new(ours);
        for call in 0..1000 {
            if call % 3 == 0 {
                consume_budget().await;
            }
            let filled = reader.fill_buf().await;
            assert!(matches!(filled, Ok([])), "call {call} returned {filled:?}");
        }
    });
}

/// A line is not lost by a loop that drops its `next()` again and again.
#[test]
fn dropped_next_keeps_the_line() {
    run(async || {
        let (listener, address) = listener().await;
        let client = kittiwake::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            for byte in "hello w\u{f6}rld\n".bytes() {
                stream.write_all(&[byte]).await.unwrap();
                yield_now().await;
            }
        });
        let (stream, _) = listener.accept().await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let line = loop {
            if let Some(line) = poll_once(lines.next()).await {
                break line;
            }
            yield_now().await;
        };
        assert_eq!(line.unwrap().unwrap(), "hello w\u{f6}rld");
        client.await.unwrap();
    });
}

/// A stream of lines goes on with the same line after an error.
#[test]
fn lines_go_on_after_an_error() {
    run(async || {
        let steps = [Step::Bytes(b"on".to_vec()), Step::Fails(ErrorKind::TimedOut), Step::Bytes(b"e\ntwo".to_vec())];
        let lines = BufReader::new(Pieces::new(steps)).lines();
        let lines: Vec<_> = lines.map(|line| line.map_err(|error| error.kind())).collect().await;
        assert_eq!(lines, [Err(ErrorKind::TimedOut), Ok("one".to_owned()), Ok("two".to_owned())]);
    });
}

/// A reader that is interrupted for ever.
struct Interrupted;

impl io::AsyncRead for Interrupted {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(ErrorKind::Interrupted.into()))
    }
}

/// A call that finds no end in memory gives way to other tasks.
#[test]
fn endless_reader_gives_way() {
    run(async || {
        let calls = [
            kittiwake::spawn(async { BufReader::new(io::repeat(b'x')).skip_until(b'\n').await }),
            kittiwake::spawn(async { BufReader::new(Interrupted).skip_until(b'\n').await }),
            kittiwake::spawn(async { BufReader::new(Interrupted).read_line(&mut String::new()).await }),
            kittiwake::spawn(async {
                let (mut reader, mut line) = (&b"\xFF"[..], String::new());
                while reader.read_line(&mut line).await.is_err() {}
                Ok(0)
            }),
        ];
        assert_give_way(calls).await;
    });
}

/// A read into nothing returns at once, as std's does. It must not wait for the peer.
#[test]
fn empty_read_waits_for_nothing() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let mut reader = BufReader::new(stream);
        for buffered in ["", "rest"] {
            let read = poll_once(reader.read(&mut [])).await;
            assert!(matches!(read, Some(Ok(0))), "{read:?}");
            let mut bufs = [IoSliceMut::new(&mut []), IoSliceMut::new(&mut [])];
            let read = poll_once(reader.read_vectored(&mut bufs)).await;
            assert!(matches!(read, Some(Ok(0))), "{read:?}");
            assert_eq!(reader.buffer(), buffered.as_bytes());
            peer.write_all(b"rest").expect("the peer writes");
            reader.fill_buf().await.expect("the peer has written");
        }
    });
}
