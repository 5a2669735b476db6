//! Waiting for the replies to an option.

mod export_name;
pub mod outstanding;

pub use export_name::PendingExportName;

use super::{Config, Options, Tolerance, Transmission, Upgrade};
use crate::{
    ContextName, Error, ExportInfo, ExportName, HeaderStyle, MAX_STRING, NameError, OptionError,
    Phase, Step, Text, TransmissionFlags,
    client::Limits,
    gather::Gather,
    wire::{ExportBlock, OptionCode, OptionReplyCode, OptionReplyHeader},
};
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
    /// Number of replies so far that do not end the option.
    replies: u32,
    /// Total length of their data in bytes.
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

    /// Takes note of `n` more bytes. Returns the server's decision once it is complete.
    fn advance(&mut self, n: usize) -> Result<Option<Result<(), OptionError>>, Error> {
        if !self.gather.filled(n) {
            return Ok(None);
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
                    return Ok(None);
                }
                header
            }
        };
        let data = self.gather.bytes();
        match header.reply {
            OptionReplyCode::Ack => Ok(Some(Ok(()))),
            error if error.is_error() => Ok(Some(Err(OptionError {
                option: header.option,
                code: error,
                message: Text::from_lossy(data),
            }))),
            reply => {
                let OptionReplyHeader { option, len, .. } = header;
                self.option.take(data)?.ok_or(Error::MalformedOptionReply {
                    option,
                    reply,
                    len,
                })?;
                self.gather.restart(OptionReplyHeader::LEN);
                Ok(None)
            }
        }
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
        match self.advance(n)? {
            None => Ok(Step::More(self)),
            Some(verdict) => self.option.settle(verdict).map(Step::Done),
        }
    }

    // Like the provided one, but moves nothing between the messages of an answer.
    fn feed(
        mut self,
        bytes: &[u8],
        _: &mut BytesMut,
    ) -> Result<(usize, Step<Self, O::Outcome>), Error> {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            let space = self.gather.space();
            let n = space.len().min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            used += n;
            if let Some(verdict) = self.advance(n)? {
                return Ok((used, Step::Done(self.option.settle(verdict)?)));
            }
        }
        Ok((used, Step::More(self)))
    }
}

/// The answer that a [`Pending`] option expects, and the phase after it. Implemented by the types
/// of [`outstanding`] and by nothing else.
pub trait Outstanding: sealed::Sealed {
    /// The phase that the answer leads to.
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

/// A handle that negotiates on, and the outcome of the option.
#[derive(Debug)]
pub struct Settled<S, T> {
    /// The handle.
    pub options: Options<S>,
    /// The server's answer, or its refusal.
    pub result: Result<T, OptionError>,
}

/// The outcome of `NBD_OPT_STARTTLS`.
#[derive(Debug)]
pub enum TlsOutcome<O> {
    /// The TLS handshake begins.
    Accepted(Upgrade),
    /// The connection stays in the clear.
    Refused(O, OptionError),
}

/// The outcome of `NBD_OPT_GO`.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is what nearly always comes, and is taken out at once"
)]
pub enum GoOutcome<S> {
    /// The export is entered.
    Accepted(Transmission),
    /// Negotiation goes on.
    Refused(Options<S>, OptionError),
}

/// One export of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// Its name, or the error in it.
    pub name: Result<ExportName, NameError>,
    /// Text for people; may be empty.
    pub description: Text,
}

/// One meta context of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextEntry {
    /// Its name or a pattern that stands for several, or the error in it.
    pub name: Result<ContextName, NameError>,
}

/// An export whose flags were checked and masked. An overlooked deviation is added to `tolerated`.
fn checked(
    export: ExportBlock,
    config: &Config,
    mode: HeaderStyle,
    tolerated: &mut Tolerance,
) -> Result<ExportInfo, Error> {
    let flags = if export.flags.contains(TransmissionFlags::HAS_FLAGS) {
        ExportInfo::mask(export.flags, mode)
    } else if config.tolerance.no_flags {
        tolerated.no_flags = true;
        TransmissionFlags::NONE
    } else {
        return Err(Error::NoFlags {
            flags: export.flags.bits(),
        });
    };
    Ok(ExportInfo::new(export.size, flags))
}
