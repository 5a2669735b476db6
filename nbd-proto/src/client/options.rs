//! Negotiation: one option at a time until an export is entered.

use super::{
    Config,
    pending::{Pending, PendingExportName, outstanding},
};
use crate::{
    ContextName, ExportName, HeaderStyle, Misuse,
    wire::{InfoRequest, InfoType, MetaContextRequest, OptionCode, put_option},
};
use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};
use bytes::{BufMut, BytesMut};
use core::marker::PhantomData;

/// The connection is in the clear, and may stay so.
#[derive(Debug)]
pub enum Plain {}

/// The connection is encrypted.
#[derive(Debug)]
pub enum Encrypted {}

/// Results of the options so far, which transmission starts with.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) config: Config,
    pub(super) no_zeroes: bool,
    pub(super) mode: HeaderStyle,
    pub(super) contexts: Option<Selection>,
}

impl Negotiated {
    pub(super) const fn new(config: Config, no_zeroes: bool) -> Self {
        Self {
            config,
            no_zeroes,
            mode: HeaderStyle::Simple,
            contexts: None,
        }
    }

    /// The contexts that hold once `export` is entered.
    fn contexts_of(&mut self, export: &ExportName) -> Vec<Context> {
        self.contexts
            .take()
            .filter(|selection| selection.export == *export)
            .map_or_else(Vec::new, |selection| selection.contexts)
    }
}

/// The contexts that a server selected for one export.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) export: ExportName,
    pub(super) contexts: Vec<Context>,
}

/// A meta context that the server selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The number that names it in this connection's replies.
    pub id: u32,
    /// Its name; `None` for one that was not asked for, of which no extents are reported.
    pub name: Option<ContextName>,
}

/// Kinds of information about an export to ask for. `NBD_INFO_EXPORT` comes unasked.
///
/// Spec: [Option reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InfoSet {
    name: bool,
    description: bool,
    block_size: bool,
}

impl InfoSet {
    /// Only information that comes unasked. Without block sizes a server may refuse the export.
    pub const NONE: Self = Self {
        name: false,
        description: false,
        block_size: false,
    };
    /// The block size constraints, which this client obeys.
    pub const BLOCK_SIZE: Self = Self {
        block_size: true,
        ..Self::NONE
    };
    /// The canonical name, the description and the block size constraints.
    pub const ALL: Self = Self {
        name: true,
        description: true,
        block_size: true,
    };

    /// The set of these kinds; others than the three above are left out.
    #[must_use]
    pub fn of(infos: &[InfoType]) -> Self {
        Self {
            name: infos.contains(&InfoType::Name),
            description: infos.contains(&InfoType::Description),
            block_size: infos.contains(&InfoType::BlockSize),
        }
    }

    /// This set and the block sizes.
    #[must_use]
    pub const fn with_block_size(self) -> Self {
        Self {
            block_size: true,
            ..self
        }
    }

    /// Whether the kind is asked for.
    #[must_use]
    pub fn contains(self, info: InfoType) -> bool {
        match info {
            InfoType::Name => self.name,
            InfoType::Description => self.description,
            InfoType::BlockSize => self.block_size,
            InfoType::Export | InfoType::Other(_) => false,
        }
    }

    fn iter(self) -> impl Iterator<Item = InfoType> + Clone {
        [InfoType::Name, InfoType::Description, InfoType::BlockSize]
            .into_iter()
            .filter(move |info| self.contains(*info))
    }
}

impl Default for InfoSet {
    /// The block sizes.
    fn default() -> Self {
        Self::BLOCK_SIZE
    }
}

impl core::fmt::Debug for InfoSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The export to enter or to describe, and the information to ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Go {
    /// The export's name.
    pub name: ExportName,
    /// Information to ask for beside size and flags.
    pub infos: InfoSet,
}

impl Go {
    /// An export and its block sizes.
    #[must_use]
    pub fn new(name: ExportName) -> Self {
        Self {
            name,
            infos: InfoSet::default(),
        }
    }

    fn put(&self, option: OptionCode, out: &mut BytesMut) {
        put_option(option, out, |out| {
            InfoRequest::encode(&self.name, self.infos.iter(), out);
        });
    }
}

/// An option that cannot be sent now, and the handle that it was asked of.
#[derive(Debug)]
pub struct Rejected<S> {
    /// The handle, unchanged. Nothing was sent.
    pub options: Options<S>,
    /// The reason.
    pub misuse: Misuse,
}

