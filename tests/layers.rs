//! Reads the source in `src/` and checks its structure and its words.
//!
//! A room is a module at the top of the crate. [`ARROWS`] lists the rooms that each room may name. Within a room no
//! files form a circle. [`OLD_WORDS`] lists the words that the code no longer uses. The tests that the guide's chapter of
//! promises names must exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use Place::{Functions, Identifiers, Text};

/// Each room, and the other rooms that it may name. A new room needs a row.
///
/// `lib.rs` is no room: it may name every room, and no room may name it or its re-exports.
const ARROWS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("current", &[]),
    ("live_threads", &["sync"]),
    ("memory", &[]),
    ("histogram", &[]),
    ("metrics", &["histogram"]),
    ("system_clock", &[]),
    ("random", &[]),
    ("random_scripts", &["random"]),
    ("stamp", &["system_clock"]),
    ("budget", &["metrics", "stamp", "system_clock"]),
    ("trace", &["sync"]),
    ("executor", &["budget", "memory", "random", "random_scripts", "stamp", "sync", "system_clock", "trace"]),
    ("blocking", &["executor", "current", "live_threads", "memory"]),
    ("reactor", &["budget", "current", "memory", "random_scripts", "sync"]),
    ("wheel", &["memory", "random_scripts"]),
    ("time", &["wheel", "budget", "current", "stamp", "sync", "system_clock"]),
    ("guide", &[]),
    ("seeds", &[]),
    ("future", &[]),
    ("stream", &[]),
    ("io", &["reactor", "budget", "sync", "task", "time"]),
    ("task", &["executor", "blocking", "trace"]),
    ("net", &["reactor", "time", "task", "blocking", "budget", "io", "metrics", "sync", "trace"]),
    ("signal", &["reactor"]),
    ("dump", &["executor", "reactor", "time", "system_clock"]),
    ("hyper", &["net", "time", "task", "budget", "sync"]),
    ("inspect", &["dump", "runtime", "hyper", "net", "executor", "signal", "time"]),
    (
        "runtime",
        &[
            "executor",
            "reactor",
            "time",
            "blocking",
            "budget",
            "current",
            "dump",
            "histogram",
            "live_threads",
            "memory",
            "metrics",
            "stamp",
            "sync",
            "system_clock",
            "trace",
        ],
    ),
];

/// The files, and the folders, that name no I/O, no clock and no thread-local, and whether they may hold an `Instant`.
///
/// A core that holds an `Instant` gets it as an argument: it never calls `Instant::now`.
const PURE_CORES: &[(&str, bool)] = &[
    ("reactor/source.rs", false),
    ("reactor/slots.rs", false),
    ("reactor/readiness.rs", false),
    ("reactor/waiters.rs", false),
    ("wheel/mod.rs", false),
    ("histogram.rs", false),
    ("runtime/spin.rs", false),
    ("runtime/batch.rs", false),
    ("executor/registry.rs", false),
    ("executor/remote_queue.rs", false),
    ("executor/shuffle.rs", false),
    ("executor/stealing/", true),
];

/// Where an old word is wrong.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// As the whole name of a function, where it is defined.
    Functions,
    /// In every name but those of tests, which are sentences. Also in a name that a comment quotes between backticks.
    Identifiers,
    /// In every name and in the sentences of comments.
    Text,
}

/// An old word, its replacement, where it is wrong, and the folders or files that may use it.
///
/// A word in lower case stands for each part of a name: `rung` finds `is_rung` and `RUNG`, but not `wrung`. A word with
/// a capital stands for exactly this name. Several words are a phrase.
const OLD_WORDS: &[(&str, &str, Place, &[&str])] = &[
    // Waking a worker.
    ("ring", "unpark", Identifiers, &[]),
    ("rings", "unparkers", Identifiers, &[]),
    ("rung", "notified", Text, &[]),
    ("rang", "expired, or unparked", Text, &[]),
    ("hear", "drain, or handle_internal_event", Identifiers, &[]),
    ("heard", "drained, or received", Identifiers, &[]),
    ("rest", "prepare_idle", Functions, &[]),
    ("rise", "leave_idle", Identifiers, &[]),
    ("wants_call", "should_wake", Identifiers, &[]),
    // Tasks.
    ("sharing", "Stealer", Identifiers, &[]),
    ("gathered", "deferred", Identifiers, &[]),
    ("gate", "queue id", Identifiers, &[]),
    ("gates", "queue ids", Identifiers, &[]),
    ("home", "WorkerRef", Identifiers, &[]),
    ("guest", GONE, Text, &[]),
    ("guests", GONE, Text, &[]),
    ("heir", GONE, Text, &[]),
    ("adopt", GONE, Identifiers, &[]),
    ("hand_over", GONE, Identifiers, &[]),
    ("told", "cancelled", Identifiers, &[]),
    ("while_told", "CancelReason", Identifiers, &[]),
    ("tell", "cancel", Functions, &[]),
    ("admit", "insert", Identifiers, &[]),
    ("Made", "NewTask", Identifiers, &[]),
    ("placed", "spawn_on", Identifiers, &[]),
    ("task_lists", "TaskRegistry", Identifiers, &[]),
    ("ends_here", "drop the `Runnable`", Identifiers, &[]),
    ("run_to_end", "drop the `Runnable`", Identifiers, &[]),
    ("refuse", "drop the `Runnable`", Functions, &["budget.rs", "net/"]),
    ("note_ours", "note_executors", Identifiers, &[]),
    ("is_ours", "is_executors", Identifiers, &[]),
    ("still_running", "closures_running", Identifiers, &[]),
    // Sources.
    ("binding", "Registered", Identifiers, &[]),
    ("rebind", "register", Identifiers, &[]),
    ("lost", GONE, Identifiers, &[]),
    ("forgive", GONE, Identifiers, &[]),
    ("doubt", GONE, Identifiers, &[]),
    ("orphan", GONE, Text, &[]),
    ("orphaned", GONE, Text, &[]),
    ("rouse", "wake_waiters", Text, &[]),
    ("forget", "remove_waiter", Functions, &["net/"]),
    ("observe", GONE, Identifiers, &[]),
    ("observed", GONE, Identifiers, &[]),
    ("observer", GONE, Identifiers, &[]),
    ("settled", GONE, Identifiers, &[]),
    ("alarm", "TimerFd, or Expiry", Identifiers, &["signal/"]),
    // Spinning.
    ("Park", "SpinPolicy", Identifiers, &[]),
    ("judge", "compare", Identifiers, &[]),
    ("promising", "worth_trying", Identifiers, &[]),
    // Servers.
    ("begun", "triggered", Identifiers, &[]),
    ("How", "std::net::Shutdown", Identifiers, &[]),
    ("shortage", "accept backoff", Identifiers, &[]),
    ("Live", "connections", Identifiers, &[]),
    // Sentences without an actor.
    ("whoever", "name the actor", Text, &[]),
    ("nobody", "name the actor, and negate the verb", Text, &[]),
    ("somebody", "name the actor", Text, &[]),
    ("those who", "name the actors", Text, &[]),
];

