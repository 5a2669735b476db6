//! Negotiation all at once: the order of options, and what to fall back to.
//!
//! ```text
//! STARTTLS -> EXTENDED_HEADERS, else STRUCTURED_REPLY -> SET_META_CONTEXT -> GO, else EXPORT_NAME
//! ```

use super::negotiation::{Greeted, Haggling, Refused, enter_by_name, greet, greet_secure};
use crate::transport::{DriveError, Transport};
use bytes::BytesMut;
use nbd_proto::{
    ContextName, Error, ExportName, Misuse, Mode, OptionError,
    client::{Config, Go, InfoSet, Transmission},
    wire::OptionReplyCode,
};
use std::{fmt, io};

/// Whether a connection is encrypted.
///
/// Spec: [TLS support](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#tls-support).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Never.
    #[default]
    Never,
    /// If the server can. A man in the middle can make it look as if it could not.
    IfOffered,
    /// Always: a server that cannot is an error, and nothing but the wish for TLS is sent in the
    /// clear.
    Always,
}

/// What to negotiate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Target {
    /// The export to enter.
    pub export: ExportName,
    /// Whether to start TLS.
    pub tls: TlsPolicy,
    /// Meta contexts to select. Those that the server does not have are left out.
    pub contexts: Vec<ContextName>,
    /// What to ask for beside the export's size, flags and block sizes.
    pub infos: InfoSet,
    /// Whether to ask for structured replies. Without them no context can be selected.
    pub structured_replies: bool,
    /// Whether to ask for extended headers, which imply structured replies.
    pub extended_headers: bool,
    /// Limits and tolerance.
    pub config: Config,
}

impl Target {
    /// The export, with everything asked for that makes transmission better, without TLS and
    /// without contexts.
    #[must_use]
    pub fn new(export: ExportName) -> Self {
        Self {
            export,
            tls: TlsPolicy::Never,
            contexts: Vec::new(),
            infos: InfoSet::ALL,
            structured_replies: true,
            extended_headers: true,
            config: Config::default(),
        }
    }
}

/// An export that was entered, and the transport over which it is used.
#[derive(Debug)]
pub struct Connected<T> {
    /// The transport.
    pub transport: T,
    /// The protocol's side of it.
    pub transmission: Transmission,
    /// Whether TLS is up.
    pub encrypted: bool,
}

/// Why an export could not be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The transport failed.
    #[error("the connection failed during {during}: {source}")]
    Io {
        /// What was being done.
        during: String,
        /// How it failed.
        source: io::Error,
    },
    /// The server broke the protocol.
    #[error(
        "the server broke the protocol during {during} ({rule}): {source}",
        rule = source.rule()
    )]
    Protocol {
        /// What was being done.
        during: String,
        /// How it did.
        source: Error,
    },
    /// The server closed the connection where it must not.
    #[error("the server closed the connection during {during}")]
    Closed {
        /// What was being done.
        during: String,
    },
    /// The server closed the connection in answer to `NBD_OPT_EXPORT_NAME`.
    #[error("the server has no export \"{name}\", or wants TLS for it: it closed the connection")]
    ExportNameRefused {
        /// The export.
        name: ExportName,
    },
    /// The server refused an option.
    #[error(transparent)]
    Refused(OptionError),
    /// TLS is required and the server refused it.
    #[error("TLS is required, and the server refuses it: {0}")]
    TlsRefused(#[source] OptionError),
    /// The server requires TLS, which is switched off on this side.
    #[error("the server requires TLS, which is switched off here: {0}")]
    TlsWanted(#[source] OptionError),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server ended the connection before it said anything inside TLS, which is how TLS 1.3
    /// servers refuse a client's certificate.
    #[error(
        "the server ended the connection right after the TLS handshake: it may want a client \
         certificate, or another one: {0}"
    )]
    TlsBrokeOff(#[source] Box<Self>),
    /// What was asked for cannot be sent.
    #[error(transparent)]
    Misuse(Misuse),
    /// An export was named, and the server speaks oldstyle, which has no names.
    #[error("the server speaks oldstyle and has no export names, so not \"{name}\" either")]
    NoExportNames {
        /// The export.
        name: ExportName,
    },
    /// The connection failed before.
    #[error("the connection failed before")]
    Over,
}

impl NegotiationError {
    pub(super) fn during(during: impl fmt::Display, error: DriveError) -> Self {
        let during = during.to_string();
        match error {
            DriveError::Io(source) => Self::Io { during, source },
            DriveError::Protocol(source) => Self::Protocol { during, source },
            DriveError::Closed => Self::Closed { during },
        }
    }

