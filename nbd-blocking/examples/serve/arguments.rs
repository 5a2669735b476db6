//! The common part of the examples called `serve` of all runtimes.

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
use std::{
    error::Error,
    fmt,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

#[derive(Args)]
#[command(group(ArgGroup::new("disk")), group(ArgGroup::new("address").multiple(true)))]
pub(crate) struct Arguments {
    /// Listen on a Unix socket of this name.
    #[arg(long, group = "address")]
    unix: Option<PathBuf>,
    /// Listen on this TCP port, at all addresses of the local host; with 0 the system chooses one,
    /// which is printed.
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
    /// Serve so many clients at once; one more takes the place of the one that was idle the longest.
    #[arg(long, default_value_t = 256)]
    max_connections: usize,
    /// Keep an idle client for so many seconds when another one needs its place.
    #[arg(long, default_value_t = 300)]
    displace_idle: u64,
    /// Leave a client that is idle for so many seconds, whether its place is needed or not. An idle
    /// disk is nothing unusual, so that there is no such time unless it is given.
    #[arg(long)]
    idle_timeout: Option<u64>,
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
        let mut server = Server::on_runtime(runtime, Arc::new(exports))
            .max_connections(self.max_connections)
            .displace_idle(Some(Duration::from_secs(self.displace_idle)))
            .idle_timeout(self.idle_timeout.map(Duration::from_secs));
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

    /// The listeners.
    pub(crate) fn listeners(&self) -> Result<Vec<Listener>, Box<dyn Error>> {
        let mut listeners = Vec::new();
        if let Some(path) = &self.unix {
            let bound = Listener::bind_unix(path);
            listeners.push(bound.map_err(|error| format!("{}: {error}", path.display()))?);
        }
        if let Some(port) = self.tcp {
            let bound = Listener::bind_tcp(("localhost", port))?;
            if !self.quiet || port == 0 {
                for listener in &bound {
                    say(format_args!("listens at {}", listener.local_addr()?));
                }
            }
            listeners.extend(bound);
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

/// The exit code of the program; an error is printed with all its causes.
pub(crate) fn exit(ended: Result<(), Box<dyn Error>>) -> ExitCode {
    let Err(error) = ended else {
        return ExitCode::SUCCESS;
    };
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
        source = error.source();
    }
    say(format_args!("serve: {words}"));
    ExitCode::FAILURE
}

/// Prints a line to standard error. If it cannot be printed, as when the other end of a pipe is
/// closed, the server goes on.
fn say(line: fmt::Arguments<'_>) {
    // In one piece, since each part of it would be a system call, and lines would get mixed up.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn report(event: &Event<'_>) {
    match event {
        Event::Connected { connection, peer } => {
            say(format_args!("{connection}: {peer} has connected"));
        }
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
            say(format_args!(
                "{connection}: uses \"{export}\" {tls}, {mode:?} replies"
            ));
        }
        Event::Closed { connection, ending } => say(format_args!("{connection}: {ending}")),
        Event::Refused { peer } => say(format_args!("{peer} was turned away")),
        Event::AcceptFailed { error } => {
            say(format_args!("cannot accept a connection: {error}"));
        }
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
