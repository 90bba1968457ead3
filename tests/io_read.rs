//! Reads to an end, bytes and chains, from a reader whose results are given.

mod support;

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_lite::future::poll_once;
use kittiwake::io::{self, AsyncBufReadExt, AsyncRead, AsyncReadExt, IoSliceMut};
use kittiwake::stream::StreamExt;
use kittiwake::task::yield_now;
use support::{assert_give_way, pattern, poll_with, run};

/// One call of a [`Source`].
#[derive(Clone, Copy)]
enum Step {
    Bytes(&'static [u8]),
    /// As many bytes as the call asks for.
    Full,
    /// The call must wait, and its task is woken at once.
    Pending,
    Fails(ErrorKind),
    Panics,
}

/// A reader that takes one step in each call that asks for bytes, and then ends. It notes how many bytes each call asks
/// for.
struct Source {
    steps: Vec<Step>,
    next: usize,
    asked: Vec<usize>,
}

impl Source {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), next: 0, asked: Vec::new() }
    }
}

impl AsyncRead for Source {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.asked.push(buf.len());
        let step = self.steps.get(self.next).copied();
        self.next += 1;
        match step {
            Some(Step::Bytes(bytes)) => {
                buf[..bytes.len()].copy_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            Some(Step::Full) => {
                buf.fill(b'x');
                Poll::Ready(Ok(buf.len()))
            }
            Some(Step::Pending) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Fails(kind)) => Poll::Ready(Err(kind.into())),
            Some(Step::Panics) => std::panic::resume_unwind(Box::new("the reader panicked")),
            None => Poll::Ready(Ok(0)),
        }
    }
}

/// `read_to_string` appends to a string that has text, also if the end of a character comes later. It returns the
/// number of the bytes that it has appended.
#[test]
fn read_to_string_appends() {
    run(async || {
        for capacity in [0, 64] {
            let mut text = String::with_capacity(capacity);
            for expected in ["\u{20ac}!", "\u{20ac}!\u{20ac}!"] {
                let steps = [Step::Bytes(b"\xE2\x82"), Step::Pending, Step::Bytes(b"\xAC!")];
                assert_eq!(Source::new(steps).read_to_string(&mut text).await.unwrap(), 4, "two characters have come");
                assert_eq!(text, expected, "the text before the call must stay");
            }
        }
    });
}

/// Bytes that are no UTF-8 are an error that has them, and leave the string as it was.
#[test]
fn invalid_text_leaves_the_string() {
    run(async || {
        let mut text = String::from("before");
        for bytes in [&b"text \xFF text"[..], b"cut \xE2\x82"] {
            let error = Source::new([Step::Bytes(bytes)]).read_to_string(&mut text).await.expect_err("it is no text");
            assert_eq!((error.kind(), text.as_str()), (ErrorKind::InvalidData, "before"));
            let error = error.into_inner().unwrap().downcast::<std::string::FromUtf8Error>().unwrap();
            assert_eq!(error.into_bytes(), bytes, "the error has what was read");
        }
    });
}

/// A reader that fails leaves the text before its error in the string. If that is no UTF-8, the string is as it was,
/// and the error is still the reader's. std does the same.
#[test]
fn error_keeps_the_text_before() {
    run(async || {
        for (bytes, expected) in [(&b"text"[..], "before text"), (b"\xE2\x82", "before ")] {
            let mut text = String::from("before ");
            let mut source = Source::new([Step::Bytes(bytes), Step::Fails(ErrorKind::ConnectionReset)]);
            let error = source.read_to_string(&mut text).await.expect_err("the reader has failed");
            assert_eq!((error.kind(), text.as_str()), (ErrorKind::ConnectionReset, expected));
        }
    });
}

