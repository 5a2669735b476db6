//! Reading options, one at a time, without trust in the lengths that they announce.

use super::Config;
use crate::{
    Error, MAX_STRING,
    gather::Gather,
    wire::{ClientFlags, OptionCode, OptionRequestHeader},
};

/// Options that a client may send for each export that it was shown: programs that list all exports
/// ask two to four questions about each.
const OPTIONS_PER_EXPORT: u32 = 8;

/// State of a connection from its greeting on, which outlasts the start of TLS.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) config: Config,
    pub(super) no_zeroes: bool,
    pub(super) shutdown: bool,
    fixed_newstyle: bool,
    /// Options that have come, and the cost of lists beyond that.
    options: u32,
    /// The longest list of exports that the client was shown.
    listed: u32,
}

impl Connection {
    pub(super) const fn new(config: Config, flags: ClientFlags) -> Self {
        Self {
            config,
            no_zeroes: flags.contains(ClientFlags::NO_ZEROES),
            shutdown: false,
            fixed_newstyle: flags.contains(ClientFlags::FIXED_NEWSTYLE),
            options: 0,
            listed: 0,
        }
    }

    /// Allows options for every one of `exports` that were listed. Listing them again allows no
    /// more, and costs as many options as there are: a list is the one answer whose length a client
    /// does not pay for by its question.
    pub(super) fn listed(&mut self, exports: u32) {
        if self.listed > 0 {
            self.options = self.options.saturating_add(exports);
        }
        self.listed = self.listed.max(exports);
    }

    /// Checks an option by its header, before its data.
    fn admit(&mut self, header: OptionRequestHeader) -> Result<(), Error> {
        let OptionRequestHeader { option, len } = header;
        if option == OptionCode::ExportName {
            if usize::try_from(len).map_or(true, |len| len > MAX_STRING) {
                return Err(Error::ExportNameRefused {
                    why: "the name is longer than a string may be",
                });
            }
        } else if !self.fixed_newstyle {
            return Err(Error::OptionNeedsFixedNewstyle { option });
        }
        let limit = self.config.limits.option_drain;
        if len > limit {
            return Err(Error::OptionTooLong { option, len, limit });
        }
        self.options = self.options.saturating_add(1);
        let for_listed = self.listed.saturating_mul(OPTIONS_PER_EXPORT);
        let limit = self.config.limits.options.saturating_add(for_listed);
        if self.options > limit {
            return Err(Error::TooManyOptions { limit });
        }
        Ok(())
    }
}

/// An option whose data has been read or skipped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) option: OptionCode,
    pub(super) len: u32,
    /// Its data was too long to be looked at.
    pub(super) too_big: bool,
}

/// Reads a header, then the data if it is looked at.
#[derive(Debug)]
pub(super) struct Reader {
    gather: Gather,
    asked: Option<Asked>,
    keeps_data: bool,
}

impl Reader {
    /// `keeps_data` is whether the data of an option matters.
    pub(super) const fn new(keeps_data: bool) -> Self {
        Self {
            gather: Gather::new(OptionRequestHeader::LEN),
            asked: None,
            keeps_data,
        }
    }

    pub(super) fn space(&mut self) -> &mut [u8] {
        self.gather.space()
    }

    /// Whether no byte of an option has come.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_none() && self.gather.bytes().is_empty()
    }

    /// Returns the option once all of it has come.
    pub(super) fn filled(
        &mut self,
        n: usize,
        connection: &mut Connection,
    ) -> Result<Option<Asked>, Error> {
        if !self.gather.filled(n) {
            return Ok(None);
        }
        if self.asked.is_none() {
            let header = self
                .gather
                .array()
                .expect("as many bytes as a header has were wanted");
            let header =
                OptionRequestHeader::decode(header).map_err(|got| Error::OptionMagic { got })?;
            connection.admit(header)?;
            self.start_data(header, &connection.config)?;
        }
        Ok(self.asked.filter(|_| self.gather.is_complete()))
    }

    fn start_data(&mut self, header: OptionRequestHeader, config: &Config) -> Result<(), Error> {
        let OptionRequestHeader { option, len } = header;
        let size = usize::try_from(len).map_err(|_| Error::OptionTooLong {
            option,
            len,
            limit: config.limits.option_drain,
        })?;
        let looked_at = self.keeps_data
            && matches!(
                option,
                OptionCode::ExportName
                    | OptionCode::Info
                    | OptionCode::Go
                    | OptionCode::ListMetaContext
                    | OptionCode::SetMetaContext
            );
        // A name is never longer than a string may be, even with a higher limit.
        let too_big =
            looked_at && option != OptionCode::ExportName && len > config.limits.option_data;
        if looked_at && !too_big {
            self.gather.restart(size);
        } else {
            self.gather.discard(size);
        }
        self.asked = Some(Asked {
            option,
            len,
            too_big,
        });
        Ok(())
    }

    /// The data of the option that has come; empty if it is not looked at.
    pub(super) fn data(&self) -> &[u8] {
        self.gather.bytes()
    }

    /// Starts over with the next option.
    pub(super) fn restart(&mut self) {
        self.asked = None;
        self.gather.restart(OptionRequestHeader::LEN);
    }
}
