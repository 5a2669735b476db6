//! Every way to get a client's bytes to a server.

use super::{Enter, Server, send};
use crate::val;
use bytes::BytesMut;
use nbd_proto::{
    ContextName, Error, ExportName, Phase, Step,
    server::{
        Config, Event, Fill, ForcedRequested, Handshake, Options, Plain, Receipt, Request,
        Requested, Security, StartTls, Transmission,
    },
};

/// The outcome of a connection.
#[derive(Debug, PartialEq)]
pub(crate) struct Ran {
    /// The server's bytes, whole.
    pub(crate) sent: Vec<u8>,
    /// The server's bytes in words, by a decoder that shares nothing with the server.
    pub(crate) said: Vec<String>,
    /// The requests that the server was asked to carry out.
    pub(crate) asked: Vec<String>,
    pub(crate) end: End,
}

#[derive(Debug, PartialEq)]
pub(crate) enum End {
    /// The client's bytes are used up and nothing is left half-done.
    Idle,
    /// The client's bytes ended inside a message.
    Inside,
    /// The client may go on only when replies have been sent.
    Blocked,
    Aborted,
    Disconnected,
    Dead(Error),
}

/// The way in which bytes get to the server.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) feed: bool,
    /// The lengths of pieces, over and over.
    pub(crate) sizes: Vec<usize>,
    pub(crate) turn: usize,
}

impl Way {
    pub(crate) fn new(feed: bool, sizes: &[usize]) -> Self {
        Self {
            feed,
            sizes: sizes.to_vec(),
            turn: 0,
        }
    }
}

/// The client's bytes on their way.
struct Wire<'a> {
    script: &'a [u8],
    way: Way,
    sent: Vec<u8>,
    asked: Vec<String>,
}

impl Wire<'_> {
    /// The number of bytes that arrive next.
    fn arriving(&mut self) -> usize {
        let size = self.way.sizes[self.way.turn % self.way.sizes.len()];
        self.way.turn += 1;
        size.min(self.script.len())
    }

    /// Runs a phase to its end, or as far as the bytes go.
    fn drive<P: Phase>(&mut self, mut phase: P) -> Result<Result<P::Next, P>, Error> {
        while !self.script.is_empty() {
            let mut n = self.arriving();
            let mut out = BytesMut::new();
            let step = if self.way.feed {
                match phase.feed(&self.script[..n], &mut out) {
                    Ok((used, step)) => {
                        n = used;
                        Ok(step)
                    }
                    Err(error) => Err(error),
                }
            } else {
                let space = phase.space();
                assert!(!space.is_empty());
                n = n.min(space.len());
                space[..n].copy_from_slice(&self.script[..n]);
                phase.filled(n, &mut out)
            };
            self.script = &self.script[n..];
            // After an error nothing is to be sent. But the number of bytes sent before depends on
            // the way, so count all of it: it has to be whole replies to the valid messages.
            self.sent.extend_from_slice(&out);
            match step? {
                Step::More(more) => phase = more,
                Step::Done(next) => return Ok(Ok(next)),
            }
        }
        Ok(Err(phase))
    }
}

enum Negotiated {
    End(End),
    StartTls(StartTls),
    Transmission(Transmission),
}

fn idle(idle: bool) -> Negotiated {
    Negotiated::End(if idle { End::Idle } else { End::Inside })
}

