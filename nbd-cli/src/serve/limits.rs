//! Limits of clients.

use crate::{connect::seconds, size::parse_positive};
use clap::{Args, builder::RangedU64ValueParser};
use nbd_blocking::nbd_io::{
    runtime::Tasks,
    server::{Rate, Server},
};
use std::time::Duration;

/// Limits of the server and of each of its clients.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct Limits {
    /// Connections.
    ///
    /// One more displaces one that has been idle for five minutes.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive::<usize>())]
    max_connections: usize,
    /// Connections of one host (a client).
    ///
    /// Or of one virtual machine.
    #[arg(long, value_name = "N", value_parser = positive::<usize>())]
    client_connections: Option<usize>,
    /// Memory for data.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_positive)]
    max_memory: u64,
    /// Memory for a connection's data.
    ///
    /// Also the limit of one request.
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_positive)]
    connection_memory: u64,
    /// Bytes per second, read and written.
    #[arg(long, value_name = "SIZE", value_parser = parse_positive)]
    max_rate: Option<u64>,
    /// The same for each client.
    #[arg(long, value_name = "SIZE", value_parser = parse_positive)]
    client_rate: Option<u64>,
    /// Requests per second.
    #[arg(long, value_name = "N", value_parser = positive::<u64>())]
    max_requests: Option<u64>,
    /// The same for each client.
    #[arg(long, value_name = "N", value_parser = positive::<u64>())]
    client_requests: Option<u64>,
    /// Seconds for a handshake step.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    handshake_timeout: Duration,
    /// Seconds until idle clients have to leave.
    #[arg(long, value_name = "S", value_parser = seconds)]
    idle_timeout: Option<Duration>,
}

impl Limits {
    pub(super) fn apply<R: Tasks>(&self, server: Server<R>) -> Server<R> {
        server
            .max_connections(self.max_connections)
            .memory(self.max_memory)
            .in_flight(self.connection_memory)
            .handshake_timeout(Some(self.handshake_timeout))
            .idle_timeout(self.idle_timeout)
            .max_connections_per_client(self.client_connections.unwrap_or(usize::MAX))
            .rate(rate(self.max_rate, self.max_requests))
            .client_rate(rate(self.client_rate, self.client_requests))
    }
}

fn rate(bytes: Option<u64>, requests: Option<u64>) -> Rate {
    let rate = Rate::new();
    let rate = bytes.map_or(rate, |bytes| rate.bytes(bytes));
    requests.map_or(rate, |requests| rate.requests(requests))
}

fn positive<T: TryFrom<u64>>() -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(1..)
}
