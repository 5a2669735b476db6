//! Negotiation with one client, until it enters an export or leaves.

use super::{
    answer::{Answer, answer},
    authorizer::Finder,
    lookup::{Found, Question},
    session::is_end,
};
use crate::{
    AnyExport, Exports,
    transport::{DriveError, Transport, read, write_all},
};
use bytes::BytesMut;
use nbd_proto::{
    Error, ExportName, Phase, Step,
    server::{
        Config, ForcedHandshake, ForcedRequested, Handshake, Options, Security, StartTls, Tls,
        TlsRequired, Transmission,
    },
};
use std::{
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The offer of a server to every client.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The options that may be negotiated, and how much a client may ask for. [`Config::tls`] counts
    /// for nothing: [`tls`](Self::tls) does.
    pub config: Config,
    /// Whether there is TLS.
    pub tls: TlsMode,
}

/// Whether clients start TLS.
///
/// Spec: [TLS support](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#tls-support).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// `NOTLS`: they cannot.
    #[default]
    Off,
    /// `SELECTIVETLS`: they may, and have to for exports that are
    /// [for TLS only](crate::Offer::tls_only).
    Selective,
    /// `FORCEDTLS`: they have to before anything else.
    Forced,
}

/// A client uses an export.
#[derive(Debug)]
#[non_exhaustive]
pub struct Entered<T> {
    /// The transport, on which requests are coming.
    pub transport: T,
    /// The protocol's side of it.
    pub transmission: Transmission,
    /// The export that carries out the requests.
    pub export: AnyExport,
    /// The name under which the client asked for it.
    pub name: ExportName,
    /// Whether TLS is up.
    pub encrypted: bool,
}

/// The end of a client that left without using an export, which is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It said so, by `NBD_OPT_ABORT`.
    Aborted,
    /// It closed the connection between two messages.
    Closed,
}

/// Reasons for which a negotiation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The transport failed, or a deadline of its own has passed.
    #[error("the connection failed while negotiating")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("the client broke the protocol while negotiating ({rule})", rule = .0.rule())]
    Protocol(#[source] Error),
    /// The client asked by `NBD_OPT_EXPORT_NAME` for an export that it does not get. The only way
    /// to say so is to close the connection.
    #[error("the client does not get the export that it asked for: {why}")]
    ExportNameRefused {
        /// The reason.
        why: &'static str,
    },
    /// The client closed the connection in the middle of a message.
    #[error("the client closed the connection in the middle of an option")]
    Closed,
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<Error> for NegotiationError {
    fn from(error: Error) -> Self {
        match error {
            Error::ExportNameRefused { why } => Self::ExportNameRefused { why },
            error => Self::Protocol(error),
        }
    }
}

impl From<DriveError> for NegotiationError {
    fn from(error: DriveError) -> Self {
        match error {
            DriveError::Io(error) => error.into(),
            DriveError::Protocol(error) => error.into(),
            DriveError::Closed => Self::Closed,
        }
    }
}

/// Negotiates with a client until it has entered an export or left; `upgrade` does the TLS
/// handshake on the transport.
///
/// Once `stopping` is true, every option is refused because the server is going away. No client is
/// woken by it.
///
/// [`Exports`] is asked in place, which may block if it [says so](Exports::may_block).
///
/// # Errors
///
/// When the transport or the TLS handshake fails, or the client breaks the protocol. The transport
/// has been shut down then.
///
/// # Cancel safety
///
/// None: the transport is lost with the future.
pub async fn negotiate<T, F>(
    transport: T,
    options: &ServerOptions,
    exports: &dyn Exports,
    stopping: &AtomicBool,
    upgrade: impl FnOnce(T) -> F,
) -> Result<Result<Entered<T>, Ended>, NegotiationError>
where
    T: Transport,
    F: Future<Output = Result<T, NegotiationError>>,
{
    negotiate_with(transport, options, exports, stopping, upgrade).await
}

/// Like [`negotiate`], with exports from elsewhere.
pub(super) async fn negotiate_with<T, F, U>(
    mut transport: T,
    options: &ServerOptions,
    finder: &F,
    stopping: &AtomicBool,
    upgrade: impl FnOnce(T) -> U,
) -> Result<Result<Entered<T>, Ended>, NegotiationError>
where
    T: Transport,
    F: Finder + ?Sized,
    U: Future<Output = Result<T, NegotiationError>>,
{
    let mut out = BytesMut::new();
    let tls = match options.tls {
        TlsMode::Off => Tls::Off,
        TlsMode::Selective | TlsMode::Forced => Tls::Selective,
    };
    let config = Config {
        tls,
        ..options.config
    };
    let mut table = Table {
        finder,
        certificate: None,
        stopping,
    };
    let start = if options.tls == TlsMode::Forced {
        let handshake = Handshake::forced_tls(config, &mut out);
        let asked = table.forced(&mut transport, &mut out, handshake).await;
        close_if(asked.is_err(), &mut transport).await;
        match asked? {
            Ok(start) => start,
            Err(ended) => return Ok(Err(ended)),
        }
    } else {
        let handshake = Handshake::new(config, &mut out);
        let asked = table.next(&mut transport, &mut out, handshake).await;
        close_if(asked.is_err(), &mut transport).await;
        let Some(negotiation) = asked? else {
            return Ok(Err(Ended::Closed));
        };
        let negotiated = table.negotiate(&mut transport, &mut out, negotiation).await;
        close_if(negotiated.is_err(), &mut transport).await;
        match negotiated? {
            Negotiated::StartTls(start) => start,
            negotiated => return Ok(negotiated.outcome(transport, false)),
        }
    };
    let ready = start.accept(&mut out);
    write_all(&mut transport, &mut out).await?;
    let mut transport = upgrade(transport).await?;
    table.certificate = transport.peer_certificate().map(Arc::from);
    let negotiated = table
        .negotiate(&mut transport, &mut out, ready.upgraded())
        .await;
    close_if(negotiated.is_err(), &mut transport).await;
    Ok(negotiated?.outcome(transport, true))
}

/// Shuts the transport down if nothing else can be done with it.
async fn close_if<T: Transport>(has_failed: bool, transport: &mut T) {
    if has_failed {
        let _ = poll_fn(|cx| transport.poll_shutdown(cx)).await;
    }
}

/// The outcome of the options of a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each connection, and it is taken apart at once"
)]
pub(super) enum Negotiated {
    Entered {
        transmission: Transmission,
        export: AnyExport,
        name: ExportName,
    },
    StartTls(StartTls),
    Ended(Ended),
}

