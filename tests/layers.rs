//! The modules of `src/` and the dependencies between them. The test reads the source.
//!
//! A module here is one at the top of the crate. [`ARROWS`] lists the modules that each of them may name. A new
//! dependency is a design decision and must be added there.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module, and the modules that it may name beside itself. `lib.rs` is not listed: it may name every module,
/// and no module may name it or its re-exports. A new module needs a row here.
const ARROWS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("metrics", &[]),
    ("budget", &["metrics"]),
    ("executor", &["budget", "sync"]),
    ("blocking", &["executor"]),
    ("reactor", &["budget", "sync"]),
    ("task", &["executor", "blocking"]),
    ("io", &[]),
    ("wheel", &[]),
    ("time", &["wheel", "sync"]),
    ("net", &["reactor", "budget", "metrics", "sync", "task", "time", "blocking"]),
    ("signal", &["reactor"]),
    ("runtime", &["executor", "reactor", "budget", "metrics", "sync", "time", "blocking"]),
];

/// Every module names only the modules below it. A wrong dependency would make it impossible to read, test or
/// replace one of the two alone.
#[test]
fn modules_name_only_lower_modules() {
    let wrong: Vec<String> = sources().iter().flat_map(Source::wrong_arrows).map(|found| found.to_string()).collect();
    assert!(wrong.is_empty(), "these paths go against the arrows of tests/layers.rs:\n{}", wrong.join("\n"));
}

/// Every row of the table is a module. A row for a removed module would permit dependencies without a purpose.
#[test]
fn every_table_row_is_a_module() {
    let rooms: BTreeSet<String> = sources().iter().filter_map(|source| source.module.first().cloned()).collect();
    for (room, below) in ARROWS {
        assert!(rooms.contains(*room), "there is no room `{room}` in src/ any more");
        for named in *below {
            assert!(rooms.contains(*named), "`{room}` may name `{named}`, which is no room in src/");
        }
    }
}

/// The cores of the reactor and of the timers, and the spin policy, name no kernel, clock or thread state. They can
/// therefore be tested and fuzzed without them.
#[test]
fn pure_cores_stay_pure() {
    for file in ["reactor/source.rs", "reactor/slots.rs", "wheel/mod.rs", "runtime/park.rs"] {
        let source = source(file).without_tests();
        let impure: Vec<String> = source.impurities().iter().map(ToString::to_string).collect();
        assert!(impure.is_empty(), "{file} must stay pure:\n{}", impure.join("\n"));
    }
}

/// The executor wakes a `Waker` and knows no reactor, so it runs under any reactor or none.
#[test]
fn executor_names_no_reactor() {
    let executor = sources().into_iter().filter(|source| source.room() == Some("executor"));
    let named: Vec<String> =
        executor.flat_map(|source| source.words(&["reactor", "mio"])).map(|found| found.to_string()).collect();
    assert!(named.is_empty(), "the executor names a reactor:\n{}", named.join("\n"));
}

/// No file has unsafe code. The lint forbids it, and this test prevents an exception.
#[test]
fn no_file_has_unsafe_code() {
    let found: Vec<String> =
        sources().iter().flat_map(|source| source.words(&["unsafe"])).map(|found| found.to_string()).collect();
    assert!(found.is_empty(), "these lines have unsafe code:\n{}", found.join("\n"));
}

// ---- tests of the reader ----

/// The reader finds every form of a path. A reader that found none would pass every file.
#[test]
fn reader_finds_every_path_form() {
    let forms = [
        ("use crate::reactor::Registry;", 1),
        ("use crate::{budget, reactor::{Registry, Source}};", 1),
        ("fn f() {\n    crate::net::TcpStream::connect()\n}", 2),
        ("use crate::\n    runtime::Runtime;", 1),
        ("pub(in crate::reactor) fn f() {}", 1),
        ("use crate::spawn;", 1),
        ("use crate::*;", 1),
        ("use crate as root;", 1),
        ("extern crate self as kittiwake;", 1),
        ("use super::reactor::Registry;", 1),
        ("mod tests {\n    use super::super::reactor::Registry;\n}", 2),
        ("mod tests {\n    mod deep { use super::super::super::{reactor, budget}; }\n}", 2),
        ("/* a /* nested */ comment */ use crate::reactor;", 1),
        ("const A: &str = \"\\\"\"; use crate::reactor;", 1),
        ("const A: char = '\"'; use crate::reactor;", 1),
        ("fn f<'a>(a: &'a u8) { crate::reactor::f(a) }", 1),
        ("const A: &str = r#\"a \" b\"#; use crate::reactor;", 1),
    ];
    for (text, line) in forms {
        let wrong = Source::new("executor/mod.rs", text).wrong_arrows();
        assert_eq!(wrong.len(), 1, "the reader must find one wrong path in: {text}\nit found: {wrong:?}");
        assert_eq!(wrong[0].line, line, "the reader names a wrong line for: {text}");
    }
}

