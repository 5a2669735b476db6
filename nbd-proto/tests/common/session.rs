//! Sessions under test: from the greeting to options, and from options to transmission.

use super::{
    bytes,
    reply::{Answer, Answers, Replier},
    wire::{Delivery, Piece, Wire, always},
};
use ::bytes::{Buf, BufMut};
use core::fmt;
use nbd_proto::{
    Bare, CommandFlags, ContextName, Error, ExportName, Frame, HeaderStyle, Misuse,
    client::{
        Config, Cookie, Event, Fill, Go, GoOutcome, Greeted, Handshake, Limits, Options, Outcome,
        Payload, Plain, Settled, Tolerance, Transmission, WholeReply,
    },
};

/// Every known transmission flag but `READ_ONLY`, `ROTATIONAL` and `SEND_RESIZE`.
pub(crate) const ALL_FLAGS: u16 = 0x1ded;

/// The three profiles, each with its name.
pub(crate) const PROFILES: [(&str, Tolerance); 3] = [
    ("strict", Tolerance::STRICT),
    ("default", DEFAULT),
    ("lenient", Tolerance::LENIENT),
];

/// [`Tolerance::default`], spelt out so that a change of it does not go unnoticed.
pub(crate) const DEFAULT: Tolerance = Tolerance {
    simple_error_to_read: true,
    oversized_chunk: true,
    missing_context: true,
    surplus_extents: true,
    unasked_context: true,
    ..Tolerance::STRICT
};

/// The name of an export.
pub(crate) fn export(name: &str) -> ExportName {
    ExportName::new(name).expect("a legal name")
}

/// The names of meta contexts.
pub(crate) fn contexts(names: &[&str]) -> Vec<ContextName> {
    let parse = |name: &&str| ContextName::new(*name).expect("a legal name");
    names.iter().map(parse).collect()
}

/// Plays a scenario that starts when client flags 3 were sent.
pub(crate) fn negotiate<T: PartialEq + fmt::Debug>(
    scenario: impl Fn(&mut Wire, Options<Plain>) -> T,
) -> T {
    negotiate_with(Config::default(), scenario)
}

/// [`negotiate`] with a profile.
pub(crate) fn negotiate_with<T: PartialEq + fmt::Debug>(
    config: Config,
    scenario: impl Fn(&mut Wire, Options<Plain>) -> T,
) -> T {
    always(|wire| {
        let options = greeted(wire, config);
        scenario(wire, options)
    })
}

/// A profile with limits of the default.
pub(crate) fn profile(tolerance: Tolerance) -> Config {
    Config {
        tolerance,
        ..Config::default()
    }
}

fn greeted(wire: &mut Wire, config: Config) -> Options<Plain> {
    match wire.answer(Handshake::new(config), bytes::hello(3)) {
        Ok(Greeted::FixedNewstyle(options)) => {
            assert_eq!(wire.sent(), bytes::cf(3));
            options
        }
        other => panic!("{other:?}"),
    }
}

/// Takes up an option that must be granted.
pub(crate) fn granted<S: fmt::Debug, T: fmt::Debug>(
    settled: Result<Settled<S, T>, Error>,
) -> Options<S> {
    match settled {
        Ok(Settled {
            options,
            result: Ok(_),
        }) => options,
        other => panic!("{other:?}"),
    }
}

