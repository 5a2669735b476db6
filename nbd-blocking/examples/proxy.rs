//! Serves an export of another server again, such as one that only this machine can reach.
//!
//! ```console
//! $ cargo run --release -p nbd-blocking --example proxy -- nbd://10.0.0.7/disk /tmp/nbd.sock
//! ```

use nbd_blocking::{ConnectOptions, ContextName, Listener, Reconnect, Server, exports::Remote};
use std::{env, error::Error, process::ExitCode, sync::Arc};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [uri, socket] = &*arguments else {
        eprintln!("usage: proxy URI SOCKET");
        return ExitCode::FAILURE;
    };
    match pass_on(uri, socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pass_on(uri: &str, socket: &str) -> Result<(), Box<dyn Error>> {
    let client = ConnectOptions::new()
        .context(ContextName::base_allocation())
        .connections(4)
        .reconnect(Some(Reconnect::new()))
        .connect(uri)?;
    let server = Server::single(Arc::new(Remote::new(client)));
    Ok(server.serve(Listener::bind_unix(socket)?)?)
}
