//! A client that asks for the options in its input, in any order.

use super::{requests::Ask, transmission::Session};
use crate::{delivery::Wire, input::Input};
use nbd_proto::{
    ContextName, Error, ExportName, HeaderStyle, Misuse,
    client::{
        Config, Encrypted, Go, GoOutcome, Greeted, Handshake, InfoSet, Options, Outstanding,
        Pending, Plain, Rejected, SecureHandshake, Settled, TlsOutcome, Transmission, outstanding,
    },
};

/// The client's requests.
#[derive(Debug)]
pub(super) struct Script<'a> {
    config: Config,
    secure: bool,
    actions: &'a [u8],
}

/// The end of a negotiation.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// The server's bytes ended before its reply did.
    Waiting,
    /// The client wants nothing more.
    Content,
    Aborted,
    /// The server's bytes ended in transmission.
    Transmission,
}

/// Everything observable from outside.
#[derive(Debug, PartialEq)]
pub(super) struct Played {
    end: Result<End, Error>,
    log: Vec<String>,
    sent: Vec<u8>,
    used: Option<usize>,
}

struct Play<'a> {
    config: Config,
    actions: Input<'a>,
    wire: Wire<'a>,
    log: Vec<String>,
}

impl<'a> Script<'a> {
    pub(super) fn new(config: Config, input: &mut Input<'a>) -> Self {
        Self {
            config,
            secure: input.flag(),
            actions: input.bytes(),
        }
    }

    pub(super) fn play(&self, wire: Wire<'_>) -> Played {
        let mut play = Play {
            config: self.config,
            actions: Input::new(self.actions),
            wire,
            log: Vec::new(),
        };
        let end = if self.secure {
            play.secure_handshake()
        } else {
            play.handshake()
        };
        Played {
            // The place in the last bytes where the client finds an error depends on the delivery.
            used: end.is_ok().then_some(play.wire.used()),
            end,
            log: play.log,
            sent: play.wire.out.to_vec(),
        }
    }
}

/// Whether the connection is encrypted.
trait Security: Sized + core::fmt::Debug {
    fn start_tls(options: Options<Self>, play: &mut Play<'_>) -> Result<End, Error>;
}

impl Security for Plain {
    fn start_tls(options: Options<Self>, play: &mut Play<'_>) -> Result<End, Error> {
        let pending = options.start_tls(&mut play.wire.out);
        match play.wire.drive(pending)? {
            Err(_) => Ok(End::Waiting),
            Ok(TlsOutcome::Accepted(upgrade)) => {
                let options = upgrade.upgraded();
                assert_eq!(options.mode(), HeaderStyle::Simple, "TLS starts afresh");
                play.negotiate::<Encrypted>(options)
            }
            Ok(TlsOutcome::Refused(options, error)) => {
                play.log.push(format!("{error:?}"));
                play.negotiate(options)
            }
        }
    }
}

impl Security for Encrypted {
    fn start_tls(options: Options<Self>, play: &mut Play<'_>) -> Result<End, Error> {
        play.negotiate(options)
    }
}

impl Play<'_> {
    fn handshake(&mut self) -> Result<End, Error> {
        let config = self.config;
        let Ok(greeted) = self.wire.drive(Handshake::new(config))? else {
            return Ok(End::Waiting);
        };
        match greeted {
            Greeted::FixedNewstyle(options) => self.negotiate(options),
            Greeted::Newstyle(newstyle) => {
                let pending = newstyle.export_name(&self.name(), &mut self.wire.out);
                match self.wire.drive(pending)? {
                    Ok(transmission) => self.transmit(transmission, HeaderStyle::Simple),
                    Err(_) => Ok(End::Waiting),
                }
            }
            Greeted::Oldstyle(oldstyle) => {
                self.log.push(format!("{:?}", oldstyle.export()));
                self.transmit(oldstyle.accept(), HeaderStyle::Simple)
            }
        }
    }

    fn secure_handshake(&mut self) -> Result<End, Error> {
        let Ok(required) = self.wire.drive(SecureHandshake::new(self.config))? else {
            return Ok(End::Waiting);
        };
        let pending = required.start_tls(&mut self.wire.out);
        match self.wire.drive(pending)? {
            Err(_) => Ok(End::Waiting),
            Ok(TlsOutcome::Accepted(upgrade)) => self.negotiate(upgrade.upgraded()),
            Ok(TlsOutcome::Refused(required, error)) => {
                self.log.push(format!("{error:?}"));
                required.abort(&mut self.wire.out);
                Ok(End::Aborted)
            }
        }
    }

