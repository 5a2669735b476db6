//! Copies one export to another, and writes no zeroes that the server can make itself.
//!
//! ```console
//! $ cargo run -p nbd-blocking --example copy -- nbd://localhost/disk nbd://localhost/backup
//! ```

use nbd_blocking::{CommandFlags, ConnectOptions};
use std::{env, error::Error};

const PIECE: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [from, to] = &*arguments else {
        return Err("usage: copy URI URI".into());
    };
    let options = ConnectOptions::new().connections(2);
    let (from, to) = (options.connect(from)?, options.connect(to)?);
    let mut buffer = vec![0; usize::try_from(PIECE)?];
    let mut offset = 0;
    while offset < from.size() {
        let len = PIECE.min(from.size() - offset);
        let piece = &mut buffer[..usize::try_from(len)?];
        from.read_exact_at(piece, offset)?;
        if piece.iter().all(|byte| *byte == 0) {
            to.write_zeroes(offset, len, CommandFlags::NONE)?;
        } else {
            to.write_all_at(piece, offset)?;
        }
        offset += len;
    }
    to.flush()?;
    from.disconnect()?;
    to.disconnect()?;
    Ok(())
}
