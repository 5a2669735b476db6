//! Delays and failures on purpose.

use crate::{Content, Export, ZeroMode, forward_export};
use nbd_proto::{Command, ContextName, Errno, Failure, Text, meta::Extent};
use std::{
    ops::{ControlFlow, Range},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Wraps an export and injects faults and delays, to test its users.
///
/// Faults are added and removed by a [`Faults`], while the export is served, from any thread. A
/// call that meets a fault is made on the other export only if it does not fail, and after the
/// delay. Delays block the calling thread, as a slow disk would.
///
/// A server that sends holes as such does not read them. While there is a fault that a read may
/// meet, this export therefore does not [find zeroes](Export::finds_zeroes), and
/// [reads nothing at once](Export::read_now).
///
/// ```
/// use nbd_io::{Export, Fault, Faults, Faulty, Memory};
/// use nbd_proto::{Command, Errno};
/// use std::{sync::Arc, time::Duration};
///
/// let faults = Faults::new();
/// let disk = Faulty::new(Arc::new(Memory::new(1 << 20)), faults.clone());
/// let scratch = Fault::failure(Errno::Io, "a scratch").touching(4096..8192);
/// faults.add(scratch.on(Command::Read).delayed(Duration::from_millis(1)));
///
/// let mut buf = [0; 4096];
/// assert!(disk.read(0, &mut buf).is_ok());
/// let failure = disk.read(6000, &mut buf).unwrap_err();
/// assert_eq!((failure.errno, failure.offset), (Errno::Io, Some(6000)));
/// assert_eq!(faults.hits(), 1);
///
/// faults.clear();
/// assert!(disk.read(6000, &mut buf).is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct Faulty {
    export: Arc<dyn Export>,
    faults: Faults,
}

impl Faulty {
    /// Lets the users of `export` meet `faults`.
    #[must_use]
    pub fn new(export: Arc<dyn Export>, faults: Faults) -> Self {
        Self { export, faults }
    }
}

/// A fault: its kind, and when it occurs.
///
/// Every call meets it, unless it is restricted to some.
#[derive(Clone, Debug)]
#[must_use = "a fault has no effect until it is added"]
pub struct Fault {
    command: Option<Command>,
    range: Option<Range<u64>>,
    skipped: u64,
    times: u64,
    delay: Duration,
    failure: Option<(Errno, Text)>,
}

impl Fault {
    /// Each call takes so much longer.
    pub const fn delay(delay: Duration) -> Self {
        Self {
            command: None,
            range: None,
            skipped: 0,
            times: u64::MAX,
            delay,
            failure: None,
        }
    }

    /// No call goes on until the faults are [cleared](Faults::clear).
    pub const fn hang() -> Self {
        Self::delay(Duration::MAX)
    }

    /// Each call fails like this. Where the fault is restricted to a range, the failure has the
    /// first offset in it that the call touches.
    pub fn failure(errno: Errno, message: impl Into<Text>) -> Self {
        Self {
            failure: Some((errno, message.into())),
            ..Self::delay(Duration::ZERO)
        }
    }

    /// Fails, or goes on, after so much time.
    pub const fn delayed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Only calls for this command meet it. Those that never get as far as an export do not exist
    /// here: [`Command::Disc`] and unknown ones.
    pub const fn on(mut self, command: Command) -> Self {
        self.command = Some(command);
        self
    }

