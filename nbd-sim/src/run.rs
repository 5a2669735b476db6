//! One run: programs, a server that fails and comes back, and the oracle's verdict.

use crate::{
    client::Program,
    content::SECTOR,
    disk::{Disk, Mounted},
    history::{Events, History},
    network::{Net, Reach, SimListener},
    object::Place,
    oracle,
    plan::{Fault, Plan, REGION},
    runtime::{Group, Hold, Sim, Step, lock},
};
use nbd_io::{
    NamedExports,
    runtime::{Runtime, Tasks},
    server::{CloseReason, Event, NegotiationError, Server, Stopper},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// No run takes so long.
const LONGEST: Duration = Duration::from_secs(600);

/// For so long a store refuses all requests.
const OUTAGE: Duration = Duration::from_millis(60);

/// A task is held up, or a process.
const HELD_UP: [&str; 2] = ["task held up", "process held up"];

/// Commits of a server go on that was killed.
const CUT_OFF: &str = "writer cut off";

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    /// Violations.
    pub wrong: Vec<String>,
    /// Numbers of requests that clients sent, and of answers that the server sent.
    pub messages: (u64, u64),
    /// The log, if it was wanted.
    pub log: String,
    /// The operations, and the number of hits of each fault.
    pub events: Events,
}

/// Carries out a plan.
#[must_use]
pub fn run(plan: &Plan, logs: bool) -> Report {
    // The pauses between attempts of `nbd-object` are by the generator of the thread.
    fastrand::seed(plan.seed);
    let net = Net::new(plan.latency, plan.capacity, plan.chop);
    let sim = Sim::new(plan.seed, net, plan.tick, logs);
    let rewrites = usize::try_from(plan.disk.minimum).is_ok_and(|minimum| minimum > SECTOR);
    let history = Arc::new(History::new(rewrites));
    let world = World {
        sim: sim.clone(),
        history: history.clone(),
        disk: Arc::new(Disk::new(plan.disk.clone())),
        place: (plan.object.clone())
            .map(|object| Place::new(object, plan.disk.sectors, &sim, history.clone())),
        plan: plan.clone(),
        server: Arc::default(),
    };
    let is_done = Arc::new(AtomicBool::new(false));
    let done = is_done.clone();
    let story = world.clone();
    sim.spawn(async move {
        story.play().await;
        done.store(true, Ordering::Relaxed);
    });
    let played = catch_unwind(AssertUnwindSafe(|| {
        while !is_done.load(Ordering::Relaxed) {
            match sim.step(LONGEST) {
                Step::Done => {}
                Step::Idle => return Some("something waits for ever"),
                Step::Livelock => return Some("tasks are woken for ever, and do nothing"),
            }
        }
        None
    }));
    let stuck = match played {
        Ok(stuck) => stuck.map(str::to_owned),
        Err(panic) => Some(match panic.downcast_ref::<String>() {
            Some(what) => format!("a panic: {what}"),
            None => format!("a panic: {:?}", panic.downcast_ref::<&str>()),
        }),
    };
    if let Some(stuck) = stuck {
        let in_flight = history.in_flight();
        history.violation(format!("{stuck}; {in_flight} operations have no answer"));
    }
    let messages = {
        let net = lock(&sim.net);
        let (requests, answers, faults) = net.messages();
        for fault in faults {
            history.violation(fault.clone());
        }
        (requests, answers)
    };
    sim.log(|| format!("the end: {}", sim.fingerprint()));
    sim.shut_down();
    let events = history.take();
    Report {
        wrong: oracle::check(&events),
        messages,
        log: sim.take_log(),
        events,
    }
}

#[derive(Clone, Debug)]
struct World {
    sim: Sim,
    history: Arc<History>,
    disk: Arc<Disk>,
    /// The store that has the disk instead.
    place: Option<Place>,
    plan: Plan,
    server: Arc<Mutex<ServerState>>,
}

#[derive(Debug, Default)]
struct ServerState {
    /// Number of servers so far.
    count: u32,
    /// One that has not opened its disk yet cannot be stopped.
    running: Option<(Group, Option<Stopper>)>,
}

/// The tasks of a server's number that go on when it is killed, if it is cut off alone.
const fn writer(server: Group) -> Group {
    Group(server.0 + 1_000_000)
}

