//! Payload for a buffer that only its owner may touch, received by another thread.

/// Payload that another thread than its owner's has received.
#[derive(Debug, Default)]
pub struct Spill {
    bytes: Vec<u8>,
    /// Position in the request's buffer and length of each part. A part without bytes is a hole.
    parts: Vec<(usize, usize, bool)>,
}

impl Spill {
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
