//! An export of another server.

use crate::Client;
use nbd_io::{
    Export, MetaContext, ZeroMode,
    client::{not_selected, remote_contexts, within},
};
use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, Failure, TransmissionFlags, meta::Extent,
};
use std::ops::ControlFlow;

/// An export of another server, to be served again by a proxy.
///
/// Everything is passed on: commands and their flags, block sizes, the description, and the meta
/// contexts that the client has selected. A refusal of the other server is passed on with its text,
/// and a request that it does not answer in time, or whose connection is lost, fails with
/// [`Errno::Io`](nbd_proto::Errno::Io). A client that [reconnects](crate::ConnectOptions::reconnect) hides that for a
/// while.
///
/// After unflushed writes were lost, every flush fails, until the proxy is made of a client of a
/// [new epoch](crate::Client::new_epoch).
///
/// All connections to the proxy share the client, whose flush covers them all. So they may be used
/// together ([`CAN_MULTI_CONN`](TransmissionFlags::CAN_MULTI_CONN)) even if the other server does not
/// offer that.
///
/// A meta context that the client has not selected is absent, `base:allocation` included. A read is
/// always sent on, even if its range is known to be a hole. The size is the one that the server
/// sent when the client connected.
///
/// An asynchronous server can serve this, too, as it waits on a thread that may; the `Remote` of an
/// asynchronous client needs none.
///
/// ```
/// use nbd_blocking::{ConnectOptions, ContextName, Server, exports::{Memory, Remote}};
/// use std::{os::unix::net::UnixStream, sync::Arc, thread};
///
/// let serve = |server: Server, stream| thread::spawn(move || server.serve_over(stream));
/// let (to_proxy, at_proxy) = UnixStream::pair()?;
/// let (to_server, at_server) = UnixStream::pair()?;
/// let serving = serve(Server::single(Arc::new(Memory::new(1 << 20))), at_server);
///
/// let options = ConnectOptions::new().context(ContextName::base_allocation());
/// let remote = Remote::new(options.connect_over(to_server, None)?);
/// let passing_on = serve(Server::single(Arc::new(remote)), at_proxy);
///
/// let client = ConnectOptions::new().connect_over(to_proxy, None)?;
/// client.write_all_at(b"hello", 4096)?;
/// client.disconnect()?;
/// # passing_on.join().expect("the proxy does not panic")?;
/// # serving.join().expect("the server does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Remote {
    client: Client,
}

impl Remote {
    /// The export that a client has entered.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client, to see how its connections are.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The status in a context from `offset` on: one answer of the server's, which may be about
    /// less.
    fn ask(&self, context: &ContextName, offset: u64, len: u64) -> Result<Vec<Extent>, Failure> {
        let Some(id) = self.client.context_id(context) else {
            return Err(not_selected(context));
        };
        let len = len.min(self.client.negotiated().max_len(Command::BlockStatus));
        let flags = CommandFlags::NONE;
        let answer = if self.client.export().can_filter_block_status() {
            self.client.block_status_of(&[id], offset, len, flags)
        } else {
            self.client.block_status(offset, len, flags)
        };
        within(answer?, id, context, len)
    }
}

impl Export for Remote {
    fn size(&self) -> u64 {
        self.client.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        Ok(self.client.read_exact_at(buf, offset)?)
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

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        Ok(self.client.write_all_at_with(data, offset, flags(fua))?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        Ok(self.client.write_zeroes(offset, len, mode.into())?)
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        Ok(self.client.trim(offset, len, flags(fua))?)
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        Ok(self.client.cache(offset, len)?)
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(self.client.flush()?)
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        let context = ContextName::base_allocation();
        let known = self.client.has_context(&context);
        let extents = if known {
            self.ask(&context, offset, len)?
        } else {
            Vec::new()
        };
        Ok(extents
            .first()
            .copied()
            .unwrap_or(Extent { len, status: 0 }))
    }

    fn contexts(&self) -> Vec<MetaContext> {
        remote_contexts(self.client.contexts(), self.client.mode())
    }

    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let extents = self.ask(context, offset, len)?;
        let _ = extents.into_iter().try_for_each(each);
        Ok(())
    }
}

fn flags(fua: bool) -> CommandFlags {
    if fua {
        CommandFlags::FUA
    } else {
        CommandFlags::NONE
    }
}
