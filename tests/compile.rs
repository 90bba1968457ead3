//! Programs that must not compile, and the words of the compiler's messages. Programs that must compile, too.
//!
//! Each file in `tests/compile/` is a program. It begins with lines for this test:
//! ```text
//! //~ compiles          the program has no error
//! //~ says: a phrase    the errors contain this phrase
//! //~ never: a phrase   the errors do not contain this phrase
//! ```
//! Below any line, a phrase can stand with a sign that points up to the place of its error:
//! ```text
//! let _ = TcpListener::bind(7000);
//! //~     ^ an error begins here, and contains this phrase
//! ```
//! The test makes one package of all programs, in the folder that cargo gives tests, and checks it with `cargo check`.
//! The package has this crate's `Cargo.lock`, so it needs no network.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// A mistake in the use of this crate is explained in the words of its public API.
#[test]
fn compile_errors_say_what_to_write() {
    let programs = Program::all();
    assert!(programs.len() > 3, "the programs in tests/compile/ were not found");
    let package = write_package(&programs);
    let messages = check(&package);
    let wrong: Vec<_> = programs
        .iter()
        .flat_map(|program| program.wrong(messages.get(&program.name).map_or(&[][..], Vec::as_slice)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A program that is never checked would pass. So a wrong line, and a wrong program, must be found.
#[test]
fn wrong_expectations_are_found() {
    let program = |text| Program::new("name", text);
    let fails = |text, errors: &str| {
        let errors: Vec<String> = errors.split_terminator('\n').map(str::to_owned).collect();
        !program(text).wrong(&errors).is_empty()
    };
    assert!(!fails("//~ compiles\n", ""));
    assert!(fails("//~ compiles\n", "error: some error"));
    assert!(!fails("//~ says: some error\n", "error: some error"));
    assert!(fails("//~ says: another error\n", "error: some error"));
    assert!(fails("//~ says: some error\n", ""), "the program must not compile");
    assert!(fails("//~ says: some error\n//~ never: error\n", "error: some error"));
    let marked = "f(1, 2);\n//~  ^ an error\n//~     ^ more\n";
    assert!(!fails(marked, "an error name.rs:1:6:\nmore name.rs:1:9:"));
    assert!(fails(marked, "an error name.rs:1:6:\nmore name.rs:1:8:"), "the error is at another place");
    assert!(fails(marked, "an error name.rs:1:9:\nmore name.rs:1:6:"), "another error is at the place");
    for text in ["", "fn main() {}", "//~ sais: typing error\n"] {
        assert!(std::panic::catch_unwind(|| program(text)).is_err(), "these lines expect nothing: {text:?}");
    }
}

/// A program and the lines at its beginning.
struct Program {
    name: String,
    compiles: bool,
    says: Vec<String>,
    /// Places, as `name.rs:line:column`, and the phrases of their errors.
    places: Vec<(String, String)>,
    never: Vec<String>,
}

impl Program {
    fn all() -> Vec<Self> {
        let files = fs::read_dir(folder()).expect("tests/compile/").map(|file| file.expect("a file").path());
        let programs = files.filter(|path| path.extension() == Some(OsStr::new("rs")));
        programs
            .map(|path| {
                let name = path.file_stem().and_then(OsStr::to_str).expect("a name");
                Self::new(name, &fs::read_to_string(&path).expect("a program"))
            })
            .collect()
    }

    fn new(name: &str, text: &str) -> Self {
        let mut program = Self { name: name.to_owned(), compiles: false, says: vec![], places: vec![], never: vec![] };
        let mut above = 0;
        for (number, whole) in text.lines().enumerate() {
            let Some(line) = whole.trim_start().strip_prefix("//~ ") else {
                above = number + 1;
                continue;
            };
            if let Some(phrase) = line.trim_start().strip_prefix("^ ") {
                let column = whole.len() - phrase.len() - 1;
                program.places.push((format!("{name}.rs:{above}:{column}"), phrase.to_owned()));
                continue;
            }
            match line.split_once(": ") {
                Some(("says", phrase)) => program.says.push(phrase.to_owned()),
                Some(("never", phrase)) => program.never.push(phrase.to_owned()),
                None if line == "compiles" => program.compiles = true,
                _ => panic!("tests/compile/{name}.rs: this line expects nothing: {line}"),
            }
        }
        let says_nothing = program.says.is_empty() && program.places.is_empty();
        assert!(program.compiles == says_nothing, "{name}.rs must either compile or say something");
        program
    }

    /// The ways in which the compiler's errors are not as expected.
    fn wrong(&self, errors: &[String]) -> Vec<String> {
        let text = errors.concat();
        let wrong = |what: String| format!("tests/compile/{}.rs {what}. The errors:\n{text}", self.name);
        if self.compiles {
            return (!errors.is_empty()).then(|| wrong("does not compile".to_owned())).into_iter().collect();
        }
        let missing = self.says.iter().filter(|phrase| !text.contains(*phrase));
        let missing = missing.map(|phrase| wrong(format!("does not say: {phrase}")));
        let is_at = |error: &String, place: &str| {
            error.split_whitespace().any(|word| word.trim_end_matches(':').ends_with(place))
        };
        let is_said =
            |place: &str, phrase: &str| errors.iter().any(|error| error.contains(phrase) && is_at(error, place));
        let misplaced = self.places.iter().filter(|(place, phrase)| !is_said(place, phrase));
        let misplaced = misplaced.map(|(place, phrase)| wrong(format!("does not say at {place}: {phrase}")));
        let unwanted = self.never.iter().filter(|phrase| text.contains(*phrase));
        missing.chain(misplaced).chain(unwanted.map(|phrase| wrong(format!("must not say: {phrase}")))).collect()
    }
}

/// Writes a package with one binary for each program, and returns its folder.
fn write_package(programs: &[Program]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile");
    fs::create_dir_all(&package).expect("a folder for the package");
    let mut manifest = format!(
        "[package]\nname = \"compile\"\nedition = \"2024\"\n\n\
         [dependencies]\nkittiwake = {{ path = {root:?} }}\n\n[workspace]\n"
    );
    for Program { name, .. } in programs {
        let path = folder().join(format!("{name}.rs"));
        manifest += &format!("\n[[bin]]\nname = {name:?}\npath = {path:?}\n");
    }
    // cargo takes a newer manifest for a changed one.
    let path = package.join("Cargo.toml");
    if fs::read_to_string(&path).ok().as_ref() != Some(&manifest) {
        fs::write(path, manifest).expect("the manifest is written");
    }
    fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock")).expect("the lock file is copied");
    package
}

/// Checks the package. Returns the errors in each program, as the compiler prints them.
fn check(package: &Path) -> BTreeMap<String, Vec<String>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["check", "--offline", "--keep-going", "--bins", "--quiet", "--message-format=json"])
        .arg("--target-dir")
        .arg(package.join("target"))
        .current_dir(package)
        .output()
        .expect("cargo runs");
    let mut errors = BTreeMap::<String, Vec<String>>::new();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for message in out.lines().filter(|line| line.contains("\"reason\":\"compiler-message\"")) {
        if message.contains("\"level\":\"error\"") {
            let program = string_field(message, "\"target\":", "name").expect("the message has a target");
            errors.entry(program).or_default().push(string_field(message, "", "rendered").expect("a text"));
        }
    }
    // If the crate itself does not compile, no program was checked.
    assert!(!errors.is_empty() && !errors.contains_key("kittiwake"), "cargo check failed: {err}\n{out}");
    errors
}

/// The string `name` of a JSON text, after `start`.
fn string_field(json: &str, start: &str, name: &str) -> Option<String> {
    let (_, json) = json.split_once(start)?;
    let (_, json) = json.split_once(&format!("\"{name}\":\""))?;
    let mut text = String::new();
    let mut characters = json.chars();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => match characters.next()? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                // The escapes of other characters do not matter: no phrase has them.
                'u' => text.push(' '),
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile")
}
