//! Reads a sector each second, through restarts of the server.
//!
//! ```console
//! $ cargo run -p nbd-tokio --example tokio_reconnect -- nbd://localhost/disk
//! ```

use nbd_tokio::{ConnectOptions, Reconnect};
use std::{env, error::Error, time::Duration};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let uri = env::args().nth(1).ok_or("usage: tokio_reconnect URI")?;
    let policy = Reconnect::new().total_time(Some(Duration::from_secs(60)));
    let options = ConnectOptions::new().reconnect(Some(policy));
    let disk = options.connect(&uri).await?;
    for _ in 0..60 {
        let sector = disk.read(0, 512).await?;
        let state = disk.state();
        eprintln!("{} bytes, {state:?}", sector.len());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    disk.disconnect().await?;
    Ok(())
}
