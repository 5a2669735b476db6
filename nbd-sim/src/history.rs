//! Operations of the clients with their answers, and changes of the disk, in the order of events.

use crate::{
    content::{SECTOR, Value, ZERO, decode},
    plan::BLOCK,
    runtime::lock,
};
use nbd_proto::{Errno, Failure};
use std::{collections::BTreeMap, ops::Range, sync::Mutex};

/// When something happened: the number of the event.
pub type Time = u64;

/// A client from one connect to its end: its promises hold for its own operations alone.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// The program.
    pub client: usize,
    /// Whether changes of the same bytes are carried out in the order in which they were begun.
    pub is_ordered: bool,
    /// Whether answered changes are written again after a crash.
    pub keeps: bool,
}

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A block status, which finds zeroes where it says that there are some.
    Status,
    /// A write.
    Write,
    /// A write that is on stable storage when it is answered.
    WriteFua,
    /// Zeroes.
    Zero,
    /// Trim: afterwards there are zeroes or the bytes of before.
    Trim,
    /// Flush.
    Flush,
}

impl Kind {
    /// Whether it changes the disk.
    #[must_use]
    pub const fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::WriteFua | Self::Zero | Self::Trim)
    }
}

/// The outcome of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success.
    Done,
    /// The server failed it; a part may have been carried out.
    Failed,
    /// It may be carried out at any time, or never.
    Unknown,
}

/// An operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Of which client.
    pub domain: usize,
    /// The kind.
    pub kind: Kind,
    /// Where.
    pub sectors: Range<u64>,
    /// The value that it writes.
    pub value: Value,
    /// When it was begun.
    pub begun: Time,
    /// When it was answered, or given up.
    pub ended: Option<Time>,
    /// The outcome.
    pub outcome: Outcome,
    /// The values that it has read, or zeroes that were reported to it.
    pub read: Vec<Value>,
    /// From when on begun writes are covered, if it is a flush.
    pub since: Time,
}

/// All that the oracle needs.
#[derive(Debug, Default)]
pub struct Events {
    /// The number of the last event.
    pub now: Time,
    /// Whether blocks are longer than sectors, so that a write of one sector writes others again.
    pub rewrites: bool,
    /// All clients.
    pub domains: Vec<Domain>,
    /// Their operations.
    pub operations: Vec<Operation>,
    /// Times at which the disk lost power, and its values afterwards.
    pub crashes: Vec<(Time, Vec<Value>)>,
    /// The values of snapshots, when they were taken, and whether they have to have all that was answered
    /// before.
    pub snapshots: Vec<(Range<Time>, Vec<Value>, bool)>,
    /// Changes that the server has carried out for connections that their clients had given up.
    pub ghosts: Vec<(Time, u64, Value)>,
    /// Violations that are wrong in any history.
    pub violations: Vec<String>,
    /// For each fault, the numbers of injections and of hits.
    pub coverage: BTreeMap<&'static str, (u64, u64)>,
}

/// The events of a run, while it goes on.
#[derive(Debug)]
pub struct History(Mutex<Events>);

impl History {
    /// Nothing yet. `rewrites` says whether blocks are longer than sectors.
    #[must_use]
    pub fn new(rewrites: bool) -> Self {
        Self(Mutex::new(Events {
            rewrites,
            ..Events::default()
        }))
    }

    /// The number of an event that happens now.
    pub fn now(&self) -> Time {
        let mut events = lock(&self.0);
        events.now += 1;
        events.now
    }

    /// A client begins.
    pub fn domain(&self, domain: Domain) -> usize {
        let mut events = lock(&self.0);
        events.domains.push(domain);
        events.domains.len() - 1
    }

