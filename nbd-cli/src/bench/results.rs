//! The results, as a table or as lines of JSON.

use super::{Op, Pattern, Workload};
use crate::{
    outcome::{Context, Result, say},
    output,
    range::Unreachable,
    size::Size,
};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Latencies of requests, in nanoseconds, with three digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    recorded: Histogram<u64>,
    /// The beginning and the end of the last requests, and how many of them had both in common, as
    /// those have that are sent and answered together. They are not recorded yet.
    last: Option<(Instant, Instant)>,
    same: u64,
}

impl Latencies {
    pub(super) fn new() -> Result<Self> {
        // Up to an hour.
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        Ok(Self {
            recorded: histogram.step(|| "cannot make a histogram")?,
            last: None,
            same: 0,
        })
    }

    /// Adds that of a request that was begun and done at these times.
    #[inline(always)]
    pub(super) fn add(&mut self, begun: Instant, done: Instant) {
        if self.last != Some((begun, done)) {
            self.record();
            self.last = Some((begun, done));
        }
        self.same += 1;
    }

    fn record(&mut self) {
        if let Some((begun, done)) = self.last {
            let latency = done.saturating_duration_since(begun).as_nanos();
            let latency = u64::try_from(latency).unwrap_or(u64::MAX);
            self.recorded
                .saturating_record_n(latency, std::mem::take(&mut self.same));
        }
    }

    fn merge(&mut self, mut other: Self) -> Result<()> {
        other.record();
        let added = self.recorded.add(&other.recorded);
        added.step(|| "cannot add up latencies")
    }

    fn micros(&self, quantile: f64) -> f64 {
        Duration::from_nanos(self.recorded.value_at_quantile(quantile)).as_secs_f64() * 1e6
    }
}

/// The results of one worker.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) requests: u64,
    pub(super) latencies: Latencies,
    /// Processor time; `None` if it cannot be separated from other workers'.
    pub(super) cpu: Option<Duration>,
}

/// The results of all workers together.
#[derive(Debug)]
pub(super) struct Row {
    requests: u64,
    latencies: Latencies,
    cpu: Option<Duration>,
    took: Duration,
    unreachable: Option<Unreachable>,
}

impl Row {
    pub(super) fn new(took: Duration, workers: Vec<Measured>) -> Result<Self> {
        let mut row = Self {
            requests: 0,
            latencies: Latencies::new()?,
            cpu: Some(Duration::ZERO),
            took,
            unreachable: None,
        };
        for worker in workers {
            row.requests += worker.requests;
            row.latencies.merge(worker.latencies)?;
            row.cpu = row.cpu.zip(worker.cpu).map(|(all, one)| all + one);
        }
        Ok(row)
    }

    /// Notes the end of the export that was not measured.
    pub(super) fn without(mut self, unreachable: Option<Unreachable>) -> Self {
        self.unreachable = unreachable;
        self
    }
}

#[derive(Serialize)]
struct Line {
    schema: u32,
    op: String,
    pattern: String,
    bs: u64,
    qd: u32,
    conns: u32,
    ops: u64,
    bytes: u64,
    secs: f64,
    iops: f64,
    gbps: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_secs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_secs_per_gib: Option<f64>,
}

/// The results so far.
pub(super) struct Results {
    json: bool,
    begun: bool,
    /// The note that was printed.
    said: Option<Unreachable>,
}

impl Results {
    pub(super) const fn new(json: bool) -> Self {
        Self {
            json,
            begun: false,
            said: None,
        }
    }

    /// Prints one more.
    pub(super) fn add(&mut self, workload: &Workload, row: Row) -> Result<()> {
        if let Some(missing) = row
            .unreachable
            .filter(|missing| self.said != Some(*missing))
        {
            self.said = Some(missing);
            say(format_args!("{missing}"));
        }
        let line = line(workload, &row);
        if self.json {
            let line = serde_json::to_string(&line).step(|| "cannot print JSON")?;
            return output::print(&format!("{line}\n"));
        }
        if !self.begun {
            self.begun = true;
            output::print(&format!(
                "{:<26} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
                "workload", "per second", "MB/s", "p50 us", "p99 us", "p99.9 us", "CPU s/GiB"
            ))?;
        }
        let what = match workload.op {
            Op::Connect => "connect".to_owned(),
            _ => format!(
                "{} {} {} x{}",
                line.op,
                format!("{:?}", workload.pattern).to_lowercase(),
                Size(line.bs),
                line.qd
            ),
        };
        let what = if line.conns > 1 {
            format!("{what} c{}", line.conns)
        } else {
            what
        };
        let cpu = line
            .cpu_secs_per_gib
            .map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.3}"));
        let moved = match workload.op {
            Op::Connect => "-".to_owned(),
            _ => format!("{:.1}", line.gbps * 1e3),
        };
        output::print(&format!(
            "{what:<26} {:>10.0} {moved:>9} {:>9.1} {:>9.1} {:>9.1} {cpu:>9}\n",
            line.iops, line.p50_us, line.p99_us, line.p999_us
        ))
    }
}

fn line(workload: &Workload, row: &Row) -> Line {
    let bytes = match workload.op {
        Op::Connect => 0,
        _ => row.requests * workload.bs,
    };
    let secs = row.took.as_secs_f64();
    let per_second = |number: u64| number as f64 / secs;
    let cpu = row.cpu.map(|cpu| cpu.as_secs_f64());
    let gib = bytes as f64 / f64::from(1 << 30);
    Line {
        schema: output::SCHEMA,
        op: format!("{:?}", workload.op).to_lowercase(),
        pattern: match workload.pattern {
            Pattern::Sequential => "seq",
            Pattern::Random => "rand",
        }
        .to_owned(),
        bs: workload.bs,
        qd: workload.depth,
        conns: workload.connections,
        ops: row.requests,
        bytes,
        secs,
        iops: per_second(row.requests),
        gbps: per_second(bytes) / 1e9,
        p50_us: row.latencies.micros(0.5),
        p90_us: row.latencies.micros(0.9),
        p99_us: row.latencies.micros(0.99),
        p999_us: row.latencies.micros(0.999),
        max_us: row.latencies.micros(1.0),
        cpu_secs: cpu,
        cpu_secs_per_gib: cpu.filter(|_| bytes > 0).map(|cpu| cpu / gib),
    }
}
