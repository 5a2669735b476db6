//! Payload for a buffer that only its owner may touch, read by somebody else.

/// Payload that somebody else than its owner has read.
#[derive(Debug, Default)]
pub(super) struct Aside {
    bytes: Vec<u8>,
    /// Position in the request's buffer and length of each part. A part without bytes is a hole.
    parts: Vec<(usize, usize, bool)>,
}

impl Aside {
    /// Whether nothing was put aside.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.parts.push((at, bytes.len(), false));
    }

    pub(super) fn put_hole(&mut self, at: usize, len: usize) {
        self.parts.push((at, len, true));
    }

    pub(super) fn copy_to(&self, dest: &mut [u8]) {
        let mut bytes = &self.bytes[..];
        for (at, len, hole) in &self.parts {
            let dest = &mut dest[*at..*at + *len];
            if *hole {
                dest.fill(0);
            } else {
                let (part, rest) = bytes.split_at(*len);
                dest.copy_from_slice(part);
                bytes = rest;
            }
        }
    }
}