/// The mechanism of this word was removed, so nothing replaces the word.
const GONE: &str = "nothing, the mechanism was removed";

/// A comment that begins with one of these words has no subject.
const HEADLESS: &[&str] = &["What", "Who"];

/// With a wrong arrow two rooms are one: neither can be read, tested or replaced alone.
#[test]
fn rooms_follow_the_arrows() {
    let wrong = sources().iter().flat_map(Source::wrong_arrows).collect();
    report(wrong, "these paths go against the arrows of tests/layers.rs");
}

/// A row for a room that is gone would still allow its arrows.
#[test]
fn arrow_rows_are_rooms() {
    let rooms: BTreeSet<String> = sources().iter().filter_map(|source| source.module.first().cloned()).collect();
    for (room, below) in ARROWS {
        assert!(rooms.contains(*room), "src/ has no room `{room}`");
        for named in *below {
            assert!(rooms.contains(*named), "`{room}` may name `{named}`, which is no room in src/");
        }
    }
}

/// Rooms whose rows name each other could form a circle that every single path obeys.
#[test]
fn arrows_form_no_circle() {
    let names: Vec<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    let index = |room: &str| names.iter().position(|name| *name == room).expect("a room of the table");
    let edges = ARROWS.iter().flat_map(|(room, below)| below.iter().map(|named| ((index(room), index(named)), 0)));
    let circles = circles(&edges.collect(), names.len());
    assert!(circles.is_empty(), "the table of the arrows allows a circle: {circles:?} of {names:?}");
}

/// Files in a circle can only be understood together.
#[test]
fn files_form_no_circle() {
    let circles = Tree::new(sources()).circles();
    assert!(circles.is_empty(), "these files form circles:\n{}", circles.join("\n"));
}

/// A glob hides the names that it imports, and with them the arrows. Test modules may use `super::*`.
#[test]
fn only_tests_import_globs() {
    let globs = Tree::new(sources()).files.iter().flat_map(Source::globs).collect();
    report(globs, "these lines import globs");
}

/// The pure cores are tested and fuzzed without a kernel, a clock or the state of a thread.
#[test]
fn the_pure_cores_are_pure() {
    let sources: Vec<Source> = sources().into_iter().map(Source::without_tests).collect();
    for (core, holds_instants) in PURE_CORES {
        let files: Vec<&Source> = sources.iter().filter(|source| is_under(&source.file, core)).collect();
        assert!(!files.is_empty(), "src/{core} does not exist");
        let impure = files.iter().flat_map(|source| source.impurities(*holds_instants)).collect();
        report(impure, &format!("src/{core} must stay pure"));
    }
}

/// The executor unparks a worker by a `Waker`. So it runs under every reactor, or without one.
#[test]
fn the_executor_knows_no_reactor() {
    let executor = sources().into_iter().filter(|source| source.room() == Some("executor"));
    let named = executor.flat_map(|source| source.words(&["reactor", "mio"])).collect();
    report(named, "the executor names a reactor");
}

/// The lint forbids unsafe code. This test fails when one place allows it again.
#[test]
fn no_file_has_unsafe_code() {
    let found = sources().iter().flat_map(|source| source.words(&["unsafe"])).collect();
    report(found, "these lines have unsafe code");
}

/// One word has one meaning, and one meaning has one word. An old word beside its replacement breaks both rules.
#[test]
fn old_words_are_gone() {
    let found = sources().iter().flat_map(Source::old_words).collect();
    report(found, "these lines use old words (CONTRIBUTING.md has the glossary and the writing rules)");
}

/// A sentence that begins with a headless "What" or "Who" names its subject too late.
#[test]
fn comments_begin_with_their_subject() {
    let found = sources().iter().flat_map(Source::headless).collect();
    report(found, "these comments begin without a subject");
}

/// Each promise of `docs/promises.md` names tests that exist. A test that is renamed or removed would leave a promise
/// that nothing holds.
#[test]
fn promised_tests_exist() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    ["src", "tests"].iter().for_each(|folder| collect(&package.join(folder), &mut files));
    let sources: Vec<String> = files.iter().map(|file| fs::read_to_string(file).expect("a source file")).collect();
    let promises = fs::read_to_string(package.join("docs/promises.md")).expect("the chapter");
    let rows: Vec<&str> = promises.lines().filter_map(tests_of_row).collect();
    assert!(rows.len() > 20, "only {} rows name tests: the chapter's tables have another form", rows.len());
    for row in rows {
        let mut names = row.split('`').skip(1).step_by(2).peekable();
        assert!(names.peek().is_some(), "no test holds this promise: {row}");
        for name in names {
            let function = format!("fn {name}(");
            assert!(sources.iter().any(|source| source.contains(&function)), "docs/promises.md: no test `{name}`");
        }
    }
}

/// The last cell of a row whose table ends with the column "held by".
fn tests_of_row(line: &str) -> Option<&str> {
    let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
    let (_, last) = row.rsplit_once(" | ")?;
    (last.starts_with('`') && !last.contains(' ') || last.contains("`, `")).then_some(last)
}

