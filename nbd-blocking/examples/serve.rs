//! Serves an empty disk in memory.
//!
//! ```console
//! $ cargo run --example serve -- --tcp 10809 --size 1G
//! ```

use clap::{ArgGroup, Parser};
use nbd_blocking::{
    ExportName, ServerTls,
    server::{Event, Serve, Server},
};
use nbd_io::{Memory, NamedExports};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    error::Error,
    net::TcpListener,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// Serves an empty disk in memory until it is told to stop by a signal.
#[derive(Parser)]
#[command(group(ArgGroup::new("address").required(true).multiple(true)))]
struct Arguments {
    /// Listen on a Unix socket of this name.
    #[arg(long, group = "address")]
    unix: Option<PathBuf>,
    /// Listen on this TCP port of the local host.
    #[arg(long, group = "address")]
    tcp: Option<u16>,
    /// The size in bytes, or with a suffix K, M, G or T.
    #[arg(long, default_value = "64M", value_parser = size)]
    size: u64,
    /// Refuse writes.
    #[arg(long)]
    read_only: bool,
    /// The name of the export, which is the default export all the same.
    #[arg(long, default_value = "")]
    export: ExportName,
    /// Require TLS, with `server-cert.pem` and `server-key.pem` of this directory. If there is a
    /// `ca-cert.pem`, certificates that clients show are checked against it.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Say nothing about connections.
    #[arg(long)]
    quiet: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut disk = Memory::new(arguments.size).with_description("an empty disk in memory");
    if arguments.read_only {
        disk = disk.read_only();
    }
    let name = arguments.export;
    let exports = NamedExports::new()
        .with(name.clone(), Arc::new(disk))
        .with_default(name);
    let mut server = Server::new(exports);
    if let Some(directory) = arguments.tls {
        server = server.require_tls(&ServerTls::from_directory(directory)?)?;
    }
    if !arguments.quiet {
        server = server.on_event(report);
    }

    let stopper = server.stopper();
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopper.stop();
        }
    });
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let unix = match &arguments.unix {
            Some(path) => {
                let listener = UnixListener::bind(path)?;
                Some(scope.spawn(|| server.serve_unix(listener)))
            }
            None => None,
        };
        if let Some(port) = arguments.tcp {
            server.serve_tcp(TcpListener::bind(("localhost", port))?)?;
        }
        if let Some(unix) = unix {
            unix.join().expect("the server does not panic")?;
        }
        Ok(())
    })?;
    arguments.unix.as_deref().map_or(Ok(()), remove)
}

fn remove(path: &Path) -> Result<(), Box<dyn Error>> {
    Ok(std::fs::remove_file(path)?)
}

fn report(event: &Event<'_>) {
    match event {
        Event::Connected { connection, peer } => eprintln!("{connection}: {peer} has connected"),
        Event::Entered {
            connection,
            export,
            mode,
            encrypted,
        } => {
            let tls = if *encrypted {
                "with TLS"
            } else {
                "in the clear"
            };
            eprintln!("{connection}: uses \"{export}\" {tls}, {mode:?} replies");
        }
        Event::Closed { connection, ending } => eprintln!("{connection}: {ending}"),
        Event::Refused { peer } => eprintln!("{peer} was turned away"),
        Event::AcceptFailed { error } => eprintln!("cannot accept a connection: {error}"),
        _ => {}
    }
}

/// A number of bytes, with a suffix for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        suffix => return Err(format!("\"{suffix}\" is none of K, M, G and T")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}
