//! `nbd serve`: disks for clients.

mod child;
mod disks;
mod limits;
mod listen;
mod metrics;
mod named;
mod notify;
mod objects;
mod overlays;
mod owner;
mod run;
mod signals;
mod tls;

use self::{
    disks::Disks,
    limits::Limits,
    listen::{Listen, TcpAddress},
    notify::Notify,
    tls::Tls,
};
use crate::{
    connect::seconds,
    log::{Format, ServerLogging},
};
use clap::{Args, ValueEnum};
use std::{ffi::OsString, time::Duration};
use tracing_subscriber::filter::LevelFilter;

/// Serve files, block devices, directories, disks in memory or on object storage.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nbd serve disk.img                          at localhost, until Ctrl-C
  nbd serve -r --unix /tmp/nbd.sock a=disk1.img b=disk2.img
  nbd serve --directory images --tls-dir /etc/nbd --metrics :9100
  nbd serve --create 1T s3://BUCKET/PREFIX    or gs://, az://, file:///DIRECTORY
  nbd serve --overlay disk.img -- sh -c 'qemu-img info \"$NBD_URI\"'")]
pub(crate) struct Serve {
    #[command(flatten)]
    notify: Notify,
    /// Format of the log: text or json.
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    #[arg(default_value = "text", hide_default_value = true)]
    log: Format,
    /// Address for Prometheus, such as :9100.
    ///
    /// HTTP requests for /metrics are answered there.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<TcpAddress>,
    /// Seconds for connections to end.
    ///
    /// A server that is stopped waits so long for connections in use.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    grace: Duration,
    #[arg(long, hide = true, default_value = "blocking")]
    runtime: Runtime,
    #[command(flatten)]
    disks: Disks,
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    limits: Limits,
    /// Write changes to the disks: `end` or `signal`.
    ///
    /// The changes in overlays are written to the disks whenever SIGUSR1 arrives, and at the `end`
    /// unless `signal`.
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true)]
    #[arg(
        requires = "overlay",
        help_heading = "Disks",
        default_missing_value = "end",
        hide_possible_values = true
    )]
    commit: Option<Commit>,
    /// A command that uses $NBD_URI, for its time.
    ///
    /// It gets the variable NBD_URI. When it ends, the server ends with its exit code.
    #[arg(last = true, value_name = "COMMAND", help_heading = "Disks")]
    command: Vec<OsString>,
}

/// The driver that the server runs on.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Runtime {
    Blocking,
    Tokio,
    #[cfg(feature = "async-std")]
    AsyncStd,
}

/// When changes are written to the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Commit {
    // When the server ends, and whenever SIGUSR1 arrives.
    End,
    // Whenever SIGUSR1 arrives.
    Signal,
}

impl Serve {
    /// Level and format of the log unless the user asks for others. With a command, the terminal
    /// belongs to that command, which reports failures of its connections itself.
    pub(crate) fn logging(&self) -> ServerLogging {
        ServerLogging {
            level: if self.command.is_empty() {
                LevelFilter::WARN
            } else {
                LevelFilter::ERROR
            },
            format: self.log,
        }
    }

    fn commits_in_the_end(&self) -> bool {
        self.commit == Some(Commit::End)
    }
}
