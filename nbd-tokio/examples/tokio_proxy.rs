//! Serves an export of another server again, with as many requests under way as its clients have.
//!
//! ```console
//! $ cargo run --release -p nbd-tokio --example tokio_proxy -- nbd://10.0.0.7/disk /tmp/nbd.sock
//! ```

use nbd_tokio::{ConnectOptions, ContextName, Listener, Reconnect, Server, exports::Remote};
use std::{env, error::Error, process::ExitCode};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [uri, socket] = &*arguments else {
        eprintln!("usage: tokio_proxy URI SOCKET");
        return ExitCode::FAILURE;
    };
    match pass_on(uri, socket).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tokio_proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn pass_on(uri: &str, socket: &str) -> Result<(), Box<dyn Error>> {
    let client = ConnectOptions::new()
        .context(ContextName::base_allocation())
        .connections(4)
        .reconnect(Some(Reconnect::new()))
        .connect(uri)
        .await?;
    let server = Server::single_async(Remote::new(client));
    Ok(server.serve(Listener::bind_unix(socket)?).await?)
}
