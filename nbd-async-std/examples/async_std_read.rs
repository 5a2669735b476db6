//! Prints the first sector of an export.
//!
//! ```console
//! $ cargo run -p nbd-async-std --example async_std_read -- nbd://localhost/disk
//! ```

use std::{
    env,
    error::Error,
    io::{self, Write},
};

// On smol it is `smol::block_on`, and nothing else changes.
fn main() -> Result<(), Box<dyn Error>> {
    async_std::task::block_on(async {
        let uri = env::args().nth(1).ok_or("usage: async_std_read URI")?;
        let disk = nbd_async_std::connect(&uri).await?;
        let sector = disk.read(0, 512).await?;
        disk.disconnect().await?;
        io::stdout().write_all(&sector)?;
        Ok(())
    })
}
