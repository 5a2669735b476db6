//! What the examples called `serve` of all runtimes have in common.

use clap::{ArgGroup, Args};
use nbd_io::{
    Export, File, Memory, NamedExports,
    runtime::Tasks,
    server::{Event, Server, Stopper},
    tls::ServerTls,
};
use nbd_proto::ExportName;
use nbd_socket::Listener;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{error::Error, io, net::TcpListener, path::PathBuf, sync::Arc, thread};

#[derive(Args)]
#[command(group(ArgGroup::new("disk")), group(ArgGroup::new("address").multiple(true)))]
pub(crate) struct Arguments {
    /// Listen on a Unix socket of this name.
    #[arg(long, group = "address")]
    unix: Option<PathBuf>,
    /// Listen on this TCP port of the local host.
    #[arg(long, group = "address")]
    tcp: Option<u16>,
    /// Listen on this port of vsock, for virtual machines, their host, or this machine itself.
    #[arg(long, group = "address")]
    vsock: Option<u32>,
    /// Serve an empty disk in memory of this size in bytes, or with a suffix K, M, G or T.
    #[arg(long, group = "disk", default_value = "64M", value_parser = size)]
    size: u64,
    /// Serve this file or block device.
    #[arg(long, group = "disk")]
    file: Option<PathBuf>,
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
    /// Require TLS clients to show a certificate.
    #[arg(long, requires = "tls")]
    verify_clients: bool,
    /// Say nothing about connections.
    #[arg(long)]
    quiet: bool,
}

impl Arguments {
    fn disk(&self) -> Result<Arc<dyn Export>, Box<dyn Error>> {
        let Some(path) = &self.file else {
            let disk = Memory::new(self.size).with_description("an empty disk in memory");
            return Ok(if self.read_only {
                Arc::new(disk.read_only())
            } else {
                Arc::new(disk)
            });
        };
        let file = if self.read_only {
            File::open_read_only(path)
        } else {
            File::open(path)
        };
        let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Arc::new(file.with_description(path.display().to_string())))
    }

    /// The server, which a signal will stop.
    pub(crate) fn server<R: Tasks>(&self, runtime: R) -> Result<Server<R>, Box<dyn Error>> {
        let exports = NamedExports::new()
            .with(self.export.clone(), self.disk()?)
            .with_default(self.export.clone());
        let mut server = Server::on_runtime(runtime, Arc::new(exports));
        if let Some(directory) = &self.tls {
            let tls = ServerTls::from_directory(directory)?;
            server = server.require_tls(&tls.require_client_certificates(self.verify_clients))?;
        }
        if !self.quiet {
            server = server.on_event(report);
        }
        stop_by_signal(server.stopper())?;
        Ok(server)
    }

    /// What to listen on.
    pub(crate) fn listeners(&self) -> Result<Vec<Listener>, Box<dyn Error>> {
        let mut listeners = Vec::new();
        if let Some(path) = &self.unix {
            listeners.push(Listener::bind_unix(path)?);
        }
        if let Some(port) = self.tcp {
            listeners.push(Listener::new(TcpListener::bind(("localhost", port))?)?);
        }
        if let Some(port) = self.vsock {
            listeners.push(Listener::bind_vsock(None, port)?);
        }
        if listeners.is_empty() {
            listeners = Listener::inherited()?;
        }
        if listeners.is_empty() {
            return Err("there is nothing to listen on: give --unix, --tcp or --vsock".into());
        }
        Ok(listeners)
    }
}

fn stop_by_signal(stopper: Stopper) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopper.stop();
        }
    });
    Ok(())
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
