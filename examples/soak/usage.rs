//! Resources of the process and of its runtimes, and whether they have grown.

use std::alloc::System;
use std::fs;

use kittiwake::runtime::Handle;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts the bytes that live on the heap.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The resources at one moment. On systems without `/proc` those of the process are zero, except for the heap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Bytes that are allocated.
    pub(crate) heap: usize,
    /// Bytes that are resident.
    pub(crate) resident: usize,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) tasks: usize,
    pub(crate) sockets: usize,
    pub(crate) timers: usize,
}

impl Usage {
    /// Looks at the process and at these runtimes.
    pub(crate) fn now<'a>(runtimes: impl IntoIterator<Item = &'a Handle>) -> Self {
        let heap = ALLOCATOR.stats();
        let mut usage = Self {
            heap: heap.bytes_allocated.wrapping_sub(heap.bytes_deallocated),
            resident: resident(),
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            ..Self::default()
        };
        for worker in runtimes.into_iter().flat_map(|runtime| runtime.metrics().workers().to_vec()) {
            usage.tasks += worker.tasks_alive;
            usage.sockets += worker.sources_registered;
            usage.timers += worker.timers_armed;
        }
        usage
    }

    /// Names the resources that are more than in `before`. Of the heap and the resident set a part may stay, because
    /// tables and the allocator keep some of their memory.
    pub(crate) fn growth(&self, before: &Self) -> Option<String> {
        const HEAP_SLACK: usize = 1 << 20;
        let mut grown = Vec::new();
        let mut compare = |what: &str, now: usize, before: usize, slack: usize| {
            if now > before + slack {
                grown.push(format!("{} {what} more: {now}, and {before} before", now - before));
            }
        };
        compare("descriptors", self.descriptors, before.descriptors, 0);
        compare("threads", self.threads, before.threads, 0);
        compare("tasks", self.tasks, before.tasks, 0);
        compare("sockets", self.sockets, before.sockets, 0);
        compare("timers", self.timers, before.timers, 0);
        compare("bytes on the heap", self.heap, before.heap, HEAP_SLACK);
        compare("resident bytes", self.resident, before.resident, before.resident / 2 + (32 << 20));
        (!grown.is_empty()).then(|| grown.join("; "))
    }
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * rustix::param::page_size()
}
