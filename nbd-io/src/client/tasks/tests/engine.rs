//! One connection.
//!
//! It is longer than 500 lines because all of it plays on one bench.

use super::{
    pipe::{Cut, Cutter, pipe},
    server::{Behaviour, serve},
    sim::{Sim, join_all},
};
use crate::{
    Export, Memory, NamedExports,
    client::{
        Connected, Error, Lost, NegotiationConfig, negotiate,
        tasks::{
            alarm::Alarm,
            link::{Call, ConnectionTask, Done, Link, LinkLimits, Request},
        },
    },
    runtime::{Runtime, Tasks},
};
use bytes::{Bytes, BytesMut};
use nbd_proto::{
    CommandFlags, ContextName, ExportName, HeaderStyle,
    client::{Limits, Outcome},
};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

pub(super) const NONE: CommandFlags = CommandFlags::NONE;
const HEADER_STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];
const SIZE: u64 = 1 << 20;

/// The options of a test's connection.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) mode: HeaderStyle,
    pub(super) behaviour: Behaviour,
    pub(super) cut: Cut,
    pub(super) capacity: usize,
    pub(super) timeout: Option<Duration>,
    pub(super) in_flight: u32,
    pub(super) weight: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mode: HeaderStyle::Extended,
            behaviour: Behaviour::default(),
            cut: Cut::Whole,
            capacity: 256 << 10,
            timeout: None,
            in_flight: 64,
            weight: u64::MAX,
        }
    }
}

pub(super) struct Bench {
    pub(super) link: Arc<Link>,
    pub(super) memory: Arc<Memory>,
    pub(super) cutter: Cutter,
}

impl Setup {
    pub(super) async fn connect(self, sim: &Sim) -> Bench {
        let memory = Arc::new(Memory::new(SIZE));
        let (ours, theirs) = pipe(sim.chance());
        let cut = |pipe: super::pipe::Pipe| pipe.cut(self.cut).capacity(self.capacity);
        let exports = Arc::new(NamedExports::single(memory.clone()));
        serve(sim, cut(theirs), exports, self.behaviour);
        let cutter = ours.cutter();
        let mut target = NegotiationConfig::new(ExportName::default());
        target.structured_replies = self.mode != HeaderStyle::Simple;
        target.extended_headers = self.mode == HeaderStyle::Extended;
        target.contexts = vec![ContextName::base_allocation()];
        target.protocol.limits = Limits {
            in_flight: self.in_flight,
            ..Limits::default()
        };
        let negotiated = negotiate(cut(ours), &target, async |pipe| Ok(pipe)).await;
        let Connected {
            transport,
            transmission,
            ..
        } = negotiated.unwrap();
        assert_eq!(transmission.mode(), self.mode);
        let limits = limits(sim, self.timeout, self.weight);
        let link = Link::new(Box::new(transport), transmission, limits, None);
        let link = Arc::new(link);
        let connection_task = ConnectionTask::new(link.clone(), sim.clone(), Alarm::default());
        sim.spawn(async move { drop(connection_task.await) });
        Bench {
            link,
            memory,
            cutter,
        }
    }
}

/// The limits of a link's requests, by the simulation's clock.
pub(super) fn limits(sim: &Sim, timeout: Option<Duration>, bytes_in_flight: u64) -> LinkLimits {
    let sim = sim.clone();
    LinkLimits {
        timeout,
        bytes_in_flight,
        lose_when_silent: false,
        clock: Box::new(move || sim.now()),
        spare: Arc::default(),
    }
}

pub(super) fn read(link: &Link, offset: u64, len: usize) -> Call<'_> {
    let request = Request::Read {
        offset,
        len: len as u64,
        flags: NONE,
    };
    link.call(request, BytesMut::zeroed(len))
}

