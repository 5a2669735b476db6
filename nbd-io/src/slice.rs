//! A part of another export.

use crate::{
    AsyncExport, Content, Export, ReadData, ZeroMode, export::check_range, forward_async_export,
    forward_export,
};
use bytes::Bytes;
use nbd_proto::{ContextName, Errno, Failure, meta::Extent};
use std::{ops::ControlFlow, sync::Arc};

/// A part of another export as an export of its own, such as a partition of a disk.
///
/// Everything is passed on, as far as it lies within the part. Flags, block sizes, meta contexts
/// and the description are the other export's.
///
/// ```
/// use nbd_io::{Export, Memory, Slice};
/// use std::sync::Arc;
///
/// let disk = Arc::new(Memory::new(1 << 30));
/// let partition = Slice::new(disk.clone(), 1 << 20, 64 << 20)?;
/// partition.write(0, b"hello", false)?;
/// let mut buf = [0; 5];
/// disk.read(1 << 20, &mut buf)?;
/// assert_eq!(&buf, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Slice<E = Arc<dyn Export>> {
    export: E,
    offset: u64,
    len: u64,
}

/// Reasons for which a part of an export cannot be an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    /// The export ends before the part does.
    #[error("{len} bytes at {offset} do not lie within an export of {size} bytes")]
    OutOfRange {
        /// Requested offset in bytes.
        offset: u64,
        /// Requested length in bytes.
        len: u64,
        /// Size of the export in bytes.
        size: u64,
    },
    /// The part does not consist of whole blocks.
    #[error("{len} bytes at {offset} are not whole blocks of {minimum} bytes")]
    Unaligned {
        /// Requested offset in bytes.
        offset: u64,
        /// Requested length in bytes.
        len: u64,
        /// The minimum block size of the export, in bytes.
        minimum: u32,
    },
}

impl<E: Export> Slice<E> {
    /// The `len` bytes of `export` from `offset` on.
    ///
    /// # Errors
    ///
    /// When they do not lie within the export, or are not whole blocks of its minimum size. Where
    /// the export ends with less than a block the part may do so too.
    pub fn new(export: E, offset: u64, len: u64) -> Result<Self, SliceError> {
        let (size, minimum) = (export.size(), export.block_sizes().minimum());
        Self::of(export, offset, len, size, minimum)
    }
}

impl<E: AsyncExport> Slice<E> {
    /// Like [`new`](Self::new), for an asynchronous export. This is one, too.
    ///
    /// # Errors
    ///
    /// Like those of [`new`](Self::new).
    pub fn asynchronous(export: E, offset: u64, len: u64) -> Result<Self, SliceError> {
        let (size, minimum) = (export.size(), export.block_sizes().minimum());
        Self::of(export, offset, len, size, minimum)
    }
}

impl<E> Slice<E> {
    fn of(export: E, offset: u64, len: u64, size: u64, minimum: u32) -> Result<Self, SliceError> {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= size) else {
            return Err(SliceError::OutOfRange { offset, len, size });
        };
        let is_whole = |at: u64| at.is_multiple_of(minimum.into());
        if !is_whole(offset) || !is_whole(end) && end != size {
            return Err(SliceError::Unaligned {
                offset,
                len,
                minimum,
            });
        }
        Ok(Self {
            export,
            offset,
            len,
        })
    }

    /// The place of a range of the part in the export, if it is within the part.
    fn shift(&self, offset: u64, len: u64, errno: Errno) -> Result<u64, Failure> {
        check_range(self.len, offset, len, errno)?;
        Ok(self.offset + offset)
    }

    /// The export's failure, as seen from the part.
    fn unshift<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|failure| {
            let offset = failure.offset.and_then(|at| at.checked_sub(self.offset));
            Failure {
                offset: offset.filter(|offset| *offset < self.len),
                ..failure
            }
        })
    }
}

impl<E: AsyncExport> AsyncExport for Slice<E> {
    forward_async_export!(
        |this| &this.export,
        except size, refresh, read, read_now, write, write_zeroes, trim, cache, flush, allocation,
        block_status
    );

