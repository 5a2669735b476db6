//! Waiting for the replies to an option.

use super::{
    Config, Context, Options, Plain, Transmission, Upgrade,
    options::{Selection, TlsRequired},
};
use crate::{
    BlockSizes, ContextName, Error, ExportInfo, ExportName, Limits, MAX_STRING, Mode, NameError,
    OptionError, Phase, Step, Text, TransmissionFlags,
    gather::Gather,
    wire::{
        ExportBlock, Info as WireInfo, MetaContextReply, OptionCode, OptionReplyCode,
        OptionReplyHeader, ServerReply, ZEROES,
    },
};
use alloc::{collections::BTreeSet, vec::Vec};
use bytes::BytesMut;

/// An option that the server has not answered to the end.
///
/// Nothing may be sent meanwhile, and there is no handle by which anything could be.
#[derive(Debug)]
#[must_use]
pub struct Pending<O> {
    option: O,
    gather: Gather,
    header: Option<OptionReplyHeader>,
    /// How many replies that do not end the option have come.
    replies: u32,
    /// How long their data is together, in bytes.
    total: u64,
}

impl<O: Outstanding> Pending<O> {
    pub(super) const fn new(option: O) -> Self {
        Self {
            option,
            gather: Gather::new(OptionReplyHeader::LEN),
            header: None,
            replies: 0,
            total: 0,
        }
    }

    /// The option that waits for its answer.
    #[must_use]
    pub fn option(&self) -> OptionCode {
        self.option.code()
    }

    fn check(&mut self, header: OptionReplyHeader) -> Result<(), Error> {
        let option = self.option.code();
        let limits = self.option.limits();
        let OptionReplyHeader { reply, len, .. } = header;
        if header.option != option {
            return Err(Error::WrongOption {
                expected: option,
                got: header.option,
            });
        }
        let limit = match reply {
            OptionReplyCode::Ack => 0,
            error if error.is_error() => string(0),
            other if self.option.expects() != Some(other) => {
                return Err(Error::UnexpectedOptionReply { option, reply });
            }
            OptionReplyCode::Server => string(0) + string(4),
            OptionReplyCode::MetaContext => string(4),
            _ => limits.unknown_info.max(string(2)),
        };
        if len > limit {
            return Err(Error::OptionReplyTooLong {
                option,
                reply,
                len,
                limit,
            });
        }
        if Some(reply) == self.option.expects() {
            self.replies += 1;
            self.total += u64::from(len);
            let limit = match reply {
                OptionReplyCode::Server => limits.list_entries,
                OptionReplyCode::MetaContext => limits.meta_contexts,
                _ => limits.infos,
            };
            if self.replies > limit {
                return Err(Error::TooManyOptionReplies {
                    option,
                    reply,
                    limit,
                });
            }
            if self.total > limits.option_replies {
                let limit = limits.option_replies;
                return Err(Error::OptionRepliesTooLong { option, limit });
            }
        }
        Ok(())
    }
}

/// The longest data that ends in a string behind `fixed` bytes.
fn string(fixed: u32) -> u32 {
    fixed + u32::try_from(MAX_STRING).expect("MAX_STRING is 4096")
}

impl<O: Outstanding> Phase for Pending<O> {
    type Next = O::Outcome;

    fn space(&mut self) -> &mut [u8] {
        self.gather.space()
    }

    fn filled(mut self, n: usize, _: &mut BytesMut) -> Result<Step<Self, O::Outcome>, Error> {
        if !self.gather.filled(n) {
            return Ok(Step::More(self));
        }
        let header = match self.header.take() {
            Some(header) => header,
            None => {
                let header = self
                    .gather
                    .array()
                    .map_or(Err(0), OptionReplyHeader::decode);
                let header = header.map_err(|got| Error::OptionReplyMagic { got })?;
                self.check(header)?;
                self.gather
                    .restart(usize::try_from(header.len).unwrap_or(usize::MAX));
                if header.len > 0 {
                    self.header = Some(header);
                    return Ok(Step::More(self));
                }
                header
            }
        };
        let data = self.gather.bytes();
        match header.reply {
            OptionReplyCode::Ack => self.option.settle(Ok(())).map(Step::Done),
            error if error.is_error() => {
                let error = OptionError {
                    option: header.option,
                    code: error,
                    message: Text::from_lossy(data),
                };
                self.option.settle(Err(error)).map(Step::Done)
            }
            reply => {
                let OptionReplyHeader { option, len, .. } = header;
                self.option.take(data)?.ok_or(Error::MalformedOptionReply {
                    option,
                    reply,
                    len,
                })?;
                self.gather.restart(OptionReplyHeader::LEN);
                Ok(Step::More(self))
            }
        }
    }
}

