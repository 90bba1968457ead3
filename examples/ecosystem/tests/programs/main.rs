//! The programs of this package, run from outside with real clients.

mod program;

mod tls_echo;