    fn size(&self) -> u64 {
        self.len
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        let offset = self.shift(offset, len as u64, Errno::Inval)?;
        self.unshift(self.export.read(offset, len).await)
    }

    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        match self.shift(offset, len as u64, Errno::Inval) {
            Ok(offset) => {
                let read = self.export.read_now(offset, len)?;
                Some(self.unshift(read))
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Failure> {
        let offset = self.shift(offset, data.len() as u64, Errno::NoSpc)?;
        self.unshift(self.export.write(offset, data, fua).await)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        let offset = self.shift(offset, len, Errno::NoSpc)?;
        self.unshift(self.export.write_zeroes(offset, len, mode).await)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.trim(offset, len, fua).await)
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.cache(offset, len).await)
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.unshift(self.export.flush().await)
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.allocation(offset, len).await)
    }

    async fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>, Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.block_status(context, offset, len).await)
    }
}

impl<E: Export> Export for Slice<E> {
    // Its size does not change, so it has nothing to refresh.
    forward_export!(
        |this| &this.export,
        except size, refresh, read, read_unless_zero, read_now, write, write_zeroes, trim, cache,
        flush, allocation, quick_allocation, block_status
    );

    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let offset = self.shift(offset, buf.len() as u64, Errno::Inval)?;
        self.unshift(self.export.read(offset, buf))
    }

    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        let offset = self.shift(offset, buf.len() as u64, Errno::Inval)?;
        self.unshift(self.export.read_unless_zero(offset, buf))
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        match self.shift(offset, buf.len() as u64, Errno::Inval) {
            Ok(offset) => {
                let read = self.export.read_now(offset, buf)?;
                Some(self.unshift(read))
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let offset = self.shift(offset, data.len() as u64, Errno::NoSpc)?;
        self.unshift(self.export.write(offset, data, fua))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        let offset = self.shift(offset, len, Errno::NoSpc)?;
        self.unshift(self.export.write_zeroes(offset, len, mode))
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.trim(offset, len, fua))
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.cache(offset, len))
    }

    fn flush(&self) -> Result<(), Failure> {
        self.unshift(self.export.flush())
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.allocation(offset, len))
    }

    fn quick_allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.quick_allocation(offset, len))
    }

    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let offset = self.shift(offset, len, Errno::Inval)?;
        self.unshift(self.export.block_status(context, offset, len, each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Blocking, Memory, Unblock, export_info,
        model::{DATA, HOLE, InPlace, Recorder, errno, operations, play, read, status},
    };
    use nbd_proto::BlockSizes;
    use proptest::prelude::*;

    const SIZE: usize = 3 * PAGE + 700;
    const PAGE: usize = 32 << 10;
    const LARGE: usize = 8 * PAGE;

    proptest! {
        #[test]
        fn it_behaves_like_an_array_of_bytes(
            operations in operations(SIZE, PAGE),
            before in prop_oneof![0..=LARGE - SIZE, Just(0), Just(PAGE), Just(LARGE - SIZE)],
        ) {
            let disk = Arc::new(Memory::new(LARGE as u64));
            let mut model = vec![7; LARGE];
            disk.write(0, &model, false).unwrap();
            let slice = Slice::new(disk.clone(), before as u64, SIZE as u64).unwrap();
            for (operation, range) in operations {
                play(&slice, &mut model[before..before + SIZE], &operation, range);
            }
            // And nothing was touched beside it.
            prop_assert!(read(&*disk, 0, LARGE) == model);
        }

        #[test]
        fn a_part_of_an_asynchronous_export_behaves_like_an_array_of_bytes(
            operations in operations(SIZE, PAGE),
        ) {
            let disk = Arc::new(Memory::new(LARGE as u64));
            let mut model = vec![7; LARGE];
            disk.write(0, &model, false).unwrap();
            let whole = Unblock::new(InPlace, disk.clone());
            let slice = Slice::asynchronous(whole, PAGE as u64, SIZE as u64).unwrap();
            let slice = Blocking::new(InPlace, slice);
            for (operation, range) in operations {
                play(&slice, &mut model[PAGE..PAGE + SIZE], &operation, range);
            }
            prop_assert!(read(&*disk, 0, LARGE) == model);
        }
    }

    #[test]
    fn failures_of_an_asynchronous_export_are_where_they_are_in_the_part() {
        let recorder = Arc::new(Recorder::default());
        let whole = Unblock::new(InPlace, recorder.clone());
        let slice = Slice::asynchronous(whole, 100, 500).unwrap();
        let slice = Blocking::new(InPlace, slice);
        assert_eq!(slice.size(), 500);
        for (theirs, ours) in [(Some(150), Some(50)), (Some(50), None), (None, None)] {
            recorder.fail_at(theirs);
            assert_eq!(slice.flush().unwrap_err().offset, ours);
            assert_eq!(slice.read(7, &mut [0; 3]).unwrap_err().offset, ours);
        }
        assert_eq!(errno(slice.read(499, &mut [0; 2])), Errno::Inval);
        assert_eq!(errno(slice.write(499, &[0; 2], false)), Errno::NoSpc);
        let outside = Slice::asynchronous(Unblock::new(InPlace, recorder), 900, 101);
        assert!(matches!(outside, Err(SliceError::OutOfRange { .. })));
    }

    #[test]
    fn only_whole_blocks_within_the_export_are_a_part() {
        let sizes = BlockSizes::new(512, 4096, 1 << 20).unwrap();
        let disk = Arc::new(Memory::new(10_000).with_block_sizes(sizes));
        for (offset, len, expected) in [
            (0, 10_000, Ok((10_000, 9728))),
            (512, 1024, Ok((1024, 1024))),
            (9728, 272, Ok((272, 0))),
            (9728, 0, Ok((0, 0))),
            (0, 10_001, Err("do not lie within an export of 10000 bytes")),
            (10_240, 0, Err("do not lie within an export of 10000 bytes")),
            (
                512,
                u64::MAX,
                Err("do not lie within an export of 10000 bytes"),
            ),
            (1, 511, Err("1 are not whole blocks of 512 bytes")),
            (512, 1, Err("512 are not whole blocks of 512 bytes")),
        ] {
            match (Slice::new(disk.clone(), offset, len), expected) {
                (Ok(slice), Ok(sizes)) => {
                    assert_eq!((slice.size(), export_info(&slice).size), sizes)
                }
                (Err(error), Err(text)) => assert!(error.to_string().ends_with(text), "{error}"),
                (result, expected) => panic!("{result:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn ranges_outside_are_refused() {
        // S-159
        let slice = Slice::new(Arc::new(Memory::new(3000)), 1000, 1000).unwrap();
        let mode = ZeroMode::default();
        for (offset, len) in [(1000, 1), (999, 2), (0, 1001), (u64::MAX, 1)] {
            let mut buf = vec![0; usize::try_from(len).unwrap()];
            assert_eq!(errno(slice.read(offset, &mut buf)), Errno::Inval);
            let now = slice.read_now(offset, &mut buf).unwrap();
            assert_eq!(errno(now), Errno::Inval);
            assert_eq!(errno(slice.write(offset, &buf, false)), Errno::NoSpc);
            assert_eq!(errno(slice.write_zeroes(offset, len, mode)), Errno::NoSpc);
            assert_eq!(errno(slice.trim(offset, len, false)), Errno::Inval);
            assert_eq!(errno(slice.cache(offset, len)), Errno::Inval);
            assert_eq!(errno(slice.allocation(offset, len)), Errno::Inval);
            let context = ContextName::base_allocation();
            let mut each = |_| panic!("there is nothing");
            let status = slice.block_status(&context, offset, len, &mut each);
            assert_eq!(errno(status), Errno::Inval);
        }
    }

    #[test]
    fn everything_is_passed_on_to_where_it_is() {
        let recorder = Arc::new(Recorder::default());
        let slice = Slice::new(recorder.clone(), 500, 300).unwrap();
        assert!(!slice.may_block() && export_info(&slice).is_rotational());
        let (failures, calls) = recorder.everything(&slice, 100);
        assert_eq!((failures, calls), (vec![], Recorder::all(600)));
        let disk = Arc::new(Memory::new(1 << 20));
        disk.write(1 << 19, &[7], false).unwrap();
        let slice = Slice::new(disk, (1 << 19) - 4096, 8192).unwrap();
        assert_eq!(status(&slice, 0, 8192), [(4096, HOLE), (4096, DATA)]);
    }

    #[test]
    fn failures_are_where_they_are_in_the_part() {
        let recorder = Arc::new(Recorder::default());
        let slice = Slice::new(recorder.clone(), 500, 300).unwrap();
        for (at, expected) in [
            (None, None),
            (Some(500), Some(0)),
            (Some(799), Some(299)),
            (Some(800), None),
            (Some(4109), None),
        ] {
            recorder.fail_at(at);
            let (failures, _) = recorder.everything(&slice, 100);
            assert_eq!(failures.len(), 11);
            for failure in failures {
                assert_eq!((failure.errno, failure.offset), (Errno::Io, expected));
                assert_eq!(failure.message.as_str(), "a scratch");
            }
        }
    }
}
