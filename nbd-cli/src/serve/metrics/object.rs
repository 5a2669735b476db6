//! Counters of disks on object storage.

use super::head;
use nbd_object::{Disk, Statistics};
use std::fmt::{self, Write};

/// A counter or a gauge: its name, its text, and its value.
type Number = (&'static str, &'static str, fn(&Statistics) -> u64);

const COUNTERS: [Number; 13] = [
    ("gets", "Gets of objects and of parts of them.", |all| {
        all.gets
    }),
    ("got_bytes", "Bytes that gets returned.", |all| {
        all.bytes_got
    }),
    ("puts", "Puts of objects.", |all| all.puts),
    ("put_bytes", "Bytes of puts.", |all| all.bytes_put),
    ("deletes", "Deleted objects.", |all| all.deletes),
    ("lists", "Listings.", |all| all.lists),
    ("retries", "Requests that were sent again.", |all| {
        all.retries
    }),
    ("cache_hits", "Blocks that reads found in memory.", |all| {
        all.cache_hits
    }),
    ("cache_misses", "Blocks that reads had to get.", |all| {
        all.cache_misses
    }),
    (
        "local_cache_hits",
        "Blocks that were found in the cache in a directory.",
        |all| all.local_cache_hits,
    ),
    (
        "read_ahead_blocks",
        "Blocks that were got before a read.",
        |all| all.read_ahead_blocks,
    ),
    ("commits", "Swaps of the head that succeeded.", |all| {
        all.commits
    }),
    ("failed_commits", "Commits that failed.", |all| {
        all.failed_commits
    }),
];

const GAUGES: [Number; 2] = [
    (
        "dirty_bytes",
        "Bytes in memory that no flush has covered.",
        |all| all.dirty_bytes,
    ),
    ("cached_bytes", "Bytes of blocks in memory.", |all| {
        all.cached_bytes
    }),
];

/// Writes the metrics of all disks.
pub(super) fn write(disks: &[(String, Disk)], out: &mut String) -> fmt::Result {
    if disks.is_empty() {
        return Ok(());
    }
    let all: Vec<_> = disks
        .iter()
        .map(|(name, disk)| (name, disk.statistics()))
        .collect();
    for (number, help, value) in COUNTERS {
        let name = format!("nbd_object_{number}_total");
        head(out, &name, "counter", help)?;
        for (export, statistics) in &all {
            writeln!(out, "{name}{{export=\"{export}\"}} {}", value(statistics))?;
        }
    }
    for (number, help, value) in GAUGES {
        let name = format!("nbd_object_{number}");
        head(out, &name, "gauge", help)?;
        for (export, statistics) in &all {
            writeln!(out, "{name}{{export=\"{export}\"}} {}", value(statistics))?;
        }
    }
    let name = "nbd_object_commit_duration_seconds";
    head(
        out,
        name,
        "histogram",
        "Time of commits, which flushes wait for.",
    )?;
    for (export, statistics) in &all {
        let mut sum = 0;
        for (end, count) in statistics.commit_times.iter() {
            sum += count;
            let end = end.map_or_else(|| "+Inf".into(), |end| end.as_secs_f64().to_string());
            writeln!(
                out,
                "{name}_bucket{{export=\"{export}\",le=\"{end}\"}} {sum}"
            )?;
        }
        let seconds = statistics.commit_times.sum().as_secs_f64();
        writeln!(out, "{name}_sum{{export=\"{export}\"}} {seconds}")?;
        writeln!(out, "{name}_count{{export=\"{export}\"}} {sum}")?;
    }
    Ok(())
}
