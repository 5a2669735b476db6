//! Exports as asynchronous ones, and the other way round.

use crate::{
    AsyncExport, Content, Export, MetaContext, ReadData, ZeroMode,
    runtime::{BlockOn, Runtime, unblock},
    server::Pieces,
};
use bytes::Bytes;
use nbd_proto::{
    BlockSizes, ContextName, Errno, Failure, TransmissionFlags,
    meta::{Allocation, Extent},
};
use std::{ops::ControlFlow, sync::Arc};

/// An [`Export`] as an [`AsyncExport`], for code that takes asynchronous ones only.
///
/// An export that never [waits](Export::may_block) is called in place. Of another one, each call has a
/// thread of the runtime for as long as it takes. That costs two changes of threads and a wake-up for
/// each request, and a read costs a buffer that is filled with zeroes first. A server knows better
/// ways for exports, and is better given them as they are.
///
/// ```
/// use nbd_io::{AsyncExport, Memory, Unblock, runtime::Runtime};
/// use std::sync::Arc;
///
/// fn asynchronous<R: Runtime>(runtime: R) -> impl AsyncExport {
///     Unblock::new(runtime, Arc::new(Memory::new(1 << 20)))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Unblock<R> {
    runtime: R,
    export: Arc<dyn Export>,
}

impl<R: Runtime> Unblock<R> {
    /// Calls `export` on threads of `runtime`.
    #[must_use]
    pub fn new(runtime: R, export: Arc<dyn Export>) -> Self {
        Self { runtime, export }
    }

    async fn call<T: Send + 'static>(
        &self,
        waits: bool,
        call: impl FnOnce(&dyn Export) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        if !waits {
            return call(&*self.export);
        }
        let export = Arc::clone(&self.export);
        unblock(&self.runtime, move || call(&*export))
            .await
            .unwrap_or_else(|error| Err(crate::failure(&error)))
    }
}

impl<R: Runtime> AsyncExport for Unblock<R> {
    fn size(&self) -> u64 {
        self.export.size()
    }

    async fn refresh(&self) {
        let waits = self.export.refresh_may_block();
        let refreshed = self.call(waits, |export| {
            export.refresh();
            Ok(())
        });
        // It has no way to fail, and a runtime without a thread leaves the old size.
        let _ = refreshed.await;
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        self.call(self.export.may_block(), move |export| {
            read(export, offset, len)
        })
        .await
    }

    fn flags(&self) -> TransmissionFlags {
        self.export.flags()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.export.block_sizes()
    }

