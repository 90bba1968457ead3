//! Addresses of Unix sockets, and the errors that name them.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::net::sys;

/// The longest path of a socket, in bytes. A zero byte follows it in the kernel's structure.
const MAX_PATH: usize = size_of::<libc::sockaddr_un>() - offset_of!(libc::sockaddr_un, sun_path) - 1;

/// The address of the socket at `path`.
pub(super) fn from_path(path: &Path) -> io::Result<SocketAddr> {
    let bytes = path.as_os_str().as_bytes();
    let why = match bytes.len() {
        0 => "it is empty".to_owned(),
        length if length > MAX_PATH => {
            format!("it has {length} bytes, and the path of a socket has at most {MAX_PATH}")
        }
        _ if bytes.contains(&0) => "it contains a zero byte".to_owned(),
        _ => return SocketAddr::from_pathname(path),
    };
    Err(io::Error::new(ErrorKind::InvalidInput, format!("{path:?} cannot be the path of a Unix socket: {why}")))
}

/// The error of an attempt to `verb` that address.
pub(super) fn failed(verb: &'static str, addr: &SocketAddr, error: io::Error) -> io::Error {
    let address = sys::display_unix(addr);
    io::Error::new(error.kind(), UnixAddrError { verb, address, error, reason: None })
}

/// The error of bind(2). If the address is in use, it says whether a socket uses it.
pub(super) fn bind_failed(addr: &SocketAddr, error: io::Error) -> io::Error {
    let reason = match addr.as_pathname() {
        Some(path) if error.kind() == ErrorKind::AddrInUse => user_of(path),
        _ => None,
    };
    let address = sys::display_unix(addr);
    io::Error::new(error.kind(), UnixAddrError { verb: "bind", address, error, reason })
}

/// The error of a system call, and the address that it was called with. The source is the system's error, with its code.
#[derive(Debug)]
struct UnixAddrError {
    verb: &'static str,
    address: String,
    error: io::Error,
    reason: Option<&'static str>,
}

impl fmt::Display for UnixAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.verb, self.address, self.error)?;
        self.reason.map_or(Ok(()), |reason| write!(f, "; {reason}"))
    }
}

impl Error for UnixAddrError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

/// Says what is at a path that is taken. `None` if that cannot be told.
fn user_of(path: &Path) -> Option<&'static str> {
    if !path.symlink_metadata().ok()?.file_type().is_socket() {
        return Some("the file there is no socket");
    }
    // A datagram socket never enters the queue of a listener: connect(2) fails with `EPROTOTYPE` if a stream socket is
    // bound to the path.
    let probe = Socket::new(Domain::UNIX, Type::DGRAM, None).ok()?;
    match probe.connect(&SockAddr::unix(path).ok()?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Some("no socket uses the path any more: remove the file, and bind again")
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
        _ => Some("another socket uses the path"),
    }
}
