//! The clients, behind the traits of the suite.

#[macro_use]
mod alike;
mod blocking;
mod waited;

use crate::waiting::flight::{Answer, Request};
use nbd_io::{
    client::{Error, StatusRun},
    tls::ClientTls,
};
use nbd_proto::{
    CommandFlags, ContextName, ExportInfo, ExportName, HeaderStyle, OptionError, Uri,
    client::{Context, ContextExtents, Encrypted, Go, ListEntry, MetaContextEntry, Plain},
};
use std::{ops::Range, path::Path};

pub(crate) use blocking::Blocking;
pub(crate) use waited::On;

/// The options of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) mode: HeaderStyle,
    pub(crate) connections: usize,
}

/// A client of some kind.
pub(crate) trait Kind: 'static {
    type Disk: Disk;
    type Plain: Negotiation<Disk = Self::Disk>;
    type Encrypted: Negotiation<Disk = Self::Disk>;

    /// Enters an export, with the meta contexts of [`CONTEXTS`].
    fn connect(&self, uri: &str, wanted: Wanted) -> Result<Self::Disk, Error>;

    /// Negotiates step by step, in the clear at first. `certificates` are for later.
    fn start(&self, uri: &Uri, certificates: Option<&Path>) -> Self::Plain;

    /// Negotiates step by step inside TLS.
    fn start_secure(&self, uri: &Uri) -> Self::Encrypted;

    fn start_tls(negotiation: Self::Plain) -> Self::Encrypted;

    /// Waits until none of its tasks is left.
    fn end(self);
}

/// Those that the exports have, and one that none has.
pub(crate) const CONTEXTS: [&str; 3] = ["base:allocation", "x-spy:parity", "other:context"];

pub(crate) fn context(name: &str) -> ContextName {
    ContextName::new(name).unwrap()
}

/// A connection in negotiation.
pub(crate) trait Negotiation: Sized {
    type Disk;

    fn mode(&self) -> HeaderStyle;
    fn list(&mut self) -> Result<Vec<ListEntry>, Error>;
    fn info(&mut self, export: &str) -> Result<ExportInfo, Error>;
    fn structured_reply(&mut self) -> Result<(), Error>;
    fn extended_headers(&mut self) -> Result<(), Error>;
    fn list_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<MetaContextEntry>, Error>;
    fn set_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<Context>, Error>;
    fn go(self, export: &str) -> Result<Self::Disk, (Self, OptionError)>;
    fn export_name(self, export: &ExportName) -> Result<Self::Disk, Error>;
    fn abort(self);
}

/// An export that was entered.
pub(crate) trait Disk: Send + Sync {
    fn export(&self) -> &ExportInfo;
    fn mode(&self) -> HeaderStyle;
    fn contexts(&self) -> &[Context];
    fn is_encrypted(&self) -> bool;
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error>;
    fn read_with(&self, offset: u64, len: usize, flags: CommandFlags) -> Result<Vec<u8>, Error>;
    fn write(&self, offset: u64, data: &[u8], flags: CommandFlags) -> Result<(), Error>;
    fn flush(&self) -> Result<(), Error>;
    fn trim(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error>;
    fn cache(&self, offset: u64, len: u64) -> Result<(), Error>;
    fn write_zeroes(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error>;
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error>;
    fn block_status_of(
        &self,
        ids: &[u32],
        offset: u64,
        len: u64,
    ) -> Result<Vec<ContextExtents>, Error>;
    fn extents(&self, range: Range<u64>) -> Result<Vec<StatusRun>, Error>;

    /// Has requests carried out, up to `depth` at once, by a single thread. The answers are in
    /// their order.
    fn together(&self, requests: Vec<Request>, depth: usize) -> Vec<Answer>;

    /// Writes, and waits only for the reply. If that is ESHUTDOWN, the blocking client would
    /// otherwise disconnect, and first wait for requests in flight.
    fn write_alone(&self, offset: u64, data: &[u8]) -> Result<(), Error>;

    fn disconnect(&self) -> Result<(), Error>;
    fn is_lost(&self) -> bool;
}
