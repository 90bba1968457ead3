//! The system's clocks, as numbers of nanoseconds.

pub(crate) use system::*;

#[cfg(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)))]
mod system {
    /// Reads the system's monotonic clock, in nanoseconds: `CLOCK_MONOTONIC` of clock_gettime(2).
    // A timeout costs 1.7 % more without this.
    #[inline]
    pub(crate) fn monotonic() -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // `CLOCK_MONOTONIC` counts from the start of the system, so neither field is negative.
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    /// Reads the system's monotonic clock at its last tick, in nanoseconds: `CLOCK_MONOTONIC_COARSE` of clock_gettime(2).
    #[cfg(feature = "hyper")]
    pub(crate) fn monotonic_at_last_tick() -> u64 {
        let then = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        then.tv_sec as u64 * 1_000_000_000 + then.tv_nsec as u64
    }

    /// Reads the CPU time that this thread has used, in nanoseconds: `CLOCK_THREAD_CPUTIME_ID` of clock_gettime(2).
    ///
    /// This is a system call. It returns `None` on platforms other than Linux and Android.
    pub(crate) fn thread_cpu() -> Option<u64> {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Some(used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64)
    }
}

#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable))))]
mod system {
    use std::sync::OnceLock;
    use std::time::Instant;

    /// Reads the system's monotonic clock, in nanoseconds since the first call.
    ///
    /// std knows which clock of this platform is monotonic.
    pub(crate) fn monotonic() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }

    /// Reads the system's monotonic clock: on this platform the present counts as a tick.
    #[cfg(feature = "hyper")]
    pub(crate) fn monotonic_at_last_tick() -> u64 {
        monotonic()
    }

    /// Returns `None`: on this platform only an unsafe call reads the CPU time of a thread.
    pub(crate) fn thread_cpu() -> Option<u64> {
        None
    }
}
