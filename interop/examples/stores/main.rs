//! The speed of disks on an object store at some distance: `nbd serve` beside nbdkit's S3 plugin and
//! s3backer.
//!
//! ```text
//! cargo build --release -p nbd-cli --features cloud
//! cargo run --release -p nbd-interop --example stores
//! ```
//!
//! prints a table, and the peak of the memory of `nbd` that serves a terabyte. With names behind `--`,
//! such as `-- nbd nbdkit` or `-- memory`, it prints only their parts. It needs
//! nbdkit with its plugin for Python and boto3, s3backer, FUSE, nbdfuse, nbdcopy and mke2fs. The
//! variables `LATENCY` (in milliseconds), `SIZE` (of the disk, such as `2T`), `CONNECTIONS` (of the client)
//! and `THREADS` (of nbdkit, for each of these) change the measurement.
//! `STORE=moto` takes moto, which `test.sh` fetches, in place of the store in this program's memory.
//!
//! Each server has a store of its own, which answers each request after the latency. It is started
//! anew before each workload, so that nothing is in its caches. All have blocks of 64 KiB. The client
//! is the same for all: `nbd-tokio` with four connections unless set.

#![expect(clippy::print_stdout, reason = "its purpose is to print a table")]

mod servers;
mod store;
mod workloads;

use interop::Traffic;
use servers::{Contender, Server};
use std::{
    env,
    time::{Duration, Instant},
};
use store::Store;
use workloads::Workload;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Failure> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    let latency = env::var("LATENCY").map_or(Ok(20), |text| text.parse())?;
    let latency = Duration::from_millis(latency);
    let size = env::var("SIZE").unwrap_or_else(|_| "1G".into());
    let names: Vec<_> = env::args().skip(1).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if wanted("memory") {
        terabyte(latency).await?;
    }
    let mut columns = Vec::new();
    for contender in Contender::ALL {
        if !wanted(&contender.to_string()) {
            continue;
        }
        println!("{contender}, a disk of {size}, {latency:?} to the store:");
        columns.push((contender, measure(contender, latency, &size).await?));
    }
    if columns.is_empty() {
        return Ok(());
    }
    print!("\n| |");
    columns.iter().for_each(|(name, _)| print!(" {name} |"));
    print!("\n|---|");
    columns.iter().for_each(|_| print!("---:|"));
    println!();
    for (row, workload) in Workload::ALL.into_iter().enumerate() {
        print!("| {workload} |");
        columns
            .iter()
            .for_each(|(_, cells)| print!(" {} |", cells[row]));
        println!();
    }
    Ok(())
}

/// Shows the memory of `nbd` that serves a large disk, with its limits as they are unless set.
async fn terabyte(latency: Duration) -> Result<()> {
    const REQUESTS: u32 = 20_000;
    let store = Store::new(latency)?;
    let dir = tempfile::tempdir()?;
    let server = Server::start(Contender::Nbd, &store, "1T", dir.path())?;
    let before = server.peak_memory().ok_or("the server has ended")?;
    store.reset();
    let start = Instant::now();
    workloads::mixed(server.uri(), REQUESTS).await?;
    let took = start.elapsed();
    let after = server.peak_memory().ok_or("the server has ended")?;
    println!(
        "nbd, a sparse disk of 1T, {latency:?} to the store: {REQUESTS} reads and writes of 4 to 256 KiB, \
         64 at once: {:.1} s, {}{}; peak memory {} MiB, {} MiB before",
        took.as_secs_f64(),
        requests(&store.traffic()),
        details(None, &store.traffic()),
        after / 1024,
        before / 1024,
    );
    server.stop()
}

/// The cells of a column.
async fn measure(contender: Contender, latency: Duration, size: &str) -> Result<Vec<String>> {
    let store = Store::new(latency)?;
    let dir = tempfile::tempdir()?;
    let mut cells = Vec::new();
    for workload in Workload::ALL {
        if workload == Workload::FIRST_READ {
            store.set_latency(Duration::ZERO);
            let server = Server::start(contender, &store, size, dir.path())?;
            workloads::fill(server.uri()).await?;
            server.stop()?;
            store.set_latency(latency);
        }
        if !contender.does(workload) {
            cells.push(String::new());
            continue;
        }
        let server = Server::start(contender, &store, size, dir.path())?;
        workload.prepare(server.uri()).await?;
        store.reset();
        let start = Instant::now();
        let said = workload.run(server.uri(), dir.path()).await;
        let took = start.elapsed();
        let traffic = store.traffic();
        let peak = server
            .peak_memory()
            .map_or_else(String::new, |kib| format!("peak memory {} MiB", kib / 1024));
        let cell = match said {
            Ok(()) => format!("{}, {}", workload.speed(took), requests(&traffic)),
            Err(failure) => format!("failed: {failure}"),
        };
        println!(
            "  {workload:<44} {:>7.2} s  {cell}; {peak}{}",
            took.as_secs_f64(),
            details(workload.requests(), &traffic)
        );
        cells.push(cell);
        server.stop()?;
    }
    Ok(cells)
}

fn requests(traffic: &Traffic) -> String {
    let words: Vec<_> = traffic
        .requests
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    match &words[..] {
        [] => "no request".into(),
        words => words.join(", "),
    }
}

/// The data that went to a store in memory and from it, and its requests for each request of NBD.
fn details(count: Option<u64>, traffic: &Traffic) -> String {
    let Traffic {
        requests,
        received,
        sent,
        most_in_flight,
        ..
    } = traffic;
    let mut text = String::new();
    if let Some(count) = count {
        let all: u64 = requests.values().sum();
        let (all, count) = (u32::try_from(all), u32::try_from(count));
        if let (Ok(all), Ok(count)) = (all, count) {
            let each = f64::from(all) / f64::from(count);
            text = format!("; {each:.2} requests for each of NBD");
        }
    }
    if *most_in_flight > 0 {
        let (put, got) = (received >> 20, sent >> 20);
        text += &format!("; {put} MiB put, {got} MiB got, at most {most_in_flight} in flight");
    }
    text
}
