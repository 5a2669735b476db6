//! The exports of the server: one that logs its calls, and one with the fewest commands possible.

use std::{
    ops::{ControlFlow, Range},
    sync::{Arc, Mutex},
};

use interop::MIB;
use nbd_blocking::{BlockSizes, ContextName, Errno, exports::Failure, meta::Extent};
use nbd_io::{Export, Memory, MetaContext, ZeroMode};
use nbd_proto::TransmissionFlags;

/// The spy's own meta context, which says of each mebibyte whether its number is odd.
pub(crate) const PARITY: &str = "x-spy:parity";

/// A range where zeroing is too slow to be called fast.
pub(crate) const SLOW: Range<u64> = 2 * MIB..3 * MIB;

/// A call that reached the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Zeroes {
        offset: u64,
        len: u64,
        mode: ZeroMode,
    },
    Trim {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Cache {
        offset: u64,
        len: u64,
    },
    Flush,
    Status {
        offset: u64,
        len: u64,
    },
}

/// Memory that logs its calls, zeroes slowly in one place, and has a meta context of its own beside
/// `base:allocation`.
pub(crate) struct Spy {
    memory: Memory,
    calls: Mutex<Vec<Call>>,
}

impl Spy {
    pub(crate) fn new(size: u64) -> Arc<Self> {
        Self::over(Memory::new(size))
    }

    pub(crate) fn over(memory: Memory) -> Arc<Self> {
        Arc::new(Self {
            memory,
            calls: Mutex::default(),
        })
    }

    /// The calls since the last call of this.
    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Changes the contents, unseen.
    pub(crate) fn put(&self, offset: u64, data: &[u8]) {
        self.memory.write(offset, data, false).unwrap();
    }

    /// All contents, read unseen.
    pub(crate) fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0xee; usize::try_from(self.memory.size()).unwrap()];
        self.memory.read(0, &mut bytes).unwrap();
        bytes
    }

    /// The number of bytes that take up memory.
    pub(crate) fn allocated(&self) -> u64 {
        self.memory.allocated()
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Export for Spy {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn flags(&self) -> TransmissionFlags {
        self.memory.flags() | TransmissionFlags::ROTATIONAL
    }

    fn block_sizes(&self) -> BlockSizes {
        self.memory.block_sizes()
    }

    fn description(&self) -> &str {
        self.memory.description()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let len = buf.len() as u64;
        self.note(Call::Read { offset, len });
        self.memory.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let len = data.len() as u64;
        self.note(Call::Write { offset, len, fua });
        self.memory.write(offset, data, fua)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.note(Call::Zeroes { offset, len, mode });
        if mode.fast && SLOW.contains(&offset) {
            return Err(Errno::NotSup.into());
        }
        self.memory.write_zeroes(offset, len, mode)
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.note(Call::Trim { offset, len, fua });
        self.memory.trim(offset, len, fua)
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.note(Call::Cache { offset, len });
        self.memory.cache(offset, len)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.note(Call::Flush);
        self.memory.flush()
    }

    fn finds_zeroes(&self) -> bool {
        true
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.memory.allocation(offset, len)
    }

    fn contexts(&self) -> Vec<MetaContext> {
        let parity = ContextName::new(PARITY).unwrap();
        let mut contexts = self.memory.contexts();
        contexts.push(MetaContext::new(parity));
        contexts
    }

    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.note(Call::Status { offset, len });
        if context.as_str() != PARITY {
            return self.memory.block_status(context, offset, len, each);
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let next = (at / MIB + 1) * MIB;
            let extent = Extent {
                len: next.min(end) - at,
                status: at / MIB % 2,
            };
            at = next;
            if each(extent).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The smallest export there can be: it can be read.
pub(crate) struct Bare;

impl Export for Bare {
    fn size(&self) -> u64 {
        12_345
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(b'x');
        Ok(())
    }
}
