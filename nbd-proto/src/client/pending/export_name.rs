//! Waiting for the export that was asked for by its name alone.

use super::{
    super::{Config, Context, Tolerance, Transmission},
    checked,
};
use crate::{
    Error, HeaderStyle, Phase, Step,
    gather::Gather,
    wire::{ExportBlock, OptionCode, ZEROES},
};
use alloc::vec::Vec;
use bytes::BytesMut;

/// `NBD_OPT_EXPORT_NAME` was sent. The server answers with a block of its own form, or closes the
/// connection because it has no such export or wants TLS for it.
#[derive(Debug)]
#[must_use]
pub struct PendingExportName {
    gather: Gather,
    config: Config,
    mode: HeaderStyle,
    contexts: Vec<Context>,
}

impl PendingExportName {
    pub(in super::super) const fn new(
        config: Config,
        no_zeroes: bool,
        mode: HeaderStyle,
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
        let mut tolerated = Tolerance::STRICT;
        let info = checked(export, &self.config, self.mode, &mut tolerated)?;
        Ok(Step::Done(Transmission::new(
            info,
            self.mode,
            self.contexts,
            self.config,
            tolerated,
        )))
    }
}
