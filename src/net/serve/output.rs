//! The values that a handler's future may return.

use std::error::Error;

/// The output of a handler's future: `()`, `!`, or a `Result` whose error converts into `Box<dyn Error + Send + Sync>`.
///
/// It is also the output of a future that [stops a server](super::Serve::with_graceful_shutdown).
///
/// Every error type that is `Send + Sync + 'static` converts, and so do `String`, `&str` and the boxes of the crates
/// `anyhow` and `eyre`. `Box<dyn Error>` does not: write `Box<dyn Error + Send + Sync>`.
///
/// `!` is the type of an `async` block that ends in an endless loop.
///
/// This trait is sealed: it cannot be implemented outside this crate.
#[diagnostic::on_unimplemented(
    message = "a handler of `serve` cannot return `{Self}`",
    label = "the handler's future returns `{Self}`",
    note = "a handler returns `()`, `!`, or a `Result` whose error converts into `Box<dyn Error + Send + Sync>`",
    note = "such an error is a string, or a type that implements `Error + Send + Sync`; in place of `Box<dyn Error>` \
            write `Box<dyn Error + Send + Sync>`",
    note = "to ignore its value, end the handler's `async` block with a semicolon"
)]
pub trait HandlerOutput: sealed::Sealed {}

// One for each type: for an implementation for all types, the compiler would name the private trait in its errors.
impl HandlerOutput for () {}
impl HandlerOutput for <fn() -> ! as Function>::Output {}
// The compiler would name `From` in its errors, and not what a handler may return.
#[diagnostic::do_not_recommend]
impl<T, E: Into<BoxError>> HandlerOutput for Result<T, E> {}

impl sealed::Sealed for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

// The type `!`: stable Rust can only name it as the return type of a function. `Infallible` is no output of its own,
// because it is planned to become the same type.
impl sealed::Sealed for <fn() -> ! as Function>::Output {
    fn into_result(self) -> Result<(), BoxError> {
        self
    }
}

#[diagnostic::do_not_recommend]
impl<T, E: Into<BoxError>> sealed::Sealed for Result<T, E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map(drop).map_err(Into::into)
    }
}

/// The error of a handler.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;

pub(super) mod sealed {
    pub trait Sealed {
        /// Turns the output into success or the handler's error.
        fn into_result(self) -> Result<(), super::BoxError>;
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
