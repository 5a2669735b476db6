//! The messages of the protocol, put together byte by byte.

/// `NBD_REPLY_FLAG_DONE`.
pub(crate) const D: u16 = 1;

pub(crate) const LIST: u32 = 3;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED: u32 = 8;
pub(crate) const SET_META: u32 = 10;
pub(crate) const EXTENDED: u32 = 11;

/// `NBD_FLAG_HAS_FLAGS` and the flags of every command.
pub(crate) const ALL_FLAGS: u16 = 0x1ded;

fn len32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len())
        .expect("tests are short")
        .to_be_bytes()
}

pub(crate) fn hello() -> Vec<u8> {
    b"NBDMAGICIHAVEOPT\x00\x03".to_vec()
}

pub(crate) fn oldstyle(size: u64, flags: u32) -> Vec<u8> {
    let mut out = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".to_vec();
    out.extend(size.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend([0; 124]);
    out
}

pub(crate) fn rep_header(option: u32, kind: u32, len: u32) -> Vec<u8> {
    let mut out = vec![0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9];
    out.extend([option, kind, len].map(u32::to_be_bytes).concat());
    out
}

pub(crate) fn rep(option: u32, kind: u32, data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    let mut out = rep_header(option, kind, u32::from_be_bytes(len32(data)));
    out.extend(data);
    out
}

pub(crate) fn ack(option: u32) -> Vec<u8> {
    rep(option, 1, [])
}

/// A refusal; `code` is the tail of its number.
pub(crate) fn err(option: u32, code: u32, message: &str) -> Vec<u8> {
    rep(option, 0x8000_0000 | code, message)
}

/// `NBD_REP_SERVER`.
pub(crate) fn server(name: &str, description: &str) -> Vec<u8> {
    let name = name.as_bytes();
    rep(
        LIST,
        2,
        [&len32(name), name, description.as_bytes()].concat(),
    )
}

/// `NBD_INFO_EXPORT`.
pub(crate) fn export(size: u64, flags: u16) -> Vec<u8> {
    rep(
        GO,
        3,
        [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat(),
    )
}

/// `NBD_INFO_BLOCK_SIZE`.
pub(crate) fn block_sizes(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let sizes = [minimum, preferred, maximum].map(u32::to_be_bytes).concat();
    rep(GO, 3, [&[0, 3][..], &sizes].concat())
}

/// `NBD_REP_META_CONTEXT`.
pub(crate) fn context(id: u32, name: &str) -> Vec<u8> {
    rep(
        SET_META,
        4,
        [&id.to_be_bytes()[..], name.as_bytes()].concat(),
    )
}

/// A simple reply.
pub(crate) fn sr(error: u32, cookie: u64, data: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = vec![0x67, 0x44, 0x66, 0x98];
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(data.as_ref());
    out
}

/// The header of a structured chunk, without its payload.
pub(crate) fn ch_header(flags: u16, kind: u16, cookie: u64, len: u32) -> Vec<u8> {
    let mut out = vec![0x66, 0x8e, 0x33, 0xef];
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

/// A structured chunk.
pub(crate) fn ch(flags: u16, kind: u16, cookie: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut out = ch_header(flags, kind, cookie, u32::from_be_bytes(len32(payload)));
    out.extend(payload);
    out
}

/// A chunk of data at an offset of the export.
pub(crate) fn data(flags: u16, cookie: u64, offset: u64, data: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], data.as_ref()].concat();
    ch(flags, 1, cookie, payload)
}

/// A hole at an offset of the export.
pub(crate) fn hole(flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    ch(flags, 2, cookie, payload)
}

/// The extents of a context.
pub(crate) fn status(flags: u16, cookie: u64, id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    for (len, status) in extents {
        payload.extend(len.to_be_bytes());
        payload.extend(status.to_be_bytes());
    }
    ch(flags, 5, cookie, payload)
}

/// An error with a text, and with a place if there is one.
pub(crate) fn error(
    flags: u16,
    cookie: u64,
    errno: u32,
    message: &str,
    offset: Option<u64>,
) -> Vec<u8> {
    let len = u16::try_from(message.len()).expect("tests are short");
    let mut payload = errno.to_be_bytes().to_vec();
    payload.extend(len.to_be_bytes());
    payload.extend(message.as_bytes());
    payload.extend(offset.iter().flat_map(|offset| offset.to_be_bytes()));
    let kind = if offset.is_some() { 0x8002 } else { 0x8001 };
    ch(flags, kind, cookie, payload)
}

/// The contents of `len` bytes at `offset` of a scripted disk.
pub(crate) fn content(offset: u64, len: usize) -> Vec<u8> {
    let cycle: Vec<u8> = (0..251).collect::<Vec<_>>().repeat(64);
    let mut content = Vec::with_capacity(len + cycle.len());
    let start = usize::try_from(offset % 251).expect("a remainder is small");
    content.extend(&cycle[start..]);
    while content.len() < len {
        content.extend(&cycle);
    }
    content.truncate(len);
    content
}
