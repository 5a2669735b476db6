//! Serves a file, a block device, or an empty disk in memory.
//!
//! ```console
//! $ cargo run --release -p nbd-blocking --example serve -- --tcp 10809 --size 1G
//! $ cargo run --release -p nbd-blocking --example serve -- --unix /tmp/nbd.sock --file disk.img
//! ```

mod arguments;

use arguments::{Arguments, exit};
use clap::Parser;
use nbd_blocking::{Listener, Server, Stdio, Threads, server::CloseReason};
use std::{error::Error, process::ExitCode};

/// Serves a disk until a signal stops it.
///
/// Without an address it serves on the sockets that it was started with, as by systemd.
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
    /// Serve one client on standard input and output.
    #[arg(long, conflicts_with = "address")]
    stdio: bool,
}

fn main() -> ExitCode {
    exit(serve(&Command::parse()))
}

fn serve(Command { arguments, stdio }: &Command) -> Result<(), Box<dyn Error>> {
    if *stdio {
        let server = Server::from(arguments.server(Threads::default())?);
        return match server.serve_over(Stdio)? {
            CloseReason::Io(error) => Err(error.into()),
            ending if ending.is_clean() => Ok(()),
            ending => Err(ending.to_string().into()),
        };
    }
    let listeners = arguments.listeners()?.into_iter().map(Listener::new);
    let listeners: Vec<Listener> = listeners.collect::<Result<_, _>>()?;
    let server = Server::from(arguments.server(Threads::default())?);
    Ok(server.serve(listeners)?)
}
