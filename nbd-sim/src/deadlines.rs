//! The time that operations may take, and answers that come in time.
//!
//! A time limit of a request is from when it is sent until its answer is there. It may wait as long
//! for others that change the same bytes, as long for a connection, and it is sent again with a new
//! limit when a connection is lost. The time for which the simulation holds the client up comes on
//! top, once, and so do ticks of timers.

use crate::{
    content::SECTOR,
    history::Kind,
    plan::{ClientPlan, Op},
    runtime::Sim,
};
use nbd_io::{client::Error, runtime::Runtime};
use nbd_proto::Command;
use std::{ops::Range, time::Duration};

/// Time limit of disconnecting.
const DISCONNECT: Duration = Duration::from_secs(5);

/// Number of waits of one operation, each of which may end with a tick.
const WAITS: u32 = 20;

/// Something that is to end in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    at: Duration,
    /// Connections that the program had lost by then.
    losses: u32,
}

impl Started {
    pub(crate) fn new(sim: &Sim, losses: u32) -> Self {
        let at = sim.now();
        Self { at, losses }
    }

    /// Compares the time until now with a limit. Hold-ups of the client's process do not count.
    fn exceeds(self, sim: &Sim, limit: Duration, what: &str) -> Option<String> {
        let took = sim.now() - self.at;
        let held = sim.held_since(self.at);
        let ticks = sim.tick() * WAITS;
        (took > limit + held + ticks)
            .then(|| format!("{what} took {took:?}, of which {held:?} held up, and not {limit:?}"))
    }

    /// A client was made, or could not be made.
    pub(crate) fn connected(self, sim: &Sim, plan: &ClientPlan) -> Option<String> {
        let each = plan.connect_timeout();
        let all = u32::try_from(plan.connections).map_or(Duration::MAX, |count| each * count);
        self.exceeds(sim, all, "connecting")
    }

    /// A client has disconnected.
    pub(crate) fn disconnected(self, sim: &Sim) -> Option<String> {
        self.exceeds(sim, DISCONNECT, "disconnecting")
    }

    /// An operation has ended, perhaps with an error.
    pub(crate) fn ended(
        self,
        sim: &Sim,
        plan: &ClientPlan,
        op: &Op,
        minimum: u64,
        losses: u32,
    ) -> Option<String> {
        let limit = plan.timeout * limits(plan, op, minimum, losses - self.losses);
        self.exceeds(sim, limit, &format!("{:?} {:?}", op.kind, op.sectors))
    }

    /// A request has timed out, and its answer had been there in time. `is_alone` is that of the
    /// history.
    pub(crate) fn had_answer(
        self,
        sim: &Sim,
        plan: &ClientPlan,
        op: &Op,
        error: &Error,
        is_alone: bool,
    ) -> Option<String> {
        let Error::Timeout { command, .. } = error else {
            return None;
        };
        let own = match op.kind {
            Kind::Read => Command::Read,
            Kind::Status => Command::BlockStatus,
            Kind::Write | Kind::WriteFua => Command::Write,
            Kind::Zero => Command::WriteZeroes,
            Kind::Trim => Command::Trim,
            Kind::Flush => Command::Flush,
        };
        if *command != own || !is_alone {
            return None;
        }
        // The answer may be one to an earlier change of the same bytes, which is replayed.
        let is_replayed = !matches!(op.kind, Kind::Read | Kind::Status | Kind::Flush);
        if is_replayed && plan.reconnects.is_some_and(|(kept, _)| kept > 0) {
            return None;
        }
        let bytes = match own {
            Command::Flush => 0..0,
            _ => bytes(&op.sectors),
        };
        let by = self.at + plan.timeout;
        sim.was_answered(*command, bytes, self.at, by).then(|| {
            let (kind, sectors) = (op.kind, &op.sectors);
            format!("{kind:?} {sectors:?} timed out, though its answer was there by {by:?}")
        })
    }
}

fn bytes(sectors: &Range<u64>) -> Range<u64> {
    sectors.start * SECTOR as u64..sectors.end * SECTOR as u64
}

/// The number of time limits of a request that an operation may take.
fn limits(plan: &ClientPlan, op: &Op, minimum: u64, losses: u32) -> u32 {
    let reconnects = plan.reconnects.is_some();
    let (link, attempts) = match (reconnects, plan.connections) {
        (false, 1) => (0, 1),
        (false, _) => (1, 1),
        (true, _) => (1, 1 + losses),
    };
    let request = link + attempts;
    let lock = u32::from(reconnects || minimum > 1);
    let keeps = plan.reconnects.is_some_and(|(kept, _)| kept > 0);
    // A change for which there is no memory is followed by a flush, of which another operation may
    // have the turn, and is sent again if a connection is lost before.
    let change = match keeps {
        true => (request + 1 + request) * attempts,
        false => request,
    };
    let range = bytes(&op.sectors);
    let is_whole = (range.start | range.end).is_multiple_of(minimum);
    match op.kind {
        Kind::Read | Kind::Flush => request,
        Kind::Write | Kind::WriteFua if !is_whole => lock + request + change,
        Kind::Write | Kind::WriteFua | Kind::Zero | Kind::Trim => lock + change,
        // Each request is about one block at least.
        Kind::Status => {
            let blocks = (range.end - range.start).div_ceil(minimum.max(SECTOR as u64));
            request * u32::try_from(blocks).unwrap_or(u32::MAX)
        }
    }
}
