//! Prints the first sector of an export.
//!
//! ```console
//! $ cargo run -p nbd-blocking --example read -- nbd://localhost/disk
//! ```

use std::{
    env,
    error::Error,
    io::{self, Write},
};

fn main() -> Result<(), Box<dyn Error>> {
    let uri = env::args().nth(1).ok_or("usage: read URI")?;
    let disk = nbd_blocking::connect(&uri)?;
    let mut sector = [0; 512];
    let len = disk.read_at(&mut sector, 0)?;
    disk.disconnect()?;
    io::stdout().write_all(&sector[..len])?;
    Ok(())
}