/// What a [`Pending`] option is and what its answer leads to. Implemented by the types of
/// [`outstanding`] and by nothing else.
pub trait Outstanding: sealed::Sealed {
    /// Where the answer leads.
    type Outcome;

    /// The option.
    fn code(&self) -> OptionCode;

    #[doc(hidden)]
    fn limits(&self) -> &Limits;

    /// The replies that it may have before the last one.
    #[doc(hidden)]
    fn expects(&self) -> Option<OptionReplyCode> {
        None
    }

    /// Takes the data of such a reply; `None` when it does not fit its layout.
    #[doc(hidden)]
    fn take(&mut self, data: &[u8]) -> Result<Option<()>, Error> {
        let _ = data;
        Ok(None)
    }

    #[doc(hidden)]
    fn settle(self, verdict: Result<(), OptionError>) -> Result<Self::Outcome, Error>;
}

mod sealed {
    pub trait Sealed {}
}

/// A handle that haggles on, and what came of the option.
#[derive(Debug)]
pub struct Settled<S, T> {
    /// The handle.
    pub options: Options<S>,
    /// What the server answered, or why it refused.
    pub result: Result<T, OptionError>,
}

/// What came of `NBD_OPT_STARTTLS`.
#[derive(Debug)]
pub enum TlsOutcome<O> {
    /// The TLS handshake begins.
    Accepted(Upgrade),
    /// The connection stays in the clear.
    Refused(O, OptionError),
}

/// What came of `NBD_OPT_GO`.
#[derive(Debug)]
pub enum GoOutcome<S> {
    /// The export is entered.
    Accepted(Transmission),
    /// Haggling goes on.
    Refused(Options<S>, OptionError),
}

/// One export of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// Its name, or what is wrong with it.
    pub name: Result<ExportName, NameError>,
    /// Text for people; may be empty.
    pub description: Text,
}

/// One meta context of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextEntry {
    /// Its name or a pattern that stands for several, or what is wrong with it.
    pub name: Result<ContextName, NameError>,
}

/// The options that can be pending.
pub mod outstanding {
    use super::*;

    /// `NBD_OPT_LIST`.
    #[derive(Debug)]
    pub struct List<S> {
        pub(in super::super) options: Options<S>,
        pub(in super::super) entries: Vec<ListEntry>,
    }

    impl<S> sealed::Sealed for List<S> {}
    impl<S> Outstanding for List<S> {
        type Outcome = Settled<S, Vec<ListEntry>>;

        fn code(&self) -> OptionCode {
            OptionCode::List
        }

        fn limits(&self) -> &Limits {
            &self.options.negotiated.config.limits
        }

        fn expects(&self) -> Option<OptionReplyCode> {
            Some(OptionReplyCode::Server)
        }

        fn take(&mut self, data: &[u8]) -> Result<Option<()>, Error> {
            let Some(reply) = ServerReply::decode(data) else {
                return Ok(None);
            };
            if reply.name.len() > MAX_STRING || reply.description.len() > MAX_STRING {
                return Ok(None);
            }
            self.entries.push(ListEntry {
                name: reply.name.try_into(),
                description: Text::from_lossy(reply.description),
            });
            Ok(Some(()))
        }

        fn settle(self, verdict: Result<(), OptionError>) -> Result<Self::Outcome, Error> {
            let entries = self.entries;
            Ok(Settled {
                options: self.options,
                result: verdict.map(|()| entries),
            })
        }
    }

    /// Gathers the replies to `NBD_OPT_INFO` and `NBD_OPT_GO`.
    #[derive(Debug)]
    struct Infos {
        asked: super::super::Go,
        export: Option<ExportBlock>,
        name: Option<ExportName>,
        description: Option<Text>,
        block_sizes: Option<BlockSizes>,
    }

