//! The options that streams have, and sockets before they are connected ([`impl_options`]).

use std::io;
use std::os::fd::AsFd;

use socket2::SockRef;

use super::stream::TcpStream;
use crate::net::sys;
use crate::time::Duration;

/// How the kernel probes an idle connection, for [`TcpStream::set_keepalive`].
///
/// A time that is not set stays as the system has it.
///
/// # Examples
/// A peer that has vanished is noticed after about 60 + 3 * 10 seconds:
/// ```
/// use kittiwake::net::TcpKeepalive;
/// use kittiwake::time::Duration;
///
/// let keepalive = TcpKeepalive::new()
///     .with_time(Duration::from_secs(60))
///     .with_interval(Duration::from_secs(10))
///     .with_retries(3);
/// assert_eq!(keepalive.time(), Some(Duration::from_secs(60)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    time: Option<Duration>,
    interval: Option<Duration>,
    retries: Option<u32>,
}

impl TcpKeepalive {
    /// Probes with the system's times. On Linux the first probe is sent after two hours.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long the connection must be idle before the first probe (`TCP_KEEPIDLE`). The system counts whole
    /// seconds, and the time is rounded up.
    #[must_use]
    pub fn with_time(self, time: Duration) -> Self {
        Self { time: Some(time), ..self }
    }

    /// Sets the time between two probes (`TCP_KEEPINTVL`). The system counts whole seconds, and the time is rounded up.
    #[must_use]
    pub fn with_interval(self, interval: Duration) -> Self {
        Self { interval: Some(interval), ..self }
    }

    /// Sets how many probes may stay without an answer before the connection fails (`TCP_KEEPCNT`).
    #[must_use]
    pub fn with_retries(self, retries: u32) -> Self {
        Self { retries: Some(retries), ..self }
    }

    /// How long the connection must be idle before the first probe.
    pub fn time(&self) -> Option<Duration> {
        self.time
    }

    /// The time between two probes.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// How many probes may stay without an answer.
    pub fn retries(&self) -> Option<u32> {
        self.retries
    }
}