pub(super) fn write(link: &Link, offset: u64, payload: impl Into<Bytes>) -> Call<'_> {
    let request = Request::Write {
        offset,
        payload: payload.into(),
        flags: NONE,
    };
    link.call(request, BytesMut::new())
}

fn request(link: &Link, request: Request) -> Call<'_> {
    link.call(request, BytesMut::new())
}

/// One request of every kind on some bytes at `offset`.
fn every_request(link: &Link, offset: u64, bytes: usize) -> Vec<Call<'_>> {
    let len = bytes as u64;
    vec![
        read(link, offset, bytes),
        read(link, 0, 5 * bytes),
        write(link, offset, vec![0xcc; bytes]),
        write(link, offset, vec![0xcc; 1]),
        request(link, Request::Flush),
        request(
            link,
            Request::Trim {
                offset,
                len,
                flags: NONE,
            },
        ),
        request(link, Request::Cache { offset, len }),
        request(
            link,
            Request::WriteZeroes {
                offset,
                len,
                flags: CommandFlags::NO_HOLE,
            },
        ),
        request(
            link,
            Request::BlockStatus {
                offset,
                len,
                flags: NONE,
                ids: None,
            },
        ),
    ]
}

pub(super) fn is_ok(done: &Done) -> bool {
    done.reply.is_ok()
}

/// Writes and reads back a range that the rest of the test does not touch.
pub(super) async fn verify(link: &Link, round: u8) {
    let offset = SIZE - (64 << 10);
    for len in [1, 500] {
        let data = vec![round ^ 0x5a; len];
        assert!(is_ok(&write(link, offset, data.clone()).await));
        let back = read(link, offset, len).await;
        assert!(is_ok(&back));
        assert!(back.sink == data, "the written data comes back");
    }
}

#[test]
fn every_request_gets_its_reply() {
    for mode in HEADER_STYLES {
        for cut in [Cut::Whole, Cut::Random, Cut::Bytes] {
            let sim = Sim::new(1);
            sim.run(async {
                let setup = Setup {
                    mode,
                    cut,
                    ..Setup::default()
                };
                let Bench { link, .. } = setup.connect(&sim).await;
                verify(&link, 1).await;
                for (n, call) in every_request(&link, 4096, 4096).into_iter().enumerate() {
                    let done = call.await;
                    match (n, done.result()) {
                        (8, Ok(Outcome::Extents(contexts))) => assert_eq!(contexts.len(), 1),
                        (8, Err(Error::Misuse(_))) => assert_eq!(mode, HeaderStyle::Simple),
                        (_, result) => assert!(matches!(result, Ok(Outcome::Done)), "{n}"),
                    }
                }
                assert!(link.close());
                assert!(matches!(*link.over().await, Lost::Disconnected));
            });
        }
    }
}

#[test]
fn replies_find_their_calls_in_any_order() {
    // C-205, C-185
    for seed in 0..20 {
        let sim = Sim::new(seed);
        sim.run(async {
            let setup = Setup {
                behaviour: Behaviour {
                    shuffle: true,
                    ..Behaviour::default()
                },
                cut: Cut::Random,
                capacity: 5000,
                in_flight: 8,
                ..Setup::default()
            };
            let Bench { link, .. } = setup.connect(&sim).await;
            let link = &link;
            join_all((0..40_u8).map(|n| async move {
                let offset = u64::from(n) * 20_000;
                let len = 1 + usize::from(n) * 500;
                assert!(is_ok(&write(link, offset, vec![n; len]).await));
                let back = read(link, offset, len).await;
                assert!(back.sink == vec![n; len]);
            }))
            .await;
        });
    }
}

/// Polls a call so often and then drops it. Whether it was done before.
pub(super) async fn dropped_after(call: Call<'_>, polls: usize) -> bool {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match call.as_mut().poll(cx) {
            Poll::Pending if left == 0 => Poll::Ready(false),
            polled => polled.map(|_| true),
        }
    })
    .await
}

