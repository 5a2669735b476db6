//! The disk that commands are tried with. Its content follows from the offset, so that no command has to
//! fill a disk first.

use nbd_blocking::{
    exports::{Export, Failure, Memory, Overlay},
    meta::{Allocation, Extent},
};
use nbd_tokio::nbd_proto::TransmissionFlags;
use std::{ops::Range, sync::Arc};

/// The size of the disk, in bytes.
pub(crate) const SIZE: u64 = 64 << 20;

/// Ranges with text in them. The rest is zero.
const TEXT: [Range<u64>; 4] = [
    0..4096,
    1 << 20..6 << 20,
    24 << 20..26 << 20,
    SIZE - 65536..SIZE,
];

/// The text, again and again. It is as long as a line of a dump.
const LINE: [u8; 16] = *b"nbd sample disk\n";

/// A disk that can be written to, with a little in it.
pub(crate) fn sample() -> impl Export {
    Overlay::in_memory(Arc::new(Sample))
}

/// The disk as it is at first.
struct Sample;

impl Export for Sample {
    fn size(&self) -> u64 {
        SIZE
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_CACHE
    }

    fn description(&self) -> &'static str {
        "a disk in memory to try commands with"
    }

    fn may_block(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(0);
        let end = offset + buf.len() as u64;
        for text in TEXT {
            let start = text.start.max(offset);
            let len = text.end.min(end).saturating_sub(start);
            if len > 0 {
                let mut line = LINE;
                line.rotate_left(index(start) % LINE.len());
                let text = &mut buf[index(start - offset)..][..index(len)];
                for piece in text.chunks_mut(LINE.len()) {
                    piece.copy_from_slice(&line[..piece.len()]);
                }
            }
        }
        Ok(())
    }

    fn cache(&self, _offset: u64, _len: u64) -> Result<(), Failure> {
        Ok(())
    }

    fn finds_zeroes(&self) -> bool {
        true
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        // Text has whole pages, as it would have in memory.
        let pages = TEXT.map(|text| text.start..text.end.next_multiple_of(Memory::PAGE));
        let next = pages.into_iter().find(|pages| offset < pages.end);
        let (end, status) = match next {
            Some(pages) if offset < pages.start => {
                (pages.start, Allocation::HOLE | Allocation::ZERO)
            }
            Some(pages) => (pages.end, 0),
            None => (SIZE, Allocation::HOLE | Allocation::ZERO),
        };
        let len = len.min(end - offset);
        Ok(Extent { len, status })
    }
}

/// A number of bytes, none of which is larger than the disk.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same content, in memory.
    fn filled() -> Memory {
        let disk = Memory::new(SIZE);
        for text in TEXT {
            let len = index(text.end - text.start);
            let data = LINE.repeat(len / LINE.len());
            disk.write(text.start, &data, false).unwrap();
        }
        disk
    }

    #[test]
    fn it_is_as_a_disk_in_memory_with_the_same_text() {
        let (sample, filled) = (sample(), filled());
        assert_eq!(sample.flags(), filled.flags());
        for offset in (0..SIZE).step_by(32768) {
            // Neither begins nor ends at a line.
            for (offset, len) in [(offset, 32768), (offset + 3, 32762)] {
                let read = |disk: &dyn Export| {
                    let mut buf = vec![0xff; len];
                    disk.read(offset, &mut buf).unwrap();
                    buf
                };
                assert!(read(&sample) == read(&filled), "{offset}");
            }
            let status = |disk: &dyn Export| {
                let mut extents = Vec::new();
                disk.block_status(
                    &nbd_tokio::ContextName::base_allocation(),
                    offset,
                    SIZE - offset,
                    &mut |extent| {
                        extents.push(extent);
                        std::ops::ControlFlow::Continue(())
                    },
                )
                .unwrap();
                extents
            };
            assert_eq!(status(&sample), status(&filled), "{offset}");
        }
    }

    #[test]
    fn it_can_be_written_to() {
        let sample = sample();
        sample.write(SIZE - 5, b"hello", false).unwrap();
        let mut buf = [0; 16];
        sample.read(SIZE - 16, &mut buf).unwrap();
        assert_eq!(&buf, b"nbd sample hello");
    }
}
