//! Glue for crates of other people that the programs in `src/bin/` and their tests share.

pub mod https;
pub mod quic;

/// The chapters of the guide whose blocks need the crates of this package. So its tests compile and run them.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/databases.md")]
    mod databases {}
    #[doc = include_str!("../../../docs/http.md")]
    mod http {}
}
