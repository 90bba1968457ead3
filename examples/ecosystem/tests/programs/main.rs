//! The programs of this package, run from outside with real clients, and transfers over quinn.

mod program;
mod web_socket;

mod axum;
mod console;
mod http_client;
mod https;
mod postgres;
mod quic;
mod tls_echo;
mod usage;
mod websocket;
