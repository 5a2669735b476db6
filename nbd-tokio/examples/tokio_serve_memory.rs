//! Serves an empty disk in memory until the program is interrupted.
//!
//! ```console
//! $ cargo run -p nbd-tokio --example tokio_serve_memory
//! $ nbdinfo nbd://localhost:10809
//! ```

use nbd_tokio::{Listener, Server, exports::Memory};
use std::{io, sync::Arc};

#[tokio::main]
async fn main() -> io::Result<()> {
    let server = Server::single(Arc::new(Memory::new(1 << 30)));
    let stopper = server.stopper();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.stop();
        }
    });
    server.serve(Listener::bind_tcp("localhost:10809")?).await
}