/// A client that may ask for options; `S` is [`Plain`] or [`Encrypted`].
///
/// Spec: [Option negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#fixed-newstyle-negotiation).
/// Every method appends one option to `out` and gives this handle away until the server has
/// answered, because a client must not send an option before.
#[derive(Debug)]
#[must_use = "a connection is to be closed with `abort`"]
pub struct Options<S> {
    /// In a box, because phases are moved at every step.
    pub(super) negotiated: Box<Negotiated>,
    security: PhantomData<S>,
}

impl Options<Plain> {
    /// Asks for TLS.
    ///
    /// Best asked first: a TLS connection starts with nothing negotiated.
    pub fn start_tls(self, out: &mut BytesMut) -> Pending<outstanding::StartTls<Self>> {
        put_option(OptionCode::StartTls, out, |_| ());
        let Negotiated {
            config, no_zeroes, ..
        } = *self.negotiated;
        Pending::new(outstanding::StartTls {
            config,
            no_zeroes,
            refused: self,
        })
    }
}

impl<S> Options<S> {
    pub(super) fn new(negotiated: Negotiated) -> Self {
        Self {
            negotiated: Box::new(negotiated),
            security: PhantomData,
        }
    }

    /// The style of headers that transmission would have if it started now.
    #[must_use]
    pub fn mode(&self) -> HeaderStyle {
        self.negotiated.mode
    }

    /// Asks which exports there are. A server may keep some of them to itself.
    pub fn list(self, out: &mut BytesMut) -> Pending<outstanding::List<S>> {
        put_option(OptionCode::List, out, |_| ());
        Pending::new(outstanding::List {
            options: self,
            entries: Vec::new(),
        })
    }

    /// Asks for the description of an export, without entering it.
    pub fn info(self, request: Go, out: &mut BytesMut) -> Pending<outstanding::Info<S>> {
        request.put(OptionCode::Info, out);
        Pending::new(outstanding::Info::new(self, request))
    }

    /// Asks to enter an export. Meta contexts that were set for an export of another name are
    /// given up.
    pub fn go(self, request: Go, out: &mut BytesMut) -> Pending<outstanding::Go<S>> {
        request.put(OptionCode::Go, out);
        Pending::new(outstanding::Go::new(self, request))
    }

    /// Enters an export by `NBD_OPT_EXPORT_NAME`, for servers without `NBD_OPT_GO`. A server that
    /// refuses closes the connection without a word.
    ///
    /// # Errors
    ///
    /// When extended headers were agreed on, which do not go with this option.
    pub fn export_name(
        mut self,
        name: &ExportName,
        out: &mut BytesMut,
    ) -> Result<PendingExportName, Rejected<S>> {
        if self.negotiated.mode == HeaderStyle::Extended {
            let why = "extended headers were agreed on";
            return Err(self.rejected(OptionCode::ExportName, why));
        }
        put_option(OptionCode::ExportName, out, |out| {
            out.put_slice(name.as_str().as_bytes())
        });
        let contexts = self.negotiated.contexts_of(name);
        let Negotiated {
            config,
            no_zeroes,
            mode,
            ..
        } = *self.negotiated;
        Ok(PendingExportName::new(config, no_zeroes, mode, contexts))
    }

    /// Asks for structured replies.
    ///
    /// # Errors
    ///
    /// When they or extended headers were agreed on before.
    pub fn structured_reply(
        self,
        out: &mut BytesMut,
    ) -> Result<Pending<outstanding::StructuredReply<S>>, Rejected<S>> {
        if self.negotiated.mode.has_chunks() {
            let why = "structured replies or extended headers were agreed on before";
            return Err(self.rejected(OptionCode::StructuredReply, why));
        }
        put_option(OptionCode::StructuredReply, out, |_| ());
        Ok(Pending::new(outstanding::StructuredReply { options: self }))
    }

    /// Asks for extended headers, which imply structured replies.
    ///
    /// # Errors
    ///
    /// When they were agreed on before.
    pub fn extended_headers(
        self,
        out: &mut BytesMut,
    ) -> Result<Pending<outstanding::ExtendedHeaders<S>>, Rejected<S>> {
        if self.negotiated.mode == HeaderStyle::Extended {
            let why = "extended headers were agreed on before";
            return Err(self.rejected(OptionCode::ExtendedHeaders, why));
        }
        put_option(OptionCode::ExtendedHeaders, out, |_| ());
        Ok(Pending::new(outstanding::ExtendedHeaders { options: self }))
    }

