//! Messages up to the moment when transmission starts.

use super::{
    Fields, HandshakeFlags, InfoType, OptionCode, OptionReplyCode, TransmissionFlags, magic,
};
use crate::{ContextName, ExportName, NameError, Text};
use bytes::{BufMut, BytesMut};

/// Length of a newstyle greeting in bytes.
pub const GREETING_LEN: usize = 18;

/// Length in bytes of an oldstyle greeting behind its second magic number.
pub const OLDSTYLE_REST: usize = 8 + 4 + ZEROES;

/// Reserved bytes behind an oldstyle greeting and, without `NBD_FLAG_C_NO_ZEROES`, behind the
/// answer to `NBD_OPT_EXPORT_NAME`.
pub const ZEROES: usize = 124;

/// The first message of a server.
///
/// Spec: [Handshake](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#handshake).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// The client chooses an export by options.
    Newstyle(HandshakeFlags),
    /// The server has one export and transmission starts at once.
    Oldstyle {
        /// Size of the export in bytes.
        size: u64,
        /// Handshake flags (upper half, to be zero) and transmission flags (lower half).
        flags: u32,
    },
}

impl Greeting {
    /// Appends the greeting.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(magic::NBDMAGIC);
        match self {
            Self::Newstyle(flags) => {
                out.put_u64(magic::IHAVEOPT);
                out.put_u16(flags.bits());
            }
            Self::Oldstyle { size, flags } => {
                out.put_u64(magic::CLISERV);
                out.put_u64(size);
                out.put_u32(flags);
                out.put_bytes(0, ZEROES);
            }
        }
    }
}

/// The header of an option.
///
/// Spec: [Newstyle negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#newstyle-negotiation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionRequestHeader {
    /// The option.
    pub option: OptionCode,
    /// Length of the data in bytes.
    pub len: u32,
}

impl OptionRequestHeader {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Appends the header.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(magic::IHAVEOPT);
        out.put_u32(self.option.code());
        out.put_u32(self.len);
    }

    /// Reads a header; `Err` has the wrong magic number.
    ///
    /// # Errors
    ///
    /// When the magic number is another one.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, u64> {
        let [m @ .., o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
        match u64::from_be_bytes(m) {
            magic::IHAVEOPT => Ok(Self {
                option: u32::from_be_bytes([o0, o1, o2, o3]).into(),
                len: u32::from_be_bytes([l0, l1, l2, l3]),
            }),
            other => Err(other),
        }
    }
}

/// The header of an option reply.
///
/// Spec: [Fixed newstyle negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#fixed-newstyle-negotiation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionCode,
    /// The answer.
    pub reply: OptionReplyCode,
    /// Length of the data in bytes.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Length in bytes.
    pub const LEN: usize = 20;

    /// Appends the header.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(magic::OPTION_REPLY);
        out.put_u32(self.option.code());
        out.put_u32(self.reply.code());
        out.put_u32(self.len);
    }

    /// Reads a header; `Err` has the wrong magic number.
    ///
    /// # Errors
    ///
    /// When the magic number is another one.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, u64> {
        let [m @ .., o0, o1, o2, o3, r0, r1, r2, r3, l0, l1, l2, l3] = *bytes;
        match u64::from_be_bytes(m) {
            magic::OPTION_REPLY => Ok(Self {
                option: u32::from_be_bytes([o0, o1, o2, o3]).into(),
                reply: u32::from_be_bytes([r0, r1, r2, r3]).into(),
                len: u32::from_be_bytes([l0, l1, l2, l3]),
            }),
            other => Err(other),
        }
    }
}

/// The answer to `NBD_OPT_EXPORT_NAME`, which is not an option reply.
///
/// Spec: [Newstyle negotiation](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#newstyle-negotiation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportBlock {
    /// Size of the export in bytes.
    pub size: u64,
    /// Its capabilities.
    pub flags: TransmissionFlags,
}

impl ExportBlock {
    /// Length in bytes, without the [`ZEROES`] that may follow.
    pub const LEN: usize = 10;

