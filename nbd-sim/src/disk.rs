//! A disk with a volatile cache, of which a crash keeps as little as it may.

use crate::{
    content::{SECTOR, Value, ZERO, encode, sectors},
    history::History,
    runtime::{Sim, lock},
};
use fastrand::Rng;
use nbd_io::{Export, ZeroMode};
use nbd_proto::{
    BlockSizes, Errno, Failure, TransmissionFlags,
    meta::{Allocation, Extent},
};
use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Properties of a disk.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    /// Its size in sectors.
    pub sectors: u64,
    /// Number of sectors that a crash leaves all old or all new.
    pub atomic: u64,
    /// The minimum block size that it announces, in bytes.
    pub minimum: u32,
    /// The maximum block size that it announces, in bytes.
    pub maximum: u32,
    /// Whether its calls wait, and so need other threads.
    pub may_block: bool,
    /// Limit of the time that a call takes.
    pub latency: Duration,
    /// Whether trimmed sectors read as zeroes, or as before.
    pub trim_zeroes: bool,
}

/// The disk, which outlives the servers that export it.
#[derive(Debug)]
pub struct Disk {
    plan: DiskPlan,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sectors: Vec<Sector>,
    stamp: u64,
    fails: Vec<Fails>,
}

#[derive(Clone, Debug, Default)]
struct Sector {
    durable: Value,
    /// Values written since, each with a stamp.
    cached: Vec<(u64, Value)>,
}

impl Sector {
    fn value(&self) -> Value {
        self.cached.last().map_or(self.durable, |(_, value)| *value)
    }

    /// Makes everything durable that is not younger than a stamp.
    fn sync(&mut self, stamp: u64) {
        let older = self.cached.partition_point(|(at, _)| *at <= stamp);
        if let Some((_, value)) = self.cached.drain(..older).next_back() {
            self.durable = value;
        }
    }
}

/// A failure of the disk's that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// A sync, after which nothing is promised.
    Sync,
    /// A write, a part of which may be carried out.
    Write,
    /// A write that finds no space.
    Space,
    /// A read.
    Read,
}

impl Fails {
    /// Its name among the faults.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sync => "failing sync",
            Self::Write => "failing write",
            Self::Space => "no space",
            Self::Read => "failing read",
        }
    }
}

impl Disk {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(plan: DiskPlan) -> Self {
        let sectors = usize::try_from(plan.sectors).unwrap_or(usize::MAX);
        let state = State {
            sectors: vec![Sector::default(); sectors],
            ..State::default()
        };
        Self {
            plan,
            state: Mutex::new(state),
        }
    }

    /// Has a call fail that is to come.
    pub fn fail(&self, what: Fails) {
        lock(&self.state).fails.push(what);
    }

    /// No failure is to come any more. Those that came to nothing.
    pub fn heal(&self) -> Vec<Fails> {
        std::mem::take(&mut lock(&self.state).fails)
    }

    /// Ends a process by `ends`, between its calls.
    pub fn end(&self, ends: impl FnOnce()) {
        let _state = lock(&self.state);
        ends();
    }

    /// Loses power, and with that the process that `ends`. Each atomic unit keeps its durable value, or its value at some time since.
    /// Returns the remaining values, and the number of sectors that lost something.
    pub fn crash(&self, rng: &mut Rng, ends: impl FnOnce()) -> (Vec<Value>, usize) {
        let mut state = lock(&self.state);
        ends();
        let loses_all = rng.bool();
        let mut lost = 0;
        let unit = usize::try_from(self.plan.atomic).unwrap_or(1);
        for sectors in state.sectors.chunks_mut(unit) {
            let stamps = sectors.iter().flat_map(|sector| &sector.cached);
            let mut stamps: Vec<_> = stamps.map(|(stamp, _)| *stamp).collect();
            stamps.push(0);
            let stamp = match loses_all {
                true => 0,
                false => rng.choice(stamps).unwrap_or(0),
            };
            for sector in sectors {
                let before = sector.value();
                sector.sync(stamp);
                sector.cached.clear();
                lost += usize::from(sector.durable != before);
            }
        }
        let values = state.sectors.iter().map(|sector| sector.durable);
        (values.collect(), lost)
    }
}

