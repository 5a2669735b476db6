//! A run as a plan that a seed makes, from which faults and operations can be left out.

use crate::{
    disk::{DiskPlan, Fails},
    history::Kind,
    network::Cut,
    object::ObjectPlan,
};
use fastrand::Rng;
use std::{collections::BTreeSet, fmt, ops::Range, time::Duration};

/// Number of sectors that each client writes to: few, so that operations meet.
pub const REGION: u64 = 24;

/// The sectors of a block of the largest minimum size.
pub(crate) const BLOCK: u64 = 8;

/// Runs on an object store are longer by this factor.
const SLOWER: u32 = 4;

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of the schedule and of delays.
    pub seed: u64,
    /// The disk.
    pub disk: DiskPlan,
    /// The store that the disk is on, if it is on one.
    pub object: Option<ObjectPlan>,
    /// Least and greatest time for which bytes are under way.
    pub latency: (Duration, Duration),
    /// Limit of bytes under way in one direction of a connection.
    pub capacity: usize,
    /// Into how short pieces reads and writes are cut.
    pub chop: usize,
    /// The tick with which timers end; none at their very time.
    pub tick: Duration,
    /// Limit of requests of a connection that the server carries out at once.
    pub concurrency: usize,
    /// For how long clients of the server may be silent.
    pub idle_timeout: Option<Duration>,
    /// The clients.
    pub clients: Vec<ClientPlan>,
    /// Faults, and their times.
    pub faults: Vec<(Duration, Fault)>,
    /// When nothing goes wrong any more, but for tasks that are held up.
    pub heals: Duration,
    /// Whether clients never learn of a connection that was cut without a word, as if their systems
    /// waited for hours.
    pub stays_silent: bool,
    /// Whether the disk loses power when all is done.
    pub ends_with_crash: bool,
}

/// A client.
#[derive(Clone, Debug)]
pub struct ClientPlan {
    /// Number of connections that it wants.
    pub connections: usize,
    /// Whether it connects again by itself, with how much memory for unflushed writes, and how often.
    pub reconnects: Option<(u64, Option<u32>)>,
    /// Time limit of a request.
    pub timeout: Duration,
    /// Whether it asks for extended headers and structured replies.
    pub style: (bool, bool),
    /// The operations of each of its tasks.
    pub tasks: Vec<Vec<Op>>,
}

/// An operation of a task.
#[derive(Clone, Debug)]
pub struct Op {
    /// Pause of the task before it.
    pub pause: Duration,
    /// Its kind.
    pub kind: Kind,
    /// Where.
    pub sectors: Range<u64>,
    /// After how many polls it is dropped.
    pub dropped_after: Option<u32>,
    /// Its number in the plan.
    pub number: usize,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A connection is cut.
    Cut(Cut),
    /// A direction of a connection stands still.
    Stall(Duration),
    /// The server's process is killed.
    Kill {
        /// For how long there is none.
        down: Duration,
    },
    /// The server's machine loses power.
    Crash {
        /// For how long it is down.
        down: Duration,
        /// Whether clients are not sent anything for as long.
        silent: bool,
    },
    /// The server is stopped in order.
    Stop {
        /// Time until there is another one.
        down: Duration,
    },
    /// The server accepts no connection for a while.
    AcceptLate(Duration),
    /// Nothing answers who connects, for a while.
    Deaf(Duration),
    /// The disk fails a call.
    Disk(Fails),
    /// A client is made to connect again.
    ReconnectNow(usize),
    /// A task of a client or of the server is not polled for a while.
    HoldUp {
        /// Whether its whole process stands still.
        whole_process: bool,
        /// For how long.
        time: Duration,
    },
}

pub(crate) fn ms(range: Range<u64>, rng: &mut Rng) -> Duration {
    Duration::from_micros(rng.u64(range.start * 1000..range.end * 1000))
}