/// Gives a type that is `AsFd` the options that streams and unconnected sockets share.
macro_rules! impl_options {
    ($type:ty) => {
        impl $type {
            /// How the kernel probes the idle connection (`SO_KEEPALIVE`). `None`, the default, if it does not. A time
            /// that the system cannot report is `None` too.
            ///
            /// # Errors
            /// See getsockopt(2).
            pub fn keepalive(&self) -> std::io::Result<Option<$crate::net::TcpKeepalive>> {
                $crate::net::tcp::options::keepalive(self)
            }

            /// Sets how the kernel probes the idle connection. `None` turns the probes off.
            ///
            /// If the peer's machine has vanished, no packet says so. With probes, a task that waits for the peer gets
            /// `TimedOut` in the end.
            ///
            /// # Errors
            /// `Unsupported` if the system lacks an option that `keepalive` sets: OpenBSD has none of the times.
            /// `InvalidInput` for a time or a count that the system does not allow (see tcp(7)). The probes are not
            /// turned on then, and the times that were set before the refused one stay set.
            pub fn set_keepalive(&self, keepalive: Option<$crate::net::TcpKeepalive>) -> std::io::Result<()> {
                $crate::net::tcp::options::set_keepalive(self, keepalive)
            }

            /// How long written bytes may stay without an acknowledgement before the connection fails
            /// (`TCP_USER_TIMEOUT`). `None` is the system's own limit.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See getsockopt(2).
            pub fn user_timeout(&self) -> std::io::Result<Option<std::time::Duration>> {
                $crate::net::tcp::options::user_timeout(self)
            }

            /// Sets how long written bytes may stay without an acknowledgement before the connection fails with
            /// `TimedOut`. Linux gives up after about 15 minutes otherwise. The system counts whole milliseconds, and
            /// the time is rounded up.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. `InvalidInput` for a time of zero, and for more than
            /// 24 days.
            pub fn set_user_timeout(&self, timeout: Option<std::time::Duration>) -> std::io::Result<()> {
                $crate::net::tcp::options::set_user_timeout(self, timeout)
            }

            /// How long a close waits until the peer has acknowledged everything (`SO_LINGER`). `None`, the default, if
            /// it returns at once, and the kernel goes on in the background.
            ///
            /// # Errors
            /// See getsockopt(2).
            pub fn linger(&self) -> std::io::Result<Option<std::time::Duration>> {
                socket2::SockRef::from(self).linger()
            }

            /// Makes the drop of the socket reset the connection (`SO_LINGER` of zero).
            ///
            /// The drop never waits. The kernel throws away all bytes that it has not sent yet, and those that were not
            /// read, also after a shutdown of the writing half. The peer's next read fails with `ConnectionReset`. The
            /// port is free at once, and not only after the `TIME_WAIT` state.
            ///
            /// There is no method for a longer time. The drop of a socket would then block its worker for all that
            /// time, although the socket is non-blocking.
            ///
            /// # Errors
            /// See setsockopt(2).
            pub fn set_zero_linger(&self) -> std::io::Result<()> {
                socket2::SockRef::from(self).set_linger(Some(std::time::Duration::ZERO))
            }

            /// Whether the kernel acknowledges at once what comes (`TCP_QUICKACK`).
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See getsockopt(2).
            pub fn quickack(&self) -> std::io::Result<bool> {
                $crate::net::sys::options::quickack(self)
            }

            /// Sets whether the kernel acknowledges at once what comes. Otherwise it may wait up to 40 ms for an answer
            /// that carries the acknowledgement. The kernel changes the setting by itself later, so a program sets it
            /// again after each read.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See setsockopt(2).
            pub fn set_quickack(&self, quickack: bool) -> std::io::Result<()> {
                $crate::net::sys::options::set_quickack(self, quickack)
            }

            /// How many bytes that the kernel has not sent yet make the socket unwritable (`TCP_NOTSENT_LOWAT`).
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See getsockopt(2).
            pub fn notsent_lowat(&self) -> std::io::Result<u32> {
                $crate::net::sys::options::notsent_lowat(self)
            }

            /// Sets how many bytes that the kernel has not sent yet make the socket unwritable. With a small number the
            /// bytes wait in the program, which may still choose what to send first.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux and Android. See setsockopt(2).
            pub fn set_notsent_lowat(&self, bytes: u32) -> std::io::Result<()> {
                $crate::net::sys::options::set_notsent_lowat(self, bytes)
            }

            /// The name of the algorithm of congestion control (`TCP_CONGESTION`), such as `cubic`.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux, Android, FreeBSD and illumos. See getsockopt(2).
            pub fn congestion(&self) -> std::io::Result<String> {
                $crate::net::sys::options::congestion(self)
            }

            /// Sets the algorithm of congestion control, such as `bbr`.
            ///
            /// # Errors
            /// `Unsupported` elsewhere than on Linux, Android, FreeBSD and illumos. `NotFound` if the kernel does not
            /// know the algorithm, and `PermissionDenied` if this process may not choose it (see tcp(7)).
            pub fn set_congestion(&self, algorithm: &str) -> std::io::Result<()> {
                $crate::net::sys::options::set_congestion(self, algorithm)
            }

            /// The size of the kernel's buffer for what was written (`SO_SNDBUF`).
            ///
            /// # Errors
            /// See getsockopt(2).
            pub fn send_buffer_size(&self) -> std::io::Result<usize> {
                socket2::SockRef::from(self).send_buffer_size()
            }

            /// Sets the size of the kernel's buffer for what was written.
            ///
            /// # Errors
            /// See setsockopt(2).
            ///
            /// # Platform notes
            /// Linux doubles the size for its own needs, cuts it down to what `net.core.wmem_max` allows, and no longer
            /// adapts it to the connection.
            pub fn set_send_buffer_size(&self, size: usize) -> std::io::Result<()> {
                socket2::SockRef::from(self).set_send_buffer_size($crate::net::sys::options::buffer_size(size))
            }

            /// The size of the kernel's buffer for what was not read yet (`SO_RCVBUF`).
            ///
            /// # Errors
            /// See getsockopt(2).
            pub fn recv_buffer_size(&self) -> std::io::Result<usize> {
                socket2::SockRef::from(self).recv_buffer_size()
            }

            /// Sets the size of the kernel's buffer for what was not read yet. To matter for the window that TCP
            /// announces, it must be set before the socket connects or listens.
            ///
            /// # Errors
            /// See setsockopt(2).
            ///
            /// # Platform notes
            /// Linux doubles the size for its own needs, cuts it down to what `net.core.rmem_max` allows, and no longer
            /// adapts it to the connection.
            pub fn set_recv_buffer_size(&self, size: usize) -> std::io::Result<()> {
                socket2::SockRef::from(self).set_recv_buffer_size($crate::net::sys::options::buffer_size(size))
            }

            /// The type of service of IPv4 packets (`IP_TOS`): DSCP and ECN.
            ///
            /// # Errors
            /// `Unsupported` if the system lacks the option. See getsockopt(2).
            pub fn tos_v4(&self) -> std::io::Result<u32> {
                $crate::net::sys::options::tos_v4(self)
            }

            /// Sets the type of service of IPv4 packets. TCP keeps the two lowest bits, ECN, for itself.
            ///
            /// # Errors
            /// `Unsupported` if the system lacks the option. See setsockopt(2).
            pub fn set_tos_v4(&self, tos: u32) -> std::io::Result<()> {
                $crate::net::sys::options::set_tos_v4(self, tos)
            }

            /// The traffic class of IPv6 packets (`IPV6_TCLASS`): DSCP and ECN.
            ///
            /// # Errors
            /// `Unsupported` if the system lacks the option. See getsockopt(2). Fails for a socket of IPv4.
            pub fn tclass_v6(&self) -> std::io::Result<u32> {
                $crate::net::sys::options::tclass_v6(self)
            }

            /// Sets the traffic class of IPv6 packets, at most 255. TCP keeps the two lowest bits, ECN, for itself.
            ///
            /// # Errors
            /// `InvalidInput` for a larger class. `Unsupported` if the system lacks the option. See setsockopt(2).
            /// Fails for a socket of IPv4.
            pub fn set_tclass_v6(&self, class: u32) -> std::io::Result<()> {
                $crate::net::sys::options::set_tclass_v6(self, class)
            }
        }
    };
}
pub(super) use impl_options;

