//! The values that a handler's future may return.

use std::convert::Infallible;
use std::fmt::Display;

/// The output of a handler's future: `()`, `!`, or any `Result` whose error implements [`Display`].
///
/// It is also the output of a future that [stops a server](super::Serve::with_graceful_shutdown).
///
/// `!` is the type of an `async` block that ends in an endless loop.
///
/// This trait is sealed: it cannot be implemented outside this crate.
#[diagnostic::on_unimplemented(
    message = "a handler of `serve` cannot return `{Self}`",
    label = "the handler's future returns `{Self}`",
    note = "a handler returns `()`, `!`, or a `Result` whose error implements `Display`",
    note = "to ignore its value, end the handler's `async` block with a semicolon"
)]
pub trait HandlerOutput: sealed::Sealed {}

// One for each type: for an implementation for all types, the compiler would name the private trait in its errors.
impl HandlerOutput for () {}
impl HandlerOutput for <fn() -> ! as Function>::Output {}
impl<T, E: Display> HandlerOutput for Result<T, E> {}

impl sealed::Sealed for () {
    type Error = Infallible;

    fn into_result(self) -> Result<(), Infallible> {
        Ok(())
    }
}

// The type `!`: stable Rust can only name it as the return type of a function. `Infallible` is no output of its own,
// because it is planned to become the same type.
impl sealed::Sealed for <fn() -> ! as Function>::Output {
    type Error = Infallible;

    fn into_result(self) -> Result<(), Infallible> {
        self
    }
}

impl<T, E: Display> sealed::Sealed for Result<T, E> {
    type Error = E;

    fn into_result(self) -> Result<(), E> {
        self.map(drop)
    }
}

pub(super) mod sealed {
    use std::fmt::Display;

    pub trait Sealed {
        type Error: Display;

        /// Turns the output into success or the handler's error.
        fn into_result(self) -> Result<(), Self::Error>;
    }
}

/// A function and its return type. It is not in `sealed`, because the compiler names it when it lists what a handler may
/// return.
pub trait Function {
    type Output;
}

impl<T> Function for fn() -> T {
    type Output = T;
}
