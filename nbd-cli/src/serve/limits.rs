//! How much clients may take.

use crate::{connect::seconds, size};
use clap::Args;
use nbd_blocking::nbd_io::{runtime::Tasks, server::Server};
use std::time::Duration;

/// Limits of the server and of each of its clients.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct Limits {
    /// Connections at once; one more takes the place of one that was idle for five minutes.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_connections: usize,
    /// Memory for the data of all requests.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::parse)]
    max_memory: u64,
    /// Memory for the data of one connection.
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = size::parse)]
    client_memory: u64,
    /// Seconds that a client may take for each step until it uses a disk.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    handshake_timeout: Duration,
    /// Leave clients that were idle for so many seconds; without this they may stay.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle_timeout: Option<Duration>,
}

impl Limits {
    pub(super) fn apply<R: Tasks>(&self, server: Server<R>) -> Server<R> {
        server
            .max_connections(self.max_connections)
            .memory(self.max_memory)
            .in_flight(self.client_memory)
            .handshake_timeout(Some(self.handshake_timeout))
            .idle_timeout(self.idle_timeout)
    }
}
