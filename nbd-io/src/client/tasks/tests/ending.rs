//! One connection: requests that are late, and its end.

use super::{
    engine::{Bench, Setup, dropped_after, limits, read, verify, write},
    pipe::{Cut, pipe},
    server::{Behaviour, enter},
    sim::{Sim, join_all},
};
use crate::{
    Memory, NamedExports,
    client::{
        Connected, Error, Lost, NegotiationConfig, negotiate,
        tasks::{
            alarm::Alarm,
            link::{ConnectionTask, Link},
        },
    },
    runtime::{Runtime, Tasks},
};
use nbd_proto::{Command, ExportName};
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

#[test]
fn a_request_that_is_not_answered_in_time_ends_alone() {
    // C-208
    let sim = Sim::new(1);
    sim.run(async {
        let timeout = Duration::from_secs(8);
        let setup = Setup {
            timeout: Some(timeout),
            behaviour: Behaviour {
                silent: Some(Arc::new(|n| n == 3 || n == 5)),
                ..Behaviour::default()
            },
            ..Setup::default()
        };
        let Bench { link, .. } = setup.connect(&sim).await;
        let link = &link;
        let results = join_all((0..10_u8).map(|n| {
            let sim = sim.clone();
            async move {
                let start = sim.now();
                let done = write(link, n.into(), vec![n]).await;
                (done.result(), sim.now() - start)
            }
        }))
        .await;
        for (n, (result, took)) in results.into_iter().enumerate() {
            if n == 3 || n == 5 {
                let Err(Error::Timeout { command, after }) = result else {
                    panic!("{result:?}");
                };
                assert_eq!((command, after), (Command::Write, timeout));
                assert!(took >= timeout && took < timeout * 3 / 2, "{took:?}");
            } else {
                assert!(result.is_ok() && took < Duration::from_secs(1), "{n}");
            }
        }
        verify(link, 2).await;
        assert_eq!(link.load(), Some(0));
    });
}

#[test]
fn a_request_has_its_full_timeout_after_any_earlier_ones() {
    let sim = Sim::new(1);
    sim.run(async {
        let setup = Setup {
            timeout: Some(Duration::from_secs(8)),
            in_flight: 1,
            ..Setup::default()
        };
        let Bench { link, .. } = setup.connect(&sim).await;
        for before in 0..4 {
            match before {
                0 => drop(write(&link, 0, vec![1; 10]).await),
                1 => {
                    let senseless = read(&link, u64::MAX - 10, 5).await;
                    assert!(matches!(senseless.result(), Err(Error::Misuse(_))));
                }
                2 => {
                    dropped_after(write(&link, 0, vec![1; 10]), 1).await;
                }
                _ => {
                    let mut one = Box::pin(write(&link, 0, vec![1; 10]));
                    let mut other = Box::pin(write(&link, 0, vec![1; 10]));
                    poll_fn(|cx| {
                        let _ = one.as_mut().poll(cx);
                        let _ = other.as_mut().poll(cx);
                        Poll::Ready(())
                    })
                    .await;
                }
            }
            sim.sleep(Duration::from_secs(20)).await;
            let done = read(&link, 0, 10).await;
            assert!(done.reply.is_ok(), "{before}: {:?}", done.reply);
        }
    });
}

#[test]
fn a_request_that_finds_no_room_in_time_ends_alone() {
    let sim = Sim::new(1);
    sim.run(async {
        let setup = Setup {
            timeout: Some(Duration::from_secs(8)),
            in_flight: 1,
            behaviour: Behaviour {
                silent: Some(Arc::new(|_| true)),
                ..Behaviour::default()
            },
            ..Setup::default()
        };
        let log = setup.behaviour.log.clone();
        let Bench { link, .. } = setup.connect(&sim).await;
        let (first, second) = super::sim::join(read(&link, 0, 1), read(&link, 1, 1)).await;
        for done in [first, second] {
            assert!(matches!(done.result(), Err(Error::Timeout { .. })));
        }
        assert_eq!(log.lock().unwrap().len(), 1);
    });
}

#[test]
fn a_connection_that_breaks_ends_every_call_with_its_cause() {
    for cut in [Cut::Whole, Cut::Random] {
        for seed in 0..40 {
            let sim = Sim::new(seed);
            sim.run(async {
                let setup = Setup {
                    cut,
                    capacity: 2000,
                    in_flight: 3,
                    ..Setup::default()
                };
                let Bench { link, cutter, .. } = setup.connect(&sim).await;
                let polls = sim.chance().below(60);
                let mut waits = 0;
                let cutter = poll_fn(|cx| {
                    waits += 1;
                    if waits > polls {
                        cutter.cut();
                        return Poll::Ready(());
                    }
                    cx.waker().wake_by_ref();
                    Poll::Pending
                });
                let link = &link;
                let calls = join_all((0..8_u8).map(|n| async move {
                    let mut done = 0;
                    loop {
                        let wrote = write(link, u64::from(n) * 9000, vec![n; 9000]).await;
                        match wrote.result() {
                            Ok(_) => done += 1,
                            Err(Error::Lost(lost)) => return (done, lost),
                            Err(other) => panic!("{other}"),
                        }
                    }
                }));
                let ((), ends) = super::sim::join(cutter, calls).await;
                let first = ends[0].1.clone();
                assert!(matches!(*first, Lost::Closed | Lost::Io(_)), "{first}");
                assert!(ends.iter().all(|(_, lost)| Arc::ptr_eq(lost, &first)));
                let late = read(link, 0, 1).await;
                assert!(
                    matches!(late.result(), Err(Error::Lost(lost)) if Arc::ptr_eq(&lost, &first))
                );
                sim.sleep(Duration::from_millis(1)).await;
            });
            assert_eq!(
                sim.tasks(),
                0,
                "the connection task and the server have ended"
            );
        }
    }
}

