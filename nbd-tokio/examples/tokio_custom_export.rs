//! Serves an export of the program's own: a disk whose bytes count from 0 to 255, again and again.
//!
//! ```console
//! $ cargo run -p nbd-tokio --example tokio_custom_export
//! $ nbdinfo nbd://localhost:10809
//! ```

use nbd_tokio::{
    Listener, Server,
    exports::{Export, Failure},
};
use std::{io, sync::Arc};

struct Counting;

impl Export for Counting {
    fn size(&self) -> u64 {
        1 << 30
    }

    /// Requests are carried out in the connection's task. An export that waits, for a disk or a lock,
    /// leaves this out and is called on threads for that.
    fn may_block(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = at.to_le_bytes()[0];
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let server = Server::single(Arc::new(Counting));
    server.serve(Listener::bind_tcp("localhost:10809")?).await
}
