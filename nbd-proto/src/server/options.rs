//! Negotiation: options are read, and those that need a decision become questions.

use super::{
    Config, ExportNameRequest, GoRequest, InfoRequest, ListMetaContextRequest, ListRequest,
    SetMetaContextRequest, StartTls, Tls,
    export::Parsed,
    meta::{Queries, Selection},
    reader::{Asked, Connection, Reader},
    refusal::{SHUTTING_DOWN, put_ack, put_error},
};
use crate::{
    Error, ExportName, Phase, Step,
    wire::{HeaderStyle, OptionCode, OptionReplyCode},
};
use bytes::BytesMut;
use core::{convert::Infallible, fmt};

/// A refusal that needs no decision.
pub(super) type Ruling = (OptionReplyCode, &'static str);

mod sealed {
    use super::{Options, Ruling, StartTls, Step};
    use core::fmt::Debug;

    pub trait Sealed: Sized {
        /// [`StartTls`], or nothing where TLS is up already.
        type StartTls: Into<StartTls> + Debug + Send;

        fn can_start_tls(&self) -> bool;

        fn start_tls(options: Options<Self>) -> Step<(Options<Self>, Ruling), Self::StartTls>;
    }
}

/// Whether the connection is encrypted: [`Plain`] or [`Encrypted`].
///
/// Its `StartTls` is [`StartTls`] where TLS may still be started, and otherwise a type that has no
/// values and converts into it, for code that serves both.
pub trait Security: sealed::Sealed + fmt::Debug + Send + 'static {
    /// Whether TLS is up.
    const SECURE: bool;
}

/// The connection is in the clear.
#[derive(Debug)]
pub struct Plain {
    tls: Tls,
}

impl Plain {
    pub(super) const fn new(config: &Config) -> Self {
        Self { tls: config.tls }
    }
}

impl sealed::Sealed for Plain {
    type StartTls = StartTls;

    fn can_start_tls(&self) -> bool {
        self.tls == Tls::Selective
    }

    fn start_tls(options: Options<Self>) -> Step<(Options<Self>, Ruling), StartTls> {
        match options.security.tls {
            Tls::Selective => Step::Done(StartTls::new(options.connection)),
            Tls::Off => Step::More((
                options,
                (OptionReplyCode::ErrPolicy, "the server does not offer TLS"),
            )),
        }
    }
}

impl Security for Plain {
    const SECURE: bool = false;
}

/// TLS is up.
#[derive(Debug)]
pub struct Encrypted(pub(super) ());

impl sealed::Sealed for Encrypted {
    type StartTls = Infallible;

    fn can_start_tls(&self) -> bool {
        false
    }

    fn start_tls(options: Options<Self>) -> Step<(Options<Self>, Ruling), Infallible> {
        Step::More((options, (OptionReplyCode::ErrInvalid, "TLS is up already")))
    }
}

impl Security for Encrypted {
    const SECURE: bool = true;
}

/// The agreement so far, which is forgotten when TLS starts.
#[derive(Debug, Default)]
pub(super) struct Negotiated {
    pub(super) mode: HeaderStyle,
    pub(super) selection: Option<Selection>,
}

/// Options are awaited.
///
/// Spec: [Fixed newstyle negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#fixed-newstyle-negotiation).
///
/// An option that is unknown, malformed or out of place is answered without a question, and so are
/// `NBD_OPT_STRUCTURED_REPLY` and `NBD_OPT_EXTENDED_HEADERS`. Each other one becomes [`Requested`].
///
/// ```compile_fail,E0382
/// # use nbd_proto::{Phase, server::{GoRequest, Options, Plain, Refusal}};
/// # use bytes::BytesMut;
/// fn negotiate_on_after_accepting(go: GoRequest<Plain>, export: &nbd_proto::ExportInfo) {
///     let mut out = BytesMut::new();
///     let transmission = go.accept(export, &mut out);
///     let options = go.refuse(Refusal::Unknown, "", &mut out);
/// }
/// ```
#[derive(Debug)]
pub struct Options<S> {
    pub(super) security: S,
    pub(super) connection: Connection,
    pub(super) negotiated: Negotiated,
    reader: Reader,
}

