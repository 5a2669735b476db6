//! The messages of the protocol, pushed byte by byte. Nothing here uses the crate under test, so
//! that it is an independent oracle for the bytes on the wire.

/// `NBD_REPLY_FLAG_DONE`.
pub(crate) const D: u16 = 1;

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn len32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len())
        .expect("tests are short")
        .to_be_bytes()
}

/// `HELLO`: a newstyle greeting.
pub(crate) fn hello(flags: u16) -> Vec<u8> {
    join(&[b"NBDMAGIC", b"IHAVEOPT", &flags.to_be_bytes()])
}

/// `OLD`: an oldstyle greeting.
pub(crate) fn old(size: u64, flags: u32) -> Vec<u8> {
    join(&[
        b"NBDMAGIC",
        &[0x00, 0x00, 0x42, 0x02, 0x81, 0x86, 0x12, 0x53],
        &size.to_be_bytes(),
        &flags.to_be_bytes(),
        &[0; 124],
    ])
}

/// `CF`: client flags.
pub(crate) fn cf(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
}

/// `OPT`: an option.
pub(crate) fn opt(option: u32, data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    join(&[b"IHAVEOPT", &option.to_be_bytes(), &len32(data), data])
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub(crate) fn info_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let count = u16::try_from(infos.len()).expect("tests are short");
    let mut data = join(&[
        &len32(name.as_bytes()),
        name.as_bytes(),
        &count.to_be_bytes(),
    ]);
    for info in infos {
        data.extend(info.to_be_bytes());
    }
    data
}

/// The data of the options about meta contexts.
pub(crate) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).expect("tests are short");
    let mut data = join(&[
        &len32(name.as_bytes()),
        name.as_bytes(),
        &count.to_be_bytes(),
    ]);
    for query in queries {
        data.extend(len32(query.as_bytes()));
        data.extend(query.as_bytes());
    }
    data
}

/// The header of an option reply, without its data.
pub(crate) fn rep_header(option: u32, kind: u32, len: u32) -> Vec<u8> {
    join(&[
        &[0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &len.to_be_bytes(),
    ])
}

/// `REP`: an option reply.
pub(crate) fn rep(option: u32, kind: u32, data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    let len = u32::from_be_bytes(len32(data));
    join(&[&rep_header(option, kind, len), data])
}

/// `ACK`.
pub(crate) fn ack(option: u32) -> Vec<u8> {
    rep(option, 1, [])
}

/// `ERR`: a refusal; `code` is the tail of its number.
pub(crate) fn err(option: u32, code: u32, message: &str) -> Vec<u8> {
    rep(option, 0x8000_0000 | code, message)
}

/// `NBD_REP_SERVER`.
pub(crate) fn server(name: &[u8], description: &[u8]) -> Vec<u8> {
    rep(3, 2, join(&[&len32(name), name, description]))
}

/// `NBD_REP_INFO` of any kind.
pub(crate) fn info(option: u32, kind: u16, data: impl AsRef<[u8]>) -> Vec<u8> {
    rep(option, 3, join(&[&kind.to_be_bytes(), data.as_ref()]))
}

/// `IEXP`: `NBD_INFO_EXPORT`.
pub(crate) fn iexp(option: u32, size: u64, flags: u16) -> Vec<u8> {
    info(option, 0, export_block(size, flags))
}

/// `IBS`: `NBD_INFO_BLOCK_SIZE`.
pub(crate) fn ibs(option: u32, minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let data = [minimum, preferred, maximum].map(u32::to_be_bytes).concat();
    info(option, 3, data)
}

/// `NBD_REP_META_CONTEXT`.
pub(crate) fn meta(option: u32, id: u32, name: impl AsRef<[u8]>) -> Vec<u8> {
    rep(option, 4, join(&[&id.to_be_bytes(), name.as_ref()]))
}

/// The answer to `NBD_OPT_EXPORT_NAME` without its 124 reserved bytes.
pub(crate) fn export_block(size: u64, flags: u16) -> Vec<u8> {
    join(&[&size.to_be_bytes(), &flags.to_be_bytes()])
}

/// `REQ`: a compact request.
pub(crate) fn req(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    join(&[
        &[0x25, 0x60, 0x95, 0x13],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ])
}

/// `XREQ`: an extended request.
pub(crate) fn xreq(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    join(&[
        &[0x21, 0xe4, 0x1c, 0x71],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ])
}

/// `SR`: a simple reply.
pub(crate) fn sr(error: u32, cookie: u64, data: impl AsRef<[u8]>) -> Vec<u8> {
    join(&[
        &[0x67, 0x44, 0x66, 0x98],
        &error.to_be_bytes(),
        &cookie.to_be_bytes(),
        data.as_ref(),
    ])
}

/// The header of a structured chunk, without its payload.
pub(crate) fn ch_header(flags: u16, kind: u16, cookie: u64, len: u32) -> Vec<u8> {
    join(&[
        &[0x66, 0x8e, 0x33, 0xef],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &len.to_be_bytes(),
    ])
}

/// `CH`: a structured chunk.
pub(crate) fn ch(flags: u16, kind: u16, cookie: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let len = u32::from_be_bytes(len32(payload));
    join(&[&ch_header(flags, kind, cookie, len), payload])
}

/// The header of an extended chunk, without its payload.
pub(crate) fn xch_header(flags: u16, kind: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    join(&[
        &[0x6e, 0x8a, 0x27, 0x8c],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ])
}

/// `XCH`: an extended chunk.
pub(crate) fn xch(
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    payload: impl AsRef<[u8]>,
) -> Vec<u8> {
    let payload = payload.as_ref();
    let header = xch_header(flags, kind, cookie, offset, payload.len() as u64);
    join(&[&header, payload])
}

/// The payload of `NBD_REPLY_TYPE_OFFSET_DATA`.
pub(crate) fn data_at(offset: u64, data: &[u8]) -> Vec<u8> {
    join(&[&offset.to_be_bytes(), data])
}

/// The payload of `NBD_REPLY_TYPE_OFFSET_HOLE`.
pub(crate) fn hole_at(offset: u64, len: u32) -> Vec<u8> {
    join(&[&offset.to_be_bytes(), &len.to_be_bytes()])
}

/// The payload of `NBD_REPLY_TYPE_BLOCK_STATUS`.
pub(crate) fn status(id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    for (len, flags) in extents {
        payload.extend(len.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    payload
}

/// The payload of `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`.
pub(crate) fn xstatus(id: u32, count: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let mut payload = join(&[&id.to_be_bytes(), &count.to_be_bytes()]);
    for (len, flags) in extents {
        payload.extend(len.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    payload
}

/// The payload of `NBD_REPLY_TYPE_ERROR`.
pub(crate) fn error(errno: u32, message: impl AsRef<[u8]>) -> Vec<u8> {
    let message = message.as_ref();
    let len = u16::try_from(message.len()).expect("tests are short");
    join(&[&errno.to_be_bytes(), &len.to_be_bytes(), message])
}

/// The payload of `NBD_REPLY_TYPE_ERROR_OFFSET`.
pub(crate) fn error_at(errno: u32, message: impl AsRef<[u8]>, offset: u64) -> Vec<u8> {
    join(&[&error(errno, message), &offset.to_be_bytes()])
}

/// Bytes that show where they belong: the contents of `len` bytes at `offset` of every disk in
/// these tests.
pub(crate) fn content(offset: u64, len: usize) -> Vec<u8> {
    (offset..)
        .take(len)
        .map(|at| u8::try_from(at % 251).expect("a remainder is small"))
        .collect()
}