/// The process of a server.
pub trait Process: fmt::Debug + Send + Sync + 'static {
    /// Lets the seed decide.
    fn random<T>(&self, decide: impl FnOnce(&mut Rng) -> T) -> T;

    /// Waits in the middle of a call.
    fn wait_in_place(&self, time: Duration);

    /// Whether it was ended, after which it changes nothing.
    fn is_dead(&self) -> bool;

    /// The connection that the current call is for, and whether its client has given it up; `None`
    /// if the process cannot know.
    fn connection(&self) -> Option<(usize, bool)>;

    /// Logs an event.
    fn log(&self, what: impl FnOnce() -> String);
}

impl Process for Sim {
    fn random<T>(&self, decide: impl FnOnce(&mut Rng) -> T) -> T {
        self.random(decide)
    }

    fn wait_in_place(&self, time: Duration) {
        self.wait_in_place(time);
    }

    fn is_dead(&self) -> bool {
        self.is_dead()
    }

    fn connection(&self) -> Option<(usize, bool)> {
        let connection = self.connection()?;
        Some((connection, self.is_given_up(connection)))
    }

    fn log(&self, what: impl FnOnce() -> String) {
        self.log(what);
    }
}

/// A disk as one server process sees it.
#[derive(Debug)]
pub struct Mounted<P> {
    /// The disk.
    pub disk: Arc<Disk>,
    /// The process.
    pub process: P,
    /// Record for the oracle.
    pub history: Arc<History>,
}

impl<P: Process> Mounted<P> {
    /// Waits as long as a call takes. Fails if the process is ended meanwhile.
    fn wait(&self) -> Result<(), Failure> {
        let most = u64::try_from(self.disk.plan.latency.as_micros()).unwrap_or(0);
        let time = self.process.random(|rng| rng.u64(..=most));
        // Most requests are quick, some are not.
        let time = time >> self.process.random(|rng| rng.u32(..8));
        self.process.wait_in_place(Duration::from_micros(time));
        if self.process.is_dead() {
            return Err(Errno::Io.into());
        }
        Ok(())
    }

    /// Whether a call of this kind is to fail.
    fn fails(&self, kinds: &[Fails]) -> Option<Fails> {
        let mut state = lock(&self.disk.state);
        let at = state.fails.iter().position(|fails| kinds.contains(fails))?;
        let fails = state.fails.remove(at);
        drop(state);
        self.process
            .log(|| format!("disk: a call fails: {fails:?}"));
        self.history.hit(fails.name());
        Some(fails)
    }

    /// Writes, in up to two parts, between which anything may happen. `value` returns the new value
    /// of a sector, if that is to change.
    fn change(
        &self,
        sectors: Range<u64>,
        fua: bool,
        value: impl Fn(u64) -> Option<Value>,
    ) -> Result<(), Failure> {
        if self.process.is_dead() {
            return Err(Errno::Io.into());
        }
        let fails = self.fails(&[Fails::Write, Fails::Space]);
        let stamp = {
            let mut state = lock(&self.disk.state);
            state.stamp += 1;
            state.stamp
        };
        let middle = self
            .process
            .random(|rng| rng.u64(sectors.start..=sectors.end));
        // An atomic unit is written in one piece.
        let middle = (middle / self.disk.plan.atomic * self.disk.plan.atomic).max(sectors.start);
        self.apply(sectors.start..middle, stamp, &value);
        self.wait()?;
        if let Some(fails) = fails {
            return Err(match fails {
                Fails::Space => Errno::NoSpc.into(),
                _ => Errno::Io.into(),
            });
        }
        self.apply(middle..sectors.end, stamp, &value);
        if fua {
            self.wait()?;
            if self.fails(&[Fails::Sync]).is_some() {
                return Err(Errno::Io.into());
            }
            let mut state = lock(&self.disk.state);
            if self.process.is_dead() {
                return Err(Errno::Io.into());
            }
            for sector in &mut state.sectors[indices(&sectors)] {
                sector.sync(u64::MAX);
            }
        }
        Ok(())
    }