// ---- tests of the reader ----

/// A reader that finds nothing would pass every file.
#[test]
fn reader_finds_every_path_form() {
    let forms = [
        ("use crate::reactor::Registry;", 1),
        ("use crate::{budget, reactor::{Registry, Source}};", 1),
        ("use crate::{\n    budget,\n    reactor::{Registry, Source},\n};", 3),
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
        ("fn f() { A { ..crate::reactor::A } }", 1),
    ];
    for (text, line) in forms {
        let wrong = Source::new("executor/mod.rs", text).wrong_arrows();
        assert_eq!(wrong.len(), 1, "the reader must find one wrong path in: {text}\nit found: {wrong:?}");
        assert_eq!(wrong[0].line, line, "the reader names a wrong line for: {text}");
    }
}

/// An allowed path, a comment and a string must not be reported.
#[test]
fn reader_spares_allowed_paths() {
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
        "fn f() -> impl Sized + use<> {}",
    ];
    for text in allowed {
        let wrong = Source::new("executor/mod.rs", text).wrong_arrows();
        assert!(wrong.is_empty(), "the reader must report nothing in: {text}\nit reported: {wrong:?}");
    }
}

/// A new room without a row could name every other room.
#[test]
fn a_room_needs_a_row() {
    let wrong = Source::new("a_new_room/mod.rs", "fn f() {}").wrong_arrows();
    assert_eq!(wrong.len(), 1, "a room without a row must be reported");
}

/// Every form of an impurity is found, and a test inside a core may be impure.
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
        let impure = Source::new("reactor/source.rs", text).without_tests().impurities(false);
        assert!(!impure.is_empty(), "the reader must find the impurity in: {text}");
    }
    let tests = "fn f() {}\n#[cfg(test)]\nmod tests { use std::{io, time::Instant}; }\n\
                 #[cfg(any(test, fuzzing))] #[inline] fn g() { mio::f(); }\n\
                 #[cfg(all(test, not(kittiwake_loom)))] mod more { use mio::Token; }\n\
                 #[cfg(test)] use std::io;";
    let impure = Source::new("reactor/source.rs", tests).without_tests().impurities(false);
    assert!(impure.is_empty(), "the reader must not report a test: {impure:?}");
    let not_test = "#[cfg(not(all(test, kittiwake_loom)))] use mio::Token;";
    let impure = Source::new("reactor/source.rs", not_test).without_tests().impurities(false);
    assert_eq!(impure.len(), 1, "`not` makes this the form without tests");
}

/// A core that may hold an `Instant` must still not read the clock.
#[test]
fn an_instant_argument_is_pure() {
    let impurities = |text| Source::new("executor/stealing/queues.rs", text).impurities(true);
    let pure = impurities("use std::time::Instant; fn f(now: Instant) -> Instant { now }");
    assert!(pure.is_empty(), "an `Instant` as a value must not be reported: {pure:?}");
    for text in ["fn f() { Instant::now(); }", "fn f() { time::Instant::now(); }", "fn f() { started.elapsed(); }"] {
        assert_eq!(impurities(text).len(), 1, "the reader must find one look at the clock in: {text}");
    }
}

/// Each form of a path leads to the file that defines the name.
#[test]
fn arrows_lead_to_the_definition() {
    let face =
        "mod a;\nmod b;\npub(crate) use b::{B, f as g};\nuse std::io::Error;\nstruct Own;\nmod inline { struct I; }";
    let forms: &[(&str, &[&str])] = &[
        ("use super::b::B;", &["b.rs"]),
        ("use super::B;", &["b.rs"]),
        ("use super::{B, Own};", &["b.rs", "mod.rs"]),
        ("use crate::room::B;", &["b.rs"]),
        ("use crate::room::g;", &["b.rs"]),
        ("fn f() { super::b::g() }", &["b.rs"]),
        ("use super::b;\nfn f() { b::g() }", &["b.rs"]),
        ("use self::deep::A;\nmod deep { use super::super::b::B; struct A; }", &["b.rs"]),
        ("mod deep { use super::A; }\nstruct A;", &[]),
        ("use super::Own;", &["mod.rs"]),
        ("use super::inline::I;", &["mod.rs"]),
        ("use super::Error;", &[]),
        ("use std::b::B;\nuse mio::b;", &[]),
        ("pub(in crate::room) fn f() {}\npub(super) fn g() {}", &[]),
        ("// super::b::B\n#[cfg(test)]\nmod tests { use super::super::b::B; }", &[]),
        ("pub(crate) use super::b::B;", &["b.rs"]),
    ];
    for (text, expected) in forms {
        let tree = tree(&[("room/mod.rs", face), ("room/b.rs", ""), ("room/a.rs", text)]);
        assert_eq!(arrows_of(&tree, "room/a.rs"), *expected, "the arrows of: {text}");
    }
}

/// A `mod.rs` has arrows to the children that its own items use, not to those that it only re-exports.
#[test]
fn a_face_has_few_arrows() {
    let forms: &[(&str, &[&str])] = &[
        ("mod a;\npub(crate) use a::A;", &[]),
        ("mod a;\npub(in crate::room) use a::{A, b};\npub(super) use a::c;", &[]),
        ("mod a;\nuse a::A;", &["a.rs"]),
        ("mod a;\nfn f() { a::g() }", &["a.rs"]),
        ("mod a;\npub use a::A;\nstruct Own(A);", &["a.rs"]),
        ("mod a;\npub use a::A;\nfn f() { A::new() }", &["a.rs"]),
        ("mod a;\npub use a::f;\nfn g() { f() }", &["a.rs"]),
        ("mod a;\npub use a::f;\nfn g() { h.f() }", &[]),
        ("#[cfg(test)]\nmod a;\n#[cfg(test)]\nuse a::A;", &[]),
    ];
    for (text, expected) in forms {
        let tree = tree(&[("room/mod.rs", text), ("room/a.rs", "")]);
        assert_eq!(arrows_of(&tree, "room/mod.rs"), *expected, "the arrows of: {text}");
    }
}

