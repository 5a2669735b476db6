//! A program that uses a disk: tasks that share a client, and connect anew when it is lost.

use crate::{
    content::{SECTOR, UNKNOWN, Value, ZERO, decode, encode},
    deadlines::Started,
    history::{Domain, History, Kind, Outcome, Time},
    plan::{ClientPlan, Op},
    runtime::{Sim, lock},
};
use nbd_io::{
    client::{ClientEvent, ConnectOptions, Error, Reconnect, tasks::Client},
    runtime::{Runtime, Tasks},
};
use nbd_proto::{CommandFlags, ContextName, meta::Allocation};
use std::{
    future::poll_fn,
    ops::Range,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

/// A program.
#[derive(Clone, Debug)]
pub struct Program {
    number: usize,
    sim: Sim,
    history: Arc<History>,
    plan: Arc<ClientPlan>,
    session: Arc<Mutex<Session>>,
    /// Number of connections that were lost.
    losses: Arc<AtomicU32>,
}

#[derive(Debug, Default)]
struct Session {
    client: Option<Handle>,
    is_connecting: bool,
    busy: usize,
}

/// A client as one task has it.
#[derive(Clone, Debug)]
struct Handle {
    client: Client<Sim>,
    domain: usize,
    /// When its epoch began.
    since: Time,
}

impl Program {
    /// A program that is not connected.
    #[must_use]
    pub fn new(number: usize, sim: Sim, history: Arc<History>, plan: ClientPlan) -> Self {
        Self {
            number,
            sim,
            history,
            plan: Arc::new(plan),
            session: Arc::default(),
            losses: Arc::default(),
        }
    }

    /// Starts its tasks.
    pub fn start(&self) {
        for ops in self.plan.tasks.clone() {
            lock(&self.session).busy += 1;
            let program = self.clone();
            self.sim.spawn(async move {
                let mut handle = program.handle().await;
                for op in ops {
                    program.sim.sleep(op.pause).await;
                    program.perform(&mut handle, &op).await;
                }
                lock(&program.session).busy -= 1;
            });
        }
    }

    /// Whether all of its tasks are done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        lock(&self.session).busy == 0
    }

    /// Reads sectors, by the client that the program has.
    pub async fn read(&self, sectors: Range<u64>) {
        let mut handle = self.handle().await;
        let op = Op {
            pause: Duration::ZERO,
            kind: Kind::Read,
            sectors,
            dropped_after: None,
            number: usize::MAX,
        };
        self.perform(&mut handle, &op).await;
    }

    /// Has the client connect again.
    pub fn reconnect_now(&self) -> bool {
        self.sim.give_up_connections();
        let handle = lock(&self.session).client.clone();
        handle.is_some_and(|handle| handle.client.reconnect_now().is_ok())
    }

    /// Disconnects, if it is connected.
    pub async fn disconnect(&self) {
        let handle = lock(&self.session).client.take();
        if let Some(handle) = handle {
            let started = self.started();
            let _ = handle.client.disconnect().await;
            self.check(started.disconnected(&self.sim));
        }
    }

    /// The client, which is made if there is none or it is lost.
    async fn handle(&self) -> Handle {
        loop {
            {
                let mut session = lock(&self.session);
                if let Some(handle) = &session.client
                    && !handle.client.is_lost()
                {
                    return handle.clone();
                }
                if !session.is_connecting {
                    session.is_connecting = true;
                    let old = session.client.take();
                    drop(session);
                    drop(old);
                    break;
                }
            }
            self.sim.sleep(Duration::from_millis(1)).await;
            self.sim.note_progress();
        }
        loop {
            let started = self.started();
            let connected = self.options().connect("nbd://simulated").await;
            self.check(started.connected(&self.sim, &self.plan));
            match connected {
                Ok(client) => {
                    let (keeps, reconnects) = match self.plan.reconnects {
                        Some((kept, _)) => (kept > 0, true),
                        None => (false, false),
                    };
                    let domain = self.history.domain(Domain {
                        client: self.number,
                        is_ordered: reconnects,
                        keeps,
                    });
                    let handle = Handle {
                        client,
                        domain,
                        since: 0,
                    };
                    let mut session = lock(&self.session);
                    session.client = Some(handle.clone());
                    session.is_connecting = false;
                    return handle;
                }
                Err(error) => {
                    self.judge(&error);
                    self.sim.sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    fn options(&self) -> ConnectOptions<Sim> {
        let plan = &*self.plan;
        let policy = plan.reconnects.map(|(kept, attempts)| {
            Reconnect::new()
                .attempts(attempts)
                .delay(Duration::from_millis(2), Duration::from_millis(20))
                .total_time(None)
                .keep_unflushed(kept)
                .jitter_seed(self.sim.random(|rng| rng.u64(..)))
        });
        let (sim, number) = (self.sim.clone(), self.number);
        let history = self.history.clone();
        let losses = self.losses.clone();
        ConnectOptions::with_runtime(self.sim.clone())
            .connections(plan.connections)
            .reconnect(policy)
            .extended_headers(plan.style.0)
            .structured_replies(plan.style.1)
            .context(ContextName::base_allocation())
            .request_timeout(Some(plan.timeout))
            .connect_timeout(Some(plan.connect_timeout()))
            .negotiation_timeout(Some(plan.timeout))
            .on_event(move |event: &ClientEvent| {
                sim.log(|| format!("client {number}: {event}"));
                if matches!(event, ClientEvent::Lost { .. }) {
                    losses.fetch_add(1, Ordering::Relaxed);
                }
                judge(&history, &event.to_string());
            })
    }

    fn started(&self) -> Started {
        Started::new(&self.sim, self.losses.load(Ordering::Relaxed))
    }

    fn check(&self, wrong: Option<String>) {
        if let Some(wrong) = wrong {
            let client = self.number;
            self.history.violation(format!("client {client}: {wrong}"));
        }
    }

    /// No fault of these makes a peer break the protocol.
    fn judge(&self, error: &Error) {
        judge(&self.history, &error.to_string());
    }

    async fn perform(&self, handle: &mut Handle, op: &Op) {
        if handle.client.is_lost() {
            *handle = self.handle().await;
        }
        let Handle {
            client,
            domain,
            since,
        } = handle.clone();
        let number = (self.history).begin(domain, op.kind, op.sectors.clone(), since);
        let value = number as Value + 1;
        let name = self.number;
        self.sim.log(|| {
            let (kind, sectors) = (op.kind, &op.sectors);
            format!(
                "client {name}: {value} ({}) {kind:?} {sectors:?}",
                op.number
            )
        });
        let started = self.started();
        let mut asked = pin!(ask(&client, op.kind, op.sectors.clone(), value));
        let mut polls = 0;
        let answer = poll_fn(|cx| match asked.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if op.dropped_after.is_some_and(|after| polls >= after) => {
                Poll::Ready(None)
            }
            Poll::Pending => {
                polls += 1;
                Poll::Pending
            }
        });
        let answer = answer.await;
        self.sim.log(|| {
            let answer = match &answer {
                Some(Ok(read)) => format!("done {read:?}"),
                Some(Err(error)) => error.to_string(),
                None => "dropped".to_owned(),
            };
            format!("client {name}: {value} is answered: {answer}")
        });
        let minimum = client.block_sizes().minimum().into();
        let losses = self.losses.load(Ordering::Relaxed);
        self.check(started.ended(&self.sim, &self.plan, op, minimum, losses));
        if let Some(Err(error)) = &answer {
            let is_alone = self.history.is_alone(number);
            self.check(started.had_answer(&self.sim, &self.plan, op, error, is_alone));
        }
        let (outcome, read) = match answer {
            Some(Ok(read)) => (Outcome::Done, read),
            Some(Err(Error::Failed { .. })) => (Outcome::Failed, Vec::new()),
            Some(Err(error)) => {
                self.judge(&error);
                (Outcome::Unknown, Vec::new())
            }
            None => {
                self.history.inject("dropped future", true);
                (Outcome::Unknown, Vec::new())
            }
        };
        let read = read.into_iter().zip(op.sectors.clone());
        let read = read.map(|(value, sector)| {
            value.unwrap_or_else(|| {
                let what =
                    format!("sector {sector}: event {number} found bytes that nothing wrote");
                self.history.violation(what);
                Value::MAX
            })
        });
        let read = read.collect();
        let is_unflushed = outcome == Outcome::Unknown && op.kind == Kind::Flush;
        self.history.end(number, outcome, read);
        if is_unflushed {
            // Lost writes are lost; the next flush covers writes that are answered from now on.
            handle.client = handle.client.new_epoch();
            handle.since = self.history.now();
        }
    }
}

pub(crate) fn judge(history: &History, what: &str) {
    if what.contains("broke the protocol") {
        history.violation(what.to_owned());
    }
}

async fn ask(
    client: &Client<Sim>,
    kind: Kind,
    sectors: Range<u64>,
    value: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let offset = sectors.start * SECTOR as u64;
    let len = (sectors.end - sectors.start) * SECTOR as u64;
    let none = CommandFlags::NONE;
    match kind {
        Kind::Read => {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let data = client.read(offset, len).await?;
            let data = data.chunks(SECTOR).zip(sectors);
            return Ok(data.map(|(bytes, sector)| decode(sector, bytes)).collect());
        }
        Kind::Status => {
            let base = ContextName::base_allocation();
            let mut values = vec![Some(UNKNOWN); sectors.clone().count()];
            let mut extents = client.extents(offset..offset + len);
            let mut at = offset;
            while let Some(run) = extents.next().await {
                let run = run?;
                let status = Allocation::new(run.status_of(&base).unwrap_or(0));
                let first = usize::try_from((at - offset) / SECTOR as u64).unwrap_or(0);
                let count = usize::try_from(run.len / SECTOR as u64).unwrap_or(0);
                let known = values.get_mut(first..first + count);
                let known = known.filter(|_| run.offset == at);
                known.into_iter().flatten().for_each(|value| match status {
                    _ if status.is_zero() => *value = Some(ZERO),
                    _ => {}
                });
                at += run.len;
            }
            // Anything but one run after the other is no status of these sectors.
            if at != offset + len {
                values.fill(None);
            }
            return Ok(values);
        }
        Kind::Write | Kind::WriteFua => {
            let mut data = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            for (bytes, sector) in data.chunks_mut(SECTOR).zip(sectors) {
                encode(value, sector, bytes);
            }
            let flags = match kind {
                Kind::WriteFua => CommandFlags::FUA,
                _ => none,
            };
            client.write_with(data, offset, flags).await?;
        }
        Kind::Zero => client.write_zeroes(offset, len, none).await?,
        Kind::Trim => client.trim(offset, len, none).await?,
        Kind::Flush => client.flush().await?,
    }
    Ok(Vec::new())
}
