//! The messages of a connection as its two ends write them: each request has at most one answer, and
//! each answer is one of a request.
//!
//! It knows the protocol by itself, so that it shares no mistake with the client or the server.

use std::{collections::BTreeMap, ops::Range, time::Duration};

/// The client writes as 0, the server as 1.
#[derive(Debug, Default)]
pub(super) struct Wire {
    ways: [Way; 2],
    /// Requests without an answer, by cookie: their places among all.
    open: BTreeMap<u64, usize>,
    pub(super) requests: Vec<Request>,
    pub(super) answers: u64,
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: u64,
    pub(super) bytes: Range<u64>,
    /// When the client wrote it.
    pub(super) sent: Duration,
    /// When all of its answer arrives.
    pub(super) answered: Option<Duration>,
}

#[derive(Debug, Default)]
struct Way {
    /// The part of a message that has come.
    bytes: Vec<u8>,
    /// Number of bytes to come that are data of a message.
    data: u64,
    /// The request whose answer is complete with these data.
    answers: Option<usize>,
    /// Whether greeting or client flags have passed.
    has_begun: bool,
}

const OPTION: u32 = 0x4948_4156;
const OPTION_REPLY: u32 = 0x0003_e889;
const REQUEST: u32 = 0x2560_9513;
const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;
const EXTENDED_REPLY: u32 = 0x6e8a_278c;

const READ: u64 = 0;
const WRITE: u64 = 1;
const DISC: u64 = 2;
const PAYLOAD_LEN: u64 = 1 << 5;
const DONE: u64 = 1;