    /// An operation is about to be begun. Returns its number.
    pub fn begin(&self, domain: usize, kind: Kind, sectors: Range<u64>, since: Time) -> usize {
        let begun = self.now();
        let mut events = lock(&self.0);
        let number = events.operations.len();
        let value = match kind {
            Kind::Write | Kind::WriteFua => number as Value + 1,
            _ => ZERO,
        };
        events.operations.push(Operation {
            domain,
            kind,
            sectors,
            value,
            begun,
            ended: None,
            outcome: Outcome::Unknown,
            read: Vec::new(),
            since,
        });
        number
    }

    /// An operation was answered.
    pub fn end(&self, number: usize, outcome: Outcome, read: Vec<Value>) {
        let now = self.now();
        let mut events = lock(&self.0);
        let operation = &mut events.operations[number];
        operation.outcome = outcome;
        operation.read = read;
        // An operation that may still be carried out has no end.
        operation.ended = (outcome != Outcome::Unknown).then_some(now);
    }

    /// Number of operations without an answer.
    pub fn in_flight(&self) -> usize {
        let events = lock(&self.0);
        let open = |operation: &&Operation| operation.ended.is_none();
        events.operations.iter().filter(open).count()
    }

    /// Whether none of the requests of other operations of the same program, since this one was begun,
    /// can be taken for its own, and it had to wait for none of them.
    pub fn is_alone(&self, number: usize) -> bool {
        let events = lock(&self.0);
        let own = &events.operations[number];
        let client = |operation: &Operation| events.domains[operation.domain].client;
        // The blocks that sectors are in.
        let blocks = |operation: &Operation| {
            let sectors = &operation.sectors;
            sectors.start / BLOCK..sectors.end.div_ceil(BLOCK)
        };
        let is_related = |other: &Operation| {
            let (ours, theirs) = (blocks(own), blocks(other));
            (other.kind == own.kind || other.kind.is_change())
                && (own.kind == Kind::Flush || theirs.start < ours.end && ours.start < theirs.end)
        };
        let mut others = (0..).zip(&events.operations);
        !others.any(|(at, other)| {
            at != number
                && client(other) == client(own)
                && other.ended.is_none_or(|ended| ended > own.begun)
                && is_related(other)
        })
    }

    /// The disk lost power.
    pub fn crash(&self, values: Vec<Value>) {
        let now = self.now();
        lock(&self.0).crashes.push((now, values));
    }

    /// A snapshot was read, that was taken within this time.
    pub fn snapshot(&self, taken: Range<Time>, values: Vec<Value>, is_flushed: bool) {
        lock(&self.0).snapshots.push((taken, values, is_flushed));
    }

    /// The server has changed a sector for a connection that its client has given up. The protocol
    /// has no way to keep it from that.
    pub fn ghost(&self, sector: u64, value: Value) {
        let now = self.now();
        lock(&self.0).ghosts.push((now, sector, value));
    }

    /// Something happened that must not happen.
    pub fn violation(&self, what: String) {
        lock(&self.0).violations.push(what);
    }

    /// The contents of sectors that a server writes. Fails where no client has written them.
    pub(crate) fn written(&self, sectors: Range<u64>, data: &[u8]) -> Result<Vec<Value>, Failure> {
        let sectors = sectors.zip(data.chunks(SECTOR));
        let values = sectors.map(|(at, bytes)| {
            decode(at, bytes).ok_or_else(|| {
                self.violation(format!(
                    "sector {at}: the server writes what no client wrote"
                ));
                Errno::Io.into()
            })
        });
        values.collect()
    }

    /// A fault was injected, and whether it hit something that was in flight.
    pub fn inject(&self, fault: &'static str, hits: bool) {
        let mut events = lock(&self.0);
        let (injected, hit) = events.coverage.entry(fault).or_default();
        *injected += 1;
        *hit += u64::from(hits);
    }

    /// A fault that was injected before hits.
    pub fn hit(&self, fault: &'static str) {
        lock(&self.0).coverage.entry(fault).or_default().1 += 1;
    }

    /// Everything, when the run has ended.
    #[must_use]
    pub fn take(&self) -> Events {
        std::mem::take(&mut lock(&self.0))
    }
}
