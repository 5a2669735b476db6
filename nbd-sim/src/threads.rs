//! The blocking client, in threads and in real time: the plans, the disk and the oracle of the
//! simulation, and the operating system's schedule and sockets.
//!
//! A seed decides on the requests and the faults, and not on the order in which threads run. The
//! server's process and its machine fail, and calls of the disk. Connections end with the server
//! alone: the disk cannot know whose request it carries out, so it could not tell a change that is
//! late, for a connection that the client has given up, from a wrong one.

use crate::{
    client::judge,
    content::{SECTOR, UNKNOWN, Value, ZERO, decode, encode},
    disk::{Disk, Mounted, Process},
    history::{Domain, History, Kind, Outcome, Time},
    oracle,
    plan::{ClientPlan, Fault, Op, Plan, REGION},
    run::{Report, breaks_protocol},
    runtime::lock,
};
use fastrand::Rng;
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Server, Uri};
use nbd_io::client::{ClientEvent, Error, Reconnect};
use nbd_proto::{ContextName, meta::Allocation};
use std::{
    collections::BTreeMap,
    io,
    net::Shutdown,
    ops::Range,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Interval at which a server looks for connections, and a client for a server.
const INTERVAL: Duration = Duration::from_millis(1);

/// No request takes so long, so that none is given up while its server is alive.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Number of runs at once.
const JOBS: usize = 8;

/// For each fault, the numbers of injections and of hits.
pub type Coverage = BTreeMap<&'static str, (u64, u64)>;

/// The results of several seeds.
#[derive(Debug, Default)]
pub struct Reports {
    /// Violations, by seed.
    pub wrong: Vec<(u64, String)>,
    /// Number of operations.
    pub operations: usize,
    /// The faults.
    pub coverage: Coverage,
}

/// Carries out the plans of some seeds.
///
/// # Errors
///
/// As [`run`].
pub fn run_many(seeds: Range<u64>) -> io::Result<Reports> {
    let seeds = Mutex::new(seeds);
    let reports = Mutex::new(Reports::default());
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..JOBS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let seed = lock(&seeds).next();
                        let Some(seed) = seed else { return Ok(()) };
                        let report = run(&Plan::new(seed))?;
                        let mut reports = lock(&reports);
                        let wrong = report.wrong.into_iter().map(|wrong| (seed, wrong));
                        reports.wrong.extend(wrong);
                        reports.operations += report.events.operations.len();
                        for (fault, (injected, hit)) in report.events.coverage {
                            let sum = reports.coverage.entry(fault).or_default();
                            sum.0 += injected;
                            sum.1 += hit;
                        }
                    }
                })
            })
            .collect();
        jobs.into_iter().try_for_each(|job| {
            let panicked = |_| Err(io::Error::other("a run has panicked"));
            job.join().unwrap_or_else(panicked)
        })
    })?;
    Ok(reports.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Carries out the part of a plan that is for threads.
///
/// # Errors
///
/// When there is no directory for sockets.
pub fn run(plan: &Plan) -> io::Result<Report> {
    let dir = tempfile::tempdir()?;
    let history = Arc::new(History::new(u64::from(plan.disk.minimum) > SECTOR as u64));
    let world = World {
        plan,
        history: history.clone(),
        disk: Arc::new(Disk::new(plan.disk.clone())),
        socket: dir.path().join("nbd.sock"),
        rng: Mutex::new(Rng::with_seed(plan.seed)),
    };
    let played = world.play();
    if let Err(error) = played {
        history.violation(format!("the run has ended early: {error}"));
    }
    let events = history.take();
    Ok(Report {
        wrong: oracle::check(&events),
        messages: (0, 0),
        log: String::new(),
        events,
    })
}

struct World<'a> {
    plan: &'a Plan,
    history: Arc<History>,
    disk: Arc<Disk>,
    socket: PathBuf,
    rng: Mutex<Rng>,
}

