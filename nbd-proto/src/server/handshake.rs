//! The greeting, and the client's answer to it.

use super::{
    Config, Options, Plain, TlsRequired,
    export::Offer,
    reader::Connection,
    transmission::{Agreed, Transmission},
};
use crate::{
    Error, ExportInfo, Phase, Step,
    gather::Gather,
    wire::{ClientFlags, Greeting, HeaderStyle},
};
use bytes::BytesMut;

/// The greeting was written and the client's flags are to come.
///
/// Spec: [Handshake](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#handshake).
#[derive(Debug)]
pub struct Handshake(Flags);

impl Handshake {
    /// Greets a client that may stay in the clear, and may start TLS if
    /// [`Config::tls`] says so.
    pub fn new(config: Config, out: &mut BytesMut) -> Self {
        Self(Flags::new(config, out))
    }

    /// Greets a client that has to start TLS before anything else (`FORCEDTLS`).
    ///
    /// The handshake leads to transmission through [`Upgrade`](super::Upgrade) only.
    pub fn forced_tls(config: Config, out: &mut BytesMut) -> ForcedHandshake {
        // TLS cannot be started without fixed newstyle.
        let config = Config {
            fixed_newstyle: true,
            ..config
        };
        ForcedHandshake(Flags::new(config, out))
    }

    /// Whether no byte of the client's flags has come, so that the end of its bytes is no loss.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.gather.bytes().is_empty()
    }
}

impl Phase for Handshake {
    type Next = Options<Plain>;

    fn space(&mut self) -> &mut [u8] {
        self.0.gather.space()
    }

    fn filled(mut self, n: usize, _: &mut BytesMut) -> Result<Step<Self, Self::Next>, Error> {
        Ok(match self.0.filled(n)? {
            None => Step::More(self),
            Some(connection) => {
                Step::Done(Options::new(Plain::new(&connection.config), connection))
            }
        })
    }
}

/// The greeting was written, the client's flags are to come, and then it has to start TLS.
///
/// Spec: [FORCEDTLS mode](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#forcedtls-mode).
#[derive(Debug)]
pub struct ForcedHandshake(Flags);

impl ForcedHandshake {
    /// Whether no byte of the client's flags has come, so that the end of its bytes is no loss.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.gather.bytes().is_empty()
    }
}

impl Phase for ForcedHandshake {
    type Next = TlsRequired;

    fn space(&mut self) -> &mut [u8] {
        self.0.gather.space()
    }

    fn filled(mut self, n: usize, _: &mut BytesMut) -> Result<Step<Self, Self::Next>, Error> {
        Ok(match self.0.filled(n)? {
            None => Step::More(self),
            Some(connection) => Step::Done(TlsRequired::new(connection)),
        })
    }
}

/// Collects the client's flags.
#[derive(Debug)]
struct Flags {
    config: Config,
    gather: Gather,
}

impl Flags {
    fn new(config: Config, out: &mut BytesMut) -> Self {
        Greeting::Newstyle(config.handshake_flags()).encode(out);
        Self {
            config,
            gather: Gather::new(4),
        }
    }

    fn filled(&mut self, n: usize) -> Result<Option<Connection>, Error> {
        self.gather.filled(n);
        let Some(bytes) = self.gather.array() else {
            return Ok(None);
        };
        let flags = ClientFlags::from_bits(u32::from_be_bytes(*bytes));
        // The client's flags answer the server's bit for bit.
        let offered = ClientFlags::from_bits(self.config.handshake_flags().bits().into());
        if !offered.contains(flags) {
            return Err(Error::ClientFlags {
                got: flags.bits(),
                offered: offered.bits(),
            });
        }
        Ok(Some(Connection::new(self.config, flags)))
    }
}

/// Greets a client of the oldstyle negotiation: the server has one export, and transmission starts
/// at once, without TLS and with simple replies.
///
/// Spec: [Oldstyle negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#oldstyle-negotiation).
/// It is superseded, and is not to be served on the [default port](crate::wire::DEFAULT_PORT).
pub fn oldstyle(config: &Config, export: &ExportInfo, out: &mut BytesMut) -> Transmission {
    let offer = Offer::new(export, HeaderStyle::Simple, false, &config.limits);
    Greeting::Oldstyle {
        size: offer.size,
        flags: offer.flags.bits().into(),
    }
    .encode(out);
    Transmission::new(Agreed::new(&offer, HeaderStyle::Simple, config.limits))
}
