//! An export that notes its calls, to check those that a wrapper passes on.

use crate::{Content, Export, MetaContext, ZeroMode};
use nbd_proto::{BlockSizes, ContextName, Errno, Failure, TransmissionFlags, meta::Extent};
use std::{
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
};

/// An export of 1000 bytes, none of whose answers is the one that [`Export`] provides.
#[derive(Default)]
pub(crate) struct Recorder {
    calls: Mutex<Vec<String>>,
    failure: Mutex<Option<Failure>>,
}

const LEN: u64 = 10;
const MODE: ZeroMode = ZeroMode {
    no_hole: true,
    fast: false,
    fua: true,
};

impl Recorder {
    /// Fails every call from here on, with this offset.
    pub(crate) fn fail_at(&self, offset: Option<u64>) {
        *self.failure.lock().unwrap() = Some(Failure {
            message: "a scratch".into(),
            offset,
            ..Errno::Io.into()
        });
    }

    /// Calls everything that a wrapper has, and returns the results and the calls that were passed
    /// on.
    pub(crate) fn everything(
        &self,
        wrapper: &dyn Export,
        offset: u64,
    ) -> (Vec<Failure>, Vec<String>) {
        let described = |export: &dyn Export| {
            let description = export.description().to_owned();
            (
                description,
                export.block_sizes(),
                export.contexts(),
                export.finds_zeroes(),
            )
        };
        assert_eq!(described(wrapper), described(self));
        self.calls().clear();
        let buf = &mut [0; 10];
        let context = contexts()[1].name.clone();
        let mut each = |_| ControlFlow::Continue(());
        let failures = [
            wrapper.read(offset, buf).err(),
            wrapper.read_unless_zero(offset, buf).err(),
            wrapper.read_now(offset, buf).and_then(Result::err),
            wrapper.write(offset, buf, true).err(),
            wrapper.write_zeroes(offset, LEN, MODE).err(),
            wrapper.trim(offset, LEN, true).err(),
            wrapper.cache(offset, LEN).err(),
            wrapper.flush().err(),
            wrapper.allocation(offset, LEN).err(),
            wrapper.quick_allocation(offset, LEN).err(),
            wrapper.block_status(&context, offset, LEN, &mut each).err(),
        ];
        let failures = failures.into_iter().flatten().collect();
        (failures, self.calls().drain(..).collect())
    }

    /// The calls of [`everything`](Self::everything) when nothing is left out.
    pub(crate) fn all(offset: u64) -> Vec<String> {
        let calls = [
            "read",
            "read unless zero",
            "read now",
            "write with FUA",
            "zeroes no_hole fua",
            "trim with FUA",
            "cache",
            "flush",
            "allocation",
            "quick allocation",
            "x-test:wide",
        ];
        let at = |call: &&str| match *call {
            "flush" => call.to_string(),
            call => format!("{call} {LEN} at {offset}"),
        };
        calls.iter().map(at).collect()
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, call: String) -> Result<(), Failure> {
        self.calls().push(call);
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn note_at(&self, call: &str, offset: u64, len: u64) -> Result<(), Failure> {
        self.note(format!("{call} {len} at {offset}"))
    }
}

fn contexts() -> Vec<MetaContext> {
    vec![
        MetaContext::new(ContextName::base_allocation()),
        MetaContext::wide(ContextName::new("x-test:wide").unwrap()),
    ]
}

impl Export for Recorder {
    fn size(&self) -> u64 {
        1000
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.note_at("read", offset, buf.len() as u64)
    }

    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        self.note_at("read unless zero", offset, buf.len() as u64)?;
        Ok(Content::Zeroes)
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        Some(self.note_at("read now", offset, buf.len() as u64))
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SEND_FLUSH | TransmissionFlags::ROTATIONAL
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::new(1, 65_536, 1 << 20).unwrap()
    }

    fn description(&self) -> &str {
        "on the record"
    }

    fn may_block(&self) -> bool {
        false
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let call = if fua { "write with FUA" } else { "write" };
        self.note_at(call, offset, data.len() as u64)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        let flag = |set, name| if set { name } else { "" };
        let call = format!(
            "zeroes{}{}{}",
            flag(mode.no_hole, " no_hole"),
            flag(mode.fast, " fast"),
            flag(mode.fua, " fua")
        );
        self.note_at(&call, offset, len)
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.note_at(if fua { "trim with FUA" } else { "trim" }, offset, len)
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.note_at("cache", offset, len)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.note("flush".to_owned())
    }

    fn finds_zeroes(&self) -> bool {
        true
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.note_at("allocation", offset, len)?;
        Ok(Extent { len, status: 0 })
    }

    fn quick_allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.note_at("quick allocation", offset, len)?;
        Ok(Extent { len, status: 0 })
    }

    fn contexts(&self) -> Vec<MetaContext> {
        contexts()
    }

    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.note_at(context.as_str(), offset, len)?;
        let _ = each(Extent { len, status: 0 });
        Ok(())
    }
}