    /// Only calls that touch one of these bytes meet it, and so no flush.
    pub const fn touching(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// The first `calls` that would meet it do not.
    pub const fn skipping(mut self, calls: u64) -> Self {
        self.skipped = calls;
        self
    }

    /// Only so many calls meet it.
    pub const fn times(mut self, calls: u64) -> Self {
        self.times = calls;
        self
    }

    fn concerns(&self, command: Command, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        let touches = |range: &Range<u64>| range.start.max(offset) < range.end.min(end);
        self.command.is_none_or(|only| only == command) && self.range.as_ref().is_none_or(touches)
    }

    fn failure_at(&self, offset: u64) -> Option<Failure> {
        let (errno, message) = self.failure.as_ref()?;
        Some(Failure {
            message: message.clone(),
            offset: self.range.as_ref().map(|range| range.start.max(offset)),
            ..(*errno).into()
        })
    }
}

/// The faults that the users of a [`Faulty`], or of several, meet.
///
/// A clone is another handle of the same faults.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
#[expect(
    clippy::disallowed_types,
    reason = "it blocks on purpose, and in place of a disk"
)]
struct Shared {
    state: Mutex<State>,
    cleared: std::sync::Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the number of calls that it concerned.
    faults: Vec<(Fault, u64)>,
    hits: u64,
    /// Number of times that they were cleared.
    clears: u64,
}

impl Faults {
    /// No faults yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault. A call that meets several is delayed by all of them in the order in which they
    /// were added, up to the first with which it fails.
    pub fn add(&self, fault: Fault) {
        self.state().faults.push((fault, 0));
    }

    /// Removes all faults. Calls that they delay go on at once, and do not fail.
    pub fn clear(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.clears += 1;
        self.0.cleared.notify_all();
    }

    /// Number of calls that have met a fault so far, including those that are still delayed.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.state().hits
    }

    // A poisoned lock is safe to take: the state is complete wherever something could panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meet(&self, command: Command, offset: u64, len: u64) -> Result<(), Failure> {
        let mut state = self.state();
        let mut met = Vec::new();
        for (fault, calls) in &mut state.faults {
            if fault.concerns(command, offset, len) {
                let since = calls.checked_sub(fault.skipped);
                if since.is_some_and(|since| since < fault.times) {
                    met.push((fault.delay, fault.failure_at(offset)));
                }
                *calls += 1;
            }
        }
        state.hits += u64::from(!met.is_empty());
        let clears = state.clears;
        for (delay, failure) in met {
            (state, _) = self
                .0
                .cleared
                .wait_timeout_while(state, delay, |state| state.clears == clears)
                .unwrap_or_else(PoisonError::into_inner);
            if state.clears != clears {
                return Ok(());
            }
            failure.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Whether a read of these bytes may meet one, now or later.
    fn concern_reads(&self, offset: u64, len: u64) -> bool {
        let state = self.state();
        state.faults.iter().any(|(fault, calls)| {
            let to_come = fault.skipped.saturating_add(fault.times) > *calls;
            to_come && fault.concerns(Command::Read, offset, len)
        })
    }
}

impl Export for Faulty {
    // Questions on the way to a command, such as those for holes, meet no fault.
    forward_export!(
        |this| &this.export,
        except read, read_unless_zero, read_now, may_block, write, write_zeroes, trim, cache, flush,
        finds_zeroes, block_status
    );

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.faults.meet(Command::Read, offset, buf.len() as u64)?;
        self.export.read(offset, buf)
    }

    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        self.faults.meet(Command::Read, offset, buf.len() as u64)?;
        self.export.read_unless_zero(offset, buf)
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        if self.faults.concern_reads(offset, buf.len() as u64) {
            return None;
        }
        self.export.read_now(offset, buf)
    }

    fn may_block(&self) -> bool {
        true
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        self.faults
            .meet(Command::Write, offset, data.len() as u64)?;
        self.export.write(offset, data, fua)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.faults.meet(Command::WriteZeroes, offset, len)?;
        self.export.write_zeroes(offset, len, mode)
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.faults.meet(Command::Trim, offset, len)?;
        self.export.trim(offset, len, fua)
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.faults.meet(Command::Cache, offset, len)?;
        self.export.cache(offset, len)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.faults.meet(Command::Flush, 0, 0)?;
        self.export.flush()
    }

    fn finds_zeroes(&self) -> bool {
        self.export.finds_zeroes() && !self.faults.concern_reads(0, self.size())
    }

    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.faults.meet(Command::BlockStatus, offset, len)?;
        self.export.block_status(context, offset, len, each)
    }
}

#[cfg(test)]
mod tests;