/// The reader reports neither allowed paths nor text that is no code.
#[test]
fn reader_reports_nothing_else() {
    let allowed = [
        "use crate::budget;",
        "use crate::executor::task;",
        "use crate::{budget, sync::{self, lock}};",
        "// use crate::reactor;",
        "/// [`crate::reactor`]\nfn f() {}",
        "//! crate::reactor",
        "/* crate::reactor */",
        "const A: &str = \"crate::reactor\";",
        "const A: &str = \"\\\\\"; // crate::reactor",
        "const A: &str = r#\"\"crate::reactor\"\"#;",
        "pub(crate) fn f() {}",
        "use super::budget;",
        "mod tests {\n    use super::*;\n    use super::super::budget;\n}",
    ];
    for text in allowed {
        let wrong = Source::new("executor/mod.rs", text).wrong_arrows();
        assert!(wrong.is_empty(), "the reader must report nothing in: {text}\nit reported: {wrong:?}");
    }
}

/// A file in a module without a row is reported.
#[test]
fn file_in_unknown_module_is_reported() {
    let wrong = Source::new("a_new_room/mod.rs", "fn f() {}").wrong_arrows();
    assert_eq!(wrong.len(), 1, "a room without a row must be reported");
}

/// The reader finds every forbidden name in a pure core, and ignores code for tests.
#[test]
fn reader_finds_every_impurity() {
    for text in [
        "use mio::Token;",
        "use std::io;",
        "use std::{mem, io::Read};",
        "fn f() { std::io::stdout(); }",
        "use std::time::Instant;",
        "thread_local! { static A: u8 = 0; }",
    ] {
        let impure = Source::new("reactor/source.rs", text).without_tests().impurities();
        assert!(!impure.is_empty(), "the reader must find the impurity in: {text}");
    }
    let tests = "fn f() {}\n#[cfg(test)]\nmod tests { use std::{io, time::Instant}; }\n\
                 #[cfg(any(test, fuzzing))] #[inline] fn g() { mio::f(); }\n\
                 #[cfg(test)] use std::io;";
    let impure = Source::new("reactor/source.rs", tests).without_tests().impurities();
    assert!(impure.is_empty(), "what only tests see must not be reported: {impure:?}");
}

// ---- the reader ----

/// All files of `src/`.
fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root(), &mut files);
    assert!(files.len() > 10, "only {} files found in src/: the reader looks in the wrong place", files.len());
    files.iter().map(|file| source(file.strip_prefix(root()).unwrap().to_str().unwrap())).collect()
}

fn source(file: &str) -> Source {
    let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("src/{file}: {error}"));
    Source::new(file, &text)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// One file as its words and punctuation.
struct Source {
    file: String,
    /// The file's module path. Empty for `lib.rs`.
    module: Vec<String>,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
struct Token {
    line: usize,
    text: String,
}

/// A name at a place where it is not allowed.
#[derive(Debug)]
struct Found {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        let path = file.trim_end_matches(".rs");
        let path = path.strip_suffix("/mod").unwrap_or(path);
        let module = if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() };
        Self { file: file.to_owned(), module, tokens: tokens(text) }
    }

    fn room(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    /// The paths that name a module which this file's module may not name.
    fn wrong_arrows(&self) -> Vec<Found> {
        let Some(room) = self.room() else { return Vec::new() };
        let Some((_, below)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            return vec![self.found(1, format!("the room `{room}` has no row in the table"))];
        };
        let allowed = |named: &str| named == room || below.contains(&named);
        let wrong = self.rooms_named().into_iter().filter(|(_, named)| !allowed(named));
        wrong.map(|(line, named)| self.found(line, format!("`{room}` names `{named}`"))).collect()
    }

    /// The first segment of each path that starts at the crate's root, with its line.
    fn rooms_named(&self) -> Vec<(usize, String)> {
        let mut named = Vec::new();
        // The brace depth at which each enclosing inline module was opened.
        let (mut depth, mut inline) = (0, Vec::new());
        for (at, token) in self.tokens.iter().enumerate() {
            match token.text.as_str() {
                "{" => {
                    depth += 1;
                    if at >= 2 && self.text(at - 2) == "mod" {
                        inline.push(depth);
                    }
                }
                "}" => {
                    if inline.last() == Some(&depth) {
                        inline.pop();
                    }
                    depth -= 1;
                }
                "crate" if self.text(at + 1) == "::" => self.heads(at + 1, &mut named),
                "crate" if matches!(self.text(at + 1), "as" | "self") => {
                    named.push((token.line, "the crate's root".to_owned()));
                }
                "super" if self.text(at + 1) == "::" && self.text(at.wrapping_sub(1)) != "::" => {
                    let mut last = at;
                    while self.text(last + 2) == "super" {
                        last += 2;
                    }
                    let ups = (last - at) / 2 + 1;
                    if ups >= self.module.len() + inline.len() {
                        self.heads(last + 1, &mut named);
                    }
                }
                _ => {}
            }
        }
        named
    }

    /// Collects the next segment of a path, after the `::` at `colons`: one name, or each name of a group.
    fn heads(&self, colons: usize, heads: &mut Vec<(usize, String)>) {
        let first = colons + 1;
        if self.text(first) != "{" {
            heads.extend(self.tokens.get(first).map(|token| (self.tokens[colons].line, token.text.clone())));
            return;
        }
        let mut depth = 0;
        for at in first..self.tokens.len() {
            match self.text(at) {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
            if depth == 1 && matches!(self.text(at), "{" | ",") && !matches!(self.text(at + 1), "}" | "") {
                heads.push((self.tokens[at + 1].line, self.text(at + 1).to_owned()));
            }
        }
    }

    /// The names that a pure core may not use.
    fn impurities(&self) -> Vec<Found> {
        let mut std = Vec::new();
        for at in 0..self.tokens.len() {
            if self.text(at) == "std" && self.text(at + 1) == "::" {
                self.heads(at + 1, &mut std);
            }
        }
        let io = std.into_iter().filter(|(_, head)| head == "io");
        let mut found = self.words(&["mio", "Instant", "SystemTime", "thread_local"]);
        found.extend(io.map(|(line, _)| self.found(line, "names `std::io`".to_owned())));
        found
    }

    fn words(&self, words: &[&str]) -> Vec<Found> {
        let named = self.tokens.iter().filter(|token| words.contains(&token.text.as_str()));
        named.map(|token| self.found(token.line, format!("names `{}`", token.text))).collect()
    }

    /// The file without the items that only tests compile.
    fn without_tests(mut self) -> Self {
        let mut kept = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            if self.is_test_attribute(at) {
                at = self.end_of_item(at);
            } else {
                kept.push(self.tokens[at].clone());
                at += 1;
            }
        }
        self.tokens = kept;
        self
    }

    /// True if `#[cfg(test)]`, or a `cfg` that contains `test`, begins at `at`.
    fn is_test_attribute(&self, at: usize) -> bool {
        let is_cfg = self.text(at) == "#" && self.text(at + 1) == "[" && self.text(at + 2) == "cfg";
        is_cfg
            && (at..).map(|at| self.text(at)).take_while(|text| !matches!(*text, "]" | "")).any(|text| text == "test")
    }

    /// The index of the token after the item whose first attribute begins at `at`.
    fn end_of_item(&self, mut at: usize) -> usize {
        let mut depth = 0;
        loop {
            match self.text(at) {
                "" => return at,
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 && matches!(self.text(at - 1), "}" | ";") {
                return at;
            }
        }
    }

    /// The text of the token at `at`, or an empty string.
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text.as_str())
    }

    fn found(&self, line: usize, what: String) -> Found {
        Found { file: self.file.clone(), line, what }
    }
}