    fn apply(&self, sectors: Range<u64>, stamp: u64, value: &impl Fn(u64) -> Option<Value>) {
        let connection = self.process.connection();
        let is_ghost = connection.is_some_and(|(_, is_given_up)| is_given_up);
        for at in sectors {
            let Some(value) = value(at) else { continue };
            let mut state = lock(&self.disk.state);
            if self.process.is_dead() {
                return;
            }
            let sector = &mut state.sectors[indices(&(at..at + 1))][0];
            sector.cached.push((stamp.max(sector.stamp()), value));
            drop(state);
            self.process
                .log(|| format!("disk: sector {at} = {value}, connection {connection:?}"));
            if is_ghost {
                self.history.ghost(at, value);
            }
        }
    }
}

impl Sector {
    /// The stamp of its value: they never go down, so that the durable values are a prefix.
    fn stamp(&self) -> u64 {
        self.cached.last().map_or(0, |(stamp, _)| *stamp)
    }
}

fn indices(sectors: &Range<u64>) -> Range<usize> {
    let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
    index(sectors.start)..index(sectors.end)
}

impl<P: Process> Export for Mounted<P> {
    fn size(&self) -> u64 {
        self.disk.plan.sectors * SECTOR as u64
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::CAN_MULTI_CONN
    }

    fn block_sizes(&self) -> BlockSizes {
        let DiskPlan {
            minimum, maximum, ..
        } = self.disk.plan;
        BlockSizes::new(minimum, minimum.max(512), maximum).unwrap_or(BlockSizes::UNKNOWN)
    }

    fn may_block(&self) -> bool {
        self.disk.plan.may_block
    }

    fn refresh_may_block(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        if self.fails(&[Fails::Read]).is_some() {
            return Err(Errno::Io.into());
        }
        let sectors = sectors(offset, buf.len() as u64);
        let middle = self
            .process
            .random(|rng| rng.u64(sectors.start..=sectors.end));
        for (at, buf) in sectors.zip(buf.chunks_mut(SECTOR)) {
            if at == middle {
                self.wait()?;
            }
            let state = lock(&self.disk.state);
            let value = state.sectors[indices(&(at..at + 1))][0].value();
            encode(value, at, buf);
        }
        Ok(())
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        // The server may ask for a part of a block that is read.
        let block = u64::from(self.disk.plan.minimum).max(SECTOR as u64);
        let is_whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
        let unit = if is_whole { block } else { SECTOR as u64 };
        let is_zero = |at: u64| {
            let state = lock(&self.disk.state);
            let sectors = &state.sectors[indices(&sectors(at, unit))];
            sectors.iter().all(|sector| sector.value() == ZERO)
        };
        let first = is_zero(offset);
        let middle = self.process.random(|rng| rng.u64(..=len / unit)) * unit;
        let mut known = unit;
        while known < len {
            if known == middle {
                self.wait()?;
            }
            if is_zero(offset + known) != first {
                break;
            }
            known += unit;
        }
        Ok(Extent {
            len: known.min(len),
            status: match first {
                true => Allocation::HOLE | Allocation::ZERO,
                false => 0,
            },
        })
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let sectors = sectors(offset, data.len() as u64);
        let values = self.history.written(sectors.clone(), data)?;
        let first = sectors.start;
        let value = |at| values.get(usize::try_from(at - first).ok()?).copied();
        self.change(sectors, fua, value)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.change(sectors(offset, len), mode.fua, |_| Some(ZERO))
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        let trims = self.disk.plan.trim_zeroes;
        self.change(sectors(offset, len), fua, |_| trims.then_some(ZERO))
    }

    fn flush(&self) -> Result<(), Failure> {
        let stamp = lock(&self.disk.state).stamp;
        self.wait()?;
        if self.fails(&[Fails::Sync]).is_some() {
            return Err(Errno::Io.into());
        }
        let mut state = lock(&self.disk.state);
        if self.process.is_dead() {
            return Err(Errno::Io.into());
        }
        state
            .sectors
            .iter_mut()
            .for_each(|sector| sector.sync(stamp));
        drop(state);
        self.process
            .log(|| format!("disk: flushed all up to write {stamp}"));
        Ok(())
    }
}
