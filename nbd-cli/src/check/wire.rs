//! Messages as bytes, by an encoder that neither the client nor the server of this project uses, so
//! that no mistake is made on both sides.

use nbd_tokio::nbd_proto::wire::{Command, CommandFlags, OptionCode};

pub(super) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST: u32 = 0x2560_9513;
pub(super) const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
pub(super) const SIMPLE_REPLY: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY: u32 = 0x668e_33ef;
pub(super) const EXTENDED_REPLY: u32 = 0x6e8a_278c;

pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 2;

pub(super) mod option {
    pub(in crate::check) const EXPORT_NAME: u32 = 1;
    pub(in crate::check) const ABORT: u32 = 2;
    pub(in crate::check) const LIST: u32 = 3;
    pub(in crate::check) const PEEK_EXPORT: u32 = 4;
    pub(in crate::check) const STARTTLS: u32 = 5;
    pub(in crate::check) const INFO: u32 = 6;
    pub(in crate::check) const GO: u32 = 7;
    pub(in crate::check) const STRUCTURED_REPLY: u32 = 8;
    pub(in crate::check) const LIST_META: u32 = 9;
    pub(in crate::check) const SET_META: u32 = 10;
    pub(in crate::check) const EXTENDED_HEADERS: u32 = 11;
    /// Of no option that there is.
    pub(in crate::check) const UNKNOWN: u32 = 0x7f00_4e42;
}

pub(super) mod rep {
    pub(in crate::check) const ACK: u32 = 1;
    pub(in crate::check) const SERVER: u32 = 2;
    pub(in crate::check) const INFO: u32 = 3;
    pub(in crate::check) const META_CONTEXT: u32 = 4;
    pub(in crate::check) const ERR_UNSUP: u32 = 0x8000_0001;
    pub(in crate::check) const ERR_POLICY: u32 = 0x8000_0002;
    pub(in crate::check) const ERR_INVALID: u32 = 0x8000_0003;
    pub(in crate::check) const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub(in crate::check) const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub(in crate::check) const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub(in crate::check) const ERR_BLOCK_SIZE_REQD: u32 = 0x8000_0008;
    pub(in crate::check) const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;
}

pub(super) mod kind {
    pub(in crate::check) const EXPORT: u16 = 0;
    pub(in crate::check) const NAME: u16 = 1;
    pub(in crate::check) const DESCRIPTION: u16 = 2;
    pub(in crate::check) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub(super) mod export {
    pub(in crate::check) const HAS_FLAGS: u16 = 1;
    pub(in crate::check) const READ_ONLY: u16 = 1 << 1;
    pub(in crate::check) const FLUSH: u16 = 1 << 2;
    pub(in crate::check) const FUA: u16 = 1 << 3;
    pub(in crate::check) const TRIM: u16 = 1 << 5;
    pub(in crate::check) const WRITE_ZEROES: u16 = 1 << 6;
    pub(in crate::check) const DF: u16 = 1 << 7;
    pub(in crate::check) const MULTI_CONN: u16 = 1 << 8;
    pub(in crate::check) const CACHE: u16 = 1 << 10;
    pub(in crate::check) const FAST_ZERO: u16 = 1 << 11;
    pub(in crate::check) const STATUS_PAYLOAD: u16 = 1 << 12;
}

pub(super) mod command {
    pub(in crate::check) const READ: u16 = 0;
    pub(in crate::check) const WRITE: u16 = 1;
    pub(in crate::check) const DISC: u16 = 2;
    pub(in crate::check) const FLUSH: u16 = 3;
    pub(in crate::check) const TRIM: u16 = 4;
    pub(in crate::check) const CACHE: u16 = 5;
    pub(in crate::check) const WRITE_ZEROES: u16 = 6;
    pub(in crate::check) const BLOCK_STATUS: u16 = 7;
    /// Of no command that there is.
    pub(in crate::check) const UNKNOWN: u16 = 0x4e42;
}

/// Command flags.
pub(super) mod flag {
    pub(in crate::check) const FUA: u16 = 1;
    pub(in crate::check) const NO_HOLE: u16 = 1 << 1;
    pub(in crate::check) const DF: u16 = 1 << 2;
    pub(in crate::check) const REQ_ONE: u16 = 1 << 3;
    pub(in crate::check) const FAST_ZERO: u16 = 1 << 4;
    pub(in crate::check) const PAYLOAD_LEN: u16 = 1 << 5;
    /// Of no flag that there is.
    pub(in crate::check) const UNKNOWN: u16 = 1 << 14;
}

pub(super) mod chunk {
    pub(in crate::check) const DONE: u16 = 1;
    pub(in crate::check) const NONE: u16 = 0;
    pub(in crate::check) const DATA: u16 = 1;
    pub(in crate::check) const HOLE: u16 = 2;
    pub(in crate::check) const STATUS: u16 = 5;
    pub(in crate::check) const STATUS_EXT: u16 = 6;
    pub(in crate::check) const ERROR: u16 = 0x8001;
    pub(in crate::check) const ERROR_OFFSET: u16 = 0x8002;
}

pub(super) mod errno {
    pub(in crate::check) const EPERM: u32 = 1;
    pub(in crate::check) const EIO: u32 = 5;
    pub(in crate::check) const EINVAL: u32 = 22;
    pub(in crate::check) const ENOSPC: u32 = 28;
    pub(in crate::check) const EOVERFLOW: u32 = 75;
    pub(in crate::check) const ENOTSUP: u32 = 95;
    pub(in crate::check) const ESHUTDOWN: u32 = 108;
    /// The values that the specification lists.
    pub(in crate::check) const ALL: [u32; 8] = [
        EPERM, EIO, 12, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN,
    ];
}

/// The style of headers of requests and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Simple,
    Structured,
    Extended,
}