/// Returns words, `::` and single characters, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let text: Vec<char> = text.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let is_word = |sign: char| sign.is_alphanumeric() || sign == '_';
    let (mut tokens, mut index, mut line) = (Vec::new(), 0, 1);
    while index < text.len() {
        let start = index;
        match at(index) {
            '/' if at(index + 1) == '/' => index = end(index, |index| at(index) == '\n' || index >= text.len()),
            '/' if at(index + 1) == '*' => index = end_of_comment(&text, index),
            '"' => index = end_of_string(&text, index),
            'r' if matches!((at(index + 1), at(index + 2)), ('"', _) | ('#', '"' | '#')) => {
                index = end_of_raw_string(&text, index);
            }
            '\'' if at(index + 1) == '\\' || at(index + 2) == '\'' => {
                index = end(index + 2 + usize::from(at(index + 1) == '\\'), |index| at(index) == '\'') + 1;
            }
            '\'' => index = end(index + 1, |index| !is_word(at(index))),
            ':' if at(index + 1) == ':' => {
                tokens.push(Token { line, text: "::".to_owned() });
                index += 2;
            }
            sign if is_word(sign) => {
                index = end(index, |index| !is_word(at(index)));
                tokens.push(Token { line, text: text[start..index].iter().collect() });
            }
            sign => {
                if !sign.is_whitespace() {
                    tokens.push(Token { line, text: sign.to_string() });
                }
                index += 1;
            }
        }
        line += text[start..index.min(text.len())].iter().filter(|sign| **sign == '\n').count();
    }
    tokens
}

fn end(start: usize, is_end: impl Fn(usize) -> bool) -> usize {
    (start..).find(|index| is_end(*index)).expect("an end in a text that compiles")
}

fn end_of_comment(text: &[char], start: usize) -> usize {
    let (mut depth, mut index) = (0, start);
    loop {
        match text.get(index..index + 2) {
            Some(['/', '*']) => (depth, index) = (depth + 1, index + 2),
            Some(['*', '/']) => (depth, index) = (depth - 1, index + 2),
            Some(_) => index += 1,
            None => return text.len(),
        }
        if depth == 0 {
            return index;
        }
    }
}

fn end_of_string(text: &[char], start: usize) -> usize {
    let mut index = start + 1;
    while index < text.len() && text[index] != '"' {
        index += if text[index] == '\\' { 2 } else { 1 };
    }
    index + 1
}

fn end_of_raw_string(text: &[char], start: usize) -> usize {
    let hashes = text[start + 1..].iter().take_while(|sign| **sign == '#').count();
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = start + 2 + hashes;
    let length = text[body..].windows(close.len()).position(|window| window == close);
    length.map_or(text.len(), |length| body + length + close.len())
}
