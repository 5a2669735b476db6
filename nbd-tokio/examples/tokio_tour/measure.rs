//! A small table of how fast it was.

use crate::{common::Outcome, show};
use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt, stream::FuturesUnordered};
use nbd_io::{
    client::{Error, tasks::Client},
    runtime::Network,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The time to measure each row.
const EACH: Duration = Duration::from_millis(400);

/// Measures and prints. Writes only if it may.
pub(crate) async fn measure<R: Network>(rows: &[(&str, &Client<R>)], write: bool) -> Outcome<()> {
    show::headings();
    for (name, client) in rows {
        // Written first, so that there is data to read and not just holes.
        for (what, writes) in [("write", true), ("read", false)] {
            if writes && (!write || client.export().is_read_only()) {
                continue;
            }
            let one = requests(client, 4096, 1, writes).await?;
            let many = requests(client, 4096, 32, writes).await?;
            let large = requests(client, 256 << 10, 8, writes).await?;
            show::speed(&format!("{name}, {what}"), one, many, large);
        }
    }
    println!();
    Ok(())
}

/// Requests per second, with so many in flight: each is the next step of a loop, and all loops are
/// one task.
async fn requests<R: Network>(
    client: &Client<R>,
    len: u64,
    depth: usize,
    writes: bool,
) -> Outcome<f64> {
    let area = client.size().min(64 << 20);
    let blocks = area / len;
    if blocks == 0 {
        return Ok(0.0);
    }
    let payload = Bytes::from(vec![0x5a; len.try_into()?]);
    let next = AtomicU64::new(0);
    let start = Instant::now();
    let repeat = async || {
        let mut buffer = BytesMut::from(&*payload);
        let mut done = 0_u32;
        while start.elapsed() < EACH {
            let offset = next.fetch_add(1, Ordering::Relaxed) * 7919 % blocks * len;
            if writes {
                client.write(payload.clone(), offset).await?;
            } else {
                buffer = client.read_into(buffer, offset).await?;
            }
            done += 1;
        }
        Ok::<_, Error>(done)
    };
    let loops: FuturesUnordered<_> = (0..depth).map(|_| repeat()).collect();
    let done = loops.try_fold(0, async |sum, done| Ok(sum + done)).await?;
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}
