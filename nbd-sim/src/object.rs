//! A disk on an object store that is far, slow and not reliable, in place of the one in memory.
//!
//! The store is a process of its own: a request that has been sent is carried out even if its sender
//! is dead by then, and may be carried out without an answer. The contents after a crash are known when the
//! next server has opened the disk, before that serves any client.

mod maintenance;
mod store;

pub use maintenance::Work;

use self::{maintenance::Maintenance, store::Store};
use crate::{
    content::{SECTOR, Value, ZERO, decode, sectors},
    history::History,
    plan::ms,
    runtime::{Group, Sim, lock},
};
use bytes::Bytes;
use fastrand::Rng;
use nbd_io::{
    AsyncExport, ReadData, ZeroMode,
    runtime::{Runtime, Tasks},
};
use nbd_object::{Disk, Error, Layout, Location, Options, Retry};
use nbd_proto::{BlockSizes, Failure, TransmissionFlags, meta::Extent};
use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Properties of the store, and of servers that use it.
#[derive(Clone, Debug)]
pub struct ObjectPlan {
    /// Limit of the time that a request is under way, each way.
    pub latency: Duration,
    /// Requests that are refused for now, or fail before they are carried out, in percent.
    pub failures: u32,
    /// Changes whose answer is lost, in percent.
    pub lost_replies: u32,
    /// Limit of attempts of a request.
    pub attempts: u32,
    /// The time after which commits of a server that is killed go on, as if it had only been cut off
    /// and held up. They end with it if there is none.
    pub zombies_after: Option<Duration>,
    /// Age from which garbage is deleted.
    pub horizon: Duration,
    /// Maintenance while the disk is served, with the pause before each step.
    pub work: Vec<(Duration, Work)>,
}

impl ObjectPlan {
    /// The plan that a seed makes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed ^ 0x0b1ec7);
        let mut plan = Self {
            latency: ms(0..6, rng),
            failures: [0, 5, 25][rng.usize(..3)],
            lost_replies: [0, 5, 25][rng.usize(..3)],
            attempts: rng.u32(3..10),
            zombies_after: rng.bool().then_some(Duration::ZERO),
            horizon: Duration::from_millis([0, 20, 500][rng.usize(..3)]),
            work: Work::plan(rng),
        };
        // Half of them go on when the next server has the disk for sure.
        if rng.bool() {
            plan.zombies_after = plan.zombies_after.map(|_| ms(50..2000, rng));
        }
        plan
    }

    fn options(&self) -> Options {
        let mut retry = Retry::default();
        retry.attempts = self.attempts;
        retry.backoff = Duration::from_millis(5);
        Options::new()
            .cache_size(16 << 10)
            .horizon(self.horizon)
            .retry(retry)
    }
}

/// The store with the disk, which outlives the servers that export it.
#[derive(Clone, Debug)]
pub struct Place {
    plan: ObjectPlan,
    sectors: u64,
    store: Store,
    history: Arc<History>,
    nonces: Arc<Mutex<Rng>>,
    maintenance: Arc<Mutex<Maintenance>>,
}

impl Place {
    /// A store without a disk.
    #[must_use]
    pub fn new(plan: ObjectPlan, sectors: u64, sim: &Sim, history: Arc<History>) -> Self {
        let store = Store::new(plan.clone(), sim.in_group(Group(0)), history.clone());
        let nonces = Rng::with_seed(sim.random(|rng| rng.u64(..)));
        Self {
            maintenance: Arc::new(Mutex::new(Maintenance::new(&plan))),
            plan,
            sectors,
            store,
            history,
            nonces: Arc::new(Mutex::new(nonces)),
        }
    }

    /// All requests are refused for a while.
    pub fn refuse_for(&self, time: Duration) {
        self.store.refuse_for(time);
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.store.heal();
    }

    /// The time after which commits of a server that is killed go on, if they do.
    #[must_use]
    pub const fn zombies_after(&self) -> Option<Duration> {
        self.plan.zombies_after
    }

    /// The place of the disk, with tasks of a process.
    fn location(&self, process: &Sim) -> Location {
        let nonces = self.nonces.clone();
        Location::new(Arc::new(self.store.clone()), "disk", process.clone())
            .nonces(move || lock(&nonces).u64(..))
    }