    /// Tells a refusal for want of TLS from others.
    fn or_tls_wanted(self) -> Self {
        match self {
            Self::Refused(error) if error.code == OptionReplyCode::ErrTlsReqd => {
                Self::TlsWanted(error)
            }
            other => other,
        }
    }
}

/// Negotiates until an export is entered; `upgrade` does the TLS handshake on the transport.
///
/// # Errors
///
/// When the export cannot be entered. If the server speaks the protocol, the session has been
/// ended by `NBD_OPT_ABORT` then.
///
/// # Cancel safety
///
/// None: the transport is lost with the future.
pub async fn negotiate<T, F>(
    transport: T,
    target: &Target,
    upgrade: impl FnOnce(T) -> F,
) -> Result<Connected<T>, NegotiationError>
where
    T: Transport,
    F: Future<Output = Result<T, NegotiationError>>,
{
    let config = target.config;
    if target.tls == TlsPolicy::Always {
        let haggling = greet_secure(transport, config)
            .await?
            .start_tls(upgrade)
            .await?;
        return haggle(haggling, target).await.map(encrypted);
    }
    let haggling = match greet(transport, config).await? {
        Greeted::Options(haggling) => haggling,
        Greeted::Newstyle(transport, newstyle) => {
            let mut out = BytesMut::new();
            let pending = newstyle.export_name(&target.export, &mut out);
            return enter_by_name(transport, out, pending, &target.export)
                .await
                .map(in_the_clear);
        }
        Greeted::Oldstyle(_, _) if !target.export.is_default() => {
            return Err(NegotiationError::NoExportNames {
                name: target.export.clone(),
            });
        }
        Greeted::Oldstyle(transport, oldstyle) => {
            return Ok(in_the_clear((transport, oldstyle.accept())));
        }
    };
    match target.tls {
        TlsPolicy::IfOffered => match haggling.start_tls(upgrade).await? {
            Ok(haggling) => haggle(haggling, target).await.map(encrypted),
            Err(refused) => haggle(refused.handle, target).await.map(in_the_clear),
        },
        TlsPolicy::Never | TlsPolicy::Always => haggle(haggling, target).await.map(in_the_clear),
    }
}

fn encrypted<T>((transport, transmission): (T, Transmission)) -> Connected<T> {
    Connected {
        transport,
        transmission,
        encrypted: true,
    }
}

fn in_the_clear<T>((transport, transmission): (T, Transmission)) -> Connected<T> {
    Connected {
        transport,
        transmission,
        encrypted: false,
    }
}

/// Everything after TLS. Ends the session if the export cannot be entered.
///
/// A refusal is never tried again: what a server could want (TLS, extended headers, the question
/// for block sizes) has been offered before, unless the caller switched it off.
async fn haggle<T: Transport, S>(
    mut haggling: Haggling<T, S>,
    target: &Target,
) -> Result<(T, Transmission), NegotiationError> {
    if let Err(error) = prepare(&mut haggling, target).await {
        haggling.abort().await;
        return Err(error.or_tls_wanted());
    }
    let go = Go {
        name: target.export.clone(),
        infos: target.infos.with_block_size(),
    };
    let Refused {
        handle: haggling,
        error,
    } = match haggling.go(go).await? {
        Ok(entered) => return Ok(entered),
        Err(refused) => refused,
    };
    if error.code == OptionReplyCode::ErrUnsup && haggling.mode() != Mode::Extended {
        return haggling.export_name(&target.export).await;
    }
    haggling.abort().await;
    Err(NegotiationError::Refused(error).or_tls_wanted())
}

/// Headers and contexts. A server that lacks them is used without.
async fn prepare<T: Transport, S>(
    haggling: &mut Haggling<T, S>,
    target: &Target,
) -> Result<(), NegotiationError> {
    if target.extended_headers && haggling.mode() != Mode::Extended {
        overlook(haggling.extended_headers().await)?;
    }
    if target.structured_replies && haggling.mode() == Mode::Simple {
        overlook(haggling.structured_reply().await)?;
    }
    if !target.contexts.is_empty() && haggling.mode() != Mode::Simple {
        overlook(
            haggling
                .set_meta_context(&target.export, &target.contexts)
                .await
                .map(drop),
        )?;
    }
    Ok(())
}

/// A refusal of something optional is no failure, unless nothing else can be expected of the
/// server either.
fn overlook(result: Result<(), NegotiationError>) -> Result<(), NegotiationError> {
    match result {
        Err(NegotiationError::Refused(error))
            if !matches!(
                error.code,
                OptionReplyCode::ErrShutdown | OptionReplyCode::ErrTlsReqd
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}