impl World {
    async fn play(&self) {
        self.start_server();
        let programs: Vec<_> = (0..)
            .zip(&self.plan.clients)
            .map(|(number, plan)| {
                let sim = self
                    .sim
                    .in_group(Group(1 + u32::try_from(number).unwrap_or(0)));
                Program::new(number, sim, self.history.clone(), plan.clone())
            })
            .collect();
        while lock(&self.sim.net).server != Reach::Up {
            self.sim.sleep(Duration::from_millis(1)).await;
            self.sim.note_progress();
        }
        let begin = self.sim.now();
        let left = |at: Duration| (begin + at).saturating_sub(self.sim.now());
        programs.iter().for_each(Program::start);
        for (at, fault) in &self.plan.faults {
            self.sim.sleep(left(*at)).await;
            self.inject(fault, &programs);
        }
        self.sim.sleep(left(self.plan.heals)).await;
        self.heal();
        while !programs.iter().all(Program::is_done) {
            self.sim.sleep(Duration::from_millis(10)).await;
        }
        if self.plan.ends_with_crash {
            self.end_server(true, None);
            self.start_server();
        }
        for (at, program) in (0..).zip(&programs) {
            program.read(at * REGION..(at + 1) * REGION).await;
            program.disconnect().await;
        }
        self.sim.log(|| "the server is to stop".to_owned());
        let stopper = lock(&self.server)
            .running
            .as_ref()
            .and_then(|(_, stopper)| stopper.clone());
        if let Some(stopper) = stopper {
            stopper.stop();
            stopper.stopped().await;
        }
        if let Some(place) = &self.place {
            place.stop_maintenance();
            self.end_server(false, None);
            place.finish(&self.sim).await;
        }
    }

    /// Starts a server, if there is none.
    fn start_server(&self) {
        let mut state = lock(&self.server);
        if state.running.is_some() {
            return;
        }
        state.count += 1;
        let number = state.count;
        let group = Group(1000 + number);
        state.running = Some((group, None));
        drop(state);
        let sim = self.sim.in_group(group);
        let Some(place) = self.place.clone() else {
            let mounted = Mounted {
                disk: self.disk.clone(),
                process: sim,
                history: self.history.clone(),
            };
            self.serve(number, group, NamedExports::single(Arc::new(mounted)));
            return;
        };
        let world = self.clone();
        let committing = self.sim.in_group(writer(group));
        sim.clone().spawn(async move {
            let mounted = place.mount(&sim, &committing).await;
            world.serve(number, group, NamedExports::single_async(mounted));
        });
    }

    fn serve(&self, number: u32, group: Group, exports: NamedExports) {
        let sim = self.sim.in_group(group);
        let (log, history) = (self.sim.clone(), self.history.clone());
        let server = Server::on_runtime(sim.clone(), Arc::new(exports))
            .concurrency(self.plan.concurrency)
            .idle_timeout(self.plan.idle_timeout)
            .grace(Duration::from_millis(100))
            .on_event(move |event| {
                log.log(|| format!("server {number}: {event:?}"));
                if breaks_protocol(event) {
                    history.violation(format!("server {number}: {event:?}"));
                }
            });
        lock(&self.server).running = Some((group, Some(server.stopper())));
        lock(&self.sim.net).server = Reach::Up;
        let listener = SimListener(sim.clone());
        sim.spawn(async move {
            let _ = server.serve(listener).await;
        });
    }

    /// Ends the server's process, or its machine.
    fn end_server(&self, loses_power: bool, silent: Option<Duration>) -> bool {
        let Some((group, _)) = lock(&self.server).running.take() else {
            return false;
        };
        let mut hits = self.history.in_flight() > 0;
        self.sim
            .log(|| format!("the server ends, and power is lost: {loses_power}"));
        self.sim.lose_server(silent);
        self.sim.kill(group);
        if let Some(place) = &self.place {
            match place.zombies_after() {
                Some(pause) if !loses_power => {
                    self.history.inject(CUT_OFF, false);
                    let hold = self.sim.hold_up_process(writer(group));
                    self.release_after(pause, hold, CUT_OFF);
                }
                _ => self.sim.kill(writer(group)),
            }
            return hits;
        }
        if loses_power {
            let (values, lost) = self.sim.random(|rng| self.disk.crash(rng, || ()));
            self.sim
                .log(|| format!("disk: {lost} sectors lost something: {values:?}"));
            hits = lost > 0;
            self.history.crash(values);
        }
        hits
    }

    fn restart_after(&self, down: Duration) {
        let world = self.clone();
        self.sim.spawn(async move {
            world.sim.sleep(down).await;
            world.start_server();
        });
    }

