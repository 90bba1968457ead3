//! Runs scripts of reads on a reader that shows its bytes in pieces, and compares each result with std's on the whole
//! text.
//!
//! The tests replay the scripts in `corpus/`. The fuzz target `buffered` searches for scripts that fail.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind};
use std::pin::{Pin, pin};
use std::string::FromUtf8Error;
use std::task::{Context, Poll, Waker};

use kittiwake::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use kittiwake::stream::StreamExt;

/// One result of the reader.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Bytes(Vec<u8>),
    /// The task has to wait. It is woken at once.
    Pending,
    Fails(ErrorKind),
}

/// A reader whose results are given. After the last it has ended.
#[derive(Clone, Debug)]
pub(crate) struct Pieces {
    steps: VecDeque<Step>,
    /// Errors are delays instead.
    pub(crate) never_fails: bool,
}

impl Pieces {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), never_fails: false }
    }

    /// All the bytes that this reader has.
    pub(crate) fn text(&self) -> Vec<u8> {
        let bytes = self.steps.iter().filter_map(|step| if let Step::Bytes(bytes) = step { Some(bytes) } else { None });
        bytes.flatten().copied().collect()
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.steps.pop_front() {
            None => Poll::Ready(Ok(0)),
            Some(Step::Bytes(mut bytes)) => {
                let read = bytes.len().min(buf.len());
                buf[..read].copy_from_slice(&bytes[..read]);
                bytes.drain(..read);
                if !bytes.is_empty() {
                    self.steps.push_front(Step::Bytes(bytes));
                }
                Poll::Ready(Ok(read))
            }
            Some(Step::Fails(kind)) if !self.never_fails => Poll::Ready(Err(kind.into())),
            Some(Step::Pending | Step::Fails(_)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

/// A reader with a buffer that is not kittiwake's: it shows one piece, and no more until that is consumed.
pub(crate) struct Foreign {
    pieces: Pieces,
    shown: Vec<u8>,
}

impl Foreign {
    pub(crate) fn new(pieces: Pieces) -> Self {
        Self { pieces, shown: Vec::new() }
    }

    pub(crate) fn pieces(&mut self) -> &mut Pieces {
        &mut self.pieces
    }
}

impl AsyncRead for Foreign {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        unreachable!("the scripts read through the buffer only")
    }
}

impl AsyncBufRead for Foreign {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.shown.is_empty() {
            let mut piece = [0; 16];
            match Pin::new(&mut this.pieces).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(read)) => this.shown.extend(&piece[..read]),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(&this.shown))
    }

    fn consume(mut self: Pin<&mut Self>, amt: usize) {
        self.shown.drain(..amt);
    }
}

/// One operation of a script.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Fills the buffer, and consumes at most so many bytes.
    Fill(usize),
    Until(u8),
    Skip(u8),
    Line,
    NextLine,
    NextPiece(u8),
    /// A line of at most so many bytes.
    ShortLine(usize),
}

/// The delimiters of the scripts.
const DELIMITERS: [u8; 3] = [b'\n', b'a', 0x82];

impl Op {
    fn from_byte(byte: u8) -> Self {
        let argument = usize::from(byte / 8);
        let delimiter = DELIMITERS[argument % DELIMITERS.len()];
        match byte % 8 {
            0 => Self::Fill(argument),
            1 => Self::Until(delimiter),
            2 => Self::Skip(delimiter),
            3 | 4 => Self::Line,
            5 => Self::NextLine,
            6 => Self::NextPiece(delimiter),
            _ => Self::ShortLine(argument),
        }
    }
}

