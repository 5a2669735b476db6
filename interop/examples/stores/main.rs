//! The speed of disks on an object store at some distance: `nbd serve` beside nbdkit's S3 plugin and
//! s3backer.
//!
//! ```text
//! cargo build --release -p nbd-cli --features cloud
//! cargo run --release -p nbd-interop --example stores
//! ```
//!
//! prints a table; with names behind `--`, such as `-- nbd nbdkit`, only their columns. It needs moto,
//! nbdkit with its plugin for Python and boto3, s3backer, FUSE, nbdfuse and mke2fs; `test.sh` fetches
//! moto. The variables `LATENCY` (in milliseconds) and `SIZE` (of the disk, such as `2T`) change the
//! measurement.
//!
//! Each server has a moto of its own, and between the two a line that makes each request longer by the
//! latency and counts it. It is started anew before each workload, so that nothing is in its caches.
//! All have blocks of 64 KiB. The client is the same for all: `nbd-tokio` with four connections.

#![expect(clippy::print_stdout, reason = "its purpose is to print a table")]

mod servers;
mod workloads;

use interop::{LatencyProxy, ObjectStoreServer};
use servers::{Contender, Server};
use std::{
    env, fs, io,
    time::{Duration, Instant},
};
use workloads::Workload;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Failure> = std::result::Result<T, E>;

/// One cell of the table.
struct Cell {
    took: Duration,
    /// Requests to the store, by their method.
    requests: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let latency = env::var("LATENCY").map_or(Ok(20), |text| text.parse())?;
    let latency = Duration::from_millis(latency);
    let size = env::var("SIZE").unwrap_or_else(|_| "1G".into());
    let names: Vec<_> = env::args().skip(1).collect();
    let wanted = |contender: &Contender| names.is_empty() || names.contains(&contender.to_string());
    for contender in Contender::ALL.into_iter().filter(wanted) {
        println!("{contender}, a disk of {size}, {latency:?} to the store:");
        measure(contender, latency, &size).await?;
    }
    Ok(())
}

async fn measure(contender: Contender, latency: Duration, size: &str) -> Result<()> {
    let store = ObjectStoreServer::s3().ok_or("moto is not installed")?;
    let line = LatencyProxy::new(store.address(), latency);
    let dir = tempfile::tempdir()?;
    for workload in Workload::ALL {
        let server = Server::start(contender, &store, line.address(), size, dir.path())?;
        line.reset();
        let start = Instant::now();
        let said = workload.run(server.uri(), dir.path()).await;
        let took = start.elapsed();
        let cell = Cell {
            took,
            requests: requests(&line),
        };
        let speed = match said {
            Ok(()) => workload.speed(cell.took),
            Err(failure) => format!("failed: {failure}"),
        };
        let peak = server
            .peak_memory()
            .map_or_else(String::new, |kib| format!("peak memory {} MiB", kib / 1024));
        println!(
            "  {workload:<48} {:>8.2} s  {speed:<16} {} {peak}",
            cell.took.as_secs_f64(),
            cell.requests
        );
        server.stop()?;
    }
    Ok(())
}

fn requests(line: &LatencyProxy) -> String {
    let counted = line.requests().into_iter();
    let words: Vec<_> = counted
        .map(|(method, count)| format!("{count} {method}"))
        .collect();
    words.join(", ")
}

/// The peak of a process's resident memory, in KiB.
fn peak_memory(id: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.split_whitespace().next()?.parse().ok());
    peak.ok_or_else(|| io::Error::other("a process without memory"))
}
