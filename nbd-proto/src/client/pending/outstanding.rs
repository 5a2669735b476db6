//! The options that can be pending.

use super::{
    super::{
        Config, Context, Options, Plain, Tolerance, Transmission, Upgrade,
        options::{Selection, TlsRequired},
    },
    GoOutcome, ListEntry, MetaContextEntry, Outstanding, Settled, TlsOutcome, checked, sealed,
};
use crate::{
    BlockSizes, ContextName, Error, ExportInfo, ExportName, HeaderStyle, MAX_STRING, NameError,
    OptionError, Text,
    client::Limits,
    wire::{
        ExportBlock, Info as WireInfo, MetaContextReply, OptionCode, OptionReplyCode, ServerReply,
    },
};
use alloc::{collections::BTreeSet, vec::Vec};

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
    tolerated: Tolerance,
}

impl Infos {
    const fn new(asked: super::super::Go) -> Self {
        Self {
            asked,
            export: None,
            name: None,
            description: None,
            block_sizes: None,
            tolerated: Tolerance::STRICT,
        }
    }

    fn take(&mut self, data: &[u8], config: &Config) -> Result<Option<()>, Error> {
        match WireInfo::decode(data) {
            None => return Ok(None),
            Some(WireInfo::Export(export)) => self.export = Some(export),
            Some(WireInfo::Name(Err(NameError::TooLong { .. }))) => return Ok(None),
            // A name that no client could ask for is as good as none.
            Some(WireInfo::Name(name)) => self.name = name.ok(),
            Some(WireInfo::Description(text)) => {
                if data.len() > 2 + MAX_STRING {
                    return Ok(None);
                }
                self.description = Some(text);
            }
            Some(WireInfo::BlockSize(sizes)) => match sizes.try_into() {
                Ok(sizes) => self.block_sizes = Some(sizes),
                Err(_) if config.tolerance.invalid_block_sizes => {
                    self.tolerated.invalid_block_sizes = true;
                    self.block_sizes = None;
                }
                Err(error) => return Err(error),
            },
            Some(WireInfo::Other(_)) => {}
        }
        Ok(Some(()))
    }

    /// The export, and the deviations that were overlooked in its description.
    fn into_export(
        mut self,
        option: OptionCode,
        config: &Config,
        mode: HeaderStyle,
    ) -> Result<(ExportInfo, Tolerance), Error> {
        let export = self.export.ok_or(Error::NoExportInfo { option })?;
        let info = ExportInfo {
            name: self.name,
            description: self.description,
            block_sizes: self.block_sizes,
            ..checked(export, config, mode, &mut self.tolerated)?
        };
        Ok((info, self.tolerated))
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
            Ok(()) => {
                let config = &options.negotiated.config;
                let (info, _) = self
                    .infos
                    .into_export(OptionCode::Info, config, options.mode())?;
                Ok(info)
            }
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
        let (info, tolerated) = self.infos.into_export(OptionCode::Go, &config, mode)?;
        Ok(GoOutcome::Accepted(Transmission::new(
            info, mode, contexts, config, tolerated,
        )))
    }
}

/// `NBD_OPT_STARTTLS`; a refusal gives `O` back.
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
        Ok(switch(self.options, verdict, HeaderStyle::Structured))
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
        Ok(switch(self.options, verdict, HeaderStyle::Extended))
    }
}

fn switch<S>(
    mut options: Options<S>,
    verdict: Result<(), OptionError>,
    mode: HeaderStyle,
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
    /// Also those that were not asked for.
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
