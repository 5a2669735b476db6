//! The server in negotiation.

use super::{CONTEXTS, Chopper, EXPORTS, World, negotiation::name};
use bytes::BytesMut;
use nbd_proto::{
    ContextName, Step,
    server::{
        Encrypted, Handshake, Options, Plain, Refusal, Requested, Security, StartTls, Transmission,
        Upgrade,
    },
};

/// The phase of the server, and both directions of the connection.
#[derive(Debug)]
pub(super) struct Peer {
    state: Option<State>,
    pub(super) to_server: BytesMut,
    pub(super) to_client: BytesMut,
}

#[derive(Debug)]
enum State {
    Handshake(Handshake),
    Plain(Options<Plain>),
    Upgrade(Upgrade),
    Encrypted(Options<Encrypted>),
    Transmission(Transmission),
    Aborted,
}

enum Answered<S> {
    Options(Options<S>),
    StartTls(StartTls),
    Transmission(Transmission),
    Aborted,
}

impl Peer {
    pub(super) fn new(world: &World) -> Self {
        let mut to_client = BytesMut::new();
        let handshake = Handshake::new(world.config, &mut to_client);
        Self {
            state: Some(State::Handshake(handshake)),
            to_server: BytesMut::new(),
            to_client,
        }
    }

    /// Reads a piece of the client's bytes, if there is one.
    pub(super) fn hear(&mut self, world: &World, chopper: &mut Chopper<'_>) {
        if self.to_server.is_empty() {
            return;
        }
        let (from, out) = (&mut self.to_server, &mut self.to_client);
        let state = self.state.take().expect("it is always put back");
        self.state = Some(match state {
            State::Handshake(handshake) => match chopper.deliver(handshake, from, out) {
                Step::More(handshake) => State::Handshake(handshake),
                Step::Done(options) => State::Plain(options),
            },
            State::Plain(options) => match chopper.deliver(options, from, out) {
                Step::More(options) => State::Plain(options),
                Step::Done(requested) => match answer(requested, world, out) {
                    Answered::Options(options) => State::Plain(options),
                    Answered::StartTls(start) => State::Upgrade(start.accept(out)),
                    Answered::Transmission(transmission) => State::Transmission(transmission),
                    Answered::Aborted => State::Aborted,
                },
            },
            State::Encrypted(options) => match chopper.deliver(options, from, out) {
                Step::More(options) => State::Encrypted(options),
                Step::Done(requested) => match answer(requested, world, out) {
                    Answered::Options(options) => State::Encrypted(options),
                    Answered::StartTls(_) => panic!("TLS inside TLS"),
                    Answered::Transmission(transmission) => State::Transmission(transmission),
                    Answered::Aborted => State::Aborted,
                },
            },
            State::Upgrade(_) | State::Transmission(_) | State::Aborted => {
                panic!("the client waits for no reply")
            }
        });
    }

    /// The client reports that TLS is up.
    pub(super) fn upgrade(&mut self) {
        assert!(self.to_server.is_empty() && self.to_client.is_empty());
        self.state = match self.state.take() {
            Some(State::Upgrade(upgrade)) => Some(State::Encrypted(upgrade.upgraded())),
            other => panic!("{other:?}"),
        };
    }

    /// The client reports that it has entered the export.
    pub(super) fn into_transmission(self) -> Transmission {
        assert!(self.to_server.is_empty() && self.to_client.is_empty());
        match self.state {
            Some(State::Transmission(transmission)) => transmission,
            other => panic!("{other:?}"),
        }
    }

    pub(super) const fn is_aborted(&self) -> bool {
        matches!(self.state, Some(State::Aborted))
    }
}

fn answer<S: Security>(requested: Requested<S>, world: &World, out: &mut BytesMut) -> Answered<S> {
    let contexts = CONTEXTS.map(|name| ContextName::new(name).expect("a legal name"));
    let known = |name: &nbd_proto::ExportName| EXPORTS.contains(&name.as_str());
    Answered::Options(match requested {
        Requested::List(mut list) => {
            for export in EXPORTS {
                list.entry(&name(export), export, out);
            }
            list.done(out)
        }
        Requested::Info(info) if known(info.name()) => info.accept(&world.export, out),
        Requested::Info(info) => info.refuse(Refusal::Unknown, "", out),
        Requested::Go(go) if known(go.name()) => {
            return Answered::Transmission(go.accept(&world.export, out));
        }
        Requested::Go(go) => go.refuse(Refusal::Unknown, "", out),
        Requested::ExportName(request) => {
            assert!(known(request.name()), "the client knows better");
            return Answered::Transmission(request.accept(&world.export, out));
        }
        Requested::ListMetaContext(list) if !known(list.name()) => {
            list.refuse(Refusal::Unknown, "", out)
        }
        Requested::ListMetaContext(mut list) => {
            for context in &contexts {
                list.context(context, out);
            }
            list.done(out)
        }
        Requested::SetMetaContext(set) if !known(set.name()) => {
            set.refuse(Refusal::Unknown, "", out)
        }
        Requested::SetMetaContext(mut set) => {
            for context in &contexts {
                set.select(context, out);
            }
            set.done(out)
        }
        Requested::StartTls(start) => return Answered::StartTls(start.into()),
        Requested::Abort(_) => return Answered::Aborted,
    })
}
