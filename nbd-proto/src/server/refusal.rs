//! Answers to options, above all refusals.

use super::{
    Options, Security,
    export::{Infos, within},
};
use crate::{
    BlockSizes, ExportName,
    names::Quoted,
    wire::{HeaderStyle, Info, OptionCode, OptionReplyCode, put_option_reply},
};
use alloc::format;
use bytes::{BufMut, BytesMut};

/// The longest text that goes with a refusal, in bytes.
const MAX_TEXT: usize = 256;

/// Reasons for which a server does not grant an option.
///
/// Spec: [Option reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
///
/// The specification allows some answers to some options in some situations only; where one is
/// not allowed, the nearest one that is goes out instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such export, or it is not available.
    Unknown,
    /// It would be possible, but the configuration forbids it.
    Policy,
    /// The request makes no sense.
    Invalid,
    /// This build or platform cannot do it.
    Platform,
    /// The export is to be used with TLS only. Goes out as such in answer to `NBD_OPT_INFO` and
    /// `NBD_OPT_GO` of a client that can start TLS, and as [`Policy`](Self::Policy) or
    /// [`Unknown`](Self::Unknown) otherwise.
    TlsRequired,
    /// The server is going away.
    Shutdown,
    /// The export's block sizes are too unusual for a client that does not ask for them. They are
    /// sent to it all the same. Goes out as [`Policy`](Self::Policy) to a client that did ask.
    BlockSizeRequired(BlockSizes),
    /// The request or its answer is too large.
    TooBig,
    /// This needs extended headers. Goes out as [`Policy`](Self::Policy) to a client that has
    /// negotiated them, and to one that asked for nothing but contexts of `base:`.
    ExtendedHeadersRequired,
}

/// The option that is refused, with the facts that decide which refusals are legal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    pub(super) option: OptionCode,
    /// The export in question, if there is one.
    pub(super) export: Option<&'a ExportName>,
    /// Information on the export that was asked for, if any.
    pub(super) infos: Infos,
    /// The queries were all for contexts of `base:`.
    pub(super) only_base: bool,
}

impl Question<'_> {
    fn is_info(&self) -> bool {
        matches!(self.option, OptionCode::Info | OptionCode::Go)
    }

    /// The nearest refusal that the specification allows.
    fn legal(&self, refusal: Refusal, can_start_tls: bool, mode: HeaderStyle) -> Refusal {
        let legal = match refusal {
            Refusal::TlsRequired if !can_start_tls => {
                return self.legal(Refusal::Unknown, can_start_tls, mode);
            }
            Refusal::TlsRequired => self.is_info(),
            Refusal::BlockSizeRequired(_) => self.is_info() && !self.infos.block_size,
            Refusal::Unknown => self.export.is_some(),
            Refusal::ExtendedHeadersRequired => {
                self.export.is_some() && mode != HeaderStyle::Extended && !self.only_base
            }
            Refusal::Policy
            | Refusal::Invalid
            | Refusal::Platform
            | Refusal::Shutdown
            | Refusal::TooBig => true,
        };
        if legal { refusal } else { Refusal::Policy }
    }
}

/// Refuses an option and goes on negotiation. An empty `text` stands for words of this crate's.
pub(super) fn refuse<S: Security>(
    options: &Options<S>,
    question: &Question<'_>,
    refusal: Refusal,
    text: &str,
    out: &mut BytesMut,
) {
    let refusal = question.legal(
        refusal,
        options.security.can_start_tls(),
        options.negotiated.mode,
    );
    if let Refusal::BlockSizeRequired(sizes) = refusal {
        let sizes = within(sizes, &options.connection.config.limits);
        put_option_reply(question.option, OptionReplyCode::Info, out, |out| {
            Info::BlockSize(sizes.into()).encode(out);
        });
    }
    let (code, words) = match refusal {
        Refusal::Unknown => (OptionReplyCode::ErrUnknown, ""),
        Refusal::Policy => (
            OptionReplyCode::ErrPolicy,
            "the server's configuration forbids this",
        ),
        Refusal::Invalid => (OptionReplyCode::ErrInvalid, "the request makes no sense"),
        Refusal::Platform => (
            OptionReplyCode::ErrPlatform,
            "the server was built without this",
        ),
        Refusal::TlsRequired => (
            OptionReplyCode::ErrTlsReqd,
            "the export is available with TLS only",
        ),
        Refusal::Shutdown => (OptionReplyCode::ErrShutdown, SHUTTING_DOWN),
        Refusal::BlockSizeRequired(_) => (
            OptionReplyCode::ErrBlockSizeReqd,
            "the client has to ask for NBD_INFO_BLOCK_SIZE",
        ),
        Refusal::TooBig => (
            OptionReplyCode::ErrTooBig,
            "the request or its answer is too large",
        ),
        Refusal::ExtendedHeadersRequired => (
            OptionReplyCode::ErrExtHeaderReqd,
            "this needs extended headers",
        ),
    };
    let quotation;
    let text = match (text, words, question.export) {
        ("", "", Some(name)) => {
            quotation = format!("no export is named \"{}\"", Quoted(name.as_str()));
            &quotation
        }
        ("", words, _) => words,
        (text, _, _) => text,
    };
    put_error(question.option, code, text, out);
}

pub(super) const SHUTTING_DOWN: &str = "the server is shutting down";

/// Appends an acknowledgement.
pub(super) fn put_ack(option: OptionCode, out: &mut BytesMut) {
    put_option_reply(option, OptionReplyCode::Ack, out, |_| {});
}

/// Appends a refusal with `text`, without characters that no string may have, and cut to
/// [`MAX_TEXT`].
pub(super) fn put_error(option: OptionCode, code: OptionReplyCode, text: &str, out: &mut BytesMut) {
    put_option_reply(option, code, out, |out| {
        out.put_slice(shorten(text, MAX_TEXT).as_bytes());
    });
}

/// As much of `text` as fits `max` bytes and stands before the first NUL.
pub(super) fn shorten(text: &str, max: usize) -> &str {
    let mut end = text.find('\0').unwrap_or(text.len()).min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
