//! Streams. The bodies of this folder name the type that they test `Stream`, and its peer of std `Peer`. The module that
//! they belong to says which types these are.

#[path = "../support/mod.rs"]
mod support;

mod tcp;
