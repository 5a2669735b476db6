//! `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`: questions about one export.

use super::{
    Options, Refusal, Security,
    meta::Selection,
    options::Ruling,
    refusal::{self, Question, put_ack},
    transmission::{Agreed, Context, Transmission},
};
use crate::{
    BlockSizes, Error, ExportInfo, ExportName,
    server::Limits,
    wire::{
        ExportBlock, HeaderStyle, Info, InfoRequest as WireInfoRequest, InfoType, OptionCode,
        OptionReplyCode, TransmissionFlags, put_option_reply,
    },
};
use alloc::sync::Arc;
use bytes::BytesMut;

/// Transmission flags that this crate can stand for.
const KNOWN: TransmissionFlags = TransmissionFlags::from_bits(0x1dff);

/// The description of an export that a client is sent, and held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    pub(super) block_sizes: Option<BlockSizes>,
}

impl Offer {
    /// An offer for headers of the style `mode`, with block status payloads only if `contexts` are
    /// selected.
    pub(super) fn new(
        info: &ExportInfo,
        mode: HeaderStyle,
        contexts: bool,
        limits: &Limits,
    ) -> Self {
        let known = TransmissionFlags::from_bits(info.flags.bits() & KNOWN.bits());
        let mut flags = ExportInfo::mask(known, mode).with(TransmissionFlags::HAS_FLAGS);
        if !contexts {
            flags = flags.without(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        let block_sizes = info.block_sizes.map(|sizes| within(sizes, limits));
        // Some clients refuse a size that is no multiple of the minimum block size, and none
        // could reach the rest.
        let minimum = block_sizes.map_or(1, BlockSizes::minimum);
        Self {
            size: info.size - info.size % u64::from(minimum),
            flags,
            block_sizes,
        }
    }
}

/// Block sizes that can be kept: a payload beyond the limits would end the connection.
pub(super) fn within(sizes: BlockSizes, limits: &Limits) -> BlockSizes {
    let maximum = sizes.maximum().min(limits.payload).max(sizes.preferred());
    BlockSizes::new(sizes.minimum(), sizes.preferred(), maximum)
        .expect("the maximum is at least the preferred size")
}

/// Kinds of information that were asked for, beside the size and the flags.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Infos {
    name: bool,
    description: bool,
    pub(super) block_size: bool,
}

impl Infos {
    const fn contains(self, info: InfoType) -> bool {
        match info {
            InfoType::Export => true,
            InfoType::Name => self.name,
            InfoType::Description => self.description,
            InfoType::BlockSize => self.block_size,
            InfoType::Other(_) => false,
        }
    }
}

/// The data of an option about one export, checked.
#[derive(Debug)]
pub(super) struct Parsed {
    name: ExportName,
    infos: Infos,
}

impl Parsed {
    pub(super) fn new(data: &[u8], limits: &Limits) -> Result<Self, Ruling> {
        let invalid = |text| (OptionReplyCode::ErrInvalid, text);
        let request = WireInfoRequest::decode(data)
            .ok_or_else(|| invalid("the lengths in the option contradict each other"))?;
        let name = ExportName::try_from(request.name)
            .map_err(|_| invalid("the name is too long, not UTF-8, or contains NUL"))?;
        let too_many =
            u32::try_from(request.infos().len()).map_or(true, |count| count > limits.info_requests);
        if too_many {
            return Err((
                OptionReplyCode::ErrTooBig,
                "the option asks for too many kinds of information",
            ));
        }
        let mut infos = Infos::default();
        for info in request.infos() {
            match info {
                InfoType::Name => infos.name = true,
                InfoType::Description => infos.description = true,
                InfoType::BlockSize => infos.block_size = true,
                InfoType::Export | InfoType::Other(_) => {}
            }
        }
        Ok(Self { name, infos })
    }
}

/// The common part of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug)]
struct Inquiry<S> {
    options: Options<S>,
    option: OptionCode,
    parsed: Parsed,
    /// The caller's word on whether the contexts were selected for this export.
    same_export: Option<bool>,
}

impl<S: Security> Inquiry<S> {
    fn selection(&self) -> Option<&Selection> {
        self.options.negotiated.selection.as_ref()
    }

    /// The contexts that hold for the export.
    fn contexts(&self) -> Option<&Arc<[Context]>> {
        let selection = self.selection()?;
        self.same_export
            .unwrap_or(selection.export == self.parsed.name)
            .then_some(&selection.contexts)
            .filter(|contexts| !contexts.is_empty())
    }