/// A `read_to_end` that is dropped, fails or panics leaves in the vector what it has read, and no zero behind it. The
/// next call goes on, and counts only its own bytes.
#[test]
fn vector_has_what_was_read() {
    run(async || {
        let between = [Step::Pending, Step::Fails(ErrorKind::ConnectionReset), Step::Panics];
        for (step, capacity) in between.into_iter().flat_map(|step| [0, 2, 5, 6, 4096].map(|capacity| (step, capacity)))
        {
            // A new budget: a poll that is refused would not come to the step.
            yield_now().await;
            let mut source = Source::new([Step::Bytes(b"on"), step, Step::Bytes(b"e")]);
            let mut bytes = Vec::with_capacity(capacity);
            bytes.extend_from_slice(b"<->");
            let first = catch_unwind(AssertUnwindSafe(|| {
                poll_with(Waker::noop(), &mut source.read_to_end(&mut bytes)).map(|read| read.expect_err("a reset"))
            }));
            assert_eq!(first.is_err(), matches!(step, Step::Panics));
            assert_eq!(bytes, b"<->on", "with a capacity of {capacity}");
            assert_eq!(source.read_to_end(&mut bytes).await.unwrap(), 1, "one byte was left");
            assert_eq!(bytes, b"<->one", "with a capacity of {capacity}");
        }
    });
}

/// Single bytes cost `read_to_end` small pieces, whatever the capacity. The zeros that it writes are in proportion to
/// the bytes that come, and to the number of its polls.
#[test]
fn trickle_gets_small_pieces() {
    run(async || {
        const COUNT: usize = 1000;
        let trickle = std::iter::repeat_n([Step::Bytes(b"x"), Step::Pending], COUNT).flatten();
        let mut source = Source::new(trickle);
        let mut bytes = Vec::with_capacity(8 << 20);
        assert_eq!(source.read_to_end(&mut bytes).await.unwrap(), COUNT);
        let late = source.asked[20..].iter().max().unwrap();
        assert_eq!(*late, 64, "a reader that gives single bytes must be asked for few");
        let sum: usize = source.asked.iter().sum();
        assert!(sum < 2 * COUNT * 64 + 10_000, "{sum} zeros for {COUNT} bytes");
    });
}

/// A burst before the trickle raises the pieces only for a while. Polls without a byte let them fall too.
#[test]
fn pieces_fall_after_a_burst() {
    run(async || {
        for after in [Step::Bytes(b"x"), Step::Pending] {
            let mut source = Source::new([Step::Full; 20].into_iter().chain([after; 30]));
            source.read_to_end(&mut Vec::with_capacity(8 << 20)).await.unwrap();
            assert_eq!(source.asked[19], 64 * 1024, "a burst must be read in large pieces");
            assert_eq!(source.asked[20 + 12..].iter().max(), Some(&64), "asked for {:?}", &source.asked[20..]);
        }
    });
}

/// A large input is read in pieces that double up to 64 KiB, so that it takes few calls.
#[test]
fn pieces_grow_with_the_input() {
    run(async || {
        let mut source = Source::new([Step::Full; 100]);
        let mut bytes = Vec::with_capacity(16 << 20);
        let read = source.read_to_end(&mut bytes).await.unwrap();
        assert_eq!((read, bytes.len()), (source.asked[..100].iter().sum(), read));
        assert!(bytes.iter().all(|byte| *byte == b'x'), "a byte differs");
        let asked = &source.asked;
        assert!(asked.windows(2).all(|two| two[1] == (2 * two[0]).min(64 * 1024)), "asked for {asked:?}");
        assert_eq!(asked[100], 64 * 1024);
    });
}

/// A vector whose capacity is exactly enough, such as that of a known length, is not grown to find the end.
#[test]
fn exact_capacity_is_kept() {
    run(async || {
        let text = pattern(100_000);
        let mut bytes = Vec::with_capacity(text.len());
        let capacity = bytes.capacity();
        assert_eq!((&text[..]).read_to_end(&mut bytes).await.unwrap(), text.len());
        assert!(bytes == text, "the bytes differ");
        assert_eq!(bytes.capacity(), capacity, "the end needs no room");
        let more = [&text[..], b"!"].concat();
        bytes.clear();
        assert_eq!((&more[..]).read_to_end(&mut bytes).await.unwrap(), more.len());
        assert!(bytes == more, "the byte behind the capacity belongs to the input");
    });
}