/// A request of a client in negotiation.
///
/// The list is complete: an option that is not here was answered already. Inside TLS there is no
/// request to start it:
///
/// ```
/// use nbd_proto::server::{Encrypted, Requested};
///
/// fn name(requested: Requested<Encrypted>) -> &'static str {
///     match requested {
///         Requested::List(_) => "list",
///         Requested::Info(_) => "info",
///         Requested::Go(_) => "go",
///         Requested::ExportName(_) => "export name",
///         Requested::ListMetaContext(_) => "list meta contexts",
///         Requested::SetMetaContext(_) => "set meta contexts",
///         Requested::Abort(_) => "abort",
///     }
/// }
/// ```
///
/// ```compile_fail,E0308
/// use nbd_proto::server::{Encrypted, Requested, StartTls};
///
/// fn again(requested: Requested<Encrypted>) -> Option<StartTls> {
///     match requested {
///         Requested::StartTls(start) => Some(start),
///         _ => None,
///     }
/// }
/// ```
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub enum Requested<S: Security> {
    /// `NBD_OPT_LIST`: which exports there are.
    List(ListRequest<S>),
    /// `NBD_OPT_INFO`: the description of an export.
    Info(InfoRequest<S>),
    /// `NBD_OPT_GO`: to use an export.
    Go(GoRequest<S>),
    /// `NBD_OPT_EXPORT_NAME`: to use an export, the old way.
    ExportName(ExportNameRequest<S>),
    /// `NBD_OPT_LIST_META_CONTEXT`: which meta contexts an export has.
    ListMetaContext(ListMetaContextRequest<S>),
    /// `NBD_OPT_SET_META_CONTEXT`: to select some of them.
    SetMetaContext(SetMetaContextRequest<S>),
    /// `NBD_OPT_STARTTLS`: to encrypt the connection.
    StartTls(S::StartTls),
    /// `NBD_OPT_ABORT`: to end the connection.
    Abort(Aborted),
}

/// The client ended the negotiation, and its answer was written.
///
/// The output is to be sent and the transport closed, TLS first if it is up. That the client did
/// not wait for the answer is no error.
#[derive(Debug)]
pub struct Aborted(pub(super) ());

impl<S> Options<S> {
    pub(super) fn new(security: S, connection: Connection) -> Self {
        Self {
            security,
            connection,
            negotiated: Negotiated::default(),
            reader: Reader::new(true),
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

    /// The headers that have been agreed on so far.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.negotiated.mode
    }

    /// The server's offer.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.connection.config
    }
}

