//! A server that keeps the protocol to the letter, checks every message of its client, and has a
//! rule spoil its own messages.

use super::{
    Rule,
    disk::{Disk, SIZE},
    judge::Run,
    last_words::LastWords,
    scene::{
        Event, Scene, Then, make_chunk, make_error, make_option_reply, make_simple, status_payload,
    },
    secure::{Authority, Shown},
};
use crate::check::{
    rule::{Checked, must},
    talk::Talk,
    wire::{self, Fields, Request, Style, chunk, command, errno, export, flag, option, rep},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The id of `base:allocation`.
pub(super) const CONTEXT: u32 = 0x4e42;
/// The longest payload that is read.
const LONGEST: u64 = 64 << 20;

/// State that the connections of a run share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) run: Arc<Mutex<Run>>,
    pub(super) bytes: Arc<Mutex<Vec<u8>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection.
pub(super) struct Host<'a> {
    pub(super) talk: Talk,
    rule: Rule,
    pub(super) shared: Shared,
    /// Without TLS there is none.
    authority: Option<&'a Authority>,
    pub(super) style: Style,
    /// Handshake flags as they were sent.
    offered: u16,
    pub(super) client_flags: u32,
    pub(super) has_context: bool,
    pub(super) asked_for_sizes: bool,
    /// The type of the reply to an option that was sent last.
    pub(super) sent: u32,
    /// Whether a message on this connection was spoilt.
    is_spoilt: bool,
    /// Whether TLS is acknowledged, and does not start.
    stays_in_clear: bool,
    /// The announcement that only the end may follow.
    last_words: LastWords,
}

/// The next phase of a connection.
pub(super) enum Next {
    Negotiation,
    /// Negotiation inside TLS.
    Tls,
    Transmission,
    End,
}

impl<'a> Host<'a> {
    pub(super) fn new(
        talk: Talk,
        rule: Rule,
        shared: Shared,
        authority: Option<&'a Authority>,
    ) -> Self {
        Self {
            talk,
            rule,
            shared,
            authority,
            style: Style::Simple,
            offered: 0,
            client_flags: 0,
            has_context: false,
            asked_for_sizes: false,
            sent: 0,
            is_spoilt: false,
            stays_in_clear: false,
            last_words: LastWords::default(),
        }
    }

    pub(super) const fn disk(&self) -> Disk {
        self.rule.disk
    }

    /// Whether clients have to start TLS, and have not yet.
    pub(super) const fn wants_tls(&self) -> bool {
        self.authority.is_some() && !self.talk.is_secure()
    }

    /// Notes a message of the client.
    pub(super) fn note(&self, what: impl FnOnce(&mut Run)) {
        let mut run = lock(&self.shared.run);
        run.went_on_after_spoilt |= self.is_spoilt;
        what(&mut run);
    }

    pub(super) fn wrong(&self, id: &'static str, text: impl Into<String>) {
        let text = text.into();
        lock(&self.shared.run).wrongs.push((id, text));
    }

    /// Serves one client to its end.
    pub(super) fn serve(mut self) {
        let ended = self.negotiate();
        // A client may leave as it likes once something was wrong.
        if !matches!(ended, Ok(true)) && !self.is_spoilt {
            lock(&self.shared.run).abrupt += 1;
        }
        self.talk.cut();
    }

    /// Sends a message, spoilt or not; `false` ends the connection.
    pub(super) fn say(&mut self, mut scene: Scene, meaning: &str) -> Checked<bool> {
        let is_start = matches!(scene.event, Event::Option(option::STARTTLS, _));
        // Without its start there would be nothing to check of a rule about other messages.
        if self.authority.is_none() || !is_start || self.rule.shown != Shown::Any {
            (self.rule.spoil)(&mut scene);
        }
        let meaning = if scene.is_spoilt {
            self.spoil();
            format!("{meaning} (spoilt)")
        } else {
            meaning.to_owned()
        };
        self.talk.send(&scene.bytes, meaning)?;
        if scene.event == Event::Greeting {
            let flags = scene.bytes.get(16..18).unwrap_or_default();
            self.offered = Fields(flags).u16().unwrap_or(0);
        }
        if let Event::Option(..) = scene.event {
            let kind = scene.bytes.get(12..16).and_then(|kind| Fields(kind).u32());
            self.sent = kind.unwrap_or(self.sent);
        }
        if scene.then == Then::LastWords {
            self.last_words.say();
        }
        self.stays_in_clear |= scene.then == Then::StayInClear;
        Ok(scene.then != Then::Close)
    }

    /// Something is wrong from now on.
    fn spoil(&mut self) {
        lock(&self.shared.run).is_spoilt = true;
        self.is_spoilt = true;
    }