    fn offer(&self, export: &ExportInfo) -> Offer {
        Offer::new(
            export,
            self.options.negotiated.mode,
            self.contexts().is_some(),
            &self.options.connection.config.limits,
        )
    }

    fn grant(&self, export: &ExportInfo, offer: &Offer, out: &mut BytesMut) {
        let Infos {
            name,
            description,
            block_size,
        } = self.parsed.infos;
        let mut put = |info: Info| {
            put_option_reply(self.option, OptionReplyCode::Info, out, |out| {
                info.encode(out);
            });
        };
        if let (true, Some(sizes)) = (block_size, offer.block_sizes) {
            put(Info::BlockSize(sizes.into()));
        }
        if let (true, Some(name)) = (name, &export.name) {
            put(Info::Name(Ok(name.clone())));
        }
        if let (true, Some(text)) = (description, &export.description) {
            put(Info::Description(
                refusal::shorten(text.as_str(), crate::MAX_STRING).into(),
            ));
        }
        put(Info::Export(ExportBlock {
            size: offer.size,
            flags: offer.flags,
        }));
        put_ack(self.option, out);
    }

    fn refuse(self, refusal: Refusal, text: &str, out: &mut BytesMut) -> Options<S> {
        let question = Question {
            option: self.option,
            export: Some(&self.parsed.name),
            infos: self.parsed.infos,
            only_base: false,
        };
        refusal::refuse(&self.options, &question, refusal, text, out);
        self.options
    }
}

/// The client asks for the description of an export.
///
/// Spec: `NBD_OPT_INFO` in [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct InfoRequest<S>(Inquiry<S>);

impl<S: Security> InfoRequest<S> {
    pub(super) const fn new(options: Options<S>, parsed: Parsed) -> Self {
        Self(Inquiry {
            options,
            option: OptionCode::Info,
            parsed,
            same_export: None,
        })
    }

    /// The export's name; the empty name is the default export.
    #[must_use]
    pub const fn name(&self) -> &ExportName {
        &self.0.parsed.name
    }

    /// Whether the client asks for this kind of information. It is sent if the export has it, so
    /// there is no need to look.
    #[must_use]
    pub const fn wants(&self, info: InfoType) -> bool {
        self.0.parsed.infos.contains(info)
    }

    /// Whether TLS is up.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        S::SECURE
    }

    /// The headers that transmission would use now.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.0.options.mode()
    }

    /// The name of the export for which meta contexts are selected, if any are.
    #[must_use]
    pub fn contexts_export(&self) -> Option<&ExportName> {
        self.0.selection().map(|selection| &selection.export)
    }

    /// Says whether the export is [the one](Self::contexts_export) for which the meta contexts
    /// were selected. Without this call they are the same if their names are.
    pub const fn same_export_as_contexts(mut self, same: bool) -> Self {
        self.0.same_export = Some(same);
        self
    }

    /// Sends the client the information that it asked for.
    #[must_use = "negotiation goes on"]
    pub fn accept(self, export: &ExportInfo, out: &mut BytesMut) -> Options<S> {
        self.0.grant(export, &self.0.offer(export), out);
        self.0.options
    }

    /// Refuses. An empty `text` stands for words of this crate's.
    #[must_use = "negotiation goes on"]
    pub fn refuse(self, refusal: Refusal, text: &str, out: &mut BytesMut) -> Options<S> {
        self.0.refuse(refusal, text, out)
    }
}

/// The client asks to use an export.
///
/// Open the export before answering, so that a failure can be sent; after
/// [`accept`](Self::accept) there is no way back.
///
/// Spec: `NBD_OPT_GO` in [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct GoRequest<S>(Inquiry<S>);

impl<S: Security> GoRequest<S> {
    pub(super) const fn new(options: Options<S>, parsed: Parsed) -> Self {
        Self(Inquiry {
            options,
            option: OptionCode::Go,
            parsed,
            same_export: None,
        })
    }

    /// The export's name; the empty name is the default export.
    #[must_use]
    pub const fn name(&self) -> &ExportName {
        &self.0.parsed.name
    }

    /// Whether the client asks for this kind of information. It is sent if the export has it, so
    /// there is no need to look, but for [`InfoType::BlockSize`]: a client that does not ask for
    /// it is not held to the minimum block size.
    #[must_use]
    pub const fn wants(&self, info: InfoType) -> bool {
        self.0.parsed.infos.contains(info)
    }