/// The report names every file of a circle, and the line of each arrow in it.
#[test]
fn reader_finds_every_circle() {
    let files = [
        ("room/mod.rs", "mod a;\nmod b;\nmod c;\nmod d;\n#[cfg(test)]\nmod model;\npub use a::A;"),
        ("room/a.rs", "use super::b::B;\nuse super::c::C;"),
        ("room/b.rs", "\nuse super::c::C;"),
        ("room/c.rs", "\n\nuse super::A;\nuse super::d::D;"),
        ("room/d.rs", ""),
        ("room/model.rs", "use super::b::B;"),
        ("other/mod.rs", "use crate::room::A;"),
    ];
    let expected = "src/room/a.rs, src/room/b.rs, src/room/c.rs\n    \
                    src/room/a.rs:1 names src/room/b.rs\n    \
                    src/room/a.rs:2 names src/room/c.rs\n    \
                    src/room/b.rs:2 names src/room/c.rs\n    \
                    src/room/c.rs:3 names src/room/a.rs";
    assert_eq!(tree(&files).circles(), [expected]);
    let two = [("room/mod.rs", "mod a;\nuse a::A;\nstruct Own;"), ("room/a.rs", "use super::Own;")];
    assert_eq!(tree(&two).circles().len(), 1, "a child that names an item of its parent closes a circle");
}

/// Globs of our own modules are found, those of other crates and of tests are not.
#[test]
fn reader_finds_globs() {
    let globs = |text| tree(&[("room/mod.rs", text), ("room/a.rs", "")]).files.iter().flat_map(Source::globs).count();
    for text in
        ["use super::*;", "use crate::room::*;", "pub use self::a::*;", "use super::{b, a::*};", "mod a;\nuse a::*;"]
    {
        assert_eq!(globs(text), 1, "the reader must find the glob in: {text}");
    }
    for text in
        ["pub use futures_lite::io::*;", "#[cfg(test)]\nmod tests { use super::*; }", "fn f() { super::a * b; }"]
    {
        assert_eq!(globs(text), 0, "the reader must find no glob in: {text}");
    }
}

/// A word counts as a part of a name, in each way to write names.
#[test]
fn reader_finds_old_words() {
    let wrong = [
        ("fn is_rung() {}", 1),
        ("const RUNG: u8 = 1;", 1),
        ("\nstruct TaskRing;", 2),
        ("/// Tests [`is_rung`].\nfn f() {}", 1),
        ("// The worker is\n// rung.", 2),
        ("/* a\n b rung */", 2),
        ("struct TaskLists;", 1),
        ("use Live;", 1),
        ("fn f() { a.lost() }", 1),
        ("/// Clears `lost`.\nfn f() {}", 1),
        ("fn forget() {}", 1),
        ("#[test]\nfn nobody_waits() {}", 2),
        ("// Wakes those\n// who wait.", 1),
        ("// Nobody waits.", 1),
    ];
    for (text, line) in wrong {
        let found = Source::new("reactor/mod.rs", text).old_words();
        assert_eq!(found.len(), 1, "the reader must find one old word in: {text}\nit found: {found:?}");
        assert_eq!(found[0].line, line, "the reader names a wrong line for: {text}");
    }
    let found = Source::new("reactor/mod.rs", "fn is_rung() {}").old_words();
    assert_eq!(found[0].to_string(), "src/reactor/mod.rs:1: `is_rung` is an old word; now: notified");
}

/// A word inside another word, an English word in a sentence, and an allowed file must not be reported.
#[test]
fn reader_spares_other_words() {
    let allowed = [
        ("reactor/mod.rs", "fn string_during() {}"),
        ("reactor/mod.rs", "struct Ordering;"),
        ("reactor/mod.rs", "// No wake-up is lost."),
        ("reactor/mod.rs", "fn f() { mem::forget(a) }"),
        ("reactor/mod.rs", "fn f() { ConnectionRefused; }"),
        ("reactor/mod.rs", "const A: &str = \"rung\";"),
        ("reactor/mod.rs", "// Keep those. Who knows."),
        ("reactor/mod.rs", "fn remember_or_forget() {}"),
        ("reactor/mod.rs", "#[test]\nfn no_wake_is_lost() {}"),
        ("net/tcp/split.rs", "fn forget() {}"),
        ("signal/unix.rs", "fn alarm() {}"),
    ];
    for (file, text) in allowed {
        let found = Source::new(file, text).old_words();
        assert!(found.is_empty(), "the reader must report nothing in: {text}\nit reported: {found:?}");
    }
}

/// Each line of a comment that begins with a headless word is found.
#[test]
fn reader_finds_headless_comments() {
    for text in [
        "/// What a worker knows.",
        "//! Who waits.",
        "    // What is left.",
        "/// - What is left.",
        "/*\n * What is left.\n */",
    ] {
        let found = Source::new("reactor/mod.rs", text).headless();
        assert_eq!(found.len(), 1, "the reader must find the comment: {text}\nit found: {found:?}");
    }
    for text in ["/// Whatever it is.", "// Tells what it is.", "const A: &str = \"What is it?\";"] {
        let found = Source::new("reactor/mod.rs", text).headless();
        assert!(found.is_empty(), "the reader must report nothing in: {text}\nit reported: {found:?}");
    }
}

// ---- the reader ----

/// Fails with one line for each finding.
#[track_caller]
fn report(found: Vec<Found>, sentence: &str) {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{sentence}:\n{}", lines.join("\n"));
}

/// All files of `src/`.
fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root(), &mut files);
    assert!(files.len() > 10, "only {} files found in src/: the reader looks in the wrong place", files.len());
    files.sort();
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

/// Whether `file` is `place`, or inside the folder `place/`.
fn is_under(file: &str, place: &str) -> bool {
    file == place || place.ends_with('/') && file.starts_with(place)
}

/// A tree of made-up files.
fn tree(files: &[(&str, &str)]) -> Tree {
    Tree::new(files.iter().map(|(file, text)| Source::new(file, text)).collect())
}

