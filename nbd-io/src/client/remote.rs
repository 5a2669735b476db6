//! An export of another server.

use super::tasks::Client;
use crate::{AsyncExport, MetaContext, ReadData, ZeroMode, runtime::Network};
use bytes::Bytes;
use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, Errno, Failure, HeaderStyle, TransmissionFlags,
    client::{Context, ContextExtents},
    meta::Extent,
};

/// An export of another server, to be served again by a proxy, without a thread for each request and
/// without a copy.
///
/// Everything is passed on: commands and their flags, block sizes, the description, and the meta
/// contexts that the client has selected. A refusal of the other server is passed on with its text,
/// and a request that it does not answer in time, or whose connection is lost, fails with
/// [`Errno::Io`]. A client that [reconnects](super::ConnectOptions::reconnect) hides that for a
/// while.
///
/// After unflushed writes were lost, every flush fails, until the proxy is made of a client of a
/// [new epoch](Client::new_epoch).
///
/// All connections to the proxy share the client, whose flush covers them all. So they may be used
/// together ([`CAN_MULTI_CONN`](TransmissionFlags::CAN_MULTI_CONN)) even if the other server does not
/// offer that.
///
/// A meta context that the client has not selected is absent, `base:allocation` included. Data is
/// passed on as data, holes included. The size is the one that the server sent when the client
/// connected.
///
/// ```
/// use nbd_io::{NamedExports, client::{Remote, tasks::Client}, runtime::Network};
///
/// fn proxy<R: Network>(client: Client<R>) -> NamedExports {
///     NamedExports::single_async(Remote::new(client))
/// }
/// ```
#[derive(Debug)]
pub struct Remote<R: Network> {
    client: Client<R>,
}

impl<R: Network> Remote<R> {
    /// The export that a client has entered.
    #[must_use]
    pub fn new(client: impl Into<Client<R>>) -> Self {
        Self {
            client: client.into(),
        }
    }

    /// The status in a context from `offset` on: one answer of the server's, which may be about
    /// less.
    async fn ask(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>, Failure> {
        let client = &self.client;
        let Some(id) = client.context_id(context) else {
            return Err(not_selected(context));
        };
        let len = len.min(client.negotiated().max_len(Command::BlockStatus));
        let flags = CommandFlags::NONE;
        let answer = if client.export().can_filter_block_status() {
            client.block_status_of(&[id], offset, len, flags).await
        } else {
            client.block_status(offset, len, flags).await
        };
        within(answer?, id, context, len)
    }
}

impl<R: Network> AsyncExport for Remote<R> {
    fn size(&self) -> u64 {
        self.client.size()
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        Ok(self.client.read(offset, len).await?.into())
    }

    fn flags(&self) -> TransmissionFlags {
        self.client.export().flags | TransmissionFlags::CAN_MULTI_CONN
    }

    fn block_sizes(&self) -> BlockSizes {
        self.client.block_sizes()
    }

    fn description(&self) -> &str {
        let description = self.client.export().description.as_ref();
        description.map_or("", |text| text.as_str())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Failure> {
        Ok(self.client.write_with(data, offset, flags(fua)).await?)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        Ok(self.client.write_zeroes(offset, len, mode.into()).await?)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        Ok(self.client.trim(offset, len, flags(fua)).await?)
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        Ok(self.client.cache(offset, len).await?)
    }

    async fn flush(&self) -> Result<(), Failure> {
        Ok(self.client.flush().await?)
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Failure> {
        let context = ContextName::base_allocation();
        if self.client.has_context(&context) {
            return self.ask(&context, offset, len).await;
        }
        Ok(vec![Extent { len, status: 0 }])
    }

    fn contexts(&self) -> Vec<MetaContext> {
        remote_contexts(self.client.contexts(), self.client.mode())
    }

    async fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>, Failure> {
        self.ask(context, offset, len).await
    }
}

fn flags(fua: bool) -> CommandFlags {
    if fua {
        CommandFlags::FUA
    } else {
        CommandFlags::NONE
    }
}

/// The failure to ask for a context that a client has not selected.
#[doc(hidden)]
#[must_use]
pub fn not_selected(context: &ContextName) -> Failure {
    Failure {
        message: format!("the meta context {context} was not selected").into(),
        ..Errno::Inval.into()
    }
}

/// The extents of one context in an answer, without the part behind the requested range.
#[doc(hidden)]
pub fn within(
    answer: Vec<ContextExtents>,
    id: u32,
    context: &ContextName,
    len: u64,
) -> Result<Vec<Extent>, Failure> {
    let found = answer.into_iter().find(|answer| answer.id == id);
    let ContextExtents { mut extents, .. } = found.ok_or_else(|| Failure {
        message: format!("the server said nothing of {context}").into(),
        ..Errno::Io.into()
    })?;
    // The last one may go on behind the requested range.
    let mut rest = len;
    for extent in &mut extents {
        extent.len = extent.len.min(rest);
        rest -= extent.len;
    }
    extents.retain(|extent| extent.len > 0);
    Ok(extents)
}

/// The contexts of a client, as a proxy offers them.
#[doc(hidden)]
#[must_use]
pub fn remote_contexts(contexts: &[Context], mode: HeaderStyle) -> Vec<MetaContext> {
    let names = contexts.iter().filter_map(|context| context.name.clone());
    // The width of the statuses of a context that is not known here is unknown.
    let may_be_wide = mode == HeaderStyle::Extended;
    let is_known = |name: &ContextName| ["base", "qemu"].contains(&name.namespace());
    names
        .map(|name| match may_be_wide && !is_known(&name) {
            true => MetaContext::wide(name),
            false => MetaContext::new(name),
        })
        .collect()
}
