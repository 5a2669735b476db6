//! The results, as a table or as lines of JSON.

use super::{Op, Pattern, Task};
use crate::{
    outcome::{Context, Result, say},
    output,
    range::Unreachable,
    size::Size,
};
use nbd_workload::Measured;
use serde::Serialize;
use std::time::Duration;

/// The figures of one worker.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) measured: Measured,
    /// Processor time; `None` if it cannot be separated from other workers'.
    pub(super) cpu: Option<Duration>,
}

/// The results of all workers together.
#[derive(Debug)]
pub(super) struct Row {
    measured: Measured,
    cpu: Option<Duration>,
    took: Duration,
    unreachable: Option<Unreachable>,
}

impl Row {
    pub(super) fn new(took: Duration, workers: Vec<Figures>) -> Self {
        let mut row = Self {
            measured: Measured::default(),
            cpu: Some(Duration::ZERO),
            took,
            unreachable: None,
        };
        for worker in workers {
            row.measured.merge(worker.measured);
            row.cpu = row.cpu.zip(worker.cpu).map(|(all, one)| all + one);
        }
        row
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
    pub(super) fn add(&mut self, task: &Task, row: Row) -> Result<()> {
        if let Some(missing) = row
            .unreachable
            .filter(|missing| self.said != Some(*missing))
        {
            self.said = Some(missing);
            say(format_args!("{missing}"));
        }
        let line = line(task, &row);
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
        let what = match task.op {
            Op::Connect => "connect".to_owned(),
            _ => format!(
                "{} {} {} x{}",
                line.op,
                format!("{:?}", task.workload.pattern).to_lowercase(),
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
        let moved = match task.op {
            Op::Connect => "-".to_owned(),
            _ => format!("{:.1}", line.gbps * 1e3),
        };
        output::print(&format!(
            "{what:<26} {:>10.0} {moved:>9} {:>9.1} {:>9.1} {:>9.1} {cpu:>9}\n",
            line.iops, line.p50_us, line.p99_us, line.p999_us
        ))
    }
}

fn line(task: &Task, row: &Row) -> Line {
    let workload = &task.workload;
    let requests = row.measured.requests;
    let bytes = match task.op {
        Op::Connect => 0,
        _ => requests * workload.block_size,
    };
    let secs = row.took.as_secs_f64();
    let per_second = |number: u64| number as f64 / secs;
    let cpu = row.cpu.map(|cpu| cpu.as_secs_f64());
    let micros = |part| row.measured.latencies.quantile(part).as_secs_f64() * 1e6;
    let gib = bytes as f64 / f64::from(1 << 30);
    Line {
        schema: output::SCHEMA,
        op: format!("{:?}", task.op).to_lowercase(),
        pattern: match workload.pattern {
            Pattern::Sequential => "seq",
            Pattern::Random => "rand",
        }
        .to_owned(),
        bs: workload.block_size,
        qd: workload.depth,
        conns: workload.connections,
        ops: requests,
        bytes,
        secs,
        iops: per_second(requests),
        gbps: per_second(bytes) / 1e9,
        p50_us: micros(0.5),
        p90_us: micros(0.9),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
        max_us: micros(1.0),
        cpu_secs: cpu,
        cpu_secs_per_gib: cpu.filter(|_| bytes > 0).map(|cpu| cpu / gib),
    }
}
