//! Loads a server and prints one line of JSON: how many requests of a size, how fast.
//!
//! ```text
//! cargo run --release -p nbd-blocking --example load -- --unix /tmp/nbd.sock --op read --qd 16
//! ```

#![expect(
    clippy::print_stdout,
    reason = "the line of JSON is what this program is for"
)]

use clap::{Parser, ValueEnum};
use nbd_blocking::{Client, ClientTls, CommandFlags, ConnectOptions, Error, ExportName, Uri};
use serde_json::{Map, json};
use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

#[derive(Clone, Debug, Parser)]
struct Options {
    /// The server's Unix socket.
    #[arg(long, required_unless_present = "tcp", conflicts_with = "tcp")]
    unix: Option<PathBuf>,
    /// The server's HOST:PORT.
    #[arg(long)]
    tcp: Option<String>,
    #[arg(long, default_value = "")]
    export: String,
    #[arg(long, value_enum, default_value = "read")]
    op: Op,
    #[arg(long, value_enum, default_value = "seq")]
    pattern: Pattern,
    /// Bytes of each request.
    #[arg(long, default_value_t = 256 << 10)]
    bs: u64,
    /// Requests in flight on each connection.
    #[arg(long, default_value_t = 1)]
    qd: u32,
    /// Connections, each with a thread of its own.
    #[arg(long, default_value_t = 1)]
    conns: u32,
    /// Bytes to move, over all connections.
    #[arg(long, default_value_t = 1 << 32)]
    bytes: u64,
    /// Connections to make with `--op connect`.
    #[arg(long, default_value_t = 1000)]
    ops: u64,
    /// Bytes of the export to use, from its start.
    #[arg(long)]
    span: Option<u64>,
    /// Measures the latency of each request.
    #[arg(long)]
    lat: bool,
    /// TLS, with the certificates in this directory.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Simple replies only.
    #[arg(long)]
    simple: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    Read,
    Write,
    Connect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    Seq,
    Rand,
}

/// What buffers are aligned to, in bytes.
const PAGE: usize = 4096;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let start = Instant::now();
    let (ops, mut latencies) = match options.op {
        Op::Connect => connect_again_and_again(&options)?,
        Op::Read | Op::Write => move_bytes(&options)?,
    };
    report(&options, start.elapsed(), ops, &mut latencies);
    Ok(())
}

fn connect(options: &Options) -> Result<Client, Failure> {
    let mut connect = ConnectOptions::new();
    if options.simple {
        connect = connect.extended_headers(false).structured_replies(false);
    }
    if let Some(directory) = &options.tls {
        let tls = ClientTls::new()
            .directory(directory)?
            .server_name("localhost");
        connect = connect.tls(tls).tls_policy(nbd_blocking::TlsPolicy::Always);
    }
    let uri = match (&options.unix, &options.tcp) {
        (Some(path), _) => Uri::unix(path.as_os_str().as_encoded_bytes())?,
        (None, Some(tcp)) => {
            let (host, port) = tcp.rsplit_once(':').ok_or("--tcp takes HOST:PORT")?;
            Uri::tcp(host, port.parse()?)?
        }
        (None, None) => return Err("--unix or --tcp is needed".into()),
    };
    Ok(connect.connect_uri(&uri.with_export(ExportName::new(options.export.as_str())?))?)
}

fn connect_again_and_again(options: &Options) -> Result<(u64, Vec<f32>), Failure> {
    let mut latencies = Vec::new();
    for _ in 0..options.ops {
        let start = Instant::now();
        drop(connect(options)?);
        if options.lat {
            latencies.push(start.elapsed().as_secs_f32());
        }
    }
    Ok((options.ops, latencies))
}

fn move_bytes(options: &Options) -> Result<(u64, Vec<f32>), Failure> {
    let each = options.bytes / options.bs / u64::from(options.conns.max(1));
    let clients: Vec<Client> = (0..options.conns)
        .map(|_| connect(options))
        .collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        let workers: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(index, client)| scope.spawn(move || work(options, client, index, each)))
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            let latencies = worker.join().map_err(|_| "a worker panicked")??;
            all.extend(latencies);
        }
        Ok((each * u64::from(options.conns), all))
    })
}

/// Where the requests of one worker go.
struct Offsets {
    blocks: u64,
    next: u64,
    seed: Option<u64>,
    bs: u64,
}

impl Offsets {
    fn next(&mut self) -> u64 {
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

fn work(
    options: &Options,
    client: &Client,
    index: usize,
    mut left: u64,
) -> Result<Vec<f32>, Error> {
    let span = options
        .span
        .map_or_else(|| client.size(), |span| span.min(client.size()));
    let blocks = (span / options.bs).max(1);
    let seed = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1);
    let mut offsets = Offsets {
        blocks,
        next: blocks / u64::from(options.conns.max(1)) * index as u64,
        seed: (options.pattern == Pattern::Rand).then_some(seed),
        bs: options.bs,
    };
    if options.qd == 1 {
        return one_at_a_time(options, client, &mut offsets, left);
    }
    let mut latencies = Vec::new();
    let mut started = vec![Instant::now(); options.qd as usize];
    let payload = bytes::Bytes::from(vec![0x5a; options.bs.try_into().unwrap_or(0)]);
    let mut queue = client.queue();
    let mut buffers: Vec<Vec<u8>> = (0..options.qd).map(|_| vec![0; payload.len()]).collect();
    while left > 0 || queue.outstanding() > 0 {
        while left > 0 && queue.outstanding() < options.qd as usize {
            let cookie = match options.op {
                Op::Write => queue.write(offsets.next(), payload.clone(), CommandFlags::NONE)?,
                Op::Read | Op::Connect => {
                    queue.read(offsets.next(), buffers.pop().unwrap_or_default())?
                }
            };
            left -= 1;
            if options.lat {
                started[cookie.slot()] = Instant::now();
            }
        }
        let Some(completion) = queue.complete()? else {
            break;
        };
        completion.result?;
        if options.lat {
            latencies.push(started[completion.cookie.slot()].elapsed().as_secs_f32());
        }
        buffers.extend(completion.buffer);
    }
    Ok(latencies)
}

fn one_at_a_time(
    options: &Options,
    client: &Client,
    offsets: &mut Offsets,
    left: u64,
) -> Result<Vec<f32>, Error> {
    let mut latencies = Vec::new();
    // Where a page starts, as usual for blocks of disks. 16 bytes behind, where large vectors often
    // are, x86 copies at half the speed behind a TCP request's header of 28 bytes.
    let len: usize = options.bs.try_into().unwrap_or(0);
    let mut memory = vec![0x5a; len + PAGE];
    let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
    let buffer = &mut memory[start..start + len];
    for _ in 0..left {
        let start = options.lat.then(Instant::now);
        match options.op {
            Op::Write => client.write_all_at(buffer, offsets.next())?,
            Op::Read | Op::Connect => client.read_exact_at(buffer, offsets.next())?,
        }
        latencies.extend(start.map(|start| start.elapsed().as_secs_f32()));
    }
    Ok(latencies)
}

fn report(options: &Options, elapsed: Duration, ops: u64, latencies: &mut [f32]) {
    let secs = elapsed.as_secs_f64();
    let bytes = if options.op == Op::Connect {
        0
    } else {
        ops * options.bs
    };
    let op = format!("{:?}", options.op).to_lowercase();
    let mut line = Map::new();
    for (name, value) in [
        ("tool", json!("nbd-blocking")),
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
    println!("{}", serde_json::Value::Object(line));
}