#[test]
fn any_call_can_be_dropped_at_any_poll() {
    for cut in [Cut::Bytes, Cut::Random, Cut::Whole] {
        for kind in 0..every_kind() {
            let mut polls = 0;
            loop {
                let sim = Sim::new(polls as u64);
                let done = sim.run(drop_one(&sim, cut, kind, polls));
                if done {
                    break;
                }
                polls += 1 + polls / 30;
            }
            assert!(polls > 0, "not even begun");
        }
    }
}

const fn every_kind() -> usize {
    9
}

async fn drop_one(sim: &Sim, cut: Cut, kind: usize, polls: usize) -> bool {
    let setup = Setup {
        cut,
        capacity: 3000,
        behaviour: Behaviour {
            shuffle: polls % 2 == 1,
            ..Behaviour::default()
        },
        ..Setup::default()
    };
    let Bench { link, memory, .. } = setup.connect(sim).await;
    let offset = 512 << 10;
    // Byte by byte many requests would take too long.
    let bytes = if cut == Cut::Bytes { 64 } else { 4096 };
    assert!(is_ok(&write(&link, offset, vec![0xaa; 2 * bytes]).await));
    // Another task's request is in flight meanwhile.
    let other = write(&link, 1 << 10, vec![0xbb; 700]);
    let ours = async {
        let call = every_request(&link, offset, bytes).swap_remove(kind);
        dropped_after(call, polls).await
    };
    let (other, done) = super::sim::join(other, ours).await;
    assert!(is_ok(&other));
    verify(&link, 1).await;
    let back = read(&link, 1 << 10, 700).await;
    assert!(back.sink == vec![0xbb; 700]);
    // Each request that was begun is carried out, or was not begun at all.
    assert!(link.close());
    assert!(matches!(*link.over().await, Lost::Disconnected));
    let mut now = vec![0; 2 * bytes];
    memory.read(offset, &mut now).unwrap();
    let (touched, rest) = now.split_at(bytes);
    assert!(rest.iter().all(|byte| *byte == 0xaa));
    let changes = match kind {
        2 | 3 => 0xcc,
        5 | 7 => 0,
        _ => 0xaa,
    };
    let touched = if kind == 3 { &touched[..1] } else { touched };
    let new = touched.iter().all(|byte| *byte == changes);
    assert!(new || !done && touched.iter().all(|byte| *byte == 0xaa));
    done
}

#[test]
fn a_load_of_calls_survives_that_any_of_them_is_dropped() {
    for seed in 0..60 {
        let sim = Sim::new(seed);
        sim.run(async {
            let setup = Setup {
                behaviour: Behaviour {
                    shuffle: true,
                    ..Behaviour::default()
                },
                cut: Cut::Random,
                capacity: 4000,
                in_flight: 6,
                weight: 30_000,
                ..Setup::default()
            };
            let Bench { link, .. } = setup.connect(&sim).await;
            let link = &link;
            let sim = &sim;
            join_all((0..12_u8).map(|n| async move {
                // Each task has its own blocks; dropped requests go to a block that no task reads.
                let own = u64::from(n) * 65_536;
                for round in 0..10_u8 {
                    let chance = sim.chance();
                    let kind = chance.below(every_kind());
                    let call = every_request(link, own + 32_768, 4096).swap_remove(kind);
                    dropped_after(call, chance.below(30)).await;
                    let len = 1 + chance.below(20_000);
                    assert!(is_ok(&write(link, own, vec![n ^ round; len]).await));
                    let back = read(link, own, len).await;
                    assert!(is_ok(&back) && back.sink == vec![n ^ round; len]);
                }
            }))
            .await;
            assert_eq!(link.load(), Some(0));
        });
    }
}

