//! A server that grants and refuses by its input.

use super::{End, Ended, Ran, Server};
use crate::{delivery::Wire, input::Input};
use nbd_proto::{
    BlockSizes, ContextName, Error, ExportName,
    server::{
        ForcedRequested, Handshake, Options, Refusal, Requested, Security, StartTls, Transmission,
    },
};

/// A connection of a client.
pub(super) struct Connection<'a> {
    pub(super) server: &'a Server<'a>,
    pub(super) wire: Wire<'a>,
    pub(super) decisions: Input<'a>,
    pub(super) asked: Vec<String>,
}

enum Negotiated {
    End(End),
    StartTls(StartTls),
    Transmission(Transmission),
}

impl<'a> Connection<'a> {
    pub(super) fn new(server: &'a Server<'a>, wire: Wire<'a>) -> Self {
        Self {
            server,
            wire,
            decisions: Input::new(server.decisions),
            asked: Vec::new(),
        }
    }

    pub(super) fn into_ran(self) -> Ran {
        Ran {
            sent: self.wire.out.to_vec(),
            asked: self.asked,
        }
    }

    pub(super) fn run(&mut self) -> Ended {
        let negotiated = if self.server.forced {
            self.forced()?
        } else {
            let handshake = Handshake::new(self.server.config, &mut self.wire.out);
            match self.wire.drive(handshake)? {
                Ok(options) => self.negotiate(options)?,
                Err(handshake) => idle(handshake.is_idle()),
            }
        };
        let negotiated = match negotiated {
            Negotiated::StartTls(start) => {
                let options = start.accept(&mut self.wire.out).upgraded();
                self.asked.push(format!("TLS at {}", self.wire.used()));
                self.negotiate(options)?
            }
            other => other,
        };
        match negotiated {
            Negotiated::End(end) => Ok(end),
            Negotiated::StartTls(_) => panic!("TLS inside TLS"),
            Negotiated::Transmission(transmission) => self.serve(transmission),
        }
    }

    fn forced(&mut self) -> Result<Negotiated, Error> {
        let handshake = Handshake::forced_tls(self.server.config, &mut self.wire.out);
        let mut required = match self.wire.drive(handshake)? {
            Ok(required) => required,
            Err(handshake) => return Ok(idle(handshake.is_idle())),
        };
        if self.server.shutting_down {
            required.shut_down();
        }
        Ok(match self.wire.drive(required)? {
            Err(required) => idle(required.is_idle()),
            Ok(ForcedRequested::Abort(_)) => Negotiated::End(End::Aborted),
            Ok(ForcedRequested::StartTls(start)) => Negotiated::StartTls(start),
        })
    }

    fn negotiate<S: Security>(&mut self, mut options: Options<S>) -> Result<Negotiated, Error> {
        if self.server.shutting_down {
            options.shut_down();
        }
        let info = self.server.export.clone();
        loop {
            let requested = match self.wire.drive(options)? {
                Ok(requested) => requested,
                Err(options) => return Ok(idle(options.is_idle())),
            };
            options = match requested {
                Requested::List(mut list) => {
                    self.asked.push("list".into());
                    let refusal = self.refusal();
                    let out = &mut self.wire.out;
                    for name in NAMES {
                        list.entry(&export_name(name), "about it", out);
                    }
                    match refusal {
                        None => list.done(out),
                        Some((refusal, text)) => list.refuse(refusal, text, out),
                    }
                }
                Requested::Info(request) => {
                    self.asked.push(format!("info {:?}", request.name()));
                    match self.refusal_of(request.name()) {
                        None => request.accept(&info, &mut self.wire.out),
                        Some((refusal, text)) => request.refuse(refusal, text, &mut self.wire.out),
                    }
                }
                Requested::Go(go) => {
                    self.asked.push(format!("go {:?}", go.name()));
                    match self.refusal_of(go.name()) {
                        None => {
                            let transmission = go.accept(&info, &mut self.wire.out);
                            return Ok(Negotiated::Transmission(transmission));
                        }
                        Some((refusal, text)) => go.refuse(refusal, text, &mut self.wire.out),
                    }
                }
                Requested::ExportName(request) => {
                    self.asked.push(format!("export name {:?}", request.name()));
                    return match self.refusal_of(request.name()) {
                        None => {
                            let transmission = request.accept(&info, &mut self.wire.out);
                            Ok(Negotiated::Transmission(transmission))
                        }
                        Some(_) => Err(request.refuse("there is no such export")),
                    };
                }
                Requested::ListMetaContext(mut list) => {
                    let queries: Vec<_> = list.queries().collect();
                    self.asked
                        .push(format!("{:?} of {:?}", queries, list.name()));
                    let refusal = self.refusal_of(list.name());
                    for context in CONTEXTS {
                        list.context(&context_name(context), &mut self.wire.out);
                    }
                    match refusal {
                        None => list.done(&mut self.wire.out),
                        Some((refusal, text)) => list.refuse(refusal, text, &mut self.wire.out),
                    }
                }
                Requested::SetMetaContext(mut set) => {
                    let queries: Vec<_> = set.queries().collect();
                    self.asked
                        .push(format!("{:?} of {:?}", queries, set.name()));
                    let refusal = self.refusal_of(set.name());
                    for context in CONTEXTS {
                        set.select(&context_name(context), &mut self.wire.out);
                    }
                    match refusal {
                        None => set.done(&mut self.wire.out),
                        Some((refusal, text)) => set.refuse(refusal, text, &mut self.wire.out),
                    }
                }
                Requested::StartTls(start) => return Ok(Negotiated::StartTls(start.into())),
                Requested::Abort(_) => return Ok(Negotiated::End(End::Aborted)),
            };
        }
    }

    fn refusal_of(&mut self, name: &ExportName) -> Option<(Refusal, &'static str)> {
        if NAMES.contains(&name.as_str()) {
            self.refusal()
        } else {
            Some((Refusal::Unknown, ""))
        }
    }

    /// Mostly none.
    fn refusal(&mut self) -> Option<(Refusal, &'static str)> {
        if self.server.willing {
            return None;
        }
        let sizes = BlockSizes::new(512, 4096, 65536).expect("legal sizes");
        let refusal = match self.decisions.byte() {
            ..=0xdf => return None,
            byte => match byte & 15 {
                0 | 1 => Refusal::Unknown,
                2 | 3 => Refusal::Policy,
                4 | 5 => Refusal::Invalid,
                6 => Refusal::Platform,
                7 | 8 => Refusal::TlsRequired,
                9 => Refusal::Shutdown,
                10 | 11 => Refusal::BlockSizeRequired(sizes),
                12 => Refusal::TooBig,
                _ => Refusal::ExtendedHeadersRequired,
            },
        };
        Some((refusal, self.decisions.pick(&["", "no"])))
    }
}

const NAMES: [&str; 3] = ["", "disk", "other"];
const CONTEXTS: [&str; 3] = ["base:allocation", "x:a", "x:b"];

fn export_name(name: &str) -> ExportName {
    ExportName::new(name).expect("a legal name")
}

fn context_name(name: &str) -> ContextName {
    ContextName::new(name).expect("a legal name")
}

fn idle(idle: bool) -> Negotiated {
    Negotiated::End(if idle { End::Idle } else { End::Inside })
}
