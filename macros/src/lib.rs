//! The attributes `#[kittiwake::main]` and `#[kittiwake::test]`, which `kittiwake` re-exports.
//!
//! # Expansion
//! The attribute keeps the function as it is written, and puts it into a function that is not `async`:
//! ```text
//! fn main() -> io::Result<()> {
//!     async fn main() -> io::Result<()> { .. }
//!     ::kittiwake::runtime::Builder::new_multi_thread().build().expect(..).block_on(main())
//! }
//! ```
//! A test with `seeds = 20` passes a closure to `kittiwake::seeds::run`, which makes such a runtime for each seed.
//!
//! All tokens of the function keep their places, so the compiler's messages about its body and its return type point to
//! the source. The new tokens name everything by an absolute path, and call inherent methods only. So no import and no
//! local name of the caller changes their meaning.
//!
//! # Mistakes
//! Each mistake becomes a `compile_error!` at its own place: `arguments.rs` finds those in the attribute, `function.rs`
//! those in the function. All of them are reported at once. The function is still emitted, so that an editor
//! knows its body.

mod arguments;
mod error;
mod function;

use proc_macro::TokenStream;

use arguments::{Arguments, Attribute};
use function::Function;

/// Runs an `async fn main` in a runtime.
///
/// By default this is a multi-thread runtime with one worker for each core, as `Runtime::new()` makes it. The body runs
/// on the calling thread, beside the workers; spawned tasks and the handlers of `serve` run on the workers. The function
/// may have any name, any return type without `Self`, and any other attributes, but no parameters.
///
/// # Arguments
/// * `worker_threads = 4`: the number of workers, from 1 to 1024.
/// * `current_thread`: no workers. The body and all tasks run on the calling thread, as in `kittiwake::block_on`.
/// * `crate = "name"`: the path of this crate, if it has another name here than `kittiwake`.
///
/// A program that chooses these values when it runs uses `kittiwake::runtime::Builder`.
///
/// # Panics
/// The function panics if no runtime can be made, for example because no descriptors are left, and if it is called
/// inside a runtime.
///
/// # Examples
/// ```
/// #[kittiwake::main]
/// async fn main() -> std::io::Result<()> {
///     let listener = kittiwake::net::TcpListener::bind("127.0.0.1:0").await?;
///     assert_ne!(listener.local_addr()?.port(), 0);
///     Ok(())
/// }
/// ```
///
/// Two workers:
/// ```
/// #[kittiwake::main(worker_threads = 2)]
/// async fn main() {
///     assert_eq!(kittiwake::runtime::Handle::current().metrics().workers().len(), 2);
/// }
/// ```
///
/// The calling thread alone:
/// ```
/// #[kittiwake::main(current_thread)]
/// async fn main() {
///     let this = std::thread::current().id();
///     let spawned = kittiwake::spawn(async { std::thread::current().id() });
///     assert_eq!(spawned.await.unwrap(), this);
/// }
/// ```
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, function: TokenStream) -> TokenStream {
    expand(Attribute::Main, arguments, function)
}

/// Makes a test of an `async fn`, which runs in a runtime of its own.
///
/// By default this is a current-thread runtime: the body and all its tasks run on the thread of the test. When the body
/// ends, tasks that still run are dropped. The function may return what a `#[test]` may return, and may have
/// `#[should_panic]` and `#[ignore]`, but no parameters. It needs no `#[test]`.
///
/// # Arguments
/// * `start_paused`: the clock stands still, and advances to the next timer when all tasks wait. So a test of timeouts
///   takes no time. This needs a current-thread runtime.
/// * `worker_threads = 2`: a multi-thread runtime with this number of workers, from 1 to 1024.
/// * `seeds = 20`: runs the body once with each of the seeds 0 to 19, from 1 to 1,000,000 seeds, until one fails. Each
///   run has a runtime of its own, whose tasks run in the order of this seed: see `kittiwake::runtime::Builder::rng_seed`,
///   which also says which tests are reproducible. The clock should start paused.
/// * `crate = "name"`: the path of this crate, if it has another name here than `kittiwake`.
///
/// # Seeds
/// A test with `seeds` that fails prints its seed on stderr, and fails as it does without seeds: with the same panic, or with
/// the same error. A seed that takes longer than a minute is printed while it runs. The environment variable
/// `KITTIWAKE_TEST_SEED` names the only seed to run, which may be any `u64`:
/// ```text
/// KITTIWAKE_TEST_SEED=7 cargo test name_of_the_test
/// ```
/// With `#[should_panic]` the first panic ends the test.
///
/// # Examples
/// ```
/// # // A doctest does not run the tests that it defines, so only their forms are checked here.
/// use std::time::Duration;
/// use kittiwake::time::{Instant, sleep};
///
/// #[kittiwake::test(start_paused)]
/// async fn hour_passes_at_once() {
///     let start = Instant::now();
///     sleep(Duration::from_secs(3600)).await;
///     assert!(start.elapsed() >= Duration::from_secs(3600));
/// }
///
/// #[kittiwake::test(start_paused, seeds = 20)]
/// async fn tasks_agree_in_each_order() {
///     let (first, second) = (kittiwake::spawn(async { 1 }), kittiwake::spawn(async { 2 }));
///     assert_eq!(first.await.unwrap() + second.await.unwrap(), 3);
/// }
///
/// #[kittiwake::test]
/// async fn port_is_bound() -> std::io::Result<()> {
///     let listener = kittiwake::net::TcpListener::bind("127.0.0.1:0").await?;
///     assert_ne!(listener.local_addr()?.port(), 0);
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, function: TokenStream) -> TokenStream {
    expand(Attribute::Test, arguments, function)
}

fn expand(attribute: Attribute, arguments: TokenStream, function: TokenStream) -> TokenStream {
    let mut errors = Vec::new();
    let arguments = Arguments::parse(attribute, arguments, &mut errors);
    match Function::parse(attribute, function.clone(), &mut errors) {
        Some(function) if errors.is_empty() => function.around_call(attribute, &arguments),
        Some(function) => function.after_errors(attribute, &errors),
        None => errors.iter().map(error::Error::to_tokens).chain([function]).collect(),
    }
}
