//! Records: blocks as they are, or compressed.

use crate::{Error, format::Codec};
use bytes::Bytes;

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
