//! `nbd serve`: disks for clients.

mod child;
mod disks;
mod limits;
mod listen;
mod metrics;
mod named;
mod notify;
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
use crate::connect::seconds;
use clap::{Args, ValueEnum};
use std::{ffi::OsString, time::Duration};

/// Serve files, block devices, directories and disks in memory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nbd serve disk.img                          at localhost, until Ctrl-C
  nbd serve -r --unix /tmp/nbd.sock a=disk1 b=disk2
  nbd serve --overlay disk.img -- qemu-system-x86_64 -drive 'file=$NBD_URI'")]
pub(crate) struct Serve {
    #[command(flatten)]
    disks: Disks,
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    notify: Notify,
    /// Write the changes of overlays to the disks: at the `end`, or on SIGUSR1 only (`signal`).
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true)]
    #[arg(
        requires = "overlay",
        default_missing_value = "end",
        hide_possible_values = true
    )]
    commit: Option<Commit>,
    /// A command that gets the variable NBD_URI. The server ends with it, and exits as it does.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Answer Prometheus at this TCP address, as --listen has it, under /metrics.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<TcpAddress>,
    /// Seconds that requests in progress may take when the server stops.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    grace: Duration,
    #[arg(long, hide = true, default_value = "blocking")]
    runtime: Runtime,
}

/// What the server runs on.
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
    fn commits_in_the_end(&self) -> bool {
        self.commit == Some(Commit::End)
    }
}