    /// Asks which of the meta contexts that match the queries an export has; all of them without
    /// a query.
    ///
    /// # Panics
    ///
    /// When the queries are together longer than 4 GiB.
    pub fn list_meta_context(
        self,
        export: &ExportName,
        queries: &[ContextName],
        out: &mut BytesMut,
    ) -> Pending<outstanding::ListMetaContext<S>> {
        put_option(OptionCode::ListMetaContext, out, |out| {
            MetaContextRequest::encode(export, queries, out);
        });
        Pending::new(outstanding::ListMetaContext {
            options: self,
            entries: Vec::new(),
        })
    }

    /// Selects the meta contexts of an export that block status reports from then on. An earlier
    /// selection is given up, also when the server refuses.
    ///
    /// # Errors
    ///
    /// When neither structured replies nor extended headers were agreed on.
    ///
    /// # Panics
    ///
    /// When the queries are together longer than 4 GiB.
    pub fn set_meta_context(
        mut self,
        export: &ExportName,
        queries: &[ContextName],
        out: &mut BytesMut,
    ) -> Result<Pending<outstanding::SetMetaContext<S>>, Rejected<S>> {
        if !self.negotiated.mode.has_chunks() {
            let why = "it needs structured replies or extended headers";
            return Err(self.rejected(OptionCode::SetMetaContext, why));
        }
        put_option(OptionCode::SetMetaContext, out, |out| {
            MetaContextRequest::encode(export, queries, out);
        });
        self.negotiated.contexts = None;
        Ok(Pending::new(outstanding::SetMetaContext {
            options: self,
            export: export.clone(),
            asked: queries.to_vec(),
            contexts: Vec::new(),
            ids: BTreeSet::new(),
            names: BTreeSet::new(),
        }))
    }

    /// Ends the session. The driver sends `out`, ends TLS if it is up, may wait a short while for
    /// the server to answer or to close, and closes the transport. The server's answer does not
    /// matter.
    pub fn abort(self, out: &mut BytesMut) {
        put_option(OptionCode::Abort, out, |_| ());
    }

    /// The state in which a transmission of `export` would start.
    pub(super) fn into_transmission(
        mut self,
        export: &ExportName,
    ) -> (Config, HeaderStyle, Vec<Context>) {
        let contexts = self.negotiated.contexts_of(export);
        (self.negotiated.config, self.negotiated.mode, contexts)
    }

    fn rejected(self, option: OptionCode, why: &'static str) -> Rejected<S> {
        Rejected {
            options: self,
            misuse: Misuse::Option { option, why },
        }
    }
}

/// A client that must start TLS before anything else.
///
/// Spec: [Client-side requirements](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#client-side-requirements).
#[derive(Debug)]
#[must_use = "a connection is to be closed with `abort`"]
pub struct TlsRequired {
    negotiated: Negotiated,
}

impl TlsRequired {
    pub(super) const fn new(negotiated: Negotiated) -> Self {
        Self { negotiated }
    }

    /// Asks for TLS. If the server refuses, all that is left is to [`abort`](TlsRequired::abort).
    pub fn start_tls(self, out: &mut BytesMut) -> Pending<outstanding::StartTls<Self>> {
        put_option(OptionCode::StartTls, out, |_| ());
        let Negotiated {
            config, no_zeroes, ..
        } = self.negotiated;
        Pending::new(outstanding::StartTls {
            config,
            no_zeroes,
            refused: self,
        })
    }

    /// Ends the session like [`Options::abort`].
    pub fn abort(self, out: &mut BytesMut) {
        put_option(OptionCode::Abort, out, |_| ());
    }
}

/// The server is ready for TLS: the next byte in either direction belongs to the TLS handshake.
#[derive(Debug)]
#[must_use = "the server waits for a TLS handshake"]
pub struct Upgrade {
    pub(super) config: Config,
    pub(super) no_zeroes: bool,
}

impl Upgrade {
    /// Goes on inside TLS, with nothing negotiated. To be called when the TLS handshake has
    /// succeeded; if it fails, the transport is to be closed.
    pub fn upgraded(self) -> Options<Encrypted> {
        Options::new(Negotiated::new(self.config, self.no_zeroes))
    }
}
