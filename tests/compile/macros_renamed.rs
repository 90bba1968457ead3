//~ compiles
#![deny(warnings, missing_docs)]
//! A program whose names shadow those that an expansion could use, and that calls the crate by another name.

extern crate kittiwake as renamed;

/// A module of the name of the crate.
pub mod kittiwake {
    pub use renamed::spawn;
}

/// Names of the prelude, which mean something else here.
#[allow(dead_code)]
mod shadows {
    pub struct Result;
    pub struct Option;
    pub struct Ok;
    pub struct String;
    pub mod core {}
    pub mod std {}
}

#[allow(unused_imports)]
use shadows::{Ok, Option, Result, String, core, std};

/// An attribute at a path, which is taken as it is.
#[renamed::main(crate = "renamed", worker_threads = 2)]
pub async fn at_path() {
    kittiwake::spawn(async {}).await.unwrap();
}

/// Without the argument, the name is that of the dependency, and not of the module.
#[renamed::main]
pub async fn by_name() {}

/// Without the prelude, the absolute paths of the expansion still mean what they should.
pub mod without_prelude {
    #![no_implicit_prelude]

    /// The name of the crate is needed in each expansion.
    #[::renamed::main(crate = "::renamed", current_thread)]
    pub async fn main() -> ::std::process::ExitCode {
        ::std::process::ExitCode::SUCCESS
    }
}

/// The parts of a function can come from a macro.
macro_rules! function {
    ($visibility:vis $name:ident, $count:expr, $output:ty, $body:block) => {
        /// Lints find it like a function that is written here.
        #[renamed::main(crate = "renamed", worker_threads = $count)]
        $visibility async fn $name() -> $output $body
    };
}

function!(pub from_parts, 2, u8, { 1 });
function!(from_private_parts, 1_000, Vec<u8>, { Vec::new() });

fn main() {
    let _ = (at_path, by_name, without_prelude::main, from_parts, from_private_parts);
}