impl Negotiated {
    fn outcome<T>(self, transport: T, encrypted: bool) -> Result<Entered<T>, Ended> {
        match self {
            Self::Entered {
                transmission,
                export,
                name,
            } => Ok(Entered {
                transport,
                transmission,
                export,
                name,
                encrypted,
            }),
            Self::Ended(ended) => Err(ended),
            // Inside TLS there is no request to start it, and outside it was taken out before.
            Self::StartTls(_) => Err(Ended::Closed),
        }
    }
}

/// A phase in which a server waits for its client.
trait Awaited: Phase {
    fn is_idle(&self) -> bool;
    fn shut_down(&mut self) {}
}

impl Awaited for Handshake {
    fn is_idle(&self) -> bool {
        self.is_idle()
    }
}

impl Awaited for ForcedHandshake {
    fn is_idle(&self) -> bool {
        self.is_idle()
    }
}

impl Awaited for TlsRequired {
    fn is_idle(&self) -> bool {
        self.is_idle()
    }

    fn shut_down(&mut self) {
        self.shut_down();
    }
}

impl<S: Security> Awaited for Options<S> {
    fn is_idle(&self) -> bool {
        self.is_idle()
    }

    fn shut_down(&mut self) {
        self.shut_down();
    }
}

/// Data for answers to the options of a client.
struct Table<'a, F: ?Sized> {
    finder: &'a F,
    /// The one that the client has shown.
    certificate: Option<Arc<[u8]>>,
    stopping: &'a AtomicBool,
}

impl<F: Finder + ?Sized> Table<'_, F> {
    /// Drives a phase to its end, or to the end of a client that has nothing more to say.
    ///
    /// Other than [`drive`](crate::transport::drive) it distinguishes clients that leave between
    /// two messages and inside of one, and looks after every wait whether the server stops.
    async fn next<T: Transport, P: Awaited>(
        &self,
        transport: &mut T,
        out: &mut BytesMut,
        mut phase: P,
    ) -> Result<Option<P::Next>, NegotiationError> {
        loop {
            let received = match write_all(transport, out).await {
                Ok(()) => read(transport, phase.space()).await,
                Err(error) => Err(error),
            };
            let n = match received {
                Ok(0) if phase.is_idle() => return Ok(None),
                Ok(0) => return Err(NegotiationError::Closed),
                Ok(n) => n,
                Err(error) if phase.is_idle() && is_end(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            if self.stopping.load(Ordering::Relaxed) {
                phase.shut_down();
            }
            match phase.filled(n, out)? {
                Step::More(more) => phase = more,
                Step::Done(next) => return Ok(Some(next)),
            }
        }
    }

    /// Awaited for the wish to start TLS, nothing else being granted.
    async fn forced<T: Transport>(
        &self,
        transport: &mut T,
        out: &mut BytesMut,
        handshake: ForcedHandshake,
    ) -> Result<Result<StartTls, Ended>, NegotiationError> {
        let Some(required) = self.next(transport, out, handshake).await? else {
            return Ok(Err(Ended::Closed));
        };
        Ok(match self.next(transport, out, required).await? {
            None => Err(Ended::Closed),
            Some(ForcedRequested::StartTls(start)) => Ok(start),
            Some(ForcedRequested::Abort(_)) => {
                send_and_shut_down(transport, out).await;
                Err(Ended::Aborted)
            }
        })
    }

    async fn negotiate<T: Transport, S: Security>(
        &self,
        transport: &mut T,
        out: &mut BytesMut,
        mut options: Options<S>,
    ) -> Result<Negotiated, NegotiationError> {
        loop {
            let Some(requested) = self.next(transport, out, options).await? else {
                return Ok(Negotiated::Ended(Ended::Closed));
            };
            let certificate = self.certificate.as_ref();
            let found = match Question::of(&requested) {
                Some(question) => self.finder.find(question, certificate).await?,
                None => Found::Nothing,
            };
            let answered = answer(requested, found, out);
            self.finder.note_answer();
            match answered? {
                Answer::Options(negotiation) => options = negotiation,
                Answer::Aborted => {
                    send_and_shut_down(transport, out).await;
                    return Ok(Negotiated::Ended(Ended::Aborted));
                }
                Answer::Negotiated(negotiated) => {
                    write_all(transport, out).await?;
                    return Ok(negotiated);
                }
            }
        }
    }
}

/// Sends the last answer. The client may be gone already, which does not matter.
async fn send_and_shut_down<T: Transport>(transport: &mut T, out: &mut BytesMut) {
    if write_all(transport, out).await.is_ok() {
        let _ = poll_fn(|cx| transport.poll_shutdown(cx)).await;
    }
}
