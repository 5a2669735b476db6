//! The client in negotiation: it knows the server's exports, and so every reply.

use super::{CONTEXTS, Chopper, EXPORTS, Peer, World};
use crate::input::Input;
use nbd_proto::{
    ContextName, ExportName, HeaderStyle, Phase, Step,
    client::{
        Encrypted, Go, GoOutcome, Greeted, Handshake, InfoSet, Options, Plain, Settled, TlsOutcome,
        Transmission,
    },
    server::{self, Tls},
    wire::{InfoType, OptionReplyCode},
};

/// Both sides of a connection before transmission.
pub(super) struct Negotiation<'a> {
    pub(super) world: &'a World,
    pub(super) peer: Peer,
    pub(super) chopper: Chopper<'a>,
    pub(super) actions: Input<'a>,
}

/// Both sides when transmission starts.
pub(super) struct Haggler<'a> {
    pub(super) client: Transmission,
    pub(super) server: server::Transmission,
    pub(super) chopper: Chopper<'a>,
    /// The client asked for block sizes.
    pub(super) asked_sizes: bool,
}

/// The transmission and whether block sizes were asked for; nothing if the client gave up.
type Entered = Option<(Transmission, bool)>;

pub(super) fn name(name: &str) -> ExportName {
    ExportName::new(name).expect("a legal name")
}

trait Security: Sized + core::fmt::Debug {
    fn start_tls(options: Options<Self>, negotiation: &mut Negotiation<'_>) -> Entered;
}

impl Security for Plain {
    fn start_tls(options: Options<Self>, negotiation: &mut Negotiation<'_>) -> Entered {
        let offered = negotiation.world.config.tls == Tls::Selective;
        let pending = options.start_tls(&mut negotiation.peer.to_server);
        match negotiation.wait(pending) {
            TlsOutcome::Accepted(upgrade) => {
                assert!(offered);
                negotiation.peer.upgrade();
                negotiation.negotiate::<Encrypted>(upgrade.upgraded())
            }
            TlsOutcome::Refused(options, error) => {
                assert!(!offered);
                assert_eq!(error.code, OptionReplyCode::ErrPolicy);
                negotiation.negotiate(options)
            }
        }
    }
}

impl Security for Encrypted {
    fn start_tls(options: Options<Self>, negotiation: &mut Negotiation<'_>) -> Entered {
        negotiation.negotiate(options)
    }
}

impl<'a> Negotiation<'a> {
    pub(super) fn run(mut self) -> Option<Haggler<'a>> {
        let (client, asked_sizes) = match self.wait(Handshake::new(self.world.client)) {
            Greeted::FixedNewstyle(options) => self.negotiate(options)?,
            Greeted::Newstyle(newstyle) => {
                assert!(!self.world.config.fixed_newstyle);
                let pending = newstyle.export_name(&name("disk"), &mut self.peer.to_server);
                (self.wait(pending), false)
            }
            Greeted::Oldstyle(_) => panic!("the server is not that old"),
        };
        Some(Haggler {
            client,
            server: self.peer.into_transmission(),
            chopper: self.chopper,
            asked_sizes,
        })
    }

    /// Waits for the end of a phase, which must not need more than the server sends.
    fn wait<P: Phase>(&mut self, mut phase: P) -> P::Next {
        loop {
            let peer = &mut self.peer;
            if peer.to_client.is_empty() {
                assert!(!peer.to_server.is_empty(), "each waits for the other");
            }
            peer.hear(self.world, &mut self.chopper);
            if peer.to_client.is_empty() {
                continue;
            }
            let out = &mut peer.to_server;
            phase = match self.chopper.deliver(phase, &mut peer.to_client, out) {
                Step::More(phase) => phase,
                Step::Done(next) => return next,
            };
        }
    }

    fn negotiate<S: Security>(&mut self, mut options: Options<S>) -> Entered {
        while !self.actions.is_empty() {
            options = match self.actions.below(9) {
                0 => self.list(options),
                1 => self.info(options),
                2 => self.switch(options, HeaderStyle::Structured),
                3 => self.switch(options, HeaderStyle::Extended),
                4 => self.list_contexts(options),
                5 => self.set_contexts(options),
                6 => return S::start_tls(options, self),
                7 => match self.enter(options) {
                    Ok(entered) => return Some(entered),
                    Err(options) => options,
                },
                _ => {
                    options.abort(&mut self.peer.to_server);
                    while !self.peer.to_server.is_empty() {
                        self.peer.hear(self.world, &mut self.chopper);
                    }
                    assert!(self.peer.is_aborted());
                    return None;
                }
            };
        }
        let entered = self.enter(options);
        Some(entered.unwrap_or_else(|options| {
            let pending = options.go(Go::new(name("disk")), &mut self.peer.to_server);
            match self.wait(pending) {
                GoOutcome::Accepted(transmission) => (transmission, true),
                GoOutcome::Refused(_, error) => panic!("{error}"),
            }
        }))
    }

    fn list<S>(&mut self, options: Options<S>) -> Options<S> {
        let pending = options.list(&mut self.peer.to_server);
        let Settled { options, result } = self.wait(pending);
        match result {
            Ok(entries) => {
                let names = entries.into_iter().map(|entry| {
                    let name = entry.name.expect("a legal name");
                    assert_eq!(name.as_str(), entry.description.as_str());
                    name
                });
                assert!(names.eq(EXPORTS.map(name)) && self.world.config.listing);
            }
            Err(error) => {
                assert_eq!(error.code, OptionReplyCode::ErrPolicy);
                assert!(!self.world.config.listing);
            }
        }
        options
    }

