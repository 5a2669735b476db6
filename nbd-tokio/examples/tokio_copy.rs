//! Copies one export to another with sixteen pieces in flight, and writes no zeroes that the server
//! can make itself.
//!
//! ```console
//! $ cargo run -p nbd-tokio --example tokio_copy -- nbd://localhost/disk nbd://localhost/backup
//! ```

use nbd_tokio::{Client, CommandFlags};
use std::{env, error::Error};
use tokio::task::JoinSet;

const PIECE: usize = 256 << 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [from, to] = &*arguments else {
        return Err("usage: tokio_copy URI URI".into());
    };
    let (from, to) = (
        nbd_tokio::connect(from).await?,
        nbd_tokio::connect(to).await?,
    );
    let mut in_flight = JoinSet::new();
    for offset in (0..from.size()).step_by(PIECE) {
        if in_flight.len() == 16
            && let Some(copied) = in_flight.join_next().await
        {
            copied??;
        }
        in_flight.spawn(copy(from.clone(), to.clone(), offset));
    }
    while let Some(copied) = in_flight.join_next().await {
        copied??;
    }
    to.flush().await?;
    to.disconnect().await?;
    Ok(from.disconnect().await?)
}

async fn copy(from: Client, to: Client, offset: u64) -> Result<(), nbd_tokio::Error> {
    let left = usize::try_from(from.size() - offset).unwrap_or(PIECE);
    let data = from.read(offset, left.min(PIECE)).await?;
    if data.iter().all(|byte| *byte == 0) {
        to.write_zeroes(offset, data.len() as u64, CommandFlags::NONE)
            .await
    } else {
        to.write(data, offset).await
    }
}
