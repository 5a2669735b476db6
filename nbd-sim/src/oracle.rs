//! The values that a disk may hold and a read may find, judged sector by sector.
//!
//! A *version* is one way in which a value got into a sector: an operation, the change of a
//! connection that its client had given up, or the value that a crash left. A read may find a
//! version unless that was begun after the read had ended, or another one has *superseded* it: one
//! that came after it for certain and was there for certain when the read began.
//!
//! One comes after another if it was begun when the other had ended, or, on clients that keep
//! changes of the same bytes in order, if it was begun after the other. One is there for certain
//! once it was answered, until a crash; and beyond that if it is durable, or if its client writes it
//! again, as far as this client's own reads are concerned.

use crate::{
    content::{UNKNOWN, Value, ZERO},
    history::{Domain, Events, Kind, Operation, Outcome, Time},
};

/// Finds the violations in a run.
#[must_use]
pub fn check(events: &Events) -> Vec<String> {
    let mut wrong = events.violations.clone();
    let last = events
        .operations
        .iter()
        .map(|operation| operation.sectors.end);
    for sector in 0..last.max().unwrap_or(0) {
        Sector::of(events, sector).check(&mut wrong);
    }
    wrong
}

/// One way in which a value got into a sector.
#[derive(Clone, Copy, Debug)]
struct Version<'a> {
    value: Value,
    begun: Time,
    /// When it was there if it ever was. A change that may come at any time has no end.
    ended: Option<Time>,
    operation: Option<&'a Operation>,
    is_left_by_crash: bool,
}

/// A read, or a crash, which looks at everything.
#[derive(Clone, Copy, Debug)]
struct Look {
    begun: Time,
    ended: Time,
    value: Value,
    /// Of which client; none if it is a crash or a snapshot.
    domain: Option<usize>,
    /// Whether it sees all that was answered before.
    is_flushed: bool,
}

struct Sector<'a> {
    events: &'a Events,
    number: u64,
    versions: Vec<Version<'a>>,
    reads: Vec<Look>,
}

impl<'a> Sector<'a> {
    fn of(events: &'a Events, number: u64) -> Self {
        let version = |value, begun, is_left_by_crash| Version {
            value,
            begun,
            ended: Some(begun),
            operation: None,
            is_left_by_crash,
        };
        let mut versions = vec![version(ZERO, 0, false)];
        let mut reads = Vec::new();
        let here = |operation: &&Operation| operation.sectors.contains(&number);
        for operation in events.operations.iter().filter(here) {
            match (operation.kind, operation.ended) {
                (Kind::Flush, _) => {}
                (Kind::Read | Kind::Status, Some(ended)) if operation.outcome == Outcome::Done => {
                    let at = usize::try_from(number - operation.sectors.start).unwrap_or(0);
                    let found = operation.read.get(at);
                    reads.extend(found.filter(|value| **value != UNKNOWN).map(|value| Look {
                        begun: operation.begun,
                        ended,
                        value: *value,
                        domain: Some(operation.domain),
                        is_flushed: false,
                    }));
                }
                (Kind::Read | Kind::Status, _) => {}
                (Kind::Write | Kind::WriteFua | Kind::Zero | Kind::Trim, ended) => {
                    versions.push(Version {
                        value: operation.value,
                        begun: operation.begun,
                        ended,
                        operation: Some(operation),
                        is_left_by_crash: false,
                    });
                }
            }
        }
        let ghosts = events.ghosts.iter().filter(|(_, at, _)| *at == number);
        versions.extend(ghosts.map(|(time, _, value)| version(*value, *time, false)));
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let left = events.crashes.iter();
        let left = left.filter_map(|(time, values)| Some((*time, *values.get(at)?)));
        versions.extend(left.map(|(time, value)| version(value, time, true)));
        Self {
            events,
            number,
            versions,
            reads,
        }
    }

    fn check(&self, wrong: &mut Vec<String>) {
        let number = self.number;
        for read in &self.reads {
            let value = read.value;
            if !self.may_find(read) {
                wrong.push(format!(
                    "sector {number}: the read of events {} to {} found {value}, which was \
                     superseded or never there",
                    read.begun, read.ended
                ));
            } else if self.has_come_back(read) {
                wrong.push(format!(
                    "sector {number}: the read of events {} to {} found {value} again, after \
                     another read had found something newer",
                    read.begun, read.ended
                ));
            }
        }
        for (time, values) in &self.events.crashes {
            let at = usize::try_from(number).unwrap_or(usize::MAX);
            let Some(value) = values.get(at).copied() else {
                continue;
            };
            let crash = Look {
                begun: *time,
                ended: *time,
                value,
                domain: None,
                is_flushed: false,
            };
            if !self.may_find(&crash) {
                wrong.push(format!(
                    "sector {number}: the crash at event {time} left {value}, which is older than \
                     what an answered flush or FUA covered"
                ));
            }
        }
        for (taken, values, is_flushed) in &self.events.snapshots {
            let at = usize::try_from(number).unwrap_or(usize::MAX);
            let Some(value) = values.get(at).copied() else {
                continue;
            };
            let snapshot = Look {
                begun: taken.start,
                ended: taken.end,
                value,
                domain: None,
                is_flushed: *is_flushed,
            };
            if !self.may_find(&snapshot) {
                wrong.push(format!(
                    "sector {number}: the snapshot of events {taken:?} has {value}, which was \
                     superseded or never there"
                ));
            }
        }
    }

