//! Settings that commands for whole disks share.

use crate::{
    connect::Connect,
    disk::Access,
    progress::{Mode, Progress},
    size,
};
use clap::Args;
use nbd_tokio::nbd_io::client::Reconnect;
use std::thread;

/// The most threads.
const THREADS: usize = 2;

/// Settings of work on whole disks.
#[derive(Args, Clone, Debug)]
pub(crate) struct Transfer {
    /// Connections to each server [default: 2 or 4].
    ///
    /// By default 2 to a server on this machine, which shares the processors, 4 to another one, and one to a
    /// server that does not allow several. If the number is given, a server that takes fewer is an error.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: Option<u16>,
    /// Requests in flight [default: as few as are fast].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    requests: Option<u16>,
    /// The threads, by default half as many as there are processors, but no more than 2.
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Length of a request.
    ///
    /// A power of two from 4K to 32M.
    #[arg(long, value_name = "SIZE", default_value = "512K", value_parser = request_size)]
    request_size: u64,
    /// Attempts to connect again.
    ///
    /// They are made if a server cannot be reached at first, and after each loss of a connection.
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: u32,
    /// Show progress as bar, json or none.
    ///
    /// `bar` on a terminal, unless another way is given; `json` prints a line of JSON on standard error
    /// each second.
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
    progress: Option<Mode>,
    #[command(flatten)]
    connect: Connect,
}

impl Transfer {
    /// Threads share the connections of both sides. Between two servers they leave processors to
    /// these; a file is read or written by the threads themselves.
    pub(crate) fn threads(&self, has_file: bool) -> usize {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let fitting = if has_file { processors } else { processors / 2 }.min(THREADS);
        let threads = self.threads.map_or(fitting, usize::from);
        match self.connections.map(usize::from) {
            // Each has as many of the connections as the others.
            Some(connections) if !connections.is_multiple_of(threads.max(1)) => 1,
            _ => threads.max(1),
        }
    }

    /// Whether fewer connections will do.
    pub(crate) const fn may_be_fewer(&self) -> bool {
        self.connections.is_none()
    }

    /// Number of requests under way at once, if the user has set it.
    pub(crate) fn requests(&self) -> Option<usize> {
        self.requests.map(usize::from)
    }

    pub(crate) const fn request_size(&self) -> u64 {
        self.request_size
    }

    pub(crate) fn progress(&self, quiet: bool) -> Progress {
        Progress::new(self.progress, quiet)
    }

    /// The way to a disk of each of so many threads.
    pub(crate) fn access(&self, threads: usize) -> Access {
        let retries = (self.retries > 0).then_some(self.retries);
        Access {
            connect: self.connect.clone(),
            connections: self.connections.map(usize::from),
            threads,
            reconnect: retries.map(|retries| Reconnect::new().attempts(Some(retries))),
            only: None,
        }
    }
}

fn request_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        len if (4096..=32 << 20).contains(&len) && len.is_power_of_two() => Ok(len),
        _ => Err("expected a power of two from 4K to 32M".to_owned()),
    }
}
