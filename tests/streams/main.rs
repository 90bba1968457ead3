//! Streams. Each body file of this folder is compiled twice, as a module of `tcp` and of `unix`. So each of its laws
//! holds for both types.
//!
//! `tcp` and `unix` give the bodies the same names for different types, and say where the two differ:
//!
//! | name | meaning |
//! | --- | --- |
//! | `Stream` | kittiwake's type |
//! | `Peer` | std's blocking type |
//! | `pair` | makes two connected `Stream`s |
//! | `pair_with_std` | makes a `Stream` and its `Peer`, whose operations are bounded |
//! | `send_at_once` | makes the kernel send each write of a `Peer` or a `Stream` at once |
//! | `allow_reset` | takes a `Stream`, and prepares a `reset` of its `Peer` |
//! | `reset` | closes a `Peer` so that its `Stream` is reset |
//! | `RESET_AT_WRITE` | the error of the first write after a reset |
//!
//! A body imports all of them by `use super::*`, together with the helpers of `support`. These helpers include a `pair`
//! for TCP, which `unix` shadows.

// The two modules are there to compile the bodies twice.
#![allow(clippy::duplicate_mod)]

#[path = "../support/mod.rs"]
mod support;

mod tcp;
mod unix;
