//! Starting TLS, by choice or because nothing else is possible.

use super::{
    Aborted, Config, Encrypted, Options,
    reader::{Asked, Connection, Reader},
    refusal::{SHUTTING_DOWN, put_ack, put_error},
};
use crate::{
    Error, Phase, Step,
    wire::{OptionCode, OptionReplyCode},
};
use bytes::BytesMut;

/// Whether a connection that starts in the clear may start TLS.
///
/// Spec: [TLS support](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#tls-support).
/// The third mode, `FORCEDTLS`, is not a setting but another type:
/// [`ForcedHandshake`](super::ForcedHandshake).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// `NOTLS`: `NBD_OPT_STARTTLS` is refused.
    #[default]
    Off,
    /// `SELECTIVETLS`: the client may start TLS, and has to for the exports which are refused with
    /// [`Refusal::TlsRequired`](super::Refusal::TlsRequired).
    Selective,
}

/// Options are awaited of a client that has to start TLS before anything else.
///
/// Spec: [FORCEDTLS mode](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#forcedtls-mode).
///
/// Everything but `NBD_OPT_STARTTLS` and `NBD_OPT_ABORT` is refused without a question.
/// There is no way from here to transmission but by [`Upgrade::upgraded`]:
///
/// ```compile_fail,E0308
/// use nbd_proto::server::{ForcedRequested, GoRequest, Plain};
///
/// fn question(requested: ForcedRequested) -> GoRequest<Plain> {
///     match requested {
///         ForcedRequested::StartTls(go) => go,
///         ForcedRequested::Abort(_) => unreachable!(),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct TlsRequired {
    connection: Connection,
    reader: Reader,
}

/// A request of a client that has to start TLS.
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub enum ForcedRequested {
    /// To start TLS.
    StartTls(StartTls),
    /// To end the connection.
    Abort(Aborted),
}

impl TlsRequired {
    pub(super) const fn new(connection: Connection) -> Self {
        Self {
            connection,
            reader: Reader::new(false),
        }
    }

    /// From now on every option but `NBD_OPT_ABORT` is refused because the server is going away.
    pub fn shut_down(&mut self) {
        self.connection.shutdown = true;
    }

    /// Whether no byte of an option has come, so that the end of the client's bytes is no loss.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reader.is_idle()
    }

    fn answer(
        mut self,
        asked: Asked,
        out: &mut BytesMut,
    ) -> Result<Step<Self, ForcedRequested>, Error> {
        let Asked { option, len, .. } = asked;
        self.reader.restart();
        if option == OptionCode::ExportName {
            return Err(Error::ExportNameRefused {
                why: "TLS has to be started first",
            });
        }
        if option == OptionCode::Abort {
            put_ack(option, out);
            return Ok(Step::Done(ForcedRequested::Abort(Aborted(()))));
        }
        let (code, text) = if self.connection.shutdown {
            (OptionReplyCode::ErrShutdown, SHUTTING_DOWN)
        } else if option != OptionCode::StartTls {
            (
                OptionReplyCode::ErrTlsReqd,
                "the server requires TLS: send NBD_OPT_STARTTLS first",
            )
        } else if len > 0 {
            (
                OptionReplyCode::ErrInvalid,
                "NBD_OPT_STARTTLS must not have data",
            )
        } else {
            let start = StartTls::new(self.connection);
            return Ok(Step::Done(ForcedRequested::StartTls(start)));
        };
        put_error(option, code, text, out);
        Ok(Step::More(self))
    }
}

impl Phase for TlsRequired {
    type Next = ForcedRequested;

    fn space(&mut self) -> &mut [u8] {
        self.reader.space()
    }

    fn filled(mut self, n: usize, out: &mut BytesMut) -> Result<Step<Self, Self::Next>, Error> {
        match self.reader.filled(n, &mut self.connection)? {
            None => Ok(Step::More(self)),
            Some(asked) => self.answer(asked, out),
        }
    }
}

/// The client wants to start TLS, and may.
///
/// TLS is not up before the client has got the answer to STARTTLS:
///
/// ```compile_fail,E0599
/// use nbd_proto::server::{Encrypted, Options, StartTls};
///
/// fn skip(start: StartTls) -> Options<Encrypted> {
///     start.upgraded()
/// }
/// ```
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct StartTls(Connection);

impl StartTls {
    pub(super) const fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// The server's offer.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.0.config
    }

    /// Lets the client start TLS.
    pub fn accept(self, out: &mut BytesMut) -> Upgrade {
        put_ack(OptionCode::StartTls, out);
        Upgrade(self.0)
    }
}

impl From<core::convert::Infallible> for StartTls {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

/// The acknowledgement was written, and the next bytes both ways are TLS.
///
/// Every byte that the client sent behind `NBD_OPT_STARTTLS` belongs to the TLS handshake, those
/// already read from the transport included: in the clear, nothing must be parsed any more. When
/// the handshake fails, the transport is to be closed.
#[derive(Debug)]
#[must_use = "the client is about to start TLS"]
pub struct Upgrade(Connection);

impl Upgrade {
    /// TLS is up. Nothing that was negotiated in the clear holds any longer.
    #[must_use]
    pub fn upgraded(self) -> Options<Encrypted> {
        Options::new(Encrypted(()), self.0)
    }
}