    fn info<S>(&mut self, options: Options<S>) -> Options<S> {
        let wish = self.wish();
        let (known, infos) = (is_known(&wish.name), wish.infos);
        let pending = options.info(wish, &mut self.peer.to_server);
        let Settled { options, result } = self.wait(pending);
        match result {
            Ok(info) => {
                let export = &self.world.export;
                assert!(known);
                let name = export.name.as_ref();
                let asked = name.filter(|_| infos.contains(InfoType::Name));
                assert_eq!(info.name.as_ref(), asked);
                let text = export.description.as_ref();
                let asked = text.filter(|_| infos.contains(InfoType::Description));
                assert_eq!(info.description.as_ref(), asked);
                let sizes = export.block_sizes;
                let asked = sizes.filter(|_| infos.contains(InfoType::BlockSize));
                assert_eq!(info.block_sizes, asked);
                assert_eq!(info.is_read_only(), export.is_read_only());
            }
            Err(error) => {
                assert_eq!(error.code, OptionReplyCode::ErrUnknown);
                assert!(!known);
            }
        }
        options
    }

    fn switch<S>(&mut self, options: Options<S>, to: HeaderStyle) -> Options<S> {
        let (before, out) = (options.mode(), &mut self.peer.to_server);
        let (settled, offered) = if to == HeaderStyle::Extended {
            let pending = options.extended_headers(out);
            let waited = pending.map(|pending| self.wait(pending));
            (waited, self.world.config.extended)
        } else {
            let pending = options.structured_reply(out);
            let waited = pending.map(|pending| self.wait(pending));
            (waited, self.world.config.structured)
        };
        match settled {
            Err(rejected) => {
                assert!(before == to || before == HeaderStyle::Extended);
                rejected.options
            }
            Ok(Settled { options, result }) => {
                assert_eq!(result.is_ok(), offered);
                assert_eq!(options.mode(), if offered { to } else { before });
                options
            }
        }
    }

    fn list_contexts<S>(&mut self, options: Options<S>) -> Options<S> {
        let (export, queries) = (self.name(), self.queries());
        let pending = options.list_meta_context(&export, &queries, &mut self.peer.to_server);
        let Settled { options, result } = self.wait(pending);
        assert_eq!(result.is_ok(), is_known(&export));
        if let Ok(entries) = result {
            let names = entries
                .into_iter()
                .map(|entry| entry.name.expect("a legal name"));
            let wanted = |name: &&str| {
                let matches = |query: &ContextName| match query.as_str() {
                    wildcard if wildcard.ends_with(':') => name.starts_with(wildcard),
                    exact => *name == exact,
                };
                queries.is_empty() || queries.iter().any(matches)
            };
            let expected: Vec<_> = CONTEXTS.into_iter().filter(wanted).collect();
            assert!(names.eq(expected.into_iter().map(context)));
        }
        options
    }

    fn set_contexts<S>(&mut self, options: Options<S>) -> Options<S> {
        let (export, queries) = (self.name(), self.queries());
        let chunks = options.mode().has_chunks();
        match options.set_meta_context(&export, &queries, &mut self.peer.to_server) {
            Err(rejected) => {
                assert!(!chunks);
                rejected.options
            }
            Ok(pending) => {
                let Settled { options, result } = self.wait(pending);
                assert_eq!(result.is_ok(), is_known(&export));
                if let Ok(selected) = result {
                    let names = selected.into_iter().map(|context| context.name);
                    let all = CONTEXTS.map(context).into_iter();
                    assert!(names.eq(all.filter(|name| queries.contains(name)).map(Some)));
                }
                options
            }
        }
    }

    fn enter<S: core::fmt::Debug>(
        &mut self,
        options: Options<S>,
    ) -> Result<(Transmission, bool), Options<S>> {
        let wish = self.wish();
        let known = is_known(&wish.name);
        let sizes = wish.infos.contains(InfoType::BlockSize);
        // A server can refuse a name by closing the connection only.
        let options = if self.actions.flag() && known {
            match options.export_name(&wish.name, &mut self.peer.to_server) {
                Ok(pending) => return Ok((self.wait(pending), false)),
                Err(rejected) => rejected.options,
            }
        } else {
            options
        };
        let pending = options.go(wish, &mut self.peer.to_server);
        match self.wait(pending) {
            GoOutcome::Accepted(transmission) => {
                assert!(known);
                Ok((transmission, sizes))
            }
            GoOutcome::Refused(options, error) => {
                assert_eq!(error.code, OptionReplyCode::ErrUnknown);
                assert!(!known);
                Err(options)
            }
        }
    }

    fn name(&mut self) -> ExportName {
        name(self.actions.pick(&["disk", "disk", "b", "absent"]))
    }

    fn wish(&mut self) -> Go {
        let infos = [InfoSet::BLOCK_SIZE, InfoSet::ALL, InfoSet::NONE];
        Go {
            name: self.name(),
            infos: self.actions.pick(&infos),
        }
    }

    fn queries(&mut self) -> Vec<ContextName> {
        let all = ["x:a", "x:", "base:allocation", "unknown:context"];
        let set = self.actions.byte();
        let chosen = all
            .iter()
            .enumerate()
            .filter(|(bit, _)| set & 1 << bit != 0);
        chosen.map(|(_, name)| context(name)).collect()
    }
}

fn context(name: &str) -> ContextName {
    ContextName::new(name).expect("a legal name")
}

fn is_known(name: &ExportName) -> bool {
    EXPORTS.contains(&name.as_str())
}
