//! Prints the first sector of an export.
//!
//! ```console
//! $ cargo run -p nbd-tokio --example tokio_read -- nbd://localhost/disk
//! ```

use std::{
    env,
    error::Error,
    io::{self, Write},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let uri = env::args().nth(1).ok_or("usage: tokio_read URI")?;
    let disk = nbd_tokio::connect(&uri).await?;
    let sector = disk.read(0, 512).await?;
    disk.disconnect().await?;
    io::stdout().write_all(&sector)?;
    Ok(())
}
