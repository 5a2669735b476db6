//! Segments: a header and records, of which the map alone knows the places.

use super::{Codec, ObjectId, VERSION, put_object};
use crate::Error;
use bytes::Bytes;

/// The length of the header of a segment and of an object with pages, in bytes.
pub(crate) const HEADER: u32 = 32;

/// The first bytes of an object with records or pages.
pub(crate) fn header(id: ObjectId) -> Bytes {
    let mut out = Vec::with_capacity(HEADER as usize);
    out.extend_from_slice(b"NBDSEGM");
    out.push(VERSION);
    put_object(&mut out, id);
    out.into()
}

/// A block as it is stored, compressed where that is wanted and saves an eighth.
pub(crate) fn encode_record(block: &Bytes, level: Option<i32>) -> (Codec, Bytes) {
    #[cfg(feature = "zstd")]
    if let Some(level) = level
        && let Ok(packed) = zstd::bulk::compress(block, level)
        && packed.len() <= block.len() - block.len() / 8
    {
        return (Codec::Zstd, packed.into());
    }
    let _ = level;
    (Codec::Raw, block.clone())
}

/// The block of a record, which has `len` bytes.
///
/// # Errors
///
/// The reason in words, or the feature that is missing.
pub(crate) fn decode_record(
    codec: Codec,
    stored: Bytes,
    len: usize,
) -> Result<Result<Bytes, String>, Error> {
    let block = match codec {
        Codec::Raw => stored,
        #[cfg(feature = "zstd")]
        Codec::Zstd => match zstd::bulk::decompress(&stored, len) {
            Ok(block) => block.into(),
            Err(error) => return Ok(Err(format!("zstd cannot read it: {error}"))),
        },
        #[cfg(not(feature = "zstd"))]
        Codec::Zstd => {
            return Err(Error::Unsupported(
                "a record is compressed by zstd: the feature `zstd` of nbd-object is needed".into(),
            ));
        }
    };
    if block.len() == len {
        Ok(Ok(block))
    } else {
        Ok(Err(format!(
            "a block of {len} bytes was expected, and {} found",
            block.len()
        )))
    }
}
