//! The common part of the examples called `load` of all runtimes.

use clap::{Args, ValueEnum};
use nbd_proto::{ExportName, Uri};
use serde_json::{Map, json};
use std::{path::PathBuf, time::Duration};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The server's Unix socket.
    #[arg(long, required_unless_present = "tcp", conflicts_with = "tcp")]
    pub(crate) unix: Option<PathBuf>,
    /// The server's HOST:PORT.
    #[arg(long)]
    pub(crate) tcp: Option<String>,
    #[arg(long, default_value = "")]
    pub(crate) export: String,
    #[arg(long, value_enum, default_value = "read")]
    pub(crate) op: Op,
    #[arg(long, value_enum, default_value = "seq")]
    pub(crate) pattern: Pattern,
    /// Bytes of each request.
    #[arg(long, default_value_t = 256 << 10)]
    pub(crate) bs: u64,
    /// Requests in flight on each connection.
    #[arg(long, default_value_t = 1)]
    pub(crate) qd: u32,
    /// Connections, each with a thread or a task of its own.
    #[arg(long, default_value_t = 1)]
    pub(crate) conns: u32,
    /// Bytes to move, over all connections.
    #[arg(long, default_value_t = 1 << 32)]
    pub(crate) bytes: u64,
    /// Connections to make with `--op connect`.
    #[arg(long, default_value_t = 1000)]
    pub(crate) ops: u64,
    /// Bytes of the export to use, from its start.
    #[arg(long)]
    pub(crate) span: Option<u64>,
    /// Measures the latency of each request.
    #[arg(long)]
    pub(crate) lat: bool,
    /// TLS, with the certificates in this directory.
    #[arg(long)]
    pub(crate) tls: Option<PathBuf>,
    /// Simple replies only.
    #[arg(long)]
    pub(crate) simple: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Op {
    Read,
    Write,
    Connect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pattern {
    Seq,
    Rand,
}

impl Options {
    /// The export to use.
    pub(crate) fn uri(&self) -> Result<Uri, Failure> {
        let uri = match (&self.unix, &self.tcp) {
            (Some(path), _) => Uri::unix(path.as_os_str().as_encoded_bytes())?,
            (None, Some(tcp)) => {
                let (host, port) = tcp.rsplit_once(':').ok_or("--tcp takes HOST:PORT")?;
                Uri::tcp(host, port.parse()?)?
            }
            (None, None) => return Err("--unix or --tcp is needed".into()),
        };
        Ok(uri.with_export(ExportName::new(self.export.as_str())?))
    }

    /// The payload of a write.
    pub(crate) fn payload(&self) -> Vec<u8> {
        vec![0x5a; self.bs.try_into().unwrap_or(0)]
    }
}

/// The offsets of one worker's requests.
pub(crate) struct Offsets {
    blocks: u64,
    next: u64,
    seed: Option<u64>,
    bs: u64,
}

impl Offsets {
    /// For one of several workers on an export of `size` bytes.
    pub(crate) fn new(options: &Options, size: u64, index: usize) -> Self {
        let span = options.span.map_or(size, |span| span.min(size));
        let blocks = (span / options.bs).max(1);
        let seed = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1);
        Self {
            blocks,
            next: blocks / u64::from(options.conns.max(1)) * index as u64,
            seed: (options.pattern == Pattern::Rand).then_some(seed),
            bs: options.bs,
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        if let Some(seed) = &mut self.seed {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            return *seed % self.blocks * self.bs;
        }
        let offset = self.next % self.blocks * self.bs;
        self.next += 1;
        offset
    }
}

/// Prints the results of `tool`.
pub(crate) fn report(
    tool: &str,
    options: &Options,
    elapsed: Duration,
    ops: u64,
    latencies: &mut [f32],
) {
    let secs = elapsed.as_secs_f64();
    let bytes = if options.op == Op::Connect {
        0
    } else {
        ops * options.bs
    };
    let op = format!("{:?}", options.op).to_lowercase();
    let mut line = Map::new();
    for (name, value) in [
        ("tool", json!(tool)),
        ("op", json!(op)),
        ("bs", json!(options.bs)),
        ("qd", json!(options.qd)),
        ("conns", json!(options.conns)),
        ("ops", json!(ops)),
        ("bytes", json!(bytes)),
        ("secs", json!(secs)),
        ("iops", json!(ops as f64 / secs)),
        ("gbps", json!(bytes as f64 / secs / 1e9)),
    ] {
        line.insert(name.to_owned(), value);
    }
    latencies.sort_by(f32::total_cmp);
    for (name, part) in [
        ("p50_us", 0.5),
        ("p90_us", 0.9),
        ("p99_us", 0.99),
        ("p999_us", 0.999),
    ] {
        let at = (latencies.len() as f64 * part)
            .floor()
            .min(u32::MAX.into())
            .max(0.0);
        let at = format!("{at}").parse().unwrap_or(0_usize);
        if let Some(latency) = latencies.get(at) {
            line.insert(name.to_owned(), json!(f64::from(*latency) * 1e6));
        }
    }
    #[expect(
        clippy::print_stdout,
        reason = "the line of JSON is the purpose of this program"
    )]
    {
        println!("{}", serde_json::Value::Object(line));
    }
}