    fn description(&self) -> &str {
        self.export.description()
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Failure> {
        self.call(self.export.may_block(), move |export| {
            export.write(offset, &data, fua)
        })
        .await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.call(self.export.may_block(), move |export| {
            export.write_zeroes(offset, len, mode)
        })
        .await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.call(self.export.may_block(), move |export| {
            export.trim(offset, len, fua)
        })
        .await
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.call(self.export.may_block(), move |export| {
            export.cache(offset, len)
        })
        .await
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.call(self.export.may_block(), |export| export.flush())
            .await
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Failure> {
        let context = ContextName::base_allocation();
        self.block_status(&context, offset, len).await
    }

    fn contexts(&self) -> Vec<MetaContext> {
        self.export.contexts()
    }

    async fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>, Failure> {
        let context = context.clone();
        self.call(self.export.may_block(), move |export| {
            let mut extents = Vec::new();
            export.block_status(&context, offset, len, &mut |extent| {
                extents.push(extent);
                if extents.len() == MAX_EXTENTS {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            Ok(extents)
        })
        .await
    }
}

/// Extents that are asked for at once: a client asks for the rest.
const MAX_EXTENTS: usize = 16 << 10;

/// Reads the data, without the holes that the export finds.
fn read(export: &dyn Export, offset: u64, len: usize) -> Result<ReadData, Failure> {
    let mut data = ReadData::new();
    let mut pieces = Pieces::new(export, offset, len as u64);
    while data.len() < len {
        let piece = if export.finds_zeroes() {
            pieces.next()
        } else {
            Extent {
                len: len as u64,
                status: 0,
            }
        };
        let at = offset + data.len() as u64;
        let piece_len = usize::try_from(piece.len).expect("a read fits into memory");
        if Allocation::new(piece.status).is_zero() {
            data.push_zeroes(piece_len);
            continue;
        }
        let mut buf = vec![0; piece_len];
        match export.read_unless_zero(at, &mut buf)? {
            Content::Data => data.push(buf),
            Content::Zeroes => data.push_zeroes(piece_len),
        }
    }
    Ok(data)
}

/// An [`AsyncExport`] as an [`Export`], for code that takes synchronous ones only, such as
/// [`Overlay`](crate::Overlay).
///
/// Each call keeps its thread until the future is done, and a read copies the data. So a server
/// carries out as many requests at once as it has [threads](Export#blocking) for them. The way to wait
/// is that of a runtime ([`BlockOn`]), whose event loop the futures find.
///
/// ```
/// use nbd_io::{AsyncExport, Blocking, Export, Overlay, runtime::BlockOn};
/// use std::sync::Arc;
///
/// fn overlay(runtime: impl BlockOn, disk: impl AsyncExport) -> Overlay {
///     Overlay::in_memory(Arc::new(Blocking::new(runtime, disk)))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Blocking<R, E> {
    runtime: R,
    export: E,
}

impl<R: BlockOn, E: AsyncExport> Blocking<R, E> {
    /// Waits for `export` as `runtime` does.
    #[must_use]
    pub const fn new(runtime: R, export: E) -> Self {
        Self { runtime, export }
    }
}

/// Checks the length of data that was read.
fn check_len(data: ReadData, len: usize) -> Result<ReadData, Failure> {
    if data.len() == len {
        return Ok(data);
    }
    Err(Failure {
        message: format!("the export read {} bytes instead of {len}", data.len()).into(),
        ..Errno::Io.into()
    })
}

impl<R: BlockOn, E: AsyncExport> Export for Blocking<R, E> {
    fn size(&self) -> u64 {
        self.export.size()
    }

    fn refresh(&self) {
        self.runtime.block_on(self.export.refresh());
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let data = self.runtime.block_on(self.export.read(offset, buf.len()))?;
        check_len(data, buf.len())?.copy_to_slice(buf);
        Ok(())
    }

    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        let data = self.runtime.block_on(self.export.read(offset, buf.len()))?;
        let data = check_len(data, buf.len())?;
        if data.is_all_zero() {
            return Ok(Content::Zeroes);
        }
        data.copy_to_slice(buf);
        Ok(Content::Data)
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        let read = self.export.read_now(offset, buf.len())?;
        let data = read.and_then(|data| check_len(data, buf.len()));
        Some(data.map(|data| data.copy_to_slice(buf)))
    }

    fn flags(&self) -> TransmissionFlags {
        self.export.flags()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.export.block_sizes()
    }

    fn description(&self) -> &str {
        self.export.description()
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let data = Bytes::copy_from_slice(data);
        self.runtime.block_on(self.export.write(offset, data, fua))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.runtime
            .block_on(self.export.write_zeroes(offset, len, mode))
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.runtime.block_on(self.export.trim(offset, len, fua))
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.runtime.block_on(self.export.cache(offset, len))
    }

    fn flush(&self) -> Result<(), Failure> {
        self.runtime.block_on(self.export.flush())
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        let extents = self.runtime.block_on(self.export.allocation(offset, len))?;
        extents.first().copied().ok_or_else(|| Failure {
            message: "the export described no bytes".into(),
            offset: Some(offset),
            ..Errno::Io.into()
        })
    }

    /// All is data: a read that waits finds zeroes itself.
    fn quick_allocation(&self, _: u64, len: u64) -> Result<Extent, Failure> {
        Ok(Extent { len, status: 0 })
    }

    fn contexts(&self) -> Vec<MetaContext> {
        self.export.contexts()
    }

    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let extents = self.export.block_status(context, offset, len);
        for extent in self.runtime.block_on(extents)? {
            if each(extent).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Memory,
        model::{HOLE, InPlace, Recorder, operations, play, status},
    };
    use proptest::prelude::*;

    const SIZE: usize = 3 * (32 << 10) + 700;

    fn there_and_back(export: Arc<dyn Export>) -> Blocking<InPlace, Unblock<InPlace>> {
        Blocking::new(InPlace, Unblock::new(InPlace, export))
    }

    proptest! {
        #[test]
        fn an_export_there_and_back_behaves_like_an_array_of_bytes(
            operations in operations(SIZE, 32 << 10),
        ) {
            let export = there_and_back(Arc::new(Memory::new(SIZE as u64)));
            let mut model = vec![0; SIZE];
            for (operation, range) in operations {
                play(&export, &mut model, &operation, range);
            }
        }
    }

    #[test]
    fn everything_is_passed_on_there_and_back_but_questions_of_a_server() {
        let recorder = Arc::new(Recorder::default());
        let export = there_and_back(recorder.clone());
        assert!(export.may_block() && export.refresh_may_block());
        for (own, theirs) in [
            (export.flags(), recorder.flags()),
            (
                crate::export_info(&export).flags,
                crate::export_info(&recorder).flags,
            ),
        ] {
            assert_eq!(own, theirs);
        }
        assert_eq!(export.contexts(), recorder.contexts());
        assert_eq!(export.block_sizes(), recorder.block_sizes());
        assert_eq!(export.description(), recorder.description());
    }

    #[test]
    fn holes_are_reported_and_read_as_such() {
        let export = there_and_back(Arc::new(Memory::new(1 << 20)));
        export.write(0, b"hello", false).unwrap();
        assert_eq!(
            status(&export, Memory::PAGE, Memory::PAGE),
            [(Memory::PAGE, HOLE)]
        );
        let buf = &mut [1; 512];
        assert_eq!(export.read_unless_zero(1 << 19, buf), Ok(Content::Zeroes));
        assert_eq!(export.read_unless_zero(0, buf), Ok(Content::Data));
        assert_eq!(&buf[..6], b"hello\0");
    }
}