fn negotiate<S: Security>(
    server: &Server,
    mut options: Options<S>,
    wire: &mut Wire<'_>,
) -> Result<Negotiated, Error> {
    if server.shutting_down {
        options.shut_down();
    }
    loop {
        let requested = match wire.drive(options)? {
            Ok(requested) => requested,
            Err(options) => return Ok(idle(options.is_idle())),
        };
        let mut out = BytesMut::new();
        options = match requested {
            Requested::List(mut list) => {
                wire.asked.push("list".into());
                if let Some(refusal) = server.refusal {
                    list.refuse(refusal, "", &mut out)
                } else {
                    for export in &server.exports {
                        if list.is_secure() || !export.tls_only {
                            let name = ExportName::new(export.name).unwrap();
                            list.entry(&name, "about it", &mut out);
                        }
                    }
                    list.done(&mut out)
                }
            }
            Requested::Info(info) => {
                wire.asked.push(format!("info {:?}", info.name()));
                match server.find(info.name(), info.is_secure()) {
                    Ok(export) => info.accept(&export.info, &mut out),
                    Err(refusal) => info.refuse(refusal, "", &mut out),
                }
            }
            Requested::Go(go) => {
                wire.asked.push(format!("go {:?}", go.name()));
                match server.find(go.name(), go.is_secure()) {
                    Ok(export) => {
                        let transmission = go.accept(&export.info, &mut out);
                        wire.sent.extend_from_slice(&out);
                        return Ok(Negotiated::Transmission(transmission));
                    }
                    Err(refusal) => go.refuse(refusal, "", &mut out),
                }
            }
            Requested::ExportName(request) => {
                wire.asked.push(format!("export name {:?}", request.name()));
                match server.find(request.name(), request.is_secure()) {
                    Ok(export) => {
                        let transmission = request.accept(&export.info, &mut out);
                        wire.sent.extend_from_slice(&out);
                        return Ok(Negotiated::Transmission(transmission));
                    }
                    Err(_) => return Err(request.refuse("there is no such export")),
                }
            }
            Requested::ListMetaContext(mut list) => {
                wire.asked.push(format!("list contexts {:?}", list.name()));
                match server.find(list.name(), list.is_secure()) {
                    Ok(export) => {
                        for name in &export.contexts {
                            list.context(&ContextName::new(*name).unwrap(), &mut out);
                        }
                        list.done(&mut out)
                    }
                    Err(refusal) => list.refuse(refusal, "", &mut out),
                }
            }
            Requested::SetMetaContext(mut set) => {
                wire.asked.push(format!("set contexts {:?}", set.name()));
                match server.find(set.name(), set.is_secure()) {
                    Ok(export) => {
                        for name in &export.contexts {
                            set.select(&ContextName::new(*name).unwrap(), &mut out);
                        }
                        set.done(&mut out)
                    }
                    Err(refusal) => set.refuse(refusal, "", &mut out),
                }
            }
            Requested::StartTls(start) => return Ok(Negotiated::StartTls(start.into())),
            Requested::Abort(_) => return Ok(Negotiated::End(End::Aborted)),
        };
        wire.sent.extend_from_slice(&out);
    }
}

fn serve(
    server: &Server,
    mut transmission: Transmission,
    wire: &mut Wire<'_>,
) -> Result<End, Error> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut kept: Vec<(Vec<u8>, Receipt)> = Vec::new();
    if server.shutting_down {
        transmission.shut_down();
    }
    loop {
        let n = wire.arriving();
        let used;
        let event = if wire.way.feed {
            let fed = transmission.feed(&wire.script[..n])?;
            used = fed.used;
            if let Some(range) = fed.payload {
                assert_eq!(range.len(), used);
                buffer.resize(
                    range
                        .end
                        .max(if range.start == 0 { 0 } else { buffer.len() }),
                    0,
                );
                buffer[range].copy_from_slice(&wire.script[..used]);
            }
            fed.event
        } else {
            match transmission.fill() {
                Fill::Control(space) => {
                    assert!(!space.is_empty());
                    used = n.min(space.len());
                    space[..used].copy_from_slice(&wire.script[..used]);
                }
                Fill::Payload { range, len } => {
                    assert!(!range.is_empty() && range.end == len);
                    if range.start == 0 {
                        buffer = vec![0; len];
                    }
                    used = n.min(range.len());
                    buffer[range][..used].copy_from_slice(&wire.script[..used]);
                }
                Fill::Discard(len) => {
                    assert!(len > 0);
                    used = n.min(len);
                }
                Fill::Blocked | Fill::Finished => used = 0,
            }
            if used == 0 {
                None
            } else {
                transmission.filled(used)?
            }
        };
        wire.script = &wire.script[used..];
        let stuck = used == 0;
        let mut out = Vec::new();
        match event {
            None => {}
            Some(Event::Request(request)) => {
                let mut asked = format!("{request:?}");
                asked.truncate(asked.find(" ticket").unwrap());
                if matches!(request, Request::Write { .. }) {
                    asked += &format!(" {buffer:02x?}");
                }
                wire.asked.push(asked);
                let receipt = (server.answer)(request, &mut out);
                kept.push((out, receipt));
            }
            Some(Event::Answered(reply)) => {
                let receipt = send(*reply, &mut out);
                kept.push((out, receipt));
            }
            Some(Event::Disconnect) => {
                for (out, receipt) in kept.drain(..).rev() {
                    assert!(!transmission.is_finished());
                    wire.sent.extend_from_slice(&out);
                    transmission.retire(receipt);
                }
                assert!(transmission.is_finished());
                assert_eq!(transmission.fill(), Fill::Finished);
                return Ok(End::Disconnected);
            }
        }
        if kept.len() > server.keep_back || stuck && !wire.script.is_empty() {
            let blocked = kept.is_empty();
            for (out, receipt) in kept.drain(..).rev() {
                wire.sent.extend_from_slice(&out);
                transmission.retire(receipt);
            }
            if blocked {
                return Ok(End::Blocked);
            }
        }
        if wire.script.is_empty() {
            for (out, receipt) in kept.drain(..).rev() {
                wire.sent.extend_from_slice(&out);
                transmission.retire(receipt);
            }
            assert_eq!(transmission.in_flight(), 0);
            return Ok(if transmission.is_idle() {
                End::Idle
            } else {
                End::Inside
            });
        }
    }
}

