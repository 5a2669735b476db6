//! The first step: the style of the server, and TLS before anything else.

#[cfg(feature = "tracing")]
use super::messages;
use super::{ANSWER, Connected, NegotiationError, OptionExchange, enter_by_name, send_abort};
use crate::transport::{Transport, drive, drive_before, write_all};
use bytes::BytesMut;
use nbd_proto::{
    ExportName,
    client::{self, Encrypted, Newstyle, Oldstyle, Plain, TlsOutcome, TlsRequired},
    wire::OptionCode,
};

/// Name of the first step in errors.
pub(in super::super) const GREETING: &str = "the greeting";

/// The kind of handshake that a server speaks, and the transport to it.
#[derive(Debug)]
pub enum Greeted<T: Transport> {
    /// Fixed newstyle: the whole protocol.
    FixedNewstyle(OptionExchange<T, Plain>),
    /// Newstyle that is not fixed: only [`Newstyle::export_name`] can be sent.
    Newstyle(T, Newstyle),
    /// Oldstyle: the server has entered its only export already.
    Oldstyle(T, Oldstyle),
}

/// Waits for a server to greet.
///
/// # Errors
///
/// When the transport fails or the peer is no NBD server.
///
/// # Cancel safety
///
/// None: the transport is lost with the future.
pub async fn greet<T: Transport>(
    mut transport: T,
    config: client::Config,
) -> Result<Greeted<T>, NegotiationError> {
    let mut out = BytesMut::with_capacity(ANSWER);
    let failed = |error| NegotiationError::during(GREETING, error);
    let greeted = drive_before(&mut transport, &mut out, client::Handshake::new(config))
        .await
        .map_err(failed)?;
    #[cfg(feature = "tracing")]
    {
        tracing::debug!(handshake = %style(&greeted), "the server has greeted");
        messages::flags_sent(&out);
    }
    Ok(match greeted {
        client::Greeted::FixedNewstyle(options) => {
            let mut exchange = OptionExchange::new(transport, options);
            // The answer to the greeting goes with the first option.
            exchange.buffer = out;
            Greeted::FixedNewstyle(exchange)
        }
        client::Greeted::Newstyle(newstyle) => {
            let written = write_all(&mut transport, &mut out).await;
            written.map_err(|error| failed(error.into()))?;
            Greeted::Newstyle(transport, newstyle)
        }
        client::Greeted::Oldstyle(oldstyle) => Greeted::Oldstyle(transport, oldstyle),
    })
}

/// Name of a server's style of greeting.
#[cfg(feature = "tracing")]
const fn style(greeted: &client::Greeted) -> &'static str {
    match greeted {
        client::Greeted::FixedNewstyle(_) => "fixed newstyle",
        client::Greeted::Newstyle(_) => "newstyle",
        client::Greeted::Oldstyle(_) => "oldstyle",
    }
}

/// Waits for a server to greet with which nothing is exchanged in the clear but the wish for TLS.
///
/// # Errors
///
/// When the transport fails, the peer is no NBD server or cannot start TLS.
///
/// # Cancel safety
///
/// None: the transport is lost with the future.
pub async fn greet_secure<T: Transport>(
    mut transport: T,
    config: client::Config,
) -> Result<TlsOnly<T>, NegotiationError> {
    let mut out = BytesMut::new();
    let options = drive(
        &mut transport,
        &mut out,
        client::SecureHandshake::new(config),
    )
    .await
    .map_err(|error| NegotiationError::during(GREETING, error))?;
    #[cfg(feature = "tracing")]
    tracing::debug!(
        handshake = "fixed newstyle, for TLS",
        "the server has greeted"
    );
    Ok(TlsOnly { transport, options })
}

/// A connection on which TLS has to be started before anything else.
#[derive(Debug)]
#[must_use]
pub struct TlsOnly<T> {
    transport: T,
    options: TlsRequired,
}

impl<T: Transport> TlsOnly<T> {
    /// Starts TLS; `upgrade` does the TLS handshake on the transport.
    ///
    /// # Errors
    ///
    /// When the transport or the TLS handshake fails, or the server refuses.
    ///
    /// # Cancel safety
    ///
    /// None: the transport is lost with the future.
    pub async fn start_tls<U: Transport, F>(
        self,
        upgrade: impl FnOnce(T) -> F,
    ) -> Result<OptionExchange<U, Encrypted>, NegotiationError>
    where
        F: Future<Output = Result<U, NegotiationError>>,
    {
        let Self {
            mut transport,
            options,
        } = self;
        let mut out = BytesMut::new();
        let pending = options.start_tls(&mut out);
        #[cfg(feature = "tracing")]
        messages::option_sent(OptionCode::StartTls, out.len());
        let outcome = drive(&mut transport, &mut out, pending)
            .await
            .map_err(|error| NegotiationError::during(OptionCode::StartTls, error))?;
        #[cfg(feature = "tracing")]
        messages::tls_answered(&outcome);
        match outcome {
            TlsOutcome::Accepted(ready) => {
                let transport = upgrade(transport).await?;
                Ok(OptionExchange::inside_tls(transport, ready.upgraded()))
            }
            TlsOutcome::Refused(options, error) => {
                options.abort(&mut out);
                send_abort(&mut transport, &mut out).await;
                Err(NegotiationError::TlsRefused(error))
            }
        }
    }
}

/// Enters an export of a server that speaks newstyle, but not the fixed one.
pub(in super::super) async fn enter_newstyle<T: Transport>(
    transport: T,
    newstyle: Newstyle,
    name: &ExportName,
) -> Result<Connected<T>, NegotiationError> {
    let mut out = BytesMut::new();
    let pending = newstyle.export_name(name, &mut out);
    enter_by_name(transport, out, pending, name, false).await
}