    /// Opens the disk for a server, as often as it takes, and makes it if there is none. Commits are
    /// tasks of `writer`.
    pub async fn mount(&self, server: &Sim, writer: &Sim) -> OnStore {
        let at = self.location(writer);
        loop {
            match self.open(&at).await {
                Ok(disk) => {
                    let (place, process, served) = (self.clone(), server.clone(), disk.clone());
                    // Two programs, so that a snapshot is taken while garbage is collected.
                    for _ in 0..2 {
                        let (place, process) = (place.clone(), process.clone());
                        let served = served.clone();
                        server.spawn(async move {
                            let at = place.location(&process);
                            place.maintain(&process, &at, &served).await;
                        });
                    }
                    return OnStore {
                        disk,
                        sim: server.clone(),
                        history: self.history.clone(),
                    };
                }
                // The store fails, or the server before this one was about to open the disk.
                Err(
                    error @ (Error::Store { .. } | Error::NoAnswer { .. } | Error::Fenced { .. }),
                ) => {
                    server.log(|| format!("the disk is not opened: {error}"));
                }
                Err(error) => {
                    let what = format!("the disk cannot be opened: {error}");
                    self.history.violation(what);
                }
            }
            server.sleep(Duration::from_millis(5)).await;
        }
    }

    async fn open(&self, at: &Location) -> Result<Disk, Error> {
        let disk = match at.open(self.plan.options()).await {
            Err(Error::NotFound(_)) => {
                let layout = Layout::default().block_size(4096);
                match at.create(self.sectors * SECTOR as u64, layout).await {
                    Ok(()) | Err(Error::AlreadyExists(_)) => {}
                    Err(error) => return Err(error),
                }
                at.open(self.plan.options()).await?
            }
            opened => opened?,
        };
        let len = usize::try_from(disk.size()).unwrap_or(0);
        let data = disk.read(0, len).await?;
        let mut bytes = vec![0; len];
        data.copy_to_slice(&mut bytes);
        let values = decoded(&bytes, &self.history, "a crash left");
        self.history.crash(values);
        Ok(disk)
    }
}

/// The values of all sectors.
fn decoded(bytes: &[u8], history: &History, who: &str) -> Vec<Value> {
    let sectors = (0..).zip(bytes.chunks(SECTOR));
    let values = sectors.map(|(at, bytes)| {
        decode(at, bytes).unwrap_or_else(|| {
            let what = format!("sector {at}: {who} bytes that nothing wrote");
            history.violation(what);
            Value::MAX
        })
    });
    values.collect()
}

/// The disk as one server process has it.
#[derive(Debug)]
pub struct OnStore {
    disk: Disk,
    sim: Sim,
    history: Arc<History>,
}

impl OnStore {
    /// Takes note of changes for a connection that its client has given up.
    fn changed(&self, sectors: Range<u64>, value: impl Fn(u64) -> Value) {
        let connection = self.sim.connection();
        self.sim
            .log(|| format!("disk: sectors {sectors:?} changed, connection {connection:?}"));
        if connection.is_some_and(|connection| self.sim.is_given_up(connection)) {
            sectors.for_each(|at| self.history.ghost(at, value(at)));
        }
    }

    async fn flush_if(&self, fua: bool) -> Result<(), Failure> {
        match fua {
            true => AsyncExport::flush(&self.disk).await,
            false => Ok(()),
        }
    }
}

impl AsyncExport for OnStore {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        AsyncExport::read(&self.disk, offset, len).await
    }

    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        AsyncExport::read_now(&self.disk, offset, len)
    }

    fn flags(&self) -> TransmissionFlags {
        self.disk.flags()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.disk.block_sizes()
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Failure> {
        let sectors = sectors(offset, data.len() as u64);
        let values = self.history.written(sectors.clone(), &data)?;
        // The change is made by the poll that ends this.
        AsyncExport::write(&self.disk, offset, data, false).await?;
        let first = sectors.start;
        self.changed(sectors, |at| {
            let at = usize::try_from(at - first).unwrap_or(usize::MAX);
            values.get(at).copied().unwrap_or(ZERO)
        });
        self.flush_if(fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        let now = ZeroMode { fua: false, ..mode };
        AsyncExport::write_zeroes(&self.disk, offset, len, now).await?;
        self.changed(sectors(offset, len), |_| ZERO);
        self.flush_if(mode.fua).await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        AsyncExport::trim(&self.disk, offset, len, false).await?;
        self.changed(sectors(offset, len), |_| ZERO);
        self.flush_if(fua).await
    }

    async fn flush(&self) -> Result<(), Failure> {
        AsyncExport::flush(&self.disk).await
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Failure> {
        AsyncExport::allocation(&self.disk, offset, len).await
    }
}