/// The files of the same room that `file` has arrows to.
fn arrows_of(tree: &Tree, file: &str) -> Vec<String> {
    let from = tree.files.iter().position(|source| source.file == file).expect("a file of the tree");
    let to = tree.arrows().into_keys().filter(|(source, _)| *source == from);
    let mut to: Vec<String> = to.map(|(_, to)| tree.files[to].file.replace("room/", "")).collect();
    to.sort();
    to
}

/// The line of each arrow, from the index of one file to that of another.
type Arrows = BTreeMap<(usize, usize), usize>;

/// The files of the crate without those that only tests see, and the names that lead to them.
struct Tree {
    files: Vec<Source>,
    /// The file of each module. An inline module is in the file of the module around it.
    modules: BTreeMap<Vec<String>, usize>,
    /// The paths that an import gives each name in each module. An import behind a `cfg` may give several.
    imports: BTreeMap<(Vec<String>, String), Vec<Vec<String>>>,
}

impl Tree {
    fn new(sources: Vec<Source>) -> Self {
        let in_tests: Vec<Vec<String>> = sources.iter().flat_map(Source::test_modules).collect();
        let is_seen = |source: &Source| !in_tests.iter().any(|test| source.module.starts_with(test));
        let files: Vec<Source> = sources.into_iter().filter(is_seen).map(Source::without_tests).collect();
        let mut tree = Self { files, modules: BTreeMap::new(), imports: BTreeMap::new() };
        for (index, source) in tree.files.iter().enumerate() {
            tree.modules.insert(source.module.clone(), index);
            for named in source.paths() {
                let name = named.imported_name();
                // `pub(super) use a_macro;` imports an item of the same module.
                if let Some(name) = name.filter(|name| named.segments != [name.as_str()]) {
                    tree.imports.entry((named.scope.to_vec(), name)).or_default().push(named.segments);
                }
            }
            for inline in source.scopes() {
                if !tree.modules.contains_key(&inline[..]) {
                    tree.modules.insert(inline.to_vec(), index);
                }
            }
        }
        tree
    }

    /// Each circle: its files, and its arrows with their lines.
    fn circles(&self) -> Vec<String> {
        let arrows = self.arrows();
        let file = |index: usize| format!("src/{}", self.files[index].file);
        let circles = circles(&arrows, self.files.len()).into_iter().map(|circle| {
            let inside = arrows.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
            let lines = inside.map(|((from, to), line)| format!("\n    {}:{line} names {}", file(*from), file(*to)));
            let files: Vec<String> = circle.iter().map(|index| file(*index)).collect();
            files.join(", ") + &lines.collect::<String>()
        });
        circles.collect()
    }

    /// The arrows between files. A re-export in a face is no arrow: a path through it leads to the definition.
    fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (from, source) in self.files.iter().enumerate() {
            let is_face = source.file.ends_with("mod.rs") || source.file == "lib.rs";
            let is_arrow = |named: &Named| match named.form {
                Form::ReExport => !is_face,
                Form::Visibility => false,
                Form::Import | Form::Code | Form::Bare => true,
            };
            for named in source.paths().into_iter().filter(is_arrow) {
                for to in self.targets(&named.scope, &named.segments, named.form == Form::Bare, 0) {
                    if to != from {
                        let line = arrows.entry((from, to)).or_insert(named.line);
                        *line = named.line.min(*line);
                    }
                }
            }
        }
        arrows
    }

    /// The files that define the name at the end of a path. Names of other crates have none.
    fn targets(&self, scope: &[String], segments: &[String], bare: bool, depth: usize) -> BTreeSet<usize> {
        assert!(depth < 16, "the imports of {segments:?} in {scope:?} lead back to themselves");
        if let Some(path) = absolute(scope, segments) {
            return self.walk(Vec::new(), &path, depth);
        }
        let Some(head) = segments.first() else { return BTreeSet::new() };
        let child = [scope, std::slice::from_ref(head)].concat();
        let is_child = !bare && self.modules.contains_key(&child);
        if is_child || self.imports.contains_key(&(scope.to_vec(), head.clone())) {
            return self.walk(scope.to_vec(), segments, depth);
        }
        BTreeSet::new()
    }

    /// Follows `segments` from the module `at`, through child modules and imports, to an item.
    fn walk(&self, at: Vec<String>, segments: &[String], depth: usize) -> BTreeSet<usize> {
        let Some((head, rest)) = segments.split_first() else {
            return self.modules.get(&at).copied().into_iter().collect();
        };
        let child = [at.as_slice(), std::slice::from_ref(head)].concat();
        if self.modules.contains_key(&child) {
            return self.walk(child, rest, depth);
        }
        if let Some(paths) = self.imports.get(&(at.clone(), head.clone())) {
            let paths = paths.iter().map(|path| [path.as_slice(), rest].concat());
            return paths.flat_map(|path| self.targets(&at, &path, false, depth + 1)).collect();
        }
        self.modules.get(&at).copied().into_iter().collect()
    }
}

/// The strongly connected components of more than one node.
fn circles(arrows: &Arrows, nodes: usize) -> Vec<Vec<usize>> {
    let reached: Vec<BTreeSet<usize>> = (0..nodes).map(|node| reachable(arrows, node)).collect();
    let circle_of = |node: usize| -> Vec<usize> {
        let both = |other: &usize| reached[node].contains(other) && reached[*other].contains(&node);
        (0..nodes).filter(both).collect()
    };
    (0..nodes)
        .map(|node| (node, circle_of(node)))
        .filter(|(node, circle)| circle.len() > 1 && circle[0] == *node)
        .map(|(_, circle)| circle)
        .collect()
}

/// The nodes that one or more arrows lead to from `start`.
fn reachable(arrows: &Arrows, start: usize) -> BTreeSet<usize> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![start]);
    while let Some(node) = left.pop() {
        let next = arrows.keys().filter(|(from, _)| *from == node).map(|(_, to)| *to);
        left.extend(next.filter(|to| seen.insert(*to)));
    }
    seen
}