    /// Appends the answer, with the reserved bytes unless both sides agreed to leave them out.
    pub fn encode(self, no_zeroes: bool, out: &mut BytesMut) {
        out.put_u64(self.size);
        out.put_u16(self.flags.bits());
        if !no_zeroes {
            out.put_bytes(0, ZEROES);
        }
    }

    /// Reads the answer off the front of `bytes`; `None` when there are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            size: fields.u64()?,
            flags: TransmissionFlags::from_bits(fields.u16()?),
        })
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
///
/// Spec: [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name as it came.
    pub name: &'a [u8],
    /// The wanted kinds of information, two bytes each.
    infos: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    /// Appends the data: 4 (name length) + name + 2 (count) + 2 per kind.
    pub fn encode(
        name: &ExportName,
        infos: impl Iterator<Item = InfoType> + Clone,
        out: &mut BytesMut,
    ) {
        let infos = infos.take(usize::from(u16::MAX));
        out.put_u32(string_len(name.as_str()));
        out.put_slice(name.as_str().as_bytes());
        out.put_u16(u16::try_from(infos.clone().count()).unwrap_or(u16::MAX));
        for info in infos {
            out.put_u16(info.code());
        }
    }

    /// Reads the data; `None` unless it has exactly the announced length.
    #[must_use]
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.counted()?;
        let count = usize::from(fields.u16()?);
        (fields.0.len() == 2 * count).then_some(Self {
            name,
            infos: fields.0,
        })
    }

    /// The wanted kinds of information, in the order in which they came.
    pub fn infos(&self) -> impl ExactSizeIterator<Item = InfoType> + use<'a> {
        self.infos
            .chunks_exact(2)
            .map(|id| u16::from_be_bytes([id[0], id[1]]).into())
    }
}

/// Block size constraints as they travel, before they are checked.
///
/// Spec: [Option reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireBlockSizes {
    /// Every offset and length is to be a multiple of this, in bytes.
    pub minimum: u32,
    /// The fastest size, in bytes.
    pub preferred: u32,
    /// The longest payload of a request, in bytes.
    pub maximum: u32,
}

/// The data of `NBD_REP_INFO`.
///
/// Spec: [Option reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Info {
    /// Size in bytes, and the export's abilities.
    Export(ExportBlock),
    /// The canonical name.
    Name(Result<ExportName, NameError>),
    /// Text for people.
    Description(Text),
    /// Block size constraints.
    BlockSize(WireBlockSizes),
    /// A kind that this crate does not know; to be ignored.
    Other(InfoType),
}

impl Info {
    /// Appends the data, starting with the 2 bytes of its kind.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Export(export) => {
                out.put_u16(InfoType::Export.code());
                export.encode(true, out);
            }
            Self::Name(name) => {
                out.put_u16(InfoType::Name.code());
                if let Ok(name) = name {
                    out.put_slice(name.as_str().as_bytes());
                }
            }
            Self::Description(text) => {
                out.put_u16(InfoType::Description.code());
                out.put_slice(text.as_str().as_bytes());
            }
            Self::BlockSize(sizes) => {
                out.put_u16(InfoType::BlockSize.code());
                out.put_u32(sizes.minimum);
                out.put_u32(sizes.preferred);
                out.put_u32(sizes.maximum);
            }
            Self::Other(kind) => out.put_u16(kind.code()),
        }
    }

    /// Reads the data; `None` when its length does not fit its kind.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let kind = InfoType::from(fields.u16()?);
        match kind {
            InfoType::Export if fields.0.len() == 10 => {
                ExportBlock::decode(fields.0).map(Self::Export)
            }
            InfoType::Name => Some(Self::Name(fields.0.try_into())),
            InfoType::Description => Some(Self::Description(Text::from_lossy(fields.0))),
            InfoType::BlockSize if fields.0.len() == 12 => Some(Self::BlockSize(WireBlockSizes {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            })),
            InfoType::Export | InfoType::BlockSize => None,
            InfoType::Other(_) => Some(Self::Other(kind)),
        }
    }
}

/// The data of `NBD_REP_SERVER`: one export of a list.
///
/// Spec: [Option reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerReply<'a> {
    /// The export's name as it came.
    pub name: &'a [u8],
    /// Text for people; may be empty.
    pub description: &'a [u8],
}

