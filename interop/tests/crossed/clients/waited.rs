//! The asynchronous client, called from plain threads that wait.

use super::*;
use crate::{
    runtimes::Own,
    waiting::{Client, ConnectOptions, Driver, flight},
};
use nbd_io::client::tasks;

/// The asynchronous client on some runtime.
pub(crate) struct On<O>(pub(crate) O);

impl<D: Driver> Client<D> {
    fn negotiated(&self) -> &tasks::Client<D::Network> {
        self
    }

    const fn one(&self) -> &Self {
        self
    }

    fn flight(&self, requests: Vec<Request>, depth: usize) -> Vec<Answer> {
        self.wait(flight::together(self, requests, depth))
    }

    fn alone(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.write_all_at(data, offset)
    }

    fn over(&self) -> bool {
        self.negotiated().is_lost()
    }
}

disk!(
    [D: Driver] Client<D>,
    Self::flight,
    Self::alone,
    Self::disconnect,
    Self::over
);

negotiation!([D: Driver] crate::waiting::Negotiation<D, Plain>, Client<D>, |client| client);
negotiation!([D: Driver] crate::waiting::Negotiation<D, Encrypted>, Client<D>, |client| client);

impl<O: Own> Kind for On<O> {
    type Disk = Client<O>;
    type Plain = crate::waiting::Negotiation<O, Plain>;
    type Encrypted = crate::waiting::Negotiation<O, Encrypted>;

    fn connect(&self, uri: &str, wanted: Wanted) -> Result<Self::Disk, Error> {
        let options = ConnectOptions::on(self.0.clone());
        let client = wanted!(options, wanted)
            .connections(wanted.connections)
            .connect(uri)?;
        assert_eq!(client.connections(), wanted.connections);
        Ok(client)
    }

    fn start(&self, uri: &Uri, certificates: Option<&Path>) -> Self::Plain {
        let options = ConnectOptions::on(self.0.clone());
        started!(options, uri, certificates)
    }

    fn start_secure(&self, uri: &Uri) -> Self::Encrypted {
        let options = ConnectOptions::on(self.0.clone());
        options.start_secure(uri).unwrap()
    }

    fn start_tls(negotiation: Self::Plain) -> Self::Encrypted {
        negotiation.start_tls().unwrap().into_result().unwrap()
    }

    fn end(self) {
        self.0.end();
    }
}
