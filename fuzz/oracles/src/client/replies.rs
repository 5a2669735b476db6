//! A server that mostly makes sense, so that inputs get deeper than random bytes would.

use super::{
    requests::{Ask, CONTEXTS, Entry},
    transmission::Session,
};
use crate::{bytes, input::Input};
use nbd_proto::{Command, HeaderStyle};

/// The server's bytes that an input stands for.
pub(super) fn build(entry: &Entry, mut input: Input<'_>) -> Vec<u8> {
    let session = Session::new(entry.enter(), &entry.asks);
    let asked = session.cookies();
    let mut out = Vec::new();
    while !input.is_empty() {
        let byte = input.byte();
        if byte & 0xf8 == 0xf8 {
            out.extend(input.bytes());
            continue;
        }
        let (cookie, ask) = match asked.as_slice() {
            [] => (1 << 32, None),
            some => {
                let (cookie, ask) = some[usize::from(byte >> 4) % some.len()];
                (cookie.as_u64(), Some(ask))
            }
        };
        let to = To {
            mode: entry.mode,
            cookie,
            ask: ask.unwrap_or(Ask {
                command: Command::Read,
                flags: nbd_proto::CommandFlags::NONE,
                offset: 0,
                len: 1,
                abandoned: false,
                filtered: false,
            }),
            flags: u16::from(byte >> 3 & 1),
        };
        out.extend(to.message(byte & 7, &mut input));
    }
    out
}

/// The request that is answered, and the flags of the chunk.
struct To {
    mode: HeaderStyle,
    cookie: u64,
    ask: Ask,
    flags: u16,
}

impl To {
    fn message(&self, kind: u8, input: &mut Input<'_>) -> Vec<u8> {
        match kind {
            0 => self.right(input),
            1 => {
                let error = input.pick(&[0, 5, 108, 9999]);
                bytes::sr(error, self.cookie, input.bytes())
            }
            2 => {
                let (at, _) = self.place(input);
                self.chunk(1, bytes::data_at(at, input.bytes()))
            }
            3 => {
                let (at, len) = self.place(input);
                self.chunk(2, bytes::hole_at(at, len))
            }
            4 => self.extents(input),
            5 => {
                let error = input.pick(&[5, 22, 108, 0, 9999]);
                self.chunk(0x8001, bytes::error(error, input.bytes()))
            }
            6 => {
                let (at, _) = self.place(input);
                self.chunk(0x8002, bytes::error_at(5, input.bytes(), at))
            }
            _ => self.chunk(input.pick(&[0, 3, 0x8003, 5]), input.bytes()),
        }
    }

    /// A legal success.
    fn right(&self, input: &mut Input<'_>) -> Vec<u8> {
        let Ask {
            command,
            offset,
            len,
            ..
        } = self.ask;
        let done = Self { flags: 1, ..*self };
        let fill = input.byte();
        let data = || vec![fill; usize::try_from(len).expect("reads are short")];
        match (command, self.mode) {
            (Command::Read, HeaderStyle::Simple) => bytes::sr(0, self.cookie, data()),
            (Command::Read, _) => done.chunk(1, bytes::data_at(offset, &data())),
            (Command::BlockStatus, _) => {
                let first = Self { flags: 0, ..*self };
                let mut out = Vec::new();
                if !self.ask.filtered {
                    out.extend(first.status(CONTEXTS[1].0, &[(512, 1)]));
                }
                out.extend(done.status(CONTEXTS[0].0, &[(512, 3), (1024, 0)]));
                out
            }
            (_, HeaderStyle::Extended) => done.chunk(0, []),
            _ => bytes::sr(0, self.cookie, []),
        }
    }

    /// A place near the request.
    fn place(&self, input: &mut Input<'_>) -> (u64, u32) {
        let at = u64::from(input.u16());
        let len = u32::from(input.u16());
        (self.ask.offset.wrapping_add(at), len)
    }

    fn extents(&self, input: &mut Input<'_>) -> Vec<u8> {
        let id = input.pick(&[CONTEXTS[0].0, CONTEXTS[1].0, 9]);
        let count = input.below(8);
        let extents: Vec<_> = (0..count)
            .map(|_| (u32::from(input.u16()), u32::from(input.byte())))
            .collect();
        self.status(id, &extents)
    }

    fn status(&self, id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
        if self.mode == HeaderStyle::Extended {
            let wide: Vec<_> = extents.iter().map(|&(l, s)| (l.into(), s.into())).collect();
            let count = u32::try_from(wide.len()).expect("there are few");
            self.chunk(6, bytes::xstatus(id, count, &wide))
        } else {
            self.chunk(5, bytes::status(id, extents))
        }
    }

    fn chunk(&self, kind: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
        match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                bytes::ch(self.flags, kind, self.cookie, payload)
            }
            HeaderStyle::Extended => {
                bytes::xch(self.flags, kind, self.cookie, self.ask.offset, payload)
            }
        }
    }
}
