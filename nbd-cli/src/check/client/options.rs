//! Replies of a scripted server to options.

use super::{
    disk::SIZE,
    host::{CONTEXT, Host, Next, lock},
    scene::{Event, Scene, export_info, make_option_reply, size_info},
};
use crate::check::{
    rule::Checked,
    talk::reply_name,
    wire::{self, Fields, Style, export, kind, option, rep},
};

impl Host<'_> {
    /// Answers an option.
    pub(super) fn answer(&mut self, code: u32, data: &[u8]) -> Checked<Next> {
        let disk = self.disk();
        let mut replies = Vec::new();
        let mut last = rep::ACK;
        let mut then = Next::Negotiation;
        match code {
            option::EXPORT_NAME => return self.export_name(),
            option::ABORT => then = Next::End,
            option::STARTTLS if self.wants_tls() => then = Next::Tls,
            option::LIST => replies.push((rep::SERVER, 0_u32.to_be_bytes().to_vec())),
            option::INFO | option::GO => match self.infos(code, data) {
                Some(infos) => {
                    replies.extend(infos.into_iter().map(|info| (rep::INFO, info)));
                    if code == option::GO {
                        then = Next::Transmission;
                    }
                }
                None => last = rep::ERR_INVALID,
            },
            option::STRUCTURED_REPLY if disk.has_structured => {
                if self.style == Style::Simple {
                    self.style = Style::Structured;
                }
            }
            option::EXTENDED_HEADERS if disk.has_extended => self.style = Style::Extended,
            option::LIST_META | option::SET_META if disk.has_structured => {
                match self.contexts(code, data) {
                    Some(contexts) => replies.extend(contexts),
                    None => last = rep::ERR_INVALID,
                }
            }
            _ => last = rep::ERR_UNSUP,
        }
        if last != rep::ACK {
            then = Next::Negotiation;
        }
        replies.push((last, Vec::new()));
        for (kind, data) in replies {
            let bytes = make_option_reply(code, kind, &data);
            let scene = Scene::new(Event::Option(code, kind), self.style, bytes);
            let meaning = format!("{} to {}", reply_name(kind), wire::option_name(code));
            if !self.say(scene, &meaning)? {
                return Ok(Next::End);
            }
        }
        // A spoilt reply may be a refusal now.
        if self.sent >> 31 == 1 {
            then = Next::Negotiation;
            if code == option::STRUCTURED_REPLY || code == option::EXTENDED_HEADERS {
                self.style = Style::Simple;
            }
            self.has_context &= code != option::SET_META;
        }
        Ok(then)
    }

    /// The information on the export, in reply to an option that must be right.
    fn infos(&mut self, code: u32, data: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut fields = Fields(data);
        let parsed = fields.counted().zip(fields.u16());
        let rest = fields.0;
        let Some((name, count)) = parsed.filter(|(_, n)| usize::from(*n) * 2 == rest.len()) else {
            self.wrong("C-079", "the lengths of the option do not add up");
            return None;
        };
        if name.contains(&0) || std::str::from_utf8(name).is_err() || name.len() > 4096 {
            self.wrong("C-001", "the name of the export is no string");
        }
        let mut asked: Vec<_> = (0..count).filter_map(|_| fields.u16()).collect();
        asked.sort_unstable();
        if asked.windows(2).any(|pair| pair[0] == pair[1]) {
            self.wrong("C-080", "a kind of information is asked for twice");
        }
        let mut infos = vec![export_info(SIZE, self.flags())];
        if asked.contains(&kind::BLOCK_SIZE) {
            infos.push(size_info(self.disk().sizes));
            self.asked_for_sizes |= code == option::GO;
            lock(&self.shared.run).asked_for_sizes |= code == option::GO;
        }
        Some(infos)
    }

    pub(super) const fn flags(&self) -> u16 {
        match self.style {
            Style::Simple => self.disk().flags & !export::DF,
            _ => self.disk().flags,
        }
    }

    fn contexts(&mut self, code: u32, data: &[u8]) -> Option<Vec<(u32, Vec<u8>)>> {
        let mut fields = Fields(data);
        let count = fields.counted().and_then(|_| fields.u32());
        let mut queries = Vec::new();
        for _ in 0..count.unwrap_or(0).min(1000) {
            queries.extend(fields.counted());
        }
        if count != u32::try_from(queries.len()).ok() || !fields.0.is_empty() {
            self.wrong("C-167", "the lengths of the option do not add up");
            return None;
        }
        if code == option::SET_META {
            if self.style == Style::Simple {
                self.wrong(
                    "C-149",
                    "NBD_OPT_SET_META_CONTEXT before structured replies",
                );
                return None;
            }
            self.has_context = false;
        }
        if queries.iter().any(|query| !query.contains(&b':')) {
            self.wrong("C-151", "a query without a namespace");
        }
        let is_listed =
            code == option::LIST_META && (count == Some(0) || queries.contains(&&b"base:"[..]));
        if !is_listed && !queries.contains(&&b"base:allocation"[..]) {
            return Some(Vec::new());
        }
        let mut reply = 0_u32.to_be_bytes().to_vec();
        if code == option::SET_META {
            self.has_context = true;
            reply = CONTEXT.to_be_bytes().to_vec();
        }
        reply.extend(b"base:allocation");
        Some(vec![(rep::META_CONTEXT, reply)])
    }

    fn export_name(&mut self) -> Checked<Next> {
        if self.style == Style::Extended {
            self.wrong("C-102", "NBD_OPT_EXPORT_NAME with extended headers");
        }
        let mut bytes = SIZE.to_be_bytes().to_vec();
        bytes.extend(self.flags().to_be_bytes());
        if self.client_flags & u32::from(wire::NO_ZEROES) == 0 {
            bytes.extend([0; 124]);
        }
        let scene = Scene::new(
            Event::Option(option::EXPORT_NAME, rep::ACK),
            self.style,
            bytes,
        );
        match self.say(scene, "size and flags")? {
            true => Ok(Next::Transmission),
            false => Ok(Next::End),
        }
    }
}
