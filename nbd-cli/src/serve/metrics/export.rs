//! The numbers of one export.

use super::{count, get, head};
use nbd_blocking::{Command, Errno, server::Outcome};
use std::{
    fmt::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const COMMANDS: [(Command, &str); 7] = [
    (Command::Read, "read"),
    (Command::Write, "write"),
    (Command::Flush, "flush"),
    (Command::Trim, "trim"),
    (Command::Cache, "cache"),
    (Command::WriteZeroes, "write_zeroes"),
    (Command::BlockStatus, "block_status"),
];

/// Results of requests. The last is for numbers that the specification does not list.
const RESULTS: [(Option<Errno>, &str); 10] = [
    (None, "ok"),
    (Some(Errno::Perm), "EPERM"),
    (Some(Errno::Io), "EIO"),
    (Some(Errno::NoMem), "ENOMEM"),
    (Some(Errno::Inval), "EINVAL"),
    (Some(Errno::NoSpc), "ENOSPC"),
    (Some(Errno::Overflow), "EOVERFLOW"),
    (Some(Errno::NotSup), "ENOTSUP"),
    (Some(Errno::Shutdown), "ESHUTDOWN"),
    (Some(Errno::Other(0)), "other"),
];

/// The upper ends of the buckets of durations, in microseconds and as Prometheus has them.
const BUCKETS: [(u64, &str); 14] = [
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (5_000_000, "5"),
];

/// The numbers of one export.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Connections that use it.
    pub(super) connections: AtomicU64,
    commands: [CommandCounters; COMMANDS.len()],
}

/// The numbers of one command.
#[derive(Debug, Default)]
struct CommandCounters {
    results: [AtomicU64; RESULTS.len()],
    /// Bytes that were read or written, or that a range had.
    bytes: AtomicU64,
    /// Number of requests per bucket of time; the last bucket is for all longer ones.
    took: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Counters {
    /// A request was carried out.
    pub(super) fn count(&self, outcome: &Outcome<'_>) {
        let command = COMMANDS
            .iter()
            .position(|(command, _)| *command == outcome.command);
        if let Some(command) = command.and_then(|at| self.commands.get(at)) {
            let errno = outcome.failure.map(|failure| failure.errno);
            command.count(errno, outcome.len, outcome.took);
        }
    }
}

impl CommandCounters {
    fn count(&self, errno: Option<Errno>, len: u64, took: Duration) {
        let result = RESULTS.iter().position(|(result, _)| *result == errno);
        if let Some(result) = self.results.get(result.unwrap_or(RESULTS.len() - 1)) {
            count(result);
        }
        if errno.is_none() {
            self.bytes.fetch_add(len, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        let bucket = BUCKETS.partition_point(|(end, _)| nanoseconds > end * 1_000);
        if let Some(bucket) = self.took.get(bucket) {
            count(bucket);
        }
    }
}

/// Writes the metrics of all exports. A command that was never used has no series.
pub(super) fn write(exports: &[(String, Arc<Counters>)], out: &mut String) -> fmt::Result {
    let name = "nbd_export_connections";
    head(out, name, "gauge", "Connections that use an export.")?;
    for (export, counters) in exports {
        writeln!(
            out,
            "{name}{{export=\"{export}\"}} {}",
            get(&counters.connections)
        )?;
    }

    let name = "nbd_requests_total";
    let help = "Requests that exports have carried out, by result.";
    head(out, name, "counter", help)?;
    each(exports, |export, command, numbers| {
        for ((_, result), number) in RESULTS.iter().zip(&numbers.results) {
            let number = get(number);
            if number > 0 {
                let labels = format!("export=\"{export}\",command=\"{command}\"");
                writeln!(out, "{name}{{{labels},result=\"{result}\"}} {number}")?;
            }
        }
        Ok(())
    })?;

    let name = "nbd_request_bytes_total";
    let help = "Bytes of the ranges of requests that succeeded.";
    head(out, name, "counter", help)?;
    each(exports, |export, command, numbers| {
        let labels = format!("export=\"{export}\",command=\"{command}\"");
        writeln!(out, "{name}{{{labels}}} {}", get(&numbers.bytes))
    })?;

    let name = "nbd_request_duration_seconds";
    let help = "Time that exports took for requests, without their wait before.";
    head(out, name, "histogram", help)?;
    each(exports, |export, command, numbers| {
        let labels = format!("export=\"{export}\",command=\"{command}\"");
        let ends = BUCKETS.iter().map(|(_, end)| *end).chain(["+Inf"]);
        let mut sum = 0;
        for (end, number) in ends.zip(&numbers.took) {
            sum += get(number);
            writeln!(out, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}")?;
        }
        let seconds = Duration::from_nanos(get(&numbers.nanoseconds)).as_secs_f64();
        writeln!(out, "{name}_sum{{{labels}}} {seconds}")?;
        writeln!(out, "{name}_count{{{labels}}} {sum}")
    })
}

/// Goes through the commands of all exports that were ever asked for.
fn each(
    exports: &[(String, Arc<Counters>)],
    mut write: impl FnMut(&str, &str, &CommandCounters) -> fmt::Result,
) -> fmt::Result {
    for (export, counters) in exports {
        for ((_, command), numbers) in COMMANDS.iter().zip(&counters.commands) {
            if numbers.results.iter().any(|number| get(number) > 0) {
                write(export, command, numbers)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_result_and_duration() {
        let counters = Arc::<Counters>::default();
        let [reads, writes, ..] = &counters.commands;
        reads.count(None, 4096, Duration::from_micros(50));
        reads.count(None, 512, Duration::from_micros(51));
        reads.count(Some(Errno::Io), 512, Duration::from_secs(6));
        writes.count(Some(Errno::Other(9)), 1, Duration::ZERO);
        let mut text = String::new();
        write(&[("a".into(), counters)], &mut text).unwrap();
        for line in [
            "nbd_requests_total{export=\"a\",command=\"read\",result=\"ok\"} 2",
            "nbd_requests_total{export=\"a\",command=\"read\",result=\"EIO\"} 1",
            "nbd_requests_total{export=\"a\",command=\"write\",result=\"other\"} 1",
            "nbd_request_bytes_total{export=\"a\",command=\"read\"} 4608",
            "nbd_request_duration_seconds_bucket{export=\"a\",command=\"read\",le=\"0.00005\"} 1",
            "nbd_request_duration_seconds_bucket{export=\"a\",command=\"read\",le=\"5\"} 2",
            "nbd_request_duration_seconds_bucket{export=\"a\",command=\"read\",le=\"+Inf\"} 3",
            "nbd_request_duration_seconds_sum{export=\"a\",command=\"read\"} 6.000101",
            "nbd_request_duration_seconds_count{export=\"a\",command=\"read\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("\"flush\""), "nothing was flushed");
    }
}
