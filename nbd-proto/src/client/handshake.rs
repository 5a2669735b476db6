//! The greeting of the server and the flags that answer it.

use super::{
    Config, Options, PendingExportName, Plain, TlsRequired, Tolerance, Transmission,
    options::Negotiated,
};
use crate::{
    Error, ExportInfo, ExportName, HeaderStyle, Phase, Step, TransmissionFlags,
    gather::Gather,
    wire::{
        ClientFlags, Fields, GREETING_LEN, Greeting, HandshakeFlags, OLDSTYLE_REST, OptionCode,
        magic, put_option,
    },
};
use alloc::vec::Vec;
use bytes::{BufMut, BytesMut};

/// The start of a connection on which TLS is not required.
///
/// Spec: [Handshake](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#handshake).
#[derive(Debug)]
pub struct Handshake(Reader);

/// The start of a connection that is encrypted or fails.
///
/// Spec: [Client-side requirements](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#client-side-requirements).
#[derive(Debug)]
pub struct SecureHandshake(Reader);

/// The style of negotiation that a server's greeting announces, with the next phase.
#[derive(Debug)]
pub enum Greeted {
    /// Fixed newstyle: the whole protocol.
    FixedNewstyle(Options<Plain>),
    /// Newstyle that is not fixed: an export can be entered, and nothing else.
    Newstyle(Newstyle),
    /// Oldstyle: the server has entered its only export already.
    Oldstyle(Oldstyle),
}

impl Handshake {
    /// Waits for a server to greet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(Reader::new(config))
    }
}

impl Phase for Handshake {
    type Next = Greeted;

    fn space(&mut self) -> &mut [u8] {
        self.0.gather.space()
    }

    fn filled(mut self, n: usize, out: &mut BytesMut) -> Result<Step<Self, Greeted>, Error> {
        let Some(greeting) = self.0.filled(n)? else {
            return Ok(Step::More(self));
        };
        let config = self.0.config;
        Ok(Step::Done(match greeting {
            Greeting::Oldstyle { size, flags } => {
                Greeted::Oldstyle(Oldstyle::new(size, flags, config)?)
            }
            Greeting::Newstyle(offered) => {
                let flags = answer(offered, out);
                let no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
                if flags.contains(ClientFlags::FIXED_NEWSTYLE) {
                    Greeted::FixedNewstyle(Options::new(Negotiated::new(config, no_zeroes)))
                } else {
                    Greeted::Newstyle(Newstyle { config, no_zeroes })
                }
            }
        }))
    }
}

impl SecureHandshake {
    /// Waits for a server to greet. A server that cannot start TLS is an error, and nothing is
    /// sent to it.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(Reader::new(config))
    }
}

impl Phase for SecureHandshake {
    type Next = TlsRequired;

    fn space(&mut self) -> &mut [u8] {
        self.0.gather.space()
    }

    fn filled(mut self, n: usize, out: &mut BytesMut) -> Result<Step<Self, TlsRequired>, Error> {
        let Some(greeting) = self.0.filled(n)? else {
            // The second magic number is enough to know, and the rest of an oldstyle greeting
            // need not come.
            let oldstyle = self.0.gather.bytes().get(8..16) == Some(&magic::CLISERV.to_be_bytes());
            return if oldstyle {
                Err(Error::TlsImpossible)
            } else {
                Ok(Step::More(self))
            };
        };
        match greeting {
            Greeting::Newstyle(offered) if offered.contains(HandshakeFlags::FIXED_NEWSTYLE) => {
                let flags = answer(offered, out);
                let no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
                Ok(Step::Done(TlsRequired::new(Negotiated::new(
                    self.0.config,
                    no_zeroes,
                ))))
            }
            Greeting::Newstyle(_) | Greeting::Oldstyle { .. } => Err(Error::TlsImpossible),
        }
    }
}

/// Takes up all of the server's offer that is known, and nothing else.
fn answer(offered: HandshakeFlags, out: &mut BytesMut) -> ClientFlags {
    let mut flags = ClientFlags::NONE;
    if offered.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        flags = flags | ClientFlags::FIXED_NEWSTYLE;
    }
    if offered.contains(HandshakeFlags::NO_ZEROES) {
        flags = flags | ClientFlags::NO_ZEROES;
    }
    out.put_u32(flags.bits());
    flags
}

#[derive(Debug)]
struct Reader {
    gather: Gather,
    config: Config,
}

impl Reader {
    const fn new(config: Config) -> Self {
        Self {
            // Every greeting is at least so long. An error in it is reported as soon as its bytes
            // are there.
            gather: Gather::new(GREETING_LEN),
            config,
        }
    }

    fn filled(&mut self, n: usize) -> Result<Option<Greeting>, Error> {
        let is_complete = self.gather.filled(n);
        let mut fields = Fields(self.gather.bytes());
        match fields.u64() {
            Some(magic::NBDMAGIC) => {}
            Some(got) => return Err(Error::NotNbd { got }),
            None => return Ok(None),
        }
        match fields.u64() {
            Some(magic::IHAVEOPT) => Ok(fields
                .u16()
                .map(|flags| Greeting::Newstyle(HandshakeFlags::from_bits(flags)))),
            Some(magic::CLISERV) if is_complete => match (fields.u64(), fields.u32()) {
                (Some(size), Some(flags)) => Ok(Some(Greeting::Oldstyle { size, flags })),
                _ => {
                    self.gather.extend(OLDSTYLE_REST - (GREETING_LEN - 16));
                    Ok(None)
                }
            },
            Some(magic::CLISERV) | None => Ok(None),
            Some(got) => Err(Error::UnknownStyle { got }),
        }
    }
}

/// A server that does not speak *fixed* newstyle.
///
/// Spec: [Newstyle negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#newstyle-negotiation).
///
/// All that can be done is to enter an export by [`export_name`](Newstyle::export_name), or to
/// close the transport.
#[derive(Debug)]
pub struct Newstyle {
    config: Config,
    no_zeroes: bool,
}

impl Newstyle {
    /// Sends `NBD_OPT_EXPORT_NAME`. A server that has no such export closes the connection.
    pub fn export_name(self, name: &ExportName, out: &mut BytesMut) -> PendingExportName {
        put_option(OptionCode::ExportName, out, |out| {
            out.put_slice(name.as_str().as_bytes())
        });
        PendingExportName::new(self.config, self.no_zeroes, HeaderStyle::Simple, Vec::new())
    }
}

/// A server with a single export, which it has entered already.
///
/// Spec: [Oldstyle negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#oldstyle-negotiation).
#[derive(Debug)]
pub struct Oldstyle {
    info: ExportInfo,
    config: Config,
}

impl Oldstyle {
    fn new(size: u64, flags: u32, config: Config) -> Result<Self, Error> {
        let [0, 0, transmission @ ..] = flags.to_be_bytes() else {
            return Err(Error::OldstyleFlags { flags });
        };
        // Old servers send no flags at all, which makes sense nowhere else.
        let flags = TransmissionFlags::from_bits(u16::from_be_bytes(transmission));
        let info = ExportInfo::new(size, ExportInfo::mask(flags, HeaderStyle::Simple));
        Ok(Self { info, config })
    }

    /// The export as the server described it.
    #[must_use]
    pub const fn export(&self) -> &ExportInfo {
        &self.info
    }

    /// Goes on to transmission. A client that does not want the export drops this value and
    /// closes the transport instead.
    #[must_use]
    pub fn accept(self) -> Transmission {
        Transmission::new(
            self.info,
            HeaderStyle::Simple,
            Vec::new(),
            self.config,
            Tolerance::STRICT,
        )
    }
}