/// Interrupted reads are made again by each call that reads on.
#[test]
fn interrupted_reads_are_repeated() {
    run(async || {
        let interrupted = Step::Fails(ErrorKind::Interrupted);
        let source = || Source::new([interrupted, Step::Bytes(b"x"), interrupted, interrupted, Step::Bytes(b"y")]);
        let (mut bytes, mut text) = (Vec::new(), String::new());
        assert_eq!(source().read_to_end(&mut bytes).await.unwrap(), 2);
        assert_eq!(source().read_to_string(&mut text).await.unwrap(), 2);
        assert_eq!((&bytes[..], text.as_str()), (&b"xy"[..], "xy"));
        let mut exact = [0; 2];
        source().read_exact(&mut exact).await.unwrap();
        assert_eq!(&exact, b"xy");
        let bytes: Vec<u8> = source().bytes().try_collect().await.unwrap();
        assert_eq!(bytes, b"xy");
    });
}

/// A byte that comes after a dropped `next()` is the next one. An error is yielded, and the stream goes on.
#[test]
fn bytes_lose_nothing() {
    run(async || {
        let reset = Step::Fails(ErrorKind::ConnectionReset);
        let mut bytes = Source::new([Step::Pending, Step::Bytes(b"x"), reset, Step::Bytes(b"y")]).bytes();
        assert!(poll_once(bytes.next()).await.is_none(), "no byte has come");
        assert_eq!(bytes.next().await.unwrap().unwrap(), b'x');
        assert_eq!(bytes.next().await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(bytes.next().await.unwrap().unwrap(), b'y');
        assert!(bytes.next().await.is_none());
    });
}

/// A call that reads for ever in memory gives way to other tasks.
#[test]
fn endless_reads_give_way() {
    run(async || {
        /// A reader that is interrupted in every call, or gives a byte.
        struct Endless(io::Result<()>);
        impl AsyncRead for Endless {
            fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
                Poll::Ready(self.0.as_ref().map(|()| 1).map_err(|error| error.kind().into()))
            }
        }
        let interrupted = || Endless(Err(ErrorKind::Interrupted.into()));
        let calls = [
            kittiwake::spawn(async { drop(Endless(Ok(())).read_to_end(&mut Vec::new()).await) }),
            kittiwake::spawn(async move { drop(interrupted().read_to_string(&mut String::new()).await) }),
            kittiwake::spawn(async move { drop(interrupted().read_exact(&mut [0]).await) }),
            kittiwake::spawn(async move { drop(interrupted().bytes().next().await) }),
            kittiwake::spawn(async { while Endless(Ok(())).bytes().next().await.is_some() {} }),
        ];
        assert_give_way(calls).await;
    });
}

/// A read into no bytes is not the end of the first reader of a chain.
#[test]
fn empty_reads_end_no_reader() {
    run(async || {
        let mut chain = (&b"first "[..]).chain(&b"second"[..]);
        assert_eq!(chain.read(&mut []).await.unwrap(), 0);
        assert_eq!(chain.read_vectored(&mut []).await.unwrap(), 0);
        let mut empty = [IoSliceMut::new(&mut []), IoSliceMut::new(&mut [])];
        assert_eq!(chain.read_vectored(&mut empty).await.unwrap(), 0);
        let mut text = String::new();
        chain.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "first second", "an empty read has skipped the first reader");
    });
}

/// Each way to read a chain goes through both readers, in order.
#[test]
fn chain_reads_both_readers() {
    run(async || {
        let chain = || (&b"one\ntw"[..]).chain(&b"o\n"[..]);
        let (mut reader, mut bytes) = (chain(), Vec::new());
        loop {
            let (mut head, mut tail) = ([0; 1], [0; 2]);
            let read =
                reader.read_vectored(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)]).await.unwrap();
            bytes.extend_from_slice(&[head[0], tail[0], tail[1]][..read]);
            if read == 0 {
                break;
            }
        }
        assert_eq!(bytes, b"one\ntwo\n");
        let lines: Vec<String> = chain().lines().try_collect().await.unwrap();
        assert_eq!(lines, ["one", "two"]);
        let mut reader = chain();
        reader.read_exact(&mut [0; 7]).await.unwrap();
        assert_eq!(reader.get_ref(), (&&b""[..], &&b"\n"[..]));
        *reader.get_mut().0 = b"again";
        assert_eq!(reader.into_inner(), (&b"again"[..], &b"\n"[..]));
    });
}
