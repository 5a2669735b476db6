//! The asynchronous client beyond the blocking one: many requests at once from one task, and
//! requests that are dropped.

use crate::{
    common::Outcome,
    show::{compare, size},
};
use futures_util::{FutureExt, future::try_join_all};
use nbd_io::{client::tasks::Client, runtime::Network};
use std::time::{Duration, Instant};

/// The number of requests.
const COUNT: u64 = 256;

/// The length of each of them, in bytes.
const LEN: u64 = 4096;

/// Reads at many places. Only in the tour's own export, `still`, it is certain that a second read
/// finds the same data.
pub(crate) async fn many<R: Network>(client: &Client<R>, still: bool) -> Outcome<()> {
    let blocks = client.size() / LEN;
    if blocks == 0 {
        return Ok(());
    }
    let offsets = (0..COUNT).map(|count| count * 7919 % blocks * LEN);
    let len = usize::try_from(LEN)?;

    let start = Instant::now();
    let mut in_turn = Vec::new();
    for offset in offsets.clone() {
        in_turn.push(client.read(offset, len).await?);
    }
    let slow = start.elapsed();
    let start = Instant::now();
    let at_once = try_join_all(offsets.clone().map(|offset| client.read(offset, len))).await?;
    let fast = start.elapsed();
    println!(
        "{COUNT} reads of {} from one task: {} one after the other, {} at once",
        size(LEN),
        milliseconds(slow),
        milliseconds(fast)
    );

    // Each future is polled once, which sends its request, and dropped.
    let dropped = offsets.clone().filter(|offset| {
        let given_up = client.read(*offset, len).now_or_never();
        given_up.is_none()
    });
    let dropped = dropped.count();
    let after = try_join_all(offsets.clone().map(|offset| client.read(offset, len))).await?;
    if still {
        for (at, offset) in offsets.enumerate() {
            compare(offset, &at_once[at], &in_turn[at])?;
            compare(offset, &after[at], &in_turn[at])?;
        }
    }
    println!(
        "{dropped} reads were dropped before their answers came, and {} after them were answered\n",
        after.len()
    );
    Ok(())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
