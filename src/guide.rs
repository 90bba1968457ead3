//! The guide: how to write, test and run servers with kittiwake.
//!
//! Each chapter is a file in the folder `docs/`. The tests compile each code block, and run those that end by
//! themselves.
//!
//! | to .. | read |
//! | --- | --- |
//! | begin | [`first_server`] |
//! | survive slow and hostile clients | [`timeouts`] |
//! | end without losing a request | [`shutdown`] |
//! | use all cores | [`many_cores`] |
//! | serve HTTP, TLS and WebSockets | [`http`] |
//! | use a database | [`databases`] |
//! | test a server | [`testing`] |
//! | read files, and do other work that blocks | [`blocking`] |
//! | find out what a server is doing, and why it hangs | [`inspect`] |
//! | deploy a server, and restart it without a failed request | [`deploy`] |
//! | understand the runtime | [`inside`] |
//! | know what it guarantees, and how that is tested | [`promises`] |
//! | translate the names of another runtime | [`from_tokio`], [`from_smol`] |
//! | decide against it | [`when_not`] |

/// The targets of the links between chapters.
///
/// They stand before the text of a chapter, and the first definition of a link counts. So a link leads to a module in
/// the crate's documentation. A reader of the file itself follows the definition at the end of the file.
macro_rules! links {
    () => {
        "
[first_server]: crate::guide::first_server
[timeouts]: crate::guide::timeouts
[shutdown]: crate::guide::shutdown
[many_cores]: crate::guide::many_cores
[http]: crate::guide::http
[databases]: crate::guide::databases
[testing]: crate::guide::testing
[blocking]: crate::guide::blocking
[inspect]: crate::guide::inspect
[deploy]: crate::guide::deploy
[inside]: crate::guide::inside
[promises]: crate::guide::promises
[from_tokio]: crate::guide::from_tokio
[from_smol]: crate::guide::from_smol
[when_not]: crate::guide::when_not
[figures]: crate::guide::figures

"
    };
}

/// A chapter: the links, the text of its file, and the items of the crate that it is about.
///
/// A chapter of the ecosystem has blocks that need crates which this package does not have. The package in
/// `examples/ecosystem` compiles and runs these. A chapter that needs features is tested with these features only.
macro_rules! chapter {
    ($(#[$items:meta])* $name:ident, $file:literal) => {
        #[doc = links!()]
        #[doc = include_str!($file)]
        $(#[$items])*
        pub mod $name {}
    };
    (features($($needed:tt)*) $(#[$items:meta])* $name:ident, $file:literal) => {
        #[doc = links!()]
        #[cfg_attr(any(not(doctest), $($needed)*), doc = include_str!($file))]
        $(#[$items])*
        pub mod $name {}
    };
    (ecosystem $(#[$items:meta])* $name:ident, $file:literal) => {
        #[doc = links!()]
        #[cfg_attr(not(doctest), doc = include_str!($file))]
        $(#[$items])*
        pub mod $name {}
    };
}

chapter! {
    ///
    /// Items: [`block_on`](crate::block_on), [`net::serve`](crate::net::serve()),
    /// [`signal::terminate`](crate::signal::terminate).
    first_server, "../docs/first_server.md"
}

chapter! {
    ///
    /// Items: [`time::timeout`](crate::time::timeout()),
    /// [`TcpStream::set_read_timeout`](crate::net::TcpStream::set_read_timeout),
    /// [`TcpStream::drain`](crate::net::TcpStream::drain),
    /// [`Serve::max_connections`](crate::net::Serve::max_connections).
    timeouts, "../docs/timeouts.md"
}

chapter! {
    ///
    /// Items: [`net::Serve`](crate::net::Serve), [`net::ShutdownSignal`](crate::net::ShutdownSignal),
    /// [`net::Report`](crate::net::Report), [`task::JoinSet`](crate::task::JoinSet).
    shutdown, "../docs/shutdown.md"
}

chapter! {
    ///
    /// Items: [`runtime::Runtime`](crate::runtime::Runtime), [`runtime::Builder`](crate::runtime::Builder),
    /// [`spawn_local`](crate::spawn_local), [`task::consume_budget`](crate::task::consume_budget),
    /// [`Handle::metrics`](crate::runtime::Handle::metrics).
    many_cores, "../docs/many_cores.md"
}

chapter! {
    ecosystem
    ///
    #[cfg_attr(
        feature = "hyper",
        doc = "Items: [`hyper::serve`](crate::hyper::serve()), [`hyper::Serve`](crate::hyper::Serve), \
               [`hyper::Io`](crate::hyper::Io)."
    )]
    http, "../docs/http.md"
}

chapter! {
    ecosystem
    ///
    /// Items: [`net::TcpStream`](crate::net::TcpStream), [`spawn_blocking`](crate::spawn_blocking),
    /// [`time::timeout`](crate::time::timeout()).
    databases, "../docs/databases.md"
}

chapter! {
    features(feature = "hyper")
    ///
    /// Items: [`io::duplex`](crate::io::duplex()), [`Builder::start_paused`](crate::runtime::Builder::start_paused),
    /// [`Builder::rng_seed`](crate::runtime::Builder::rng_seed), [`time::advance`](crate::time::advance), [`Handle::metrics`](crate::runtime::Handle::metrics).
    testing, "../docs/testing.md"
}

chapter! {
    ///
    /// Items: [`spawn_blocking`](crate::spawn_blocking),
    /// [`Builder::max_blocking_threads`](crate::runtime::Builder::max_blocking_threads),
    /// [`io::AsyncFd`](crate::io::AsyncFd).
    blocking, "../docs/blocking.md"
}

chapter! {
    features(feature = "inspect")
    ///
    /// Items: [`Handle::tasks`](crate::runtime::Handle::tasks), [`inspect::TaskDump`](crate::inspect::TaskDump),
    /// [`inspect::dump_on`](crate::inspect::dump_on), [`inspect::dump_on_panic`](crate::inspect::dump_on_panic),
    /// [`Builder::on_slow_poll`](crate::runtime::Builder::on_slow_poll),
    /// [`Builder::measure_polls`](crate::runtime::Builder::measure_polls),
    #[cfg_attr(feature = "inspect", doc = "[`inspect::serve`](crate::inspect::serve()),")]
    /// [`Handle::metrics`](crate::runtime::Handle::metrics).
    inspect, "../docs/inspect.md"
}

chapter! {
    features(all(feature = "hyper", feature = "listenfd"))
    ///
    /// Items: [`signal::terminate`](crate::signal::terminate), [`net::Failure`](crate::net::Failure),
    #[cfg_attr(feature = "listenfd", doc = "[`TcpListener::inherited`](crate::net::TcpListener::inherited),")]
    #[cfg_attr(feature = "hyper", doc = "[`hyper::serve`](crate::hyper::serve()),")]
    /// [`net::Report`](crate::net::Report).
    deploy, "../docs/deploy.md"
}

chapter!(inside, "../docs/inside.md");

chapter!(promises, "../docs/promises.md");

chapter!(from_tokio, "../docs/from_tokio.md");

chapter!(from_smol, "../docs/from_smol.md");

chapter!(when_not, "../docs/when_not.md");

chapter!(figures, "../docs/figures.md");

/// The README, so that its block is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