#[test]
fn the_end_of_an_idle_connection_is_noticed() {
    for used in [false, true] {
        let sim = Sim::new(4);
        sim.run(async {
            let Bench { link, cutter, .. } = Setup::default().connect(&sim).await;
            if used {
                verify(&link, 1).await;
            }
            cutter.cut();
            let start = sim.now();
            assert!(matches!(*link.over().await, Lost::Closed));
            assert!(sim.now() - start <= Duration::from_secs(1));
        });
    }
}

/// A task that knows whether it was woken.
#[derive(Default)]
struct Task(AtomicBool);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn poll<F: Future>(future: &mut Pin<Box<F>>, task: &Arc<Task>) -> Poll<F::Output> {
    let waker = Waker::from(task.clone());
    future.as_mut().poll(&mut Context::from_waker(&waker))
}

#[test]
fn close_waiters_are_woken_by_the_end_and_dropped_ones_are_forgotten() {
    let sim = Sim::new(4);
    sim.run(async {
        let Bench { link, cutter, .. } = Setup::default().connect(&sim).await;
        let tasks: [_; 4] = std::array::from_fn(|_| Arc::<Task>::default());
        let [stopped, moved, first, second] = &tasks;
        for _ in 0..10 {
            assert!(poll(&mut Box::pin(link.over()), stopped).is_pending());
        }
        assert_eq!(Arc::strong_count(stopped), 1, "none of its wakers is kept");
        let mut waits = [Box::pin(link.over()), Box::pin(link.over())];
        assert!(poll(&mut waits[0], moved).is_pending());
        for (wait, task) in waits.iter_mut().zip([first, second]) {
            assert!(poll(wait, task).is_pending());
        }
        assert_eq!(Arc::strong_count(moved), 1, "another task waits instead");

        cutter.cut();
        sim.sleep(Duration::from_secs(2)).await;
        let woken = tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(woken, [false, false, true, true]);
        for (wait, task) in waits.iter_mut().zip([first, second]) {
            let Poll::Ready(lost) = poll(wait, task) else {
                panic!("it is over");
            };
            assert!(matches!(*lost, Lost::Closed), "{lost}");
        }
    });
}

#[test]
fn a_disconnect_waits_for_requests_in_flight() {
    // C-186, C-187
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (log, done) = sim.run(async {
            let setup = Setup {
                cut: Cut::Random,
                in_flight: 4,
                behaviour: Behaviour {
                    shuffle: true,
                    ..Behaviour::default()
                },
                ..Setup::default()
            };
            let log = setup.behaviour.log.clone();
            let Bench { link, .. } = setup.connect(&sim).await;
            let link = &link;
            let calls = join_all((0..6_u64).map(|n| write(link, n * 100, vec![1; 100])));
            let disconnect = async {
                let mut once = false;
                poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    let ready = std::mem::replace(&mut once, true);
                    if ready { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                assert!(link.close());
                assert!(!link.close());
                link.over().await
            };
            let (calls, lost) = super::sim::join(calls, disconnect).await;
            assert!(matches!(*lost, Lost::Disconnected));
            let done = calls.iter().filter(|call| call.reply.is_ok()).count();
            let refused = calls.iter().filter(
                |call| matches!(call.reply.error(), Some(Error::Lost(lost)) if matches!(**lost, Lost::Disconnected)),
            );
            // A reply that has come before makes room for one more.
            assert!(done >= 4, "{done}");
            assert_eq!(done + refused.count(), 6);
            (log, done)
        });
        let log = log.lock().unwrap();
        assert_eq!(log.last().unwrap(), "Disconnect");
        assert_eq!(log.len(), done + 1);
    }
}

#[test]
fn a_disconnect_from_a_server_that_owes_a_reply_ends_after_five_seconds() {
    // B-018
    let sim = Sim::new(4);
    sim.run(async {
        let setup = Setup {
            behaviour: Behaviour {
                silent: Some(Arc::new(|_| true)),
                ..Behaviour::default()
            },
            ..Setup::default()
        };
        let Bench { link, .. } = setup.connect(&sim).await;
        assert!(!dropped_after(read(&link, 0, 100), 1).await);
        let start = sim.now();
        link.close();
        link.over().await;
        let took = sim.now() - start;
        assert_eq!(took.as_secs(), 5, "{took:?}");
    });
}

#[test]
fn a_server_that_does_not_close_is_left_two_seconds_after_the_disconnect() {
    let sim = Sim::new(4);
    let (ours, theirs) = pipe(sim.chance());
    let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(512))));
    let behaviour = Behaviour::default();
    let config = NegotiationConfig::new(ExportName::default());
    sim.run(async {
        let server = enter(theirs, exports, &behaviour);
        let client = negotiate(ours, &config, async |pipe| Ok(pipe));
        let (_kept, connected) = super::sim::join(server, client).await;
        let Connected {
            transport,
            transmission,
            ..
        } = connected.unwrap();
        let limits = limits(&sim, None, u64::MAX);
        let link = Arc::new(Link::new(Box::new(transport), transmission, limits, None));
        let connection_task = ConnectionTask::new(link.clone(), sim.clone(), Alarm::default());
        sim.spawn(async move { drop(connection_task.await) });
        let start = sim.now();
        link.close();
        assert!(matches!(*link.over().await, Lost::Disconnected));
        assert_eq!(sim.now() - start, Duration::from_secs(2));
    });
}
