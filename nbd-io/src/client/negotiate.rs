//! Negotiation all at once: the order of options, and the fallbacks.
//!
//! ```text
//! STARTTLS -> EXTENDED_HEADERS, else STRUCTURED_REPLY -> SET_META_CONTEXT -> GO, else EXPORT_NAME
//! ```

use super::{
    NegotiationConfig, TlsPolicy,
    error::causes,
    exchange::{Greeted, OptionExchange, Refused, enter_newstyle, greet, greet_secure},
};
use crate::transport::{DriveError, Transport};
use nbd_proto::{
    ContextName, Error, ExportName, HeaderStyle, Misuse, OptionError,
    client::{Context, Go, Transmission},
    wire::OptionReplyCode,
};
use std::{fmt, io};

/// An export that was entered, and the transport over which it is used.
#[derive(Debug)]
pub struct Connected<T> {
    /// The transport.
    pub transport: T,
    /// The protocol's side of it. In a box, because each level of connecting moves it.
    pub transmission: Box<Transmission>,
    /// Whether TLS is up.
    pub encrypted: bool,
}

/// Reasons for which an export could not be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The transport failed.
    #[error("the connection failed during {during}: {}", causes(source))]
    Io {
        /// The step.
        during: String,
        /// The reason.
        source: io::Error,
    },
    /// The server broke the protocol.
    #[error(
        "the server broke the protocol during {during} ({rule}): {source}",
        rule = source.rule()
    )]
    Protocol {
        /// The step.
        during: String,
        /// The violation.
        source: Error,
    },
    /// The server closed the connection where it must not.
    #[error("the server closed the connection during {during}")]
    Closed {
        /// The step.
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
    #[error("the TLS handshake failed: {}", causes(&**.0))]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server ended the connection before it said anything inside TLS, which is how TLS 1.3
    /// servers refuse a client's certificate.
    #[error(
        "the server ended the connection right after the TLS handshake: it may want a client \
         certificate, or another one: {0}"
    )]
    TlsBrokeOff(#[source] Box<Self>),
    /// A request that cannot be sent.
    #[error(transparent)]
    Misuse(Misuse),
    /// An export was named, and the server speaks oldstyle, which has no names.
    #[error("the server speaks oldstyle and has no export names, so not \"{name}\" either")]
    NoExportNames {
        /// The export.
        name: ExportName,
    },
    /// A meta context is required that cannot be selected.
    #[error("the meta context {name} is required, and {why}")]
    NoContext {
        /// The context.
        name: ContextName,
        /// The reason for which it cannot be selected.
        why: &'static str,
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

    /// Distinguishes a refusal for want of TLS from others.
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
/// Steps that few servers want are in boxes, so that the future has no room for them.
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
    config: &NegotiationConfig,
    upgrade: impl FnOnce(T) -> F,
) -> Result<Connected<T>, NegotiationError>
where
    T: Transport,
    F: Future<Output = Result<T, NegotiationError>>,
{
    if config.tls == TlsPolicy::Always {
        let only = Box::pin(greet_secure(transport, config.protocol)).await?;
        let exchange = Box::pin(only.start_tls(upgrade)).await?;
        return Box::pin(negotiate_options(exchange, config)).await;
    }
    match greet(transport, config.protocol).await? {
        Greeted::FixedNewstyle(exchange) if config.tls == TlsPolicy::IfOffered => {
            match Box::pin(exchange.start_tls(upgrade)).await? {
                Ok(exchange) => Box::pin(negotiate_options(exchange, config)).await,
                Err(refused) => Box::pin(negotiate_options(refused.handle, config)).await,
            }
        }
        Greeted::FixedNewstyle(exchange) => negotiate_options(exchange, config).await,
        Greeted::Newstyle(transport, newstyle) => {
            require(config, &[], TOO_OLD)?;
            Box::pin(enter_newstyle(transport, newstyle, &config.export)).await
        }
        Greeted::Oldstyle(_, _) if !config.export.is_default() => {
            Err(NegotiationError::NoExportNames {
                name: config.export.clone(),
            })
        }
        Greeted::Oldstyle(transport, oldstyle) => {
            require(config, &[], TOO_OLD)?;
            Ok(Connected {
                transport,
                transmission: Box::new(oldstyle.accept()),
                encrypted: false,
            })
        }
    }
}

/// Everything after TLS. Ends the session if the export cannot be entered.
///
/// A refusal is never tried again: everything that a server could want (TLS, extended headers, the
/// question for block sizes) has been offered before, unless the caller switched it off.
async fn negotiate_options<T: Transport, S>(
    mut exchange: OptionExchange<T, S>,
    config: &NegotiationConfig,
) -> Result<Connected<T>, NegotiationError> {
    if let Err(error) = prepare(&mut exchange, config).await {
        exchange.abort().await;
        return Err(error.or_tls_wanted());
    }
    let go = Go {
        name: config.export.clone(),
        infos: config.infos.with_block_size(),
    };
    let Refused {
        handle: exchange,
        error,
    } = match exchange.go(go).await? {
        Ok(entered) => return Ok(entered),
        Err(refused) => refused,
    };
    if error.code == OptionReplyCode::ErrUnsup && exchange.mode() != HeaderStyle::Extended {
        return Box::pin(exchange.export_name(&config.export)).await;
    }
    exchange.abort().await;
    Err(NegotiationError::Refused(error).or_tls_wanted())
}

/// Headers and contexts. A server that lacks them is used without.
async fn prepare<T: Transport, S>(
    exchange: &mut OptionExchange<T, S>,
    config: &NegotiationConfig,
) -> Result<(), NegotiationError> {
    if config.extended_headers && exchange.mode() != HeaderStyle::Extended {
        overlook(exchange.extended_headers().await)?;
    }
    if config.structured_replies && exchange.mode() == HeaderStyle::Simple {
        overlook(exchange.structured_reply().await)?;
    }
    if config.contexts.is_empty() {
        return Ok(());
    }
    if exchange.mode() == HeaderStyle::Simple {
        return require(config, &[], "there are no structured replies");
    }
    let selecting = exchange.set_meta_context(&config.export, &config.contexts);
    match Box::pin(selecting).await {
        Ok(selected) => require(config, &selected, "the export does not have it"),
        Err(error) if config.required_contexts.is_empty() => overlook(Err(error)),
        Err(error) => Err(error),
    }
}

const TOO_OLD: &str = "the server speaks a protocol without meta contexts";

/// Fails unless every required context was selected.
fn require(
    config: &NegotiationConfig,
    selected: &[Context],
    why: &'static str,
) -> Result<(), NegotiationError> {
    let is_selected = |name: &&ContextName| selected.iter().any(|c| c.name.as_ref() == Some(name));
    let mut required = config.required_contexts.iter();
    match required.find(|name| !is_selected(name)) {
        Some(name) => Err(NegotiationError::NoContext {
            name: name.clone(),
            why,
        }),
        None => Ok(()),
    }
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
