//! [`AddrError`]: the error of a bind or a connect, with its addresses.
//!
//! 1. Each attempt at one address wraps its error in [`AddrError::at`], which notes the address.
//! 2. A caller that tries several addresses joins the errors of its attempts by [`AddrError::join`].
//! 3. The caller gets an [`io::Error`] of the kind of the last attempt, with the `AddrError` inside.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// The error of a bind, a listen or a connect: each address that was tried, and its error. If a timeout has ended the
/// connect, it has the addresses that were not tried, too.
///
/// The functions of this module return it inside an [`io::Error`] of the same kind. An [`io::Error`] has either a code
/// of the system or an error of a library inside, so its own `raw_os_error` returns `None` here. [`AddrError::of`]
/// finds the `AddrError`, which has the code. So does the [`source`](Error::source) of the [`io::Error`]: it is the
/// error of the system.
///
/// If several addresses were tried, the kind, the code, the address and the source are those of the attempt that failed
/// last. The text names all addresses.
///
/// # Examples
/// ```
/// use kittiwake::io::ErrorKind;
/// use kittiwake::net::{AddrError, TcpListener};
///
/// # kittiwake::block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let taken = listener.local_addr()?;
/// let error = TcpListener::bind(taken).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::AddrInUse);
/// assert!(error.to_string().starts_with(&format!("cannot bind {taken}: ")));
///
/// let error = AddrError::of(&error).unwrap();
/// assert_eq!(error.addr(), taken);
/// assert!(error.raw_os_error().is_some());
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct AddrError {
    operation: Operation,
    /// The attempts that failed before the last one, in that order.
    earlier: Vec<Attempt>,
    last: Attempt,
}

/// An attempt that has failed.
#[derive(Debug)]
struct Attempt {
    addr: SocketAddr,
    error: io::Error,
}

/// The operation that has failed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Bind,
    Listen,
    Connect,
}

impl AddrError {
    /// Returns the `AddrError` inside `error`, if there is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The address of the attempt that failed last.
    pub fn addr(&self) -> SocketAddr {
        self.last.addr
    }

    /// The kind of the last attempt's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.last.error.kind()
    }

    /// The system's code for the last attempt's error. `None` if the error is not the system's, such as a timeout.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.last.error.raw_os_error()
    }

    /// All attempts in the order in which they failed: their addresses and their errors.
    pub fn attempts(&self) -> impl Iterator<Item = (SocketAddr, &io::Error)> {
        self.all().map(|attempt| (attempt.addr, &attempt.error))
    }

    /// The error of an `operation` on `addr`.
    pub(super) fn at(operation: Operation, addr: SocketAddr, error: io::Error) -> io::Error {
        Self { operation, earlier: Vec::new(), last: Attempt { addr, error } }.into()
    }

    /// Joins the errors of two attempts into that of both. `earlier` is dropped if either names no address.
    pub(super) fn join(earlier: Option<io::Error>, later: io::Error) -> io::Error {
        let Some(Ok(mut earlier)) = earlier.map(io::Error::downcast::<Self>) else { return later };
        match later.downcast::<Self>() {
            Ok(mut later) => {
                earlier.earlier.push(earlier.last);
                earlier.earlier.append(&mut later.earlier);
                Self { earlier: earlier.earlier, ..later }.into()
            }
            Err(later) => later,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Attempt> {
        self.earlier.iter().chain([&self.last])
    }
}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation {
            Operation::Bind => "bind",
            Operation::Listen => "listen on",
            Operation::Connect => "connect to",
        };
        if self.earlier.is_empty() {
            return write!(f, "cannot {operation} {}", self.last);
        }
        write!(f, "cannot {operation} any of {} addresses", self.all().count())?;
        for (attempt, separator) in self.all().zip([": "].into_iter().chain(std::iter::repeat("; "))) {
            write!(f, "{separator}{attempt}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.addr, self.error)
    }
}

impl Error for AddrError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.last.error)
    }
}

impl From<AddrError> for io::Error {
    fn from(error: AddrError) -> Self {
        Self::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(operation: Operation, port: u16, errno: i32) -> io::Error {
        AddrError::at(operation, ([127, 0, 0, 1], port).into(), io::Error::from_raw_os_error(errno))
    }

    /// The error of one attempt keeps the kind and the code of the kernel, and names the address.
    #[test]
    fn error_keeps_kernels_code() {
        let error = failed(Operation::Connect, 9, libc::ECONNREFUSED);
        let text = io::Error::from_raw_os_error(libc::ECONNREFUSED).to_string();
        assert_eq!(error.to_string(), format!("cannot connect to 127.0.0.1:9: {text}"));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = AddrError::of(&error).expect("the error names an address");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
        assert_eq!(error.addr(), ([127, 0, 0, 1], 9).into());
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(libc::ECONNREFUSED));
    }

    /// The joined error has the kind of the last attempt, and all addresses in order.
    #[test]
    fn joined_error_names_every_address() {
        let first = failed(Operation::Bind, 1, libc::EACCES);
        let both = AddrError::join(Some(first), failed(Operation::Bind, 2, libc::EADDRINUSE));
        let all = AddrError::join(Some(both), failed(Operation::Bind, 3, libc::EADDRNOTAVAIL));
        assert_eq!(all.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(all.to_string().starts_with("cannot bind any of 3 addresses: 127.0.0.1:1: "), "{all}");
        assert!(all.to_string().contains("; 127.0.0.1:3: "), "{all}");
        let all = AddrError::of(&all).expect("the error names addresses");
        let codes: Vec<_> = all.attempts().map(|(addr, error)| (addr.port(), error.raw_os_error().unwrap())).collect();
        assert_eq!(codes, [(1, libc::EACCES), (2, libc::EADDRINUSE), (3, libc::EADDRNOTAVAIL)]);
    }
}