    fn inject(&self, fault: &Fault, programs: &[Program]) {
        self.sim.log(|| format!("fault: {fault:?}"));
        let is_busy = self.history.in_flight() > 0;
        let (name, hits) = match *fault {
            Fault::Cut(how) => (name_of(how), self.sim.cut(how)),
            Fault::Stall(time) => ("stall", self.sim.stall(time)),
            Fault::Kill { down } => {
                let hits = self.end_server(false, None);
                self.restart_after(down);
                ("kill of the server", hits)
            }
            Fault::Crash { down, silent } => {
                let hits = self.end_server(true, silent.then_some(down));
                self.restart_after(down);
                ("loss of power", hits)
            }
            Fault::Stop { down } => {
                self.stop_server(down);
                ("stop of the server", is_busy)
            }
            Fault::AcceptLate(time) => {
                lock(&self.sim.net).accepts_from = self.sim.now() + time;
                ("late accept", is_busy)
            }
            Fault::Deaf(time) => {
                self.deafen(time);
                ("no answer to connects", is_busy)
            }
            Fault::Disk(fails) => match &self.place {
                Some(place) => {
                    place.refuse_for(OUTAGE);
                    ("outage of the store", is_busy)
                }
                None => {
                    self.disk.fail(fails);
                    // Whether it hits is known when it does.
                    (fails.name(), false)
                }
            },
            Fault::ReconnectNow(client) => {
                let program = programs.get(client);
                let hits = program.is_some_and(Program::reconnect_now) && is_busy;
                ("reconnect at will", hits)
            }
            Fault::HoldUp {
                whole_process,
                time,
            } => {
                self.hold_up(whole_process, time);
                // Whether it hits is known when it ends.
                (HELD_UP[usize::from(whole_process)], false)
            }
        };
        self.history.inject(name, hits);
    }

    /// Stops the server in order. Written data stays, since the machine goes on.
    fn stop_server(&self, down: Duration) {
        let running = lock(&self.server).running.clone();
        let Some((group, Some(stopper))) = running else {
            return;
        };
        lock(&self.sim.net).server = Reach::Down;
        stopper.stop();
        let world = self.clone();
        self.sim.spawn(async move {
            stopper.stopped().await;
            let is_same = lock(&world.server)
                .running
                .as_ref()
                .is_some_and(|(own, _)| *own == group);
            if is_same {
                world.end_server(false, None);
                world.restart_after(down);
            }
        });
    }

    fn deafen(&self, time: Duration) {
        let mut net = lock(&self.sim.net);
        if net.server != Reach::Up {
            return;
        }
        net.server = Reach::Deaf;
        drop(net);
        let world = self.clone();
        self.sim.spawn(async move {
            world.sim.sleep(time).await;
            world.hear();
        });
    }

    fn hold_up(&self, whole_process: bool, time: Duration) {
        let Some(hold) = self.sim.hold_up(whole_process) else {
            return;
        };
        self.release_after(time, hold, HELD_UP[usize::from(whole_process)]);
    }

    /// Lets tasks go on after a time, which is a hit of a fault if any was woken meanwhile.
    fn release_after(&self, time: Duration, hold: Hold, fault: &'static str) {
        self.sim.log(|| format!("held up: {hold:?}"));
        let world = self.clone();
        self.sim.spawn(async move {
            world.sim.sleep(time).await;
            world.sim.log(|| format!("goes on: {hold:?}"));
            if world.sim.release(hold) {
                world.history.hit(fault);
            }
        });
    }

    fn hear(&self) {
        let mut net = lock(&self.sim.net);
        if net.server == Reach::Deaf {
            net.server = Reach::Up;
        }
    }

    /// Ends all faults.
    fn heal(&self) {
        self.sim.log(|| "all is well from now on".to_owned());
        self.disk.heal();
        self.place.iter().for_each(Place::heal);
        self.hear();
        self.sim.heal(self.plan.stays_silent);
        self.start_server();
    }
}

const fn name_of(cut: crate::network::Cut) -> &'static str {
    use crate::network::Cut;
    match cut {
        Cut::Reset => "reset",
        Cut::Silent => "silent cut",
        Cut::HalfFromServer => "half-close by the server",
        Cut::HalfFromClient => "half-close by the client",
    }
}

/// No fault of these makes a client break the protocol.
pub(crate) const fn breaks_protocol(event: &Event<'_>) -> bool {
    matches!(
        event,
        Event::Closed {
            ending: CloseReason::Protocol(_)
                | CloseReason::Panicked
                | CloseReason::Negotiation(NegotiationError::Protocol(_)),
            ..
        }
    )
}
