//! Glue for crates of other people that the programs in `src/bin/` and their tests share.

pub mod quic;
