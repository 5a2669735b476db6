//! Serves a disk to clients with TLS alone, and uses it.
//!
//! The directory has `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, for `localhost`;
//! `docs/certificates.md` says how to make them.
//!
//! ```console
//! $ cargo run -p nbd-async-std --example async_std_tls -- DIRECTORY
//! ```

use async_std::task;
use nbd_async_std::{ClientTls, ConnectOptions, Listener, Server, ServerTls, exports::Memory};
use std::{env, error::Error, path::PathBuf, sync::Arc};

fn main() -> Result<(), Box<dyn Error>> {
    task::block_on(async {
        let directory = env::args_os()
            .nth(1)
            .ok_or("usage: async_std_tls DIRECTORY")?;
        let directory = PathBuf::from(directory);

        let tls = ServerTls::from_directory(&directory)?;
        let server = Server::single(Arc::new(Memory::new(1 << 20))).require_tls(&tls)?;
        let stopper = server.stopper();
        let listeners = Listener::bind_tcp("localhost:0")?;
        let port = listeners[0].local_addr()?.port();
        let serving = task::spawn(async move { server.serve(listeners).await });

        let tls = ClientTls::new().roots_file(directory.join("ca-cert.pem"))?;
        let options = ConnectOptions::new().tls(tls);
        let disk = options.connect(&format!("nbds://localhost:{port}")).await?;
        disk.write(&b"secret"[..], 0).await?;
        eprintln!(
            "{:?}, encrypted: {}",
            disk.read(0, 6).await?,
            disk.is_encrypted()
        );
        disk.disconnect().await?;

        stopper.stop();
        Ok(serving.await?)
    })
}
