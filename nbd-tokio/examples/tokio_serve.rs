//! Serves a file, a block device, or an empty disk in memory.
//!
//! ```console
//! $ cargo run --release -p nbd-tokio --example tokio_serve -- --tcp 10809 --size 1G
//! $ cargo run --release -p nbd-tokio --example tokio_serve -- --unix /tmp/nbd.sock --file disk.img
//! ```

#[path = "../../nbd-blocking/examples/serve/arguments.rs"]
mod arguments;
mod support;

use arguments::{Arguments, exit};
use clap::Parser;
use nbd_tokio::{Listener, Tokio};
use std::{error::Error, process::ExitCode};
use support::Flavour;

/// Serves a disk until a signal stops it.
///
/// Without an address it serves on the sockets that it was started with, as by systemd.
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
    /// The number of threads that serve: one, or one for each processor.
    #[arg(long, default_value = "multi")]
    runtime: Flavour,
}

fn main() -> ExitCode {
    exit(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let Command { arguments, runtime } = Command::parse();
    let listeners = arguments.listeners()?;
    runtime.build()?.block_on(serve(arguments, listeners))
}

async fn serve(
    arguments: Arguments,
    listeners: Vec<nbd_socket::Listener>,
) -> Result<(), Box<dyn Error>> {
    let server = arguments.server(Tokio::current())?;
    let listeners = listeners.into_iter().map(Listener::new);
    let listeners: Vec<Listener> = listeners.collect::<Result<_, _>>()?;
    Ok(server.serve(listeners).await?)
}
