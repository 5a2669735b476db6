//! Serves a disk to clients with TLS alone, and uses it.
//!
//! The directory has `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, for `localhost`;
//! `docs/certificates.md` says how to make them.
//!
//! ```console
//! $ cargo run -p nbd-blocking --example tls -- DIRECTORY
//! ```

use nbd_blocking::{ClientTls, ConnectOptions, Listener, Server, ServerTls, exports::Memory};
use std::{env, error::Error, path::PathBuf, sync::Arc, thread};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::args_os().nth(1).ok_or("usage: tls DIRECTORY")?);

    let tls = ServerTls::from_directory(&directory)?;
    let server = Server::single(Arc::new(Memory::new(1 << 20))).require_tls(&tls)?;
    let stopper = server.stopper();
    let listeners = Listener::bind_tcp("localhost:0")?;
    let port = listeners[0].local_addr()?.port();
    let serving = thread::spawn(move || server.serve(listeners));

    let tls = ClientTls::new().roots_file(directory.join("ca-cert.pem"))?;
    let options = ConnectOptions::new().tls(tls);
    let disk = options.connect(&format!("nbds://localhost:{port}"))?;
    disk.write_all_at(b"secret", 0)?;
    let mut data = [0; 6];
    disk.read_exact_at(&mut data, 0)?;
    eprintln!(
        "{}, encrypted: {}",
        data.escape_ascii(),
        disk.is_encrypted()
    );
    disk.disconnect()?;

    stopper.stop();
    Ok(serving.join().expect("the server does not panic")?)
}