/// An export and the way into it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) mode: HeaderStyle,
    size: u64,
    flags: u16,
    block_sizes: Option<[u32; 3]>,
    contexts: Vec<(u32, &'static str)>,
    unasked: Vec<(u32, &'static str)>,
    config: Config,
}

impl Entry {
    fn new(mode: HeaderStyle) -> Self {
        Self {
            mode,
            size: 1 << 20,
            flags: ALL_FLAGS,
            block_sizes: None,
            contexts: Vec::new(),
            unasked: Vec::new(),
            config: Config::default(),
        }
    }

    pub(crate) fn simple() -> Self {
        Self::new(HeaderStyle::Simple)
    }

    pub(crate) fn structured() -> Self {
        Self::new(HeaderStyle::Structured)
    }

    pub(crate) fn extended() -> Self {
        Self::new(HeaderStyle::Extended)
    }

    /// Both ways to have chunks.
    pub(crate) fn chunked() -> [Self; 2] {
        [Self::structured(), Self::extended()]
    }

    pub(crate) fn every_mode() -> [Self; 3] {
        [Self::simple(), Self::structured(), Self::extended()]
    }

    pub(crate) fn size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    pub(crate) fn flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    pub(crate) fn block_sizes(self, minimum: u32, preferred: u32, maximum: u32) -> Self {
        Self {
            block_sizes: Some([minimum, preferred, maximum]),
            ..self
        }
    }

    /// Selects one more context.
    pub(crate) fn context(mut self, id: u32, name: &'static str) -> Self {
        self.contexts.push((id, name));
        self
    }

    /// The server selects one more context, which the client did not ask for.
    pub(crate) fn unasked(mut self, id: u32, name: &'static str) -> Self {
        self.unasked.push((id, name));
        self
    }

    pub(crate) fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.config.tolerance = tolerance;
        self
    }

    pub(crate) fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Greets, negotiates and enters.
    pub(crate) fn enter(&self, delivery: Delivery) -> Session {
        let mut wire = Wire::new(delivery);
        let wire = &mut wire;
        let mut options = greeted(wire, self.config);
        match self.mode {
            HeaderStyle::Simple => {}
            HeaderStyle::Structured => {
                let pending = options.structured_reply(&mut wire.out).expect("asked once");
                options = granted(wire.answer(pending, bytes::ack(8)));
            }
            HeaderStyle::Extended => {
                let pending = options.extended_headers(&mut wire.out).expect("asked once");
                options = granted(wire.answer(pending, bytes::ack(11)));
            }
        }
        if !self.contexts.is_empty() {
            let names: Vec<_> = self.contexts.iter().map(|(_, name)| *name).collect();
            let pending = options
                .set_meta_context(&export(""), &contexts(&names), &mut wire.out)
                .expect("chunks were agreed on");
            for (id, name) in self.contexts.iter().chain(&self.unasked) {
                wire.says(bytes::meta(10, *id, name));
            }
            options = granted(wire.answer(pending, bytes::ack(10)));
        }
        let pending = options.go(Go::default(), &mut wire.out);
        wire.says(bytes::iexp(7, self.size, self.flags));
        if let Some([minimum, preferred, maximum]) = self.block_sizes {
            wire.says(bytes::ibs(7, minimum, preferred, maximum));
        }
        match wire.answer(pending, bytes::ack(7)) {
            Ok(GoOutcome::Accepted(transmission)) => {
                let _ = wire.sent();
                Session::new(core::mem::replace(wire, Wire::new(delivery)), transmission)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Plays a scenario of this export with every delivery, and returns the outcome, which is
    /// always the same.
    pub(crate) fn always<T: PartialEq + fmt::Debug>(
        &self,
        scenario: impl Fn(&mut Session) -> T,
    ) -> T {
        let play = |delivery| scenario(&mut self.enter(delivery));
        let expected = play(Delivery::Whole);
        for delivery in Delivery::ALL {
            assert_eq!(play(*delivery), expected, "{delivery:?}");
        }
        expected
    }

    /// One read and its reply.
    pub(crate) fn read(
        &self,
        offset: u64,
        len: u64,
        reply: impl Fn(Replier) -> Vec<u8>,
    ) -> Answers {
        self.always(|session| {
            let to = session.read(offset, len);
            session.says(reply(to)).settled()
        })
    }

    /// One read that is not to be fragmented, and its reply.
    pub(crate) fn read_df(&self, len: u64, reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
        self.always(|session| {
            let to = session.read_with(0, len, CommandFlags::DF);
            session.says(reply(to)).settled()
        })
    }

    /// One block status and its reply.
    pub(crate) fn block_status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
        reply: impl Fn(Replier) -> Vec<u8>,
    ) -> Answers {
        self.always(|session| {
            let to = session.send(|t| t.block_status(offset, len, flags));
            session.says(reply(to.at(offset))).settled()
        })
    }

    /// One write of 512 bytes at 512, and its reply.
    pub(crate) fn write(&self, reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
        self.always(|session| {
            let to = session.send(|t| t.write(512, &[7; 512][..], CommandFlags::NONE));
            session.says(reply(to.at(512))).settled()
        })
    }

    /// One flush and its reply.
    pub(crate) fn flush(&self, reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
        self.always(|session| {
            let to = session.send(Transmission::flush);
            session.says(reply(to)).settled()
        })
    }
}

/// A transmission, the buffers of its reads and the server at the other end.
pub(crate) struct Session {
    pub(crate) wire: Wire,
    pub(crate) transmission: Transmission,
    requests: Vec<(Cookie, Option<Vec<u8>>)>,
}

impl Session {
    pub(crate) fn new(wire: Wire, transmission: Transmission) -> Self {
        Self {
            wire,
            transmission,
            requests: Vec::new(),
        }
    }

    pub(crate) fn read(&mut self, offset: u64, len: u64) -> Replier {
        self.read_with(offset, len, CommandFlags::NONE)
    }

    /// Sends a read into a buffer full of 0xaa.
    pub(crate) fn read_with(&mut self, offset: u64, len: u64, flags: CommandFlags) -> Replier {
        let to = self.send(|t| t.read(offset, len, flags));
        let len = usize::try_from(len).expect("tests are short");
        let (_, buffer) = self.requests.last_mut().expect("one was sent just now");
        *buffer = Some(vec![0xaa; len]);
        to.at(offset)
    }

    /// Sends a command that must be accepted.
    pub(crate) fn send<P: Buf>(
        &mut self,
        command: impl FnOnce(&mut Transmission) -> Result<(Cookie, Frame<P>), Misuse>,
    ) -> Replier {
        let (cookie, frame) = command(&mut self.transmission).expect("a command that makes sense");
        self.wire.out.put(frame);
        self.requests.push((cookie, None));
        Replier::new(self.transmission.mode(), cookie.as_u64())
    }

    /// The request that was sent last.
    pub(crate) fn cookie(&self) -> Cookie {
        self.requests.last().expect("one was sent").0
    }

    /// The bytes that would be sent for a command, or the reason why it is not sent.
    pub(crate) fn try_send<P: Buf>(
        &mut self,
        command: impl FnOnce(&mut Transmission) -> Result<(Cookie, Frame<P>), Misuse>,
    ) -> Result<(u64, Vec<u8>), Misuse> {
        let (cookie, frame) = command(&mut self.transmission)?;
        let mut sent = Vec::new();
        sent.put(frame);
        Ok((cookie.as_u64(), sent))
    }

    /// Gives up a request, by the order in which it was sent.
    pub(crate) fn abandon(&mut self, index: usize) {
        let (cookie, buffer) = &mut self.requests[index];
        self.transmission.abandon(*cookie);
        *buffer = None;
    }

    /// The server sends `bytes`.
    pub(crate) fn says(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.wire.says(bytes);
        self
    }

    /// Reads all bytes of the server, and then checks that the two sides are in step.
    pub(crate) fn settled(&mut self) -> Answers {
        let answers = self.replies()?;
        let can_flush = self.transmission.export().can_flush();
        let ends = self.transmission.server_shuts_down();
        if self.transmission.in_flight() == 0 && can_flush && !ends {
            let to = self.send(Transmission::flush);
            let at = self.requests.len() - 1;
            let next = self.says(to.ok()).replies();
            assert_eq!(next, Ok(vec![(at, Answer::Done)]), "out of step");
        }
        Ok(answers)
    }

    /// Reads all bytes of the server.
    pub(crate) fn replies(&mut self) -> Answers {
        let mut answers = Vec::new();
        while self.wire.left() > 0 {
            match self.piece() {
                Ok(None) => {}
                Ok(Some(event)) => answers.extend(self.event(event)),
                Err(error) => {
                    self.is_dead(error);
                    return Err(error);
                }
            }
        }
        Ok(answers)
    }

    fn piece(&mut self) -> Result<Option<Event>, Error> {
        let piece = self.wire.piece();
        if let Piece::FedReplies(n) = piece
            && let Some(event) = self.whole_reply(n)
        {
            return Ok(Some(event));
        }
        match piece {
            Piece::Fed(n) | Piece::FedReplies(n) => {
                let bytes = self.wire.peek(n).to_vec();
                let fed = self.transmission.feed(&bytes)?;
                assert!((1..=n).contains(&fed.used));
                if let Some(payload) = fed.payload {
                    let start = fed.used - payload.range.len();
                    self.buffer(&payload)
                        .copy_from_slice(&bytes[start..fed.used]);
                }
                self.wire.consume(fed.used);
                Ok(fed.event)
            }
            Piece::Filled(n) => {
                let n = match self.transmission.fill()? {
                    Fill::Control(space) => {
                        assert!((1..=4096).contains(&space.len()));
                        let n = n.min(space.len());
                        space[..n].copy_from_slice(self.wire.peek(n));
                        n
                    }
                    Fill::Payload(payload) => {
                        let n = n.min(payload.range.len());
                        assert!(n > 0);
                        let bytes = self.wire.peek(n).to_vec();
                        self.buffer(&payload)[..n].copy_from_slice(&bytes);
                        n
                    }
                    Fill::Discard(most) => {
                        assert!(most > 0);
                        n.min(most)
                    }
                };
                self.wire.consume(n);
                self.transmission.filled(n)
            }
        }
    }

    /// Takes the next reply in if all of it has come, and its header is in `n` bytes.
    fn whole_reply(&mut self, n: usize) -> Option<Event> {
        let (bytes, left) = (self.wire.peek(n), self.wire.left());
        let reply = self.transmission.whole_reply(bytes, left, None)?;
        let WholeReply {
            cookie,
            header,
            payload: len,
        } = reply;
        assert!(header <= n);
        let bytes = self.wire.peek(header + len)[header..].to_vec();
        if len > 0 {
            let range = 0..len;
            self.buffer(&Payload { cookie, range })
                .copy_from_slice(&bytes);
        }
        self.wire.consume(header + len);
        let outcome = Outcome::Done;
        Some(Event::Complete { cookie, outcome })
    }

    fn index(&self, cookie: Cookie) -> usize {
        let found = self.requests.iter().position(|(c, _)| *c == cookie);
        found.expect("only requests that were sent are answered")
    }

    fn buffer(&mut self, payload: &Payload) -> &mut [u8] {
        let index = self.index(payload.cookie);
        let (_, buffer) = &mut self.requests[index];
        let buffer = buffer.as_mut().expect("only reads have a payload");
        &mut buffer[payload.range.clone()]
    }

    fn event(&mut self, event: Event) -> Option<(usize, Answer)> {
        let (cookie, outcome) = match event {
            Event::Hole { payload, done } => {
                self.buffer(&payload).fill(0);
                done.then_some((payload.cookie, Outcome::Done))?
            }
            Event::Complete { cookie, outcome } => (cookie, outcome),
        };
        let index = self.index(cookie);
        let answer = match (outcome, &self.requests[index].1) {
            (Outcome::Done, Some(data)) => Answer::Data(data.clone()),
            (Outcome::Done, None) => Answer::Done,
            (Outcome::Extents(extents), _) => Answer::Extents(extents),
            (Outcome::Failed(failure), _) => Answer::Failed(failure),
        };
        Some((index, answer))
    }

    /// All calls fail, and repeat the error.
    fn is_dead(&mut self, error: Error) {
        let transmission = &mut self.transmission;
        assert_eq!(transmission.error(), Some(error));
        assert_eq!(transmission.fill(), Err(error));
        assert_eq!(transmission.filled(0), Err(error));
        assert_eq!(transmission.feed(&[0; 64]), Err(error));
        let dead = Err(Misuse::Dead(error));
        let none = CommandFlags::NONE;
        assert_eq!(transmission.read(0, 512, none).map(drop), dead);
        assert_eq!(transmission.disconnect().map(|_: Bare| ()), dead);
        assert!(!transmission.may_end());
    }
}