impl Way {
    /// A number of the message.
    fn number(&self, at: usize, len: usize) -> u64 {
        let bytes = self.bytes.iter().skip(at).take(len);
        bytes.fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

impl Wire {
    /// Looks at bytes that an end has written. `time` is when the client has written or the server's
    /// bytes arrive. Returns the faults in them.
    pub(super) fn wrote(
        &mut self,
        side: usize,
        time: Duration,
        bytes: impl IntoIterator<Item = u8>,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        for byte in bytes {
            let way = &mut self.ways[side];
            if way.data > 0 {
                way.data -= 1;
                self.answer(time);
                continue;
            }
            way.bytes.push(byte);
            if !way.has_begun {
                // Client flags have 4 bytes, a greeting has 18.
                if way.bytes.len() == [4, 18][side] {
                    way.has_begun = true;
                    way.bytes.clear();
                }
                continue;
            }
            if way.bytes.len() < 4 {
                continue;
            }
            let magic = u32::try_from(way.number(0, 4)).unwrap_or(0);
            let header = match (side, magic) {
                (0, OPTION) | (1, SIMPLE_REPLY) => 16,
                (0, REQUEST) => 28,
                (0, EXTENDED_REQUEST) | (1, EXTENDED_REPLY) => 32,
                (1, OPTION_REPLY | STRUCTURED_REPLY) => 20,
                _ => {
                    faults.push(format!("{magic:#x} begins no message"));
                    4
                }
            };
            if way.bytes.len() == header {
                faults.extend(self.message(side, time, magic));
                self.ways[side].bytes.clear();
                self.answer(time);
            }
        }
        faults
    }

    /// The last byte of an answer may have been written.
    fn answer(&mut self, time: Duration) {
        let way = &mut self.ways[1];
        if way.data == 0
            && let Some(request) = way.answers.take()
            && let Some(request) = self.requests.get_mut(request)
        {
            request.answered = Some(time);
        }
    }

    /// Bytes of the server that have not arrived arrive later.
    pub(super) fn delay(&mut self, now: Duration, until: Duration) {
        let late = self
            .requests
            .iter_mut()
            .filter_map(|one| one.answered.as_mut());
        for time in late.filter(|time| **time > now) {
            *time = until.max(*time);
        }
    }

    /// A header is complete.
    fn message(&mut self, side: usize, time: Duration, magic: u32) -> Option<String> {
        let way = &mut self.ways[side];
        let (flags, cookie) = (way.number(4, 2), way.number(8, 8));
        match magic {
            OPTION => way.data = way.number(12, 4),
            OPTION_REPLY => way.data = way.number(16, 4),
            REQUEST | EXTENDED_REQUEST => {
                let command = way.number(6, 2);
                let len = match magic {
                    REQUEST => way.number(24, 4),
                    _ => way.number(24, 8),
                };
                let has_payload = match magic {
                    REQUEST => command == WRITE,
                    _ => flags & PAYLOAD_LEN != 0,
                };
                if has_payload {
                    way.data = len;
                }
                if command != DISC {
                    let offset = way.number(16, 8);
                    let place = self.requests.len();
                    self.requests.push(Request {
                        command,
                        bytes: offset..offset.saturating_add(len),
                        sent: time,
                        answered: None,
                    });
                    if self.open.insert(cookie, place).is_some() {
                        return Some(format!("cookie {cookie:#x} is in flight twice"));
                    }
                }
            }
            SIMPLE_REPLY => {
                let failed = way.number(4, 4) != 0;
                let Some(request) = self.open.remove(&cookie) else {
                    return Some(no_request(cookie));
                };
                self.answers += 1;
                let asked = self
                    .requests
                    .get(request)
                    .filter(|asked| asked.command == READ);
                let len = asked.map_or(0, |asked| asked.bytes.end - asked.bytes.start);
                let way = &mut self.ways[side];
                way.data = if failed { 0 } else { len };
                way.answers = Some(request);
            }
            STRUCTURED_REPLY | EXTENDED_REPLY => {
                way.data = match magic {
                    STRUCTURED_REPLY => way.number(16, 4),
                    _ => way.number(24, 8),
                };
                if !self.open.contains_key(&cookie) {
                    return Some(no_request(cookie));
                }
                if flags & DONE != 0 {
                    way.answers = self.open.remove(&cookie);
                    self.answers += 1;
                }
            }
            _ => {}
        }
        None
    }
}

fn no_request(cookie: u64) -> String {
    format!("an answer to {cookie:#x}, which is answered already or was never sent")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn words(words: &[&[u8]]) -> Vec<u8> {
        words.concat()
    }

    /// A connection in transmission, with a flush of cookie 7 in flight.
    fn flushing() -> Wire {
        let mut wire = Wire::default();
        let option = words(&[&[0; 4], b"IHAVEOPT", &[0, 0, 0, 7, 0, 0, 0, 2, 9, 9]]);
        assert!(wire.wrote(0, NOW, option).is_empty());
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let reply = words(&[&[0; 18], &magic, &[0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]]);
        assert!(wire.wrote(1, NOW, reply).is_empty());
        let flush = words(&[
            &REQUEST.to_be_bytes(),
            &[0, 0, 0, 3],
            &7_u64.to_be_bytes(),
            &[0; 12],
        ]);
        assert!(wire.wrote(0, NOW, flush).is_empty());
        wire
    }

    #[test]
    fn a_second_answer_to_a_request_is_a_fault() {
        let answer = words(&[&SIMPLE_REPLY.to_be_bytes(), &[0; 4], &7_u64.to_be_bytes()]);
        let mut wire = flushing();
        assert!(wire.wrote(1, NOW, answer.clone()).is_empty());
        assert_eq!((wire.requests.len(), wire.answers), (1, 1));
        assert_eq!(wire.wrote(1, NOW, answer), [no_request(7)]);
    }

    #[test]
    fn a_chunk_behind_the_last_one_is_a_fault() {
        let chunk = |flags: u8| {
            let cookie = 7_u64.to_be_bytes();
            words(&[
                &STRUCTURED_REPLY.to_be_bytes(),
                &[0, flags, 0, 1],
                &cookie,
                &[0, 0, 0, 1, 5],
            ])
        };
        let mut wire = flushing();
        assert!(wire.wrote(1, NOW, [chunk(0), chunk(1)].concat()).is_empty());
        assert_eq!(wire.wrote(1, NOW, chunk(1)), [no_request(7)]);
        assert_eq!(
            wire.wrote(1, NOW, *b"else"),
            ["0x656c7365 begins no message"]
        );
    }
}
