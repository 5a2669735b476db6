//! Another export without the right to write to it.

use crate::{AsyncExport, Export, ZeroMode, forward_async_export, forward_export};
use bytes::Bytes;
use nbd_proto::{Errno, Failure, TransmissionFlags};
use std::sync::Arc;

/// Another export, as it is seen by those who may only read it.
///
/// Reads are passed on, and every change fails with [`Errno::Perm`]. A program that has the other
/// export itself can go on writing to it.
///
/// ```
/// use nbd_io::{Export, Memory, NamedExports, ReadOnly, export_info};
/// use nbd_proto::ExportName;
/// use std::sync::Arc;
///
/// let disk = Arc::new(Memory::new(1 << 30));
/// let look = Arc::new(ReadOnly::new(disk.clone()));
/// assert!(export_info(&look).is_read_only() && look.write(0, b"hello", false).is_err());
/// let exports = NamedExports::new()
///     .with(ExportName::new("disk")?, disk)
///     .with(ExportName::new("look")?, look);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReadOnly<E = Arc<dyn Export>> {
    export: E,
}

impl<E> ReadOnly<E> {
    /// Shows `export` to readers. It is an [`Export`] or an [`AsyncExport`], and so is this.
    #[must_use]
    pub const fn new(export: E) -> Self {
        Self { export }
    }
}

/// The flags of an export that is not written to.
fn without_writes(flags: TransmissionFlags) -> TransmissionFlags {
    let flags = flags | TransmissionFlags::READ_ONLY;
    flags
        .without(TransmissionFlags::SEND_TRIM)
        .without(TransmissionFlags::SEND_WRITE_ZEROES)
        .without(TransmissionFlags::SEND_FAST_ZERO)
}

impl<E: AsyncExport> AsyncExport for ReadOnly<E> {
    forward_async_export!(|this| &this.export, except flags, write, write_zeroes, trim);

    fn flags(&self) -> TransmissionFlags {
        without_writes(self.export.flags())
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), Failure> {
        Err(Errno::Perm.into())
    }

    async fn write_zeroes(&self, _: u64, _: u64, _: ZeroMode) -> Result<(), Failure> {
        Err(Errno::Perm.into())
    }

    async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), Failure> {
        Err(Errno::Perm.into())
    }
}

impl<E: Export> Export for ReadOnly<E> {
    forward_export!(|this| &this.export, except flags, write, write_zeroes, trim);

    fn flags(&self) -> TransmissionFlags {
        without_writes(self.export.flags())
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), Failure> {
        Err(Errno::Perm.into())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroMode) -> Result<(), Failure> {
        Err(Errno::Perm.into())
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), Failure> {
        Err(Errno::Perm.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Blocking, Memory, Unblock, export_info,
        model::{HOLE, InPlace, NO_HOLE, Recorder, errno, read, status},
    };

    #[test]
    fn nothing_can_be_written_through_it() {
        // S-091, S-160
        let disk = Arc::new(Memory::new(1 << 20));
        let view = ReadOnly::new(disk.clone());
        let info = export_info(&view);
        assert!(info.is_read_only() && info.can_flush() && info.can_cache());
        assert!(!info.can_trim() && !info.can_write_zeroes() && !info.can_fast_zero());
        assert!(info.can_multi_conn());
        disk.write(0, b"hello", false).unwrap();
        assert_eq!(errno(view.write(0, b"x", true)), Errno::Perm);
        assert_eq!(errno(view.trim(0, 1 << 20, false)), Errno::Perm);
        assert_eq!(errno(view.write_zeroes(0, 5, NO_HOLE)), Errno::Perm);
        assert_eq!(read(&view, 0, 6), b"hello\0");
        assert_eq!(
            status(&view, Memory::PAGE, Memory::PAGE),
            [(Memory::PAGE, HOLE)]
        );
    }

    #[test]
    fn nothing_can_be_written_through_an_asynchronous_one() {
        let recorder = Arc::new(Recorder::default());
        let view = ReadOnly::new(Unblock::new(InPlace, recorder.clone()));
        let view = Blocking::new(InPlace, view);
        let info = export_info(&view);
        assert!(info.is_read_only() && !info.can_trim() && !info.can_write_zeroes());
        assert_eq!(errno(view.write(0, b"x", true)), Errno::Perm);
        assert_eq!(errno(view.trim(0, 10, false)), Errno::Perm);
        assert_eq!(errno(view.write_zeroes(0, 5, NO_HOLE)), Errno::Perm);
        view.read(0, &mut [0; 5]).unwrap();
        view.flush().unwrap();
    }

    #[test]
    fn reads_are_passed_on() {
        let recorder = Arc::new(Recorder::default());
        let view = ReadOnly::new(recorder.clone());
        assert!(!view.may_block() && export_info(&view).is_rotational());
        let (failures, calls) = recorder.everything(&view, 100);
        assert_eq!(
            failures,
            [Errno::Perm.into(), Errno::Perm.into(), Errno::Perm.into()]
        );
        let mut expected = Recorder::all(100);
        expected.retain(|call| {
            !["write", "zeroes", "trim"]
                .iter()
                .any(|w| call.starts_with(w))
        });
        assert_eq!((calls.len(), calls), (8, expected));
    }
}