    /// Starts TLS, after which nothing counts that was agreed on before.
    fn start_tls(&mut self) -> Checked {
        self.style = Style::Simple;
        self.has_context = false;
        self.asked_for_sizes = false;
        if self.stays_in_clear {
            return self.answer_handshake_in_clear();
        }
        let Some(authority) = self.authority else {
            return Ok(());
        };
        if self.rule.shown.is_flawed() {
            self.spoil();
        }
        authority.secure(&mut self.talk, self.rule.shown)
    }

    /// Skips a ClientHello, and replies to the options that clients send first.
    fn answer_handshake_in_clear(&mut self) -> Checked {
        let header = self.talk.take(5, "a ClientHello")?;
        let mut fields = Fields(header.get(3..).unwrap_or_default());
        let len = usize::from(fields.u16().unwrap_or(0));
        self.talk.take(len, "a ClientHello")?;
        self.talk.came(&header, "a record of TLS".into());
        let replies = [option::EXTENDED_HEADERS, option::STRUCTURED_REPLY]
            .map(|code| make_option_reply(code, rep::ERR_UNSUP, &[]));
        self.talk
            .send(&replies.concat(), "replies to options, in the clear")
    }

    /// Whether the client has ended the connection as it should.
    fn negotiate(&mut self) -> Checked<bool> {
        let mut greeting = wire::NBDMAGIC.to_be_bytes().to_vec();
        greeting.extend(wire::IHAVEOPT.to_be_bytes());
        greeting.extend((wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes());
        let scene = Scene::new(Event::Greeting, self.style, greeting);
        if !self.say(scene, "greeting")? {
            return Ok(true);
        }
        let flags = self.talk.take(4, "client flags")?;
        self.client_flags = Fields(&flags).u32().unwrap_or(0);
        self.talk
            .came(&flags, format!("client flags {:#x}", self.client_flags));
        let more = self.client_flags & !u32::from(self.offered & 3);
        if more != 0 {
            self.wrong(
                "C-016",
                format!("the client flags {more:#x} were not offered"),
            );
        }
        let is_fixed = self.offered & wire::FIXED_NEWSTYLE != 0;
        if is_fixed && self.client_flags & 1 == 0 {
            self.wrong("C-014", "NBD_FLAG_C_FIXED_NEWSTYLE is not set");
        }
        loop {
            let Some(header) = self.talk.take_or_end(16, "an option")? else {
                return Ok(false);
            };
            match self.option(&header)? {
                Next::Negotiation => {}
                Next::Tls => self.start_tls()?,
                Next::Transmission => return self.transmission(),
                Next::End => {
                    self.end_tls();
                    return Ok(true);
                }
            }
        }
    }

    fn option(&mut self, header: &[u8]) -> Checked<Next> {
        let mut fields = Fields(header);
        let (magic, code) = (fields.u64(), fields.u32().unwrap_or(0));
        let len = fields.u32().unwrap_or(0);
        let name = wire::option_name(code);
        if magic != Some(wire::IHAVEOPT) || u64::from(len) > 1 << 20 {
            self.talk.came(header, "no option".into());
            self.wrong("C-020", "expected an option, got something else");
            return must("no option");
        }
        let data = self
            .talk
            .take(usize::try_from(len).unwrap_or(0), "the data of an option")?;
        self.talk.came(
            &[header, &data].concat(),
            format!("{name} with {len} bytes"),
        );
        self.note(|run| run.options.push(code));
        if self.last_words.are_known() && code != option::ABORT {
            lock(&self.shared.run).went_on = Some(format!("the client went on with {name}"));
        }
        if self.wants_tls() && ![option::STARTTLS, option::ABORT].contains(&code) {
            self.wrong("C-056", format!("{name} in the clear"));
            if !self.is_spoilt {
                self.wrong("C-057", format!("{name} before NBD_OPT_STARTTLS"));
            }
        }
        if self.talk.is_secure() && code == option::STARTTLS {
            self.wrong("C-049", "NBD_OPT_STARTTLS inside TLS");
        }
        if self.offered & wire::FIXED_NEWSTYLE == 0 && code != option::EXPORT_NAME {
            self.wrong(
                "C-017",
                format!("{name} to a server without fixed newstyle"),
            );
        }
        if self.talk.has_more() {
            self.wrong("C-022", format!("more was sent before the reply to {name}"));
        }
        let must_be_empty = matches!(
            code,
            option::LIST | option::STARTTLS | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS
        );
        if must_be_empty && len != 0 {
            self.wrong("C-132", format!("{name} with {len} bytes of data"));
        }
        self.answer(code, &data)
    }

    /// Ends TLS after NBD_OPT_ABORT, and looks whether the client does.
    fn end_tls(&mut self) {
        if !self.talk.is_secure() {
            return;
        }
        self.talk.end_tls();
        let ended = self.talk.ends("after NBD_OPT_ABORT");
        if ended.is_ok() && self.talk.ended_tls() == Some(false) {
            self.wrong("C-036", "NBD_OPT_ABORT without an end of TLS");
        }
    }

    fn transmission(&mut self) -> Checked<bool> {
        let mut held: Vec<Request> = Vec::new();
        loop {
            let is_extended = self.style == Style::Extended;
            let header_len = if is_extended { 32 } else { 28 };
            let Some(header) = self.talk.take_or_end(header_len, "a request")? else {
                return Ok(false);
            };
            let Some(request) = self.request(&header)? else {
                return must("no request");
            };
            self.note(|run| run.commands.push(request.command));
            if request.command == command::DISC {
                for request in std::mem::take(&mut held) {
                    self.reply(request)?;
                }
                if self.talk.has_more() {
                    self.wrong("C-186", "more was sent after NBD_CMD_DISC");
                }
                return Ok(true);
            }
            if self.last_words.are_known() {
                let text = format!("the client went on with {}", request.meaning());
                lock(&self.shared.run).went_on = Some(text);
            }
            if !held.is_empty() || self.talk.has_more() {
                self.last_words.overlap();
            }
            held.push(request);
            if held.len() < self.disk().gathers && self.talk.has_more_soon() {
                continue;
            }
            while let Some(request) = held.pop() {
                if !self.reply(request)? {
                    return Ok(true);
                }
            }
        }
    }

    /// Reads the rest of a request, and looks at it.
    fn request(&mut self, header: &[u8]) -> Checked<Option<Request>> {
        let is_extended = self.style == Style::Extended;
        let mut fields = Fields(header);
        let magic = fields.u32();
        let mut request = Request {
            flags: fields.u16().unwrap_or(0),
            command: fields.u16().unwrap_or(0),
            cookie: fields.u64().unwrap_or(0),
            offset: fields.u64().unwrap_or(0),
            len: if is_extended {
                fields.u64().unwrap_or(0)
            } else {
                fields.u32().unwrap_or(0).into()
            },
            payload: Vec::new(),
        };
        let expected = if is_extended {
            wire::EXTENDED_REQUEST
        } else {
            wire::REQUEST
        };
        if magic != Some(expected) {
            self.talk.came(header, "no request".into());
            self.wrong("C-167", "expected the magic number of a request");
            return Ok(None);
        }
        let says_so = is_extended && request.flags & flag::PAYLOAD_LEN != 0;
        let has_payload = says_so || request.command == command::WRITE;
        if is_extended && has_payload && !says_so {
            self.wrong(
                "C-145",
                format!("{} without NBD_CMD_FLAG_PAYLOAD_LEN", request.meaning()),
            );
        }
        if has_payload {
            let len = request.len.min(LONGEST);
            request.payload = self
                .talk
                .take(usize::try_from(len).unwrap_or(0), "a payload")?;
        }
        self.talk.came(header, request.meaning());
        self.look_at(&request);
        Ok(Some(request))
    }

    /// Replies to a request; `false` ends the connection.
    fn reply(&mut self, request: Request) -> Checked<bool> {
        let bytes = self.right_reply(&request);
        let meaning = format!("reply to cookie {:#x}", request.cookie);
        let mut scene = Scene::new(Event::Reply, self.style, bytes);
        scene.request = request;
        self.say(scene, &meaning)
    }

    fn right_reply(&self, request: &Request) -> Vec<u8> {
        let error = |error| make_error(self.style, request, error);
        let end = request.offset.checked_add(request.len);
        let Some(end) = end.filter(|end| *end <= SIZE) else {
            return error(errno::EINVAL);
        };
        let range = usize::try_from(request.offset).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
        let is_read_only = self.flags() & export::READ_ONLY != 0;
        let mut bytes = lock(&self.shared.bytes);
        match request.command {
            command::READ => {
                let data = bytes.get(range).unwrap_or_default();
                if self.style == Style::Simple {
                    return make_simple(request, 0, data);
                }
                let payload = [&request.offset.to_be_bytes(), data].concat();
                return make_chunk(self.style, request, (chunk::DONE, chunk::DATA), &payload);
            }
            command::WRITE | command::WRITE_ZEROES | command::TRIM if is_read_only => {
                return error(errno::EPERM);
            }
            command::WRITE => {
                if let Some(place) = bytes
                    .get_mut(range)
                    .filter(|p| p.len() == request.payload.len())
                {
                    place.copy_from_slice(&request.payload);
                }
            }
            command::WRITE_ZEROES | command::TRIM => {
                if let Some(place) = bytes.get_mut(range) {
                    place.fill(0);
                }
            }
            command::FLUSH | command::CACHE => {}
            command::BLOCK_STATUS if self.has_context => {
                let (kind, payload) = status_payload(self.style, CONTEXT, &[(request.len, 0)]);
                return make_chunk(self.style, request, (chunk::DONE, kind), &payload);
            }
            _ => return error(errno::EINVAL),
        }
        match self.style {
            Style::Extended => make_chunk(self.style, request, (chunk::DONE, chunk::NONE), &[]),
            _ => make_simple(request, 0, &[]),
        }
    }
}