/// Decodes one byte of a script as a part of the text, or as an interruption between two pieces.
fn step(byte: u8) -> Step {
    const PARTS: [&[u8]; 20] = [
        b"a",
        b"bc",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\xC3",
        b"\xA9",
        b"\xE2",
        b"\x82",
        b"\xAC",
        b"\xF0",
        b"\x9D",
        b"\x84",
        b"\x9E",
        b"\xFF",
        b"\xC3\xA9",
        b"\xE2\x82\xAC",
        b"\xF0\x9D\x84\x9E",
        b"twenty and more byte",
    ];
    match byte % 24 {
        20 => Step::Pending,
        21 => Step::Fails(ErrorKind::Interrupted),
        22 => Step::Fails(ErrorKind::WouldBlock),
        23 => Step::Fails(ErrorKind::ConnectionReset),
        part => Step::Bytes(PARTS[usize::from(part)].to_vec()),
    }
}

/// Runs a script: a byte for the reader, a byte for the number of polls before a future is dropped, a byte for the
/// length of the text, the text, and the operations.
///
/// # Panics
/// Panics if a result differs from std's.
pub(crate) fn run(script: &[u8]) {
    let [reader, patience, length, rest @ ..] = script else { return };
    let (text, operations) = rest.split_at(usize::from(*length).min(rest.len()));
    // Parts that follow each other in the script are one piece if the first bit is set.
    let mut steps: Vec<Step> = Vec::new();
    for byte in text {
        match (step(*byte), steps.last_mut()) {
            (Step::Bytes(part), Some(Step::Bytes(piece))) if byte & 0x80 != 0 => piece.extend(part),
            (step, _) => steps.push(step),
        }
    }
    let operations = operations.iter().map(|byte| Op::from_byte(*byte));
    let pieces = Pieces::new(steps);
    let patience = usize::from(patience % 4) + 1;
    match reader % 4 {
        0 => run_on(Foreign::new(pieces.clone()), &pieces, operations, patience, |reader| reader.pieces()),
        1 => {
            let reader = BufReader::new(pieces.clone()).take(u64::MAX);
            run_on(reader, &pieces, operations, patience, |reader| reader.get_mut().get_mut());
        }
        _ => {
            let reader = BufReader::with_capacity(usize::from(reader / 4), pieces.clone());
            run_on(reader, &pieces, operations, patience, |reader| reader.get_mut());
        }
    }
}

/// Runs `operations` on `reader`, which shows `pieces`, and then reads the rest.
pub(crate) fn run_on<R: AsyncBufRead + Unpin>(
    reader: R,
    pieces: &Pieces,
    operations: impl IntoIterator<Item = Op>,
    patience: usize,
    pieces_of: fn(&mut R) -> &mut Pieces,
) {
    let text = pieces.text();
    let keeps_characters = std::any::type_name::<R>().contains("BufReader");
    let mut world = World { reader, text: &text, patience, pieces_of, keeps_characters };
    for operation in operations {
        world.apply(operation);
    }
    while !world.text.is_empty() {
        world.apply(Op::Until(b'\n'));
    }
    world.apply(Op::Until(b'\n'));
}

struct World<'a, R> {
    reader: R,
    /// The bytes that std has still to read.
    text: &'a [u8],
    /// A future is dropped after so many polls.
    patience: usize,
    pieces_of: fn(&mut R) -> &mut Pieces,
    /// The reader can read more behind the first bytes of a character.
    keeps_characters: bool,
}

