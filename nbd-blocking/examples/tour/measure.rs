//! A small table of how fast it was.

use crate::{common::Outcome, show};
use nbd_blocking::{Client, CommandFlags};
use std::time::{Duration, Instant};

/// The time to measure each row.
const EACH: Duration = Duration::from_millis(400);

/// Measures and prints. Writes only if it may.
pub(crate) fn measure(rows: &[(&str, &Client)], write: bool) -> Outcome<()> {
    show::headings();
    for (name, client) in rows {
        // Written first, so that there is data to read and not just holes.
        for (what, writes) in [("write", true), ("read", false)] {
            if writes && (!write || client.export().is_read_only()) {
                continue;
            }
            let one = requests(client, 4096, 1, writes)?;
            let many = requests(client, 4096, 32, writes)?;
            let large = requests(client, 256 << 10, 8, writes)?;
            show::speed(&format!("{name}, {what}"), one, many, large);
        }
    }
    println!();
    Ok(())
}

/// Requests per second, with so many in flight.
fn requests(client: &Client, len: u64, depth: usize, writes: bool) -> Outcome<f64> {
    let area = client.size().min(64 << 20);
    let blocks = area / len;
    if blocks == 0 {
        return Ok(0.0);
    }
    let mut queue = client.queue();
    let payload = bytes::Bytes::from(vec![0x5a; len.try_into()?]);
    let mut buffers = vec![payload.to_vec(); depth];
    let (mut next, mut done) = (0, 0_u32);
    let start = Instant::now();
    loop {
        let running = start.elapsed() < EACH;
        while running && queue.outstanding() < depth {
            let offset = next * 7919 % blocks * len;
            next += 1;
            if writes {
                queue.write(payload.clone(), offset, CommandFlags::NONE)?;
            } else {
                queue.read(buffers.pop().unwrap_or_default(), offset)?;
            }
        }
        let Some(completion) = queue.complete()? else {
            break;
        };
        completion.result?;
        buffers.extend(completion.buffer);
        done += 1;
    }
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}