    impl Infos {
        const fn new(asked: super::super::Go) -> Self {
            Self {
                asked,
                export: None,
                name: None,
                description: None,
                block_sizes: None,
            }
        }

        fn take(&mut self, data: &[u8], config: &Config) -> Result<Option<()>, Error> {
            match WireInfo::decode(data) {
                None => return Ok(None),
                Some(WireInfo::Export(export)) => self.export = Some(export),
                Some(WireInfo::Name(Err(NameError::TooLong { .. }))) => return Ok(None),
                // A name that nobody could ask for is as good as none.
                Some(WireInfo::Name(name)) => self.name = name.ok(),
                Some(WireInfo::Description(text)) => {
                    if data.len() > 2 + MAX_STRING {
                        return Ok(None);
                    }
                    self.description = Some(text);
                }
                Some(WireInfo::BlockSize(sizes)) => match sizes.try_into() {
                    Ok(sizes) => self.block_sizes = Some(sizes),
                    Err(_) if config.tolerance.invalid_block_sizes => self.block_sizes = None,
                    Err(error) => return Err(error),
                },
                Some(WireInfo::Other(_)) => {}
            }
            Ok(Some(()))
        }

        fn into_export(
            self,
            option: OptionCode,
            config: &Config,
            mode: Mode,
        ) -> Result<ExportInfo, Error> {
            let export = self.export.ok_or(Error::NoExportInfo { option })?;
            Ok(ExportInfo {
                name: self.name,
                description: self.description,
                block_sizes: self.block_sizes,
                ..checked(export, config, mode)?
            })
        }
    }

    /// `NBD_OPT_INFO`.
    #[derive(Debug)]
    pub struct Info<S> {
        options: Options<S>,
        infos: Infos,
    }

    impl<S> Info<S> {
        pub(in super::super) const fn new(options: Options<S>, asked: super::super::Go) -> Self {
            Self {
                options,
                infos: Infos::new(asked),
            }
        }
    }

    impl<S> sealed::Sealed for Info<S> {}
    impl<S> Outstanding for Info<S> {
        type Outcome = Settled<S, ExportInfo>;

        fn code(&self) -> OptionCode {
            OptionCode::Info
        }

        fn limits(&self) -> &Limits {
            &self.options.negotiated.config.limits
        }

        fn expects(&self) -> Option<OptionReplyCode> {
            Some(OptionReplyCode::Info)
        }

        fn take(&mut self, data: &[u8]) -> Result<Option<()>, Error> {
            self.infos.take(data, &self.options.negotiated.config)
        }

        fn settle(self, verdict: Result<(), OptionError>) -> Result<Self::Outcome, Error> {
            let options = self.options;
            let result = match verdict {
                Ok(()) => Ok(self.infos.into_export(
                    OptionCode::Info,
                    &options.negotiated.config,
                    options.mode(),
                )?),
                Err(error) => Err(error),
            };
            Ok(Settled { options, result })
        }
    }

    /// `NBD_OPT_GO`.
    #[derive(Debug)]
    pub struct Go<S> {
        options: Options<S>,
        infos: Infos,
    }

    impl<S> Go<S> {
        pub(in super::super) const fn new(options: Options<S>, asked: super::super::Go) -> Self {
            Self {
                options,
                infos: Infos::new(asked),
            }
        }
    }

    impl<S> sealed::Sealed for Go<S> {}
    impl<S> Outstanding for Go<S> {
        type Outcome = GoOutcome<S>;

        fn code(&self) -> OptionCode {
            OptionCode::Go
        }

        fn limits(&self) -> &Limits {
            &self.options.negotiated.config.limits
        }

        fn expects(&self) -> Option<OptionReplyCode> {
            Some(OptionReplyCode::Info)
        }

        fn take(&mut self, data: &[u8]) -> Result<Option<()>, Error> {
            self.infos.take(data, &self.options.negotiated.config)
        }

        fn settle(self, verdict: Result<(), OptionError>) -> Result<GoOutcome<S>, Error> {
            if let Err(error) = verdict {
                return Ok(GoOutcome::Refused(self.options, error));
            }
            let (config, mode, contexts) = self.options.into_transmission(&self.infos.asked.name);
            let info = self.infos.into_export(OptionCode::Go, &config, mode)?;
            Ok(GoOutcome::Accepted(Transmission::new(
                info, mode, contexts, config,
            )))
        }
    }

