//! Using exports of servers that are started for the purpose.

#![expect(
    clippy::disallowed_types,
    reason = "nothing is started here: commands are handed on to the driver"
)]

use super::{ConnectOptions, Connector, Driver, Error, connector::Server};
use std::{ffi::OsStr, process::Command};

/// A server that is a child process of the client's.
#[derive(Debug)]
pub enum ServerProcess<'a> {
    /// It serves one connection on its standard input and output.
    Inetd(Command),
    /// It takes a listening socket from its parent, by `LISTEN_FDS` and `LISTEN_PID`.
    Activated(&'a Command),
}

impl ServerProcess<'_> {
    fn program(&self) -> &OsStr {
        match self {
            Self::Inetd(command) => command.get_program(),
            Self::Activated(command) => command.get_program(),
        }
    }
}

impl<D: Driver> ConnectOptions<D> {
    /// Starts a server that serves one connection on its standard input and output, such as `nbdkit
    /// -s`, and enters its export.
    pub fn connect_command(
        &self,
        command: Command,
    ) -> impl Future<Output = Result<D::Client, Error>> + Send {
        self.launch(ServerProcess::Inetd(command))
    }

    /// Starts a server that takes a listening socket from its parent by the environment variables
    /// `LISTEN_FDS` and `LISTEN_PID`, such as `qemu-nbd` and `nbdkit` do, and enters its export.
    pub fn connect_activated<'a>(
        &'a self,
        command: &'a Command,
    ) -> impl Future<Output = Result<D::Client, Error>> + Send {
        self.launch(ServerProcess::Activated(command))
    }

    async fn launch(&self, process: ServerProcess<'_>) -> Result<D::Client, Error> {
        self.check_single()?;
        let server = Server::Program(process.program().to_owned());
        let stream = self.driver.launch(process);
        let stream = stream.map_err(|error| Error::connect(&server, error))?;
        let connector = Connector::new(self.driver.clone(), self.config.clone(), server);
        Self::enter_once(connector, stream).await
    }
}
