//! `nbd bench`: the speed of a server, a network and this machine.

mod blocking;
mod results;
mod tasks;

use crate::{
    connect::{Connect, Opened, seconds},
    embedded::Embedded,
    outcome::{Answer, Context, Error, Result},
    size,
    target::Target,
};
use clap::{Args, ValueEnum};
use nbd_blocking::{
    Uri,
    exports::{Export, Memory},
};
use nbd_workload::{Limit, Pattern, Workload};
use results::{Results, Row};
use std::{sync::Arc, time::Duration};

/// The disk in this process that is measured without a URI, in bytes.
const SIZE: u64 = 256 << 20;

/// Measure how fast an export can be used.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --op some usual workloads are measured one after the other: only reads,
unless the disk's contents may be destroyed. Without a URI this machine is
measured, by a server in this process.

Examples:
  nbd bench --time 0.1
  nbd bench nbd://localhost/disk
  nbd bench --op read --pattern random --bs 4K --depth 64 --connections 4 URI
  nbd bench --op mix --reads 70 --destroy-data --json URI")]
pub(crate) struct Bench {
    /// A URI, a file or a block device.
    target: Option<Target>,
    /// One operation: read, write, mix or connect.
    ///
    /// `mix` is reads and writes, and `connect` is to connect, enter the export and disconnect.
    #[arg(long, value_enum, hide_possible_values = true)]
    op: Option<Op>,
    /// Offsets: random or sequential.
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "random",
        hide_possible_values = true
    )]
    pattern: Offsets,
    /// Bytes of each request.
    #[arg(long, alias = "block-size", value_name = "BYTES", default_value = "4K", value_parser = size::parse)]
    bs: u64,
    /// Requests in flight on each connection.
    #[arg(long, alias = "qd", value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Number of connections.
    ///
    /// Each has a thread or a task of its own.
    #[arg(long, alias = "conns", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Share of reads in a mix.
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,
    /// Use only the first BYTES of the disk.
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    span: Option<u64>,
    /// Seconds for each workload.
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    time: Duration,
    /// Measure until BYTES were moved instead.
    #[arg(long, value_name = "BYTES", value_parser = size::parse_positive, conflicts_with = "time")]
    bytes: Option<u64>,
    /// Measure until N requests were made instead.
    ///
    /// Or N connections, with `--op connect`.
    #[arg(long, value_name = "N", conflicts_with_all = ["time", "bytes"], value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Let writes destroy the data of the disk.
    #[arg(long)]
    destroy_data: bool,
    /// Print a line of JSON for each workload.
    #[arg(long)]
    json: bool,
    /// The one of this project's clients to measure.
    #[arg(long, value_enum, default_value = "blocking", hide = true)]
    runtime: Runtime,
    #[command(flatten)]
    connect: Connect,
}

/// The measured operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Op {
    Read,
    Write,
    /// Reads and writes.
    Mix,
    /// To connect, enter the export and disconnect.
    Connect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Offsets {
    #[value(alias = "seq")]
    Sequential,
    #[value(alias = "rand")]
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// A thread for each connection.
    Blocking,
    /// Tokio with one thread for all.
    Tokio,
    /// Tokio with a thread for each processor.
    TokioMulti,
    #[cfg(feature = "async-std")]
    AsyncStd,
}

/// One thing to be measured.
#[derive(Clone, Copy, Debug)]
struct Task {
    op: Op,
    /// Only its connections and its limit hold if the operation is to connect.
    workload: Workload,
}

impl Task {
    fn only_connects(&self) -> bool {
        self.op == Op::Connect
    }
}

impl Bench {
    pub(crate) fn run(self) -> Result {
        let Opened { uri, embedded } = match &self.target {
            Some(Target::Path(path)) if self.destroy_data => {
                Opened::embedded(Embedded::file(path, true)?)
            }
            Some(target) => Connect::open(Some(target))?,
            None => scratch()?,
        };
        let may_write = self.destroy_data || self.target.is_none();
        if !may_write && matches!(self.op, Some(Op::Write | Op::Mix)) {
            return Err(Error::new(
                "writing destroys the data of the disk: give --destroy-data to allow that",
            ));
        }
        if self.bs == 0 || self.bs > 64 << 20 {
            return Err(Error::new(format!(
                "expected --bs from 1 to 64M, got {}",
                self.bs
            )));
        }
        let mut results = Results::new(self.json);
        for task in self.tasks(may_write) {
            let row = self.measure(&uri, &task)?;
            results.add(&task, row)?;
        }
        drop(embedded);
        Ok(Answer::Yes)
    }

    fn measure(&self, uri: &Uri, task: &Task) -> Result<Row> {
        let mut tokio = match self.runtime {
            Runtime::Blocking => {
                return blocking::measure(self.connect.options()?, uri, task);
            }
            #[cfg(feature = "async-std")]
            Runtime::AsyncStd => {
                let options = self.connect.options::<nbd_async_std::AsyncStd, _>()?;
                return async_std::task::block_on(tasks::measure(options, uri, task, false));
            }
            Runtime::Tokio => tokio::runtime::Builder::new_current_thread(),
            Runtime::TokioMulti => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = tokio.enable_all().build();
        runtime
            .step(|| "cannot start the runtime")?
            .block_on(async {
                let options = self.connect.options::<nbd_tokio::Tokio, _>()?;
                tasks::measure(options, uri, task, self.runtime == Runtime::Tokio).await
            })
    }

    fn tasks(&self, may_write: bool) -> Vec<Task> {
        let limit = match (self.bytes, self.ops) {
            (Some(bytes), _) => Limit::Requests((bytes / self.bs).max(1)),
            (None, Some(ops)) => Limit::Requests(ops),
            (None, None) => Limit::Time(self.time),
        };
        let task = |op, pattern, block_size, depth| Task {
            op,
            workload: Workload {
                op: match op {
                    Op::Read | Op::Connect => nbd_workload::Op::Read,
                    Op::Write => nbd_workload::Op::Write,
                    Op::Mix => nbd_workload::Op::Mix { reads: self.reads },
                },
                pattern,
                block_size,
                depth,
                connections: self.connections,
                span: self.span,
                limit,
            },
        };
        if let Some(op) = self.op {
            let pattern = match self.pattern {
                Offsets::Sequential => Pattern::Sequential,
                Offsets::Random => Pattern::Random,
            };
            return vec![task(op, pattern, self.bs, self.depth)];
        }
        let mut all = Vec::new();
        let ops = if may_write {
            [Op::Read, Op::Write].as_slice()
        } else {
            &[Op::Read]
        };
        for op in ops {
            all.extend([
                task(*op, Pattern::Random, 4 << 10, 1),
                task(*op, Pattern::Random, 4 << 10, 32),
                task(*op, Pattern::Sequential, 256 << 10, 1),
                task(*op, Pattern::Sequential, 256 << 10, 8),
            ]);
        }
        all.push(task(Op::Connect, Pattern::Random, 4 << 10, 1));
        all
    }
}

/// A disk of this process with data all over, so that reads are of data.
fn scratch() -> Result<Opened> {
    let disk = Memory::new(SIZE).with_description("a disk in memory to be measured");
    let piece = vec![0x5a; 1 << 20];
    for at in (0..SIZE).step_by(piece.len()) {
        disk.write(at, &piece, false)
            .step(|| "cannot fill a disk in memory")?;
    }
    Ok(Opened::embedded(Embedded::new(Arc::new(disk))?))
}