/// A request of the transmission phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) payload: Vec<u8>,
}

impl Request {
    pub(super) fn new(command: u16, offset: u64, len: u64) -> Self {
        Self {
            command,
            offset,
            len,
            ..Self::default()
        }
    }

    pub(super) fn write(offset: u64, payload: Vec<u8>) -> Self {
        let len = payload.len() as u64;
        Self {
            payload,
            ..Self::new(command::WRITE, offset, len)
        }
    }

    pub(super) fn with(self, flags: u16) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }

    /// Its bytes. Those with extended headers say whether they have a payload.
    pub(super) fn bytes(&self, style: Style) -> Vec<u8> {
        let mut out = Vec::new();
        if style == Style::Extended {
            out.extend(EXTENDED_REQUEST.to_be_bytes());
        } else {
            out.extend(REQUEST.to_be_bytes());
        }
        out.extend(self.wire_flags(style).to_be_bytes());
        out.extend(self.command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        if style == Style::Extended {
            out.extend(self.len.to_be_bytes());
        } else {
            let [_, _, _, _, len @ ..] = self.len.to_be_bytes();
            out.extend(len);
        }
        out.extend(&self.payload);
        out
    }

    fn wire_flags(&self, style: Style) -> u16 {
        if style == Style::Extended && !self.payload.is_empty() {
            self.flags | flag::PAYLOAD_LEN
        } else {
            self.flags
        }
    }

    pub(super) fn meaning(&self) -> String {
        let command = Command::from(self.command);
        let mut text = format!(
            "{command}, cookie {:#x}, offset {}, length {}",
            self.cookie, self.offset, self.len
        );
        if self.flags != 0 {
            text += &format!(", {:?}", CommandFlags::from_bits(self.flags));
        }
        text
    }
}

/// An option with its data.
pub(super) fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut out = IHAVEOPT.to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend(len32(data));
    out.extend(data);
    out
}

/// The length of some data, which is always short.
fn len32(data: &[u8]) -> [u8; 4] {
    u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// The data of NBD_OPT_INFO and NBD_OPT_GO.
pub(super) fn info_data(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut out = len32(name).to_vec();
    out.extend(name);
    out.extend(u16::try_from(infos.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    out
}

/// The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
pub(super) fn meta_data(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let mut out = len32(name).to_vec();
    out.extend(name);
    let count = u32::try_from(queries.len()).unwrap_or(u32::MAX);
    out.extend(count.to_be_bytes());
    for query in queries {
        out.extend(len32(query.as_bytes()));
        out.extend(query.as_bytes());
    }
    out
}

pub(super) fn option_name(code: u32) -> String {
    OptionCode::from(code).to_string()
}

/// The beginning of some bytes, for people.
pub(super) fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 32;
    let mut text = String::with_capacity(3 * SHOWN + 20);
    for byte in bytes.iter().take(SHOWN) {
        if !text.is_empty() {
            text.push(' ');
        }
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    if bytes.len() > SHOWN {
        text += &format!(" .. ({} bytes)", bytes.len());
    }
    text
}

/// Takes fields off the front of bytes that a peer has sent.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// A number of so many bytes.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        let head = self.bytes(bytes)?;
        Some(head.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.number(2).and_then(|n| n.try_into().ok())
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.number(4).and_then(|n| n.try_into().ok())
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.number(8)
    }

    /// A string of a length of 32 bits in front of it.
    pub(super) fn counted(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.bytes(len)
    }
}