fn connection(server: &Server, wire: &mut Wire<'_>) -> Result<End, Error> {
    let mut out = BytesMut::new();
    let negotiated = if server.forced {
        let handshake = Handshake::forced_tls(server.config, &mut out);
        wire.sent.extend_from_slice(&out);
        match wire.drive(handshake)? {
            Err(handshake) => idle(handshake.is_idle()),
            Ok(mut required) => {
                if server.shutting_down {
                    required.shut_down();
                }
                match wire.drive(required)? {
                    Err(required) => idle(required.is_idle()),
                    Ok(ForcedRequested::Abort(_)) => Negotiated::End(End::Aborted),
                    Ok(ForcedRequested::StartTls(start)) => Negotiated::StartTls(start),
                }
            }
        }
    } else {
        let handshake = Handshake::new(server.config, &mut out);
        wire.sent.extend_from_slice(&out);
        match wire.drive(handshake)? {
            Err(handshake) => idle(handshake.is_idle()),
            Ok(options) => negotiate(server, options, wire)?,
        }
    };
    let negotiated = match negotiated {
        Negotiated::StartTls(start) => {
            let mut out = BytesMut::new();
            let upgrade = start.accept(&mut out);
            wire.sent.extend_from_slice(&out);
            wire.asked
                .push(format!("TLS with {} bytes to come", wire.script.len()));
            negotiate(server, upgrade.upgraded(), wire)?
        }
        other => other,
    };
    match negotiated {
        Negotiated::End(end) => Ok(end),
        Negotiated::StartTls(_) => panic!("TLS inside TLS"),
        Negotiated::Transmission(transmission) => serve(server, transmission, wire),
    }
}

/// Lets the client's bytes arrive in one way.
pub(crate) fn run_in(server: &Server, script: &[u8], way: Way) -> Ran {
    let mut wire = Wire {
        script,
        way,
        sent: Vec::new(),
        asked: Vec::new(),
    };
    let end = connection(server, &mut wire).unwrap_or_else(End::Dead);
    Ran {
        said: val::check(script, &wire.sent, &server.config.limits),
        sent: wire.sent,
        asked: wire.asked,
        end,
    }
}

/// Lets the client's bytes arrive all at once, one by one and in between, pushed and pulled: with
/// equal outcome.
pub(crate) fn run(server: &Server, script: &[u8]) -> Ran {
    let all = script.len().max(1);
    let ran = run_in(server, script, Way::new(true, &[all]));
    for way in [
        Way::new(true, &[1]),
        Way::new(false, &[all]),
        Way::new(false, &[1]),
        Way::new(true, &[3, 1, 40, 7]),
    ] {
        let other = run_in(server, script, way.clone());
        assert_eq!(ran, other, "{way:?}");
    }
    ran
}

/// The server's words to requests in a mode, without its words before.
pub(crate) fn serve_in(server: &Server, mode: Enter, requests: &[Vec<u8>]) -> Ran {
    serve_after(server, &mode.options(), requests)
}

pub(crate) fn serve_after(server: &Server, options: &[u8], requests: &[Vec<u8>]) -> Ran {
    let before = run_in(server, options, Way::new(true, &[options.len()]));
    let mut ran = run(server, &[options, &requests.concat()].concat());
    ran.said.drain(..before.said.len());
    ran.asked.drain(..before.asked.len());
    ran.sent.drain(..before.sent.len());
    ran
}

/// A transmission for tests that call it directly.
pub(crate) fn transmission(server: &Server, options: &[u8]) -> Transmission {
    let mut wire = Wire {
        script: options,
        way: Way::new(true, &[options.len()]),
        sent: Vec::new(),
        asked: Vec::new(),
    };
    let mut out = BytesMut::new();
    let Ok(Ok(options)) = wire.drive(Handshake::new(server.config, &mut out)) else {
        panic!("the client flags are wrong");
    };
    match negotiate(server, options, &mut wire) {
        Ok(Negotiated::Transmission(transmission)) => transmission,
        _ => panic!("the options do not lead to transmission"),
    }
}

/// The option that the server is asked about last; its words before are dropped.
pub(crate) fn ask(parts: &[Vec<u8>], out: &mut BytesMut) -> Requested<Plain> {
    let script = super::options(parts);
    let handshake = Handshake::new(Config::default(), out);
    let (used, Step::Done(options)) = handshake.feed(&script, out).unwrap() else {
        panic!();
    };
    let (_, Step::Done(requested)) = options.feed(&script[used..], out).unwrap() else {
        panic!();
    };
    out.clear();
    requested
}

/// Feeds one whole request and returns it.
pub(crate) fn request(transmission: &mut Transmission, bytes: &[u8]) -> Request {
    let mut rest = bytes;
    loop {
        let fed = transmission.feed(rest).unwrap();
        assert!(fed.used > 0, "the request has to be accepted");
        rest = &rest[fed.used..];
        match fed.event {
            Some(Event::Request(request)) => return request,
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
}