impl<S: Security> Phase for Options<S> {
    type Next = Requested<S>;

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

impl<S: Security> Options<S> {
    fn answer(
        mut self,
        asked: Asked,
        out: &mut BytesMut,
    ) -> Result<Step<Self, Requested<S>>, Error> {
        let option = asked.option;
        if option == OptionCode::SetMetaContext {
            // However this ends, an earlier selection is gone.
            self.negotiated.selection = None;
        }
        let ruling = match option {
            OptionCode::ExportName => return self.export_name().map(Step::Done),
            OptionCode::Abort => {
                put_ack(option, out);
                return Ok(Step::Done(Requested::Abort(Aborted(()))));
            }
            _ if self.connection.shutdown => (OptionReplyCode::ErrShutdown, SHUTTING_DOWN),
            _ if asked.too_big => (
                OptionReplyCode::ErrTooBig,
                "the option has more data than the server looks at",
            ),
            OptionCode::List
            | OptionCode::StartTls
            | OptionCode::StructuredReply
            | OptionCode::ExtendedHeaders
                if asked.len > 0 =>
            {
                (OptionReplyCode::ErrInvalid, "the option must not have data")
            }
            OptionCode::List if !self.connection.config.listing => (
                OptionReplyCode::ErrPolicy,
                "the server does not list its exports",
            ),
            OptionCode::List => {
                self.reader.restart();
                return Ok(Step::Done(Requested::List(ListRequest::new(self))));
            }
            OptionCode::StartTls => match S::start_tls(self) {
                Step::Done(start) => return Ok(Step::Done(Requested::StartTls(start))),
                Step::More((options, ruling)) => {
                    self = options;
                    ruling
                }
            },
            OptionCode::StructuredReply | OptionCode::ExtendedHeaders => {
                match self.switch(option) {
                    Ok(mode) => {
                        self.negotiated.mode = mode;
                        put_ack(option, out);
                        self.reader.restart();
                        return Ok(Step::More(self));
                    }
                    Err(ruling) => ruling,
                }
            }
            OptionCode::Info | OptionCode::Go => {
                match Parsed::new(self.reader.data(), &self.connection.config.limits) {
                    Ok(parsed) => {
                        self.reader.restart();
                        return Ok(Step::Done(if option == OptionCode::Go {
                            Requested::Go(GoRequest::new(self, parsed))
                        } else {
                            Requested::Info(InfoRequest::new(self, parsed))
                        }));
                    }
                    Err(ruling) => ruling,
                }
            }
            OptionCode::SetMetaContext if !self.negotiated.mode.has_chunks() => (
                OptionReplyCode::ErrInvalid,
                "structured replies or extended headers have to be negotiated first",
            ),
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                match Queries::new(self.reader.data(), &self.connection.config.limits) {
                    Ok(queries) => {
                        self.reader.restart();
                        return Ok(Step::Done(if option == OptionCode::SetMetaContext {
                            Requested::SetMetaContext(SetMetaContextRequest::new(self, queries))
                        } else {
                            Requested::ListMetaContext(ListMetaContextRequest::new(self, queries))
                        }));
                    }
                    Err(ruling) => ruling,
                }
            }
            OptionCode::PeekExport | OptionCode::Other(_) => (
                OptionReplyCode::ErrUnsup,
                "the server does not know this option",
            ),
        };
        put_error(option, ruling.0, ruling.1, out);
        self.reader.restart();
        Ok(Step::More(self))
    }

    /// `NBD_OPT_EXPORT_NAME` cannot be refused but by closing the transport.
    fn export_name(mut self) -> Result<Requested<S>, Error> {
        let refused = |why| Err(Error::ExportNameRefused { why });
        if self.connection.shutdown {
            return refused(SHUTTING_DOWN);
        }
        if self.negotiated.mode == HeaderStyle::Extended {
            return refused("extended headers were negotiated, which need NBD_OPT_GO");
        }
        let Ok(name) = ExportName::try_from(self.reader.data()) else {
            return refused("the name is not UTF-8 or contains NUL");
        };
        self.reader.restart();
        Ok(Requested::ExportName(ExportNameRequest::new(self, name)))
    }

    /// The style of headers after `option`, which asks for another one.
    fn switch(&self, option: OptionCode) -> Result<HeaderStyle, Ruling> {
        let Config {
            structured,
            extended,
            ..
        } = self.connection.config;
        let wanted = if option == OptionCode::ExtendedHeaders {
            HeaderStyle::Extended
        } else {
            HeaderStyle::Structured
        };
        match (self.negotiated.mode, wanted) {
            (_, HeaderStyle::Extended) if !extended => Err((
                OptionReplyCode::ErrUnsup,
                "the server does not offer extended headers",
            )),
            (HeaderStyle::Extended, HeaderStyle::Structured) => Err((
                OptionReplyCode::ErrExtHeaderReqd,
                "extended headers cannot be given up",
            )),
            (_, HeaderStyle::Structured) if !structured => Err((
                OptionReplyCode::ErrUnsup,
                "the server does not offer structured replies",
            )),
            (now, wanted) if now == wanted => {
                Err((OptionReplyCode::ErrInvalid, "this was negotiated already"))
            }
            (_, wanted) => Ok(wanted),
        }
    }
}