impl<R: AsyncBufRead + Unpin> World<'_, R> {
    fn apply(&mut self, operation: Op) {
        match operation {
            Op::Fill(amount) => self.fill(amount),
            Op::Until(delimiter) => {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                BufRead::read_until(&mut self.text, delimiter, &mut theirs).unwrap();
                complete(self.patience, async || self.reader.read_until(delimiter, &mut ours).await).unwrap();
                assert_eq!(ours, theirs, "read_until lost bytes, or repeated them");
            }
            Op::Skip(delimiter) => {
                BufRead::skip_until(&mut self.text, delimiter).unwrap();
                complete(self.patience, async || self.reader.skip_until(delimiter).await).unwrap();
            }
            Op::Line => self.line(u64::MAX),
            Op::ShortLine(limit) => self.line(limit as u64),
            Op::NextLine => self.next_line(),
            Op::NextPiece(delimiter) => {
                let theirs = BufRead::split(&mut self.text, delimiter).next().map(Result::unwrap);
                let mut pieces = (&mut self.reader).split(delimiter);
                let ours = complete(self.patience, async || pieces.next().await.transpose()).unwrap();
                assert_eq!(ours, theirs, "split lost bytes, or repeated them");
            }
        }
    }

    fn fill(&mut self, amount: usize) {
        let shown = complete(self.patience, async || self.reader.fill_buf().await.map(<[u8]>::to_vec)).unwrap();
        assert!(self.text.starts_with(&shown), "{shown:?} is not the beginning of {:?}", self.text);
        assert_eq!(shown.is_empty(), self.text.is_empty(), "only the end is empty");
        let amount = amount.min(shown.len());
        AsyncBufReadExt::consume(&mut self.reader, amount);
        self.text = &self.text[amount..];
    }

    /// Reads a line of at most `limit` bytes.
    fn line(&mut self, limit: u64) {
        let mut line = Vec::new();
        BufRead::read_until(&mut io::Read::take(self.text, limit), b'\n', &mut line).unwrap();
        let valid = match std::str::from_utf8(&line) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        // A foreign reader must give up the first bytes of a character, and so must a reader at its limit.
        let keeps = self.keeps_characters && valid == line.len();
        (self.pieces_of)(&mut self.reader).never_fails = !keeps;
        let patience = if keeps { self.patience } else { usize::MAX };
        let mut ours = String::from("> ");
        let result = complete(patience, async || {
            let rest = limit.saturating_sub(ours.len() as u64 - 2);
            (&mut self.reader).take(rest).read_line(&mut ours).await
        });
        (self.pieces_of)(&mut self.reader).never_fails = false;
        assert_eq!(&ours.as_bytes()[2..], &line[..valid], "read_line lost text, or repeated it");
        self.text = &self.text[valid..];
        if let Err(error) = result {
            assert!(valid < line.len(), "a line of text failed: {error}");
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            let taken = taken_by(&error);
            assert!(taken.len() < 4 && self.text.starts_with(&taken), "{taken:?} are not the next bytes");
            self.text = &self.text[taken.len()..];
        } else {
            assert_eq!(valid, line.len(), "{line:?} is no text, but did not fail");
        }
    }

    fn next_line(&mut self) {
        let mut whole = self.text;
        let theirs = BufRead::lines(&mut self.text).next();
        whole = &whole[..whole.len() - self.text.len()];
        let mut lines = (&mut self.reader).lines();
        match (complete(self.patience, async || lines.next().await.transpose()), theirs) {
            (Ok(ours), theirs) => assert_eq!(ours, theirs.map(Result::unwrap), "lines lost bytes, or repeated them"),
            (Err(ours), Some(Err(_))) => {
                let whole = whole.strip_suffix(b"\n").map_or(whole, |line| line.strip_suffix(b"\r").unwrap_or(line));
                assert_eq!(taken_by(&ours), whole, "the error has the bytes of the line");
            }
            (Err(ours), theirs) => panic!("lines failed by {ours}, but std has read {theirs:?}"),
        }
    }
}

/// The bytes that an error has.
fn taken_by(error: &io::Error) -> Vec<u8> {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<FromUtf8Error>());
    error.map_or_else(Vec::new, |error| error.as_bytes().to_vec())
}

/// Repeats a call until it comes to a result that is not an error of [`Pieces`]. Drops its future after `patience`
/// polls.
fn complete<T>(patience: usize, mut call: impl AsyncFnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        let mut future = pin!(call());
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..patience {
            match future.as_mut().poll(&mut cx) {
                Poll::Ready(Err(error)) if error.kind() != ErrorKind::InvalidData => break,
                Poll::Ready(result) => return result,
                Poll::Pending => {}
            }
        }
    }
}