impl World<'_> {
    fn play(&self) -> io::Result<()> {
        let mut server = Some(self.start()?);
        let programs: Vec<_> = (0..)
            .zip(&self.plan.clients)
            .map(|(number, plan)| Program {
                number,
                plan,
                history: self.history.clone(),
                socket: &self.socket,
                handle: Mutex::new(None),
                seed: lock(&self.rng).u64(..),
            })
            .collect();
        thread::scope(|scope| {
            let mut tasks = Vec::new();
            for program in &programs {
                for ops in &program.plan.tasks {
                    tasks.push(scope.spawn(|| ops.iter().for_each(|op| program.perform(op))));
                }
            }
            let done = self.fail(&mut server);
            for task in tasks {
                if task.join().is_err() {
                    self.history.violation("a client has panicked".into());
                }
            }
            done
        })?;
        if self.plan.ends_with_crash {
            self.end(&mut server, true);
            server = Some(self.start()?);
        }
        for (at, program) in (0..).zip(&programs) {
            program.perform(&Op {
                pause: Duration::ZERO,
                kind: Kind::Read,
                sectors: at * REGION..(at + 1) * REGION,
                dropped_after: None,
                number: usize::MAX,
            });
            if let Some(handle) = lock(&program.handle).take() {
                // It may be lost.
                let _ = handle.client.disconnect();
            }
        }
        self.end(&mut server, false);
        Ok(())
    }

    /// Has the server fail as the plan says, and leaves one that does not.
    fn fail(&self, server: &mut Option<Running>) -> io::Result<()> {
        let begin = Instant::now();
        for (at, fault) in &self.plan.faults {
            thread::sleep(at.saturating_sub(begin.elapsed()));
            let (name, down, loses_power) = match *fault {
                Fault::Kill { down } | Fault::Stop { down } => ("kill of the server", down, false),
                Fault::Crash { down, .. } => ("loss of power", down, true),
                Fault::Disk(fails) => {
                    self.disk.fail(fails);
                    // Whether it hits is known when it does.
                    self.history.inject(fails.name(), false);
                    continue;
                }
                _ => continue,
            };
            let hits = self.end(server, loses_power);
            self.history.inject(name, hits);
            thread::sleep(down);
            *server = Some(self.start()?);
        }
        thread::sleep(self.plan.heals.saturating_sub(begin.elapsed()));
        self.disk.heal();
        Ok(())
    }

    fn start(&self) -> io::Result<Running> {
        let process = Arc::new(Alive {
            is_ending: AtomicBool::new(false),
            is_dead: AtomicBool::new(false),
            rng: Mutex::new(lock(&self.rng).fork()),
            sockets: Mutex::default(),
        });
        let mounted = Mounted {
            disk: self.disk.clone(),
            process: process.clone(),
            history: self.history.clone(),
        };
        let history = self.history.clone();
        let server = Server::single(Arc::new(mounted))
            .concurrency(self.plan.concurrency)
            .on_event(move |event| {
                if breaks_protocol(event) {
                    history.violation(format!("{event:?}"));
                }
            });
        let listener = UnixListener::bind(&self.socket)?;
        listener.set_nonblocking(true)?;
        let accepting = {
            let process = process.clone();
            thread::spawn(move || process.accept(&listener, &Arc::new(server)))
        };
        Ok(Running { process, accepting })
    }

    /// Ends the server's process, or its machine. Returns whether something was lost or unanswered.
    fn end(&self, server: &mut Option<Running>, loses_power: bool) -> bool {
        let Some(Running { process, accepting }) = server.take() else {
            return false;
        };
        let was_busy = self.history.in_flight() > 0;
        // The next connection is one to the next server.
        let _ = std::fs::remove_file(&self.socket);
        process.is_ending.store(true, Ordering::SeqCst);
        let _ = accepting.join();
        // No reply leaves it from here on.
        for socket in lock(&process.sockets).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let ends = || process.is_dead.store(true, Ordering::SeqCst);
        if !loses_power {
            self.disk.end(ends);
            return was_busy;
        }
        let (values, lost) = self.disk.crash(&mut lock(&self.rng), ends);
        self.history.crash(values);
        lost > 0
    }
}

/// A server that takes connections.
struct Running {
    process: Arc<Alive>,
    accepting: thread::JoinHandle<()>,
}

/// The process of a server, which shares this one with all others.
#[derive(Debug)]
struct Alive {
    is_ending: AtomicBool,
    is_dead: AtomicBool,
    rng: Mutex<Rng>,
    /// The connections that were accepted.
    sockets: Mutex<Vec<UnixStream>>,
}

impl Alive {
    /// Serves connections in threads of their own until the process ends.
    fn accept(&self, listener: &UnixListener, server: &Arc<Server>) {
        while !self.is_ending.load(Ordering::SeqCst) {
            let Ok((socket, _)) = listener.accept() else {
                thread::sleep(INTERVAL);
                continue;
            };
            let both = socket
                .set_nonblocking(false)
                .and_then(|()| Ok((socket.try_clone()?, socket.try_clone()?)));
            let Ok((kept, own)) = both else { continue };
            lock(&self.sockets).push(kept);
            let server = server.clone();
            thread::spawn(move || {
                let _ = server.serve_over(socket);
                // The one that is kept would hold it open.
                let _ = own.shutdown(Shutdown::Both);
            });
        }
    }
}

impl Process for Arc<Alive> {
    fn random<T>(&self, decide: impl FnOnce(&mut Rng) -> T) -> T {
        decide(&mut lock(&self.rng))
    }

    fn wait_in_place(&self, time: Duration) {
        thread::sleep(time);
    }

    fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }

    fn connection(&self) -> Option<(usize, bool)> {
        None
    }

    fn log(&self, _: impl FnOnce() -> String) {}
}

/// A program: threads that share a client.
struct Program<'a> {
    number: usize,
    plan: &'a ClientPlan,
    history: Arc<History>,
    socket: &'a Path,
    handle: Mutex<Option<Handle>>,
    seed: u64,
}