impl<'a> ServerReply<'a> {
    /// Appends the data: 4 (name length) + name + description.
    pub fn encode(name: &ExportName, description: &str, out: &mut BytesMut) {
        out.put_u32(string_len(name.as_str()));
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(description.as_bytes());
    }

    /// Reads the data; `None` when the name would be longer than the data.
    #[must_use]
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.counted()?;
        Some(Self {
            name,
            description: fields.0,
        })
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
///
/// Spec: [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Clone, Debug)]
pub struct MetaContextRequest<'a> {
    /// The export's name as it came.
    pub export: &'a [u8],
    /// The queries as they came.
    pub queries: MetaQueries<'a>,
}

impl<'a> MetaContextRequest<'a> {
    /// Appends the data: 4 (name length) + name + 4 (count) + per query 4 (length) + query.
    pub fn encode(export: &ExportName, queries: &[ContextName], out: &mut BytesMut) {
        out.put_u32(string_len(export.as_str()));
        out.put_slice(export.as_str().as_bytes());
        out.put_u32(u32::try_from(queries.len()).unwrap_or(u32::MAX));
        for query in queries {
            out.put_u32(string_len(query.as_str()));
            out.put_slice(query.as_str().as_bytes());
        }
    }

    /// Reads the data; `None` when a length points past its end or bytes are left over.
    #[must_use]
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let export = fields.counted()?;
        let count = fields.u32()?;
        let queries = MetaQueries {
            fields: fields.clone(),
            left: count,
        };
        for _ in 0..count {
            fields.counted()?;
        }
        fields.0.is_empty().then_some(Self { export, queries })
    }
}

/// The queries of a [`MetaContextRequest`], as they came.
#[derive(Clone, Debug)]
pub struct MetaQueries<'a> {
    fields: Fields<'a>,
    left: u32,
}

impl<'a> Iterator for MetaQueries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        self.fields.counted()
    }
}

impl MetaQueries<'_> {
    /// Number of queries that are left.
    #[must_use]
    pub const fn count_left(&self) -> u32 {
        self.left
    }
}

/// The data of `NBD_REP_META_CONTEXT`.
///
/// Spec: [Option reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaContextReply<'a> {
    /// The number that names the context in replies; noise when contexts are only listed.
    pub id: u32,
    /// The context's name as it came.
    pub name: &'a [u8],
}

impl<'a> MetaContextReply<'a> {
    /// Appends the data: 4 (id) + name.
    pub fn encode(id: u32, name: &ContextName, out: &mut BytesMut) {
        out.put_u32(id);
        out.put_slice(name.as_str().as_bytes());
    }

    /// Reads the data; `None` when there is no name.
    #[must_use]
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let id = fields.u32()?;
        (!fields.0.is_empty()).then_some(Self { id, name: fields.0 })
    }
}

/// Appends an option whose data `data` writes.
pub(crate) fn put_option(option: OptionCode, out: &mut BytesMut, data: impl FnOnce(&mut BytesMut)) {
    put_counted(
        out,
        |out| OptionRequestHeader { option, len: 0 }.encode(out),
        data,
    );
}

/// Appends an option reply whose data `data` writes.
pub(crate) fn put_option_reply(
    option: OptionCode,
    reply: OptionReplyCode,
    out: &mut BytesMut,
    data: impl FnOnce(&mut BytesMut),
) {
    put_counted(
        out,
        |out| {
            OptionReplyHeader {
                option,
                reply,
                len: 0,
            }
            .encode(out)
        },
        data,
    );
}

/// Writes a header that ends in a 32-bit length, then the data, then mends the length.
fn put_counted(
    out: &mut BytesMut,
    header: impl FnOnce(&mut BytesMut),
    data: impl FnOnce(&mut BytesMut),
) {
    header(out);
    let start = out.len();
    data(out);
    let len = u32::try_from(out.len() - start)
        .expect("names are at most 4096 bytes long and their number is limited");
    out[start - 4..start].copy_from_slice(&len.to_be_bytes());
}

fn string_len(string: &str) -> u32 {
    u32::try_from(string.len()).expect("a checked string has at most 4096 bytes")
}
