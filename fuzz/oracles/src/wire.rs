//! Messages one by one: a decoded message is encoded to the same bytes, and the other way round.

use crate::input::Input;
use bytes::{Buf, BytesMut};
use nbd_proto::{
    CommandFlags, ContextName, ExportName, HeaderStyle,
    wire::{
        ChunkHeader, Descriptor, ErrorChunk, ExportBlock, Info, InfoRequest, InfoType,
        MetaContextReply, MetaContextRequest, OptionReplyHeader, OptionRequestHeader, ReplyFlags,
        ReplyHeader, ReplyType, RequestHeader, ServerReply, TransmissionFlags, WireBlockSizes,
        ZEROES, magic,
    },
};

const HEADER_STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

/// Takes any bytes for each message in turn.
pub fn wire(data: &[u8]) {
    values(Input::new(data));
    transmission(data);
    headers(data);
    negotiation(data);
}

/// From values to bytes and back.
fn values(mut input: Input<'_>) {
    let mode = input.pick(&HEADER_STYLES);
    let fits = |len: u64| match mode {
        HeaderStyle::Simple | HeaderStyle::Structured => len & u64::from(u32::MAX),
        HeaderStyle::Extended => len,
    };
    let request = RequestHeader {
        flags: CommandFlags::from_bits(input.u16()),
        command: input.u16().into(),
        cookie: input.u64(),
        offset: input.u64(),
        len: fits(input.u64()),
    };
    let bytes = request.encode(mode);
    assert_eq!(bytes.as_bytes().len(), mode.request_len());
    assert_eq!(RequestHeader::decode(mode, bytes.as_bytes()), Some(request));
    let reply = if mode.has_chunks() {
        ReplyHeader::Chunk(ChunkHeader {
            flags: ReplyFlags::from_bits(input.u16()),
            reply: input.u16().into(),
            cookie: input.u64(),
            offset: if mode == HeaderStyle::Extended {
                input.u64()
            } else {
                0
            },
            len: fits(input.u64()),
        })
    } else {
        let (error, cookie) = (input.u32(), input.u64());
        ReplyHeader::Simple { error, cookie }
    };
    let bytes = reply.encode(mode);
    let magic = bytes.as_bytes().get_u32();
    assert_eq!(ReplyHeader::len(mode, magic), Some(bytes.as_bytes().len()));
    assert_eq!(ReplyHeader::decode(mode, bytes.as_bytes()), Some(reply));
    let sizes = Info::BlockSize(WireBlockSizes {
        minimum: input.u32(),
        preferred: input.u32(),
        maximum: input.u32(),
    });
    let export = Info::Export(ExportBlock {
        size: input.u64(),
        flags: TransmissionFlags::from_bits(input.u16()),
    });
    for info in [sizes, export] {
        assert_eq!(Info::decode(&written(|out| info.encode(out))), Some(info));
    }
    let name = ExportName::try_from(input.bytes()).unwrap_or_default();
    let kinds: Vec<_> = input
        .bytes()
        .iter()
        .map(|k| InfoType::from(u16::from(*k)))
        .collect();
    let bytes = written(|out| InfoRequest::encode(&name, kinds.iter().copied(), out));
    let request = InfoRequest::decode(&bytes).expect("it was encoded");
    assert_eq!(request.name, name.as_str().as_bytes());
    assert_eq!(request.infos().collect::<Vec<_>>(), kinds);
}

/// Messages of transmission, from bytes to values and back.
fn transmission(data: &[u8]) {
    for mode in HEADER_STYLES {
        if let Some(request) = RequestHeader::decode(mode, data) {
            assert!(data.starts_with(request.encode(mode).as_bytes()));
        }
        if let Some(reply) = ReplyHeader::decode(mode, data) {
            assert!(data.starts_with(reply.encode(mode).as_bytes()));
        }
        if let Some(extent) = Descriptor::decode(mode, data) {
            let bytes = written(|out| extent.encode(mode, out));
            assert_eq!(bytes.len(), Descriptor::wire_len(mode));
            assert!(data.starts_with(&bytes));
        }
    }
    for reply in [ReplyType::Error, ReplyType::ErrorOffset] {
        if let Some(error) = ErrorChunk::decode(reply, data) {
            let bytes = written(|out| error.encode(out));
            assert_eq!(bytes.len(), error.wire_len());
            assert!(data.starts_with(&bytes));
        }
    }
}

/// Headers of options and their replies.
fn headers(data: &[u8]) {
    if let Some((bytes, _)) = data.split_first_chunk() {
        match OptionRequestHeader::decode(bytes) {
            Ok(header) => assert_eq!(written(|out| header.encode(out)), bytes[..]),
            Err(got) => assert_ne!(got, magic::IHAVEOPT),
        }
    }
    if let Some((bytes, _)) = data.split_first_chunk() {
        match OptionReplyHeader::decode(bytes) {
            Ok(header) => assert_eq!(written(|out| header.encode(out)), bytes[..]),
            Err(got) => assert_ne!(got, magic::OPTION_REPLY),
        }
    }
    if let Some(export) = ExportBlock::decode(data) {
        let short = written(|out| export.encode(true, out));
        let long = written(|out| export.encode(false, out));
        assert!(data.starts_with(&short) && long.starts_with(&short));
        assert_eq!(long.len(), ExportBlock::LEN + ZEROES);
    }
}

/// Data of options and their replies. Names are checked, and only legal ones can be encoded.
fn negotiation(data: &[u8]) {
    if let Some(request) = InfoRequest::decode(data)
        && let Ok(name) = ExportName::try_from(request.name)
    {
        let infos: Vec<_> = request.infos().collect();
        assert_eq!(
            written(|out| InfoRequest::encode(&name, infos.iter().copied(), out)),
            data
        );
    }
    match Info::decode(data) {
        // Lossy messages, or those that are not kept at all.
        None | Some(Info::Name(Err(_)) | Info::Description(_) | Info::Other(_)) => {}
        Some(info) => assert_eq!(written(|out| info.encode(out)), data),
    }
    if let Some(reply) = ServerReply::decode(data)
        && let Ok(name) = ExportName::try_from(reply.name)
        && let Ok(description) = str::from_utf8(reply.description)
    {
        assert_eq!(
            written(|out| ServerReply::encode(&name, description, out)),
            data
        );
    }
    if let Some(request) = MetaContextRequest::decode(data) {
        let count = request.queries.count_left();
        let queries: Vec<_> = request.queries.collect();
        assert_eq!(u32::try_from(queries.len()), Ok(count));
        let names: Result<Vec<_>, _> = queries.into_iter().map(ContextName::try_from).collect();
        if let (Ok(export), Ok(names)) = (ExportName::try_from(request.export), names) {
            let bytes = written(|out| MetaContextRequest::encode(&export, &names, out));
            assert_eq!(bytes, data);
        }
    }
    if let Some(reply) = MetaContextReply::decode(data)
        && let Ok(name) = ContextName::try_from(reply.name)
    {
        assert_eq!(
            written(|out| MetaContextReply::encode(reply.id, &name, out)),
            data
        );
    }
}

fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    write(&mut out);
    out
}