/// The path from the root of the crate, if `segments` begins with `crate`, `self` or `super`.
fn absolute(scope: &[String], segments: &[String]) -> Option<Vec<String>> {
    let mut base = match segments.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => scope.to_vec(),
        _ => return None,
    };
    let mut rest = &segments[usize::from(segments[0] != "super")..];
    while rest.first().is_some_and(|segment| segment == "super") {
        base.pop();
        rest = &rest[1..];
    }
    Some([base.as_slice(), rest].concat())
}

/// One file: its words and punctuation, and its comments.
struct Source {
    file: String,
    /// The path of its module in the crate. It is empty for `lib.rs`.
    module: Vec<String>,
    tokens: Vec<Token>,
    /// The lines of the comments, with the signs that begin them.
    comments: Vec<Token>,
}

#[derive(Clone, Debug)]
struct Token {
    line: usize,
    text: String,
}

/// A path in a file, or a bare name that may be imported.
#[derive(Debug)]
struct Named {
    line: usize,
    /// The module around the path.
    scope: Rc<[String]>,
    segments: Vec<String>,
    alias: Option<String>,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// `use a::b`
    Import,
    /// `pub use a::b`
    ReExport,
    /// `pub(in a::b)`
    Visibility,
    /// `a::b()`
    Code,
    /// `B`, or `b()`
    Bare,
}

impl Named {
    /// The name that this import gives to its path.
    fn imported_name(&self) -> Option<String> {
        let name = self.alias.as_ref().or(self.segments.last())?;
        let is_import = matches!(self.form, Form::Import | Form::ReExport);
        (is_import && !matches!(name.as_str(), "*" | "_")).then(|| name.clone())
    }
}

