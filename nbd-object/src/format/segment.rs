//! Segments: a header and records, of which the map alone knows the places.

use super::{ObjectId, VERSION, put_object};
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