impl Plan {
    /// The plan that a seed makes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x5eed);
        let rng = &mut rng;
        let clients = *pick(rng, &[1_u64, 1, 2, 3]);
        let minimum = *pick(rng, &[1, 1, 512, 4096]);
        let heals = ms(20..300, rng);
        let mut plan = Self {
            seed,
            disk: DiskPlan {
                sectors: clients * REGION,
                atomic: *pick(rng, &[1, BLOCK]),
                minimum,
                maximum: *pick(rng, &[4096, 65_536, 1 << 20]),
                may_block: rng.u8(..4) > 0,
                latency: ms(0..20, rng),
                trim_zeroes: rng.bool(),
            },
            object: None,
            latency: (
                Duration::from_micros(rng.u64(0..200)),
                Duration::from_micros(rng.u64(200..3000)),
            ),
            capacity: *pick(rng, &[100, 4096, 65_536, 1 << 20]),
            chop: *pick(rng, &[40, 1000, usize::MAX, usize::MAX]),
            tick: *pick(rng, &[Duration::ZERO, Duration::from_millis(1)]),
            concurrency: *pick(rng, &[1, 4, 16]),
            idle_timeout: rng.bool().then(|| ms(500..2000, rng)),
            clients: Vec::new(),
            faults: Vec::new(),
            heals,
            stays_silent: rng.bool(),
            ends_with_crash: rng.bool(),
        };
        let clients = usize::try_from(clients).unwrap_or(1);
        let mut faults: Vec<_> = (0..rng.usize(..8)).map(|_| fault(rng, clients)).collect();
        // Tasks are held up in every second run, whatever else happens.
        faults.extend((0..rng.usize(..6).saturating_sub(2)).map(|_| hold_up(rng)));
        let time = |rng: &mut Rng| ms(1..20, rng).max(heals.mul_f64(rng.f64()));
        plan.faults = faults.into_iter().map(|fault| (time(rng), fault)).collect();
        plan.faults.sort_by_key(|(at, _)| *at);
        let mut number = plan.faults.len();
        for client in 0..clients {
            let plan_of_client = plan.client(client, rng, &mut number);
            plan.clients.push(plan_of_client);
        }
        plan
    }

    /// The same with the disk on an object store.
    #[must_use]
    pub fn on_object_store(mut self) -> Self {
        self.object = Some(ObjectPlan::new(self.seed));
        // Parts of its blocks are completed where they are stored.
        self.disk.minimum = 512;
        // Opening it takes a dozen requests, so that everything takes longer.
        self.heals *= SLOWER;
        self.faults.iter_mut().for_each(|(at, _)| *at *= SLOWER);
        let tasks = self.clients.iter_mut().flat_map(|client| &mut client.tasks);
        tasks.flatten().for_each(|op| op.pause *= SLOWER);
        self
    }

    fn client(&self, client: usize, rng: &mut Rng, number: &mut usize) -> ClientPlan {
        let tasks = (0..rng.usize(1..5)).map(|_| {
            let ops = 0..rng.usize(2..16);
            ops.map(|_| {
                let own = client as u64 * REGION;
                *number += 1;
                self.op(rng, own, *number - 1)
            })
            .collect()
        });
        let tasks = tasks.collect();
        let kept = *pick(rng, &[0, 0, 3000, 1 << 20, 1 << 20]);
        let attempts = *pick(rng, &[None, None, None, Some(2)]);
        ClientPlan {
            connections: *pick(rng, &[1, 1, 2, 3]),
            reconnects: (rng.u8(..5) > 0).then_some((kept, attempts)),
            timeout: ms(30..1000, rng),
            style: (rng.bool(), rng.u8(..4) > 0),
            tasks,
        }
    }

    fn op(&self, rng: &mut Rng, own: u64, number: usize) -> Op {
        use Kind::{Flush, Read, Status, Trim, Write, WriteFua, Zero};
        let kinds = [
            Read, Read, Read, Read, Status, Status, Write, Write, Write, Write, Write, WriteFua,
            Zero, Zero, Trim, Flush, Flush,
        ];
        let kind = *pick(rng, &kinds);
        let start = rng.u64(..REGION);
        let mut end = REGION.min(start + rng.u64(1..=12));
        let mut start = start;
        if self.disk.minimum > 512 {
            // Either a part of one block, or whole ones: within a block, parts are written one
            // after the other, and their order is not that in which operations were begun. Trims,
            // zeroes and statuses of parts are refused.
            let is_whole = matches!(kind, Zero | Trim | Status) || rng.bool();
            if is_whole {
                (start, end) = (start / BLOCK * BLOCK, end.div_ceil(BLOCK) * BLOCK);
            } else {
                end = end.min((start / BLOCK + 1) * BLOCK);
            }
        }
        let offset = match kind {
            Read | Status if rng.u8(..4) == 0 => rng.u64(..self.disk.sectors / REGION) * REGION,
            _ => own,
        };
        Op {
            pause: ms(0..8, rng) / (1 << rng.u32(..6)),
            kind,
            sectors: match kind {
                Flush => 0..0,
                _ => offset + start..offset + end,
            },
            dropped_after: (rng.u8(..12) == 0).then(|| rng.u32(..6)),
            number,
        }
    }

    /// Number of faults and operations, by whose numbers they are left out.
    #[must_use]
    pub fn items(&self) -> usize {
        let tasks = self.clients.iter().flat_map(|client| &client.tasks);
        self.faults.len() + tasks.map(Vec::len).sum::<usize>()
    }

    /// The same without some faults and operations.
    #[must_use]
    pub fn without(mut self, left_out: &BTreeSet<usize>) -> Self {
        let mut number = 0;
        self.faults.retain(|_| {
            number += 1;
            !left_out.contains(&(number - 1))
        });
        for client in &mut self.clients {
            for task in &mut client.tasks {
                task.retain(|op| !left_out.contains(&op.number));
            }
        }
        self
    }
}