    fn negotiate<S: Security>(&mut self, mut options: Options<S>) -> Result<End, Error> {
        let limits = self.config.limits;
        while !self.actions.is_empty() {
            let mode = options.mode();
            options = match self.actions.byte() % 10 {
                0 => {
                    let pending = options.list(&mut self.wire.out);
                    let within = |list: &Vec<_>| list.len() <= size(limits.list_entries);
                    match self.settle(pending, within)? {
                        Ok(options) => options,
                        Err(end) => return Ok(end),
                    }
                }
                1 => {
                    let pending = options.info(self.wish(), &mut self.wire.out);
                    let consistent =
                        |info: &nbd_proto::ExportInfo| mode.has_chunks() || !info.can_df();
                    match self.settle(pending, consistent)? {
                        Ok(options) => options,
                        Err(end) => return Ok(end),
                    }
                }
                2 => match self.go(options)? {
                    Ok(options) => options,
                    Err(end) => return Ok(end),
                },
                3 => match options.export_name(&self.name(), &mut self.wire.out) {
                    Err(rejected) => self.rejected(rejected),
                    Ok(pending) => {
                        return match self.wire.drive(pending)? {
                            Ok(transmission) => self.transmit(transmission, mode),
                            Err(_) => Ok(End::Waiting),
                        };
                    }
                },
                4 => return S::start_tls(options, self),
                5 => match options.structured_reply(&mut self.wire.out) {
                    Err(rejected) => self.rejected(rejected),
                    Ok(pending) => match self.settle(pending, |()| true)? {
                        Ok(options) => options,
                        Err(end) => return Ok(end),
                    },
                },
                6 => match options.extended_headers(&mut self.wire.out) {
                    Err(rejected) => self.rejected(rejected),
                    Ok(pending) => match self.settle(pending, |()| true)? {
                        Ok(options) => options,
                        Err(end) => return Ok(end),
                    },
                },
                7 => {
                    let (name, queries) = (self.name(), self.queries());
                    let pending = options.list_meta_context(&name, &queries, &mut self.wire.out);
                    let within = |list: &Vec<_>| list.len() <= size(limits.meta_contexts);
                    match self.settle(pending, within)? {
                        Ok(options) => options,
                        Err(end) => return Ok(end),
                    }
                }
                8 => {
                    let (name, queries) = (self.name(), self.queries());
                    match options.set_meta_context(&name, &queries, &mut self.wire.out) {
                        Err(rejected) => self.rejected(rejected),
                        Ok(pending) => {
                            let within = |list: &Vec<nbd_proto::client::Context>| {
                                let asked = |name| queries.contains(name);
                                list.len() <= size(limits.meta_contexts)
                                    && list.iter().all(|c| c.name.as_ref().is_none_or(asked))
                            };
                            match self.settle(pending, within)? {
                                Ok(options) => options,
                                Err(end) => return Ok(end),
                            }
                        }
                    }
                }
                _ => {
                    options.abort(&mut self.wire.out);
                    return Ok(End::Aborted);
                }
            };
        }
        Ok(End::Content)
    }

    fn go<S: Security>(&mut self, options: Options<S>) -> Result<Result<Options<S>, End>, Error> {
        let mode = options.mode();
        let pending: Pending<outstanding::Go<S>> = options.go(self.wish(), &mut self.wire.out);
        match self.wire.drive(pending)? {
            Err(_) => Ok(Err(End::Waiting)),
            Ok(GoOutcome::Refused(options, error)) => {
                self.log.push(format!("{error:?}"));
                assert_eq!(options.mode(), mode);
                Ok(Ok(options))
            }
            Ok(GoOutcome::Accepted(transmission)) => self.transmit(transmission, mode).map(Err),
        }
    }

    /// Waits for the outcome of an option. A granted value must have `sense`.
    fn settle<O, S: Security, T: core::fmt::Debug>(
        &mut self,
        pending: Pending<O>,
        sense: impl Fn(&T) -> bool,
    ) -> Result<Result<Options<S>, End>, Error>
    where
        O: Outstanding<Outcome = Settled<S, T>>,
    {
        let Ok(Settled { options, result }) = self.wire.drive(pending)? else {
            return Ok(Err(End::Waiting));
        };
        self.log.push(format!("{result:?}"));
        if let Ok(granted) = &result {
            assert!(sense(granted), "{granted:?}");
        }
        Ok(Ok(options))
    }

    fn rejected<S>(&mut self, rejected: Rejected<S>) -> Options<S> {
        let Rejected { options, misuse } = rejected;
        assert!(matches!(misuse, Misuse::Option { .. }));
        self.log.push(misuse.to_string());
        options
    }

    fn transmit(&mut self, transmission: Transmission, mode: HeaderStyle) -> Result<End, Error> {
        let info = transmission.export();
        self.log
            .push(format!("{info:?} {:?}", transmission.contexts()));
        assert_eq!(transmission.mode(), mode);
        assert!(mode.has_chunks() || !info.can_df() && transmission.contexts().is_empty());
        assert!(mode == HeaderStyle::Extended || !info.can_filter_block_status());
        let asks = Ask::list(&mut Input::new(&[0, 0, 0, 0, 1, 1, 0, 0, 0, 1]));
        let mut session = Session::new(transmission, &asks);
        let end = session.run(&mut self.wire);
        self.log.extend(session.into_log());
        end.map(|()| End::Transmission)
    }

    fn name(&mut self) -> ExportName {
        let names = ["", "disk", "other"];
        ExportName::new(self.actions.pick(&names)).expect("a legal name")
    }

    fn wish(&mut self) -> Go {
        Go {
            name: self.name(),
            infos: self
                .actions
                .pick(&[InfoSet::BLOCK_SIZE, InfoSet::NONE, InfoSet::ALL]),
        }
    }

    fn queries(&mut self) -> Vec<ContextName> {
        let names = ["base:allocation", "x:a", "x:", "x:b"];
        let count = self.actions.below(names.len() + 1);
        let legal = |name: &&str| ContextName::new(*name).expect("a legal name");
        names[..count].iter().map(legal).collect()
    }
}

fn size(limit: u32) -> usize {
    usize::try_from(limit).expect("a limit fits")
}
