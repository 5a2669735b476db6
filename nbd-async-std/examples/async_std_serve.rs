//! Serves a file, a block device, or an empty disk in memory.
//!
//! ```console
//! $ cargo run --release -p nbd-async-std --example async_std_serve -- --tcp 10809 --size 1G
//! $ cargo run --release -p nbd-async-std --example async_std_serve -- --unix /tmp/nbd.sock --file disk.img
//! ```

#[path = "../../nbd-blocking/examples/serve/arguments.rs"]
mod arguments;

use arguments::{Arguments, exit};
use clap::Parser;
use nbd_async_std::{AsyncStd, Listener};
use std::{error::Error, process::ExitCode};

/// Serves a disk until a signal stops it.
///
/// Without an address it serves on the sockets that it was started with, as by systemd.
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    exit(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let Command { arguments } = Command::parse();
    let listeners = arguments.listeners()?;
    async_std::task::block_on(serve(arguments, listeners))
}

async fn serve(
    arguments: Arguments,
    listeners: Vec<nbd_socket::Listener>,
) -> Result<(), Box<dyn Error>> {
    let server = arguments.server(AsyncStd)?;
    let listeners = listeners.into_iter().map(Listener::new);
    let listeners: Vec<Listener> = listeners.collect::<Result<_, _>>()?;
    Ok(server.serve(listeners).await?)
}