impl ClientPlan {
    /// Time limit of making a connection, all of it.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.timeout * 2
    }
}

fn pick<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[rng.usize(..of.len())]
}

fn fault(rng: &mut Rng, clients: usize) -> Fault {
    match rng.u8(..19) {
        0..3 => Fault::Cut(Cut::Reset),
        3..5 => Fault::Cut(Cut::Silent),
        5 => Fault::Cut(Cut::HalfFromServer),
        6 => Fault::Cut(Cut::HalfFromClient),
        7 => Fault::Stall(ms(1..300, rng)),
        8 => Fault::Kill {
            down: ms(0..100, rng),
        },
        9..12 => Fault::Crash {
            down: ms(0..100, rng),
            silent: rng.bool(),
        },
        12 => Fault::Stop {
            down: ms(0..50, rng),
        },
        13 => Fault::AcceptLate(ms(1..200, rng)),
        14 => Fault::Deaf(ms(1..200, rng)),
        15 => Fault::Disk(Fails::Sync),
        16 => Fault::Disk(Fails::Write),
        17 => Fault::Disk(*pick(rng, &[Fails::Read, Fails::Space])),
        _ => Fault::ReconnectNow(rng.usize(..clients)),
    }
}

/// Most are as long as a deadline, some as long as many of them.
fn hold_up(rng: &mut Rng) -> Fault {
    Fault::HoldUp {
        whole_process: rng.bool(),
        time: ms(1..400, rng) * (1 << rng.u32(..7)),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Some(object) => writeln!(f, "seed {}: {object:?}", self.seed)?,
            None => writeln!(f, "seed {}: {:?}", self.seed, self.disk)?,
        }
        writeln!(
            f,
            "  latency {:?}, capacity {}, pieces up to {}, tick {:?}, concurrency {}, idle timeout \
             {:?}, stays silent {}",
            self.latency,
            self.capacity,
            self.chop,
            self.tick,
            self.concurrency,
            self.idle_timeout,
            self.stays_silent
        )?;
        for (at, fault) in &self.faults {
            writeln!(f, "  at {at:?}: {fault:?}")?;
        }
        writeln!(f, "  all is well from {:?} on", self.heals)?;
        for (at, client) in self.clients.iter().enumerate() {
            let ClientPlan {
                connections,
                reconnects,
                timeout,
                style,
                tasks,
            } = client;
            let ops: Vec<_> = tasks.iter().map(Vec::len).collect();
            writeln!(
                f,
                "  client {at}: {connections} connections, reconnects {reconnects:?}, timeout \
                 {timeout:?}, style {style:?}, operations of its tasks {ops:?}"
            )?;
        }
        Ok(())
    }
}