    /// Whether TLS is up.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        S::SECURE
    }

    /// The headers that transmission will use.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.0.options.mode()
    }

    /// The name of the export for which meta contexts are selected, if any are.
    #[must_use]
    pub fn contexts_export(&self) -> Option<&ExportName> {
        self.0.selection().map(|selection| &selection.export)
    }

    /// Says whether the export is [the one](Self::contexts_export) for which the meta contexts
    /// were selected, which otherwise are void. Without this call they are the same if their
    /// names are.
    pub const fn same_export_as_contexts(mut self, same: bool) -> Self {
        self.0.same_export = Some(same);
        self
    }

    /// Lets the client use the export.
    ///
    /// The client is sent only promises that hold: flags that need options that were not negotiated
    /// are left out, the size is rounded down to whole blocks of the minimum size, and the maximum
    /// payload is at most the [limit](crate::server::Limits::payload).
    pub fn accept(self, export: &ExportInfo, out: &mut BytesMut) -> Transmission {
        let offer = self.0.offer(export);
        self.0.grant(export, &offer, out);
        let options = &self.0.options;
        let mut agreed = Agreed::new(
            &offer,
            options.negotiated.mode,
            options.connection.config.limits,
        );
        if let (true, Some(sizes)) = (self.0.parsed.infos.block_size, offer.block_sizes) {
            agreed = agreed.with_block_sizes(sizes);
        }
        if let Some(contexts) = self.0.contexts() {
            agreed.contexts = Arc::clone(contexts);
        }
        agreed.start(options.connection.shutdown)
    }

    /// Refuses. An empty `text` stands for words of this crate's.
    #[must_use = "negotiation goes on"]
    pub fn refuse(self, refusal: Refusal, text: &str, out: &mut BytesMut) -> Options<S> {
        self.0.refuse(refusal, text, out)
    }
}

/// The client asks to use an export, in the way that leaves the server no means to refuse but to
/// close the transport.
///
/// Spec: `NBD_OPT_EXPORT_NAME` in [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct ExportNameRequest<S> {
    options: Options<S>,
    name: ExportName,
    same_export: Option<bool>,
}

impl<S: Security> ExportNameRequest<S> {
    pub(super) const fn new(options: Options<S>, name: ExportName) -> Self {
        Self {
            options,
            name,
            same_export: None,
        }
    }

    /// The export's name; the empty name is the default export.
    #[must_use]
    pub const fn name(&self) -> &ExportName {
        &self.name
    }

    /// Whether TLS is up.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        S::SECURE
    }

    /// The headers that transmission will use.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.options.mode()
    }

    /// The name of the export for which meta contexts are selected, if any are.
    #[must_use]
    pub fn contexts_export(&self) -> Option<&ExportName> {
        let selection = self.options.negotiated.selection.as_ref()?;
        Some(&selection.export)
    }

    /// Says whether the export is [the one](Self::contexts_export) for which the meta contexts
    /// were selected, which otherwise are void. Without this call they are the same if their
    /// names are.
    pub const fn same_export_as_contexts(mut self, same: bool) -> Self {
        self.same_export = Some(same);
        self
    }

    /// Lets the client use the export. It is not sent block sizes, and not held to them.
    pub fn accept(self, export: &ExportInfo, out: &mut BytesMut) -> Transmission {
        let Options {
            connection,
            negotiated,
            ..
        } = self.options;
        let contexts = negotiated
            .selection
            .filter(|selection| self.same_export.unwrap_or(selection.export == self.name))
            .map(|selection| selection.contexts)
            .filter(|contexts| !contexts.is_empty());
        let offer = Offer::new(
            export,
            negotiated.mode,
            contexts.is_some(),
            &connection.config.limits,
        );
        ExportBlock {
            size: offer.size,
            flags: offer.flags,
        }
        .encode(connection.no_zeroes, out);
        let mut agreed = Agreed::new(&offer, negotiated.mode, connection.config.limits);
        if let Some(contexts) = contexts {
            agreed.contexts = contexts;
        }
        agreed.start(connection.shutdown)
    }

    /// Refuses. Nothing is sent; the transport is to be closed.
    #[must_use = "the transport is to be closed"]
    pub fn refuse(self, why: &'static str) -> Error {
        Error::ExportNameRefused { why }
    }
}