#[test]
fn a_dropped_request_that_is_half_sent_is_finished_by_the_connection_task() {
    let sim = Sim::new(3);
    sim.run(async {
        let setup = Setup {
            capacity: 1000,
            ..Setup::default()
        };
        let Bench { link, memory, .. } = setup.connect(&sim).await;
        assert!(!dropped_after(write(&link, 0, vec![7; 300_000]), 2).await);
        // The connection is idle from now on.
        sim.sleep(Duration::from_secs(1)).await;
        let mut now = vec![0; 300_000];
        memory.read(0, &mut now).unwrap();
        assert!(now.iter().all(|byte| *byte == 7));
    });
}

#[test]
fn a_request_that_waits_for_room_is_taken_back_when_it_is_dropped() {
    let sim = Sim::new(3);
    let log = sim.run(async {
        let setup = Setup {
            in_flight: 1,
            ..Setup::default()
        };
        let log = setup.behaviour.log.clone();
        let Bench { link, .. } = setup.connect(&sim).await;
        let first = write(&link, 0, vec![1; 10]);
        let second = async { dropped_after(write(&link, 10, vec![2; 10]), 1).await };
        let (first, second) = super::sim::join(first, second).await;
        assert!(is_ok(&first) && !second);
        verify(&link, 1).await;
        log
    });
    let log = log.lock().unwrap();
    assert!(
        !log.iter().any(|line| line.contains("offset: 10,")),
        "{log:?}"
    );
}

#[test]
fn requests_are_sent_in_the_order_in_which_they_came() {
    // B-012
    let sim = Sim::new(9);
    let log = sim.run(async {
        let setup = Setup {
            in_flight: 3,
            weight: 50_000,
            behaviour: Behaviour {
                shuffle: true,
                ..Behaviour::default()
            },
            ..Setup::default()
        };
        let log = setup.behaviour.log.clone();
        let Bench { link, .. } = setup.connect(&sim).await;
        let mut calls: Vec<_> = (0..50)
            .map(|n| {
                // Small requests do not overtake large ones that wait.
                let len = if n % 3 == 0 { 40_000 } else { 1 };
                write(&link, n, vec![0; len])
            })
            .collect();
        poll_fn(|cx| {
            for call in &mut calls {
                assert!(Pin::new(call).poll(cx).is_pending());
            }
            Poll::Ready(())
        })
        .await;
        // They are waited for in another order.
        for call in calls.into_iter().rev() {
            assert!(is_ok(&call.await));
        }
        log
    });
    let expected: Vec<_> = (0..50).map(|n| format!("offset: {n},")).collect();
    let log = log.lock().unwrap();
    assert_eq!(log.len(), 50);
    for (line, expected) in log.iter().zip(&expected) {
        assert!(line.contains(expected), "{line} is not at {expected}");
    }
}

#[test]
fn no_more_payload_is_in_flight_than_allowed() {
    let sim = Sim::new(9);
    sim.run(async {
        let setup = Setup {
            weight: 50_000,
            behaviour: Behaviour {
                silent: Some(Arc::new(|_| true)),
                ..Behaviour::default()
            },
            ..Setup::default()
        };
        let log = setup.behaviour.log.clone();
        let Bench { link, .. } = setup.connect(&sim).await;
        let mut calls: Vec<_> = (0..9).map(|n| read(&link, n, 20_000)).collect();
        let sleep = sim.sleep(Duration::from_secs(1));
        super::sim::select(sleep, async {
            poll_fn(|cx| {
                for call in &mut calls {
                    assert!(Pin::new(call).poll(cx).is_pending());
                }
                Poll::<()>::Pending
            })
            .await
        })
        .await;
        // The calls are not polled, but the connection task does the rest of their work.
        drop(calls.pop());
        sim.sleep(Duration::from_secs(1)).await;
        assert_eq!(log.lock().unwrap().len(), 2);
    });
}

