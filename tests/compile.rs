//! Programs that must not compile, and the words of the compiler's messages. Programs that must compile, too.
//!
//! Each file in `tests/compile/` is a program. It begins with lines for this test:
//! ```text
//! //~ compiles          the program has no error
//! //~ says: a phrase    the errors contain this phrase
//! //~ never: a phrase   the errors do not contain this phrase
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
        .flat_map(|program| program.wrong(messages.get(&program.name).map_or("", String::as_str)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A program that is never checked would pass. So a wrong line, and a wrong program, must be found.
#[test]
fn wrong_expectations_are_found() {
    let program = |text| Program::new("name", text);
    let fails = |text, errors| !program(text).wrong(errors).is_empty();
    assert!(!fails("//~ compiles\n", ""));
    assert!(fails("//~ compiles\n", "error: some error"));
    assert!(!fails("//~ says: some error\n", "error: some error"));
    assert!(fails("//~ says: another error\n", "error: some error"));
    assert!(fails("//~ says: some error\n", ""), "the program must not compile");
    assert!(fails("//~ says: some error\n//~ never: error\n", "error: some error"));
    for text in ["", "fn main() {}", "//~ sais: typing error\n"] {
        assert!(std::panic::catch_unwind(|| program(text)).is_err(), "these lines expect nothing: {text:?}");
    }
}

/// A program and the lines at its beginning.
struct Program {
    name: String,
    compiles: bool,
    says: Vec<String>,
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
        let mut program = Self { name: name.to_owned(), compiles: false, says: Vec::new(), never: Vec::new() };
        for line in text.lines().map_while(|line| line.strip_prefix("//~ ")) {
            match line.split_once(": ") {
                Some(("says", phrase)) => program.says.push(phrase.to_owned()),
                Some(("never", phrase)) => program.never.push(phrase.to_owned()),
                None if line == "compiles" => program.compiles = true,
                _ => panic!("tests/compile/{name}.rs: this line expects nothing: {line}"),
            }
        }
        assert!(program.compiles == program.says.is_empty(), "{name}.rs must either compile or say something");
        program
    }

    /// The ways in which the compiler's errors are not as expected.
    fn wrong(&self, errors: &str) -> Vec<String> {
        let wrong = |what: String| format!("tests/compile/{}.rs {what}. The errors:\n{errors}", self.name);
        if self.compiles {
            return (!errors.is_empty()).then(|| wrong("does not compile".to_owned())).into_iter().collect();
        }
        let missing = self.says.iter().filter(|phrase| !errors.contains(*phrase));
        let unwanted = self.never.iter().filter(|phrase| errors.contains(*phrase));
        let missing = missing.map(|phrase| wrong(format!("does not say: {phrase}")));
        missing.chain(unwanted.map(|phrase| wrong(format!("must not say: {phrase}")))).collect()
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
fn check(package: &Path) -> BTreeMap<String, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["check", "--offline", "--keep-going", "--bins", "--quiet", "--message-format=json"])
        .arg("--target-dir")
        .arg(package.join("target"))
        .current_dir(package)
        .output()
        .expect("cargo runs");
    let mut errors = BTreeMap::<String, String>::new();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for message in out.lines().filter(|line| line.contains("\"reason\":\"compiler-message\"")) {
        if message.contains("\"level\":\"error\"") {
            let program = string_field(message, "\"target\":", "name").expect("the message has a target");
            errors.entry(program).or_default().push_str(&string_field(message, "", "rendered").expect("a text"));
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