impl_options!(TcpStream);

pub(super) fn keepalive(socket: &impl AsFd) -> io::Result<Option<TcpKeepalive>> {
    if !SockRef::from(socket).keepalive()? {
        return Ok(None);
    }
    Ok(Some(TcpKeepalive {
        time: unless_unsupported(sys::options::keepalive_time(socket))?,
        interval: unless_unsupported(sys::options::keepalive_interval(socket))?,
        retries: unless_unsupported(sys::options::keepalive_retries(socket))?,
    }))
}

pub(super) fn set_keepalive(socket: &impl AsFd, keepalive: Option<TcpKeepalive>) -> io::Result<()> {
    let is_on = keepalive.is_some();
    let TcpKeepalive { time, interval, retries } = keepalive.unwrap_or_default();
    // The probes last, so that none is sent at a time that was not asked for.
    if let Some(time) = time {
        sys::options::set_keepalive_time(socket, time)?;
    }
    if let Some(interval) = interval {
        sys::options::set_keepalive_interval(socket, interval)?;
    }
    if let Some(retries) = retries {
        sys::options::set_keepalive_retries(socket, retries)?;
    }
    SockRef::from(socket).set_keepalive(is_on)
}

fn unless_unsupported<T>(value: io::Result<T>) -> io::Result<Option<T>> {
    match value {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        value => value.map(Some),
    }
}

pub(super) fn user_timeout(socket: &impl AsFd) -> io::Result<Option<Duration>> {
    let millis = sys::options::user_timeout_millis(socket)?;
    Ok((millis > 0).then(|| Duration::from_millis(millis.into())))
}

pub(super) fn set_user_timeout(socket: &impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    let millis = match timeout {
        None => 0,
        // Zero means no timeout to the kernel.
        Some(Duration::ZERO) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "a user timeout of zero")),
        // A time that is too long becomes a number that the kernel refuses.
        Some(timeout) => u32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX),
    };
    sys::options::set_user_timeout_millis(socket, millis)
}