/// A finding: a place, and the reason why it is wrong.
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
        let (tokens, comments) = tokens(text);
        Self { file: file.to_owned(), module, tokens, comments }
    }

    fn room(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    // -- paths --

    /// The paths that name a room which this file's room may not name.
    fn wrong_arrows(&self) -> Vec<Found> {
        let Some(room) = self.room() else { return Vec::new() };
        let Some((_, below)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            return vec![self.found(1, format!("the room `{room}` has no row in the table"))];
        };
        let allowed = |named: &str| named == room || below.contains(&named);
        let wrong = self.rooms_named().into_iter().filter(|(_, named)| !allowed(named));
        wrong.map(|(line, named)| self.found(line, format!("`{room}` names `{named}`"))).collect()
    }

    /// The room that each path from the root of the crate leads to, with its line.
    fn rooms_named(&self) -> BTreeSet<(usize, String)> {
        let root = || "the root of the crate".to_owned();
        let paths = self.paths().into_iter().filter_map(|named| {
            let path = absolute(&named.scope, &named.segments)?;
            Some((named.line, path.into_iter().next().unwrap_or_else(root)))
        });
        let externs = (0..self.tokens.len()).filter(|at| self.text(*at) == "extern" && self.text(at + 2) == "self");
        paths.chain(externs.map(|at| (self.tokens[at].line, root()))).collect()
    }

    /// The lines, outside tests, that import all names of a module of this crate.
    fn globs(&self) -> Vec<Found> {
        let children: BTreeSet<&str> = self.children().map(|(_, child)| child).collect();
        let is_ours = |head: &str| matches!(head, "crate" | "self" | "super") || children.contains(head);
        let is_glob =
            |named: &Named| named.segments.last().is_some_and(|last| last == "*") && is_ours(&named.segments[0]);
        let globs = self.paths().into_iter().filter(is_glob);
        globs.map(|named| self.found(named.line, format!("imports `{}`", named.segments.join("::")))).collect()
    }

    /// The child modules that only tests see.
    fn test_modules(&self) -> Vec<Vec<String>> {
        let seen = self.clone_tokens().without_tests();
        let seen: BTreeSet<&str> = seen.children().map(|(_, child)| child).collect();
        let hidden = self.children().filter(|(_, child)| !seen.contains(child));
        let scopes = self.scopes();
        hidden.map(|(at, child)| [&scopes[at][..], &[child.to_owned()]].concat()).collect()
    }

    /// The names in `mod name;`, each with the place of its token.
    fn children(&self) -> impl Iterator<Item = (usize, &str)> {
        let names = (1..self.tokens.len()).filter(|at| self.text(at - 1) == "mod" && self.text(at + 1) == ";");
        names.map(|at| (at, self.text(at)))
    }

    /// The module around each token: the file's, or an inline one inside it.
    fn scopes(&self) -> Vec<Rc<[String]>> {
        let mut scope: Rc<[String]> = Rc::from(self.module.as_slice());
        // For each open brace: the module around it, if the brace opened another one.
        let mut braces = Vec::new();
        let scopes = (0..self.tokens.len()).map(|at| {
            match self.text(at) {
                "{" if at >= 2 && self.text(at - 2) == "mod" => {
                    let inner = [&scope[..], &[self.text(at - 1).to_owned()]].concat();
                    braces.push(Some(std::mem::replace(&mut scope, Rc::from(inner))));
                }
                "{" => braces.push(None),
                "}" => {
                    if let Some(Some(outer)) = braces.pop() {
                        scope = outer;
                    }
                }
                _ => {}
            }
            Rc::clone(&scope)
        });
        scopes.collect()
    }

    /// Every path of the file: one for each name in a group, and one for each bare name that an import may have given.
    fn paths(&self) -> Vec<Named> {
        let scopes = self.scopes();
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.tokens.len() {
            let named = |segments, form| Named {
                line: self.tokens[at].line,
                scope: Rc::clone(&scopes[at]),
                segments,
                alias: None,
                form,
            };
            let before = |back: usize| self.text(at.wrapping_sub(back));
            let is_field = before(1) == "." && before(2) != ".";
            if self.text(at) == "use" && self.text(at + 1) != "<" {
                let form = if matches!(before(1), "pub" | ")") { Form::ReExport } else { Form::Import };
                let first = found.len();
                at = self.import(at + 1, named(Vec::new(), form), &mut found);
                // In `a::{self}`, the path is `a`.
                for named in &mut found[first..] {
                    if named.segments.len() > 1 && named.segments.ends_with(&["self".to_owned()]) {
                        named.segments.pop();
                    }
                }
                continue;
            }
            if !is_word(self.text(at)) || before(1) == "::" || is_field {
                at += 1;
                continue;
            }
            let mut end = at;
            while self.text(end + 1) == "::" && is_word(self.text(end + 2)) {
                end += 2;
            }
            let segments: Vec<String> = (at..=end).step_by(2).map(|at| self.text(at).to_owned()).collect();
            let is_type = segments[0].starts_with(char::is_uppercase);
            if end > at || self.text(at + 1) == "::" {
                let is_visibility = before(1) == "in" && before(2) == "(" && before(3) == "pub";
                found.push(named(segments, if is_visibility { Form::Visibility } else { Form::Code }));
            } else if before(1) != "fn" && (is_type || self.text(at + 1) == "(") {
                found.push(named(segments, Form::Bare));
            }
            at = end + 1;
        }
        found
    }

    /// Adds the paths of the import, or of the part of a group, that begins at `at`. Returns the place of the token
    /// after it.
    fn import(&self, mut at: usize, mut named: Named, found: &mut Vec<Named>) -> usize {
        named.line = self.tokens.get(at).map_or(named.line, |token| token.line);
        loop {
            match self.text(at) {
                "{" => {
                    at += 1;
                    while !matches!(self.text(at), "}" | "") {
                        let part = Named {
                            scope: Rc::clone(&named.scope),
                            segments: named.segments.clone(),
                            alias: None,
                            ..named
                        };
                        at = self.import(at, part, found);
                        at += usize::from(self.text(at) == ",");
                    }
                    return at + 1;
                }
                word if is_word(word) || word == "*" => {
                    named.segments.push(word.to_owned());
                    at += 1;
                }
                // `use ::name`: the name of a crate.
                "::" => {
                    named.segments.push("::".to_owned());
                }
                _ => return at + 1,
            }
            if self.text(at) == "::" {
                at += 1;
                continue;
            }
            if self.text(at) == "as" {
                named.alias = Some(self.text(at + 1).to_owned());
                at += 2;
            }
            found.push(named);
            return at;
        }
    }

    // -- words --

    /// The old words in names and in comments.
    fn old_words(&self) -> Vec<Found> {
        let is_function = |at: &usize| *at > 0 && self.text(at - 1) == "fn";
        let is_test = |at: &usize| is_function(at) && *at > 3 && self.text(at - 3) == "test";
        let words = |wanted: &dyn Fn(&usize) -> bool| -> Vec<Word> {
            let wanted = (0..self.tokens.len()).filter(|at| is_word(self.text(*at)) && wanted(at));
            wanted.map(|at| Word::new(&self.tokens[at])).collect()
        };
        let functions = words(&is_function);
        let identifiers = [words(&|at| !is_test(at)), self.words_of_comments(|part| part % 2 == 1)].concat();
        let text = [words(&|_| true), self.words_of_comments(|_| true)].concat();
        let places: [(Place, Vec<Word>); 3] = [(Functions, functions), (Identifiers, identifiers), (Text, text)];
        let mut found = BTreeMap::new();
        for (old, now, place, allowed) in OLD_WORDS {
            if allowed.iter().any(|place| is_under(&self.file, place)) {
                continue;
            }
            let (_, words) = places.iter().find(|(named, _)| named == place).expect("the words of each place");
            for said in uses(words, old, *place == Functions) {
                let text: Vec<&str> = said.iter().map(|word| word.text.as_str()).collect();
                found.entry((said[0].line, text.join(" "))).or_insert(now);
            }
        }
        let found = found.into_iter();
        found.map(|((line, said), now)| self.found(line, format!("`{said}` is an old word; now: {now}"))).collect()
    }

    /// The words in those parts of the comments, split at backticks, whose number is `wanted`. The odd parts are code.
    fn words_of_comments(&self, wanted: impl Fn(usize) -> bool) -> Vec<Word> {
        let mut words = Vec::new();
        for comment in &self.comments {
            for (_, part) in comment.text.split('`').enumerate().filter(|(part, _)| wanted(*part)) {
                // The end of a sentence is a word of its own, so that no phrase goes beyond it.
                let part = part.replace(['.', ':', ';', '?', '!'], " . ");
                let split = part.split(|sign| !is_word_sign(sign) && sign != '.').filter(|word| !word.is_empty());
                words.extend(split.map(|word| Word::new(&Token { line: comment.line, text: word.to_owned() })));
            }
        }
        words
    }

    /// The lines of comments that begin with a headless word.
    fn headless(&self) -> Vec<Found> {
        let first_word = |comment: &Token| {
            let text = comment.text.trim_start_matches(|sign: char| "/!*-".contains(sign) || sign.is_whitespace());
            text.split(|sign| !is_word_sign(sign)).next().unwrap_or_default().to_owned()
        };
        let headless = self.comments.iter().filter(|comment| HEADLESS.contains(&first_word(comment).as_str()));
        headless.map(|comment| self.found(comment.line, format!("begins with {:?}", first_word(comment)))).collect()
    }

    /// The names that a pure core may not use. With `holds_instants` it may name an `Instant`, but not ask for one.
    fn impurities(&self, holds_instants: bool) -> Vec<Found> {
        let mut found = self.words(&["mio", "SystemTime", "thread_local"]);
        if !holds_instants {
            found.extend(self.words(&["Instant"]));
        }
        let io =
            self.paths().into_iter().filter(|named| named.segments.starts_with(&["std".to_owned(), "io".to_owned()]));
        found.extend(io.map(|named| self.found(named.line, "names `std::io`".to_owned())));
        for at in 0..self.tokens.len() {
            let reads_clock = match self.text(at) {
                "Instant" => holds_instants && self.text(at + 1) == "::" && self.text(at + 2) == "now",
                "elapsed" => self.text(at.wrapping_sub(1)) == ".",
                _ => false,
            };
            if reads_clock {
                found.push(self.found(self.tokens[at].line, "reads the clock".to_owned()));
            }
        }
        found
    }

    fn words(&self, words: &[&str]) -> Vec<Found> {
        let named = self.tokens.iter().filter(|token| words.contains(&token.text.as_str()));
        named.map(|token| self.found(token.line, format!("names `{}`", token.text))).collect()
    }

    // -- tests inside a file --

    fn clone_tokens(&self) -> Self {
        Self { file: self.file.clone(), module: self.module.clone(), tokens: self.tokens.clone(), comments: Vec::new() }
    }

    /// The file without the items that only tests see. Its comments stay.
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

    /// Whether a `#[cfg(..)]` that only tests and fuzz targets can meet begins at `at`.
    fn is_test_attribute(&self, at: usize) -> bool {
        let is_cfg = ["#", "[", "cfg", "("].iter().enumerate().all(|(next, sign)| self.text(at + next) == *sign);
        is_cfg && !self.condition(at + 4).0.can_hold
    }

    /// The condition of a `cfg` that begins at `at`, and the place of the token after it.
    fn condition(&self, at: usize) -> (Condition, usize) {
        let name = self.text(at);
        if !matches!(name, "all" | "any" | "not") {
            let end = (at..).find(|at| matches!(self.text(*at), "," | ")" | "]" | "")).unwrap_or(at);
            return (Condition { can_hold: !matches!(name, "test" | "fuzzing"), can_fail: true }, end);
        }
        let (mut parts, mut next) = (Vec::new(), at + 2);
        while !matches!(self.text(next), ")" | "") {
            let (part, end) = self.condition(next);
            parts.push(part);
            next = end + usize::from(self.text(end) == ",");
        }
        let all = Condition {
            can_hold: parts.iter().all(|part| part.can_hold),
            can_fail: parts.iter().any(|part| part.can_fail),
        };
        let any = Condition {
            can_hold: parts.iter().any(|part| part.can_hold),
            can_fail: parts.iter().all(|part| part.can_fail),
        };
        let condition = match name {
            "all" => all,
            "any" => any,
            _ => Condition { can_hold: any.can_fail, can_fail: any.can_hold },
        };
        (condition, next + 1)
    }

    /// The token after the item whose first attribute begins at `at`, or the end of the block around it.
    fn end_of_item(&self, mut at: usize) -> usize {
        let mut depth = 0;
        loop {
            match self.text(at) {
                "" => return at,
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" if depth == 0 => return at,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 && matches!(self.text(at - 1), "}" | ";") {
                return at;
            }
        }
    }

    /// The token at `at`, or nothing.
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text.as_str())
    }

    fn found(&self, line: usize, what: String) -> Found {
        Found { file: self.file.clone(), line, what }
    }
}