    /// `NBD_OPT_STARTTLS`; `O` is what a refusal gives back.
    #[derive(Debug)]
    pub struct StartTls<O> {
        pub(in super::super) config: Config,
        pub(in super::super) no_zeroes: bool,
        pub(in super::super) refused: O,
    }

    impl sealed::Sealed for StartTls<Options<Plain>> {}
    impl sealed::Sealed for StartTls<TlsRequired> {}
    impl<O> Outstanding for StartTls<O>
    where
        Self: sealed::Sealed,
    {
        type Outcome = TlsOutcome<O>;

        fn code(&self) -> OptionCode {
            OptionCode::StartTls
        }

        fn limits(&self) -> &Limits {
            &self.config.limits
        }

        fn settle(self, verdict: Result<(), OptionError>) -> Result<TlsOutcome<O>, Error> {
            let Self {
                config,
                no_zeroes,
                refused,
            } = self;
            Ok(match verdict {
                Ok(()) => TlsOutcome::Accepted(Upgrade { config, no_zeroes }),
                Err(error) => TlsOutcome::Refused(refused, error),
            })
        }
    }

    /// `NBD_OPT_STRUCTURED_REPLY`.
    #[derive(Debug)]
    pub struct StructuredReply<S> {
        pub(in super::super) options: Options<S>,
    }

    impl<S> sealed::Sealed for StructuredReply<S> {}
    impl<S> Outstanding for StructuredReply<S> {
        type Outcome = Settled<S, ()>;

        fn code(&self) -> OptionCode {
            OptionCode::StructuredReply
        }

        fn limits(&self) -> &Limits {
            &self.options.negotiated.config.limits
        }

        fn settle(self, verdict: Result<(), OptionError>) -> Result<Self::Outcome, Error> {
            Ok(switch(self.options, verdict, Mode::Structured))
        }
    }

    /// `NBD_OPT_EXTENDED_HEADERS`.
    #[derive(Debug)]
    pub struct ExtendedHeaders<S> {
        pub(in super::super) options: Options<S>,
    }

    impl<S> sealed::Sealed for ExtendedHeaders<S> {}
    impl<S> Outstanding for ExtendedHeaders<S> {
        type Outcome = Settled<S, ()>;

        fn code(&self) -> OptionCode {
            OptionCode::ExtendedHeaders
        }

        fn limits(&self) -> &Limits {
            &self.options.negotiated.config.limits
        }

        fn settle(self, verdict: Result<(), OptionError>) -> Result<Self::Outcome, Error> {
            Ok(switch(self.options, verdict, Mode::Extended))
        }
    }

    fn switch<S>(
        mut options: Options<S>,
        verdict: Result<(), OptionError>,
        mode: Mode,
    ) -> Settled<S, ()> {
        if verdict.is_ok() {
            options.negotiated.mode = mode;
        }
        Settled {
            options,
            result: verdict,
        }
    }

    /// `NBD_OPT_LIST_META_CONTEXT`.
    #[derive(Debug)]
    pub struct ListMetaContext<S> {
        pub(in super::super) options: Options<S>,
        pub(in super::super) entries: Vec<MetaContextEntry>,
    }

    impl<S> sealed::Sealed for ListMetaContext<S> {}
    impl<S> Outstanding for ListMetaContext<S> {
        type Outcome = Settled<S, Vec<MetaContextEntry>>;

        fn code(&self) -> OptionCode {
            OptionCode::ListMetaContext
        }

        fn limits(&self) -> &Limits {
            &self.options.negotiated.config.limits
        }

        fn expects(&self) -> Option<OptionReplyCode> {
            Some(OptionReplyCode::MetaContext)
        }

        fn take(&mut self, data: &[u8]) -> Result<Option<()>, Error> {
            let Some(reply) = MetaContextReply::decode(data) else {
                return Ok(None);
            };
            self.entries.push(MetaContextEntry {
                name: reply.name.try_into(),
            });
            Ok(Some(()))
        }

