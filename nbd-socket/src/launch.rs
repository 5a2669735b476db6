//! Using exports of servers that are started for the purpose.

use crate::{Reactor, Socket};
use nbd_io::{
    client::{
        Error,
        shared::{Client, ConnectOptions},
    },
    runtime::Network,
};
use std::{io, process::Command, sync::Arc};

/// How [`ConnectOptions`] start a server as a child process, on runtimes that have sockets of this
/// crate.
pub trait Launch<R: Network> {
    /// Starts a server that serves one connection on its standard input and output, such as
    /// `nbdkit -s`, and enters its export. The server is told to end by the end of the connection,
    /// and killed if it does not within 5 s of the last use; nobody waits for that.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, or the export cannot be entered.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind, and the server ends.
    fn connect_command(
        &self,
        command: Command,
    ) -> impl Future<Output = Result<Client<R>, Error>> + Send;

    /// Starts a server that takes a listening socket from its parent by the environment variables
    /// `LISTEN_FDS` and `LISTEN_PID`, such as `qemu-nbd` and `nbdkit` do, and enters its export.
    /// After the last use it is told to end by a signal, and killed if it does not within 5 s.
    ///
    /// # Errors
    ///
    /// Like [`connect_command`](Launch::connect_command).
    ///
    /// # Cancel safety
    ///
    /// Like [`connect_command`](Launch::connect_command).
    fn connect_activated(
        &self,
        command: &Command,
    ) -> impl Future<Output = Result<Client<R>, Error>> + Send;
}

impl<R> Launch<R> for ConnectOptions<R>
where
    R: Network + Reactor<Socket = <R as Network>::Stream>,
{
    async fn connect_command(&self, command: Command) -> Result<Client<R>, Error> {
        let program = format!("{:?}", command.get_program());
        enter(self, program, Socket::spawn(command)).await
    }

    async fn connect_activated(&self, command: &Command) -> Result<Client<R>, Error> {
        let program = format!("{:?}", command.get_program());
        enter(self, program, Socket::activate(command)).await
    }
}

async fn enter<R>(
    options: &ConnectOptions<R>,
    to: String,
    started: io::Result<Socket>,
) -> Result<Client<R>, Error>
where
    R: Network + Reactor<Socket = <R as Network>::Stream>,
{
    let registered = started
        .and_then(Socket::nonblocking)
        .and_then(|socket| options.runtime().register(socket));
    let stream = registered.map_err(|source| Error::Connect {
        to,
        source: Arc::new(source),
    })?;
    options.connect_over(stream, None).await
}