    fn may_find(&self, look: &Look) -> bool {
        // A value that a crash left was there before.
        let there = self.versions.iter().filter(|version| {
            version.value == look.value && version.begun < look.ended && !version.is_left_by_crash
        });
        there.into_iter().any(|version| {
            let mut others = self.versions.iter();
            !others.any(|other| self.is_certain(other, look) && self.comes_after(other, version))
        })
    }

    /// Whether one version comes after another, in every order of carrying them out.
    fn comes_after(&self, one: &Version<'_>, other: &Version<'_>) -> bool {
        if one.is_left_by_crash && (one.value == other.value || self.is_kept(other)) {
            return false;
        }
        if other.ended.is_some_and(|ended| ended < one.begun) {
            return true;
        }
        match (one.operation, other.operation) {
            (Some(one), Some(other)) => {
                one.domain == other.domain
                    && self.domain(one.domain).is_ordered
                    && other.begun < one.begun
            }
            _ => false,
        }
    }

    /// Whether a version may be written again after a crash.
    fn is_kept(&self, version: &Version<'_>) -> bool {
        let operation = version.operation;
        operation.is_some_and(|operation| self.domain(operation.domain).keeps)
    }

    /// Whether a version was there when a look began, or something newer.
    fn is_certain(&self, version: &Version<'_>, look: &Look) -> bool {
        let Some(operation) = version.operation else {
            // A write of another sector may bring back a value that its client had read before the
            // crash.
            let lasts = version.is_left_by_crash && !self.events.rewrites;
            return lasts && version.begun < look.begun;
        };
        let is_answered = operation.outcome == Outcome::Done
            && operation.kind != Kind::Trim
            && operation.ended.is_some_and(|ended| ended < look.begun);
        if is_answered && self.is_durable(operation, look.begun) {
            return true;
        }
        let Some(reader) = look.domain else {
            return look.is_flushed
                && is_answered
                && !self.has_crashed(operation.begun, look.ended);
        };
        is_answered
            && match self.domain(operation.domain).keeps {
                // Others see older changes again while they are written once more.
                true => operation.domain == reader,
                false => !self.has_crashed(operation.begun, look.ended),
            }
    }

    /// Whether an answered operation had to be on stable storage.
    fn is_durable(&self, operation: &Operation, before: Time) -> bool {
        let Some(ended) = operation.ended else {
            return false;
        };
        let covers = |flush: &Operation| {
            flush.kind == Kind::Flush
                && flush.outcome == Outcome::Done
                && ended < flush.begun
                && flush.ended.is_some_and(|flushed| {
                    flushed < before
                        && (flush.domain == operation.domain && flush.since <= operation.begun
                            || !self.has_crashed(operation.begun, flushed))
                })
        };
        operation.kind == Kind::WriteFua || self.events.operations.iter().any(covers)
    }

    /// Whether a read finds a value that another one, which had ended before it began, no longer
    /// found.
    fn has_come_back(&self, read: &Look) -> bool {
        let value = read.value;
        let mut ghosts = self.events.ghosts.iter();
        let is_haunted = ghosts.any(|(_, at, _)| *at == self.number);
        let mut writers = self.versions.iter().filter_map(|version| version.operation);
        let writer = writers.find(|operation| operation.value == value);
        if value == ZERO
            || is_haunted
            || writer.is_some_and(|writer| self.may_go_back(writer, read))
        {
            return false;
        }
        let reads = || self.reads.iter().filter(|other| other.ended < read.begun);
        let written = self.versions.iter().find(|version| version.value == value);
        let written = written.and_then(|version| Some((version.begun, version.ended?)));
        let found = reads().filter(|other| other.value == value);
        let there = found.map(|other| (other.begun, other.ended)).chain(written);
        let mut there = there.filter(|(begun, _)| !self.has_crashed(*begun, read.ended));
        // While its own write is not answered, a client may find the value of before in between.
        let was_open = |other: &Look| {
            writer.is_some_and(|writer| {
                let is_answered = writer.ended.is_some_and(|ended| ended < other.begun);
                self.domain(writer.domain).keeps && !is_answered
            })
        };
        there.any(|(_, ended)| {
            let is_newer = |other: &Look| other.value != value && ended < other.begun;
            reads().any(|other| is_newer(other) && !was_open(other))
        })
    }

    /// Whether a client that writes its answered changes again may take back a value that a read
    /// has found: a change of its own that was not answered, or failed, or trimmed, since a disk may
    /// trim less the second time. Others may find the value of before, too.
    fn may_go_back(&self, writer: &Operation, read: &Look) -> bool {
        let is_open = |version: &Version<'_>| {
            version.operation.is_some_and(|other| {
                let is_done = other.outcome == Outcome::Done
                    && other.ended.is_some_and(|ended| ended < read.begun);
                other.domain == writer.domain && (!is_done || other.kind == Kind::Trim)
            })
        };
        self.domain(writer.domain).keeps
            && (read.domain != Some(writer.domain) || self.versions.iter().any(is_open))
    }

    fn has_crashed(&self, after: Time, before: Time) -> bool {
        let mut crashes = self.events.crashes.iter();
        crashes.any(|(time, _)| after < *time && *time < before)
    }

    fn domain(&self, number: usize) -> Domain {
        self.events.domains[number]
    }
}