        fn settle(self, verdict: Result<(), OptionError>) -> Result<Self::Outcome, Error> {
            let entries = self.entries;
            Ok(Settled {
                options: self.options,
                result: verdict.map(|()| entries),
            })
        }
    }

    /// `NBD_OPT_SET_META_CONTEXT`.
    #[derive(Debug)]
    pub struct SetMetaContext<S> {
        pub(in super::super) options: Options<S>,
        pub(in super::super) export: ExportName,
        pub(in super::super) asked: Vec<ContextName>,
        pub(in super::super) contexts: Vec<Context>,
        pub(in super::super) ids: BTreeSet<u32>,
        /// Also those that nobody asked for.
        pub(in super::super) names: BTreeSet<Vec<u8>>,
    }

    impl<S> sealed::Sealed for SetMetaContext<S> {}
    impl<S> Outstanding for SetMetaContext<S> {
        type Outcome = Settled<S, Vec<Context>>;

        fn code(&self) -> OptionCode {
            OptionCode::SetMetaContext
        }

        fn limits(&self) -> &Limits {
            &self.options.negotiated.config.limits
        }

        fn expects(&self) -> Option<OptionReplyCode> {
            Some(OptionReplyCode::MetaContext)
        }

        fn take(&mut self, data: &[u8]) -> Result<Option<()>, Error> {
            let Some(reply) = MetaContextReply::decode(data) else {
                return Ok(None);
            };
            let name = ContextName::try_from(reply.name).ok();
            let name = name.filter(|name| self.asked.contains(name));
            if name.is_none() && !self.options.negotiated.config.tolerance.unasked_context {
                return Err(Error::UnknownContext { id: reply.id });
            }
            if !self.ids.insert(reply.id) || !self.names.insert(reply.name.to_vec()) {
                return Err(Error::DuplicateContext { id: reply.id });
            }
            self.contexts.push(Context { id: reply.id, name });
            Ok(Some(()))
        }

        fn settle(mut self, verdict: Result<(), OptionError>) -> Result<Self::Outcome, Error> {
            let result = match verdict {
                Ok(()) => {
                    self.options.negotiated.contexts = Some(Selection {
                        export: self.export,
                        contexts: self.contexts.clone(),
                    });
                    Ok(self.contexts)
                }
                Err(error) => Err(error),
            };
            Ok(Settled {
                options: self.options,
                result,
            })
        }
    }
}

/// An export whose flags were checked and masked.
fn checked(export: ExportBlock, config: &Config, mode: Mode) -> Result<ExportInfo, Error> {
    let flags = if export.flags.contains(TransmissionFlags::HAS_FLAGS) {
        ExportInfo::mask(export.flags, mode)
    } else if config.tolerance.no_flags {
        TransmissionFlags::NONE
    } else {
        return Err(Error::NoFlags {
            flags: export.flags.bits(),
        });
    };
    Ok(ExportInfo::new(export.size, flags))
}

/// `NBD_OPT_EXPORT_NAME` was sent. The server answers with a block of its own form, or closes the
/// connection because it has no such export or wants TLS for it.
#[derive(Debug)]
#[must_use]
pub struct PendingExportName {
    gather: Gather,
    config: Config,
    mode: Mode,
    contexts: Vec<Context>,
}

impl PendingExportName {
    pub(super) const fn new(
        config: Config,
        no_zeroes: bool,
        mode: Mode,
        contexts: Vec<Context>,
    ) -> Self {
        let len = ExportBlock::LEN + if no_zeroes { 0 } else { ZEROES };
        Self {
            gather: Gather::new(len),
            config,
            mode,
            contexts,
        }
    }
}

impl Phase for PendingExportName {
    type Next = Transmission;

    fn space(&mut self) -> &mut [u8] {
        self.gather.space()
    }

    fn filled(mut self, n: usize, _: &mut BytesMut) -> Result<Step<Self, Transmission>, Error> {
        if !self.gather.filled(n) {
            return Ok(Step::More(self));
        }
        let export = ExportBlock::decode(self.gather.bytes()).ok_or(Error::NoExportInfo {
            option: OptionCode::ExportName,
        })?;
        let info = checked(export, &self.config, self.mode)?;
        Ok(Step::Done(Transmission::new(
            info,
            self.mode,
            self.contexts,
            self.config,
        )))
    }
}