/// A client as its threads have it.
#[derive(Clone)]
struct Handle {
    client: Client,
    domain: usize,
    /// When its epoch began.
    since: Time,
}

impl Program<'_> {
    /// The client, which is made if there is none or it is lost.
    fn handle(&self) -> Handle {
        let mut shared = lock(&self.handle);
        if let Some(handle) = shared.as_ref().filter(|handle| !handle.client.is_lost()) {
            return handle.clone();
        }
        *shared = None;
        let client = loop {
            let path = self.socket.as_os_str().as_encoded_bytes();
            let connected = Uri::unix(path).map(|uri| self.options().connect_uri(&uri));
            match connected {
                Ok(Ok(client)) => break client,
                Ok(Err(error)) => judge(&self.history, &error.to_string()),
                Err(error) => self.history.violation(error.to_string()),
            }
            thread::sleep(INTERVAL);
        };
        let kept = self.plan.reconnects.map(|(kept, _)| kept);
        let domain = self.history.domain(Domain {
            client: self.number,
            // Threads begin operations in one order and may call the client in another.
            is_ordered: false,
            keeps: kept.is_some_and(|kept| kept > 0),
        });
        let handle = Handle {
            client,
            domain,
            since: 0,
        };
        *shared = Some(handle.clone());
        handle
    }

    fn options(&self) -> ConnectOptions {
        let policy = self.plan.reconnects.map(|(kept, attempts)| {
            Reconnect::new()
                .attempts(attempts)
                .delay(Duration::from_millis(2), Duration::from_millis(20))
                .total_time(None)
                .keep_unflushed(kept)
                .jitter_seed(self.seed)
        });
        let history = self.history.clone();
        ConnectOptions::new()
            .connections(self.plan.connections)
            .reconnect(policy)
            .extended_headers(self.plan.style.0)
            .structured_replies(self.plan.style.1)
            .context(ContextName::base_allocation())
            .request_timeout(Some(TIMEOUT))
            .on_event(move |event: &ClientEvent| judge(&history, &event.to_string()))
    }

    fn perform(&self, op: &Op) {
        thread::sleep(op.pause);
        let Handle {
            client,
            domain,
            since,
        } = self.handle();
        let number = (self.history).begin(domain, op.kind, op.sectors.clone(), since);
        let (outcome, read) = match ask(&client, op, number as Value + 1) {
            Ok(read) => (Outcome::Done, read),
            Err(Error::Failed { .. }) => (Outcome::Failed, Vec::new()),
            Err(error) => {
                judge(&self.history, &error.to_string());
                (Outcome::Unknown, Vec::new())
            }
        };
        if read.contains(&None) {
            let what = format!("event {number} found bytes that nothing wrote");
            self.history.violation(what);
        }
        let read = read.into_iter().map(|value| value.unwrap_or(Value::MAX));
        self.history.end(number, outcome, read.collect());
        if outcome == Outcome::Unknown && op.kind == Kind::Flush {
            // Lost writes are lost; the next flush covers writes that are answered from now on.
            let mut shared = lock(&self.handle);
            if let Some(handle) = shared.as_mut().filter(|handle| handle.domain == domain) {
                handle.client = handle.client.new_epoch();
                handle.since = self.history.now();
            }
        }
    }
}

/// Carries out an operation. Returns the values that it has found.
fn ask(client: &Client, op: &Op, value: Value) -> Result<Vec<Option<Value>>, Error> {
    let sectors = op.sectors.clone();
    let offset = sectors.start * SECTOR as u64;
    let len = (sectors.end - sectors.start) * SECTOR as u64;
    let none = CommandFlags::NONE;
    let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
    match op.kind {
        Kind::Read => {
            client.read_exact_at(&mut data, offset)?;
            let data = data.chunks(SECTOR).zip(sectors);
            return Ok(data.map(|(bytes, sector)| decode(sector, bytes)).collect());
        }
        Kind::Status => {
            let base = ContextName::base_allocation();
            let mut values = Vec::new();
            for run in client.extents(offset..offset + len) {
                let run = run?;
                let status = Allocation::new(run.status_of(&base).unwrap_or(0));
                let value = if status.is_zero() { ZERO } else { UNKNOWN };
                let count = usize::try_from(run.len / SECTOR as u64).unwrap_or(0);
                values.extend(std::iter::repeat_n(Some(value), count));
            }
            return Ok(values);
        }
        Kind::Write | Kind::WriteFua => {
            for (bytes, sector) in data.chunks_mut(SECTOR).zip(sectors) {
                encode(value, sector, bytes);
            }
            let flags = match op.kind {
                Kind::WriteFua => CommandFlags::FUA,
                _ => none,
            };
            client.write_all_at_with(&data, offset, flags)?;
        }
        Kind::Zero => client.write_zeroes(offset, len, none)?,
        Kind::Trim => client.trim(offset, len, none)?,
        Kind::Flush => client.flush()?,
    }
    Ok(Vec::new())
}