#[test]
fn a_call_that_is_not_polled_does_not_hold_up_others() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        sim.run(async {
            let setup = Setup {
                behaviour: Behaviour {
                    shuffle: true,
                    ..Behaviour::default()
                },
                ..Setup::default()
            };
            let Bench { link, .. } = setup.connect(&sim).await;
            let other = link.clone();
            // A task begins to read, is the poller, and then waits for something else.
            let mut held = pin!(read(&link, 0, 4096));
            let (sender, receiver) = (Arc::new(std::sync::Mutex::new(false)), ());
            let () = receiver;
            let done = sender.clone();
            sim.spawn(async move {
                for round in 0..20 {
                    verify(&other, round).await;
                }
                *done.lock().unwrap() = true;
            });
            let start = sim.now();
            // The other's request is in flight when the task becomes the poller.
            sim.sleep(Duration::from_micros(seed * 5)).await;
            poll_fn(|cx| {
                let _ = held.as_mut().poll(cx);
                Poll::Ready(())
            })
            .await;
            while !*sender.lock().unwrap() {
                sim.sleep(Duration::from_millis(1)).await;
            }
            let took = sim.now() - start;
            assert!(took < Duration::from_millis(100), "{took:?}");
            assert!(is_ok(&held.await));
        });
    }
}

#[test]
fn a_lone_caller_wakes_only_itself() {
    let sim = Sim::new(1);
    sim.run(async {
        let Bench { link, .. } = Setup::default().connect(&sim).await;
        verify(&link, 1).await;
        let before = sim.polls();
        for _ in 0..1000 {
            assert!(is_ok(&read(&link, 0, 512).await));
        }
        // The caller once for each reply, and the server once or twice for each request.
        let polls = sim.polls() - before;
        assert!(polls <= 3010, "{polls} polls for 1000 requests");
    });
}

#[test]
fn requests_that_begin_together_are_written_together() {
    let sim = Sim::new(1);
    sim.run(async {
        let Bench { link, cutter, .. } = Setup::default().connect(&sim).await;
        let (link, cutter) = (&link, &cutter);
        let count = async |tasks: u64, each| {
            let before = cutter.writes();
            join_all((0..tasks).map(|n| async move {
                for _ in 0..each {
                    assert!(is_ok(&read(link, n * 512, 512).await));
                }
            }))
            .await;
            cutter.writes() - before
        };
        // The first of them does not know of the others.
        let burst = count(32, 1).await;
        assert!(burst <= 2, "{burst} writes for 32 requests at once");
        // Further requests follow replies that were read together.
        let more = count(32, 100).await;
        assert!(more < 400, "{more} writes for 3200 requests");
    });
}

#[test]
fn a_reply_that_is_not_taken_blocks_no_other_request() {
    let sim = Sim::new(1);
    sim.run(async {
        let Bench { link, .. } = Setup::default().connect(&sim).await;
        let mut left = pin!(read(&link, 0, 512));
        assert!(poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx).is_pending())).await);
        let start = sim.now();
        for _ in 0..100 {
            assert!(is_ok(&read(&link, 512, 512).await));
        }
        assert_eq!(sim.now(), start);
        assert!(is_ok(&left.await));
    });
}

#[test]
fn a_request_that_is_left_to_a_task_that_does_not_come_is_sent_all_the_same() {
    let sim = Sim::new(1);
    sim.run(async {
        let Bench { link, .. } = Setup::default().connect(&sim).await;
        // It is woken to write its own request and this one, and its task has other things to do.
        let mut stuck = pin!(read(&link, 0, 512));
        let mut behind = pin!(read(&link, 512, 512));
        let mut first = pin!(read(&link, 1024, 512));
        let elsewhere = &mut Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(elsewhere).is_pending());
        assert!(stuck.as_mut().poll(elsewhere).is_pending());
        let start = sim.now();
        assert!(is_ok(&behind.as_mut().await));
        let waited = sim.now() - start;
        assert!(waited < Duration::from_millis(50), "{waited:?}");
        assert!(is_ok(&first.await) && is_ok(&stuck.await));
    });
}