/// Whether a `cfg` can hold, and whether it can fail, in a build that is neither a test nor a fuzz target.
struct Condition {
    can_hold: bool,
    can_fail: bool,
}

/// A name, or a word of a comment, in a form to compare.
#[derive(Clone)]
struct Word {
    line: usize,
    text: String,
    /// Its parts in lower case, each between two underscores: `is_rung`, `IsRung` and `IS_RUNG` are all `_is_rung_`.
    parts: String,
}

impl Word {
    fn new(token: &Token) -> Self {
        let is_camel = token.text.contains(char::is_lowercase);
        let mut parts = "_".to_owned();
        for sign in token.text.chars().chain(['_']) {
            let begins_part = sign == '_' || sign.is_uppercase() && is_camel;
            if begins_part && !parts.ends_with('_') {
                parts.push('_');
            }
            parts.extend(sign.to_lowercase().filter(|sign| *sign != '_'));
        }
        Self { line: token.line, text: token.text.clone(), parts }
    }
}

/// The places where the old word, or the old phrase, stands among `words`.
fn uses<'a>(words: &'a [Word], old: &str, is_function: bool) -> impl Iterator<Item = &'a [Word]> {
    let is_whole_name = is_function || old.contains(char::is_uppercase);
    let phrase: Vec<String> = old.split(' ').map(|old| format!("_{old}_")).collect();
    let old = old.to_owned();
    words.windows(phrase.len()).filter(move |words| match is_whole_name {
        true => words[0].text == old,
        false => words.iter().zip(&phrase).all(|(word, old)| word.parts.contains(old)),
    })
}

fn is_word_sign(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn is_word(text: &str) -> bool {
    text.starts_with(is_word_sign)
}

/// The words, `::` and single signs of a text, without strings, characters and lifetimes; and the lines of its
/// comments.
fn tokens(text: &str) -> (Vec<Token>, Vec<Token>) {
    let text: Vec<char> = text.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let (mut tokens, mut comments, mut index, mut line) = (Vec::new(), Vec::new(), 0, 1);
    while index < text.len() {
        let start = index;
        match at(index) {
            '/' if matches!(at(index + 1), '/' | '*') => {
                index = end_of_comment(&text, index);
                let comment: String = text[start..index].iter().collect();
                comments.extend(comment.lines().zip(line..).map(|(text, line)| Token { line, text: text.to_owned() }));
            }
            '"' => index = end_of_string(&text, index),
            'r' if matches!((at(index + 1), at(index + 2)), ('"', _) | ('#', '"' | '#')) => {
                index = end_of_raw_string(&text, index);
            }
            '\'' if at(index + 1) == '\\' || at(index + 2) == '\'' => {
                index = end(index + 2 + usize::from(at(index + 1) == '\\'), |index| at(index) == '\'') + 1;
            }
            '\'' => index = end(index + 1, |index| !is_word_sign(at(index))),
            ':' if at(index + 1) == ':' => {
                tokens.push(Token { line, text: "::".to_owned() });
                index += 2;
            }
            sign if is_word_sign(sign) => {
                index = end(index, |index| !is_word_sign(at(index)));
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
    (tokens, comments)
}

fn end(start: usize, is_end: impl Fn(usize) -> bool) -> usize {
    (start..).find(|index| is_end(*index)).expect("an end in a text that compiles")
}

/// The end of the line, or the end of the nested block comments.
fn end_of_comment(text: &[char], start: usize) -> usize {
    if text[start + 1] == '/' {
        return end(start, |index| index >= text.len() || text[index] == '\n');
    }
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
